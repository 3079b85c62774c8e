#!/usr/bin/env python3
"""Reads the golden streams and bodies of testdata/server with the vendors' own Python SDKs.

usage   python3 -m venv VENV && VENV/bin/pip install -r crates/server/tests/sdk/requirements.txt
        VENV/bin/python crates/server/tests/sdk/check.py

For every reply: each event is of a type that the SDK knows and holds all that the type requires; the SDK's accumulator takes the
events in their order; what it accumulates equals the body of the answer without a stream. Prints one line for each reply that fails
and a summary; exit status 1 if any does.
"""
import json
import pathlib
import sys
import typing

import httpx2
from anthropic import Anthropic, APIStatusError
from anthropic import types as anthropic_types
from openai import APIError, OpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion
from openai.types import responses as openai_types
from openai.types.chat import ChatCompletion, ChatCompletionChunk

DATA = pathlib.Path(__file__).resolve().parents[4] / "testdata" / "server"


def by_type(union):
    """The classes of a union of events by the word that their member `type` must be."""
    classes = typing.get_args(typing.get_args(union)[0])
    return {typing.get_args(c.model_fields["type"].annotation)[0]: c for c in classes}


MESSAGES_EVENTS = by_type(anthropic_types.RawMessageStreamEvent)
RESPONSES_EVENTS = by_type(openai_types.ResponseStreamEvent)


def client_of(reply):
    """An HTTP client that answers every request with the file `reply`."""

    def answer(_request):
        kind = "text/event-stream" if reply.suffix == ".sse" else "application/json"
        return httpx2.Response(200, headers={"content-type": kind}, content=reply.read_bytes())

    return httpx2.Client(transport=httpx2.MockTransport(answer))


def events_of(path):
    for block in path.read_text().split("\n\n"):
        data = [line[6:] for line in block.split("\n") if line.startswith("data: ")]
        if data:
            yield json.loads("\n".join(data))


def dump(model):
    return json.loads(model.model_dump_json(exclude_none=True))


def without_null(value):
    if isinstance(value, dict):
        return {k: without_null(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_null(v) for v in value]
    return value


def check_messages(sse):
    body_path = sse.with_suffix(".json")
    for event in events_of(sse):
        if event["type"] not in ("ping", "error"):
            MESSAGES_EVENTS[event["type"]].model_validate(event)
    fails = sse.stem.startswith("failed") or sse.stem == "cancelled"
    client = Anthropic(api_key="x", max_retries=0, http_client=client_of(sse))
    ask = dict(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hello"}])
    try:
        with client.messages.stream(**ask) as stream:
            message = stream.get_final_message()
    except APIStatusError as error:
        assert fails, f"an error: {error}"
        return
    assert not fails, "no error"
    found = dump(message)
    expected = without_null(json.loads(body_path.read_text()))
    # The SDK completes the arguments of a call that was cut off; the body leaves such a call out.
    if "cut_call" in (DATA / "replies" / f"{sse.stem}.json").read_text():
        found["content"] = found["content"][:-1]
        expected["content"] = [b for b in expected["content"] if b != {"type": "text", "text": ""}]
    assert found == expected, f"accumulated {found}\nbody {expected}"
    client = Anthropic(api_key="x", max_retries=0, http_client=client_of(body_path))
    whole = client.messages.create(**ask)
    assert dump(whole) == without_null(json.loads(body_path.read_text()))
    anthropic_types.Message.model_validate(json.loads(body_path.read_text()))


def check_responses(sse):
    body_path = sse.with_suffix(".json")
    for event in events_of(sse):
        RESPONSES_EVENTS[event["type"]].model_validate(event)
    client = OpenAI(api_key="x", max_retries=0, http_client=client_of(sse))
    last = None
    with client.responses.stream(model="m", input="Hello") as stream:
        for last in stream:
            pass
        fails = sse.stem.startswith("failed")
        if fails:
            assert last.type == "response.failed", last.type
            return
        expected = without_null(json.loads(body_path.read_text()))
        if expected["status"] == "completed":
            final = stream.get_final_response()
        else:
            assert last.type == "response.incomplete", last.type
            final = last.response
    openai_types.Response.model_validate(json.loads(body_path.read_text()))
    found = dump(final)
    for item in found["output"]:
        item.pop("parsed_arguments", None)
        for part in item.get("content") or []:
            part.pop("parsed", None)
    assert found == expected, f"accumulated {found}\nbody {expected}"


def check_chat(sse):
    body_path = sse.with_suffix(".json")
    client = OpenAI(api_key="x", max_retries=0, http_client=client_of(sse))
    ask = dict(model="m", messages=[{"role": "user", "content": "Hello"}])
    state = ChatCompletionStreamState()
    try:
        for chunk in client.chat.completions.create(**ask, stream=True):
            # The SDK reads calls of custom tools in a stream, but has no type for them.
            if sse.stem != "custom_call":
                ChatCompletionChunk.model_validate(chunk.to_dict())
            state.handle_chunk(chunk)
    except APIError as error:
        assert expects_failure(sse), f"an error: {error}"
        return
    assert not expects_failure(sse), "no error"
    found = dump(state.current_completion_snapshot)
    client = OpenAI(api_key="x", max_retries=0, http_client=client_of(body_path))
    expected = dump(client.chat.completions.create(**ask))
    assert expected == without_null(json.loads(body_path.read_text()))
    ChatCompletion.model_validate(json.loads(body_path.read_text()))
    # An extension, which the accumulator drops.
    del expected["timings"]
    message = found["choices"][0]["message"]
    message.pop("parsed", None)
    if not message["content"] and message.get("tool_calls"):
        del message["content"]
    for call in message.get("tool_calls", []):
        # Chunks number the calls; a body does not.
        call.pop("index", None)
    assert found == expected, f"accumulated {found}\nbody {expected}"


def check_completions(sse):
    body_path = sse.with_suffix(".json")
    client = OpenAI(api_key="x", max_retries=0, http_client=client_of(sse))
    ask = dict(model="m", prompt="Hello")
    text, reasons, usage = "", [], None
    try:
        for chunk in client.completions.create(**ask, stream=True):
            # The SDK's type wants a finish reason, which only the last chunk has.
            if any(choice.finish_reason for choice in chunk.choices):
                Completion.model_validate(chunk.to_dict())
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.text
                reasons += [choice.finish_reason] if choice.finish_reason else []
    except APIError as error:
        assert expects_failure(sse), f"an error: {error}"
        return
    assert not expects_failure(sse), "no error"
    client = OpenAI(api_key="x", max_retries=0, http_client=client_of(body_path))
    whole = client.completions.create(**ask)
    assert dump(whole) == without_null(json.loads(body_path.read_text()))
    assert (text, reasons) == (whole.choices[0].text, [whole.choices[0].finish_reason])
    assert usage == whole.usage


def expects_failure(sse):
    return sse.stem.startswith("failed") or sse.stem == "cancelled"


def main():
    n_good = n_bad = 0
    checks = {
        "messages": check_messages,
        "responses": check_responses,
        "chat": check_chat,
        "completions": check_completions,
    }
    for folder, check in checks.items():
        for sse in sorted((DATA / folder).glob("*.sse")):
            try:
                check(sse)
                n_good += 1
            except Exception as error:  # Whatever the SDK raises is a finding.
                n_bad += 1
                print(f"FAIL {folder}/{sse.name}: {type(error).__name__}: {error}")
    print(f"{n_good} replies read by the SDKs, {n_bad} not")
    return 1 if n_bad or not n_good else 0


if __name__ == "__main__":
    sys.exit(main())

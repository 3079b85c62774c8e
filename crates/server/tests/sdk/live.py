#!/usr/bin/env python3
"""Asks a running ds4-server with the vendors' own Python SDKs.

usage   cargo run --release -p ds4-cli --features server --bin ds4-server
        VENV/bin/python crates/server/tests/sdk/live.py [http://127.0.0.1:8000]

VENV as in check.py. Every endpoint, whole and as a stream: text, reasoning, a tool's round trip, usage, counts, errors. What is
asked is what the built-in model can do (models/README.md), and replies are greedy, so that a stream must say what the whole answer
says. Prints one line for each check and a summary; exit status 1 if any fails.
"""
import json
import sys

import anthropic
import openai

URL = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000").rstrip("/")
MODEL = "deepseek-v4-flash"
SUM = "What is 17 + 25?"
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "city name"}}, "required": ["city"]}
WEATHER = "What is the weather in Paris? Use the get_weather tool."
RESULT = "18 C, light rain"
GREEDY = {"temperature": 0}

OPENAI = openai.OpenAI(base_url=URL + "/v1", api_key="x", max_retries=0, timeout=120)
ANTHROPIC = anthropic.Anthropic(base_url=URL, api_key="x", max_retries=0, timeout=120)


def same(found, expected, what):
    assert found == expected, f"{what}: found {found!r}, expected {expected!r}"


def raises(kind, status, call, **body):
    try:
        call(**body)
    except kind as error:
        same(error.status_code, status, "status")
        return error
    raise AssertionError(f"no {kind.__name__}")


# ---- Chat Completions

CHAT_TOOL = {"type": "function", "function": {"name": "get_weather", "description": "current weather", "parameters": CITY}}


def chat(messages, **more):
    return OPENAI.chat.completions.create(model=MODEL, messages=messages, **GREEDY, **more)


def chat_stream(messages, **more):
    """Text, reasoning, calls by index, finish reason, usage."""
    text, reasoning, calls, finish, usage = "", "", {}, None, None
    for chunk in chat(messages, stream=True, stream_options={"include_usage": True}, **more):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or []:
                known = calls.setdefault(call.index, {"id": call.id, "name": call.function.name, "arguments": ""})
                known["arguments"] += call.function.arguments or ""
    return text, reasoning, calls, finish, usage


def chat_text_and_reasoning():
    ask = [{"role": "user", "content": SUM}]
    whole = chat(ask)
    message = whole.choices[0].message
    assert "42" in message.content, message.content
    assert message.reasoning_content, "no reasoning"
    text, reasoning, _, finish, usage = chat_stream(ask)
    same((text, reasoning, finish), (message.content, message.reasoning_content, "stop"), "stream")
    same(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "usage")
    same(usage.completion_tokens, whole.usage.completion_tokens, "completion tokens")
    same(usage.completion_tokens_details.reasoning_tokens, whole.usage.completion_tokens_details.reasoning_tokens, "reasoning tokens")
    assert usage.completion_tokens_details.reasoning_tokens > 0, "no reasoning tokens"
    # The second time all but the last token of the prompt is cached.
    same(usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens - 1, "cached tokens")
    quiet = chat(ask, reasoning_effort="none")
    assert "42" in quiet.choices[0].message.content
    assert not getattr(quiet.choices[0].message, "reasoning_content", None), "reasoning that was switched off"


def chat_limit_and_stop():
    ask = [{"role": "user", "content": SUM}]
    cut = chat(ask, max_completion_tokens=3)
    same((cut.choices[0].finish_reason, cut.usage.completion_tokens), ("length", 3), "limit")
    stopped = chat(ask, stop=["= 42"], reasoning_effort="none")
    same(stopped.choices[0].finish_reason, "stop", "finish")
    assert "= 42" not in stopped.choices[0].message.content, stopped.choices[0].message.content


def chat_tool():
    ask = [{"role": "user", "content": WEATHER}]
    whole = chat(ask, tools=[CHAT_TOOL])
    [call] = whole.choices[0].message.tool_calls
    same((call.function.name, whole.choices[0].finish_reason), ("get_weather", "tool_calls"), "call")
    _, reasoning, calls, finish, _ = chat_stream(ask, tools=[CHAT_TOOL])
    same((calls[0]["name"], calls[0]["arguments"], finish), ("get_weather", call.function.arguments, "tool_calls"), "stream")
    city = json.loads(call.function.arguments)
    same(list(city), ["city"], "arguments")
    function = {"name": "get_weather", "arguments": json.dumps(city)}
    answered = ask + [
        {"role": "assistant", "content": None, "reasoning_content": reasoning,
         "tool_calls": [{"id": calls[0]["id"], "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": calls[0]["id"], "content": RESULT},
    ]
    whole = chat(answered, tools=[CHAT_TOOL])
    assert RESULT in whole.choices[0].message.content, whole.choices[0].message.content
    text, *_, usage = chat_stream(answered, tools=[CHAT_TOOL])
    same(text, whole.choices[0].message.content, "stream")
    assert usage.prompt_tokens_details.cached_tokens > 0, "nothing cached"


def chat_errors():
    create = OPENAI.chat.completions.create
    error = raises(openai.BadRequestError, 400, create, model=MODEL, messages="nonsense")
    same((error.type, error.param), ("invalid_request_error", "messages"), "error")
    error = raises(openai.BadRequestError, 400, create, model=MODEL, messages=[{"role": "user", "content": "many words " * 300_000}])
    same((error.code, error.type), ("context_length_exceeded", "invalid_request_error"), "overflow")
    assert "maximum context length is" in error.body["message"], error.body
    raises(openai.BadRequestError, 400, create, model=MODEL, messages=[{"role": "user", "content": SUM}], temperature=9)
    raises(openai.NotFoundError, 404, OPENAI.embeddings.create, model=MODEL, input="x")


# ---- Responses

RESPONSES_TOOL = {"type": "function", "name": "get_weather", "description": "current weather", "parameters": CITY, "strict": False}


def responses(ask, **more):
    return OPENAI.responses.create(model=MODEL, input=ask, **GREEDY, **more)


def responses_stream(ask, **more):
    """The types of all events, and the response of the last."""
    types, last = [], None
    for number, event in enumerate(responses(ask, stream=True, **more)):
        same(event.sequence_number, number, "sequence number")
        types.append(event.type)
        last = event
    same((types[0], types[-1]), ("response.created", "response.completed"), "first and last event")
    return types, last.response


def reasoning_of(response):
    return "".join(part.text for item in response.output if item.type == "reasoning" for part in item.content or item.summary)


def responses_text_and_reasoning():
    whole = responses(SUM)
    assert "42" in whole.output_text, whole.output_text
    assert reasoning_of(whole), "no reasoning"
    types, last = responses_stream(SUM)
    assert "response.output_text.delta" in types, sorted(set(types))
    assert {"response.reasoning_text.delta", "response.reasoning_summary_text.delta"} & set(types), sorted(set(types))
    same((last.output_text, reasoning_of(last)), (whole.output_text, reasoning_of(whole)), "stream")
    same(last.usage.total_tokens, last.usage.input_tokens + last.usage.output_tokens, "usage")
    same(last.usage.input_tokens_details.cached_tokens, last.usage.input_tokens - 1, "cached tokens")
    assert last.usage.output_tokens_details.reasoning_tokens > 0, "no reasoning tokens"
    with OPENAI.responses.stream(model=MODEL, input=SUM, **GREEDY) as stream:
        same(stream.get_final_response().output_text, whole.output_text, "accumulated")
    cut = responses(SUM, max_output_tokens=3)
    same((cut.status, cut.incomplete_details.reason), ("incomplete", "max_output_tokens"), "limit")
    counted = OPENAI.responses.input_tokens.count(model=MODEL, input=SUM)
    same(counted.input_tokens, whole.usage.input_tokens, "count")


def responses_tool():
    ask = [{"role": "user", "content": WEATHER}]
    whole = responses(ask, tools=[RESPONSES_TOOL], store=False)
    _, last = responses_stream(ask, tools=[RESPONSES_TOOL], store=False)
    calls = [[item for item in response.output if item.type == "function_call"] for response in (whole, last)]
    same([call.arguments for call in calls[0]], [call.arguments for call in calls[1]], "stream")
    [call] = calls[1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    answered = ask + [item.model_dump(exclude_none=True) for item in last.output] + [result]
    whole = responses(answered, tools=[RESPONSES_TOOL], store=False)
    assert RESULT in whole.output_text, whole.output_text
    same(responses_stream(answered, tools=[RESPONSES_TOOL], store=False)[1].output_text, whole.output_text, "stream")


def responses_store():
    first = responses(WEATHER, tools=[RESPONSES_TOOL])
    [call] = [item for item in first.output if item.type == "function_call"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    second = responses([result], tools=[RESPONSES_TOOL], previous_response_id=first.id)
    assert RESULT in second.output_text, second.output_text
    same(OPENAI.responses.retrieve(first.id).id, first.id, "stored")
    OPENAI.responses.delete(first.id)
    raises(openai.NotFoundError, 404, OPENAI.responses.retrieve, response_id=first.id)


def responses_errors():
    error = raises(openai.BadRequestError, 400, OPENAI.responses.create, model=MODEL, input=5)
    assert error.body["message"], error.body
    raises(openai.BadRequestError, 400, OPENAI.responses.create, model=MODEL, input=SUM, previous_response_id="resp_unknown")


# ---- Completions


def completions():
    ask = dict(model=MODEL, prompt="ds4 is", max_tokens=12, **GREEDY)
    whole = OPENAI.completions.create(**ask)
    text, usage = "", None
    for chunk in OPENAI.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        text += "".join(choice.text for choice in chunk.choices)
    same(text, whole.choices[0].text, "stream")
    same(usage.completion_tokens, whole.usage.completion_tokens, "usage")
    assert 0 < usage.completion_tokens <= 12, usage
    raises(openai.BadRequestError, 400, OPENAI.completions.create, model=MODEL, prompt={"a": 1})


# ---- Messages

MESSAGES_TOOL = {"name": "get_weather", "description": "current weather", "input_schema": CITY}


def messages(ask, **more):
    return ANTHROPIC.messages.create(model=MODEL, max_tokens=1500, messages=ask, extra_body=GREEDY, **more)


def messages_stream(ask, **more):
    with ANTHROPIC.messages.stream(model=MODEL, max_tokens=1500, messages=ask, extra_body=GREEDY, **more) as stream:
        return stream.get_final_message()


def said(message):
    """What a message says, without what is different in every reply."""
    return [(b.type, getattr(b, "text", None), getattr(b, "thinking", None), getattr(b, "input", None)) for b in message.content]


def messages_text_and_thinking():
    ask = [{"role": "user", "content": SUM}]
    for thinking, kinds in (({"type": "enabled", "budget_tokens": 1024}, ["thinking", "text"]), ({"type": "disabled"}, ["text"])):
        whole = messages(ask, thinking=thinking)
        same([block.type for block in whole.content], kinds, "blocks")
        assert "42" in whole.content[-1].text, whole.content[-1].text
        last = messages_stream(ask, thinking=thinking)
        same((said(last), last.stop_reason), (said(whole), "end_turn"), "stream")
        n_prompt = last.usage.input_tokens + last.usage.cache_read_input_tokens + last.usage.cache_creation_input_tokens
        counted = ANTHROPIC.messages.count_tokens(model=MODEL, messages=ask, thinking=thinking)
        same(n_prompt, counted.input_tokens, "count")
        same((last.usage.input_tokens, last.usage.output_tokens), (1, whole.usage.output_tokens), "usage")


def messages_tool():
    ask = [{"role": "user", "content": WEATHER}]
    whole = messages(ask, tools=[MESSAGES_TOOL])
    last = messages_stream(ask, tools=[MESSAGES_TOOL])
    same((said(last), last.stop_reason), (said(whole), "tool_use"), "stream")
    use = last.content[-1]
    same((use.name, list(use.input)), ("get_weather", ["city"]), "call")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": RESULT}
    answered = ask + [
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in last.content]},
        {"role": "user", "content": [result]},
    ]
    whole = messages(answered, tools=[MESSAGES_TOOL])
    assert RESULT in whole.content[-1].text, whole.content[-1].text
    assert whole.usage.cache_read_input_tokens > 0, "nothing cached"
    same(said(messages_stream(answered, tools=[MESSAGES_TOOL])), said(whole), "stream")


def messages_errors():
    create = ANTHROPIC.messages.create
    error = raises(anthropic.BadRequestError, 400, create, model=MODEL, max_tokens=9, messages="nonsense")
    same((error.body["type"], error.body["error"]["type"]), ("error", "invalid_request_error"), "error")
    error = raises(anthropic.BadRequestError, 400, create, model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "many words " * 300_000}])
    assert error.body["error"]["message"].startswith("prompt is too long: "), error.body


# ---- Models


def models():
    assert MODEL in [model.id for model in OPENAI.models.list()]
    same(OPENAI.models.retrieve(MODEL).object, "model", "object")
    assert MODEL in [model.id for model in ANTHROPIC.models.list()]
    same(ANTHROPIC.models.retrieve(MODEL).type, "model", "type")


CHECKS = [
    chat_text_and_reasoning, chat_limit_and_stop, chat_tool, chat_errors,
    responses_text_and_reasoning, responses_tool, responses_store, responses_errors,
    completions,
    messages_text_and_thinking, messages_tool, messages_errors,
    models,
]  # fmt: skip


def main():
    n_bad = 0
    for check in CHECKS:
        try:
            check()
            print(f"good {check.__name__}")
        except Exception as error:  # Whatever the SDK raises is a finding.
            n_bad += 1
            print(f"FAIL {check.__name__}: {type(error).__name__}: {str(error)[:400]}")
    print(f"{len(CHECKS) - n_bad} checks good, {n_bad} not")
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())

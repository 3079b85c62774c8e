#!/usr/bin/env python3
"""Asks a running server what it must refuse, with the vendors' own Python SDKs.

usage   python3 -m venv VENV && VENV/bin/pip install -r crates/server/tests/sdk/requirements.txt
        cargo build -p ds4-cli --features server
        VENV/bin/python crates/server/tests/sdk/errors.py target/debug/ds4-server

Every refusal must raise the class that the SDK has for it, with the members that clients look at. Prints one line for each that does
not and a summary; exit status 1 if any does not.
"""
import re
import subprocess
import sys
import time

import anthropic
import openai

KEY = "secret"
CONTEXT = 512
FLAGS = ["--port", "0", "--ctx", str(CONTEXT), "--api-key", KEY, "--max-queue", "1", "--max-body-mb", "1", "--strict-models", "-t", "1"]
HELLO = [{"role": "user", "content": "hi"}]
LONG = [{"role": "user", "content": "seven " * 2000}]
LARGE = [{"role": "user", "content": "x" * (3 << 20)}]


def chat(client, **ask):
    ask = {"model": "deepseek-v4-flash", "messages": HELLO, "max_tokens": 5} | ask
    return client.chat.completions.create(**ask)


def responses(client, **ask):
    return client.responses.create(**({"model": "deepseek-v4-flash", "input": "hi", "max_output_tokens": 5} | ask))


def completions(client, **ask):
    return client.completions.create(**({"model": "deepseek-v4-flash", "prompt": "hi", "max_tokens": 5} | ask))


def messages(client, **ask):
    ask = {"model": "deepseek-v4-flash", "messages": HELLO, "max_tokens": 5} | ask
    return client.messages.create(**ask)


class Checks:
    def __init__(self, address):
        self.address = address
        self.n, self.n_failed = 0, 0

    def openai(self, key=KEY, **more):
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, **more)

    def anthropic(self, key=KEY, **more):
        return anthropic.Anthropic(base_url=self.address, api_key=key, max_retries=0, **more)

    def raises(self, what, kind, ask, **members):
        self.n += 1
        try:
            ask()
        except kind as error:
            body = error.body if isinstance(error.body, dict) else {}
            body = body.get("error", body)
            found = {name: body.get(name, getattr(error, name, None)) for name in members}
            if found == members and type(error) is kind and error.message:
                return
            failure = f"{found} is not {members}" if found != members else f"{type(error).__name__}: {error}"
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        else:
            failure = "no error"
        self.n_failed += 1
        print(f"{what}: expected {kind.__name__}, {failure}")

    def refusals(self):
        overflow = {"code": "context_length_exceeded", "type": "invalid_request_error"}
        invalid = {"type": "invalid_request_error"}
        evil = {"Origin": "http://evil.example"}
        for ask, param in ((chat, "messages"), (responses, "input"), (completions, "prompt")):
            name = ask.__name__
            client = self.openai()
            long = {param: LONG if param == "messages" else LONG[0]["content"]}
            large = {param: LARGE if param == "messages" else LARGE[0]["content"]}
            for stream in (False, True):
                self.raises(f"{name} long", openai.BadRequestError, lambda: ask(client, stream=stream, **long), **overflow, param=param)
            self.raises(f"{name} type", openai.BadRequestError, lambda: ask(client, temperature="hot"), **invalid, param="temperature")
            self.raises(f"{name} range", openai.BadRequestError, lambda: ask(client, temperature=9), **invalid, param="temperature")
            self.raises(f"{name} large", openai.APIStatusError, lambda: ask(client, **large), code="request_too_large", status_code=413)
            self.raises(f"{name} model", openai.NotFoundError, lambda: ask(client, model="x"), code="model_not_found")
            for body in ({}, large):
                bad = self.openai(key="wrong")
                self.raises(f"{name} key", openai.AuthenticationError, lambda: ask(bad, **body), code="invalid_api_key")
            foreign = self.openai(default_headers=evil)
            self.raises(f"{name} page", openai.PermissionDeniedError, lambda: ask(foreign), type="permission_error")
        client = self.openai()
        self.raises("unknown response", openai.NotFoundError, lambda: client.responses.retrieve("resp_x"), **invalid)
        self.raises("unknown path", openai.NotFoundError, lambda: client.embeddings.create(model="m", input="x"), **invalid)
        self.raises("continued", openai.BadRequestError, lambda: responses(client, previous_response_id="resp_x"), code="previous_response_not_found")

        client = self.anthropic()
        for stream in (False, True):
            self.raises("messages long", anthropic.BadRequestError, lambda: messages(client, messages=LONG, stream=stream), **invalid)
        self.raises("messages type", anthropic.BadRequestError, lambda: messages(client, extra_body={"temperature": "hot"}), **invalid)
        self.raises("messages large", anthropic.RequestTooLargeError, lambda: messages(client, messages=LARGE), type="request_too_large")
        self.raises("messages model", anthropic.NotFoundError, lambda: messages(client, model="x"), type="not_found_error")
        for body in ({}, {"messages": LARGE}):
            bad = self.anthropic(key="wrong")
            self.raises("messages key", anthropic.AuthenticationError, lambda: messages(bad, **body), type="authentication_error")
        foreign = self.anthropic(default_headers=evil)
        self.raises("messages page", anthropic.PermissionDeniedError, lambda: messages(foreign), type="permission_error")

    def overload(self):
        """One request runs, one waits, and there is room for no more."""
        client = self.openai()
        held = [chat(client, stream=True, max_tokens=CONTEXT, extra_body={"ignore_eos": True}) for _ in range(2)]
        self.raises("full", openai.RateLimitError, lambda: chat(client), type="rate_limit_error", code="rate_limit_exceeded")
        self.raises("full", anthropic.OverloadedError, lambda: messages(self.anthropic()), type="overloaded_error")
        for stream in held:
            stream.close()

    def works(self):
        self.n += 1
        assert chat(self.openai()).choices[0].finish_reason
        assert messages(self.anthropic()).stop_reason


def main():
    server = subprocess.Popen([sys.argv[1], *FLAGS], stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            found = re.search(r"listening on (http://[\d.:]+)", line)
            if found:
                break
        checks = Checks(found.group(1))
        checks.refusals()
        checks.overload()
        time.sleep(0.5)
        checks.works()
    finally:
        server.terminate()
        server.wait()
    print(f"{checks.n} refusals, {checks.n_failed} not as the SDK has them")
    return 1 if checks.n_failed else 0


if __name__ == "__main__":
    sys.exit(main())

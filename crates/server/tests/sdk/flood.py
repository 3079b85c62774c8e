#!/usr/bin/env python3
"""Asks a running ds4-server for many replies at once by the vendors' SDKs, with the retries that they have by default.

usage   ds4-server --parallel 4 [--max-queue 64]
        VENV/bin/python crates/server/tests/sdk/flood.py [http://127.0.0.1:8000] [120]

VENV as in check.py. Prints how many calls were lost, and how many were told to come again; exit status 1 if any was lost.
"""
import concurrent.futures
import sys
import time

import anthropic
import openai

URL = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000").rstrip("/")
N_CALLS = int(sys.argv[2]) if len(sys.argv) > 2 else 120
MODEL = "deepseek-v4-flash"
ASK = [{"role": "user", "content": "What is 17 + 25?"}]


def by_openai(client, _):
    return client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK).retries_taken


def by_anthropic(_, client):
    return client.messages.with_raw_response.create(model=MODEL, max_tokens=500, messages=ASK).retries_taken


def main():
    clients = (openai.OpenAI(base_url=URL + "/v1", api_key="x"), anthropic.Anthropic(base_url=URL, api_key="x"))
    began = time.monotonic()
    n_lost, n_again = 0, 0
    with concurrent.futures.ThreadPoolExecutor(N_CALLS) as pool:
        calls = [pool.submit([by_openai, by_anthropic][i % 2], *clients) for i in range(N_CALLS)]
        for call in calls:
            try:
                n_again += call.result()
            except (openai.OpenAIError, anthropic.AnthropicError) as error:
                n_lost += 1
                print(f"{type(error).__name__}: {str(error)[:200]}")
    print(f"{N_CALLS} calls, {n_lost} lost, {n_again} times told to come again, {time.monotonic() - began:.1f} s")
    return int(n_lost > 0)


if __name__ == "__main__":
    sys.exit(main())

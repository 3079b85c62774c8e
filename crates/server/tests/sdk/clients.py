#!/usr/bin/env python3
"""Asks a running ds4-server through one of the libraries that programs use, each as its own documentation shows it.

usage   VENV/bin/python crates/server/tests/sdk/clients.py NAME [http://127.0.0.1:8000]

NAME is a function below; its libraries must be in VENV. `run.py` installs and runs all of them. What is asked is what the built-in
model can do (models/README.md): a sum, one tool, and structures, which are valid whatever the model means by them. Prints one line
for each check and a summary; exit status 1 if any fails.
"""
import asyncio
import enum
import sys
import typing

import pydantic

URL = (sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000").rstrip("/")
V1 = URL + "/v1"
MODEL = "deepseek-v4-flash"
KEY = "x"
SUM = "What is 17 + 25?"
WEATHER = "What is the weather in Paris? Use the get_weather tool."
RESULT = "18 C, light rain"
FILL = "Fill in an order."
# Small, because the built-in model writes nonsense where it was not trained.
MOST = 400


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Item(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    size: Size
    count: int = pydantic.Field(ge=1, le=99)


class Order(pydantic.BaseModel):
    """An order of a few items."""

    items: list[Item] = pydantic.Field(min_length=1, max_length=2)
    paid: bool
    note: typing.Optional[str] = pydantic.Field(max_length=12)


class Line(pydantic.BaseModel):
    name: str
    size: Size


class Plain(pydantic.BaseModel):
    """An order, without the bounds that Anthropic's libraries take out of a schema."""

    first: Line
    others: list[Line]
    paid: bool
    note: typing.Optional[str]


class Report:
    def __init__(self):
        self.n_good, self.n_bad = 0, 0

    def __call__(self, name, check):
        try:
            result = check()
            if asyncio.iscoroutine(result):
                result = asyncio.run(result)
            self.n_good += 1
            print(f"good {name}", flush=True)
            return result
        except Exception as error:  # Whatever a library raises is a finding.
            self.n_bad += 1
            print(f"FAIL {name}: {type(error).__name__}: {str(error)[:600]}", flush=True)


REPORT = Report()


def has(text, what):
    assert text and what in text, f"{what!r} is not in {text!r}"


def same(found, expected):
    assert found == expected, f"found {found!r}, expected {expected!r}"


def get_weather(city: str) -> str:
    """Current weather of a city."""
    return RESULT


# ---- The vendors' own


def openai():
    import openai

    client = openai.OpenAI(base_url=V1, api_key=KEY)
    ask = [{"role": "user", "content": SUM}]

    def chat():
        has(client.chat.completions.create(model=MODEL, messages=ask, temperature=0).choices[0].message.content, "42")

    def chat_stream():
        with client.chat.completions.stream(model=MODEL, messages=ask, temperature=0) as stream:
            has(stream.get_final_completion().choices[0].message.content, "42")

    def several():
        whole = client.chat.completions.create(model=MODEL, messages=ask, temperature=0, n=3, max_tokens=200)
        same([choice.index for choice in whole.choices], [0, 1, 2])
        texts = ["", "", ""]
        for chunk in client.chat.completions.create(model=MODEL, messages=ask, temperature=0, n=3, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        for text in texts:
            has(text, "42")
        two = client.completions.create(model=MODEL, prompt=["ds4 is", "ds4 runs"], n=2, max_tokens=5)
        same([choice.index for choice in two.choices], [0, 1, 2, 3])

    def chat_structure():
        tool = openai.pydantic_function_tool(Order)
        parse = client.chat.completions.parse
        order = parse(model=MODEL, messages=[{"role": "user", "content": FILL}], response_format=Order, max_tokens=MOST)
        assert isinstance(order.choices[0].message.parsed, Order), order
        called = parse(model=MODEL, messages=[{"role": "user", "content": FILL}], tools=[tool], tool_choice="required", max_tokens=MOST)
        assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, Order), called

    def responses():
        whole = client.responses.create(model=MODEL, input=SUM, temperature=0)
        has(whole.output_text, "42")
        same(client.responses.retrieve(whole.id).output_text, whole.output_text)
        types = [event.type for event in client.responses.retrieve(whole.id, stream=True)]
        same((types[0], types[-1]), ("response.created", "response.completed"))
        with client.responses.stream(model=MODEL, input=SUM, temperature=0) as stream:
            same(stream.get_final_response().output_text, whole.output_text)

    def responses_structure():
        order = client.responses.parse(model=MODEL, input=FILL, text_format=Order, max_output_tokens=MOST)
        assert isinstance(order.output_parsed, Order), order

    def custom_tool():
        grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "set " /[a-z]{1,8}/ " = " /[0-9]{1,4}/ ";"'}
        tool = {"type": "custom", "name": "run", "description": "Runs a line.", "format": grammar}
        whole = client.responses.create(model=MODEL, input="Set x to 7.", tools=[tool], tool_choice="required", max_output_tokens=MOST)
        [call] = [item for item in whole.output if item.type == "custom_tool_call"]
        assert call.input.startswith("set ") and call.input.endswith(";"), call.input

    for name, check in list(locals().items()):
        if callable(check) and name not in ("client",):
            REPORT(name, check)


def anthropic():
    import anthropic

    client = anthropic.Anthropic(base_url=URL, api_key=KEY)
    ask = [{"role": "user", "content": SUM}]
    weather = [{"role": "user", "content": WEATHER}]
    greedy = {"extra_body": {"temperature": 0}}
    tool = anthropic.beta_tool(get_weather)

    def said(message):
        return "".join(block.text for block in message.content if block.type == "text")

    def messages():
        has(said(client.messages.create(model=MODEL, max_tokens=500, messages=ask, **greedy)), "42")

    def stream():
        with client.messages.stream(model=MODEL, max_tokens=500, messages=ask, **greedy) as reply:
            has(said(reply.get_final_message()), "42")

    def tool_runner():
        runner = client.beta.messages.tool_runner(model=MODEL, max_tokens=800, tools=[tool], messages=weather, **greedy)
        has(said(runner.until_done()), RESULT)

    def tool_runner_stream():
        runner = client.beta.messages.tool_runner(model=MODEL, max_tokens=800, tools=[tool], messages=weather, stream=True, **greedy)
        for reply in runner:
            message = reply.get_final_message()
        has(said(message), RESULT)

    def thread():
        sent = []
        watching = anthropic.Anthropic(base_url=URL, api_key=KEY, http_client=watched(sent))
        talk = watching.beta.messages.thread(model=MODEL, max_tokens=500, system="You are helpful.", **greedy)
        has(said(talk.send({"role": "user", "content": SUM})), "42")
        talk.send({"role": "user", "content": "Hello"})
        same([body["thread"]["type"] for body in sent], ["create", "continue"])
        same(len(sent[1]["messages"]), 1)
        # One that the server does not know is begun again with all of the conversation.
        talk._state._thread.previous_message_id = "msg_gone"
        talk.send({"role": "user", "content": "Hello"})
        same([body["thread"]["type"] for body in sent[2:]], ["continue", "create"])
        same(len(sent[3]["messages"]), 5)

    def watched(sent):
        import json

        def keep(request):
            sent.append(json.loads(request.content))

        return anthropic.DefaultHttpxClient(event_hooks={"request": [keep]})

    def structure():
        ask = [{"role": "user", "content": FILL}]
        order = client.beta.messages.parse(model=MODEL, max_tokens=MOST, messages=ask, output_format=Plain, thinking={"type": "disabled"})
        assert isinstance(order.parsed_output, Plain), order

    for name, check in [("messages", messages), ("stream", stream), ("tool_runner", tool_runner), ("tool_runner_stream", tool_runner_stream),
                        ("thread", thread), ("structure", structure)]:
        REPORT(name, check)


# ---- What stands on them


def langchain():
    from langchain_anthropic import ChatAnthropic
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    weather_tool = tool(get_weather)
    models = {
        # It asks for no usage of a server that is not the vendor's, unless it is told to.
        "chat": ChatOpenAI(model=MODEL, base_url=V1, api_key=KEY, temperature=0, max_tokens=MOST, stream_usage=True),
        "responses": ChatOpenAI(model=MODEL, base_url=V1, api_key=KEY, temperature=0, use_responses_api=True),
        "messages": ChatAnthropic(model=MODEL, base_url=URL, api_key=KEY, temperature=0, max_tokens=800),
    }

    def text_of(message):
        return message.text if isinstance(message.text, str) else message.text()

    for name, model in models.items():
        REPORT(f"{name}: text", lambda: has(text_of(model.invoke(SUM)), "42"))

        def stream():
            whole = None
            for chunk in model.stream(SUM):
                whole = chunk if whole is None else whole + chunk
            has(text_of(whole), "42")
            assert whole.usage_metadata["total_tokens"] > 0, whole.usage_metadata

        REPORT(f"{name}: stream", stream)

        def tools():
            bound = model.bind_tools([weather_tool])
            turns = [HumanMessage(WEATHER)]
            called = bound.invoke(turns)
            [call] = called.tool_calls
            turns += [called, ToolMessage(weather_tool.invoke(call["args"]), tool_call_id=call["id"])]
            has(text_of(bound.invoke(turns)), RESULT)

        REPORT(f"{name}: tools", tools)
        for method in ["function_calling", "json_schema"]:
            kind = Plain if (name, method) == ("messages", "json_schema") else Order

            def structure():
                order = model.with_structured_output(kind, method=method).invoke(FILL)
                assert isinstance(order, kind), order

            REPORT(f"{name}: structure by {method}", structure)


def pydantic_ai():
    from pydantic_ai import Agent, NativeOutput, ToolOutput
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=V1, api_key=KEY)
    models = {
        "chat": OpenAIChatModel(MODEL, provider=provider),
        "responses": OpenAIResponsesModel(MODEL, provider=provider),
        "messages": AnthropicModel(MODEL, provider=AnthropicProvider(base_url=URL, api_key=KEY)),
    }
    greedy = {"temperature": 0, "max_tokens": 800}
    for name, model in models.items():

        async def text():
            has((await Agent(model).run(SUM, model_settings=greedy)).output, "42")

        async def stream():
            async with Agent(model).run_stream(SUM, model_settings=greedy) as reply:
                pieces = [piece async for piece in reply.stream_text(delta=True)]
            has("".join(pieces), "42")

        async def tools():
            agent = Agent(model, tools=[get_weather])
            has((await agent.run(WEATHER, model_settings=greedy)).output, RESULT)

        async def by_tool():
            order = (await Agent(model, output_type=ToolOutput(Order)).run(FILL, model_settings=greedy)).output
            assert isinstance(order, Order), order

        async def natively():
            kind = Plain if name == "messages" else Order
            order = (await Agent(model, output_type=NativeOutput(kind)).run(FILL, model_settings=greedy)).output
            assert isinstance(order, kind), order

        for what, check in [("text", text), ("stream", stream), ("tools", tools), ("structure by a tool", by_tool)]:
            REPORT(f"{name}: {what}", check)
        if model.profile.get("supports_json_schema_output") if isinstance(model.profile, dict) else model.profile.supports_json_schema_output:
            REPORT(f"{name}: structure", natively)


def instructor():
    import anthropic
    import instructor
    import openai

    messages = [{"role": "user", "content": FILL}]
    client = openai.OpenAI(base_url=V1, api_key=KEY)
    for mode in ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS"]:

        def structure():
            patched = instructor.from_openai(client, mode=getattr(instructor.Mode, mode))
            order = patched.chat.completions.create(model=MODEL, messages=messages, response_model=Order, max_retries=0)
            assert isinstance(order, Order), order

        REPORT(f"openai {mode}", structure)
    for mode in ["ANTHROPIC_TOOLS", "ANTHROPIC_JSON"]:

        def structure():
            patched = instructor.from_anthropic(anthropic.Anthropic(base_url=URL, api_key=KEY), mode=getattr(instructor.Mode, mode))
            order = patched.messages.create(model=MODEL, max_tokens=800, messages=messages, response_model=Order, max_retries=0,
                                            thinking={"type": "disabled"})
            assert isinstance(order, Order), order

        if mode == "ANTHROPIC_TOOLS":
            REPORT(f"anthropic {mode}", structure)

    # Its partial models take no members of enumerations.
    class Draft(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=12)
        size: typing.Literal["small", "large"]
        counts: list[int] = pydantic.Field(min_length=1, max_length=3)

    def partial():
        patched = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
        for draft in patched.chat.completions.create_partial(model=MODEL, messages=messages, response_model=Draft):
            pass
        Draft.model_validate(draft.model_dump())

    REPORT("openai partial", partial)


def litellm():
    import json

    import litellm

    litellm.suppress_debug_info = True
    ask = [{"role": "user", "content": SUM}]
    tool = {"type": "function", "function": {"name": "get_weather", "description": "current weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
    for name, base in [("openai/", V1), ("anthropic/", URL)]:
        more = dict(model=name + MODEL, api_base=base, api_key=KEY, temperature=0, max_tokens=800)
        REPORT(f"{name} text", lambda: has(litellm.completion(messages=ask, **more).choices[0].message.content, "42"))

        def stream():
            chunks = litellm.completion(messages=ask, stream=True, **more)
            has("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), "42")

        REPORT(f"{name} stream", stream)

        def tools():
            turns = [{"role": "user", "content": WEATHER}]
            called = litellm.completion(messages=turns, tools=[tool], **more).choices[0].message
            [call] = called.tool_calls
            same(list(json.loads(call.function.arguments)), ["city"])
            turns += [called.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
            has(litellm.completion(messages=turns, tools=[tool], **more).choices[0].message.content, RESULT)

        REPORT(f"{name} tools", tools)

    def structure():
        turns = [{"role": "user", "content": FILL}]
        reply = litellm.completion(model="openai/" + MODEL, api_base=V1, api_key=KEY, messages=turns, response_format=Order, max_tokens=MOST)
        Order.model_validate_json(reply.choices[0].message.content)

    REPORT("openai/ structure", structure)

    def responses():
        reply = litellm.responses(model="openai/" + MODEL, api_base=V1, api_key=KEY, input=SUM, temperature=0)
        has("".join(part.text for item in reply.output if item.type == "message" for part in item.content), "42")

    REPORT("openai/ responses", responses)


def agents():
    import agents as sdk
    import openai

    sdk.set_tracing_disabled(True)
    # A client belongs to one loop.
    client = lambda: openai.AsyncOpenAI(base_url=V1, api_key=KEY)
    greedy = sdk.ModelSettings(temperature=0, max_tokens=800)
    tool = sdk.function_tool(get_weather)
    models = {
        "chat": sdk.OpenAIChatCompletionsModel(model=MODEL, openai_client=client()),
        "responses": sdk.OpenAIResponsesModel(model=MODEL, openai_client=client()),
    }
    for name, model in models.items():

        def agent(**more):
            return sdk.Agent(name="a", model=model, model_settings=greedy, **more)

        async def text():
            has((await sdk.Runner.run(agent(), SUM)).final_output, "42")

        async def stream():
            reply = sdk.Runner.run_streamed(agent(), SUM)
            async for _ in reply.stream_events():
                pass
            has(reply.final_output, "42")

        async def tools():
            has((await sdk.Runner.run(agent(tools=[tool]), WEATHER)).final_output, RESULT)

        async def structure():
            order = (await sdk.Runner.run(agent(output_type=Order), FILL)).final_output
            assert isinstance(order, Order), order

        async def session():
            memory = sdk.SQLiteSession("s")
            await sdk.Runner.run(agent(), "Hello", session=memory)
            has((await sdk.Runner.run(agent(), SUM, session=memory)).final_output, "42")

        # One loop for all of a client's connections.
        async def all_of_them():
            return [(check, await asyncio.gather(check(), return_exceptions=True)) for check in [text, stream, tools, structure, session]]

        for check, [result] in asyncio.run(all_of_them()):

            def told():
                if isinstance(result, Exception):
                    raise result

            REPORT(f"{name}: {check.__name__}", told)


def main():
    checks = {f.__name__: f for f in [openai, anthropic, langchain, pydantic_ai, instructor, litellm, agents]}
    checks[sys.argv[1]]()
    print(f"{REPORT.n_good} checks good, {REPORT.n_bad} not")
    return 1 if REPORT.n_bad else 0


if __name__ == "__main__":
    sys.exit(main())

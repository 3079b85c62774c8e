"""Renders conversations to prompt text: the part of the chat protocol that the training data uses.

A message is a dict with `role` (system, user, assistant, tool) and `content`; a system message may carry `tools`
(function objects), an assistant message `reasoning` and `tool_calls` (name, arguments as a dict).
"""

from __future__ import annotations

import json

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, END_THINK, DSML = "<think>", "</think>", "｜DSML｜"

TOOLS_BLOCK = """## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a "<｜DSML｜tool_calls>" block like the following:

<｜DSML｜tool_calls>
<｜DSML｜invoke name="$TOOL_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$TOOL_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

{SCHEMAS}

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""

EFFORT = {
    "absolute": """Reasoning Effort: Absolute maximum with no shortcuts permitted.
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.
Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.

""",
    "beyond": """Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.
You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying cause rather than any surface symptom.
Do not stop reasoning until you have independently verified the solution from multiple angles and are certain that no assumption remains unchecked and no error remains undiscovered.

""",
}


def json_text(value) -> str:
    return json.dumps(value, ensure_ascii=False)


def tool_calls_text(calls: list[dict]) -> str:
    invokes = []
    for call in calls:
        parameters = [
            f'<{DSML}parameter name="{k}" string="{"true" if isinstance(v, str) else "false"}">'
            f'{v if isinstance(v, str) else json_text(v)}</{DSML}parameter>'
            for k, v in call["arguments"].items()
        ]
        invokes.append(f'<{DSML}invoke name="{call["name"]}">\n' + "\n".join(parameters) + f"\n</{DSML}invoke>")
    return f"\n\n<{DSML}tool_calls>\n" + "\n".join(invokes) + f"\n</{DSML}tool_calls>"


def merge(messages: list[dict]) -> list[dict]:
    """Tool results and adjacent user messages become one user turn."""
    out: list[dict] = []
    for m in messages:
        if m["role"] == "tool":
            part = f"<tool_result>{m['content']}</tool_result>"
        elif m["role"] == "user":
            part = m["content"]
        else:
            out.append(m)
            continue
        if out and out[-1]["role"] == "user":
            out[-1]["parts"].append(part)
        else:
            out.append({"role": "user", "parts": [part]})
    return out


def render(messages: list[dict], thinking: bool, effort: str | None = None) -> str:
    """The text of a conversation; ends in the generation prompt when the last turn is the user's."""
    keep = any(m.get("tools") for m in messages)
    turns = merge(messages)
    last_user = max((i for i, m in enumerate(turns) if m["role"] == "user"), default=-1)
    out = [BOS, EFFORT[effort] if effort and thinking else ""]
    for i, m in enumerate(turns):
        if m["role"] == "system":
            out.append(m["content"])
            if m.get("tools"):
                schemas = "\n".join(json_text(t) for t in m["tools"])
                out.append("\n\n" + TOOLS_BLOCK.replace("{SCHEMAS}", schemas))
        elif m["role"] == "user":
            out.append(USER + "\n\n".join(m["parts"]))
            if i + 1 == len(turns) or turns[i + 1]["role"] == "assistant":
                out.append(ASSISTANT + (THINK if thinking and (keep or i >= last_user) else END_THINK))
        else:
            if thinking and (keep or i > last_user):
                out.append((m.get("reasoning") or "") + END_THINK)
            out.append(m["content"])
            if m.get("tool_calls"):
                out.append(tool_calls_text(m["tool_calls"]))
            if not m.get("open_ended"):
                out.append(EOS)
    return "".join(out)


def check(path: str) -> None:
    """Compares with the rows of a render_cases.jsonl that this renderer covers."""
    done, skipped = 0, 0
    for line in open(path, encoding="utf-8"):
        row = json.loads(line)
        effort = row["reasoning_effort"]
        prefix = {("preview", "max"): "absolute", ("0731", "high"): "absolute", ("0731", "max"): "beyond"}.get((row["revision"], effort))
        messages, odd = [], "expected" not in row or bool(row.get("context")) or not row["add_bos"] or not row["drop_thinking"]
        asked: list[str] = []
        for m in row["messages"]:
            if m["role"] not in ("system", "user", "assistant", "tool") or m.get("task") or m.get("response_format") or not isinstance(m.get("content") or "", str):
                odd = True
                break
            calls = []
            for c in m.get("tool_calls") or []:
                f = c.get("function", c)
                try:
                    arguments = json.loads(f["arguments"])
                except ValueError:
                    arguments = None
                odd |= not isinstance(arguments, dict)
                calls.append({"name": f["name"], "arguments": arguments})
            tools = [t.get("function", t) for t in m.get("tools") or []]
            odd |= bool(tools) and m["role"] != "system"
            messages.append({"role": m["role"], "content": m.get("content") or "", "reasoning": m.get("reasoning_content"),
                             "tool_calls": calls, "tools": tools, "open_ended": m.get("wo_eos")})
            if m["role"] == "assistant":
                asked = []
            if m["role"] == "tool":
                asked.append(m.get("tool_call_id"))
        # Reordering of several results and turns without a user between them are not generated.
        roles = [m["role"] for m in messages]
        odd |= any(a == "tool" and b == "tool" for a, b in zip(roles, roles[1:]))
        odd |= any(a == "assistant" and b in ("assistant",) for a, b in zip(roles, roles[1:]))
        if odd:
            skipped += 1
            continue
        got = render(messages, row["thinking_mode"] == "thinking", prefix)
        assert got == row["expected"], f"{row['id']}:\n{got!r}\n{row['expected']!r}"
        done += 1
    print(f"{done} cases equal, {skipped} use parts of the protocol that the data does not")


if __name__ == "__main__":
    import sys

    check(sys.argv[1])

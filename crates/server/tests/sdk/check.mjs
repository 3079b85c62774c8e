// Reads the golden streams of testdata/server with the Vercel AI SDK, whose schemas are stricter than the vendors' own SDKs and
// stand between several agents and this server.
//
// usage   npm install --prefix DIR ai@7.0.173 @ai-sdk/openai@4.0.118 @ai-sdk/anthropic@4.0.105
//         cp crates/server/tests/sdk/check.mjs DIR && node DIR/check.mjs testdata/server
//
// For every reply: the SDK knows all events and why the reply ended; a finished one has the text, the reasoning and the calls of the
// body without a stream, a failed one an error. Prints one line for each reply that fails and a summary; exit status 1 if any does.
import fs from "node:fs";
import path from "node:path";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { jsonSchema, streamText, tool } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const data = process.argv[2];
const any = tool({ inputSchema: jsonSchema({ type: "object", additionalProperties: true }) });
const names = ["book", "weather", "spawn_agent", "multi_agent_v1__spawn_agent", "apply_patch", "local_shell"];
const tools = Object.fromEntries(names.map((name) => [name, any]));

function modelOf(folder, sse) {
  const headers = { "content-type": "text/event-stream" };
  const fetch = async () => new Response(fs.readFileSync(sse), { status: 200, headers });
  const options = { apiKey: "x", fetch };
  return folder === "messages" ? createAnthropic(options)("m") : createOpenAI(options).responses("m");
}

async function read(folder, sse) {
  const found = { text: "", reasoning: "", calls: [], errors: [] };
  const model = modelOf(folder, sse);
  const reply = streamText({ model, prompt: "Hello", tools, maxRetries: 0, maxOutputTokens: 9, onError: () => {} });
  for await (const part of reply.fullStream) {
    if (part.type === "text-delta") found.text += part.text;
    if (part.type === "reasoning-delta") found.reasoning += part.text;
    if (part.type === "tool-call" && !part.invalid) found.calls.push(part.toolCallId);
    if (part.type === "finish-step") found.finish = part.finishReason;
    if (part.type === "error") found.errors.push(String(part.error?.message ?? part.error));
  }
  return found;
}

// Text, reasoning and complete calls of a body of either API.
function expectedOf(folder, body) {
  const blocks = folder === "messages" ? body.content : body.output;
  const textOf = (type, part) => blocks.filter((b) => b.type === type).map(part).join("");
  if (folder === "messages") {
    return {
      text: textOf("text", (b) => b.text),
      reasoning: textOf("thinking", (b) => b.thinking),
      calls: blocks.filter((b) => b.type === "tool_use").map((b) => b.id),
    };
  }
  return {
    text: textOf("message", (b) => b.content.map((p) => p.text).join("")),
    // The SDK reads summaries only.
    reasoning: textOf("reasoning", (b) => b.summary.map((p) => p.text).join("")),
    calls: blocks.filter((b) => b.call_id && b.status === "completed").map((b) => b.call_id),
  };
}

let nGood = 0;
let nBad = 0;
for (const folder of ["messages", "responses"]) {
  for (const file of fs.readdirSync(path.join(data, folder)).filter((f) => f.endsWith(".sse"))) {
    const sse = path.join(data, folder, file);
    const name = file.slice(0, -4);
    const isError = name.startsWith("failed") || (name === "cancelled" && folder === "messages");
    const complaints = [];
    const found = await read(folder, sse);
    if (isError !== found.errors.length > 0) complaints.push(`errors: ${found.errors.join("; ")}`);
    if (!isError) {
      const expected = expectedOf(folder, JSON.parse(fs.readFileSync(path.join(data, folder, `${name}.json`))));
      if (!["stop", "length", "tool-calls"].includes(found.finish)) complaints.push(`finish ${found.finish}`);
      for (const member of ["text", "reasoning", "calls"]) {
        const [f, e] = [JSON.stringify(found[member]), JSON.stringify(expected[member])];
        if (f !== e) complaints.push(`${member} ${f}, expected ${e}`);
      }
    }
    if (complaints.length) console.log(`FAIL ${folder}/${file}: ${complaints.join(" | ")}`);
    complaints.length ? nBad++ : nGood++;
  }
}
console.log(`${nGood} replies read by the AI SDK, ${nBad} not`);
process.exit(nBad || !nGood ? 1 : 0);

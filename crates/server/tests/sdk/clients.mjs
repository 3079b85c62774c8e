// Asks a running ds4-server through the libraries of Node programs: the vendors' SDKs and the Vercel AI SDK.
//
// usage   node clients.mjs [http://127.0.0.1:8000]      in a folder where they are installed; `run.py` does all of it
//
// What is asked is as in clients.py. Prints one line for each check and a summary; exit status 1 if any fails.
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import * as ai from "ai";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const URL = (process.argv[2] ?? "http://127.0.0.1:8000").replace(/\/$/, "");
const MODEL = "deepseek-v4-flash";
const SUM = "What is 17 + 25?";
const WEATHER = "What is the weather in Paris? Use the get_weather tool.";
const RESULT = "18 C, light rain";
const FILL = "Fill in an order.";
const key = { apiKey: "x" };
const Order = z.object({
  items: z.array(z.object({ name: z.string().max(12), size: z.enum(["small", "large"]), count: z.number().int().min(1).max(99) })).min(1).max(2),
  paid: z.boolean(),
  note: z.string().max(12).nullable(),
});

let nGood = 0;
let nBad = 0;
async function check(name, of) {
  try {
    await of();
    nGood += 1;
    console.log(`good ${name}`);
  } catch (error) {
    nBad += 1;
    console.log(`FAIL ${name}: ${error.name}: ${String(error.message).slice(0, 600)}`);
  }
}
function has(text, what) {
  if (!text?.includes(what)) throw new Error(`${what} is not in ${JSON.stringify(text)}`);
}

// ---- The Vercel AI SDK
const models = {
  "ai chat": createOpenAICompatible({ name: "ds4", baseURL: URL + "/v1", ...key, supportsStructuredOutputs: true, includeUsage: true })(MODEL),
  "ai responses": createOpenAI({ baseURL: URL + "/v1", ...key }).responses(MODEL),
  "ai messages": createAnthropic({ baseURL: URL + "/v1", ...key })(MODEL),
};
const get_weather = ai.tool({ description: "Current weather of a city.", inputSchema: z.object({ city: z.string() }), execute: async () => RESULT });
const stop = (n) => (ai.stepCountIs ?? ai.isStepCount)(n);
for (const [name, model] of Object.entries(models)) {
  const ask = { model, temperature: 0, maxOutputTokens: 800 };
  await check(`${name}: text`, async () => has((await ai.generateText({ ...ask, prompt: SUM })).text, "42"));
  await check(`${name}: stream`, async () => {
    const reply = ai.streamText({ ...ask, prompt: SUM, onError: () => {} });
    has(await reply.text, "42");
    if (!((await reply.usage).totalTokens > 0)) throw new Error("no usage");
  });
  await check(`${name}: tools`, async () => {
    const reply = ai.streamText({ ...ask, prompt: WEATHER, tools: { get_weather }, stopWhen: stop(4), onError: () => {} });
    has(await reply.text, RESULT);
  });
  await check(`${name}: structure`, async () => {
    const reply = await ai.generateText({ ...ask, prompt: FILL, output: ai.Output.object({ schema: Order }) });
    Order.parse(reply.output ?? reply.experimental_output);
  });
  await check(`${name}: structure beside tools`, async () => {
    const output = ai.Output.object({ schema: Order });
    const reply = await ai.generateText({ ...ask, prompt: FILL, tools: { get_weather }, stopWhen: stop(4), output });
    if (reply.finishReason !== "tool-calls") Order.parse(reply.output);
  });
}

// ---- The vendors' own
const openai = new OpenAI({ baseURL: URL + "/v1", ...key });
await check("openai: runTools", async () => {
  const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
  const tool = { type: "function", function: { name: "get_weather", description: "Current weather of a city.", parameters, parse: JSON.parse, function: () => RESULT } };
  const runner = openai.chat.completions.runTools({ model: MODEL, temperature: 0, messages: [{ role: "user", content: WEATHER }], tools: [tool] });
  has(await runner.finalContent(), RESULT);
});
await check("openai: structure", async () => {
  const messages = [{ role: "user", content: FILL }];
  const reply = await openai.chat.completions.parse({ model: MODEL, messages, response_format: zodResponseFormat(Order, "order") });
  Order.parse(reply.choices[0].message.parsed);
});
const anthropic = new Anthropic({ baseURL: URL, ...key });
const weather = betaZodTool({ name: "get_weather", description: "Current weather of a city.", inputSchema: z.object({ city: z.string() }), run: () => RESULT });
for (const stream of [false, true]) {
  await check(`anthropic: toolRunner${stream ? ", streamed" : ""}`, async () => {
    const messages = [{ role: "user", content: WEATHER }];
    const runner = anthropic.beta.messages.toolRunner({ model: MODEL, max_tokens: 800, temperature: 0, messages, tools: [weather], stream });
    let last;
    for await (const reply of runner) last = stream ? await reply.finalMessage() : reply;
    has(last.content.map((block) => block.text ?? "").join(""), RESULT);
  });
}
console.log(`${nGood} checks good, ${nBad} not`);
process.exit(nBad ? 1 : 0);

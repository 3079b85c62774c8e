// What is asked of the server that this page came from.

const KEY = "ds4-api-key";

/** The server refused, in its own words. */
export class Refusal extends Error {
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Keeps the API key for as long as the tab lives. */
export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Asks, and throws a `Refusal` for every answer but a good one. */
export async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers };
  if (key) {
    headers.authorization = `Bearer ${key}`;
  }
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (!response.ok) {
    throw await refusal(response);
  }
  return response;
}

async function refusal(response) {
  const { status } = response;
  try {
    const { message, code } = (await response.json()).error;
    return new Refusal(status, message, code);
  } catch {
    return new Refusal(status, `The server answered with status ${status}.`);
  }
}

/** Posts a chat request; its id, and an iterator over the chunks of its reply. */
export async function chat(body, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  return { id: response.headers.get("x-request-id"), chunks: chunks(response.body) };
}

async function* chunks(body) {
  for await (const data of events(body)) {
    if (data === "[DONE]") {
      return;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) {
      throw new Refusal(chunk.error.status ?? 0, chunk.error.message, chunk.error.code);
    }
    yield chunk;
  }
  throw new Error("the connection ended before the reply did");
}

/** The data of every event; comments, which keep the connection alive, are passed over. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) {
      return;
    }
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ")) {
        yield part.slice("data: ".length);
      }
    }
  }
}

// What went wrong, and what to do about it, in words for a person.

import { Refusal } from "./server.js";

/** One or two sentences; the server's own words follow where there are any. */
export function explain(error) {
  if (!(error instanceof Refusal)) {
    return error instanceof TypeError
      ? `No answer from ${location.host}. Is ds4-server still running there? Start it and ask again.`
      : `The reply is not complete: ${error.message}. Ask again to go on.`;
  }
  const said = error.message;
  if (error.status === 401) {
    return `The API key is missing or wrong: enter the server's key below. (${said})`;
  }
  if (error.code === "context_length_exceeded") {
    return `This is longer than the model's context. Shorten the message, delete earlier ones, start a new chat, or start ds4-server with a larger --ctx. (${said})`;
  }
  if (error.status === 413) {
    return `The message is too large for the server: shorten it or attach less. (${said})`;
  }
  if (error.status === 429) {
    return `The server is busy and its queue is full: ask again in a while. (${said})`;
  }
  if (error.status === 503) {
    return `The server is not ready, it is loading the model or has too much to do: ask again in a moment. (${said})`;
  }
  if (error.status >= 500) {
    return `The server failed; its log says more. (${said})`;
  }
  return said;
}

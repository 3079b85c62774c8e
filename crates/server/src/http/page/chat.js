// The conversation and its controls. What was said lives in this page and nowhere else.

import { chat, keepKey, Refusal } from "./server.js";
import { show } from "./markup.js";
import { count, Status } from "./status.js";

/** Distance from the end within which the page follows the reply, in pixels. */
const FOLLOW_PX = 60;
/** Time after which the server knows that a reply was stopped. */
const SETTLE_MS = 400;

const byId = (id) => document.getElementById(id);
const conversation = byId("conversation");
const message = byId("message");
const system = byId("system");

/** `{role, content}`, and of replies `reasoning`, `node` and what is known of their tokens. */
const turns = [];
/** The reply that is being written, with what stops it. */
let running = null;
/** Whether the last reply failed for want of a key. */
let awaitsKey = false;
let follows = true;

const status = new Status(() => running !== null, askForKey);

// Sending

function send(text) {
  const node = cloned("question-template");
  node.querySelector(".text").textContent = text;
  turns.push({ role: "user", content: text, node });
  conversation.append(node);
  byId("welcome").hidden = true;
  follows = true;
  reply();
}

/** Asks for a reply to what was said so far. */
async function reply() {
  const turn = {
    role: "assistant", content: "", reasoning: "", n_reasoning: 0, n_generated: 0,
    usage: null, timings: null, finish: null, node: cloned("reply-template"),
  };
  const body = request();
  turns.push(turn);
  conversation.append(turn.node);
  turn.node.setAttribute("aria-busy", "true");
  turn.node.querySelector(".regenerate").addEventListener("click", regenerate);
  turn.node.querySelector(".copy").addEventListener("click", () => copy(turn));
  const abort = new AbortController();
  running = { turn, abort };
  drawControls();
  drawSoon(turn);
  let id = null;
  try {
    const answer = await chat(body, abort.signal);
    id = answer.id;
    status.refresh();
    for await (const chunk of answer.chunks) {
      take(turn, chunk);
      drawSoon(turn);
    }
  } catch (error) {
    if (abort.signal.aborted) {
      turn.finish = "stopped";
    } else {
      turn.finish = "failed";
      fail(turn, error);
    }
  }
  if (running?.turn === turn) {
    running = null;
  }
  turn.node.removeAttribute("aria-busy");
  draw(turn);
  drawControls();
  if (turn.finish === "stopped" && id) {
    await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
  }
  await status.refresh();
  settleCounts(turn, status.request(id));
}

/** The conversation as the server reads it. */
function request() {
  const messages = turns
    .filter((turn) => turn.role === "user" || turn.content || turn.reasoning)
    .map(({ role, content, reasoning }) => ({
      role,
      content,
      ...(reasoning ? { reasoning_content: reasoning } : {}),
    }));
  if (system.value.trim()) {
    messages.unshift({ role: "system", content: system.value });
  }
  const effort = byId("thinking").value;
  return {
    messages,
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
    ...(effort ? { reasoning_effort: effort } : {}),
  };
}

/** Takes one chunk of the stream into a reply. */
function take(turn, chunk) {
  turn.usage = chunk.usage ?? turn.usage;
  turn.timings = chunk.timings ?? turn.timings;
  turn.progress = chunk.prompt_progress ?? turn.progress;
  if (turn.usage) {
    turn.n_generated = turn.usage.completion_tokens;
    turn.n_reasoning = turn.usage.completion_tokens_details.reasoning_tokens;
  }
  const choice = chunk.choices[0];
  if (!choice) {
    return;
  }
  turn.finish = choice.finish_reason ?? turn.finish;
  const { content, reasoning_content: reasoning } = choice.delta;
  // The server sends a chunk for every token whose text is complete.
  if (reasoning) {
    turn.reasoning += reasoning;
    turn.n_reasoning += 1;
    turn.n_generated += 1;
  }
  if (content) {
    turn.content += content;
    turn.n_generated += 1;
  }
}

/** Replaces the counts of a stopped reply by the server's. */
function settleCounts(turn, last) {
  if (turn.usage || !last) {
    return;
  }
  turn.n_generated = last.generated_tokens;
  turn.n_reasoning = last.reasoning_tokens;
  draw(turn);
}

function fail(turn, error) {
  if (error instanceof Refusal && error.status === 401) {
    askForKey();
    awaitsKey = true;
  }
  const line = turn.node.querySelector(".error");
  line.textContent = error instanceof Refusal ? error.message : `No reply: ${error.message}.`;
  line.hidden = false;
}

function stop() {
  running?.abort.abort();
}

function regenerate() {
  if (running || turns.at(-1)?.role !== "assistant") {
    return;
  }
  turns.pop().node.remove();
  follows = true;
  reply();
}

function newChat() {
  stop();
  running = null;
  turns.length = 0;
  awaitsKey = false;
  conversation.replaceChildren();
  byId("welcome").hidden = false;
  drawControls();
  message.focus();
}

async function copy(turn) {
  const button = turn.node.querySelector(".copy");
  try {
    await navigator.clipboard.writeText(turn.content);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not copied";
  }
  setTimeout(() => {
    button.textContent = "Copy";
  }, 1500);
}

// Keys of the server

function askForKey() {
  byId("key-form").hidden = false;
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  message.focus();
  if (awaitsKey) {
    awaitsKey = false;
    regenerate();
  } else {
    status.refresh();
  }
});

// Drawing

const stale = new Set();

/** Draws a reply with the next frame, however many chunks come until then. */
function drawSoon(turn) {
  if (stale.size === 0) {
    requestAnimationFrame(() => {
      for (const each of stale) {
        draw(each);
      }
      stale.clear();
    });
  }
  stale.add(turn);
}

function draw(turn) {
  const part = (name) => turn.node.querySelector(name);
  const isRunning = running?.turn === turn;
  const hasText = turn.content !== "";
  const hasReasoning = turn.reasoning !== "";
  turn.node.classList.toggle("running", isRunning);
  turn.node.classList.toggle("reasons", isRunning && hasReasoning && !hasText);

  part(".reasoning").hidden = !hasReasoning;
  part(".reasoning-text").textContent = turn.reasoning;
  const reasons = isRunning && !hasText ? "Reasoning" : "Reasoned";
  part(".reasoning-label").textContent = `${reasons} for ${count(turn.n_reasoning, "token")}`;
  show(part(".text"), turn.content);

  part(".waiting").hidden = !isRunning || hasText || hasReasoning;
  const bar = part("progress");
  bar.hidden = !turn.progress;
  if (turn.progress) {
    const { total, cache, processed } = turn.progress;
    bar.max = Math.max(total, 1);
    bar.value = processed;
    const known = cache > 0 ? `, ${cache.toLocaleString("en")} of them known` : "";
    part(".waiting-label").textContent =
      `Reading ${processed.toLocaleString("en")} of ${count(total, "token")}${known}`;
  }

  part(".closing").hidden = isRunning;
  part(".facts").textContent = facts(turn);
  part(".copy").hidden = !hasText || !navigator.clipboard;
  if (follows) {
    scrollTo(0, document.documentElement.scrollHeight);
  }
}

/** A line about a reply that is over. */
function facts(turn) {
  const ends = { length: "cut at the token limit", stopped: "stopped" };
  const said = [];
  if (ends[turn.finish]) {
    said.push(ends[turn.finish]);
  }
  if (turn.n_generated > 0) {
    const speed = turn.timings?.predicted_per_second;
    said.push(count(turn.n_generated, "token") + (speed ? ` at ${speed.toFixed(1)}/s` : ""));
  }
  if (turn.usage) {
    const { prompt_tokens: prompt, prompt_tokens_details: details } = turn.usage;
    const cached = details.cached_tokens;
    const from = `${cached.toLocaleString("en")} from ${turn.timings?.cache_source}`;
    said.push(`prompt of ${count(prompt, "token")}${cached > 0 ? `, ${from}` : ""}`);
  }
  return said.join(" · ");
}

function drawControls() {
  byId("send").hidden = running !== null;
  byId("stop").hidden = running === null;
  byId("new-chat").disabled = turns.length === 0;
  for (const { role, node } of turns) {
    if (role === "assistant") {
      node.querySelector(".regenerate").hidden = node !== turns.at(-1).node || running !== null;
    }
  }
}

function cloned(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

// Controls

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = message.value;
  if (running || text.trim() === "") {
    return;
  }
  message.value = "";
  fit(message);
  send(text);
});

message.addEventListener("keydown", (event) => {
  // While an input method composes a character, Enter is its own.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("composer").requestSubmit();
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) {
    stop();
  }
});

byId("stop").addEventListener("click", () => {
  stop();
  message.focus();
});
byId("new-chat").addEventListener("click", newChat);

byId("system-button").addEventListener("click", (event) => {
  system.hidden = !system.hidden;
  event.currentTarget.setAttribute("aria-expanded", String(!system.hidden));
  (system.hidden ? message : system).focus();
});

const wide = matchMedia("(min-width: 64rem)");
function showStatus(isShown) {
  byId("status").hidden = !isShown;
  byId("status-button").setAttribute("aria-expanded", String(isShown));
}
byId("status-button").addEventListener("click", () => showStatus(byId("status").hidden));
wide.addEventListener("change", () => showStatus(wide.matches));
showStatus(wide.matches);

/** Gives a field the height of its text; the style sheet has the limit. */
function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}
for (const field of [message, system]) {
  field.addEventListener("input", () => fit(field));
}

addEventListener("scroll", () => {
  const end = document.documentElement.scrollHeight;
  follows = innerHeight + scrollY >= end - FOLLOW_PX;
});

byId("host").textContent = location.host;
drawControls();

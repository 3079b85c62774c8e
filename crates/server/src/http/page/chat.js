// The conversation and its controls. What was said is kept by this browser and nobody else.

import { chat as ask, keepKey, Refusal } from "./server.js";
import { copy, show } from "./markup.js";
import { count, Status } from "./status.js";
import { drawChats, watchChats } from "./chats.js";
import { keepSettings, settings } from "./settings.js";
import { explain } from "./trouble.js";
import * as store from "./store.js";

/** Distance from the end within which the page follows the reply, in pixels. */
const FOLLOW_PX = 60;
/** Time between two looks at whether the server knows that a reply was stopped. */
const SETTLE_MS = 400;
/** So often it is looked at. */
const SETTLE_LOOKS = 50;
/** Time between two looks at the queue. */
const QUEUE_MS = 1000;

const byId = (id) => document.getElementById(id);
const conversation = byId("conversation");
const message = byId("message");
const system = byId("system");

/** Largest text file that is attached, in bytes. */
const MAX_ATTACHED = 1 << 20;

/** The conversation that is shown. Its turns are `{role, content, node}`, and of replies `reasoning`
 * and what is known of their tokens. */
let chat = store.current() ?? store.fresh();
/** Files that go before the next message: `{name, text}`. */
let attached = [];
/** The reply that is being written, with what stops it. */
let running = null;
/** Whether the last reply failed for want of a key. */
let awaitsKey = false;
let follows = true;

const status = new Status(() => running !== null, askForKey);

// Sending

function send(text) {
  const turn = { role: "user", content: text };
  chat.turns.push(turn);
  conversation.append(drawn(turn));
  byId("welcome").hidden = true;
  follows = true;
  reply();
}

/** Asks for a reply to what was said so far. */
async function reply() {
  const turn = {
    role: "assistant", content: "", reasoning: "", n_reasoning: 0, n_generated: 0,
    usage: null, timings: null, finish: null, facts: "", place: null,
  };
  const body = request();
  const asked = chat;
  chat.turns.push(turn);
  conversation.append(drawn(turn));
  turn.node.setAttribute("aria-busy", "true");
  keep();
  const abort = new AbortController();
  running = { turn, abort };
  drawControls();
  drawSoon(turn);
  let id = null;
  // The stream begins before the work on it does.
  const waiting = setInterval(() => watchQueue(turn), QUEUE_MS);
  try {
    const answer = await ask(body, abort.signal);
    id = answer.id;
    status.refresh();
    for await (const chunk of answer.chunks) {
      take(turn, chunk);
      if (turn.progress || turn.content || turn.reasoning) {
        clearInterval(waiting);
      }
      drawSoon(turn);
    }
  } catch (error) {
    if (abort.signal.aborted) {
      turn.finish = "stopped";
    } else {
      turn.finish = "failed";
      fail(turn, error);
    }
  } finally {
    clearInterval(waiting);
  }
  if (running?.turn === turn) {
    running = null;
  }
  turn.node.removeAttribute("aria-busy");
  turn.facts = facts(turn);
  draw(turn);
  drawControls();
  keepAgain(asked);
  if (turn.finish === "stopped" && id) {
    await settled(id);
  } else {
    await status.refresh();
  }
  settleCounts(turn, status.request(id));
  keepAgain(asked);
}

/** Looks until the server knows that a reply was stopped: its counts are final then. */
async function settled(id) {
  for (let look = 0; look < SETTLE_LOOKS; look += 1) {
    await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
    await status.refresh();
    if (!status.worksOn(id)) {
      return;
    }
  }
}

/** Notes the reply's place among the requests that wait: later ones stand behind it, so it is never
 * further back than the queue is long. Where nobody waits it has not come to the queue yet, or has left it. */
async function watchQueue(turn) {
  await status.refresh();
  if (status.waiting > 0) {
    turn.place = Math.min(turn.place ?? Infinity, status.waiting);
    draw(turn);
  }
}

/** The conversation as the server reads it. */
function request() {
  const messages = chat.turns
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
    // Whatever the server is told to do for others.
    reasoning_format: "deepseek",
    // What was thought stays, so that only what is new is computed.
    chat_template_kwargs: { drop_thinking: false },
    ...settings(),
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
  turn.facts = facts(turn);
  draw(turn);
}

function fail(turn, error) {
  if (error instanceof Refusal && error.status === 401) {
    askForKey();
    awaitsKey = true;
  }
  const line = turn.node.querySelector(".error");
  line.textContent = explain(error);
  line.hidden = false;
}

function stop() {
  running?.abort.abort();
}

function regenerate() {
  if (running || chat.turns.at(-1)?.role !== "assistant") {
    return;
  }
  chat.turns.pop().node.remove();
  follows = true;
  reply();
}

/** Puts another text in place of a message, and asks again from there. */
function replace(turn, text) {
  cut(chat.turns.indexOf(turn));
  send(text);
}

/** Takes back everything from a turn on. */
function cut(at) {
  for (const { node } of chat.turns.splice(at)) {
    node.remove();
  }
}

/** Takes back a message with its reply. */
function takeBack(turn) {
  const at = chat.turns.indexOf(turn);
  const n = chat.turns[at + 1]?.role === "assistant" ? 2 : 1;
  for (const { node } of chat.turns.splice(at, n)) {
    node.remove();
  }
  byId("welcome").hidden = chat.turns.length > 0;
  keep();
  drawControls();
  message.focus();
}

// Conversations

/** Keeps a conversation to which something was added or taken; an empty one is forgotten. */
function keep() {
  chat.updated = Date.now();
  notice("");
  write(chat);
}

/** Keeps what is known by now of a conversation, in its place, unless it was deleted meanwhile. */
function keepAgain(which) {
  if (store.load(which.id)) {
    write(which);
  }
}

function write(which) {
  try {
    if (which.turns.length > 0) {
      const turns = which.turns.map(({ role, content, reasoning, n_reasoning, facts: said }) =>
        role === "user" ? { role, content } : { role, content, reasoning, n_reasoning, facts: said },
      );
      store.save({ ...which, system: which === chat ? system.value : which.system, turns });
    } else {
      store.remove(which.id);
    }
    store.setCurrent(chat.id);
  } catch {
    notice("This browser keeps no more: export or delete conversations. What you see is lost when the page is left.");
  }
  drawChats(chat.id);
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = text === "";
}

/** Shows a conversation in place of the one that is shown. */
function open(other) {
  stop();
  running = null;
  awaitsKey = false;
  chat = other;
  conversation.replaceChildren(...chat.turns.map(drawn));
  system.value = chat.system;
  system.hidden = chat.system === "";
  byId("system-button").setAttribute("aria-expanded", String(!system.hidden));
  byId("welcome").hidden = chat.turns.length > 0;
  follows = true;
  for (const turn of chat.turns.filter(({ role }) => role === "assistant")) {
    draw(turn);
  }
  drawControls();
  scrollTo(0, document.documentElement.scrollHeight);
  try {
    store.setCurrent(chat.id);
  } catch {
    // A reload begins anew.
  }
  drawChats(chat.id);
}

function newChat() {
  open(store.fresh());
  message.focus();
}

// Files

byId("attach").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", async () => {
  for (const file of byId("file").files) {
    await attach(file);
  }
  byId("file").value = "";
  drawAttached();
  message.focus();
});

async function attach(file) {
  if (file.size > MAX_ATTACHED) {
    notice(`${file.name} has ${count(file.size, "byte")}: files of up to 1 MiB are attached.`);
    return;
  }
  try {
    const bytes = await file.arrayBuffer();
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    attached.push({ name: file.name, text });
    notice("");
  } catch {
    notice(`${file.name} is no text in UTF-8: the model reads text only.`);
  }
}

function drawAttached() {
  byId("attached").replaceChildren(...attached.map((file) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${file.name} \u00d7`;
    button.setAttribute("aria-label", `Leave out ${file.name}`);
    button.addEventListener("click", () => {
      attached = attached.filter((each) => each !== file);
      drawAttached();
    });
    return button;
  }));
  byId("attached").hidden = attached.length === 0;
}

/** The files and the message as one text. */
function withFiles(text) {
  const files = attached.map((file) => {
    // A fence that the text does not have.
    const longest = Math.max(2, ...[...file.text.matchAll(/`+/g)].map(([run]) => run.length));
    const fence = "`".repeat(longest + 1);
    return `${file.name}:\n${fence}\n${file.text.replace(/\n$/, "")}\n${fence}`;
  });
  attached = [];
  drawAttached();
  return [...files, text].filter((part) => part.trim() !== "").join("\n\n");
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
  status.forget();
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

  if (isRunning && turn.place > 0) {
    part(".waiting-label").textContent = `Waiting for a slot, place ${turn.place} in the queue`;
  }
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
  part(".facts").textContent = turn.facts;
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
  byId("new-chat").disabled = chat.turns.length === 0;
  for (const { role, node } of chat.turns) {
    if (role === "assistant") {
      const isLast = node === chat.turns.at(-1).node;
      node.querySelector(".regenerate").hidden = !isLast || running !== null;
    } else {
      node.querySelector(".actions").hidden = running !== null;
    }
  }
}

/** A turn with its node. */
function drawn(turn) {
  if (turn.role === "user") {
    turn.node = cloned("question-template");
    const part = (name) => turn.node.querySelector(name);
    part(".text").textContent = turn.content;
    part(".edit").addEventListener("click", () => edit(turn));
    part(".delete").addEventListener("click", () => takeBack(turn));
    part(".copy").addEventListener("click", (event) => copy(event.currentTarget, turn.content));
  } else {
    turn.node = cloned("reply-template");
    const part = (name) => turn.node.querySelector(name);
    part(".regenerate").addEventListener("click", regenerate);
    part(".copy").addEventListener("click", (event) => copy(event.currentTarget, turn.content));
  }
  return turn.node;
}

/** Makes a message a field, until it is sent again or left as it was. */
function edit(turn) {
  const form = cloned("edit-template");
  const field = form.querySelector("textarea");
  const bubble = turn.node.querySelector(".bubble");
  field.value = turn.content;
  bubble.hidden = true;
  turn.node.append(form);
  fit(field);
  field.focus();
  field.addEventListener("input", () => fit(field));
  const leave = () => {
    form.remove();
    bubble.hidden = false;
  };
  form.querySelector(".cancel").addEventListener("click", leave);
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      leave();
    }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running && field.value.trim() !== "") {
      replace(turn, field.value);
    }
  });
}

function cloned(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

// Controls

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running || (message.value.trim() === "" && attached.length === 0)) {
    return;
  }
  const text = withFiles(message.value);
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

byId("settings-button").addEventListener("click", (event) => {
  const panel = byId("settings");
  panel.hidden = !panel.hidden;
  event.currentTarget.setAttribute("aria-expanded", String(!panel.hidden));
});

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

system.addEventListener("change", () => {
  if (chat.turns.length > 0) {
    keep();
  }
});

byId("host").textContent = location.host;
keepSettings();
watchChats({
  open: (id) => open(store.load(id) ?? store.fresh()),
  remove: (id) => {
    store.remove(id);
    if (id === chat.id) {
      newChat();
    }
    drawChats(chat.id);
  },
  notice,
});
open(chat);

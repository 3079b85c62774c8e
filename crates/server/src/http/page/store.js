// Conversations, kept in the browser's own storage: one entry for each, under its id.

const PREFIX = "ds4.chat.";
/** The conversation that this tab shows; it lives as long as the tab. */
const CURRENT = "ds4.current";
/** What an exported file calls itself. */
const FORMAT = "ds4-conversations";
const VERSION = 1;
const TITLE_LENGTH = 60;

/** A conversation without a message. */
export function fresh() {
  const id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 8)}`;
  return { id, title: "", updated: 0, system: "", turns: [] };
}

/** Writes a conversation. Throws when the browser has no room or no storage. */
export function save(chat) {
  const first = chat.turns.find((turn) => turn.role === "user");
  chat.title = (first?.content ?? "").trim().split("\n")[0].slice(0, TITLE_LENGTH);
  localStorage.setItem(PREFIX + chat.id, JSON.stringify(chat));
}

/** Forgets a conversation. */
export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

/** A conversation, or null when there is none of that id, or it cannot be read. */
export function load(id) {
  try {
    return valid(JSON.parse(localStorage.getItem(PREFIX + id)));
  } catch {
    return null;
  }
}

/** All conversations, the latest first. */
export function all() {
  const chats = [];
  for (let at = 0; at < localStorage.length; at += 1) {
    const key = localStorage.key(at);
    if (key.startsWith(PREFIX)) {
      const chat = load(key.slice(PREFIX.length));
      if (chat) {
        chats.push(chat);
      }
    }
  }
  return chats.sort((a, b) => b.updated - a.updated);
}

/** The conversation that this tab showed before it was loaded again. */
export function current() {
  const id = sessionStorage.getItem(CURRENT);
  return id ? load(id) : null;
}

/** Notes which conversation this tab shows. */
export function setCurrent(id) {
  sessionStorage.setItem(CURRENT, id);
}

/** All conversations as a file. */
export function exported() {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations: all() }, null, 2);
}

/** Adds the conversations of a file; their number. Throws when it is none of ours. */
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON: expected one that was exported here.");
  }
  if (file?.format !== FORMAT || file.version !== VERSION || !Array.isArray(file.conversations)) {
    throw new Error("This file holds no conversations that were exported here.");
  }
  const chats = file.conversations.map(valid).filter((chat) => chat !== null);
  for (const chat of chats) {
    localStorage.setItem(PREFIX + chat.id, JSON.stringify(chat));
  }
  return chats.length;
}

/** The conversation with the members that it must have, or null. */
function valid(chat) {
  const isText = (text) => typeof text === "string";
  if (!isText(chat?.id) || !/^[\w-]+$/.test(chat.id) || !Array.isArray(chat.turns)) {
    return null;
  }
  const turns = chat.turns.filter(
    (turn) => (turn?.role === "user" || turn?.role === "assistant") && isText(turn.content),
  );
  return {
    id: chat.id,
    title: isText(chat.title) ? chat.title : "",
    updated: Number(chat.updated) || 0,
    system: isText(chat.system) ? chat.system : "",
    turns: turns.map(({ role, content, reasoning, n_reasoning, facts }) =>
      role === "user"
        ? { role, content }
        : {
            role,
            content,
            reasoning: isText(reasoning) ? reasoning : "",
            n_reasoning: Number(n_reasoning) || 0,
            facts: isText(facts) ? facts : "",
          }),
  };
}

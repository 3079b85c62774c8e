// The list of conversations, and what can be done with all of them.

import * as store from "./store.js";

const byId = (id) => document.getElementById(id);
let actions = null;
/** What the list shows. */
let drawn = "";

/** Draws the list, if it is another than it shows; `shown` is the id of the conversation that is open. */
export function drawChats(shown) {
  const chats = store.all();
  // A button that asks goes on asking while replies end.
  const list = JSON.stringify([shown, chats.map(({ id, title }) => [id, title])]);
  if (list === drawn) {
    return;
  }
  drawn = list;
  byId("chat-list").replaceChildren(...chats.map((chat) => row(chat, chat.id === shown)));
  byId("no-chats").hidden = chats.length > 0;
  byId("export").disabled = chats.length === 0;
}

function row(chat, isShown) {
  const node = byId("chat-template").content.firstElementChild.cloneNode(true);
  const title = chat.title || "Untitled";
  const link = node.querySelector(".chat-open");
  link.textContent = title;
  link.title = title;
  if (isShown) {
    link.setAttribute("aria-current", "true");
  }
  link.addEventListener("click", () => {
    actions.open(chat.id);
    if (!isWide.matches) {
      showChats(false);
    }
  });
  const remove = node.querySelector(".chat-delete");
  remove.setAttribute("aria-label", `Delete ${title}`);
  remove.addEventListener("click", () => {
    // The first click asks, the second does it.
    if (remove.dataset.asked) {
      actions.remove(chat.id);
    } else {
      remove.dataset.asked = "yes";
      remove.textContent = "Delete?";
    }
  });
  remove.addEventListener("blur", () => {
    delete remove.dataset.asked;
    remove.textContent = "\u00d7";
  });
  return node;
}

const isWide = matchMedia("(min-width: 64rem)");

function showChats(isShown) {
  byId("chats").hidden = !isShown;
  byId("chats-button").setAttribute("aria-expanded", String(isShown));
}

/** Sets up the list: what to do when a conversation is opened or deleted, and where to say what
 * went wrong. */
export function watchChats(given) {
  actions = given;
  byId("chats-button").addEventListener("click", () => showChats(byId("chats").hidden));
  byId("export").addEventListener("click", () => {
    const file = new Blob([store.exported()], { type: "application/json" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = `ds4-conversations-${new Date().toISOString().slice(0, 10)}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  byId("import").addEventListener("click", () => byId("import-file").click());
  byId("import-file").addEventListener("change", async () => {
    const [file] = byId("import-file").files;
    try {
      const n = store.imported(await file.text());
      actions.notice(n === 1 ? "1 conversation was imported." : `${n} conversations were imported.`);
    } catch (error) {
      actions.notice(error.message);
    }
    byId("import-file").value = "";
    drawChats(null);
  });
  // Another tab may add to the list.
  addEventListener("storage", () => drawChats(store.current()?.id));
  showChats(false);
}

// Text of the model as nodes: Markdown, with highlighted code. Nodes are made from text alone, so
// nothing in it can become an element of its own choice, run, or be loaded.

import { Marked } from "./vendor/marked.js";
import Prism from "./vendor/prism.js";

/** Where a link may lead. */
const SAFE_LINK = /^(https?:|mailto:|#)/i;
/** Longer code, and code with longer lines, is shown without colours. */
const MAX_COLOURED = 20_000;
const MAX_COLOURED_LINE = 500;
/** Code is coloured in pieces of about this length: patterns of some grammars take the square of it. */
const PIECE = 2000;
/** Emphasis in longer paragraphs is shown as it is written: finding it takes the square of their length. */
const MAX_EMPHASIS = 3000;
/** What lies deeper in lists and quotations is shown as it is written. */
const MAX_DEPTH = 24;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', "#39": "'", nbsp: "\u00a0" };

// Markup of other kinds is text. `false` leaves a tokenizer as it is.
const marked = new Marked({
  tokenizer: {
    html() {},
    tag() {},
    emStrong: (_, whole) => (whole.length > MAX_EMPHASIS ? undefined : false),
  },
});

/** What every container shows, so that only what changed is drawn again. */
const shown = new WeakMap();

/** Shows a text that may have grown since the last time. */
export function show(container, text) {
  const before = shown.get(container) ?? [];
  const after = tokens(text).filter(isShown);
  after.forEach((token, at) => {
    if (before[at]?.raw === token.raw && before[at].type === token.type) {
      return;
    }
    const node = block(token);
    if (at < container.childElementCount) {
      container.children[at].replaceWith(node);
    } else {
      container.append(node);
    }
  });
  while (container.childElementCount > after.length) {
    container.lastElementChild.remove();
  }
  shown.set(container, after);
}

function tokens(text) {
  try {
    return marked.lexer(text);
  } catch {
    // What is nested too deep for it is text.
    return [{ type: "text", raw: text }];
  }
}

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

function block(token, depth = 0) {
  if (depth > MAX_DEPTH) {
    return element("p", token.raw);
  }
  switch (token.type) {
    case "heading":
      // The first level is the page's own.
      return element(`h${Math.min(token.depth + 1, 6)}`, ...inline(token.tokens));
    case "code":
      return code(token);
    case "blockquote":
      return element("blockquote", ...token.tokens.filter(isShown).map((each) => block(each, depth + 1)));
    case "hr":
      return element("hr");
    case "list":
      return list(token, depth);
    case "table":
      return table(token);
    case "paragraph":
      return element("p", ...inline(token.tokens));
    default:
      return element("p", ...(token.tokens ? inline(token.tokens) : [token.raw]));
  }
}

function isShown(token) {
  return token.type !== "space" && token.type !== "def";
}

function list(token, depth) {
  const node = element(token.ordered ? "ol" : "ul");
  if (token.ordered && token.start !== 1) {
    node.start = token.start;
  }
  for (const item of token.items) {
    const row = element("li");
    if (item.task) {
      const box = element("input");
      box.type = "checkbox";
      box.disabled = true;
      box.checked = Boolean(item.checked);
      box.setAttribute("aria-label", item.checked ? "done" : "to do");
      row.append(box, " ");
    }
    for (const part of item.tokens.filter((each) => isShown(each) && each.type !== "checkbox")) {
      // The text of a tight list is no paragraph.
      row.append(...(part.type === "text" ? inline(part.tokens ?? [part]) : [block(part, depth + 1)]));
    }
    node.append(row);
  }
  return node;
}

function table(token) {
  const cells = (name, row) =>
    element("tr", ...row.map((cell) => {
      const node = element(name, ...inline(cell.tokens));
      node.className = cell.align ?? "";
      return node;
    }));
  const body = element("table", element("thead", cells("th", token.header)));
  body.append(element("tbody", ...token.rows.map((row) => cells("td", row))));
  const frame = element("div", body);
  frame.className = "table";
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", "Table");
  return frame;
}

function inline(tokens) {
  return tokens.map((token) => {
    switch (token.type) {
      case "strong":
      case "em":
      case "del":
        return element(token.type, ...inline(token.tokens));
      case "codespan":
        return element("code", token.text);
      case "br":
        return element("br");
      case "escape":
        // Mathematics is text: its brackets stay as they are written.
        return "()[]".includes(token.text) ? token.raw : token.text;
      case "link":
        return link(token.href, inline(token.tokens));
      case "image":
        // Nothing is loaded from elsewhere.
        return link(token.href, [token.text || token.href]);
      case "text":
        return token.tokens ? element("span", ...inline(token.tokens)) : unescaped(token.raw);
      default:
        return token.raw;
    }
  });
}

function unescaped(text) {
  return text.replace(/&(amp|lt|gt|quot|#39|nbsp);/g, (_, name) => ENTITIES[name]);
}

function link(href, children) {
  if (!SAFE_LINK.test(href)) {
    return element("span", ...children);
  }
  const node = element("a", ...children);
  node.href = href;
  node.target = "_blank";
  node.rel = "noopener noreferrer";
  return node;
}

function code({ text, lang }) {
  const language = (lang ?? "").split(/[\s,{]/)[0].toLowerCase();
  const inner = element("code", ...coloured(text, language));
  const pre = element("pre", inner);
  pre.tabIndex = 0;
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  const name = element("span", language);
  const button = element("button", "Copy code");
  button.type = "button";
  button.addEventListener("click", () => copy(button, text));
  const head = element("div", name, button);
  head.className = "code-head";
  const frame = element("div", head, pre);
  frame.className = "code";
  return frame;
}

/** Copies a text, and says on the button whether it was. */
export async function copy(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not copied";
  }
  setTimeout(() => {
    button.textContent = label;
  }, 1500);
}

function coloured(text, language) {
  const grammar = Object.hasOwn(Prism.languages, language) && Prism.languages[language];
  const lines = text.split(/^/m);
  const isLong = text.length > MAX_COLOURED || lines.some((line) => line.length > MAX_COLOURED_LINE);
  if (!grammar || typeof grammar === "function" || isLong) {
    return [text];
  }
  const pieces = [""];
  for (const line of lines) {
    if (pieces.at(-1).length + line.length > PIECE) {
      pieces.push("");
    }
    pieces[pieces.length - 1] += line;
  }
  return pieces.flatMap((each) => Prism.tokenize(each, grammar).map(piece));
}

function piece(token) {
  if (typeof token === "string") {
    return token;
  }
  const content = Array.isArray(token.content) ? token.content : [token.content];
  const node = element("span", ...content.map(piece));
  node.className = `token ${token.type}`;
  return node;
}

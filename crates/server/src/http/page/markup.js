// Text of the model as nodes: code, bold words and headings; all else stays as it was written.
// Nodes are made from text alone, so nothing in it can become an element.

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*$/;
const HEADING = /^#{1,6} +(.+?) *#*$/;
const INLINE = /(`+)(?!`)(.+?)(?<!`)\1(?!`)|\*\*(?! )([^*\n]+?)(?<! )\*\*/gs;

/** What every container shows, so that only what changed is drawn again. */
const shown = new WeakMap();

/** Shows a text that may have grown since the last time. */
export function show(container, text) {
  const before = shown.get(container) ?? [];
  const after = blocks(text);
  after.forEach((block, at) => {
    if (before[at]?.source === block.source && before[at].kind === block.kind) {
      return;
    }
    const node = block.kind === "code" ? code(block) : prose(block.source);
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

/** Fenced code, and paragraphs between empty lines. */
function blocks(text) {
  const found = [];
  let lines = [];
  let fence = null;
  const end = (kind, language = "") => {
    const source = lines.join("\n");
    if (kind === "code" || source.trim() !== "") {
      found.push({ kind, language, source });
    }
    lines = [];
  };
  for (const line of text.split("\n")) {
    const mark = FENCE.exec(line);
    if (fence) {
      const closes = mark && mark[2] === "" && mark[1].startsWith(fence.mark);
      if (closes) {
        end("code", fence.language);
        fence = null;
      } else {
        lines.push(line);
      }
    } else if (mark) {
      end("prose");
      fence = { mark: mark[1], language: mark[2] };
    } else if (line.trim() === "") {
      end("prose");
    } else {
      lines.push(line);
    }
  }
  end(fence ? "code" : "prose", fence?.language);
  return found;
}

function code({ source, language }) {
  const pre = document.createElement("pre");
  const inner = document.createElement("code");
  inner.textContent = source;
  pre.append(inner);
  pre.tabIndex = 0;
  pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  return pre;
}

function prose(source) {
  const paragraph = document.createElement("p");
  source.split("\n").forEach((line, at) => {
    if (at > 0) {
      paragraph.append("\n");
    }
    const heading = HEADING.exec(line);
    if (heading) {
      paragraph.append(named("strong", heading[1]));
    } else {
      inline(paragraph, line);
    }
  });
  return paragraph;
}

function inline(parent, line) {
  let end = 0;
  for (const match of line.matchAll(INLINE)) {
    parent.append(line.slice(end, match.index));
    parent.append(match[1] ? named("code", match[2].trim()) : named("strong", match[3]));
    end = match.index + match[0].length;
  }
  parent.append(line.slice(end));
}

function named(name, text) {
  const node = document.createElement(name);
  node.textContent = text;
  return node;
}

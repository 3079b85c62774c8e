// What the server is doing, asked for now and then: often while it works, seldom while nobody looks.

import { ask, Refusal } from "./server.js";

const BUSY_MS = 1000;
const IDLE_MS = 5000;
const HIDDEN_MS = 30000;

const byId = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");
const rate = (n) => {
  const digits = { maximumFractionDigits: n < 100 ? 1 : 0 };
  return n == null ? "–" : `${n.toLocaleString("en", digits)} tokens/s`;
};

/** A number of things: `1 token`, `2 tokens`. */
export const count = (n, what) => `${number(n)} ${what}${n === 1 ? "" : "s"}`;

/** Asks and draws for as long as the page is open. */
export class Status {
  #isWriting;
  #needsKey;
  #props = null;
  #slots = [];
  #waiting = 0;
  #timer = 0;
  #round = 0;

  /** `isWriting` says whether this page waits for a reply; `needsKey` is called for want of one. */
  constructor(isWriting, needsKey) {
    this.#isWriting = isWriting;
    this.#needsKey = needsKey;
    document.addEventListener("visibilitychange", () => this.refresh());
    this.refresh();
  }

  /** Asks at once, and again in a while. */
  async refresh() {
    clearTimeout(this.#timer);
    const round = ++this.#round;
    let next = IDLE_MS;
    try {
      const health = await (await ask("health?verbose=1")).json();
      this.#props ??= await (await ask("props")).json();
      this.#slots = await (await ask("slots")).json();
      this.#draw(health);
      this.#waiting = health.waiting;
      const works = health.running + health.waiting > 0 || this.#isWriting();
      next = works ? BUSY_MS : IDLE_MS;
    } catch (error) {
      if (round !== this.#round) {
        // It was asked with what has changed since, such as another key.
        return;
      }
      this.#props = null;
      if (error instanceof Refusal && error.status === 401) {
        this.#say("waiting", "key needed");
        this.#needsKey();
        return;
      }
      const loads = error instanceof Refusal && error.status === 503;
      this.#waiting = 0;
      this.#say(loads ? "waiting" : "lost", loads ? "the model is loading" : "no answer");
      next = loads ? BUSY_MS : IDLE_MS;
    }
    if (round === this.#round) {
      this.#timer = setTimeout(() => this.refresh(), document.hidden ? HIDDEN_MS : next);
    }
  }

  /** What was asked with another key says nothing any more. */
  forget() {
    clearTimeout(this.#timer);
    this.#round += 1;
  }

  /** Requests that wait for a slot. */
  get waiting() {
    return this.#waiting;
  }

  /** What the server has to say of a request that was the last in its slot, if it was. */
  request(id) {
    return this.#slots.map((slot) => slot.last_request).find((last) => last?.id === id);
  }

  /** Whether a slot was at work on a request when the server was last asked. */
  worksOn(id) {
    return this.#slots.some((slot) => slot.is_processing && slot.last_request?.id === id);
  }

  #say(state, summary) {
    byId("dot").dataset.state = state;
    byId("summary").textContent = summary;
  }

  #draw(health) {
    const props = this.#props;
    byId("served").textContent = props.model_name;
    byId("model-name").textContent = props.model_name;
    byId("model-alias").textContent = props.model_alias;
    byId("model-file").textContent = props.model_path;
    const context = props.default_generation_settings.n_ctx;
    byId("context").textContent = count(context, "token");
    byId("queue").textContent = `${health.running} running, ${health.waiting} waiting`;
    byId("uptime").textContent = duration(health.uptime_s);
    const own = this.#slots.find((slot) => slot.is_processing);
    if (!own) {
      this.#say("idle", health.waiting > 0 ? `${health.waiting} waiting` : "idle");
    } else if (health.running > 1) {
      this.#say("busy", `${health.running} running`);
    } else {
      const speed = own.last_request?.decode_per_second;
      this.#say("busy", speed == null ? doing(own) : `${doing(own)}, ${rate(speed)}`);
    }
    const list = byId("slots");
    while (list.childElementCount < this.#slots.length) {
      list.append(byId("slot-template").content.cloneNode(true));
    }
    while (list.childElementCount > this.#slots.length) {
      list.lastElementChild.remove();
    }
    this.#slots.forEach((slot, at) => drawSlot(list.children[at], slot));
  }
}

function drawSlot(node, slot) {
  const put = (name, text) => {
    node.querySelector(name).textContent = text;
  };
  put(".slot-name", `Slot ${slot.id}`);
  put(".slot-state", doing(slot));
  node.classList.toggle("works", slot.is_processing);
  const share = slot.n_ctx > 0 ? slot.n_past / slot.n_ctx : 0;
  node.querySelector(".slot-fill > div").style.width = `${100 * share}%`;
  put(".slot-tokens", `${number(slot.n_past)} of ${count(slot.n_ctx, "token")}`);
  const last = slot.last_request;
  node.querySelector(".last").hidden = !last;
  put(".why", last?.why ?? "");
  if (last) {
    const { prompt_tokens: prompt, cached_tokens: cached, cache_source: source } = last;
    put(".prompt", count(prompt, "token"));
    put(".cached", cached > 0 ? `${number(cached)} from ${source}` : "none");
    put(".prefill", rate(last.prefill_per_second));
    put(".decode", rate(last.decode_per_second));
  }
}

function doing(slot) {
  if (!slot.is_processing) {
    return "idle";
  }
  return slot.next_token.n_decoded > 0 ? "writing" : "reading";
}

function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  const hours = Math.floor(minutes / 60);
  if (hours >= 48) {
    return count(Math.floor(hours / 24), "day");
  }
  if (hours > 0) {
    return `${hours} h ${minutes % 60} min`;
  }
  return minutes > 0 ? `${minutes} min` : `${seconds} s`;
}

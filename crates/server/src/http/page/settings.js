// How replies are sampled: what is empty is left to the server.

const KEY = "ds4.settings";
const NAMES = ["temperature", "top_p", "min_p", "top_k", "max_tokens", "seed"];

const field = (name) => document.getElementById(`set-${name.replaceAll("_", "-")}`);

/** The settings that are not empty, as members of a request. */
export function settings() {
  const members = {};
  for (const name of NAMES) {
    const { value } = field(name);
    if (value.trim() !== "" && Number.isFinite(Number(value))) {
      members[name] = Number(value);
    }
  }
  return members;
}

/** Keeps them over reloads. */
export function keepSettings() {
  const thinking = document.getElementById("thinking");
  const show = () => {
    const n = Object.keys(settings()).length;
    document.getElementById("settings-button").textContent = n > 0 ? `Settings (${n})` : "Settings";
  };
  try {
    const kept = JSON.parse(localStorage.getItem(KEY)) ?? {};
    for (const name of NAMES) {
      field(name).value = kept[name] ?? "";
    }
    thinking.value = kept.thinking ?? "";
  } catch {
    // What cannot be read is as good as not set.
  }
  const keep = () => {
    const kept = { ...settings(), thinking: thinking.value };
    try {
      localStorage.setItem(KEY, JSON.stringify(kept));
    } catch {
      // They hold until the page is left.
    }
    show();
  };
  for (const input of [...NAMES.map(field), thinking]) {
    input.addEventListener("change", keep);
  }
  document.getElementById("settings-reset").addEventListener("click", () => {
    for (const name of NAMES) {
      field(name).value = "";
    }
    keep();
  });
  show();
}

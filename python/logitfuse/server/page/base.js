// Elements, numbers, storage.

const $ = (id) => document.getElementById(id);
const NBSP = "\u00a0";

/** Properties (or attributes, where there is no such property) and children of an element. */
function fill(node, props, children) {
  for (const [key, value] of Object.entries(props)) {
    if (node instanceof HTMLElement && key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== ""));
  return node;
}

/** An HTML element; strings are text, never markup. */
const el = (tag, props = {}, ...children) => fill(document.createElement(tag), props, children);

/** An SVG element. */
const svg = (tag, props = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);

/** What marks the line of a member (0: of the pool) wherever it is drawn, with and without hues. */
const DASHES = ["", "7 4", "2 3", "9 3 2 3", "12 4", "4 2 1 2"];
const stroke = (i) => ({
  class: `curve m${i && 1 + ((i - 1) % 6)}`,
  "stroke-dasharray": i ? DASHES[1 + ((i - 1) % 5)] : "",
});
const swatch = (i) =>
  svg("svg", { class: "swatch", viewBox: "0 0 26 10", "aria-hidden": "true" },
    svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, ...stroke(i) }));

/** A probability as the reports of logitfuse write it. */
function percent(p) {
  const value = 100 * Math.min(1, p);
  if (value > 0 && value < 0.001) return `< 0.001${NBSP}%`;
  return `${value >= 0.05 || !value ? value.toFixed(1) : value.toPrecision(1)}${NBSP}%`;
}
const share = (p) => `${Math.round(100 * p)}${NBSP}%`;
const likely = (logprob) => (logprob === null ? 0 : Math.min(1, Math.exp(logprob)));
const counted = (n, what) => `${n.toLocaleString("en")}${NBSP}${what}${n === 1 ? "" : "s"}`;

const sum = (values) => values.reduce((total, value) => total + value, 0);

const NUMBERS = ["No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"];

/** What a browser keeps, if it lets us: `kept(localStorage, "theme")` reads, a value writes. */
function kept(storage, name, value) {
  const full = `logitfuse.${name}`;
  try {
    if (value === undefined) return JSON.parse(storage().getItem(full));
    if (value === null) storage().removeItem(full);
    else storage().setItem(full, JSON.stringify(value));
    return value;
  } catch {
    return null; // forbidden, full, or not ours
  }
}
const session = () => sessionStorage; // reading the name may already throw
const browser = () => localStorage;

/** The whole text of bytes, or null where they are no whole characters. */
function whole(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

const SIGNS = { " ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥" };
const UNSEEN = /([\p{Cc}\p{Cf}\p{Z}])/u;

/** Bytes of a token as nodes: what cannot be seen gets a sign. */
function spelled(bytes) {
  if (!bytes.length) return [el("span", { className: "mark" }, "end of the answer")];
  const text = whole(bytes);
  if (text === null) {
    const hex = bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
    return [el("span", { className: "mark" }, `bytes ${hex}`)];
  }
  return text.split(UNSEEN).filter(Boolean).map((part) => {
    if (!UNSEEN.test(part)) return part;
    const code = part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    return el("span", { className: "mark" }, SIGNS[part] ?? `⟨U+${code}⟩`);
  });
}

/** The same in one string. */
const spelling = (bytes) => el("span", {}, ...spelled(bytes)).textContent;

/** Text to the clipboard, also where a page without encryption may not write there. */
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = el("textarea", { value: text, className: "hidden" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

function download(name, value) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

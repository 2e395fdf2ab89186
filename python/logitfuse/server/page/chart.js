// The members' likelihood over an answer, drawn and as a table.

const SPAN = 12; // tokens over which a line is smoothed
const DECIDED = { fused: "by the pool", agree: "by all alike", certain: "by a majority of the pool", led: "by one member" };
const ROW = 16; // height of a name beside the lines

/**
 * Bits per byte of the pool and of each member, over the tokens for which everybody has a
 * probability: `at` (their indices), and per line `smooth` (a value per index) and `mean`.
 */
function likelihood(answer) {
  const { steps } = answer;
  const names = steps[0]?.members.map((member) => member.name) ?? [];
  const column = (step) => [step.logprob, ...step.members.map((member) => member.logprob)];
  const speaks = [true, ...names.map((_, k) => steps.some((step) => step.members[k].logprob !== null))];
  const lines = ["pooled", ...names].flatMap((name, k) => (speaks[k] ? [{ name, k }] : []));
  const at = [...steps.keys()].filter((i) => lines.every(({ k }) => column(steps[i])[k] !== null));
  const bytes = at.map((i) => steps[i].bytes.length);
  for (const line of lines) {
    const bits = at.map((i) => -column(steps[i])[line.k] / Math.LN2);
    line.bits = bits;
    line.smooth = smoothed(bits, bytes);
    line.mean = sum(bits) / Math.max(1, sum(bytes));
  }
  return { at, lines };
}

/** Bits per byte, what is further back counting less. */
function smoothed(bits, bytes) {
  const keep = 1 - 1 / SPAN;
  let b = 0;
  let n = 0;
  return bits.map((value, i) => {
    b = keep * b + Math.abs(value);
    n = keep * n + bytes[i];
    return b / Math.max(1, n);
  });
}

/** Round numbers from 0 to at most `top`, three to six of them. */
function ticks(top) {
  const unit = 10 ** Math.floor(Math.log10(top));
  const step = [2 * unit, unit, unit / 2, unit / 5].find((s) => top / s >= 3);
  return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, i) => i * step);
}

/** Heights moved apart so that names there do not overlap, none below `base`. */
function apart(heights, base) {
  const order = [...heights.keys()].sort((a, b) => heights[a] - heights[b]);
  const placed = [];
  let low = -Infinity;
  for (const i of order) low = placed[i] = Math.max(heights[i], low + ROW);
  let high = base;
  for (const i of order.reverse()) {
    placed[i] = Math.min(placed[i], high);
    high = placed[i] - ROW;
  }
  return placed;
}

class Chart {
  /** `pointed(i, how)`: the token at which the chart is looked at. */
  constructor(answer, pointed) {
    this.answer = answer;
    this.pointed = pointed;
    this.data = likelihood(answer);
    this.node = el("figure", { className: "likelihood" });
    if (this.data.at.length < 2) {
      this.node.append(el("p", {}, "Too few tokens have a probability from everybody to draw their likelihood."));
      return;
    }
    this.readout = el("p", { className: "readout" });
    this.svg = svg("svg", {
      tabindex: 0, role: "slider", "aria-label": "Likelihood along the answer; arrow keys move from token to token",
      "aria-valuemin": 1, "aria-valuemax": this.data.at.length, "aria-valuenow": 1, "aria-valuetext": this.read(0),
    });
    this.node.append(el("p", {}, this.caption()), this.svg, this.readout, el("p", {}, this.decided()), this.table());
    this.svg.addEventListener("pointermove", (event) => this.move(this.nearest(event)));
    this.svg.addEventListener("pointerleave", () => this.leave());
    this.svg.addEventListener("click", (event) => this.move(this.nearest(event), "pin"));
    this.svg.addEventListener("focus", () => this.move(this.place ?? 0));
    this.svg.addEventListener("blur", () => this.leave());
    this.svg.addEventListener("keydown", (event) => this.keydown(event));
    new ResizeObserver(() => this.draw()).observe(this.node);
  }

  caption() {
    const { at } = this.data;
    const all = this.answer.steps.length;
    const which = at.length < all ? ` Drawn are the ${at.length} of ${all} tokens for which everybody has a probability.` : "";
    return `Bits per byte, smoothed over ${SPAN} tokens: the lower, the more a model expected the text. `
      + `Figures beside the names are for the whole answer.${which}`;
  }

  decided() {
    const counts = Object.entries(DECIDED).map(([name, words]) => {
      const n = this.answer.steps.filter((step) => step.decision === name).length;
      return n ? `${n} ${words}` : "";
    });
    return `Tokens decided: ${counts.filter(Boolean).join(", ")}.`;
  }

  draw() {
    const width = Math.floor(this.node.clientWidth);
    if (!width || width === this.width) return;
    this.width = width;
    const { at, lines } = this.data;
    const narrow = width < 480;
    const longest = Math.max(...lines.map((line) => line.name.length));
    const [left, top, room] = [34, 10, Math.min(narrow ? 108 : 200, 62 + 7 * longest)];
    const height = Math.max(narrow ? 190 : 230, 50 + ROW * (lines.length + 1));
    const [right, base] = [width - room, height - 34];
    const most = lines.flatMap((line) => line.smooth).reduce((a, b) => Math.max(a, b), 1e-6); // they may be many
    const n = this.answer.steps.length;
    this.x = (p) => left + ((right - left) * at[p]) / (n - 1);
    this.y = (bits) => base - ((base - top) * bits) / most;
    const parts = [];
    for (const value of ticks(most)) {
      const y = this.y(value);
      parts.push(svg("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }),
        svg("text", { x: left - 7, y, dy: 4, "text-anchor": "end" }, String(Number(value.toPrecision(6)))));
    }
    for (const value of new Set([1, ...ticks(n).filter((tick) => tick > 1 && Number.isInteger(tick))])) {
      const x = left + ((right - left) * (value - 1)) / (n - 1);
      parts.push(svg("text", { x, y: base + 16, "text-anchor": "middle" }, String(value)));
    }
    parts.push(svg("text", { x: (left + right) / 2, y: height - 2, "text-anchor": "middle" }, "token"));
    const ends = lines.map((line) => this.y(line.smooth.at(-1)));
    const heights = apart(ends, base);
    lines.toReversed().forEach((line) => {
      const points = line.smooth.map((bits, p) => `${this.x(p).toFixed(1)},${this.y(bits).toFixed(1)}`);
      parts.push(svg("polyline", { ...stroke(line.k), points: points.join(" ") }));
    });
    lines.forEach((line, i) => parts.push(...this.name(line, right, ends[i], heights[i], room)));
    this.cursor = svg("g", { visibility: "hidden" });
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", height);
    this.svg.replaceChildren(...parts, this.cursor);
    this.span = [top, base];
    if (this.place !== undefined) this.put(this.place);
  }

  /** The name of a line at its end, with its mean. */
  name(line, right, end, y, room) {
    const mean = line.mean.toFixed(2);
    const most = Math.floor((room - 26) / 6.6) - mean.length - 1;
    const short = line.name.length > most ? `${line.name.slice(0, most - 1)}…` : line.name;
    return [
      svg("line", { class: "grid", x1: right, x2: right + 8, y1: end, y2: y }),
      svg("line", { ...stroke(line.k), x1: right + 8, x2: right + 22, y1: y, y2: y }),
      svg("text", { class: "name", x: right + 26, y, dy: 4 },
        svg("title", {}, line.name), `${short} `, svg("tspan", { "font-weight": 650 }, mean)),
    ];
  }

  nearest(event) {
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    const far = (p) => Math.abs(this.x(p) - x);
    return [...this.data.at.keys()].reduce((best, p) => (far(p) < far(best) ? p : best));
  }

  keydown(event) {
    const last = this.data.at.length - 1;
    const p = this.place ?? 0;
    const steps = { ArrowRight: p + 1, ArrowUp: p + 1, ArrowLeft: p - 1, ArrowDown: p - 1, PageUp: p + 10, PageDown: p - 10, Home: 0, End: last };
    const to = steps[event.key];
    if (to !== undefined) this.move(Math.max(0, Math.min(last, to)));
    else if (event.key === "Enter" || event.key === " ") this.move(p, "pin");
    else return;
    event.preventDefault();
  }

  /** Look at a place of the chart, and let the answer know. */
  move(p, how = "look") {
    this.put(p);
    this.pointed(this.data.at[p], how);
  }

  leave() {
    if (document.activeElement === this.svg) return;
    this.put(undefined);
    this.pointed(null);
  }

  /** Show a token that is looked at elsewhere (null: none). */
  mark(i) {
    const p = this.data.at.indexOf(i);
    if (p >= 0) this.put(p);
    else this.put(undefined);
  }

  put(p) {
    this.place = p;
    if (!this.cursor) return;
    this.readout.textContent = p === undefined ? "" : this.read(p);
    this.cursor.setAttribute("visibility", p === undefined ? "hidden" : "visible");
    if (p === undefined) return;
    this.svg.setAttribute("aria-valuenow", p + 1);
    this.svg.setAttribute("aria-valuetext", this.read(p));
    const [top, base] = this.span;
    const x = this.x(p);
    this.cursor.replaceChildren(
      svg("line", { class: "cursor", x1: x, x2: x, y1: top, y2: base }),
      ...this.data.lines.map(({ k, smooth }) => svg("circle", { class: `dot m${k && 1 + ((k - 1) % 6)}`, cx: x, cy: this.y(smooth[p]), r: 4 })));
  }

  /** A token and what it cost everybody, in words. */
  read(p) {
    const i = this.data.at[p];
    const costs = this.data.lines.map(({ name, bits }) => `${name} ${Math.abs(bits[p]).toFixed(2)}`);
    return `Token ${i + 1}, ${spelling(this.answer.steps[i].bytes)}: ${costs.join(", ")} bits`;
  }

  /** The same numbers as rows; they are written when first looked at. */
  table() {
    const { at, lines } = this.data;
    const rows = el("tbody");
    const head = ["Token", "Text", "How", ...lines.map(({ name }) => `${name}, bits`)];
    const table = el("table", {}, el("caption", { className: "hidden" }, "Bits of each token"),
      el("thead", {}, el("tr", {}, ...head.map((text, k) => el("th", { scope: "col", className: k > 2 ? "n" : "" }, text)))), rows);
    const folded = el("details", { className: "soft" }, el("summary", {}, "As a table"),
      el("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Bits of each token" }, table));
    folded.addEventListener("toggle", () => {
      if (rows.hasChildNodes()) return;
      at.forEach((i, p) => {
        const step = this.answer.steps[i];
        rows.append(el("tr", {}, el("th", { scope: "row" }, String(i + 1)),
          el("td", {}, el("bdi", {}, ...spelled(step.bytes))), el("td", {}, step.decision),
          ...lines.map(({ bits }) => el("td", { className: "n" }, Math.abs(bits[p]).toFixed(2)))));
      });
    });
    return folded;
  }
}

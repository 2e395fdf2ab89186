// The card that says who wanted a token.

const card = {
  node: $("card"),
  pinned: false,
  anchor: null,
  timer: 0,

  /** Show it beside a token: until the pointer or the focus leaves, or pinned until it is closed. */
  show(answer, i, span, how) {
    clearTimeout(this.timer);
    if (this.pinned && how === "hover") return;
    this.release();
    this.pinned = how === "pin";
    this.anchor = span;
    span.setAttribute("aria-describedby", "card");
    if (this.pinned) span.classList.add("at");
    this.node.replaceChildren(...this.content(answer, i));
    this.node.hidden = false;
    this.node.scrollTop = 0;
    this.place();
  },

  /** The pointer may move from the token to the card. */
  leave() {
    clearTimeout(this.timer);
    if (!this.pinned) this.timer = setTimeout(() => this.hide(), 180);
  },

  hide() {
    clearTimeout(this.timer);
    this.release();
    this.pinned = false;
    this.node.hidden = true;
  },

  release() {
    this.anchor?.removeAttribute("aria-describedby");
    this.anchor?.classList.remove("at");
    this.anchor = null;
  },

  /** Below the token, or above it where there is more room; on narrow screens the style decides. */
  place() {
    const { style } = this.node;
    style.left = style.top = "";
    if (!this.anchor || matchMedia("(max-width: 40rem)").matches) return;
    const parts = [...this.anchor.getClientRects()]; // one per line; a space may end the line before
    if (!parts.length) return;
    const at = parts.reduce((a, b) => (b.width > a.width ? b : a));
    const { width, height } = this.node.getBoundingClientRect();
    const below = innerHeight - at.bottom > height + 16 || at.top < height + 16;
    style.left = `${Math.max(8, Math.min(at.left - 16, document.documentElement.clientWidth - width - 8))}px`;
    style.top = `${below ? Math.min(at.bottom + 8, innerHeight - height - 8) : at.top - height - 8}px`;
  },

  content(answer, i) {
    const step = answer.steps[i];
    const shut = el("button", { className: "quiet shut", ariaLabel: "Close", onclick: () => this.shut() },
      svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: "M6 6l12 12M18 6 6 18" })));
    const nodes = [
      el("div", { className: "top" },
        el("bdi", { className: "chosen" }, ...spelled(step.bytes)),
        el("span", { className: "pooled" }, "pooled ", el("b", {}, percent(likely(step.logprob)))),
        ...(this.pinned ? [shut] : [])),
      el("p", { className: "how" }, `Token ${i + 1} of ${answer.steps.length}. ${explained(step, answer.shares)}`),
    ];
    const total = sum(Object.values(answer.shares).map(Math.abs));
    step.members.forEach((member, k) => {
      const weight = answer.shares[member.name] ?? 0;
      nodes.push(el("h3", {}, swatch(k + 1), el("bdi", { title: member.name }, member.name),
        el("span", {}, total ? `weight ${share(weight / total)}` : "")));
      nodes.push(member.wish === null
        ? el("p", { className: "note" }, "Did not vote on this token.")
        : this.candidates(step, member));
    });
    return nodes;
  },

  /** A member's own candidates, best first; its wish and the chosen token are always among them. */
  candidates(step, member) {
    const listed = (member.candidates ?? []).map(({ text, bytes, logprob }) => ({ text, bytes, logprob }));
    let chosen = listed.find(({ bytes }) => same(bytes, step.bytes));
    if (!chosen) listed.push((chosen = { text: step.text, bytes: step.bytes, logprob: member.logprob }));
    let wish = listed.find(({ text }) => text === member.wish);
    if (!wish) listed.unshift((wish = { text: member.wish, bytes: [...new TextEncoder().encode(member.wish)] }));
    return el("ol", {}, ...listed.map((candidate) => {
      const notes = [candidate === chosen ? "chosen" : null, candidate === wish ? "wish" : null].filter(Boolean);
      return this.candidate(candidate, candidate === chosen, notes.join(", "));
    }));
  },

  /** One row; a `logprob` of null: the member cannot spell it as one token, none: not listed. */
  candidate({ bytes, logprob }, chosen, note) {
    const meter = el("i");
    meter.style.setProperty("--p", likely(logprob ?? null));
    const value = logprob === null ? "not as one" : logprob === undefined ? "–" : percent(likely(logprob));
    return el("li", { className: chosen ? "is" : "" },
      el("div", { title: spelling(bytes) }, el("bdi", {}, ...spelled(bytes)), note && el("span", { className: "note" }, note)),
      el("div", { className: "meter", ariaHidden: "true" }, meter), el("span", {}, value));
  },

  /** Closed by hand: the focus goes back to the token. */
  shut() {
    const { anchor } = this;
    const inside = this.node.contains(document.activeElement);
    this.hide();
    if (inside) anchor?.focus({ preventScroll: true });
    this.hide(); // the focus has shown it again
  },
};

card.node.addEventListener("pointerenter", () => clearTimeout(card.timer));
card.node.addEventListener("pointerleave", () => card.leave());
document.addEventListener("pointerdown", (event) => {
  if (card.pinned && !card.node.contains(event.target) && !event.target.closest(".unit, .likelihood")) card.hide();
});
addEventListener("scroll", () => (card.pinned || card.anchor === document.activeElement ? card.place() : card.hide()), { passive: true });
addEventListener("resize", () => card.place());

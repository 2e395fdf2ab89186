// The answer as elements, one per token; as text it stays exactly what the server said.

class Units {
  /** `pointed(i)`: a token is looked at, by pointer or focus (null: no longer). */
  constructor(answer, pointed) {
    this.answer = answer;
    this.pointed = pointed;
    this.spans = [];
    this.current = 0; // the one that Tab reaches
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.node = el("div", { className: "answer", dir: "auto", role: "group", ariaLabel: "Answer. Arrow keys move from token to token." });
    this.node.addEventListener("pointerover", (event) => this.hover(event));
    this.node.addEventListener("pointerleave", () => this.point(null));
    this.node.addEventListener("focusin", (event) => this.point(this.index(event.target), "focus"));
    this.node.addEventListener("focusout", () => this.point(null));
    this.node.addEventListener("click", (event) => this.click(event));
    this.node.addEventListener("keydown", (event) => this.keydown(event));
    this.add(answer.steps);
    if (answer.finish) this.finish();
  }

  get text() {
    return this.node.textContent;
  }

  add(steps) {
    for (const step of steps) {
      const text = this.decoder.decode(new Uint8Array(step.bytes), { stream: true });
      const span = el("span", { className: looks(step, this.answer.shares).join(" ") }, text);
      if (!text && step.bytes.length) span.classList.add("sliver");
      else if (/^[\s]*\n\s*$/.test(text)) span.classList.add("break");
      if (!this.spans.length) span.tabIndex = 0;
      this.spans.push(span);
      this.node.append(span);
    }
  }

  /** What never became a character shows now, and what a stop string took away goes. */
  finish() {
    const rest = this.decoder.decode();
    if (rest) this.spans.at(-1)?.append(rest);
    if (this.text === this.answer.text) return;
    if (!this.text.startsWith(this.answer.text)) {
      this.spans = [];
      this.node.replaceChildren(this.answer.text); // it came without a trace
      return;
    }
    let left = this.answer.text.length;
    for (const span of this.spans) {
      const shown = span.textContent.slice(0, left);
      if (shown !== span.textContent) span.textContent = shown;
      left -= shown.length;
    }
  }

  index(node) {
    const i = this.spans.indexOf(node.closest(".unit"));
    return i < 0 ? null : i;
  }

  point(i, how = "hover") {
    if (i !== null && how === "focus") this.reach(i);
    this.pointed(i, how);
  }

  /** Tab reaches this token from now on. */
  reach(i) {
    if (i === this.current) return;
    this.spans[this.current].removeAttribute("tabindex");
    this.current = i;
    this.spans[i].tabIndex = 0;
  }

  go(i) {
    this.spans[i].tabIndex = 0;
    this.spans[i].focus({ preventScroll: true });
    this.spans[i].scrollIntoView({ block: "nearest" });
  }

  hover(event) {
    const i = this.index(event.target);
    const selecting = event.buttons !== 0;
    if (i !== null && event.pointerType === "mouse" && !selecting) this.point(i);
  }

  click(event) {
    const i = this.index(event.target);
    if (i === null || !getSelection().isCollapsed) return;
    this.go(i);
    this.point(i, "pin");
  }

  keydown(event) {
    const i = this.index(event.target);
    const last = this.spans.length - 1;
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: last }[event.key];
    if (i === null || event.ctrlKey || event.metaKey || event.altKey) return;
    if (to !== undefined) {
      event.preventDefault();
      this.go(Math.max(0, Math.min(last, to)));
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.point(i, "pin");
    } else if (/^Page(Up|Down)$/.test(event.key)) {
      event.preventDefault();
      card.node.scrollBy(0, event.key === "PageUp" ? -120 : 120);
    }
  }

  /** Show which token is meant elsewhere (null: none). */
  mark(i) {
    this.marked?.classList.remove("at");
    this.marked = i === null ? null : this.spans[i];
    this.marked?.classList.add("at");
  }
}

// An answer on the page: its tokens, its figures, its chart, what can be done with it.

const FINISHED = {
  stop: "finished", length: "cut at a limit", stopped: "stopped by you", failed: "broken off",
};

class Reply {
  /** `again`: what Regenerate does. */
  constructor(answer, again) {
    this.answer = answer;
    this.fused = 0; // so many steps are
    this.tally(answer.steps);
    this.units = new Units(answer, (i, how) => this.pointed(i, how));
    this.facts = el("p", { className: "facts" });
    this.problem = el("div", { className: "problem", role: "alert", hidden: true });
    const button = (text, act) => el("button", { type: "button", onclick: act }, text);
    this.again = button("Regenerate", again);
    this.draw = button("Likelihood", () => this.chart(!this.figure));
    this.draw.ariaExpanded = "false";
    this.taken = button("Copy", () => this.copy());
    this.tools = el("div", { className: "tools", hidden: true },
      this.taken, this.again, this.draw, button("Export", () => this.save()));
    this.node = el("article", { className: "reply", ariaLabel: "Answer" },
      this.units.node, this.problem, this.facts, this.tools);
    if (answer.finish) this.finish();
    else this.units.node.classList.add("waiting");
  }

  grow(steps) {
    this.units.add(steps);
    this.tally(steps);
  }

  tally(steps) {
    this.fused += steps.filter((step) => step.decision === "fused").length;
  }

  finish() {
    const { answer, units } = this;
    units.node.classList.remove("waiting");
    units.finish();
    units.node.hidden = this.taken.hidden = !answer.text && !answer.steps.length;
    this.tools.hidden = false;
    this.draw.hidden = !units.spans.length;
    if (answer.problem) this.complain(answer.problem);
    this.count();
    if (kept(browser, "chart") && units.spans.length) this.chart(true);
  }

  complain({ status, message, retryAfter }) {
    const what = status >= 400 ? `The server ${status < 500 ? "refused" : "failed"} (${status}). ` : "";
    const then = retryAfter ? ` Try again in ${counted(Math.ceil(retryAfter), "second")}.` : "";
    this.problem.replaceChildren(el("b", {}, what), message + then);
    this.problem.hidden = false;
  }

  /** The line of figures, also while the answer grows. */
  count() {
    const { answer } = this;
    const { steps, stats, seconds, first } = answer;
    const n = answer.usage?.completion_tokens ?? steps.length;
    const rate = stats?.tokens_per_second ?? (steps.length > 1 && (steps.length - 1) / (seconds - first));
    const fused = stats?.fused_share ?? this.fused / steps.length;
    const facts = settings.several ? [answer.request.model] : [];
    if (n) facts.push(counted(n, "token"));
    if (rate) facts.push(`${rate.toFixed(1)}${NBSP}tokens/s`);
    if (steps[0]?.members.length > 1) facts.push(`${share(fused)} fused`);
    if (first !== null) facts.push(`first after ${first.toFixed(2)}${NBSP}s`);
    if (answer.finish && (n || !answer.problem)) facts.push(FINISHED[answer.finish] ?? answer.finish);
    this.facts.replaceChildren(...facts.map((fact) => el("span", {}, fact)));
  }

  /** A token is looked at in the answer. */
  pointed(i, how) {
    if (i === null) card.leave();
    else card.show(this.answer, i, this.units.spans[i], how);
    this.figure?.mark(i);
  }

  chart(open) {
    this.figure?.node.remove();
    this.figure = null;
    this.draw.ariaExpanded = String(open);
    kept(browser, "chart", open);
    if (!open) return;
    this.figure = new Chart(this.answer, (i, how) => {
      this.units.mark(i);
      if (i === null) card.leave();
      else if (how === "pin") card.show(this.answer, i, this.units.spans[i], how);
    });
    this.node.append(this.figure.node);
  }

  async copy() {
    await copy(this.answer.text);
    this.taken.textContent = "Copied";
    setTimeout(() => (this.taken.textContent = "Copy"), 1500);
  }

  save() {
    const { request, text, steps, stats, usage, finish, problem, created, first, seconds, shares } = this.answer;
    download(`logitfuse-${created.replace(/[:.]/g, "-")}.json`, {
      request, text, steps, stats, usage, finish_reason: finish, problem, created, weights: shares,
      first_token_s: first, total_s: seconds,
    });
  }
}

// What is served, and what the reader wants otherwise.

const settings = {
  form: $("form"),
  panel: $("settings"),
  chosen: kept(browser, "settings") ?? {}, // only what differs from what is served
  props: null,
  model: null,

  /** Take what the server says about itself. */
  serve(ids, props) {
    this.props = props;
    const fields = this.form.elements;
    for (const [name, values] of [["preset", props.presets], ["pool", props.pools]]) {
      fields[name].replaceChildren(new Option("as served", ""), ...values.map((value) => new Option(value)));
      if (!values.includes(this.chosen[name])) delete this.chosen[name]; // of another server
    }
    const picker = $("model");
    picker.replaceChildren(...ids.map((id) => new Option(id)));
    picker.value = ids.includes(this.chosen.model) ? this.chosen.model : props.default_model ?? ids[0];
    picker.disabled = !this.several;
    this.choose(picker.value);
  },

  choose(model) {
    this.model = this.chosen.model = model;
    this.weights();
    this.keep();
    const { members, ...parts } = this.served;
    const names = ["strategy", "pool", "gate", "preset", "weighting", "alignment"];
    const rows = names.filter((name) => parts[name]).map((name) => [name, parts[name]]);
    rows.push(["version", this.props.version], ["instruction set", this.props.instruction_set]);
    $("facts").replaceChildren(...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
  },

  get several() {
    return $("model").options.length > 1;
  },

  get served() {
    return this.props.models[this.model];
  },

  /** The members and what their words weigh now. */
  get members() {
    const wanted = this.chosen.weights?.[this.model] ?? {};
    return this.given.map(({ name, weight }) => ({ name, weight: wanted[name] ?? weight }));
  },

  /** Members by name with what their words weigh as served: shares, unless somebody counts against the others. */
  get given() {
    const { members } = this.served;
    const total = sum(members.map(({ weight }) => weight));
    const whole = members.some(({ weight }) => weight < 0) || !total ? 1 : total;
    return members.map(({ name, weight }) => ({ name, weight: weight / whole }));
  },

  get opposed() {
    return this.given.some(({ weight }) => weight < 0);
  },

  stated(weight) {
    return this.opposed ? weight.toFixed(2) : share(weight);
  },

  /** A slider for each member. */
  weights() {
    const members = this.given;
    const top = Math.max(1, ...members.map(({ weight }) => Math.abs(weight)));
    const low = this.opposed ? -top : 0;
    const rows = members.map(({ name }, i) => el("div", { className: "weight" },
      el("label", { htmlFor: `weight${i}`, title: name }, swatch(i + 1), el("bdi", {}, name)), el("output"),
      el("input", { type: "range", id: `weight${i}`, min: low, max: top, step: top / 100 })));
    $("weights").replaceChildren($("weights").firstElementChild, ...rows);
    $("weights").hidden = members.length < 2;
  },

  /** Let every field say what holds. */
  show() {
    const { elements } = this.form;
    const { chosen, members } = this;
    const { sampling } = this.served;
    for (const name of ["preset", "pool", "max_tokens", "seed", "system"]) {
      if (elements[name] !== document.activeElement) elements[name].value = chosen[name] ?? "";
    }
    for (const name of ["temperature", "top_p"]) {
      const label = elements[name].parentNode;
      elements[name].value = chosen[name] ?? sampling[name];
      label.querySelector("output").textContent = Number(elements[name].value).toFixed(2);
      label.classList.toggle("set", name in chosen);
    }
    const rows = [...$("weights").querySelectorAll(".weight")];
    rows.forEach((row, i) => {
      const slider = row.lastElementChild;
      slider.value = members[i].weight;
      slider.ariaValueText = row.querySelector("output").textContent = this.stated(members[i].weight);
      row.classList.toggle("set", Boolean(chosen.weights?.[this.model]));
    });
    $("lineup").replaceChildren(...members.map(({ name, weight }, i) =>
      el("span", {}, swatch(i + 1), name, members.length > 1 ? ` ${this.stated(weight)}` : "")));
  },

  /** A field was changed. */
  take(field) {
    const { chosen } = this;
    if (field.id.startsWith("weight")) {
      chosen.weights = { ...chosen.weights, [this.model]: this.balanced(field) };
    } else if (field.value === "") delete chosen[field.name];
    else if (field.validity.valid) chosen[field.name] = /range|number/.test(field.type) ? Number(field.value) : field.value;
    this.keep();
  },

  /** The weights after one was moved; the others share what it leaves, as they did before. */
  balanced(slider) {
    const members = this.members;
    const moved = members[Number(slider.id.slice("weight".length))];
    const value = Number(slider.value);
    const others = members.filter((member) => member !== moved);
    const before = sum(others.map(({ weight }) => weight));
    const weigh = ({ weight }) => (before ? weight / before : 1 / others.length) * (1 - value);
    const round = (weight) => Number(weight.toFixed(4));
    return Object.fromEntries(members.map((member) => {
      if (member === moved) return [member.name, value];
      return [member.name, this.opposed ? member.weight : round(weigh(member))];
    }));
  },

  keep() {
    kept(browser, "settings", this.chosen);
    this.show();
  },

  /** What a request says besides its messages. */
  get request() {
    const { temperature, top_p, max_tokens, seed, preset, pool } = this.chosen;
    const moved = this.chosen.weights?.[this.model];
    const weights = moved && Object.fromEntries(this.members.map(({ name, weight }) => [name, weight]));
    const ours = { trace: true, candidates: 5, weights, preset, pool };
    return {
      model: this.model, stream: true, stream_options: { include_usage: true },
      temperature, top_p, max_tokens, seed, logitfuse: ours,
    };
  },

  /** Beside the conversation where there is room, over it where there is not. */
  toggle() {
    const { panel } = this;
    if (panel.open) this.shut();
    else if (matchMedia("(min-width: 64rem)").matches) panel.show();
    else panel.showModal();
    this.opened();
  },

  shut() {
    this.panel.close();
    $("adjust").focus();
  },

  opened() {
    $("adjust").ariaExpanded = String(this.panel.open);
    document.body.classList.toggle("adjusting", this.panel.open);
  },
};

settings.form.addEventListener("input", (event) => settings.take(event.target));
settings.form.addEventListener("submit", (event) => event.preventDefault());
settings.form.addEventListener("reset", (event) => {
  event.preventDefault();
  settings.chosen = { model: settings.model };
  settings.keep();
});
settings.panel.addEventListener("close", () => settings.opened());
$("adjust").addEventListener("click", () => settings.toggle());
$("close").addEventListener("click", () => settings.shut());

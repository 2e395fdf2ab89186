// The conversation, and the page as a whole.

const input = $("input");
const chat = { turns: [], control: null, editing: false, sticky: true, scrolled: 0, touched: false };

/** One message and its answer; on the page as long as it is in `chat.turns`. */
function addTurn(said, answer = null) {
  const edit = el("button", { type: "button", onclick: () => startEditing(turn) }, "Edit");
  const turn = { said, answer, reply: null, edit, node: el("section", { className: "turn" }) };
  turn.node.append(el("div", { className: "said" },
    el("p", {}, el("span", { className: "hidden" }, "You: "), said), el("div", { className: "tools" }, edit)));
  if (answer) showReply(turn);
  chat.turns.push(turn);
  $("turns").append(turn.node);
  return turn;
}

function showReply(turn) {
  turn.reply?.node.remove();
  turn.reply = new Reply(turn.answer, () => answerTurn(turn));
  turn.node.append(turn.reply.node);
}

function dropTurn() {
  chat.turns.pop().node.remove();
}

/** What was said before, without messages that found no answer. */
function messages(turn) {
  const { system } = settings.chosen;
  const list = system ? [{ role: "system", content: system }] : [];
  for (const { said, answer } of chat.turns.slice(0, chat.turns.indexOf(turn))) {
    if (answer?.text) list.push({ role: "user", content: said }, { role: "assistant", content: answer.text });
  }
  return [...list, { role: "user", content: turn.said }];
}

const begun = (answer) => Boolean(answer.text || answer.steps.length);

/** Ask for an answer; the one before stays until there is another. */
async function answerTurn(turn) {
  if (chat.control) return;
  const held = document.activeElement;
  card.hide();
  const { model, ...rest } = settings.request;
  // as it goes over the wire, without what is not set
  const request = JSON.parse(JSON.stringify({ model, messages: messages(turn), ...rest }));
  const control = new AbortController();
  const answer = newAnswer(request, settings.members);
  turn.before = turn.answer;
  turn.answer = answer;
  turn.refused = null;
  showReply(turn);
  chat.control = control;
  chat.sticky = true;
  refresh(held);
  turn.reply.count();
  follow();
  speak.begin();
  let awaited = 0; // the frame that will show what has come
  const frame = () => {
    awaited = 0;
    if (chat.control !== control) return;
    turn.reply.count();
    follow();
  };
  await receive(answer, control.signal, (steps) => {
    turn.reply.grow(steps);
    speak.upTo(answer.text);
    awaited ||= requestAnimationFrame(frame);
  });
  if (chat.control !== control) return; // the conversation was left
  chat.control = null;
  if (turn.before?.text && /^(failed|stopped)$/.test(answer.finish) && !begun(answer)) takeBack(turn);
  else turn.reply.finish();
  turn.before = null;
  speak.end(answer);
  follow();
  refresh();
  store();
  if (answer.problem?.status === 401) askKey();
}

/** Nothing came: let the answer before be seen again, and what was wrong. */
function takeBack(turn) {
  turn.refused = turn.answer.problem;
  turn.answer = turn.before;
  showReply(turn);
  if (turn.refused) turn.reply.complain(turn.refused);
}

/** The answer for those who listen: sentence by sentence, not token by token. */
const speak = {
  done: 0, // up to there it was said
  seen: 0, // up to there it was searched for the end of a sentence
  begin() {
    this.done = this.seen = 0;
    $("spoken").textContent = "Answering";
  },
  upTo(text) {
    const from = Math.max(this.done, this.seen - 1); // the blank may come later than the full stop
    const ended = text.slice(from).match(/^[\s\S]*(?:[.!?:;\n]\s|[。！？؟।])/)?.[0];
    this.seen = text.length;
    if (!ended) return;
    $("spoken").textContent = text.slice(this.done, from + ended.length);
    this.done = from + ended.length;
  },
  end({ text, finish }) {
    $("spoken").textContent = `${text.slice(this.done)} (${FINISHED[finish] ?? finish ?? "ended"})`;
  },
};

/** Keep the end of the answer in view, unless the reader went elsewhere or looks at a token. */
function follow() {
  if (chat.sticky && card.node.hidden) scrollTo(0, document.documentElement.scrollHeight);
}
addEventListener("scroll", () => {
  const { scrollHeight, clientHeight } = document.documentElement;
  const left = scrollHeight - clientHeight - scrollY;
  if (scrollY < chat.scrolled) chat.sticky = left < 1; // readers go up, however little; or the page became shorter
  else if (left < 60) chat.sticky = true;
  chat.scrolled = scrollY;
}, { passive: true });

/** Where the focus goes when what held it has gone; but no touch brings up a keyboard. */
function refocus(held) {
  const gone = !held.isConnected || held.closest("[hidden]");
  if (gone && !chat.touched) input.focus({ preventScroll: true });
}
addEventListener("pointerdown", (event) => (chat.touched = event.pointerType === "touch"), true);
addEventListener("keydown", () => (chat.touched = false), true);

/** Let the page show what can be done now. */
function refresh(held = document.activeElement) {
  const busy = Boolean(chat.control);
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  $("send").disabled = !settings.props;
  $("editing").hidden = !chat.editing;
  $("welcome").hidden = Boolean(chat.turns.length) || !settings.props;
  chat.turns.forEach((turn, i) => {
    const last = i === chat.turns.length - 1 && !busy;
    turn.edit.hidden = !last || chat.editing;
    if (turn.reply) turn.reply.again.hidden = !last;
  });
  refocus(held);
}

function send(text) {
  if (!text.trim() || chat.control || !settings.props) return;
  if (chat.editing) dropTurn();
  chat.editing = false;
  input.value = "";
  grow();
  answerTurn(addTurn(text));
}

function startEditing(turn) {
  chat.editing = true;
  chat.draft = input.value;
  input.value = turn.said;
  grow();
  refresh();
  input.focus();
}

function stopEditing() {
  chat.editing = false;
  input.value = chat.draft;
  grow();
  refresh();
  input.focus();
}

/** The field is as high as its text, also where style alone cannot do it. */
function grow() {
  if (CSS.supports("field-sizing", "content")) return;
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

/** Keep the conversation for a reload; where room ends, the oldest traces go first. */
function store() {
  const turns = chat.turns.map(({ said, answer, before }) => ({ said, answer: before && !begun(answer) ? before : answer }));
  if (kept(session, "chat", turns)) return;
  for (const turn of turns) {
    if (turn.answer) turn.answer = { ...turn.answer, steps: [] };
    if (kept(session, "chat", turns)) return;
  }
}

function restore() {
  try {
    for (const { said, answer } of kept(session, "chat") ?? []) {
      if (typeof said !== "string") throw new TypeError("no conversation");
      addTurn(said, answer && { ...answer, finish: answer.finish ?? "stopped" });
    }
  } catch { // another version of the page has kept it
    while (chat.turns.length) dropTurn();
    kept(session, "chat", null);
  }
}

function clear() {
  chat.control?.abort();
  chat.control = null;
  chat.editing = false;
  card.hide();
  while (chat.turns.length) dropTurn();
  store();
  refresh();
  input.focus();
}

function askKey() {
  $("key").hidden = false;
  $("wrong").hidden = !kept(session, "key");
  $("state").hidden = true;
  $("secret").value = "";
  $("secret").focus();
}

function useKey(event) {
  event.preventDefault();
  kept(session, "key", $("secret").value);
  const held = document.activeElement;
  $("key").hidden = true;
  refocus(held);
  const turn = chat.turns.at(-1);
  if (!settings.props) begin();
  else if ((turn?.refused ?? turn?.answer?.problem)?.status === 401) answerTurn(turn);
}

const IDEAS = ["Why is the sky blue?", "Write a haiku about the sea.", "Name three rivers of Europe."];

function welcome() {
  const n = settings.members.length;
  document.querySelector("#welcome h2").textContent = `${NUMBERS[n] ?? n} model${n === 1 ? "" : "s"}, one answer`;
  $("ideas").replaceChildren(...IDEAS.map((idea) =>
    el("li", {}, el("button", { type: "button", onclick: () => send(idea) }, idea))));
}

/** Ask the server what it serves, until it says so. */
async function begin() {
  try {
    const [models, props] = await Promise.all(["v1/models", "props"].map(async (path) => (await ask(path)).json()));
    settings.serve(models.data.map((model) => model.id), props);
    $("state").hidden = true;
    welcome();
    refresh();
  } catch (error) {
    if (error.status === 401) return askKey();
    $("state").textContent = error.status === 503 ? "The models are being loaded …" : error.message;
    $("state").hidden = false;
    setTimeout(begin, 1500);
  }
}

/** As the system, light, or dark. */
function theme(name) {
  const root = document.documentElement;
  if (name) root.dataset.theme = name;
  else delete root.dataset.theme;
  $("theme").title = $("theme").ariaLabel = `Colours: ${name ?? "as the system"}`;
  kept(browser, "theme", name);
}

function colour(on) {
  $("colours").checked = on;
  document.body.classList.toggle("plain", !on);
  kept(browser, "plain", !on);
}

$("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  send(input.value);
});
input.addEventListener("input", grow);
/** Whether a key belongs to an input method: Safari says so by a number, when the text is already there. */
const composes = (event) => event.isComposing || event.keyCode === 229;

input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || composes(event)) return;
  event.preventDefault();
  send(input.value);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || composes(event) || settings.panel.matches(":modal")) return;
  if (!card.node.hidden) card.shut();
  else if (settings.panel.contains(document.activeElement)) settings.shut();
  else if (chat.editing) stopEditing();
  else chat.control?.abort();
});
$("stop").addEventListener("click", () => chat.control?.abort());
$("new").addEventListener("click", clear);
$("cancel").addEventListener("click", stopEditing);
$("key").addEventListener("submit", useKey);
$("model").addEventListener("change", (event) => {
  settings.choose(event.target.value);
  welcome();
});
$("colours").addEventListener("change", (event) => colour(event.target.checked));
$("theme").addEventListener("click", () => {
  const order = [null, "light", "dark"];
  theme(order[(order.indexOf(document.documentElement.dataset.theme ?? null) + 1) % 3]);
});
addEventListener("pagehide", () => {
  chat.control?.abort();
  store();
});

theme(kept(browser, "theme"));
colour(!kept(browser, "plain"));
restore();
refresh();
begin();

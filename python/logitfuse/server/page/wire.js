// The server: requests, errors, streams.

/** What the server, or the way to it, says is wrong. */
class ServerError extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status; // 0: no answer at all
    this.retryAfter = retryAfter;
  }
}

const UNREACHABLE = "The server cannot be reached. Is it still running?";
const DROPPED = "The connection ended before the answer did.";

/** A response that is good; paths are relative, so that the page works behind any prefix. */
async function ask(path, body, signal) {
  const headers = {};
  const secret = kept(session, "key");
  if (secret) headers.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(secret))}`; // its bytes
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body),
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(0, UNREACHABLE);
  }
  if (response.ok) return response;
  const text = await response.text();
  const wait = Number(response.headers.get("Retry-After"));
  throw new ServerError(response.status, told(text, response), wait || null);
}

/** The message in an OpenAI error body, else what there is. */
function told(text, response) {
  try {
    const message = JSON.parse(text).error.message;
    if (message) return message;
  } catch { /* not such a body */ }
  return text.trim().slice(0, 500) || `${response.status} ${response.statusText}`;
}

/** The objects of a stream of server-sent events, until it says it is done. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ServerError(0, DROPPED);
    });
    if (done) throw new ServerError(0, DROPPED);
    rest += value;
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

/**
 * An answer as it is kept and exported.
 *
 * `shares`: what each member's word weighs, by name; `finish`: the server's reason, or "stopped"
 * or "failed"; times in seconds.
 */
const newAnswer = (request, members) => ({
  request, shares: Object.fromEntries(members.map((m) => [m.name, m.weight])),
  text: "", steps: [], finish: null, problem: null, usage: null, stats: null,
  created: new Date().toISOString(), first: null, seconds: null,
});

/** Let the server answer; `grown(steps)` is called as pieces come. */
async function receive(answer, signal, grown) {
  const began = performance.now();
  const now = () => (performance.now() - began) / 1000;
  try {
    const response = await ask("v1/chat/completions", answer.request, signal);
    for await (const event of events(response)) {
      if (event.error) throw new ServerError(200, event.error.message);
      const choice = event.choices?.[0];
      const steps = choice?.logitfuse?.steps ?? [];
      const text = choice?.delta?.content ?? "";
      answer.usage = event.usage ?? answer.usage;
      answer.stats = event.logitfuse?.stats ?? answer.stats;
      answer.finish = choice?.finish_reason ?? answer.finish;
      if (!text && !steps.length) continue;
      answer.first ??= now();
      answer.seconds = now();
      answer.text += text;
      answer.steps.push(...steps);
      grown(steps);
    }
  } catch (error) {
    if (error.name === "AbortError") answer.finish = "stopped";
    else {
      answer.finish = "failed";
      answer.problem = { status: error.status ?? 0, message: error.message, retryAfter: error.retryAfter ?? null };
      if (!(error instanceof ServerError)) console.error(error);
    }
  }
}

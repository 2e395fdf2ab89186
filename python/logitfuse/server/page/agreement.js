// How far the members agreed on a token.

const HOW = {
  fused: "The pool decided.",
  agree: "Every member wanted it.",
  certain: "It had the majority of the pool.",
  led: "One member spoke alone.",
};

const same = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i]);

/** Whether a member would have said exactly this; pieces of characters look alike as text. */
function wanted(step, member) {
  const best = member.candidates?.[0];
  const vague = step.text.includes("\ufffd") && best && best.text === member.wish;
  return vague ? same(best.bytes, step.bytes) : member.wish === step.text;
}

/**
 * `likely`: the mean of the probabilities that the voting members gave the token, by their shares;
 * `votes`, `wants`: how many voted, and would have said exactly this.
 */
function agreement(step, shares) {
  const voters = step.members.filter((member) => member.wish !== null);
  let total = 0;
  let sum = 0;
  for (const member of voters) {
    const weight = Math.max(0, shares[member.name] ?? 1);
    total += weight;
    sum += weight * likely(member.logprob);
  }
  return {
    likely: total ? sum / total : likely(step.logprob),
    votes: voters.length,
    wants: voters.filter((member) => wanted(step, member)).length,
  };
}

/** The classes of a token: its shade and its line, as the legend explains them. */
function looks(step, shares) {
  const { likely: p, votes, wants } = agreement(step, shares);
  const names = ["unit", `l${Math.min(4, Math.floor(5 * p))}`];
  const able = step.members.filter((member) => shares[member.name] !== 0).length;
  if (votes < 2 && able > 1) names.push("alone");
  else if (votes && !wants) names.push("none");
  else if (wants < votes) names.push("some");
  if (!step.bytes.length) names.push("end");
  return names;
}

/** How a step came about, in words. */
function explained(step, shares) {
  const { votes, wants } = agreement(step, shares);
  const words = [HOW[step.decision] ?? ""];
  if (votes > 1 && step.decision !== "agree") {
    const pair = votes === 2;
    let who = `${NUMBERS[wants] ?? wants} of ${(NUMBERS[votes] ?? String(votes)).toLowerCase()}`;
    if (!wants) who = pair ? "Neither member" : "No member";
    if (wants === votes) who = pair ? "Both members" : "All members";
    words.push(`${who} wanted exactly this.`);
  }
  return words.join(" ").trim();
}

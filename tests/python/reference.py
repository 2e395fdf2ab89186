"""A fused step in plain float64 NumPy: the oracle of the tests, and the explanation of the method.

Several language models read the same text. Each one returns a *row* of logits, one number per token
of its own vocabulary. Token ids mean nothing outside that vocabulary, but every token stands for a
byte string, and byte strings are common ground. So a fused step is:

1. turn each row into a distribution over *symbols*, which are byte strings and one END symbol
   (``member_logprobs``);
2. join the distributions into one over the union of their symbols (``pool``);
3. filter and draw from the joint distribution as usual (``sample_filter``).

A vocabulary is given as ``tokens``, the bytes of each id, and ``kinds``, one of

* ``"text"`` and ``"byte"``: the token writes its bytes;
* ``"end"``: the model wants to stop, whatever the token is called;
* ``"control"`` and ``"unused"``: never emitted.

Nothing here is fast. Clarity decides: a symbol is a dictionary key.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

END: Final = "end"  # a str, and thus unequal to every byte string
Symbol = bytes | str
Floats = NDArray[np.float64]


def member_logprobs(
    row: ArrayLike, tokens: Sequence[bytes], kinds: Sequence[str]
) -> dict[Symbol, float]:
    """Turn one member's logits into log-probabilities of symbols.

    Tokens that are never emitted lose their mass to the rest. Tokens with equal bytes are one
    symbol, and so are all end tokens: their probabilities add up.

    Parameters
    ----------
    row
        Logits ``[n_vocab]``.
    tokens, kinds
        The vocabulary, ``n_vocab`` items each.

    Returns
    -------
    dict
        Symbol to natural log of its probability; -inf if the member rules the symbol out.
    """
    groups: dict[Symbol, list[float]] = {}
    for logit, token, kind in zip(np.asarray(row, np.float64), tokens, kinds, strict=True):
        if kind in ("text", "byte", "end"):
            groups.setdefault(END if kind == "end" else token, []).append(logit)
    peak = max(itertools.chain.from_iterable(groups.values()))
    if peak > -np.inf:  # only differences count, and near zero they keep their digits
        groups = {symbol: [logit - peak for logit in logits] for symbol, logits in groups.items()}
    return _normalised({symbol: _log_sum_exp(logits) for symbol, logits in groups.items()})


def pool(
    rows: Sequence[ArrayLike],
    vocabs: Sequence[tuple[Sequence[bytes], Sequence[str]]],
    weights: Sequence[float],
    pool: Literal["linear", "log-linear"] = "linear",
    floor: float = -16.0,
) -> dict[Symbol, float]:
    """Join the members' distributions into one over the union of their symbols.

    ``linear`` (Stone 1961) averages probabilities: a symbol is likely if *some* member likes it.
    ``log-linear`` (Genest and Zidek 1986) averages log-probabilities and normalises again: a symbol
    is likely if *no* member minds it. A member that gives a symbol the probability zero vetoes it
    there; one whose vocabulary lacks the symbol cannot judge it, and `floor` stands in.

    Parameters
    ----------
    rows
        Logits ``[n_vocab]`` of each member.
    vocabs
        ``(tokens, kinds)`` of each member.
    weights
        One number per member, not all zero; scaled to sum to 1. Zero means absent: the member's
        symbols stay part of the union, but have the probability zero unless others have them too.
    pool
        The operator.
    floor
        Log-probability in nats of a symbol that a member lacks; of ``log-linear`` only.

    Returns
    -------
    dict
        Symbol to log-probability.
    """
    members = [member_logprobs(row, *vocab) for row, vocab in zip(rows, vocabs, strict=True)]
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    present = [(w, member) for w, member in zip(shares, members, strict=True) if w > 0]
    union = dict.fromkeys(symbol for member in members for symbol in member)
    if pool == "linear":
        return {
            symbol: _log_sum_exp([np.log(w) + m[symbol] for w, m in present if symbol in m])
            for symbol in union
        }
    known = {symbol for _, m in present for symbol in m}
    scores = {s: sum(w * m.get(s, floor) for w, m in present) for s in known}
    return dict.fromkeys(union, -np.inf) | _normalised(scores)


def boundary_probability(
    row: ArrayLike, tokens: Sequence[bytes], kinds: Sequence[str], token: int
) -> float:
    """Probability that `token` ends where it does, rather than being the start of a longer token.

    Among the tokens that begin with the bytes of `token`, this is the share of those that spell
    nothing more. A low value says: the member would not have stopped here, so its next row is not
    to be trusted.

    Parameters
    ----------
    row
        Logits ``[n_vocab]`` from *before* `token`.
    tokens, kinds
        The vocabulary.
    token
        Id of a text or byte token.
    """
    logits = np.asarray(row, np.float64)
    covering = [
        logits[i]
        for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in ("text", "byte") and text.startswith(tokens[token])
    ]
    same = [
        logits[i]
        for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in ("text", "byte") and text == tokens[token]
    ]
    return float(np.exp(_log_sum_exp(same) - _log_sum_exp(covering)))


def sample_filter(
    logprobs: ArrayLike,
    *,
    bias: Mapping[int, float] | None = None,
    counts: Mapping[int, int] | None = None,
    repeat_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    top_k: int = 40,
    typical_p: float = 1.0,
    top_p: float = 0.95,
    min_p: float = 0.05,
    temperature: float = 0.8,
) -> tuple[NDArray[np.intp], Floats]:
    """Apply llama.cpp's sampler chain to log-probabilities, which take the place of logits.

    The steps are, in this order: bias, penalties, top-k, typical-p, top-p, min-p, temperature.

    Parameters
    ----------
    logprobs
        Log-probabilities ``[n]``.
    bias
        Index to a number in nats that is added.
    counts
        Index to how often it occurs among the recent symbols, for the penalties.
    repeat_penalty, frequency_penalty, presence_penalty
        No effect at 1, 0 and 0.
    top_k, typical_p, top_p, min_p
        No effect at 0, 1, 1 and 0.
    temperature
        Zero or less leaves the most probable index only, and skips the filters.

    Returns
    -------
    kept : ndarray
        Indices that may still be drawn, most probable first.
    probabilities : ndarray
        Their probabilities, which sum to 1.
    """
    scores = np.array(logprobs, np.float64)
    for index, value in (bias or {}).items():
        scores[index] += value
    for index, count in (counts or {}).items():
        scores[index] *= repeat_penalty if scores[index] <= 0 else 1 / repeat_penalty
        scores[index] -= count * frequency_penalty + (count > 0) * presence_penalty
    kept = np.argsort(-scores, kind="stable")
    kept = kept[scores[kept] > -np.inf]
    if temperature <= 0:
        return kept[:1], np.ones(1)
    if top_k > 0:
        kept = kept[:top_k]
    if typical_p < 1:
        kept = kept[_typical(_softmax(scores[kept]), typical_p)]
    if top_p < 1:
        before = np.cumsum(_softmax(scores[kept])) < top_p
        kept = kept[: 1 + np.count_nonzero(before)]
    if min_p > 0:
        kept = kept[scores[kept] >= scores[kept[0]] + np.log(min_p)]
    return kept, _softmax(scores[kept] / temperature)


def _normalised(scores: Mapping[Symbol, float]) -> dict[Symbol, float]:
    """Shift log-probabilities so that the probabilities sum to 1."""
    total = _log_sum_exp(list(scores.values()))
    if total == -np.inf:
        raise ValueError("every symbol has the probability zero")
    return {symbol: score - total for symbol, score in scores.items()}


def _typical(p: Floats, mass: float) -> NDArray[np.bool_]:
    """Mark what is about as surprising as the distribution on average, until `mass` is exceeded."""
    surprise = -np.log(p)
    order = np.argsort(np.abs(surprise - p @ surprise), kind="stable")
    n_kept = 1 + np.count_nonzero(np.cumsum(p[order]) <= mass)
    return np.isin(np.arange(len(p)), order[:n_kept])


def _softmax(scores: Floats) -> Floats:
    p = np.exp(scores - scores.max())
    return p / p.sum()


def _log_sum_exp(values: Sequence[float]) -> float:
    """Log of the sum of exponentials; -inf of nothing, or of nothing but -inf."""
    top = max(values, default=-np.inf)
    if top == -np.inf:
        return float(top)
    return float(top + np.log(np.sum(np.exp(np.asarray(values) - top))))

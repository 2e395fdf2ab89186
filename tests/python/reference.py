"""A fused step in plain float64 NumPy: the oracle of the tests, and the explanation of the method.

Several language models read the same text. Each one returns a *row* of logits, one number per token
of its own vocabulary. Token ids mean nothing outside that vocabulary, but every token stands for a
byte string, and byte strings are common ground. So a fused step is:

1. turn each row into a distribution over *symbols*, which are byte strings and one END symbol
   (``member_logprobs``);
2. join the distributions into one over the union of their symbols (``pool``);
3. filter and draw from the joint distribution as usual (``sample_filter``).

Members may also be joined byte by byte: see ``byte_reference``.

A vocabulary is given as ``tokens``, the bytes of each id, and ``kinds``, one of

* ``"text"`` and ``"byte"``: the token writes its bytes;
* ``"end"``: the model wants to stop, whatever the token is called;
* ``"control"`` and ``"unused"``: never emitted.

Nothing here is fast. Clarity decides: a symbol is a dictionary key.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal

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
    for logit, symbol in zip(np.asarray(row, np.float64), _symbols(tokens, kinds), strict=True):
        if symbol is not None:
            groups.setdefault(symbol, []).append(logit)
    peak = max(itertools.chain.from_iterable(groups.values()))
    if peak > -np.inf:  # only differences count, and near zero they keep their digits
        groups = {symbol: [logit - peak for logit in logits] for symbol, logits in groups.items()}
    return _normalised({symbol: _log_sum_exp(logits) for symbol, logits in groups.items()})


PoolKind = Literal["linear", "log-linear", "power", "min", "product", "contrast", "consistency"]


def pool(
    rows: Sequence[ArrayLike],
    vocabs: Sequence[tuple[Sequence[bytes], Sequence[str]]],
    weights: Sequence[float],
    *how: Any,
    **options: Any,
) -> dict[Symbol, float]:
    """Join the members' distributions into one over the union of their symbols.

    Parameters
    ----------
    rows
        Logits ``[n_vocab]`` of each member.
    vocabs
        ``(tokens, kinds)`` of each member.
    weights, how, options
        As for `pool_members`.

    Returns
    -------
    dict
        Symbol to log-probability.
    """
    members = [member_logprobs(row, *vocab) for row, vocab in zip(rows, vocabs, strict=True)]
    return pool_members(members, weights, *how, **options)


def pool_members(
    members: Sequence[Mapping[Symbol, float]],
    weights: Sequence[float],
    pool: PoolKind = "linear",
    floor: float = -16.0,
    exponent: float = 0.5,
    plausibility: float = 0.1,
    candidates: Collection[Symbol] | None = None,
) -> dict[Symbol, float]:
    """Do as `pool`, with what `member_logprobs` returns for each member.

    `pool_matrix` says how, for symbols that all members have. One whose vocabulary lacks a symbol
    cannot judge it. In pools that a single probability of zero would veto, `floor` stands in; in a
    contrast, what the base says; everywhere else, the probability zero.

    Parameters
    ----------
    members
        Symbol to log-probability, for each.
    weights
        One number per member. Zero means absent: the member's symbols stay part of the union, but
        have the probability zero unless others have them too.
    pool
        The operator.
    floor
        Log-probability in nats of a symbol that a member lacks.
    exponent, plausibility
        Of ``power`` and ``contrast``.
    candidates
        Symbols to normalise over, and the ones that ``consistency`` looks at; all by default. The
        other symbols are given in the same scale. ``linear`` needs none.

    Returns
    -------
    dict
        Symbol to log-probability.
    """
    known, shares, table = member_table(members, weights, pool, floor, exponent)
    listed = np.array([candidates is None or pool == "linear" or s in candidates for s in known])
    pooled = pool_matrix(table, shares, pool, exponent, plausibility, listed)
    union = itertools.chain.from_iterable(members)
    return dict.fromkeys(union, -np.inf) | dict(zip(known, pooled.tolist(), strict=True))


def member_table(
    members: Sequence[Mapping[Symbol, float]],
    weights: Sequence[float],
    pool: PoolKind,
    floor: float,
    exponent: float,
) -> tuple[list[Symbol], Floats, Floats]:
    """Write what the members present say of all symbols that one of them has into one table.

    Returns
    -------
    symbols : list
        As many as the table has columns.
    weights : ndarray
        Of the members present, as given.
    table : ndarray
        Log-probabilities ``[members present, symbols]``, the missing ones filled in.
    """
    present = [member for member, w in zip(members, weights, strict=True) if w != 0]
    shares = np.array([weight for weight in weights if weight != 0], np.float64)
    known = list(dict.fromkeys(itertools.chain.from_iterable(present)))
    lacking = dict.fromkeys(known, -np.inf)
    if pool in ("log-linear", "min", "product") or (pool == "power" and exponent < 0):
        lacking = dict.fromkeys(known, floor)
    elif pool == "contrast":
        lacking |= present[np.flatnonzero(shares > 0)[0]]
    table = np.array([[member.get(s, lacking[s]) for s in known] for member in present])
    return known, shares, table


def back_off(
    members: Sequence[Mapping[Symbol, float]], union: Collection[Symbol]
) -> list[dict[Symbol, float]]:
    """Rewrite the members' distributions as distributions on a union of symbols (UniTE, mended).

    A member that lacks a symbol uses its longest token that the symbol begins with. What the token
    has is dealt out among the symbols that use it, in proportion to what the other members give
    them on average, as far as these have them.

    Parameters
    ----------
    members
        Those present, as `member_logprobs` returns them.
    union
        The symbols.

    Returns
    -------
    list of dict
        Symbols of the union to log-probabilities, without those that a member cannot begin.
    """
    adapted = []
    own_share = {True: 0.0, False: -np.inf}
    for member in members:
        others = [other for other in members if other is not member]
        users: dict[Symbol, list[Symbol]] = {}
        for symbol in union:
            token: Symbol | None = symbol if symbol in member else None
            if token is None and isinstance(symbol, bytes):
                prefixes = (symbol[:size] for size in range(len(symbol) - 1, 0, -1))
                token = next((prefix for prefix in prefixes if prefix in member), None)
            if token is not None:
                users.setdefault(token, []).append(symbol)
        shared: dict[Symbol, float] = {}
        for token, symbols in users.items():
            means = {}
            for symbol in symbols:
                opinions = [other[symbol] for other in others if symbol in other]
                own = member.get(symbol, -np.inf)
                means[symbol] = _log_mean_exp(opinions) if opinions else own
            total = _log_sum_exp(list(means.values()))
            for symbol in symbols:
                share = means[symbol] - total if total > -np.inf else own_share[symbol == token]
                shared[symbol] = member[token] + share
        adapted.append(_normalised(shared))
    return adapted


def project(
    row: ArrayLike,
    tokens: Sequence[bytes],
    kinds: Sequence[str],
    best: Collection[int],
    projection: Mapping[int, Mapping[Symbol, float]],
) -> dict[Symbol, float]:
    """Return `member_logprobs` plus what some of its tokens lend to other symbols (EVA).

    What they lend stays theirs; no symbol gets beyond the probability 1.

    Parameters
    ----------
    row, tokens, kinds
        As for `member_logprobs`.
    best
        Ids of the tokens that lend.
    projection
        Id to the shares of its probability that symbols are lent.
    """
    logprobs = member_logprobs(row, tokens, kinds)
    logits = np.asarray(row, np.float64)
    total = _log_sum_exp(
        [logits[i] for i, s in enumerate(_symbols(tokens, kinds)) if s is not None]
    )
    lent: dict[Symbol, list[float]] = {symbol: [value] for symbol, value in logprobs.items()}
    for token in best:
        for symbol, share in projection.get(token, {}).items():
            if share > 0:
                lent.setdefault(symbol, []).append(logits[token] - total + np.log(share))
    return {symbol: min(_log_sum_exp(values), 0.0) for symbol, values in lent.items()}


def pool_matrix(
    logprobs: ArrayLike,
    weights: ArrayLike,
    pool: PoolKind = "linear",
    exponent: float = 0.5,
    plausibility: float = 0.1,
    listed: NDArray[np.bool_] | None = None,
) -> Floats:
    """Join distributions over the same symbols.

    ``linear`` (Stone 1961) averages probabilities: a symbol is likely if *some* member likes it.
    ``log-linear`` (Genest and Zidek 1986) averages log-probabilities: a symbol is likely if *no*
    member minds it. ``power`` averages powers of probabilities and takes the root, which leads from
    one to the other. ``min`` takes the smallest probability. ``product`` (Hinton 2002) adds
    log-probabilities up, and ``contrast`` (Li et al. 2022) subtracts some of them, but only among
    the symbols that the first member of positive weight, the base, finds plausible.
    ``consistency`` (CoRE, 2025) trusts members, and what they say of a symbol, less the farther
    they are from the mean, and members more the surer they are.

    Parameters
    ----------
    logprobs
        ``[members, n]`` in nats.
    weights
        One number per member, not zero; scaled to sum to 1 but for ``product`` and ``contrast``.
    pool, exponent, plausibility
        The operator.
    listed
        Mask ``[n]`` of the symbols to normalise over; the others are given in the same scale.

    Returns
    -------
    ndarray
        Log-probabilities ``[n]``.
    """
    table, given = np.asarray(logprobs, np.float64), np.asarray(weights, np.float64)
    mask = np.ones(table.shape[1], bool) if listed is None else listed
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (given / given.sum())[:, None]
        match pool:
            case "linear":
                scores = _power_mean(table, shares, 1)
            case "power":
                scores = _power_mean(table, shares, exponent)
            case "log-linear":
                scores = (shares * table).sum(axis=0)
            case "product":
                scores = (given[:, None] * table).sum(axis=0)
            case "min":
                scores = table.min(axis=0)
            case "contrast":
                scores = _contrast(table, given, plausibility)
            case "consistency":
                scores = _consistency(table, shares, mask)
    total = _log_sum_exp(scores[mask].tolist())
    if total == -np.inf:
        raise ValueError("every symbol has the probability zero")
    return scores - total


def _power_mean(table: Floats, shares: Floats, exponent: float) -> Floats:
    """Log of ``(sum_i w_i p_i^r)^(1/r)``; of a negative exponent, one zero makes it zero."""
    terms = np.log(shares) + exponent * table
    peak = terms.max(axis=0)
    mean = (peak + np.log(np.exp(terms - peak).sum(axis=0))) / exponent
    none = np.isneginf(table)
    return np.where(none.all(axis=0) if exponent > 0 else none.any(axis=0), -np.inf, mean)


def _contrast(table: Floats, weights: Floats, plausibility: float) -> Floats:
    """Signed sum of log-probabilities; what nobody gives cannot be subtracted."""
    base = table[np.flatnonzero(weights > 0)[0]]
    nothing = np.isneginf(table) & (weights < 0)[:, None]
    scores = (weights[:, None] * np.where(nothing, base, table)).sum(axis=0)
    plausible = (base >= base.max() + np.log(plausibility)) & (base > -np.inf)
    return np.where(plausible, scores, -np.inf)


def _consistency(table: Floats, shares: Floats, mask: NDArray[np.bool_]) -> Floats:
    """Log of ``sum_i m_i c_i p_i``."""
    c, m = consistency(table, shares, mask)
    return _power_mean(table + np.log(c), m, 1)


def consistency(
    table: Floats, shares: Floats, mask: NDArray[np.bool_], beta: float = 2
) -> tuple[Floats, Floats]:
    """CoRE's consistency of every symbol in every member, and of the members ``[members, 1]``.

    Means and entropies are taken over the masked symbols to which anybody gives a probability.
    """
    p = np.exp(table)
    distance = np.abs(p - (shares * p).sum(axis=0))
    c = (np.exp(-beta * distance) - np.exp(-beta)) / (1 - np.exp(-beta))
    mask = mask & (table > -np.inf).any(axis=0)
    entropy = -np.where(p > 0, p * table, 0)[:, mask].sum(axis=1, keepdims=True)
    return c, shares * c[:, mask].mean(axis=1, keepdims=True) / np.maximum(entropy, 0.01)


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


def _symbols(tokens: Sequence[bytes], kinds: Sequence[str]) -> list[Symbol | None]:
    """What each token stands for; None for what is never emitted."""
    return [
        END if kind == "end" else token if kind in ("text", "byte") else None
        for token, kind in zip(tokens, kinds, strict=True)
    ]


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


def _log_mean_exp(values: Sequence[float]) -> float:
    return _log_sum_exp(values) - float(np.log(len(values)))


def _log_sum_exp(values: Sequence[float]) -> float:
    """Log of the sum of exponentials; -inf of nothing, or of nothing but -inf."""
    top = max(values, default=-np.inf)
    if top == -np.inf:
        return float(top)
    return float(top + np.log(np.sum(np.exp(np.asarray(values) - top))))

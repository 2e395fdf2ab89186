"""What follows a text byte by byte, in plain float64 NumPy: the oracle of the byte mode.

Vocabularies are given as in ``reference``.  All tokenisations are listed, so texts must be short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from reference import END, Floats, Symbol, member_logprobs

#: Logits after a sequence of tokens.
RowOf = Callable[[tuple[int, ...]], ArrayLike]


def next_byte(
    rows: RowOf, tokens: Sequence[bytes], kinds: Sequence[str], text: bytes
) -> tuple[Floats, float]:
    """What follows a text, whatever tokens spell it: a sum over *all* its tokenisations.

    A sequence of tokens *covers* a text if it spells it, perhaps with more bytes behind it, and
    needs its last token for that.  Every endless sequence of tokens that spells the text begins
    with exactly one covering sequence, so the probability of the text is the sum of theirs.

    Parameters
    ----------
    rows
        Logits after a sequence of tokens.  Of tokens with equal bytes it sees the first text token.
    tokens, kinds
        The vocabulary.
    text
        Few bytes: the number of tokenisations is exponential in them.

    Returns
    -------
    conditional
        ``[257]``: probability of each next byte, and of the end; zeros if the text cannot be.
    probability
        Of the text, P(text).
    """
    canonical = _canonical(tokens, kinds)
    joint = np.zeros(257)  # P(text + byte), P(text, end)

    def walk(path: tuple[int, ...], spelled: bytes, p: float) -> None:
        for symbol, logprob in member_logprobs(rows(path), tokens, kinds).items():
            q = p * float(np.exp(logprob))
            if isinstance(symbol, str):
                joint[256] += q * (spelled == text)
                continue
            longer = spelled + symbol
            if q == 0:
                continue
            if len(longer) > len(text) and longer.startswith(text):
                joint[longer[len(text)]] += q
            elif text.startswith(longer):
                walk((*path, canonical[symbol]), longer, q)

    walk((), b"", 1.0)
    total = float(joint.sum())
    return (joint / total if total > 0 else joint), total


def ends_here(rows: RowOf, tokens: Sequence[bytes], kinds: Sequence[str], text: bytes) -> float:
    """Share of a text's probability that belongs to tokenisations with a token that ends there."""
    canonical = _canonical(tokens, kinds)

    def walk(path: tuple[int, ...], spelled: bytes, p: float) -> float:
        if spelled == text:
            return p
        return sum(
            walk((*path, canonical[symbol]), spelled + symbol, p * float(np.exp(logprob)))
            for symbol, logprob in member_logprobs(rows(path), tokens, kinds).items()
            if isinstance(symbol, bytes) and text.startswith(spelled + symbol)
        )

    return walk((), b"", 1.0) / next_byte(rows, tokens, kinds, text)[1]


def pooled_units(
    members: Sequence[tuple[RowOf, Sequence[bytes], Sequence[str]]],
    weights: Sequence[float],
    text: bytes,
    per: Literal["byte", "unit"],
    allowed: Callable[[bytes, Symbol], bool] = lambda _text, _outcome: True,
) -> dict[Symbol, float]:
    """Pooled probabilities of all units behind a text.

    A unit is the string up to the first place where some member may have a token that ends.

    Parameters
    ----------
    members
        Rows and vocabulary of each.
    weights
        One number each, none negative.
    text
        What all have read.
    per
        ``byte``: the weights are those of next-byte distributions, the same at every byte.
        ``unit``: of the distributions of whole units, a mixture of products.
    allowed
        Whether a text may go on with a byte or the end; the other outcomes share its probability.
    """
    present = [(member, weight) for member, weight in zip(members, weights, strict=True) if weight]
    units: dict[Symbol, float] = {}

    def walk(unit: bytes, p: float, masses: list[float]) -> None:
        table = []
        for member, _ in present:
            row, _ = next_byte(*member, text + unit)
            for byte in range(257):
                outcome = END if byte == 256 else bytes([byte])
                if (byte == 256 and unit) or not allowed(text + unit, outcome):
                    row[byte] = 0
            table.append(row / row.sum() if row.sum() > 0 else row)
        shares = [
            w * (m if per == "unit" else 1) for (_, w), m in zip(present, masses, strict=True)
        ]
        pooled = np.asarray(shares) @ np.asarray(table)
        for byte in np.flatnonzero(pooled):
            q = p * pooled[byte] / pooled.sum()
            if byte == 256:
                units[END] = q
                continue
            longer = unit + bytes([byte])
            after = [mass * row[byte] for mass, row in zip(masses, table, strict=True)]
            can = [m for (m, _), mass in zip(present, after, strict=True) if mass > 0]
            if any(ends_here(*member, text + longer) > 0 for member in can):
                units[longer] = q
            else:
                walk(longer, q, after)

    walk(b"", 1.0, [1.0] * len(present))
    return units


def _canonical(tokens: Sequence[bytes], kinds: Sequence[str]) -> dict[bytes, int]:
    """The token that stands for each string: a text token before a byte token, then the first."""
    spelling = [i for i, kind in enumerate(kinds) if kind in ("text", "byte")]
    order = sorted(spelling, key=lambda i: (kinds[i] == "text", -i))
    return {tokens[i]: i for i in order}

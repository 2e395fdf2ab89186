"""The importable merger: rows of logits in, one distribution out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from logitfuse import _core
from logitfuse.alignment import Alignment
from logitfuse.errors import ConfigError, FusionError

PoolName: TypeAlias = Literal[
    "linear", "log-linear", "power", "min", "product", "contrast", "consistency"
]
POOLS: tuple[PoolName, ...] = get_args(PoolName)

#: What stands in for a member without a twin where the pool cannot do without, nats (1.1e-7).
FLOOR = -16.0
#: Of the power pool: half-way between the log-linear (0) and the linear one (1).
EXPONENT = 0.5
#: Of the contrast: the least share of the base's best probability (Li et al., 2210.15097).
PLAUSIBILITY = 0.1
#: Candidates per member.
TOP = 64


@dataclass(frozen=True)
class PoolOptions:
    """A pool and its parameters, as for `fuse`.

    Attributes
    ----------
    kind : str
        A name in `POOLS`.
    floor : float
    exponent : float
    plausibility : float
    union_top : int
    """

    kind: PoolName = "linear"
    floor: float = FLOOR
    exponent: float = EXPONENT
    plausibility: float = PLAUSIBILITY
    union_top: int = 0

    @property
    def takes_shares(self) -> bool:
        """Weights are shares of 1; else they are factors, taken as given."""
        return self.kind not in ("product", "contrast")

    def require_shares(self) -> None:
        """Refuse weights that change: those of this pool may have no sum to keep.

        Raises
        ------
        ConfigError
        """
        if not self.takes_shares:
            raise ConfigError(
                f"the {self.kind} pool takes weights as given; nothing can learn them",
                key="weighting",
            )

    def native(self, alignment: Alignment) -> _core.Pool:
        """A native pool of its own.

        Raises
        ------
        FusionError
            A parameter is out of range.
        """
        return _core.Pool(
            alignment._core,
            self.kind,
            self.floor,
            self.exponent,
            self.plausibility,
            self.union_top,
        )


@dataclass(frozen=True)
class Fused:
    """One fused step: the best symbols and what every member thinks of them.

    Attributes
    ----------
    ids : int32 array, shape ``[n]``
        Symbols of the alignment, most probable first (equal ones: lower symbol first); symbols of
        probability 0 are left out.
    logprobs : float32 array, shape ``[n]``
        Pooled log-probabilities, nats, descending.
    member_logprobs : float32 array, shape ``[n_members, n]``
        Each member's own; -inf where it has no twin, NaN for members of weight 0.
    outside : float
        No symbol that is not listed has a larger pooled log-probability, nats.  +inf: the list of
        a contrast is too short to tell.
    alignment : Alignment
        What the ids mean.
    dense : float32 array, shape ``[len(alignment)]``, or None
        The whole row, on request; -inf for what cannot be emitted.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    member_logprobs: NDArray[np.float32]
    outside: float
    alignment: Alignment
    dense: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def token_bytes(self, i: int) -> bytes:
        """Bytes of the i-th best symbol; empty if it is the end."""
        return self.alignment.symbol_bytes(int(self.ids[i]))


def fuse(
    rows: Sequence[Any],
    alignment: Alignment,
    *,
    weights: Sequence[float] | None = None,
    pool: PoolName = "linear",
    top: int | None = TOP,
    floor: float = FLOOR,
    exponent: float = EXPONENT,
    plausibility: float = PLAUSIBILITY,
    union_top: int = 0,
    dense: bool = False,
) -> Fused:
    """Merge N members' next-token logits into one distribution over byte strings.

    Parameters
    ----------
    rows : sequence of float32 arrays, row i of shape ``[len(alignment.vocabs[i])]``
        Logits, C-contiguous: NumPy arrays or anything with a buffer or DLPack.  -inf forbids a
        token.  None is allowed for a member of weight 0.
    alignment : Alignment
        From `align`.
    weights : sequence of float, optional
        One per member, 1 by default; 0: absent.  Not negative, not all zero, and normalised to sum
        1, but taken as given by ``product`` and ``contrast``; of a contrast they may be negative.
    pool : {"linear", "log-linear", "power", "min", "product", "contrast", "consistency"}
        See the notes.
    top : int or None
        Candidates: the symbols among this many best tokens of any member, and the end.  Each is
        scored by all members with its exact log-probability.  None: all symbols.
    floor : float
        Nats; what a member without a twin says in the pools that would take 0 for a veto.
    exponent : float
        Of ``power``; at least 0.001 away from 0.
    plausibility : float
        Of ``contrast``; in (0, 1].
    union_top : int
        Instead of `top`, unless 0: the support is the union of the symbols among this many best
        tokens of every member, and the end.  See the notes.
    dense : bool
        Also give the whole union row.

    Returns
    -------
    Fused
        linear: exact log-probabilities.  All others: normalised over the candidates (over the
        whole union in `Fused.dense`, or with ``top=None``).  Within 5e-7 nats of float64, absolute
        plus relative to the log-probabilities that are added up (power: times ``1 / |exponent|``
        below 1; consistency: 1e-4 and less, as it divides by differences and entropies), and
        bit-identical on every instruction set (tests/python/test_fuse.py).  Dense linear
        probabilities are right to 1.2e-38, and -inf stands for the smaller ones.

    Raises
    ------
    TypeError
        A row is not a C-contiguous float32 array.
    FusionError
        Wrong number or length of rows, NaN, +inf or only -inf in a row, bad weights or options,
        unknown pool, members that exclude each other.

    Notes
    -----
    With the members' distributions ``p_i`` and weights ``w_i``; a member that has no twin of s
    contributes what is said last.

    ``linear``: ``p(s) = sum_i w_i p_i(s)``; 0.  Nobody vetoes.  Stone, "The opinion pool", Ann.
    Math. Statist. 32 (1961).

    ``log-linear``: ``p(s) ∝ prod_i p_i(s)^w_i``; ``exp(floor)``: it doubts, but cannot veto what it
    cannot spell, while a probability of 0 vetoes.  Genest & Zidek, "Combining probability
    distributions", Statist. Sci. 1 (1986).  Of an equal pair it is the KL optimum of CP-Delta,
    ``sqrt(p_1 p_2)``; the reverse KL of MOD (arXiv 2406.18853).

    ``power``: ``p(s) ∝ (sum_i w_i p_i(s)^r)^(1/r)`` with ``r = exponent``: 1 is linear, towards 0
    log-linear, -1 the harmonic mean, MOD's forward KL (its alpha is ``-r``).  r > 0: 0, nobody
    vetoes.  r < 0: ``exp(floor)``, and a probability of 0 vetoes.

    ``min``: ``p(s) ∝ min_i p_i(s)``, whatever the weights of those present; ``exp(floor)``.  Every
    member vetoes.  CP-Delta's optimum of the max-divergence; see arXiv 2402.14845.

    ``product``: ``p(s) ∝ prod_i p_i(s)^w_i`` with the weights as given; ``exp(floor)``.  As
    log-linear, but every further member sharpens.  Hinton, "Training products of experts by
    minimizing contrastive divergence", Neural Comput. 14 (2002).

    ``contrast``: ``p(s) ∝ prod_i p_i(s)^w_i`` with signed weights as given, on the symbols with
    ``p_b(s) >= plausibility * max p_b``, where the base b is the first member of positive weight.
    The base's own probability stands in: no contrast; so it does where a member of negative weight
    gives 0.  The base vetoes what it finds implausible, and a positive member by a probability of
    0.  Contrastive decoding (arXiv 2210.15097): base 1, amateur -c.  DExperts, proxy tuning (arXiv
    2401.08565): base 1, expert a, anti-expert -a.  DeRa (arXiv 2402.02992): 1 - lambda, lambda.

    ``consistency``: ``p(s) ∝ sum_i m_i c_i(s) p_i(s)``; 0.  Nobody vetoes, but who is far off the
    mean counts little: with ``d = |p_i - sum_j w_j p_j|`` the consistency of a symbol is
    ``c_i = (exp(-2 d) - exp(-2)) / (1 - exp(-2))``, of a member ``m_i = w_i mean(c_i) / H(p_i)``,
    mean and entropy H (0.01 nats at least) over the candidates to which anybody gives a
    probability, so that longer lists shift it a little.  CoRE (arXiv 2510.13855) without its main
    model: there is none to be kept at half of the weight, nobody's symbols are mapped to its
    vocabulary, and where a member has no twin its 0 is compared with the mean too.

    With `union_top` (UniTE, arXiv 2410.03777) every member's distribution is normalised on the
    union, and a member without a twin of s backs off to its longest token that is a proper prefix
    of s.  What such a token has is shared by its own symbol, if listed, and all that back off to
    it, in proportion to the mean probability that those other members give them who have twins
    (if nobody has one of its own symbol: that which the token has itself).  UniTE gives each of
    them the whole, so that it counts several times.  `Fused.member_logprobs` are not changed.
    """
    native = _native_pool(alignment, pool, floor, exponent, plausibility, union_top)
    arrays = [_as_array(row) for row in rows]  # alive as long as the core reads them
    native.read(arrays, _weights(weights, alignment))
    full = np.empty(len(alignment), np.float32) if dense else None
    if full is not None:
        native.dense(full)
    return _wrap(native.candidates(_top(top)), alignment, full)


def fuse_batch(
    rows: Sequence[Any],
    alignment: Alignment,
    *,
    weights: Sequence[float] | None = None,
    pool: PoolName = "linear",
    top: int | None = TOP,
    floor: float = FLOOR,
    exponent: float = EXPONENT,
    plausibility: float = PLAUSIBILITY,
    union_top: int = 0,
    dense: bool = False,
) -> list[Fused]:
    """`fuse` for many steps in one native call that holds no GIL.

    Parameters
    ----------
    rows : sequence of float32 arrays, array i of shape ``[n_steps, len(alignment.vocabs[i])]``
        As for `fuse`, C-contiguous.
    alignment, weights, pool, top, floor, exponent, plausibility, union_top, dense
        As for `fuse`.

    Returns
    -------
    list of Fused, one per step
    """
    native = _native_pool(alignment, pool, floor, exponent, plausibility, union_top)
    blocks = [_as_array(row) for row in rows]
    full = None
    if dense and blocks and blocks[0].ndim == 2:
        full = np.empty((blocks[0].shape[0], len(alignment)), np.float32)
    steps = native.fuse_steps(blocks, _weights(weights, alignment), _top(top), full)
    return [
        _wrap(step, alignment, None if full is None else full[k]) for k, step in enumerate(steps)
    ]


def pool_matrix(
    member_logprobs: NDArray[np.float32],
    weights: Sequence[float] | None = None,
    pool: PoolName = "linear",
    *,
    floor: float = FLOOR,
    exponent: float = EXPONENT,
    plausibility: float = PLAUSIBILITY,
) -> NDArray[np.float32]:
    """Merge distributions over one small alphabet that all members share, such as the bytes.

    Parameters
    ----------
    member_logprobs : float32 array, shape ``[n_members, n]``
        Nats, C-contiguous; -inf is probability 0, a row of NaN is an absent member.
    weights, pool, exponent, plausibility
        As for `fuse`.
    floor : float
        As for `fuse`, though here nobody lacks a symbol.

    Returns
    -------
    float32 array, shape ``[n]``
        Pooled log-probabilities, nats, normalised.

    Raises
    ------
    TypeError
        Not a C-contiguous float32 array.
    FusionError
        Bad shape, weights or options, NaN in part of a row, log-probabilities above 0, nobody
        present, members that exclude each other.
    """
    given = [1.0] * len(member_logprobs) if weights is None else [float(w) for w in weights]
    return _core.pool_matrix(pool, floor, exponent, plausibility, given, member_logprobs)


class _Pools(threading.local):
    """One native pool (it owns a workspace) per thread, alignment and options."""

    def __init__(self) -> None:
        self.known: WeakKeyDictionary[Alignment, dict[tuple[Any, ...], _core.Pool]]
        self.known = WeakKeyDictionary()


_pools = _Pools()


def _native_pool(alignment: Alignment, *options: Any) -> _core.Pool:
    known = _pools.known.setdefault(alignment, {})
    if options not in known:
        known[options] = _core.Pool(alignment._core, *options)
    return known[options]


def _weights(weights: Sequence[float] | None, alignment: Alignment) -> list[float]:
    if weights is None:
        return [1.0] * len(alignment.vocabs)
    return [float(weight) for weight in weights]


def _top(top: int | None) -> int:
    if top is None:
        return _core.ALL
    if top < 1:
        raise FusionError(f"top must be at least 1 (or None for all symbols), not {top}")
    return min(top, _core.ALL)


def _as_array(row: Any) -> Any:
    if row is None or isinstance(row, np.ndarray):
        return row
    if hasattr(row, "__dlpack__"):
        return np.from_dlpack(row)
    try:
        return np.asarray(memoryview(row))
    except TypeError:
        return row  # the core says which member's it is


def _wrap(fused: _core.Fused, alignment: Alignment, dense: NDArray[np.float32] | None) -> Fused:
    return Fused(
        fused.symbols, fused.logprobs, fused.member_logprobs, fused.outside, alignment, dense
    )

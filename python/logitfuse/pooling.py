"""The importable merger: rows of logits in, one distribution out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from logitfuse import _core
from logitfuse.alignment import Alignment
from logitfuse.errors import FusionError

PoolName: TypeAlias = Literal["linear", "log-linear"]
POOLS: tuple[PoolName, ...] = ("linear", "log-linear")

#: What a member without a twin contributes to the log-linear pool, nats (probability 1.1e-7).
FLOOR = -16.0
#: Candidates per member.
TOP = 64


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
        No symbol that is not listed has a larger pooled log-probability, nats.
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
        Non-negative, not all zero; normalised to sum 1.  Equal by default.  0: absent.
    pool : {"linear", "log-linear"}
        linear: ``p(s) = sum_i w_i p_i(s)``, a member without a twin of s contributes 0.
        log-linear: ``p(s) ∝ prod_i p_i(s)^w_i``, a member without a twin contributes
        ``exp(floor)``: it doubts, but cannot veto what it cannot spell.
    top : int or None
        Candidates: the symbols among this many best tokens of any member, and the end.  Each is
        scored by all members with its exact log-probability.  None: all symbols.
    floor : float
        Nats; log-linear only.
    dense : bool
        Also give the whole union row.

    Returns
    -------
    Fused
        linear: exact log-probabilities.  log-linear: normalised over the candidates (over the
        whole union in `Fused.dense`, or with ``top=None``).  Within 5e-7 nats of float64, absolute
        plus relative (log-linear: to the log-probabilities that it averages), and bit-identical on
        every instruction set (tests/python/test_fuse.py).  Dense linear probabilities are right to
        1.2e-38, and -inf stands for the smaller ones.

    Raises
    ------
    TypeError
        A row is not a C-contiguous float32 array.
    FusionError
        Wrong number or length of rows, NaN, +inf or only -inf in a row, bad weights, unknown pool.

    Notes
    -----
    Linear opinion pool: Stone, "The opinion pool", Ann. Math. Statist. 32 (1961).  Logarithmic
    pool: Genest & Zidek, "Combining probability distributions", Statist. Sci. 1 (1986).
    """
    native = _native_pool(alignment, pool, floor)
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
    dense: bool = False,
) -> list[Fused]:
    """`fuse` for many steps in one native call that holds no GIL.

    Parameters
    ----------
    rows : sequence of float32 arrays, array i of shape ``[n_steps, len(alignment.vocabs[i])]``
        As for `fuse`, C-contiguous.
    alignment, weights, pool, top, floor, dense
        As for `fuse`.

    Returns
    -------
    list of Fused, one per step
    """
    native = _native_pool(alignment, pool, floor)
    blocks = [_as_array(row) for row in rows]
    full = None
    if dense and blocks and blocks[0].ndim == 2:
        full = np.empty((blocks[0].shape[0], len(alignment)), np.float32)
    steps = native.fuse_steps(blocks, _weights(weights, alignment), _top(top), full)
    return [
        _wrap(step, alignment, None if full is None else full[k]) for k, step in enumerate(steps)
    ]


class _Pools(threading.local):
    """One native pool (it owns a workspace) per thread, alignment and kind."""

    def __init__(self) -> None:
        self.known: WeakKeyDictionary[Alignment, dict[tuple[str, float], _core.Pool]]
        self.known = WeakKeyDictionary()


_pools = _Pools()


def _native_pool(alignment: Alignment, pool: str, floor: float) -> _core.Pool:
    known = _pools.known.setdefault(alignment, {})
    key = (pool, floor)
    if key not in known:
        known[key] = _core.Pool(alignment._core, pool, floor)
    return known[key]


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

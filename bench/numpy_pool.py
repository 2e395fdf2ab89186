"""The linear pool as one would write it in NumPy: what the core is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from logitfuse.alignment import Alignment
from numpy.typing import DTypeLike, NDArray


class NumpyPool:
    """A dense union row: softmax, scatter through int maps, log, sort.

    Parameters
    ----------
    alignment : Alignment
        Gives the maps, made once.
    dtype : dtype
        Of all arithmetic.
    partition : bool
        Find the best by `argpartition` instead of sorting the whole union.
    """

    def __init__(
        self, alignment: Alignment, dtype: DTypeLike = np.float64, *, partition: bool = False
    ) -> None:
        self.size = len(alignment)
        self.dtype = np.dtype(dtype)
        self.partition = partition
        self.maps = []  # token ids that can be emitted, and their symbols
        for member in range(len(alignment.vocabs)):
            to_symbol = alignment.to_symbol(member)
            assert to_symbol is not None
            tokens = np.flatnonzero(to_symbol >= 0)
            self.maps.append((tokens, to_symbol[tokens]))

    def fuse(
        self, rows: Sequence[NDArray[np.float32]], weights: Sequence[float], top: int
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
        """The best symbols and their log-probabilities, best first."""
        union = np.zeros(self.size, self.dtype)
        for row, weight, (tokens, symbols) in zip(rows, weights, self.maps, strict=True):
            logits = row[tokens].astype(self.dtype)
            p = np.exp(logits - logits.max())
            p *= weight / p.sum()
            np.add.at(union, symbols, p)
        with np.errstate(divide="ignore"):
            logprobs = np.log(union)
        if self.partition:
            best = np.argpartition(-logprobs, top)[:top]
            best = best[np.argsort(-logprobs[best])]
        else:
            best = np.argsort(-logprobs)[:top]
        return best.astype(np.int32), logprobs[best]

"""A fused step as one would tune it in NumPy and in PyTorch: what the core is compared with.

Both in float32, with buffers and index maps made beforehand, in two ways: ``union`` writes the
pooled distribution over the whole union of symbols, gathered member by member (faster than
scattering it), and takes the best of it; ``candidates`` does as the core does, and scores only the
symbols among any member's best tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from logitfuse.alignment import Alignment
from logitfuse.pooling import FLOOR
from numpy.typing import NDArray

try:
    import torch
except ModuleNotFoundError:  # a row of the tables only where it is installed
    torch = None  # type: ignore[assignment]

Way = Literal["union", "candidates"]
Rows = Sequence[NDArray[np.float32]]
#: Symbols and their log-probabilities, best first.
Best = tuple[NDArray[Any], NDArray[Any]]


class Maps:
    """How the tokens of one member become symbols.

    Attributes
    ----------
    size : int
        Tokens.
    hidden : int64 array
        Tokens that are never emitted.
    twins, group, first : int64 array
        Tokens that spell what an earlier one does; the place in `first` of that earlier one.
    to_token : int64 array, shape ``[n_symbols]``, or None
        The token of every symbol, `size` where there is none; None where symbols are tokens.
    to_symbol : int64 array, shape ``[size]``, or None
    """

    def __init__(self, alignment: Alignment, member: int) -> None:
        self.size = len(alignment.vocabs[member])
        symbols = symbols_of(alignment, member)
        to_token = alignment.to_token(member)
        tokens = symbols if to_token is None else to_token[symbols].astype(np.int64)
        self.hidden = np.flatnonzero(symbols < 0)
        self.twins = np.flatnonzero((symbols >= 0) & (tokens != np.arange(self.size)))
        self.first, self.group = np.unique(tokens[self.twins], return_inverse=True)
        self.to_symbol = None if to_token is None else symbols
        self.to_token = None
        if to_token is not None:
            self.to_token = np.where(to_token < 0, self.size, to_token).astype(np.int64)


def symbols_of(alignment: Alignment, member: int) -> NDArray[np.int64]:
    """Symbol of every token, -1 for none, shape ``[n_tokens]``; also where there are no maps."""
    found = alignment.to_symbol(member)
    if found is None:
        tokens = range(len(alignment.vocabs[member]))
        found = np.array([alignment._core.symbol(member, token) for token in tokens])
    return found.astype(np.int64)


class NumpyBaseline:
    """One step in NumPy.

    Parameters
    ----------
    alignment : Alignment
    maps : sequence of Maps
        Of all members.
    pool : {"linear", "log-linear"}
    way : {"union", "candidates"}
    """

    def __init__(self, alignment: Alignment, maps: Sequence[Maps], pool: str, way: Way) -> None:
        self.linear = pool == "linear"
        self.way = way
        self.maps = maps
        self._lacking = -np.inf if self.linear else FLOOR
        self._end = np.array([] if alignment.end is None else [alignment.end], np.int64)
        # One place more than there are tokens: what a symbol without a token is mapped to.
        self._rows = [np.empty(maps.size + 1, np.float32) for maps in self.maps]
        self._powers = np.empty(max(maps.size for maps in self.maps), np.float32)
        self._union, self._part = np.empty((2, len(alignment)), np.float32)

    def best(self, rows: Rows, weights: Sequence[float], top: int) -> Best:
        """The best symbols; log-linear: normalised over them."""
        if self.way == "candidates":
            symbols, scores = self._candidates(rows, weights, top)
        else:
            union = self._pooled(rows, weights)
            symbols = np.argpartition(union, -top)[-top:]
            scores = np.log(union[symbols]) if self.linear else union[symbols]
        order = np.argsort(-scores)[:top]
        symbols, scores = symbols[order], scores[order]
        if not self.linear:
            scores -= scores[0]  # near zero they keep their digits
            scores -= np.log(np.exp(scores).sum())
        return symbols, scores

    def draw(self, rows: Rows, weights: Sequence[float], place: float) -> int:
        """The symbol at a place from 0 to 1 of the linear pool."""
        sums = np.cumsum(self._pooled(rows, weights), out=self._part)
        return int(np.searchsorted(sums, np.float32(place) * sums[-1], "right"))

    def _pooled(self, rows: Rows, weights: Sequence[float]) -> NDArray[np.float32]:
        """Probabilities of all symbols (linear), or their logs up to a constant."""
        for m, (maps, row, weight) in enumerate(zip(self.maps, rows, weights, strict=True)):
            if self.linear:
                said = self._probabilities(m, row, weight)
            else:
                said, _ = self._logits(m, row)
                said *= np.float32(weight)
            part = self._part if m else self._union
            if maps.to_token is None:
                np.copyto(part, said[:-1])
            else:
                np.take(said, maps.to_token, out=part, mode="clip")
            if m:
                self._union += part
        return self._union

    def _copy(self, m: int, row: NDArray[np.float32]) -> NDArray[np.float32]:
        own = self._rows[m]
        np.copyto(own[:-1], row)
        own[self.maps[m].hidden] = own[-1] = -np.inf
        return own

    def _probabilities(
        self, m: int, row: NDArray[np.float32], weight: float
    ) -> NDArray[np.float32]:
        own, maps = self._copy(m, row), self.maps[m]
        own -= own.max()
        np.exp(own, out=own)
        own *= np.float32(weight) / own.sum()
        np.add.at(own, maps.first[maps.group], own[maps.twins])
        own[maps.twins] = 0
        return own

    def _logits(self, m: int, row: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
        """A row with one place more, and its log-sum-exp."""
        own, maps = self._copy(m, row), self.maps[m]
        peak = own.max()
        powers = np.subtract(own[:-1], peak, out=self._powers[: maps.size])
        np.exp(powers, out=powers)
        total = float(peak + np.log(powers.sum()))
        if len(maps.twins):
            summed = powers[maps.first]
            np.add.at(summed, maps.group, powers[maps.twins])
            own[maps.first] = np.log(summed) + peak
            own[maps.twins] = -np.inf
        own[-1] = self._lacking + total
        return own, total

    def _candidates(self, rows: Rows, weights: Sequence[float], top: int) -> Best:
        said = [self._logits(m, row) for m, row in enumerate(rows)]
        listed = [self._end]
        for maps, (own, _) in zip(self.maps, said, strict=True):
            tokens = np.argpartition(own[:-1], -top)[-top:]
            listed.append(tokens if maps.to_symbol is None else maps.to_symbol[tokens])
        symbols = np.unique(np.concatenate(listed))
        table = np.empty((len(rows), len(symbols)), np.float32)
        for logprobs, maps, (own, total) in zip(table, self.maps, said, strict=True):
            tokens = symbols if maps.to_token is None else maps.to_token[symbols]
            np.subtract(own[tokens], np.float32(total), out=logprobs)
        shares = np.asarray(weights, np.float32)
        if not self.linear:
            return symbols, shares @ table
        with np.errstate(divide="ignore"):
            return symbols, np.log(shares @ np.exp(table))


class TorchBaseline:
    """One step in PyTorch on the CPU; parameters and methods as of `NumpyBaseline`."""

    def __init__(self, alignment: Alignment, maps: Sequence[Maps], pool: str, way: Way) -> None:
        self.linear = pool == "linear"
        self.way = way
        self.maps = [SimpleNamespace(**{k: _tensor(v) for k, v in vars(m).items()}) for m in maps]
        self._lacking = -float("inf") if self.linear else FLOOR
        self._end = torch.tensor([] if alignment.end is None else [alignment.end]).long()
        self._rows = [torch.empty(maps.size + 1) for maps in self.maps]
        self._union, self._part = torch.empty(2, len(alignment))

    def best(self, rows: Rows, weights: Sequence[float], top: int) -> Best:
        """The best symbols; log-linear: normalised over them."""
        with torch.inference_mode():
            if self.way == "candidates":
                listed, scores = self._candidates(rows, weights, top)
                scores, order = torch.topk(scores, min(top, len(scores)))
                symbols = listed[order]
            else:
                scores, symbols = torch.topk(self._pooled(rows, weights), top)
                scores = scores.log() if self.linear else scores
            if not self.linear:
                scores = torch.log_softmax(scores, 0)
            return symbols.numpy(), scores.numpy()

    def draw(self, rows: Rows, weights: Sequence[float], place: float) -> int:
        """The symbol at a place from 0 to 1 of the linear pool."""
        with torch.inference_mode():
            sums = torch.cumsum(self._pooled(rows, weights), 0, out=self._part)
            return int(torch.searchsorted(sums, place * sums[-1], right=True))

    def _pooled(self, rows: Rows, weights: Sequence[float]) -> Any:
        for m, (maps, row, weight) in enumerate(zip(self.maps, rows, weights, strict=True)):
            said = self._probabilities(m, row) if self.linear else self._logits(m, row)[0]
            part = said[:-1]
            if maps.to_token is not None:
                part = torch.index_select(said, 0, maps.to_token, out=self._part)
            if m:
                self._union.add_(part, alpha=weight)
            else:
                torch.mul(part, weight, out=self._union)
        return self._union

    def _copy(self, m: int, row: NDArray[np.float32]) -> Any:
        own = self._rows[m]
        own[:-1] = torch.from_numpy(row)
        own[self.maps[m].hidden] = -float("inf")
        return own

    def _probabilities(self, m: int, row: NDArray[np.float32]) -> Any:
        own, maps = self._copy(m, row), self.maps[m]
        torch.softmax(own[:-1], 0, out=own[:-1])
        own.index_add_(0, maps.first[maps.group], own[maps.twins])
        own[maps.twins] = own[-1] = 0
        return own

    def _logits(self, m: int, row: NDArray[np.float32]) -> tuple[Any, Any]:
        own, maps = self._copy(m, row), self.maps[m]
        total = torch.logsumexp(own[:-1], 0)
        if len(maps.twins):
            summed = (own[maps.first] - total).exp()
            summed.index_add_(0, maps.group, (own[maps.twins] - total).exp())
            own[maps.first] = summed.log() + total
            own[maps.twins] = -float("inf")
        own[-1] = self._lacking + total
        return own, total

    def _candidates(self, rows: Rows, weights: Sequence[float], top: int) -> tuple[Any, Any]:
        said = [self._logits(m, row) for m, row in enumerate(rows)]
        listed = [self._end]
        for maps, (own, _) in zip(self.maps, said, strict=True):
            tokens = torch.topk(own[:-1], top, sorted=False).indices
            listed.append(tokens if maps.to_symbol is None else maps.to_symbol[tokens])
        symbols = torch.unique(torch.cat(listed))
        table = torch.stack(
            [
                own[symbols if maps.to_token is None else maps.to_token[symbols]] - total
                for maps, (own, total) in zip(self.maps, said, strict=True)
            ]
        )
        shares = torch.tensor(weights, dtype=torch.float32)
        return symbols, (shares @ table.exp()).log() if self.linear else shares @ table


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

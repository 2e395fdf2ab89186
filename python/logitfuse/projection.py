"""Tokens without a byte twin, placed among another vocabulary's tokens by their embeddings.

A member's token that the *pivot* member cannot spell with one token is replaced by a few of the
pivot's tokens that mean the like, with weights that sum to 1: the vocabulary alignment of EVA (Xu,
Lu & Zhang, NAACL 2024), from the token embeddings in the model files.  The two embedding spaces
are joined on their byte twins by an orthogonal (Procrustes) map between the whitened spaces, whose
directions count by how well they correlate (Artetxe, Labaka & Agirre, AAAI 2018); the nearest
tokens are found by cosine, less for those that are near to everything (CSLS; Conneau et al., ICLR
2018).

On 1000 held-out twins of the demo models (``python bench/projection.py``) the nearest token is the
true twin in 94 % (SmolLM2 to Gemma 3) and 96 %, and one of the ten nearest is in 99 %.  A plain
orthogonal map finds 87 % and 86 %, the relative representations of DeePEn (cosines to 300 anchors;
Huang et al., NeurIPS 2024) 9 % and 14 %.  Twins are common words: rarer tokens may fare worse.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from logitfuse.alignment import Alignment, align
from logitfuse.errors import FusionError, VocabError
from logitfuse.vocab import TokenKind, Vocab

if TYPE_CHECKING:
    from logitfuse.member import Member

Progress = Callable[[int, int], object]
Floats = NDArray[np.float32]

#: Directions of the common space.  More cost time and, on held-out twins, find no more.
_DIMENSIONS = 128
#: Twins that the map is learned on, at least and at most.
_MIN_ANCHORS, _MAX_ANCHORS = 100, 20_000
#: Twins that say how near a token is to everything, and how many of them count (CSLS).
_SAMPLE, _NEAR = 2000, 10
#: Weights are ``exp(_SHARPNESS * score)``: of 5, 10, 15, 20, 30 and 40 the least surprised by
#: held-out twins, in both directions of the demo models.
_SHARPNESS = 30.0
#: Most similarities held at a time (4 bytes each), and most rows of a table read at a time.
_SCORES, _ROWS = 1 << 24, 8192
#: The best of so many groups of tokens hold the nearest ones: a maximum costs less than a sort.
_GROUPS = 1024
_MAX_NEIGHBOURS = 100

_FORMAT = 1
_KEPT = 32  # projections in the cache


class Table(Protocol):
    """Embeddings by token: an array ``[n_tokens, width]``, or a tensor of a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: NDArray[np.int64], /) -> Floats: ...


@dataclass(frozen=True)
class Projection:
    """What tokens of a member mean in the pivot's tokens.

    Attributes
    ----------
    offsets : int64 array, shape ``[n_tokens + 1]``
        Token ``t`` of the member has entries ``offsets[t]`` up to ``offsets[t + 1]``, the heaviest
        first; none where it has a byte twin, is no text, or resembles nothing.
    tokens : int32 array, shape ``[n]``
        The pivot's tokens.
    weights : float32 array, shape ``[n]``
        Positive; those of one token sum to 1.
    """

    offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]
    weights: Floats

    def symbols(self, alignment: Alignment, pivot: int) -> NDArray[np.int32]:
        """The entries as symbols of an alignment in which `pivot` is the pivot, shape ``[n]``."""
        to_symbol = alignment.to_symbol(pivot)
        return self.tokens if to_symbol is None else to_symbol[self.tokens]


def project(
    member: Vocab,
    member_table: Table,
    pivot: Vocab,
    pivot_table: Table,
    *,
    neighbours: int = 10,
    progress: Progress | None = None,
) -> Projection:
    """Project the text tokens of a member that have no twin in the pivot onto its text tokens.

    Needs less than 300 MB for the largest vocabularies.

    Parameters
    ----------
    member, pivot : Vocab
    member_table, pivot_table : array or Tensor, shape ``[n_tokens, width]``
        Token embeddings; the widths may differ.
    neighbours : int
        Most of the pivot's tokens per token, 1 to 100.
    progress : callable, optional
        Called with the number of tokens done and of all to do.

    Returns
    -------
    Projection

    Raises
    ------
    VocabError
        A table does not fit its vocabulary, or too few tokens have a twin to learn from.
    FusionError
        `neighbours` is out of range.
    """
    if not 1 <= neighbours <= _MAX_NEIGHBOURS:
        raise FusionError(f"neighbours must be 1 to {_MAX_NEIGHBOURS}, not {neighbours}")
    for vocab, table in ((member, member_table), (pivot, pivot_table)):
        if len(vocab) != len(table):
            raise VocabError(f"{len(vocab)} tokens need as many embeddings, not {len(table)}")
    twins = _twins(member, pivot)
    wanted = np.flatnonzero((member.kinds == TokenKind.TEXT) & (twins < 0))
    rows: list[_Entries] = []
    if len(wanted):
        anchors = _anchors(member, pivot, twins)
        spaces = _join(member_table[anchors], pivot_table[twins[anchors]])
        sample = spaces[0](member_table[anchors[:_SAMPLE]])
        keys = _Keys(_canonical_text(pivot), pivot_table, spaces[1], sample)
        for start in range(0, len(wanted), keys.block):
            ids = wanted[start : start + keys.block]
            rows.append(keys.nearest(spaces[0](member_table[ids]), neighbours))
            if progress is not None:
                progress(start + len(ids), len(wanted))
    return _collect(len(member), wanted, rows)


def _twins(member: Vocab, pivot: Vocab) -> NDArray[np.int64]:
    """The pivot's token that spells what a member's does, -1 for none, ``[n_tokens]``."""
    alignment = align([member, pivot])
    to_symbol, to_token = alignment.to_symbol(0), alignment.to_token(1)
    if to_symbol is None or to_token is None:
        return np.arange(len(member))
    return np.where(to_symbol < 0, -1, to_token[to_symbol]).astype(np.int64)


def _anchors(member: Vocab, pivot: Vocab, twins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Text tokens whose twin is a text token, in random order, bounded in number."""
    paired = (member.kinds == TokenKind.TEXT) & (twins >= 0)
    found: NDArray[np.int64] = np.flatnonzero(paired & (pivot.kinds[twins] == TokenKind.TEXT))
    if len(found) < _MIN_ANCHORS:
        raise VocabError(
            f"only {len(found)} tokens of the two vocabularies spell the same text, and a "
            f"projection is learned on {_MIN_ANCHORS} at least; fuse them without one"
        )
    np.random.default_rng(0).shuffle(found)
    return found[:_MAX_ANCHORS]


def _canonical_text(vocab: Vocab) -> NDArray[np.int64]:
    """Text tokens, one for each text."""
    ids = vocab.sorted_ids
    ids = ids[vocab.kinds[ids] == TokenKind.TEXT]
    texts = [vocab.token_bytes(int(token)) for token in ids]
    first = [i == 0 or text != texts[i - 1] for i, text in enumerate(texts)]
    found: NDArray[np.int64] = ids[np.array(first, bool)].astype(np.int64)
    return found


# -- the common space ----------------------------------------------------------------------------


def _unit(rows: NDArray[Any]) -> Floats:
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    unit: Floats = (rows / np.maximum(length, 1e-12)).astype(np.float32, copy=False)
    return unit


@dataclass(frozen=True)
class _Space:
    """From embeddings to unit vectors of the common space."""

    centre: Floats
    matrix: Floats

    def __call__(self, rows: Floats) -> Floats:
        return _unit(_unit(_unit(rows) - self.centre) @ self.matrix)


def _join(member: Floats, pivot: Floats) -> tuple[_Space, _Space]:
    """Learn the common space of anchors, ``[n, width]`` each."""
    centres = [_unit(rows).mean(axis=0) for rows in (member, pivot)]
    units = [
        _unit(_unit(rows) - centre) for rows, centre in zip((member, pivot), centres, strict=True)
    ]
    whiten = [_whitener(rows) for rows in units]
    cross = (units[0].T @ units[1]).astype(np.float64) / len(member)
    left, correlation, right = np.linalg.svd(whiten[0] @ cross @ whiten[1])
    n = min(_DIMENSIONS, len(correlation))
    matrices = (
        whiten[0] @ left[:, :n] * correlation[:n],
        whiten[1] @ right[:n].T * correlation[:n],
    )
    first, second = (
        _Space(centre, matrix.astype(np.float32))
        for centre, matrix in zip(centres, matrices, strict=True)
    )
    return first, second


def _whitener(rows: Floats) -> NDArray[np.float64]:
    """Inverse square root of the covariance, shrunk the more the fewer rows there are."""
    n, width = rows.shape
    values, vectors = np.linalg.eigh((rows.T @ rows).astype(np.float64) / n)
    values = np.maximum(values, 0.0)
    values += max(width / n * values.mean(), 1e-12)
    root: NDArray[np.float64] = (vectors / np.sqrt(values)) @ vectors.T
    return root


# -- the search ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entries:
    """Entries of some tokens, ``[tokens, neighbours]``; weight 0: none."""

    tokens: NDArray[np.int32]
    weights: Floats


class _Keys:
    """The pivot's tokens in the common space, to be searched.

    A token's score is ``2 * cosine - crowd``, its crowd being its mean cosine to the nearest of a
    sample of the member's tokens: one more column of the matrices.
    """

    def __init__(self, ids: NDArray[np.int64], table: Table, space: _Space, sample: Floats) -> None:
        self._ids = ids
        width = sample.shape[1]
        n = -(-len(ids) // _GROUPS) * _GROUPS  # groups of equal size; what is added is far away
        self._matrix = np.zeros((n, width + 1), np.float32)
        self._matrix[len(ids) :, width] = 1e4
        for start in range(0, len(ids), _ROWS):
            rows = space(table[ids[start : start + _ROWS]])
            near = min(_NEAR, len(sample))
            crowd = np.partition(rows @ sample.T, -near, axis=1)[:, -near:].mean(axis=1)
            self._matrix[start : start + len(rows), :width] = rows
            self._matrix[start : start + len(rows), width] = crowd

        #: Vectors to search for at a time.
        self.block = max(1, min(_ROWS, _SCORES // n))
        self._scores = np.empty((self.block, n), np.float32)

    def nearest(self, rows: Floats, neighbours: int) -> _Entries:
        """The nearest tokens of at most `block` unit vectors, best first, with their weights."""
        query = np.hstack([2 * rows, np.full((len(rows), 1), -1, np.float32)])
        scores = np.matmul(query, self._matrix.T, out=self._scores[: len(rows)])
        best = _largest(scores, neighbours)
        score = np.take_along_axis(scores, best, axis=1)
        cosine = (score + self._matrix[best, -1]) / 2
        weights = np.exp(_SHARPNESS * (score - score[:, :1])) * (cosine > 0)
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)
        tokens = self._ids[np.minimum(best, len(self._ids) - 1)]
        return _Entries(tokens.astype(np.int32), weights.astype(np.float32))


def _largest(scores: Floats, count: int) -> NDArray[np.int64]:
    """Columns of the largest scores of each row, descending, ``[rows, count]``."""
    n, width = scores.shape
    depth = width // _GROUPS
    maxima = scores.reshape(n, depth, _GROUPS).max(axis=1)
    groups = np.argpartition(maxima, -count, axis=1)[:, -count:]
    columns = (groups[:, None, :] + _GROUPS * np.arange(depth)[None, :, None]).reshape(n, -1)
    some = np.take_along_axis(scores, columns, axis=1)
    best = np.argpartition(some, -count, axis=1)[:, -count:]
    order = np.argsort(-np.take_along_axis(some, best, axis=1), axis=1)
    return np.take_along_axis(columns, np.take_along_axis(best, order, axis=1), axis=1)


def _collect(n_tokens: int, wanted: NDArray[np.int64], rows: list[_Entries]) -> Projection:
    offsets = np.zeros(n_tokens + 1, np.int64)
    if not rows:
        return Projection(offsets, np.zeros(0, np.int32), np.zeros(0, np.float32))
    weights = np.concatenate([entries.weights for entries in rows])
    tokens = np.concatenate([entries.tokens for entries in rows])
    offsets[wanted + 1] = np.count_nonzero(weights, axis=1)
    kept = weights > 0
    return Projection(np.cumsum(offsets), tokens[kept], weights[kept])


# -- the cache -----------------------------------------------------------------------------------


def projection_for(
    member: Member, pivot: Member, *, neighbours: int = 10, progress: Progress | None = None
) -> Projection:
    """The projection of a member's tokens onto the pivot's, computed once and kept on disk.

    The embeddings are the ``token_embd.weight`` of the model files.  The last 32
    projections stay in the user's cache directory, or in ``$LOGITFUSE_CACHE``; what does not prove
    to be whole and of these two models is computed again.

    Parameters
    ----------
    member, pivot : Member
    neighbours, progress
        As in `project`.

    Raises
    ------
    ModelLoadError
        A model file has no readable embeddings.
    VocabError, FusionError
        As in `project`.
    """
    from logitfuse.llama.tensors import Tensor

    tables = [Tensor(one.model.path, "token_embd.weight") for one in (member, pivot)]
    digest = hashlib.sha256(f"logitfuse projection {_FORMAT}, {neighbours}".encode())
    for one, table in zip((member, pivot), tables, strict=True):
        digest.update(_vocab_sha256(one.vocab) + table.sha256())
    path = cache_dir() / "projections" / f"{digest.hexdigest()[:32]}.npz"
    found = _read(path, digest.digest(), len(member.vocab), len(pivot.vocab), neighbours)
    if found is None:
        found = project(
            member.vocab,
            tables[0],
            pivot.vocab,
            tables[1],
            neighbours=neighbours,
            progress=progress,
        )
        with contextlib.suppress(OSError):  # a full or read-only disk only costs time
            _write(path, digest.digest(), found)
    return found


def cache_dir() -> Path:
    """Where results are kept: ``$LOGITFUSE_CACHE``, or the platform's place for such things."""
    if chosen := os.environ.get("LOGITFUSE_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "logitfuse"


def _vocab_sha256(vocab: Vocab) -> bytes:
    texts = [vocab.token_bytes(token) for token in range(len(vocab))]
    digest = hashlib.sha256(np.array([len(text) for text in texts], "<i8").tobytes())
    digest.update(b"".join(texts))
    digest.update(vocab.kinds.tobytes())
    return digest.digest()


def _read(
    path: Path, key: bytes, n_tokens: int, n_pivot: int, neighbours: int
) -> Projection | None:
    """A projection of the cache, or None where there is none that can be trusted."""
    most = 8 * (n_tokens + 1) + 8 * n_tokens * neighbours + 4096
    try:
        if path.stat().st_size > most:
            return None
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = [file[name] for name in ("key", "offsets", "tokens", "weights")]
    except Exception:  # no such file, or whatever a damaged or foreign one raises
        return None
    found = Projection(*arrays[1:])
    whole = (
        arrays[0].tobytes() == key
        and [array.dtype for array in arrays[1:]] == [np.int64, np.int32, np.float32]
        and found.offsets.shape == (n_tokens + 1,)
        and found.tokens.shape == found.weights.shape == (found.offsets[-1],)
        and found.offsets[0] == 0
        and bool(np.all(np.diff(found.offsets) >= 0))
        and bool(np.all((found.tokens >= 0) & (found.tokens < n_pivot)))
        and bool(np.all((found.weights > 0) & (found.weights <= 1)))
    )
    return found if whole else None


def _write(path: Path, key: bytes, projection: Projection) -> None:
    """Put a projection in the cache, whole or not at all, and drop the oldest others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            np.savez(
                file,
                key=np.frombuffer(key, np.uint8),
                offsets=projection.offsets,
                tokens=projection.tokens,
                weights=projection.weights,
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    others = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime)
    for old in others[:-_KEPT]:
        old.unlink(missing_ok=True)

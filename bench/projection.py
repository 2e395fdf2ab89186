"""How well a projection finds true twins: some twins of the demo models are hidden and searched.

Both directions, against a plain orthogonal map and the relative representations of DeePEn (cosines
to common anchors; Huang et al., NeurIPS 2024), and with ``--whole`` the time and memory of the
projection of the whole vocabulary::

    python bench/projection.py [--whole]
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import models
from logitfuse.alignment import align
from logitfuse.llama.tensors import Tensor
from logitfuse.projection import Projection, Table, project
from logitfuse.vocab import TokenKind, Vocab
from numpy.typing import NDArray

_HELD_OUT = 1000
_ANCHORS, _RELATIVE_ANCHORS = 20_000, 300


def twins(member: Vocab, pivot: Vocab) -> NDArray[np.int64]:
    """Text tokens of both that spell the same, ``[n, 2]``, in random order."""
    alignment = align([member, pivot])
    tokens = [alignment.to_token(i) for i in (0, 1)]
    pairs = np.stack([token for token in tokens if token is not None], axis=1).astype(np.int64)
    text = [
        (pairs[:, i] >= 0) & (vocab.kinds[pairs[:, i]] == TokenKind.TEXT)
        for i, vocab in enumerate((member, pivot))
    ]
    return np.random.default_rng(0).permutation(pairs[text[0] & text[1]])


def hide(vocab: Vocab, hidden: NDArray[np.int64], kept: NDArray[np.int64]) -> Vocab:
    """A vocabulary in which some text tokens spell what no other vocabulary does.

    Text tokens that are neither hidden nor kept are unused.
    """
    texts = [vocab.token_bytes(token) for token in range(len(vocab))]
    kinds = vocab.kinds.copy()
    text = kinds == TokenKind.TEXT
    text[hidden] = text[kept] = False
    kinds[text] = TokenKind.UNUSED
    for token in hidden.tolist():
        texts[token] = b"\xff\xfe" + texts[token]
    return Vocab(texts, [TokenKind(kind) for kind in kinds])


def precision(found: Projection, pairs: NDArray[np.int64], at: int) -> float:
    """Share of pairs of which the second is among the `at` best of the first."""
    spans = np.array(list(pairwise(found.offsets)))[pairs[:, 0]]
    hits = [
        twin in found.tokens[start : min(end, start + at)]
        for (start, end), twin in zip(spans, pairs[:, 1], strict=True)
    ]
    return float(np.mean(hits))


def other_ways(
    tables: tuple[Table, Table], anchors: NDArray[np.int64], pairs: NDArray[np.int64], pivot: Vocab
) -> dict[str, list[float]]:
    """Precision at 1 and 10 of a plain orthogonal map, and of cosines to a few anchors."""
    known = [unit(table[anchors[:, i]]) for i, table in enumerate(tables)]
    centres = [rows.mean(axis=0) for rows in known]
    known = [unit(rows - centre) for rows, centre in zip(known, centres, strict=True)]
    left, _, right = np.linalg.svd(known[0].T @ known[1], full_matrices=False)
    maps = {
        "orthogonal": (left, right.T),
        "relative": tuple(rows[:_RELATIVE_ANCHORS].T for rows in known),
    }
    keys = np.flatnonzero(pivot.kinds == TokenKind.TEXT)
    found = {}
    for name, matrices in maps.items():
        queries, truth = (
            unit(unit(unit(tables[i][pairs[:, i]]) - centres[i]) @ matrices[i]) for i in (0, 1)
        )
        own = np.einsum("ij,ij->i", queries, truth)[:, None]
        rank = np.zeros(len(pairs), np.int64)
        for start in range(0, len(keys), 8192):
            rows = unit(unit(tables[1][keys[start : start + 8192]]) - centres[1]) @ matrices[1]
            rank += np.sum(queries @ unit(rows).T > own + 1e-6, axis=1)
        found[name] = [float(np.mean(rank < at)) for at in (1, 10)]
    return found


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def main(arguments: list[str]) -> None:
    paths = {"SmolLM2": models.smollm2(), "Gemma 3": models.gemma3()}
    vocabs = {name: Vocab.from_gguf(path) for name, path in paths.items()}
    tables = {name: Tensor(path, "token_embd.weight") for name, path in paths.items()}
    for member, pivot in (tuple(paths), tuple(paths)[::-1]):
        pairs = twins(vocabs[member], vocabs[pivot])
        held_out, rest = pairs[:_HELD_OUT], pairs[_HELD_OUT:]
        blind = hide(vocabs[member], held_out[:, 0], rest[:, 0])
        found = project(blind, tables[member], vocabs[pivot], tables[pivot])
        figures = ", ".join(f"@{at} {precision(found, held_out, at):.3f}" for at in (1, 10))
        print(f"{member} -> {pivot}, {len(held_out)} of {len(pairs)} twins: precision {figures}")
        pair = (tables[member], tables[pivot])
        others = other_ways(pair, rest[:_ANCHORS], held_out, vocabs[pivot])
        for name, (at_1, at_10) in others.items():
            print(f"  {name}: precision @1 {at_1:.3f}, @10 {at_10:.3f}")
        if "--whole" in arguments:
            tracemalloc.start()
            start, busy = time.perf_counter(), time.process_time()
            found = project(vocabs[member], tables[member], vocabs[pivot], tables[pivot])
            wall, busy = time.perf_counter() - start, time.process_time() - busy
            peak = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
            n = np.count_nonzero(np.diff(found.offsets))
            took = f"{wall:.0f} s ({busy:.0f} s of CPU time), {peak:.0f} MB at most"
            print(f"  {n} tokens without a twin: {took}")


if __name__ == "__main__":
    main(sys.argv[1:])

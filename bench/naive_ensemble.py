"""The same ensemble as one would write it today, with llama-cpp-python and NumPy (or PyTorch).

Like the scripts of GaC (arXiv 2406.12585) and of those who followed it: the vocabularies are joined
by the *strings* of their tokens, every step takes the full softmax of every model, scatters it into
a row over the union, averages and takes the best string.  Then each model tokenises that string by
itself, evaluates its tokens behind those that it has, and so on.

It is kept as fast as that gets without changing what it does: the maps are arrays made once, models
evaluate side by side in threads of their own, and pieces are appended to the cache.  (GaC drops the
whole cache of a model for which a piece is more than one token, and reads the text again.)

What is lost on the way: bytes that are no characters by themselves all have the key U+FFFD; tokens
of more than 32 bytes come out of `Llama.detokenize` as nothing; a model votes also where it would
never have ended a token; and a cache of pieces is not what its own tokenizer makes of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from llama_cpp import Llama
from numpy.typing import NDArray

END = "<end>"

#: Rows of logits, each token's place in the union, and the size of the union; probabilities of it.
Pool: TypeAlias = Callable[
    [Sequence[NDArray[np.float32]], Sequence[NDArray[np.int64]], int], NDArray[Any]
]


def numpy_pool(
    rows: Sequence[NDArray[np.float32]], places: Sequence[NDArray[np.int64]], size: int
) -> NDArray[Any]:
    """The mean of all softmax distributions."""
    pooled = np.zeros(size)
    for row, place in zip(rows, places, strict=True):
        p = np.exp(row - row.max())
        pooled += np.bincount(place, weights=p / p.sum(), minlength=size)
    return pooled / len(rows)


def torch_pool(
    rows: Sequence[NDArray[np.float32]], places: Sequence[NDArray[np.int64]], size: int
) -> NDArray[Any]:
    """The same in PyTorch."""
    import torch

    pooled = torch.zeros(size)
    for row, place in zip(rows, places, strict=True):
        p = torch.softmax(torch.from_numpy(row), 0)
        pooled.index_add_(0, torch.from_numpy(place), p)
    return (pooled / len(rows)).numpy()


class NaiveEnsemble:
    """Models that answer as one, greedily, with equal weights.

    Parameters
    ----------
    models : sequence of Llama
        Made with ``logits_all=True``, which is how `Llama.scores` gets its rows.
    pool : callable
    """

    def __init__(self, models: Sequence[Llama], pool: Pool = numpy_pool) -> None:
        self.models = models
        self.pool = pool
        pieces = [[piece(model, token) for token in range(model.n_vocab())] for model in models]
        self.keys = list(dict.fromkeys(key for own in pieces for key in own))
        index = {key: i for i, key in enumerate(self.keys)}
        self.places = [np.array([index[key] for key in own]) for own in pieces]
        self.tokens = [{key: token for token, key in reversed([*enumerate(p)])} for p in pieces]
        self.never = [index[key] for key in ("", END) if key in index]  # control tokens, the end
        self.threads = ThreadPoolExecutor(len(models))

    def begin(self, prompt: str) -> None:
        """Read the prompt."""
        for model in self.models:
            model.reset()
            model.eval(model.tokenize(prompt.encode(), add_bos=True, special=True))

    def choose(self) -> str:
        """The best string of the union, whatever the models say of the end."""
        rows = [model.scores[model.n_tokens - 1] for model in self.models]
        pooled = self.pool(rows, self.places, len(self.keys))
        pooled[self.never] = 0
        return self.keys[int(pooled.argmax())]

    def follow(self, key: str) -> None:
        """Let every model read the string."""

        def read(i: int) -> None:
            model, known = self.models[i], self.tokens[i]
            if key in known:
                model.eval([known[key]])
            else:
                model.eval(model.tokenize(key.encode(), add_bos=False, special=False))

        list(self.threads.map(read, range(len(self.models))))


def piece(model: Llama, token: int) -> str:
    """A token as a string."""
    if token == model.token_eos():
        return END
    return model.detokenize([token]).decode("utf-8", "replace")

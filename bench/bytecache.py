"""Byte matrices on disk: scoring 4 kB takes a small model about a minute, reading them nothing."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from logitfuse.bytescores import ByteScores, score_bytes
from logitfuse.config import PRUNE, WIDTH
from logitfuse.member import Member
from rich.console import Console
from rich.progress import Progress

DEFAULT_CACHE = Path(__file__).resolve().parents[1] / ".cache" / "bytes"
#: Tokens of context: texts of 4 kB fit one window, and SmolLM2 goes no further than it was trained.
N_CTX = 4096
#: Of `score_bytes`; another one when its figures change.
VERSION = 4


@dataclass(frozen=True)
class Settings:
    """How a text is scored; see `logitfuse.beam.Beam`."""

    prune: float = PRUNE
    width: int = WIDTH


@functools.cache
def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ByteCache:
    """Byte matrices of texts, by model file, text and settings.

    Parameters
    ----------
    folder : path
        Made when the first matrix is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def scores(
        self, model: Path, texts: Mapping[str, bytes], settings: Settings = Settings()
    ) -> dict[str, ByteScores]:
        """One model's scores of texts; it is loaded only if one of them is not known."""
        files = {name: self._file(model, text, settings) for name, text in texts.items()}
        missing = [name for name, file in files.items() if not file.exists()]
        if missing:
            with one_thread(model, settings) as member, bar(member.name, texts, missing) as report:
                for name in missing:
                    scores = score_bytes(
                        member,
                        texts[name],
                        prune=settings.prune,
                        width=settings.width,
                        progress=functools.partial(report, name),
                    )
                    self._write(files[name], scores)
        return {name: _read(file, texts[name]) for name, file in files.items()}

    def _file(self, model: Path, text: bytes, settings: Settings) -> Path:
        parts = (
            digest(model),
            hashlib.sha256(text).hexdigest(),
            repr(settings),
            str(N_CTX),
            str(VERSION),
        )
        return self._folder / f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}.npz"

    def _write(self, file: Path, scores: ByteScores) -> None:
        """Whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez(
            partial, logprobs=scores.logprobs, counts=np.array([scores.n_tokens, scores.n_decoded])
        )
        partial.replace(file)


def _read(file: Path, text: bytes) -> ByteScores:
    with np.load(file) as data:
        n_tokens, n_decoded = data["counts"].tolist()
        return ByteScores(text, data["logprobs"], n_tokens, n_decoded)


@contextmanager
def one_thread(model: Path, settings: Settings = Settings()) -> Iterator[Member]:
    """A model with room for the branches of a beam, on one core."""
    member = Member(model, n_ctx=N_CTX, n_threads=1, n_branches=2 * settings.width)
    try:
        yield member
    finally:
        member.close()


class _Report:
    """Says which text is being read, and how far."""

    def __init__(self, progress: Progress, model: str, sizes: Mapping[str, int]) -> None:
        self._progress, self._model, self._sizes = progress, model, sizes
        self._task = progress.add_task(model, total=sum(sizes.values()))
        self._done: dict[str, int] = {}

    def __call__(self, name: str, done: int, total: int) -> None:
        del total
        self._done[name] = done
        self._progress.update(
            self._task,
            completed=sum(self._done.values()),
            description=f"{self._model}: {name}",
        )


@contextmanager
def bar(model: str, texts: Mapping[str, bytes], names: Iterable[str]) -> Iterator[_Report]:
    """A progress bar over the bytes of some texts, on standard error."""
    with Progress(console=Console(stderr=True)) as progress:
        yield _Report(progress, model, {name: len(texts[name]) for name in names})

"""Ask members questions: how probable each option is as the whole answer.

What the members said is kept, one file for each model and domain.
"""

from __future__ import annotations

import functools
import hashlib
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from asking import Question
from bytecache import VERSION, digest, one_thread
from logitfuse import _core
from logitfuse.beam import Beam
from logitfuse.errors import PromptError
from logitfuse.fitting import Floats
from logitfuse.member import Member
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

_WORD = (string.ascii_letters + string.digits + "-").encode()
#: The outcomes behind an option that do not make it a longer word.
ENDS = np.array([b < 128 and b not in _WORD for b in range(256)] + [True])

#: An end that is less likely, nats, is looked at again with less pruned.
STRANGE = -9.0

#: For each question and option the log-probability, nats, of every byte and of the answer's end.
Answers = list[list[Floats]]


@dataclass(frozen=True)
class Exam:
    """What members think of the options of questions.

    Attributes
    ----------
    names : tuple of str
        The members.
    domains : str array, shape ``[questions]``
    right : int array, shape ``[questions]``
    answers : sequence of Answers
        One per member.
    """

    names: tuple[str, ...]
    domains: NDArray[np.str_]
    right: NDArray[np.intp]
    answers: Sequence[Answers]

    @functools.cached_property
    def totals(self) -> Floats:
        """Log-probability of whole answers, nats, ``[questions, members, options]``."""
        sums = [[[option.sum() for option in one] for one in own] for own in self.answers]
        return np.array(sums, np.float64).swapaxes(0, 1)

    @functools.cached_property
    def among(self) -> Floats:
        """The same, if it must be one of the options."""
        return normalised(self.totals)

    @functools.cached_property
    def table(self) -> Floats:
        """What each member gives the right option among all, nats, ``[questions, members]``."""
        return of_right(self.among.swapaxes(1, 2), self.right)


def normalised(logprobs: Floats) -> Floats:
    """With a sum of 1 over the last axis."""
    return logprobs - np.logaddexp.reduce(logprobs, axis=-1, keepdims=True)


def of_right(logprobs: Floats, right: NDArray[np.intp]) -> Floats:
    """Those of the right options, which are the second axis."""
    return logprobs[np.arange(len(right)), right]


# -- asking members --------------------------------------------------------------------------------


def ask(member: Member, beam: Beam, question: Question) -> list[Floats]:
    """What a member thinks of all options."""
    return [
        _option(beam, [member.opening], question.prompt, option)
        for option in question.continuations
    ]


def _option(beam: Beam, head: list[int], prompt: bytes, option: bytes) -> Floats:
    """Log-probabilities of an option's bytes, and that it ends there."""
    tokens = beam.member.tokenize(prompt + option)
    ends = np.cumsum(beam.member.vocab._core.lengths(tokens))
    n = int(np.searchsorted(ends, len(prompt), side="right"))
    plan, start = head + tokens, len(head) + n
    before = prompt[int(ends[n - 1]) if n else 0 :]
    beam.begin(plan, start=start)
    beam.push(before)
    out = np.empty((len(option) + 1, _core.BYTE_OUTCOMES), np.float32)
    done = beam.push(option, out[:-1])
    while done < len(option):
        out[done] = beam.reconsider(plan, start, before + option[:done])
        if not beam.push(option[done : done + 1]):
            raise PromptError(f"member '{beam.member.name}' cannot spell {option!r}")
        done += 1
        done += beam.push(option[done:], out[done:-1])
    beam.core.next(out[-1])
    if _end(out[-1]) < STRANGE:
        out[-1] = beam.reconsider(plan, start, before + option)
    observed = out[np.arange(len(option)), np.frombuffer(option, np.uint8)].astype(np.float64)
    return np.append(observed, _end(out[-1]))


def _end(row: NDArray[np.float32]) -> float:
    """Log-probability that the word is at its end."""
    return float(np.logaddexp.reduce(row[ENDS].astype(np.float64)))


def answers_of(model: Path, asked: Sequence[Question], folder: Path) -> Answers:
    """What a model thinks of questions; it is loaded only if it has not said so before."""
    domains = list(dict.fromkeys(question.domain for question in asked))
    parts = [[question for question in asked if question.domain == name] for name in domains]
    files = [folder / f"{_key(model, part)}.npz" for part in parts]
    if not all(file.exists() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        with one_thread(model) as member, Progress(console=Console(stderr=True)) as progress:
            beam = Beam(member)
            for domain, part, file in zip(domains, parts, files, strict=True):
                if not file.exists():
                    title = f"{member.name}: {domain}"
                    _write(
                        file,
                        [ask(member, beam, q) for q in progress.track(part, description=title)],
                    )
    return [one for file in files for one in _read(file)]


def _key(model: Path, asked: Sequence[Question]) -> str:
    text = repr([(one.prompt, one.continuations) for one in asked])
    return hashlib.sha256(f"{digest(model)} {text} {VERSION}".encode()).hexdigest()[:32]


def _write(file: Path, answers: Answers) -> None:
    """Whole or not at all."""
    partial = file.with_suffix(".partial.npz")
    sizes = np.array([[len(option) for option in one] for one in answers])
    np.savez(partial, values=np.concatenate([o for one in answers for o in one]), sizes=sizes)
    partial.replace(file)


def _read(file: Path) -> Answers:
    with np.load(file) as data:
        sizes: NDArray[np.intp] = data["sizes"]
        parts = iter(np.split(data["values"], np.cumsum(sizes.ravel())[:-1]))
    return [[next(parts) for _ in one] for one in sizes]

"""Print how well ensembles answer questions beside their members: ``python bench/accuracy.py``.

Every member says how probable each option is as the whole answer, over all its tokenisations.  The
options of a question share its prompt, which is read once.  What the members said is kept
(``--cache``), one file for each model and domain.  For ensembles of unequal members see
``quality.py``.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import string
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

from asking import Question, questions
from bytecache import DEFAULT_CACHE, VERSION, digest, one_thread
from logitfuse import _core
from logitfuse.beam import Beam
from logitfuse.errors import PromptError
from logitfuse.fitting import Floats, Interval, fit_linear, gain
from logitfuse.member import Member
from logitfuse.optimise import minimise
from logitfuse.pooling import pool_matrix
from logitfuse.weights import Online
from quality import members, rows
from rich.console import Console
from rich.progress import Progress

#: Parts of the questions; what is fitted to the others is judged by each.  They take turns, so that
#: every part holds all domains.
FOLDS = 5
#: Of the gate's coefficients, and how many steps it learns.
L2, STEPS = 1e-2, 100
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


#: Log-probabilities of the options, nats, ``[questions, options]``; they need not be normalised.
Rule = Callable[[Exam], Floats]


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


# -- pooling ---------------------------------------------------------------------------------------


def mixture(exam: Exam, weights: Floats) -> Floats:
    """Linear pool of the options; weights ``[members]`` or ``[questions, members]``."""
    with np.errstate(divide="ignore"):  # options that only members of weight 0 think possible
        mixed: Floats = np.log((np.exp(exam.among) * weights[..., :, None]).sum(axis=1))
    return mixed


def member(index: int) -> Rule:
    """One member alone."""
    return lambda exam: exam.among[:, index]


def best_elsewhere(exam: Exam) -> Floats:
    """The member with most right answers in the other domains."""
    hits = right_answers(exam)
    out = np.empty_like(exam.among[:, 0])
    for domain in np.unique(exam.domains):
        here = exam.domains == domain
        out[here] = exam.among[here, int(np.argmax(hits[~here].sum(axis=0)))]
    return out


def right_answers(exam: Exam) -> NDArray[np.bool_]:
    """Whether each member is right, ``[questions, members]``."""
    return np.asarray(exam.among.argmax(axis=2) == exam.right[:, None])


def per_byte(exam: Exam) -> Floats:
    """Every byte from the linear pool, equal weights."""
    return np.array(
        [
            [
                np.logaddexp.reduce(own, axis=0).sum() - len(own[0]) * math.log(len(own))
                for own in zip(*one, strict=True)
            ]
            for one in zip(*exam.answers, strict=True)
        ]
    )


def whole(exam: Exam) -> Floats:
    """The whole answer from the linear pool, equal weights."""
    return np.asarray(np.logaddexp.reduce(exam.totals, axis=1))


def options(exam: Exam) -> Floats:
    """Linear pool of the options, equal weights."""
    return mixture(exam, np.full(len(exam.names), 1 / len(exam.names)))


def log_linear(exam: Exam) -> Floats:
    """Log-linear pool of the options, equal weights."""
    pooled: Floats = exam.among.mean(axis=1)
    return pooled


def by_margin(exam: Exam) -> Floats:
    """Weights: how far a member's first choice is before its second."""
    best = np.sort(np.exp(exam.among), axis=2)
    return mixture(exam, _shares(best[..., -1] - best[..., -2]))


def by_entropy(exam: Exam) -> Floats:
    """Weights: how much a member's entropy is below that of a guess."""
    return mixture(exam, _shares(math.log(exam.among.shape[2]) - _entropies(exam)))


def _entropies(exam: Exam) -> Floats:
    """Of the options, nats, ``[questions, members]``."""
    p = np.exp(exam.among)
    return np.asarray(-(p * np.where(p > 0, exam.among, 0.0)).sum(axis=2))


def _shares(scores: Floats) -> Floats:
    scores = np.maximum(scores, 1e-12)
    shares: Floats = scores / scores.sum(axis=1, keepdims=True)
    return shares


def consistent(exam: Exam) -> Floats:
    """The pool that counts members less who are far off the others."""
    among = np.ascontiguousarray(np.minimum(exam.among, 0.0), np.float32)
    return np.array([pool_matrix(one, pool="consistency") for one in among], np.float64)


def history(*, by_domain: bool) -> Rule:
    """Weights from who gave the right answers of the questions before, in their order."""

    def rule(exam: Exam) -> Floats:
        weigher = Online([1.0] * len(exam.names))
        weights, domain = np.empty_like(exam.table), exam.domains[0]
        for k, observed in enumerate(exam.table):
            if by_domain and exam.domains[k] != domain:
                weigher.begin([])
                domain = exam.domains[k]
            weights[k] = weigher.current()
            weigher.observe(observed.tolist(), 1)
        return mixture(exam, weights)

    return rule


def fitted(*, by_domain: bool) -> Rule:
    """Weights fitted to the right answers of other questions."""

    def rule(exam: Exam) -> Floats:
        weights = np.empty_like(exam.table)
        for learn, test in folds(len(exam.right)):
            groups = np.unique(exam.domains) if by_domain else [None]
            for name in groups:
                within = [
                    at if name is None else at[exam.domains[at] == name] for at in (learn, test)
                ]
                weights[within[1]] = fit_linear(exam.table[within[0]])[0]
        return mixture(exam, weights)

    return rule


def gate(exam: Exam) -> Floats:
    """Weights per question from all members' entropies and best options, learned from others."""
    n, count, _ = exam.among.shape
    features = np.concatenate([_entropies(exam), exam.among.max(axis=2)], axis=1)
    weights = np.empty((n, count))
    p = np.exp(exam.table)
    for learn, test in folds(n):
        centre, scale = features[learn].mean(axis=0), features[learn].std(axis=0) + 1e-6
        x = np.column_stack([np.ones(n), (features - centre) / scale])

        def shares(parameters: Floats, x: Floats = x) -> Floats:
            return np.asarray(np.exp(normalised(x @ parameters.reshape(-1, count))))

        def loss(
            parameters: Floats, x: Floats = x, learn: NDArray[np.intp] = learn
        ) -> tuple[float, Floats]:
            w = shares(parameters, x[learn])
            joint = w * p[learn]
            mixed = np.maximum(joint.sum(axis=1, keepdims=True), 1e-300)
            slope = x[learn].T @ (w - joint / mixed) / len(learn)
            value = -np.log(mixed).mean() + L2 / 2 * (parameters**2).sum()
            return float(value), slope.ravel() + L2 * parameters

        found = minimise(loss, np.zeros(x.shape[1] * count), steps=STEPS)
        weights[test] = shares(found)[test]
    return mixture(exam, weights)


def folds(n: int) -> Iterable[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Which questions to learn from, and which to be judged by."""
    part = np.arange(n) % FOLDS
    return [(np.flatnonzero(part != k), np.flatnonzero(part == k)) for k in range(FOLDS)]


def rules(names: Sequence[str]) -> dict[str, Rule]:
    """Everything that is compared."""
    return {
        **{name: member(index) for index, name in enumerate(names)},
        "best member in the other domains": best_elsewhere,
        "linear, equal, per byte": per_byte,
        "linear, equal, whole answers": whole,
        "linear, equal, among the options": options,
        "log-linear, equal, among the options": log_linear,
        "by margin": by_margin,
        "by entropy": by_entropy,
        "consistency": consistent,
        "history": history(by_domain=False),
        "history, anew in each domain": history(by_domain=True),
        "fitted": fitted(by_domain=False),
        "fitted in each domain": fitted(by_domain=True),
        "learned gate": gate,
    }


# -- the table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """How one rule did.

    Attributes
    ----------
    name : str
    accuracy : Interval
        Share of right answers.
    over_best : Interval
        Share more than the member that is best over all.
    bits : float
        -log2 of what the right option got among all, mean.
    by_domain : dict of str to float
        Accuracy.
    losses : dict of str to Interval
        Domains in which the best member there is clearly better, and by which share.
    """

    name: str
    accuracy: Interval
    over_best: Interval
    bits: float
    by_domain: dict[str, float]
    losses: dict[str, Interval]


def compare(exam: Exam) -> list[Line]:
    """All rules on the same questions."""
    alone = right_answers(exam).astype(np.float64)
    best = alone[:, int(np.argmax(alone.sum(axis=0)))]
    domains = {str(name): exam.domains == name for name in dict.fromkeys(exam.domains)}
    lines = []
    for name, rule in rules(exam.names).items():
        logprobs = normalised(rule(exam))
        hits = (logprobs.argmax(axis=1) == exam.right).astype(np.float64)
        against = {
            d: gain(hits[at] - alone[at, int(np.argmax(alone[at].sum(axis=0)))], 1)
            for d, at in domains.items()
        }
        lines.append(
            Line(
                name,
                gain(hits, 1),
                gain(hits - best, 1),
                float(-of_right(logprobs, exam.right).mean() / math.log(2)),
                {d: float(hits[at].mean()) for d, at in domains.items()},
                {d: one for d, one in against.items() if one.high < 0},
            )
        )
    return lines


def markdown(title: str, exam: Exam, lines: Sequence[Line]) -> str:
    """Accuracy over all and by domain, and in words where members are better."""
    domains = list(lines[0].by_domain)
    body = [
        (
            own.name,
            percent(own.accuracy),
            percent(own.over_best, sign="+"),
            f"{own.bits:.3f}",
            *(f"{own.by_domain[domain]:.0%}" for domain in domains),
        )
        for own in lines
    ]
    head = ("rule", "right, %", "more than the best member", "bits", *domains)
    counts = f"{len(exam.right)} questions, 4 options each"
    parts = [f"**{title}: {' + '.join(exam.names)}**, {counts}\n", rows(head, body), ""]
    ensembles = [own for own in lines if own.name not in exam.names]
    losers = [own.name for own in ensembles if own.over_best.high < 0]
    unclear = [own.name for own in ensembles if own.over_best.low <= 0 <= own.over_best.high]
    parts.append(f"Clearly worse than the best member over all: {'; '.join(losers) or 'none'}.")
    parts.append(f"Neither clearly worse nor better: {'; '.join(unclear) or 'none'}.")
    for own in ensembles:
        if own.losses:
            where = ", ".join(f"{d} ({one.mean:+.0%})" for d, one in own.losses.items())
            parts.append(
                f"* {own.name} is clearly worse than the best member of the domain on {where}."
            )
    return "\n".join(parts)


def percent(value: Interval, sign: str = "") -> str:
    """A share and its interval, in percent."""
    return "{:{s}.1f} ({:{s}.1f} to {:{s}.1f})".format(*(100 * part for part in value), s=sign)


def exams(
    files: Mapping[str, Path],
    sets: Mapping[str, tuple[str, ...]],
    asked: Sequence[Question],
    folder: Path,
) -> dict[str, Exam]:
    """Every set of members examined; one model is loaded at a time."""
    answers = {name: answers_of(file, asked, folder) for name, file in files.items()}
    domains = np.array([one.domain for one in asked])
    right = np.array([one.answer for one in asked])
    return {
        title: Exam(names, domains, right, [answers[name] for name in names])
        for title, names in sets.items()
    }


def some(per_domain: int | None) -> list[Question]:
    """The first questions of each domain, or all."""
    taken: dict[str, list[Question]] = {}
    for one in questions():
        taken.setdefault(one.domain, []).append(one)
    return [one for own in taken.values() for one in own[:per_domain]]


def main() -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for the answers")
    parser.add_argument("--weak", type=Path, help="a GGUF file for the unequal ensembles")
    parser.add_argument("--per-domain", type=int, help="questions of each domain (all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    files, sets = members(given.weak)
    found = exams(files, sets, some(given.per_domain), given.cache)
    lines = {title: compare(exam) for title, exam in found.items()}
    if given.json:
        plain = {title: [asdict(own) for own in part] for title, part in lines.items()}
        print(json.dumps(plain, indent=1))
    else:
        print("\n\n".join(markdown(title, found[title], part) for title, part in lines.items()))


if __name__ == "__main__":
    main()

"""Print how well ensembles answer questions beside their members: ``python bench/accuracy.py``.

Every member says how probable each option is as the whole answer, over all its tokenisations.  The
options of a question share its prompt, which is read once.  What the members said is kept
(``--cache``), one file for each model and domain.  For ensembles of unequal members see
``quality.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

from asking import Question, questions
from bytecache import DEFAULT_CACHE
from exam import Exam, answers_of, normalised, of_right
from logitfuse.fitting import Floats, Interval, fit_linear, gain
from logitfuse.optimise import minimise
from logitfuse.pooling import pool_matrix
from logitfuse.weights import Online
from quality import members, rows

#: Parts of the questions; what is fitted to the others is judged by each.  They take turns, so that
#: every part holds all domains.
FOLDS = 5
#: Of the gate's coefficients, and how many steps it learns.
L2, STEPS = 1e-2, 100

#: Log-probabilities of the options, nats, ``[questions, options]``; they need not be normalised.
Rule = Callable[[Exam], Floats]


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

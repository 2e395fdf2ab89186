"""The examination of synthetic members, and of a tiny model beside its byte scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import accuracy
import models
import numpy as np
import pytest
from asking import Question
from bytecache import one_thread
from exam import Exam, answers_of, ask
from logitfuse.beam import Beam
from logitfuse.fitting import Floats
from logitfuse.member import Member
from tiny import write_tiny

QUESTIONS = [
    Question("sums", f"What is 2 + {n}?", (str(n), str(n + 1), str(n + 2), str(n + 12)), 2)
    for n in (3, 7)
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return write_tiny(path, models.smollm2(), max_vocab=2000)


@pytest.fixture(scope="module")
def exam() -> Exam:
    """Two members of which one knows domain x, the other domain y."""
    random = np.random.default_rng(0)
    domains = np.repeat(["x", "y"], 100)
    right = random.integers(4, size=200)

    def answers(knows: str) -> Iterator[list[Floats]]:
        for domain, index in zip(domains, right, strict=True):
            options = [-random.uniform(1, 2, size=size) for size in (2, 4, 3, 3)]
            if domain == knows or random.random() < 0.3:
                options[index] = options[index] / 20
            yield options

    return Exam(("a", "b"), domains, right, [list(answers("x")), list(answers("y"))])


def test_answers_count_every_tokenisation(tiny: Path) -> None:
    """The canonical one is among them, so a string is never less probable than its tokens."""
    question = Question("letters", "Which is it?", ("a", "in", "th", "s"), 0)
    with one_thread(tiny) as member:
        answers = ask(member, Beam(member), question)
        bos = member.model.bos if member.model.add_bos else None
        head = [int(member.vocab.end_ids[0]) if bos is None else bos]
        for option, found in zip(question.continuations, answers, strict=True):
            tokens = member.tokenize(question.prompt + option)
            ends = np.cumsum(member.vocab._core.lengths(tokens))
            before = int(np.searchsorted(ends, len(question.prompt), side="right"))
            assert ends[before - 1] == len(question.prompt)
            member.reset()
            member.begin(head + tokens, score=True)
            canonical = sum(member._cache.nats[len(head) + before :])
            assert canonical - 0.01 <= found[:-1].sum() <= 0
            assert found[-1] <= 0


def test_answers_do_not_depend_on_their_order(tiny: Path) -> None:
    with one_thread(tiny) as member:
        beam = Beam(member)
        first = ask(member, beam, QUESTIONS[0])
        ask(member, beam, QUESTIONS[1])
        again = ask(member, beam, QUESTIONS[0])
        for one, two in zip(first, again, strict=True):
            assert one == pytest.approx(two, abs=1e-3)


def test_answers_are_kept(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = answers_of(tiny, QUESTIONS, tmp_path)

    def refuse(*_: object, **__: object) -> Member:
        raise AssertionError("loaded again")

    monkeypatch.setattr("bytecache.Member", refuse)
    again = answers_of(tiny, QUESTIONS, tmp_path)
    for one, two in zip(first, again, strict=True):
        assert [option.tolist() for option in one] == [option.tolist() for option in two]


def test_pools(exam: Exam) -> None:
    a, b = np.exp(exam.totals).swapaxes(0, 1)
    assert np.exp(accuracy.whole(exam)) == pytest.approx(a + b)
    first = np.exp([own[0][0] for own in exam.answers]).mean(axis=0)
    assert accuracy.per_byte(exam)[0, 0] == pytest.approx(np.log(first).sum())
    lines = {line.name: line for line in accuracy.compare(exam)}
    best = max(lines["a"].accuracy.mean, lines["b"].accuracy.mean)
    assert lines["fitted in each domain"].accuracy.mean > best + 0.1
    assert lines["history, anew in each domain"].accuracy.mean > best
    for line in lines.values():
        assert line.over_best.mean == pytest.approx(line.accuracy.mean - best)
        assert np.isfinite(line.bits)
    assert set(lines["a"].losses) == {"y"}


def test_an_option_may_be_impossible(exam: Exam) -> None:
    answers = [[list(one) for one in own] for own in exam.answers]
    wrong = (int(exam.right[0]) + 1) % 4
    answers[0][0][wrong] = np.append(answers[0][0][wrong][:-1], -np.inf)
    for line in accuracy.compare(Exam(exam.names, exam.domains, exam.right, answers)):
        assert np.isfinite(line.bits)


def test_history_knows_only_the_past(exam: Exam) -> None:
    answers = [[*own[:-1], own[-1][::-1]] for own in exam.answers]
    other = Exam(exam.names, exam.domains, (exam.right + (np.arange(200) == 199)) % 4, answers)
    rule = accuracy.history(by_domain=False)
    assert (rule(exam)[:-1] == rule(other)[:-1]).all()


def test_the_table(exam: Exam) -> None:
    lines = accuracy.compare(exam)
    printed = accuracy.markdown("pair", exam, lines)
    assert all(f"| {name} |" in printed for name in accuracy.rules(exam.names))
    assert "Clearly worse than the best member" in printed
    json.dumps([asdict(line) for line in lines])
    assert len(accuracy.some(2)) == 2 * len({one.domain for one in accuracy.some(None)})

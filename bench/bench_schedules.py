"""The schedules around two real models, once each: the script that measures them runs."""

from __future__ import annotations

from collections.abc import Iterator

import models
import pytest
import schedules
from logitfuse.member import Member


@pytest.fixture(scope="module")
def members() -> Iterator[list[Member]]:
    """The two demo models, one thread each."""
    paths = (models.smollm2(), models.gemma3())
    loaded = [Member(path, n_ctx=512, n_threads=1) for path in paths]
    yield loaded
    for member in loaded:
        member.close()


def test_decode_times(members: list[Member]) -> None:
    curve = schedules.decode_times(members[0], sizes=(1, 2), rounds=1)
    at = schedules.smooth(curve)
    assert at(1) == curve[1] > 0
    assert at(1.5) == pytest.approx((curve[1] + curve[2]) / 2)
    assert at(3) == pytest.approx(2 * curve[2] - curve[1])
    assert [t(5) for t in schedules.flat([at])] == [curve[1]]


def test_compare(members: list[Member], capsys: pytest.CaptureFixture[str]) -> None:
    runs = schedules.compare(members, n_tokens=8, rounds=1, drafts=(2,))
    assert runs["draft 2"].text == runs["lazy, certain"].text == runs["eager"].text
    assert runs["eager"].ratios == [1.0]
    curves = [{1: 1.0, 2: 1.5}, {1: 2.0, 2: 3.0}]
    schedules.print_curves(members, curves)
    schedules.print_schedules(runs, [schedules.smooth(curve) for curve in curves])
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in runs)

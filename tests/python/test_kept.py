"""What took long is made once, and not kept for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from logitfuse.kept import Kept


def test_the_last_ones_are_kept() -> None:
    kept: Kept[bytes] = Kept(2)
    made: list[bytes] = []

    def get(key: bytes) -> bytes:
        return kept.get(key, lambda: made.append(key) or key)

    assert [get(bytes([key])) for key in b"abacab"] == [bytes([key]) for key in b"abacab"]
    assert b"".join(made) == b"abcb"


def test_all_who_ask_at_once_get_the_same() -> None:
    kept: Kept[object] = Kept(1)
    asked, calls = threading.Barrier(4), []

    def make() -> object:
        calls.append(threading.get_ident())
        asked.wait(10)
        return object()

    def ask(i: int) -> object:
        if i:
            asked.wait(10)
        return kept.get(b"x", make)

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(ask, range(4)))) == 1
    assert len(calls) == 1


def test_nobody_waits_for_another_key() -> None:
    kept: Kept[str] = Kept(2)
    began, may_end = threading.Event(), threading.Event()

    def slow() -> str:
        began.set()
        may_end.wait(10)
        return "slow"

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(kept.get, b"slow", slow)
        began.wait(10)
        assert kept.get(b"fast", lambda: "fast") == "fast"
        assert not first.done()
        may_end.set()
        assert first.result() == "slow"


def test_failures_are_not_kept() -> None:
    kept: Kept[int] = Kept(2)
    with pytest.raises(ZeroDivisionError):
        kept.get(b"x", lambda: 1 // 0)
    assert kept.get(b"x", lambda: 1) == 1

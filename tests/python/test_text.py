"""Bytes become text: whole characters, nothing that a stop string takes back."""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logitfuse.text import ReplyText

alphabet = st.sampled_from("ab \nя€🙂\u0301")
texts = st.text(alphabet, max_size=24)
stops = st.lists(st.text(alphabet, min_size=1, max_size=4), max_size=3)
cuts = st.lists(st.integers(0, 60), max_size=20)


def pieces(text: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Cut a text at these places, which need not lie inside it."""
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    return [text[begin:end] for begin, end in pairwise(places)]


def up_to_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first, and whether there is one."""
    found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    return (text[: min(found)[1]], True) if found else (text, False)


def feed(reply: ReplyText, units: Sequence[bytes]) -> list[str]:
    """Append units until the reply is over."""
    given = []
    for unit in units:
        assert reply.accepts(unit)
        given.append(reply.append(unit))
        if reply.stopped:
            break
    return given


@given(text=texts, stops=stops, cuts=cuts)
def test_pieces_make_the_text_up_to_the_first_stop(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    """However the text is cut, nothing is given that must be taken back."""
    reply = ReplyText(stops)
    given = feed(reply, pieces(text.encode(), cuts))
    expected, stopped = up_to_stop(text, stops)
    assert reply.stopped == stopped
    assert expected.startswith("".join(given))
    assert "".join(given) + reply.flush() == expected
    assert reply.text == expected
    assert reply.flush() == ""


@given(text=texts, cuts=cuts)
def test_without_stops_every_whole_character_is_given_at_once(text: str, cuts: list[int]) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    units = pieces(text.encode(), cuts)
    assert feed(ReplyText(), units) == [decoder.decode(unit) for unit in units]


@given(text=texts, stops=stops, cuts=cuts)
def test_only_the_possible_beginning_of_a_stop_is_held_back(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    reply = ReplyText(stops)
    given = ""
    for unit in pieces(text.encode(), cuts):
        given += reply.append(unit)
        if reply.stopped:
            break
        held = reply.text[len(given) :].encode() + reply.unfinished
        begins_stop = any(stop.encode().startswith(held) for stop in stops)
        assert begins_stop or held == reply.unfinished


@given(
    text=st.text("ab", max_size=60),
    stops=st.lists(st.text("ab", min_size=1, max_size=12), min_size=1, max_size=3),
    cuts=cuts,
)
def test_strings_that_overlap_themselves(text: str, stops: list[str], cuts: list[int]) -> None:
    """All that may yet be a stop string is held back, and nothing else."""
    reply, read, given = ReplyText(stops), "", ""
    for unit in pieces(text.encode(), cuts):
        read, given = read + unit.decode(), given + reply.append(unit)
        expected, stopped = up_to_stop(read, stops)
        assert reply.stopped == stopped
        if stopped:
            assert given == expected
            return
        beginnings = {stop[:n] for stop in stops for n in range(len(stop))}
        held = next(n for n in range(len(read), -1, -1) if read[len(read) - n :] in beginnings)
        assert given == read[: len(read) - held]


def test_many_long_stops_cost_little() -> None:
    """Those that nearly come all the time, too."""
    stops = ["a" * (500 + i) + "b" * (500 - i) for i in range(64)]
    reply = ReplyText(stops)
    began = time.process_time()
    given = [reply.append(b"a") for _ in range(1000)]
    assert time.process_time() - began < 1  # 3 s if every stop is tried at every place
    assert "".join(given) == "a" * (1000 - 563)


@given(text=texts, cuts=cuts)
def test_base_and_units(text: str, cuts: list[int]) -> None:
    """The base is the last place where a unit and a character end; the units behind it follow."""
    reply = ReplyText()
    seen = b""
    base = 0
    for unit in pieces(text.encode(), cuts):
        reply.append(unit)
        seen += unit
        if not reply.unfinished:
            base = len(seen)
        assert reply.base == base
        assert reply.complete == seen[:base]
        assert reply.complete + b"".join(reply.units) == seen
        assert reply.text.encode() + reply.unfinished == seen
        reply.complete.decode()


@pytest.mark.parametrize(
    ("before", "unit", "accepted"),
    [
        (b"a", b"\x80", False),
        (b"a", b"\xff", False),
        (b"\xf0\x9f", b"\x99", True),
        (b"\xf0\x9f", b"\x99\x82!", True),
        (b"\xf0\x9f", b"!", False),
        (b"\xe0", b"\x80", False),  # overlong
        (b"\xed", b"\xa0", False),  # half of a surrogate pair
        (b"\xf4", b"\x90", False),  # beyond U+10FFFF
        ("я".encode(), b"\xd1", True),
    ],
)
def test_accepts_valid_utf8_only(before: bytes, unit: bytes, accepted: bool) -> None:
    reply = ReplyText()
    reply.append(before)
    assert reply.accepts(unit) == accepted


@pytest.mark.parametrize(
    ("units", "stops", "expected"),
    [
        ([b"one END two"], ["END"], "one "),
        ([b"one E", b"N", b"D two"], ["END"], "one "),
        ([b"E", b"N", b"D"], ["END"], ""),
        ([b"EN", b"EN", b"D"], ["END"], "EN"),
        ([b"aab", b"aac"], ["aabaac"], ""),
        (["стоп".encode()[:3], "стоп".encode()[3:]], ["то"], "с"),
        ([b"a\xf0\x9f", b"\x99\x82b"], ["🙂"], "a"),
        ([b"xxabcd"], ["bc", "abcd"], "xxa"),  # the first to be complete
        ([b"x", b"x", b"a", b"b", b"c", b"d"], ["bc", "abcd"], "xxa"),
        ([b"abc"], ["bc", "abc"], ""),
        ([b"abc"], [""], "abc"),
        ([b"ab\xe2\x82"], [], "ab"),
    ],
)
def test_by_hand(units: list[bytes], stops: list[str], expected: str) -> None:
    reply = ReplyText(stops)
    assert "".join(feed(reply, units)) + reply.flush() == expected

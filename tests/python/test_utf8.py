"""UTF-8 that grows token by token, against Python's strict decoder."""

from __future__ import annotations

import functools
import itertools

from hypothesis import given
from hypothesis import strategies as st
from logitfuse import _core


def utf8_length(text: bytes) -> int | None:
    """Number of characters; None if the text is invalid.  (Strict, unlike incremental decoders.)"""
    try:
        return len(text.decode())
    except UnicodeDecodeError:
        return None


@functools.cache
def can_become_a_character(head: bytes) -> bool:
    """Whether some continuation bytes make it one."""
    edges = [bytes([byte]) for byte in (0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF)]
    tails = (b"".join(tail) for n in (1, 2, 3) for tail in itertools.product(edges, repeat=n))
    return any(utf8_length(head + tail) == 1 for tail in tails)


def utf8_state(text: bytes) -> bytes | None:
    """The unfinished character at the end; None if no continuation can make the text valid."""
    for length in range(min(4, len(text) + 1)):
        head, tail = text[: len(text) - length], text[len(text) - length :]
        if utf8_length(head) is not None and (not tail or can_become_a_character(tail)):
            return tail
    return None


#: The first and last bytes of every class in the table of the Unicode standard.
EDGES = bytes.fromhex("00 41 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 ff")
byte_texts = st.one_of(
    st.binary(max_size=8),
    st.lists(st.sampled_from(EDGES), max_size=6).map(bytes),
    st.text(max_size=3).map(lambda text: text.encode("utf-8", "surrogatepass")),
)


class TestUtf8:
    def test_every_sequence_of_edge_bytes(self) -> None:
        """All of up to three bytes: whether valid, and what is unfinished."""
        for first in EDGES:
            for second in EDGES:
                for third in EDGES:
                    check_utf8(bytes([first, second, third]))

    @given(byte_texts, byte_texts)
    def test_any_text(self, head: bytes, tail: bytes) -> None:
        check_utf8(head + tail)

    @given(st.text(), st.data())
    def test_a_valid_text_in_pieces(self, text: str, data: st.DataObject) -> None:
        """The tokens of a valid text are each accepted after the one before."""
        whole = text.encode()
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
        pending = b""
        for first, last in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            piece = whole[first:last]
            assert _core.continues_utf8(pending, piece)
            done = whole[:last]
            pending = done[len(done) - _core.unfinished_utf8(done) :]
        assert pending == b""


def check_utf8(text: bytes) -> None:
    """Every split of `text` where the first part ends in a valid, maybe unfinished, character."""
    state = utf8_state(text)
    if state is not None:
        assert _core.unfinished_utf8(text) == len(state)
    for cut in range(len(text) + 1):
        pending = utf8_state(text[:cut])
        if pending is not None:
            assert _core.continues_utf8(pending, text[cut:]) == (state is not None)

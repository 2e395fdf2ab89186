"""Where a reply stands in a member's tokens, and what the member knows there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from logitfuse.llama import Row
from logitfuse.rows import KeptRows


class Place(NamedTuple):
    """Where the reply stands, in a member's tokens (see `Member.place`).

    Attributes
    ----------
    tokens : list of int
        Of the prompt and the reply.
    stalled : bool
        The member cannot spell the unfinished character at the end.
    """

    tokens: list[int]
    stalled: bool = False


@dataclass(frozen=True)
class View:
    """What a member knows at a place, until it moves on.

    Attributes
    ----------
    boundary : float
        The member's own belief that its last token ends where it ends, 0..1.
    stalled : bool
        It cannot spell the unfinished character at the end of the text.
    """

    boundary: float
    stalled: bool = False
    _rows: KeptRows | None = None
    _n_tokens: int = 0

    @property
    def row(self) -> Row | None:
        """Logits of the next token, float32 ``[n_vocab]``; None if the member is stalled.

        Looked up when it is asked for: others who share the decoder may have had it moved.
        """
        return None if self._rows is None else self._rows.after(self._n_tokens)

"""Schedules: which members decode when.

Every schedule leaves the members' votes as they are: what a step looks at is always a member's row
and boundary at the canonical tokens of the reply.  They differ in when that is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from logitfuse import _core
from logitfuse.gates import Voter
from logitfuse.member import Member
from logitfuse.places import Place
from logitfuse.text import ReplyText

ScheduleName: TypeAlias = Literal["eager", "lazy", "draft"]
SCHEDULES: tuple[ScheduleName, ...] = ("eager", "lazy", "draft")


class Together(Protocol):
    """Runs something for several members at once (see `Engine`)."""

    def __call__(self, move: Callable[[int], Any], who: Iterable[int] | None = None) -> list[Any]:
        """Results in the order of `who`."""


@dataclass(frozen=True)
class Crew:
    """The members that run, and how they run.

    Attributes
    ----------
    members : sequence of Member
    running : sequence of int
        Indices of those with weight.
    together : Together
    twin : callable or None
        ``twin(member, symbol)`` is a token, for members of one vocabulary, which follow by tokens;
        None: they follow by text.
    symbol : callable
        ``symbol(member, token)`` in the alignment.
    """

    members: Sequence[Member]
    running: Sequence[int]
    together: Together
    twin: Callable[[int, int], int] | None
    symbol: Callable[[int, int], int]


class Speak(Protocol):
    """What a member alone would say next."""

    def __call__(
        self, i: int, voter: Voter, reply: ReplyText, sampler: _core.Sampler, /
    ) -> tuple[int, bytes] | None:
        """A symbol and its bytes (none: the end); None: it has nothing to say."""


class Schedule(Protocol):
    """Says when members decode: `prepare`, then any number of `look`, then `follow`."""

    def begin(self, prompt: bytes) -> None:
        """A new answer; all members have been brought to the prompt."""

    def prepare(
        self, reply: ReplyText, sampler: _core.Sampler, left: int | None, speak: Speak
    ) -> None:
        """A step begins; so many may still be made."""

    def look(self, who: Sequence[int]) -> list[Voter]:
        """What these members know at the end of the reply; they decode for it if need be."""

    def follow(self, reply: ReplyText, symbol: int) -> bool:
        """The reply has been extended by a symbol; False: a context is full."""


class Eager:
    """Everybody decodes every step, all at the same time."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    def begin(self, prompt: bytes) -> None:
        """See `Schedule`."""

    def prepare(
        self, reply: ReplyText, sampler: _core.Sampler, left: int | None, speak: Speak
    ) -> None:
        """See `Schedule`."""

    def look(self, who: Sequence[int]) -> list[Voter]:
        """See `Schedule`."""
        return [self._crew.members[i] for i in who]

    def follow(self, reply: ReplyText, symbol: int) -> bool:
        """See `Schedule`."""
        members, twin = self._crew.members, self._crew.twin
        if twin is not None:
            return all(self._crew.together(lambda i: members[i].append(twin(i, symbol))))
        complete, units = reply.complete, tuple(reply.units)
        return all(self._crew.together(lambda i: members[i].advance(complete, units)))


class Lazy:
    """A member decodes when it is asked, everything since it was last asked in one batch."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._prompt = b""
        self._own: dict[int, list[int]] = {}  # tokens of the reply, with one vocabulary
        self._places: dict[int, Place] = {}
        self._known: dict[int, Voter] = {}  # at these places

    def begin(self, prompt: bytes) -> None:
        """See `Schedule`."""
        self._prompt = prompt
        self._own = {i: [] for i in self._crew.running}
        self._places = {i: self._place(i, b"", ()) for i in self._crew.running}
        self._known = {}

    def prepare(
        self, reply: ReplyText, sampler: _core.Sampler, left: int | None, speak: Speak
    ) -> None:
        """See `Schedule`."""

    def look(self, who: Sequence[int]) -> list[Voter]:
        """See `Schedule`."""
        behind = [i for i in who if not self._knows(i)]
        if behind:
            self._bring(behind)
        return [self._known[i] for i in who]

    def _knows(self, i: int) -> bool:
        """Whether a member need not decode for the end of the reply."""
        if i not in self._known:
            view = self._crew.members[i].view(self._places[i])
            if view is not None:
                self._known[i] = view
        return i in self._known

    def follow(self, reply: ReplyText, symbol: int) -> bool:
        """See `Schedule`."""
        self._known = {}
        complete, units = reply.complete, tuple(reply.units)
        for i in self._crew.running:
            if self._crew.twin is not None:
                self._own[i].append(self._crew.twin(i, symbol))
            self._places[i] = self._place(i, complete, units)
        return all(self._fits(i, place) for i, place in self._places.items())

    def _place(
        self, i: int, complete: bytes, units: Sequence[bytes], ahead: Sequence[int] = ()
    ) -> Place:
        """Where a member has to be at the end of a text: the reply, or these symbols ahead of it.

        With one vocabulary the symbols matter, else the text.
        """
        member, twin = self._crew.members[i], self._crew.twin
        if twin is not None:
            return member.place_of(self._own[i] + [twin(i, symbol) for symbol in ahead])
        return member.place(complete, units)

    def _fits(self, i: int, place: Place) -> bool:
        return len(place.tokens) <= self._crew.members[i].n_ctx

    def _bring(self, behind: Sequence[int]) -> None:
        """Let members decode up to the end of the reply."""
        self._crew.together(lambda i: self._crew.members[i].go(self._places[i]), behind)
        for i in behind:
            self._known[i] = self._crew.members[i]

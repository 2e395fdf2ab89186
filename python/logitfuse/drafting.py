"""Draft and verify: somebody writes ahead, the others read it in one batch.

A draft only decides what is decoded when.  Every step is made as without it, from the rows and the
boundaries at the end of the reply; where the reply goes on as drafted these are already there.  So
the answer is that of plain lockstep, greedy or sampled, whatever the draft was (SAFE, arXiv
2510.15346, and Speculative Ensemble, arXiv 2502.01662, accept by a test of their own instead).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from logitfuse import _core
from logitfuse.errors import ConfigError
from logitfuse.places import Place
from logitfuse.schedules import Crew, Lazy, Speak
from logitfuse.text import ReplyText

#: More units than this are never all accepted, and the drafter's row is kept for each of them.
LONGEST_DRAFT = 64
#: How fast estimates follow what is measured.
_RATE = 0.1
#: Share of drafted units that are said, before any was drafted; where no draft pays, the estimate
#: drifts back to it, so that another one is tried now and then.
_PRIOR, _DRIFT = 0.7, 0.01
#: Units whose bytes are looked up in the earlier text, and how far ahead it is read, bytes.
_KEY_UNITS, _READ = 3, 128
#: Units of a known text that are read at a time.
_AHEAD = 31
#: Batches of more tokens say nothing about short ones.
_SHORT = 32


@dataclass(frozen=True)
class DraftOptions:
    """How to draft.

    Attributes
    ----------
    length : int
        Most units per draft, 1 to `LONGEST_DRAFT`.
    drafter : str or int or None
        The member that drafts, by name or index; None: the one that decodes fastest.
    ngrams : bool
        Nobody drafts: what followed the last three units earlier in the text is proposed.
    adapt : bool
        Choose the length, 0 included, that promises most units per second by the times measured so
        far; else always draft `length` units.

    Raises
    ------
    ConfigError
        A length out of range; a drafter for n-grams.
    """

    length: int = 8
    drafter: str | int | None = None
    ngrams: bool = False
    adapt: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.length <= LONGEST_DRAFT:
            raise ConfigError(
                f"draft length must lie in 1..{LONGEST_DRAFT}, not {self.length}", key="length"
            )
        if self.ngrams and self.drafter is not None:
            raise ConfigError("n-grams of the text need no drafter; give only one", key="drafter")


class Costs:
    """Running estimates of how long a decode of n tokens takes, seconds."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, n: int, seconds: float) -> None:
        """A decode of n tokens took so long."""
        if 0 < n <= _SHORT:
            before = self._seconds.get(n, seconds)
            self._seconds[n] = before + _RATE * (seconds - before)

    def of(self, n: int) -> float | None:
        """The estimate for n tokens, on a line between the nearest known; None: none is known.

        What is outside the known ones is taken to cost what the nearest one costs, so that longer
        drafts are tried.
        """
        known = sorted(self._seconds)
        if not known:
            return None
        low = max((m for m in known if m <= n), default=known[0])
        high = min((m for m in known if m >= n), default=known[-1])
        share = (n - low) / (high - low) if low < n < high else 0.0
        start = self._seconds[low] if low <= n else self._seconds[high]
        return start + share * (self._seconds[high] - start)


def expected_units(acceptance: float, length: int) -> float:
    """Units per round: those accepted and the one after them."""
    return sum(acceptance**k for k in range(length + 1))


class Draft(Lazy):
    """One member, or the text itself, runs ahead; the others verify it in one batch.

    Parameters
    ----------
    crew : Crew
    options : DraftOptions
    drafter : int, optional
        `DraftOptions.drafter` as an index.
    """

    def __init__(self, crew: Crew, options: DraftOptions, drafter: int | None = None) -> None:
        super().__init__(crew)
        self.options = options
        self._drafter = drafter
        self._costs = {i: Costs() for i in crew.running}
        self._alone = Costs()  # of the drafter with the threads of all
        #: Estimated share of drafted units that are said.
        self.acceptance = _PRIOR

    def begin(self, prompt: bytes) -> None:
        """See `Schedule`."""
        super().begin(prompt)
        self._keep_rows()
        self._ends = [0]  # of the units of the reply, bytes
        self._forget()

    def _keep_rows(self) -> None:
        """The drafter's rows over a whole draft are those of the steps that say it."""
        if self._drafter is not None:
            self._crew.members[self._drafter].keep_rows(self.options.length + 2)

    def _forget(self) -> None:
        """There is no draft."""
        self._ahead: ReplyText | None = None  # the reply and the draft
        self._symbols: list[int] = []  # of the draft, as far as it is not yet said

    def prepare(
        self, reply: ReplyText, sampler: _core.Sampler, left: int | None, speak: Speak
    ) -> None:
        """See `Schedule`."""
        if self._ahead is not None:
            return  # still being verified
        readers = [i for i in self._crew.running if i != self._drafter or self.options.ngrams]
        if all(self._knows(i) for i in readers):
            return  # the step after a whole draft comes for free
        length = self._plan(readers)
        length = length if left is None else min(length, left - 1)
        if length < 1:
            return
        if self.options.ngrams:
            self._look_up(reply, length)
        else:
            self._write(reply, sampler.clone(), length, speak)

    def follow(self, reply: ReplyText, symbol: int) -> bool:
        """See `Schedule`."""
        fits = super().follow(reply, symbol)
        said = reply.raw
        self._ends.append(len(said))
        if self._ahead is None:
            self.acceptance += _DRIFT * (_PRIOR - self.acceptance)
            return fits
        ahead = self._ahead.raw
        hit = ahead.startswith(said)
        self.acceptance += _RATE * (hit - self.acceptance)
        on_track = hit and (self._crew.twin is None or self._symbols[:1] == [symbol])
        if on_track and len(said) < len(ahead):
            del self._symbols[:1]
        else:
            self._forget()
        return fits

    # -- drafting -----------------------------------------------------------------------------

    def _plan(self, readers: Sequence[int]) -> int:
        """How many units to draft."""
        singles = {i: self._costs[i].of(1) for i in self._crew.running}
        known = {i: seconds for i, seconds in singles.items() if seconds is not None}
        if self._drafter is None and not self.options.ngrams:
            if len(known) < len(singles):
                return 0  # a plain step measures everybody
            self._drafter = min(known, key=known.__getitem__)
            self._keep_rows()
            return 0
        if not self.options.adapt:
            return self.options.length
        if len(known) < len(singles):
            return 0
        return max(
            range(self.options.length + 1),
            key=lambda n: expected_units(self.acceptance, n) / self._round(n, readers, known),
        )

    def _round(self, length: int, readers: Sequence[int], singles: dict[int, float]) -> float:
        """Seconds that a round with so many drafted units takes."""
        if length == 0:
            return max(singles.values())
        reading = max(self._costs[i].of(length + 1) or 0.0 for i in readers)
        if self._drafter is None:
            return reading
        alone = self._alone.of(1)
        return length * (singles[self._drafter] if alone is None else alone) + reading

    def _write(self, reply: ReplyText, sampler: _core.Sampler, length: int, speak: Speak) -> None:
        """The drafter goes on by itself, with the random numbers of the steps to come."""
        drafter = self._drafter
        assert drafter is not None
        ahead, symbols = reply, list[int]()
        place = self._places[drafter]
        while len(symbols) < length and not place.stalled and self._fits(drafter, place):
            member = self._crew.members[drafter]
            voter = member.view(place)
            if voter is None:
                self._go({drafter: (place, 1)})
                voter = member.view(place)
            said = None if voter is None else speak(drafter, voter, ahead, sampler)
            if said is None or not said[1]:
                break
            longer = deepcopy(ahead)
            longer.append(said[1])
            if longer.stopped:
                break
            ahead = longer
            symbols.append(said[0])
            sampler.accept(said[0])
            place = self._place(drafter, ahead.complete, tuple(ahead.units), symbols)
        if symbols:
            self._ahead, self._symbols = ahead, symbols

    def _look_up(self, reply: ReplyText, length: int) -> None:
        """Propose what followed the last units earlier in the text."""
        if len(self._ends) <= _KEY_UNITS or reply.unfinished:
            return
        said = reply.raw
        key, text = said[self._ends[-1 - _KEY_UNITS] :], self._prompt + said
        at = text.rfind(key, 0, len(text) - 1)
        if at < 0:
            return
        period = text[at + len(key) :]  # what goes on repeating itself, if it overlaps the key
        following = (period * (_READ // len(period) + 1))[:_READ].decode(errors="ignore").encode()
        first = self._crew.running[0]
        member = self._crew.members[first]
        tokens = member.tokenize(following)[:length]
        while _core.unfinished_utf8(member.vocab.join(tokens)[-3:]):
            tokens.pop()
        ahead = deepcopy(reply)
        ahead.append(member.vocab.join(tokens))
        if tokens and not ahead.stopped:
            self._ahead = ahead
            self._symbols = [self._crew.symbol(first, token) for token in tokens]

    # -- verifying ----------------------------------------------------------------------------

    def _bring(self, behind: Sequence[int]) -> None:
        self._go({i: self._target(i) for i in behind})
        lost = [i for i in behind if not self._knows(i)]
        if lost:
            super()._bring(lost)

    def _target(self, i: int) -> tuple[Place, int]:
        """Where a member goes: over the draft, if its tokens so far begin the longer text too."""
        here, ahead = self._places[i], self._ahead
        if ahead is None or i == self._drafter:
            return here, 1
        there = self._place(i, ahead.complete, tuple(ahead.units), self._symbols)
        views = len(there.tokens) - len(here.tokens) + 1
        fits = self._fits(i, there) and views < self._crew.members[i].context.n_batch
        if fits and there.tokens[: len(here.tokens)] == here.tokens:
            return there, views
        return here, 1

    def _go(self, targets: dict[int, tuple[Place, int]]) -> None:
        """Let members decode, and time them."""
        members = self._crew.members
        before = {i: (members[i].stats.decoded_tokens, members[i].stats.decode_s) for i in targets}
        alone = len(targets) == 1
        self._crew.together(lambda i: members[i].go(*targets[i]), targets)
        for i, (tokens, seconds) in before.items():
            costs = self._alone if alone and i == self._drafter else self._costs[i]
            costs.observe(
                members[i].stats.decoded_tokens - tokens, members[i].stats.decode_s - seconds
            )


class ReadAhead(Draft):
    """The text is known: all members read it in batches.

    Parameters
    ----------
    crew : Crew
    text : bytes
        The whole reply.
    script : mapping of int to int
        Its symbols by the byte where they begin.
    """

    def __init__(self, crew: Crew, text: bytes, script: Mapping[int, int]) -> None:
        super().__init__(crew, DraftOptions(_AHEAD, ngrams=True, adapt=False))
        self._text = text
        self._starts = np.fromiter(script, np.int64, len(script))
        self._script = list(script.values())

    def _look_up(self, reply: ReplyText, length: int) -> None:
        """Propose what follows, to where one of its symbols ends together with a character."""
        if reply.unfinished:
            return
        at = self._ends[-1]
        first = int(np.searchsorted(self._starts, at))
        last = first + length
        while last > first:
            end = int(self._starts[last]) if last < len(self._starts) else len(self._text)
            if not _core.unfinished_utf8(self._text[max(0, end - 3) : end]):
                break
            last -= 1
        if last > first:
            self._ahead = deepcopy(reply)
            self._ahead.append(self._text[at:end])
            self._symbols = self._script[first:last]

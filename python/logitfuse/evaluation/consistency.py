"""Adaptive self-consistency: what one model achieves when it is asked again for the same time.

Samples are taken in rounds: one of every item, then one more of every item that is not decided,
until the seconds are spent.  The answer is the one given most often (Wang et al. 2022, arXiv
2203.11171).  A run that draws samples and a replay of those in a table go by the same rule.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from logitfuse.evaluation.table import Outcome

#: How sure to be that the leading answer would stay ahead, and the most samples of an item.
SURE, MOST_SAMPLES = 0.95, 40


@dataclass(frozen=True)
class Sample:
    """One answer to an item.

    Attributes
    ----------
    answer : str or None
        What is voted for; None abstains (no answer could be read from the text).
    seconds : float
    tokens : mapping
        Tokens that went through a forward pass, by member.
    """

    answer: str | None
    seconds: float
    tokens: Mapping[str, int] = field(default_factory=dict)


def vote(parsed: Any) -> str | None:
    """What a parsed answer is compared by: equal votes are equal answers."""
    return None if parsed is None else json.dumps(parsed, sort_keys=True)


def sample_of(outcome: Outcome) -> Sample:
    """The sample in a row of a table, whose parsed answer is ``data["parsed"]``."""
    parsed = outcome.data.get("parsed") if outcome.error is None else None
    return Sample(vote(parsed), outcome.seconds, outcome.tokens)


def seconds_of(outcomes: Iterable[Outcome], contender: str) -> float:
    """Seconds that a contender took in all, also for what failed."""
    return math.fsum(row.seconds for row in outcomes if row.contender == contender)


def certainty(first: int, second: int) -> float:
    """Probability that the leading answer is more likely than the runner-up, given their votes.

    The mass above 1/2 of a Beta distribution with the parameters ``first + 1`` and ``second + 1``
    (Adaptive-Consistency, Aggarwal et al. 2023, arXiv 2305.11860), which is the chance of at most
    `first` heads in ``first + second + 1`` tosses.
    """
    tosses = first + second + 1
    ways = sum(math.comb(tosses, heads) for heads in range(first + 1))
    return math.ldexp(ways, -tosses)


class SelfConsistency:
    """Says which sample to draw next, and what the samples so far have decided.

    Parameters
    ----------
    items : iterable of str
        They are asked in an order that depends on nothing but their names, so that the last round,
        which the budget may cut short, prefers no group.
    budget : float
        Seconds.  The first round is always finished: an item that was never asked has no answer.
    """

    def __init__(self, items: Iterable[str], budget: float) -> None:
        self._samples: dict[str, list[Sample]] = {
            item: [] for item in sorted(set(items), key=lambda item: (_hash(item), item))
        }
        self._votes: dict[str, Counter[str]] = {item: Counter() for item in self._samples}
        self._round, self._queue = 1, list(reversed(self._samples))
        self._budget, self._spent = budget, 0.0

    @property
    def spent(self) -> float:
        """Seconds of all samples."""
        return self._spent

    @property
    def samples(self) -> Mapping[str, list[Sample]]:
        """The samples of each item, in the order in which they were drawn."""
        return self._samples

    def next_sample(self) -> tuple[str, int] | None:
        """The item to ask next and the number of the sample, from 1; None if it is over."""
        if not self._queue:
            self._round += 1
            self._queue = [item for item in reversed(self._samples) if not self.decided(item)]
        if not self._queue or (self._round > 1 and self._spent >= self._budget):
            return None
        return self._queue[-1], self._round

    def add(self, sample: Sample) -> None:
        """Take in the sample that `next_sample` asked for; ValueError if it asked for none."""
        asked = self.next_sample()
        if asked is None:
            raise ValueError("no sample was asked for: the seconds are spent or all is decided")
        item = self._queue.pop()
        self._samples[item].append(sample)
        self._spent += sample.seconds
        if sample.answer is not None:
            self._votes[item][sample.answer] += 1

    def answer(self, item: str) -> str | None:
        """The answer given most often, of equals the one that came first; None without any."""
        votes = self._votes[item]
        return max(votes, key=votes.__getitem__) if votes else None

    def decided(self, item: str) -> bool:
        """Whether more samples would hardly change the answer, or there are 40 already."""
        first, second = [*sorted(self._votes[item].values(), reverse=True), 0, 0][:2]
        return len(self._samples[item]) >= MOST_SAMPLES or certainty(first, second) >= SURE


def self_consistency(samples: Mapping[str, Mapping[int, Sample]], budget: float) -> SelfConsistency:
    """Replay samples that were drawn before, as far as they go.

    Parameters
    ----------
    samples : mapping
        By item and number, from 1.
    budget : float
        Seconds.
    """
    replay = SelfConsistency(samples, budget)
    while (asked := replay.next_sample()) is not None:
        item, number = asked
        if number not in samples[item]:  # the run was interrupted here
            break
        replay.add(samples[item][number])
    return replay


def _hash(item: str) -> bytes:
    return hashlib.sha256(item.encode()).digest()

"""Gates: who may vote in a step, and when one member, the primary, speaks alone.

The two questions are orthogonal.  A *gate* says who may vote; a *solo* rule says of the primary,
once it may vote, that nobody else need be asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from logitfuse import _core
from logitfuse.errors import ConfigError

if TYPE_CHECKING:
    from logitfuse.llama import Row

GateName: TypeAlias = Literal["boundary", "always"]
SoloName: TypeAlias = Literal["primary", "entropy", "margin", "critical", "certain"]

#: Best tokens among which the two best symbols of a row are looked for.
_TOP = 8


class Voter(Protocol):
    """What a gate looks at."""

    @property
    def row(self) -> Row | None:
        """Logits of the next token."""

    @property
    def boundary(self) -> float:
        """The member's own belief that its last token ends where it ends, 0..1."""

    @property
    def stalled(self) -> bool:
        """Its row is not about the text as it stands."""


Gate: TypeAlias = Callable[[Sequence[Voter], Sequence[float]], list[float]]


def has_row(voter: Voter) -> bool:
    """Whether a member can vote at all."""
    return not voter.stalled


def believes(voter: Voter) -> bool:
    """Whether a member believes its last token to be finished."""
    return not voter.stalled and voter.boundary >= 0.5


#: Whom each gate lets vote, whatever the others believe.
ABLE: dict[GateName, Callable[[Voter], bool]] = {"boundary": believes, "always": has_row}


def always(voters: Sequence[Voter], weights: Sequence[float]) -> list[float]:
    """All members vote that have a row at all."""
    return [
        weight if has_row(voter) else 0.0 for voter, weight in zip(voters, weights, strict=True)
    ]


def boundary(voters: Sequence[Voter], weights: Sequence[float]) -> list[float]:
    """Members vote that believe their last token to be finished; else the most confident leads.

    After the shared text was extended, a member's last token may be one that the member itself
    would rather have continued ("hel" before "lo"): its row then speaks about a text it does not
    believe in.  Below a *boundary probability* of 1/2 it abstains for the step.  Fusing regardless
    is what makes token-level ensembles decay in long answers (SAFE, arXiv 2510.15346).
    """
    votes = [
        weight if believes(voter) else 0.0 for voter, weight in zip(voters, weights, strict=True)
    ]
    if any(votes):
        return votes
    able = [i for i, vote in enumerate(always(voters, weights)) if vote]
    leader = max(able, key=lambda i: (voters[i].boundary, weights[i]))
    return [weight if i == leader else 0.0 for i, weight in enumerate(weights)]


GATES: dict[GateName, Gate] = {"boundary": boundary, "always": always}


class Features(Protocol):
    """What a solo rule looks at: how sure one member is of its next symbol."""

    @property
    def row(self) -> Row:
        """Its logits."""

    @property
    def logprob(self) -> float:
        """Of its best symbol, nats."""

    @property
    def margin(self) -> float:
        """By how much that exceeds the log-probability of the second best."""

    @property
    def entropy(self) -> float:
        """Of its whole distribution over symbols, nats."""


class RowFeatures:
    """The features of the one row that a linear pool has just read."""

    def __init__(self, pool: _core.Pool, n_symbols: int, row: Row) -> None:
        self.row = row
        self._pool = pool
        self._n_symbols = n_symbols

    @cached_property
    def _best(self) -> tuple[float, float]:
        fused = self._pool.candidates(_TOP)
        return fused.logprob(0), fused.logprob(1) if len(fused) > 1 else -math.inf

    @property
    def logprob(self) -> float:
        """See `Features`."""
        return self._best[0]

    @property
    def margin(self) -> float:
        """See `Features`."""
        return self._best[0] - self._best[1]

    @cached_property
    def entropy(self) -> float:
        """See `Features`."""
        logprobs = np.empty(self._n_symbols, np.float32)
        self._pool.dense(logprobs)
        known = logprobs[logprobs > -np.inf]
        return float(-np.dot(np.exp(known), known))


class Solo(Protocol):
    """Decides from the primary's own distribution that it may speak alone."""

    def __call__(self, features: Features) -> bool:
        """Whether nobody else is asked."""


@dataclass(frozen=True)
class Primary:
    """The primary is sure: its best symbol has at least this probability (GaC, arXiv 2406.12585).

    Raises
    ------
    ConfigError
        The threshold is not in 0..1.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        _check("a probability in 0..1", self.threshold, 0.0 <= self.threshold <= 1.0)

    def __call__(self, features: Features) -> bool:
        """See `Solo`."""
        return math.exp(features.logprob) >= self.threshold


@dataclass(frozen=True)
class Entropy:
    """The primary's distribution has at most this entropy, nats.

    Raises
    ------
    ConfigError
        The threshold is negative or not finite.
    """

    threshold: float

    def __post_init__(self) -> None:
        _check("finite nats, at least 0", self.threshold, 0.0 <= self.threshold < math.inf)

    def __call__(self, features: Features) -> bool:
        """See `Solo`."""
        return features.entropy <= self.threshold


@dataclass(frozen=True)
class Margin:
    """The primary's best symbol leads the second by at least so many nats.

    Raises
    ------
    ConfigError
        The threshold is negative or not finite.
    """

    threshold: float

    def __post_init__(self) -> None:
        _check("finite nats, at least 0", self.threshold, 0.0 <= self.threshold < math.inf)

    def __call__(self, features: Features) -> bool:
        """See `Solo`."""
        return features.margin >= self.threshold


@dataclass(frozen=True)
class Critical:
    """A learned classifier does not hold the next token for critical.

    Which tokens are worth another model's opinion can be learned (Co-LLM, ACL 2024; CITER, COLM
    2025): here from the `Features` of the primary, which every model has.

    Attributes
    ----------
    classifier : callable
        True: the token is critical, everybody is asked.
    """

    classifier: Callable[[Features], bool]

    def __call__(self, features: Features) -> bool:
        """See `Solo`."""
        return not self.classifier(features)


@dataclass(frozen=True)
class Certain:
    """The greedy answer of the linear pool can no longer change; lossless.

    Members are asked in the order of their weights until the best symbol leads the second by more
    than the weight of those not asked.  Without a linear pool, in sampling, or with penalties and
    biases, everybody is asked.
    """


def make_solo(
    name: SoloName,
    threshold: float | None = None,
    classifier: Callable[[Features], bool] | None = None,
) -> Solo | Certain:
    """A solo rule by its name.

    Raises
    ------
    ConfigError
        Unknown name, or the rule lacks its threshold or classifier, or has no use for it.
    """
    given = {"threshold": threshold, "classifier": classifier}
    wanted = {"critical": "classifier", "certain": None}.get(name, "threshold")
    for key, value in given.items():
        if value is not None and key != wanted:
            raise ConfigError(f"the solo rule '{name}' takes no {key}", key=key)
    if name == "primary":
        return Primary() if threshold is None else Primary(threshold)
    if name == "certain":
        return Certain()
    if name not in ("entropy", "margin", "critical"):
        known = ", ".join(("primary", "entropy", "margin", "critical", "certain"))
        raise ConfigError(f"unknown solo rule '{name}'; known: {known}", key="solo")
    if name == "critical" and classifier is not None:
        return Critical(classifier)
    if name == "critical" or threshold is None:
        raise ConfigError(f"the solo rule '{name}' needs a {wanted}", key=wanted)
    return Entropy(threshold) if name == "entropy" else Margin(threshold)


def one_begins_the_other(a: bytes, b: bytes) -> bool:
    """Whether two units are the same text as far as the shorter goes; the end is no text."""
    return bool(a and b) and (a.startswith(b) or b.startswith(a))


def _check(what: str, threshold: float, fine: bool) -> None:
    if not fine:
        raise ConfigError(f"the threshold must be {what}, not {threshold}", key="threshold")

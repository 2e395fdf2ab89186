"""Gates: who may vote in a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeAlias

GateName: TypeAlias = Literal["boundary", "always"]


class Voter(Protocol):
    """What a gate looks at."""

    #: The member's own belief that its last token ends where it ends, 0..1.
    boundary: float
    #: Its row is not about the text as it stands.
    stalled: bool


Gate: TypeAlias = Callable[[Sequence[Voter], Sequence[float]], list[float]]


def always(voters: Sequence[Voter], weights: Sequence[float]) -> list[float]:
    """All members vote that have a row at all."""
    return [0.0 if voter.stalled else weight for voter, weight in zip(voters, weights, strict=True)]


def boundary(voters: Sequence[Voter], weights: Sequence[float]) -> list[float]:
    """Members vote that believe their last token to be finished; else the most confident leads.

    After the shared text was extended, a member's last token may be one that the member itself
    would rather have continued ("hel" before "lo"): its row then speaks about a text it does not
    believe in.  Below a *boundary probability* of 1/2 it abstains for the step.  Fusing regardless
    is what makes token-level ensembles decay in long answers (SAFE, arXiv 2510.15346).
    """
    votes = [
        weight if voter.boundary >= 0.5 else 0.0
        for voter, weight in zip(voters, always(voters, weights), strict=True)
    ]
    if any(votes):
        return votes
    able = [i for i, vote in enumerate(always(voters, weights)) if vote > 0]
    leader = max(able, key=lambda i: (voters[i].boundary, weights[i]))
    return [weight if i == leader else 0.0 for i, weight in enumerate(weights)]


GATES: dict[GateName, Gate] = {"boundary": boundary, "always": always}

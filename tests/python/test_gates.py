"""Gates: who may vote."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logitfuse.gates import GATES, always, boundary


@dataclass(frozen=True)
class Voter:
    boundary: float = 1.0
    stalled: bool = False


SURE, HALF, UNSURE, DOUBTFUL = Voter(1.0), Voter(0.5), Voter(0.4), Voter(0.1)
STALLED = Voter(1.0, stalled=True)


@pytest.mark.parametrize(
    ("voters", "weights", "votes"),
    [
        ([SURE, HALF], [0.3, 0.7], [0.3, 0.7]),
        ([SURE, UNSURE], [0.3, 0.7], [0.3, 0.0]),
        ([SURE, STALLED], [0.3, 0.7], [0.3, 0.0]),
        ([UNSURE, DOUBTFUL], [0.3, 0.7], [0.3, 0.0]),  # nobody is sure: the best leads
        ([UNSURE, UNSURE, DOUBTFUL], [0.3, 0.4, 0.3], [0.0, 0.4, 0.0]),  # equal: by weight
        ([STALLED, DOUBTFUL], [0.9, 0.1], [0.0, 0.1]),
        ([SURE, DOUBTFUL], [0.0, 1.0], [0.0, 1.0]),  # weight 0: absent, however sure
        ([SURE, UNSURE, DOUBTFUL], [0.0, 0.5, 0.5], [0.0, 0.5, 0.0]),
    ],
)
def test_boundary(voters: list[Voter], weights: list[float], votes: list[float]) -> None:
    assert boundary(voters, weights) == votes


def test_always() -> None:
    assert always([SURE, DOUBTFUL, STALLED], [0.2, 0.3, 0.5]) == [0.2, 0.3, 0.0]


@pytest.mark.parametrize("gate", GATES)
@given(
    members=st.lists(
        st.tuples(st.floats(0, 1), st.booleans(), st.sampled_from([0.0, 0.25, 1.0])), min_size=1
    ).filter(lambda members: any(weight and not stalled for _, stalled, weight in members))
)
def test_somebody_able_votes_with_its_own_weight(
    gate: str, members: list[tuple[float, bool, float]]
) -> None:
    voters = [Voter(belief, stalled) for belief, stalled, _ in members]
    weights = [weight for _, _, weight in members]
    votes = GATES[gate](voters, weights)
    assert any(votes)
    for voter, weight, vote in zip(voters, weights, votes, strict=True):
        assert vote in (0.0, weight)
        assert not (voter.stalled and vote)

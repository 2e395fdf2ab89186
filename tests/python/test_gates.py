"""Gates: who may vote, and who may speak alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from logitfuse import _core
from logitfuse.alignment import align
from logitfuse.errors import ConfigError
from logitfuse.gates import (
    GATES,
    Certain,
    Critical,
    Entropy,
    Margin,
    Primary,
    RowFeatures,
    always,
    boundary,
    make_solo,
    one_begins_the_other,
)
from logitfuse.pooling import FLOOR
from logitfuse.vocab import TokenKind, Vocab


@dataclass(frozen=True)
class Voter:
    boundary: float = 1.0
    stalled: bool = False
    row: None = None


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


@dataclass(frozen=True)
class Sure:
    """Features of a row."""

    logprob: float = math.log(0.5)
    margin: float = 1.0
    entropy: float = 2.0


class TestSolo:
    @pytest.mark.parametrize(
        ("rule", "alone"),
        [
            (Primary(0.49), True),
            (Primary(0.51), False),
            (Primary(0.0), True),
            (Entropy(2.0), True),
            (Entropy(1.9), False),
            (Margin(1.0), True),
            (Margin(1.1), False),
            (Critical(lambda sure: sure.margin < 2), False),
            (Critical(lambda sure: sure.margin < 0.5), True),
        ],
    )
    def test_rules(self, rule: Any, alone: bool) -> None:
        assert rule(Sure()) == alone

    @pytest.mark.parametrize(
        ("rule", "arguments"),
        [
            (Primary(), ("primary",)),
            (Primary(0.3), ("primary", 0.3)),
            (Entropy(1.0), ("entropy", 1.0)),
            (Margin(2.0), ("margin", 2.0)),
            (Critical(callable), ("critical", None, callable)),
            (Certain(), ("certain",)),
        ],
    )
    def test_by_name(self, rule: Any, arguments: Any) -> None:
        assert make_solo(*arguments) == rule

    @pytest.mark.parametrize(
        ("arguments", "message", "key"),
        [
            (("never",), "unknown solo rule 'never'", "solo"),
            (("entropy",), "needs a threshold", "threshold"),
            (("margin",), "needs a threshold", "threshold"),
            (("critical",), "needs a classifier", "classifier"),
            (("critical", 0.5), "takes no threshold", "threshold"),
            (("certain", 0.5), "takes no threshold", "threshold"),
            (("primary", None, callable), "takes no classifier", "classifier"),
            (("primary", 1.5), "not 1.5", "threshold"),
            (("entropy", -1.0), "not -1.0", "threshold"),
            (("margin", math.inf), "not inf", "threshold"),
            (("primary", math.nan), "not nan", "threshold"),
        ],
    )
    def test_refused(self, arguments: Any, message: str, key: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            make_solo(*arguments)
        assert caught.value.key == key


@settings(max_examples=50)
@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4),
    shift=st.floats(-5, 5, width=32),
)
def test_features_are_those_of_the_oracle(logits: list[float], shift: float) -> None:
    """Tokens of equal bytes are one symbol."""
    tokens = [b"a", b"b", b"c", b"c"]
    kinds = [TokenKind.TEXT, TokenKind.TEXT, TokenKind.TEXT, TokenKind.BYTE]
    vocab, other = Vocab(tokens, kinds), Vocab([b"a", b"z"])
    alignment = align([vocab, other])
    pool = _core.Pool(alignment._core, "linear", FLOOR)
    row = np.array(logits, np.float32) + np.float32(shift)
    pool.read([row, None], [1.0, 0.0])
    found = RowFeatures(pool, len(alignment), row)
    assert found.row is row
    names = [kind.name.lower() for kind in kinds]
    expected = np.sort(list(reference.member_logprobs(row, tokens, names).values()))[::-1]
    assert found.logprob == pytest.approx(expected[0], abs=1e-5)
    assert found.margin == pytest.approx(expected[0] - expected[1], abs=1e-4)
    assert found.entropy == pytest.approx(-(np.exp(expected) * expected).sum(), abs=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (b"hel", b"hello", True),
        (b"hello", b"hel", True),
        (b"a", b"a", True),
        (b"a", b"b", False),
        (b"", b"a", False),
        (b"a", b"", False),
    ],
)
def test_one_begins_the_other(a: bytes, b: bytes, same: bool) -> None:
    assert one_begins_the_other(a, b) == same

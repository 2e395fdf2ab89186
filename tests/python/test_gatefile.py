"""The file of fitted weights: read back as written, and refused where it does not belong."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from byte_texts import members_of
from hypothesis import given
from hypothesis import strategies as st
from logitfuse import __version__
from logitfuse.critical_gates import train_critical
from logitfuse.errors import ConfigError
from logitfuse.gatefile import (
    Critical,
    FileMember,
    Gate,
    GateFile,
    Weights,
    finite,
    identity,
    load_gatefile,
)
from logitfuse.learned_gates import train_gate

ONE, TWO, THREE = (hashlib.sha256(name).hexdigest() for name in (b"1", b"2", b"3"))
MEMBERS = [FileMember(name="one", sha256=ONE), FileMember(name="two", sha256=TWO)]


def constant(*weights: float) -> GateFile:
    return GateFile(member=MEMBERS, learned=Weights(weights=list(weights)))


@pytest.fixture(scope="module")
def learned() -> list[Weights | Gate | Critical]:
    """One of each kind."""
    _, scores = members_of(800, [(3.0, 0.7), (2.0, 0.6)])
    weights = Weights(weights=[1 / 3, 2 / 3], pool="log-linear")
    return [weights, Gate.of(train_gate(scores)), Critical.of(train_critical(scores))]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_round_trip(kind: int, learned: list[Weights | Gate | Critical], tmp_path: Path) -> None:
    path = tmp_path / "pair.json"
    figures = {"best": math.inf, "folds": ({"n": 3},)}
    file = GateFile(member=MEMBERS, learned=learned[kind], data_sha256=THREE, figures=figures)
    file.save(path)
    read = load_gatefile(path, [ONE, TWO])
    assert read.learned == learned[kind]
    assert read.member == MEMBERS
    assert (read.data_sha256, read.logitfuse) == (THREE, __version__)
    assert read.figures == {"best": None, "folds": [{"n": 3}]}


def test_gates_run_as_trained(learned: list[Weights | Gate | Critical]) -> None:
    _, scores = members_of(800, [(3.0, 0.7), (2.0, 0.6)])
    _, gate, critical = learned
    assert isinstance(gate, Gate)
    assert isinstance(critical, Critical)
    rows = [own.logprobs[5] for own in scores]
    trained = train_gate(scores).native().weights(rows, [-1.0, -2.0])
    assert gate.native().weights(rows, [-1.0, -2.0]) == trained
    asked = train_critical(scores).native().probability(rows[0])
    assert critical.native().probability(rows[0]) == asked


@given(st.lists(st.floats(0, 1), min_size=2, max_size=2).filter(any))
def test_numbers_survive_exactly(tmp_path_factory: Any, weights: list[float]) -> None:
    path = tmp_path_factory.getbasetemp() / "numbers.json"
    constant(*weights).save(path)
    read = load_gatefile(path).learned
    assert isinstance(read, Weights)
    assert read.weights == weights


@pytest.mark.parametrize(
    ("identities", "match"),
    [
        ([TWO, ONE], "in another order; give them as one, two"),
        ([ONE], r"for 2 members \(one, two\), not for 1"),
        (
            [ONE, THREE],
            f"another model than member 1: its sha256 is {THREE[:12]}..., that of 'two' was "
            rf"{TWO[:12]}.*run logitfuse fit again",
        ),
    ],
)
def test_other_models(identities: list[str], match: str, tmp_path: Path) -> None:
    path = tmp_path / "pair.json"
    constant(0.5, 0.5).save(path)
    with pytest.raises(ConfigError, match=match) as caught:
        load_gatefile(path, identities)
    assert caught.value.path == path
    with pytest.raises(ConfigError, match="these weights were fitted"):
        load_gatefile(path).require(identities)


def damaged(**changes: Any) -> str:
    return json.dumps(constant(0.5, 0.5).model_dump() | changes)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "cannot read the weights"),
        ("[]", "holds no weights of logitfuse"),
        (damaged(format="gguf"), "format"),
        (damaged(version=2), "version"),
        (damaged(surprise=1), "surprise"),
        (damaged(member=[]), "member"),
        (damaged(member=[{"name": "one", "sha256": "xyz"}]), "member.0.sha256"),
        (damaged(learned={"kind": "magic"}), "learned"),
        (damaged(learned={"kind": "weights", "weights": [1.0]}), "for 1 members, but 2 are named"),
        (damaged(learned={"kind": "weights", "weights": [1.0, -1.0]}), "member 1 must be"),
        (damaged(learned={"kind": "weights", "weights": [1.0, math.nan]}), "finite"),
        (
            damaged(learned={"kind": "gate", "bias": [0, 0], "matrix": [[0], [0]], "centre": [0]}),
            "has 9 features, not 1",
        ),
        (
            damaged(
                learned={
                    "kind": "gate",
                    "features": 99,
                    "bias": [0, 0],
                    "matrix": [[0], [0]],
                    "centre": [0],
                }
            ),
            "features of version 99, .* run logitfuse fit again",
        ),
        (
            damaged(
                learned={
                    "kind": "critical",
                    "primary": 2,
                    "weights": [1, 1],
                    "bias": 0,
                    "coefficients": [0] * 3,
                    "centre": [0] * 3,
                    "threshold": 0.5,
                }
            ),
            "there is no member 2",
        ),
    ],
)
def test_damaged(text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "pair.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match) as caught:
        load_gatefile(path)
    assert caught.value.path == path


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the weights"):
        load_gatefile(tmp_path / "missing.json")
    with pytest.raises(ConfigError, match="cannot write"):
        constant(1, 1).save(tmp_path / "missing" / "pair.json")
    with pytest.raises(ConfigError, match="cannot read the model"):
        identity(tmp_path / "missing.gguf")


def test_identity(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "model.gguf").write_bytes(data)
    assert identity(tmp_path / "model.gguf") == hashlib.sha256(data).hexdigest()


def test_finite() -> None:
    data = {"a": (math.nan, 1.5), "b": [{"c": -math.inf}], "d": True, "e": "inf", "f": None}
    assert finite(data) == {
        "a": [None, 1.5],
        "b": [{"c": None}],
        "d": True,
        "e": "inf",
        "f": None,
    }

"""Which instruction set the core uses; the kernels themselves are tested in tests/cpp."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from logitfuse import _core

ISAS = _core.available_isas()


def isa_of_a_new_process(choice: str | None) -> subprocess.CompletedProcess[str]:
    """Print the instruction set that a process with this LOGITFUSE_ISA uses."""
    environment = {key: value for key, value in os.environ.items() if key != "LOGITFUSE_ISA"}
    if choice is not None:
        environment["LOGITFUSE_ISA"] = choice
    return subprocess.run(
        [sys.executable, "-c", "from logitfuse import _core; print(_core.isa())"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_there_is_always_a_baseline() -> None:
    assert ISAS[0] == "baseline"
    assert len(set(ISAS)) == len(ISAS)


@pytest.mark.parametrize("choice", ISAS)
def test_the_environment_chooses(choice: str) -> None:
    assert isa_of_a_new_process(choice).stdout.strip() == choice


@pytest.mark.parametrize("choice", [None, ""])
def test_the_best_is_the_default(choice: str | None) -> None:
    assert isa_of_a_new_process(choice).stdout.strip() == ISAS[-1]


def test_an_unknown_choice_of_the_environment_is_an_error() -> None:
    result = isa_of_a_new_process("avx1024")
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert last == (
        "ValueError: LOGITFUSE_ISA 'avx1024' is unknown or not available here; "
        f"available: {', '.join(ISAS)}"
    )


def test_set_isa(isa: str) -> None:
    assert _core.isa() == isa


def test_set_isa_to_an_unknown_name_changes_nothing() -> None:
    before = _core.isa()
    with pytest.raises(ValueError, match=r"'sse9' is unknown .* available: baseline"):
        _core.set_isa("sse9")
    assert _core.isa() == before


def test_log_sum_exp(isa: str) -> None:
    assert _core.isa() == isa
    for n in (1, 127, 128, 129, 5000):
        row = np.random.default_rng(n).normal(3, 5, n).astype(np.float32)
        want = np.logaddexp.reduce(row.astype(np.float64))
        assert _core.log_sum_exp(row) == pytest.approx(want, abs=3e-7)
    with pytest.raises(TypeError):
        _core.log_sum_exp(np.zeros(3))

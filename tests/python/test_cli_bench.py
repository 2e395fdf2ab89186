"""``logitfuse bench``, and what it measures."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pexpect
import pytest
from logitfuse import __version__
from logitfuse.benchmark import PARTS, Plan, Series, Trial, measure
from logitfuse.cli import main
from logitfuse.errors import ConfigError
from logitfuse.machine import machine
from logitfuse.strategies.fuse import Fuse

NAMES = ["smol", "gemma3", "together"]
TEXT = "The harbour lay quiet under the morning fog. "


@pytest.fixture(scope="module")
def pair(tiny_models: Mapping[str, Path]) -> list[str]:
    """Options for two members."""
    files = [part for name in ("smol", "gemma3") for part in ("-m", str(tiny_models[name]))]
    return [*files, "-c", "256"]


@pytest.fixture
def bench(pair: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command on the two; what it says on stdout."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["bench", *pair, *arguments])
        said = capsys.readouterr()
        assert caught.value.code == 0, said.err
        return said.out

    return run


@pytest.fixture
def refusal(pair: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line of a command that fails."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["bench", *pair, *arguments])
        said = capsys.readouterr()
        assert (caught.value.code, said.out) == (2, "")
        (line,) = (line for line in said.err.splitlines() if line.startswith("logitfuse: "))
        assert said.err.splitlines()[-1] == line
        return line

    return run


def check(row: Mapping[str, Any]) -> None:
    """What must hold of the figures of any run that answers."""
    assert float(row["tokens_per_s"]) > 0
    assert float(row["bytes_per_s"]) > 0
    shares = {part: float(row[f"{part}_share"]) for part in PARTS}
    assert all(share > 0 for share in shares.values())
    assert sum(shares.values()) <= 1
    total, prefill = float(row["total_s"]), float(row["prefill_s"])
    for part, share in shares.items():
        assert float(row[f"{part}_s"]) == pytest.approx(share * total)
    answering = total - prefill
    assert float(row["overhead"]) == pytest.approx(1 - float(row["decode_s"]) / answering)


class TestForms:
    TINY = ("-t", "1", "-p", "5", "-n", "3", "-r", "1")

    def test_json(self, bench: Callable[..., str]) -> None:
        document = json.loads(bench(*self.TINY, "--json"))
        assert document["machine"]["logitfuse"] == __version__
        results = document["results"]
        assert [row["name"] for row in results] == NAMES
        assert [row["threads"] for row in results] == ["1", "1", "1+1"]
        for row in results:
            assert (row["test"], row["n_prompt"], row["n_gen"]) == ("pp5+tg3", 5, 3)
            assert row["sampling"] == "greedy"
            check(row)

    def test_rows_that_stand_alone(self, bench: Callable[..., str]) -> None:
        rows = list(csv.DictReader(io.StringIO(bench(*self.TINY, "-o", "csv"))))
        lines = [json.loads(line) for line in bench(*self.TINY, "-o", "jsonl").splitlines()]
        for results in (rows, lines):
            assert [row["name"] for row in results] == NAMES
            for row in results:
                check(row)
                assert row["cpu"] == machine()["cpu"]
                assert row["compiler"]
        assert set(rows[-1]) == set(lines[-1])

    def test_table(self, bench: Callable[..., str]) -> None:
        head, _, *table = bench(*self.TINY).splitlines()
        for part in (machine()["cpu"], f"logitfuse {__version__}", "llama.cpp", "NumPy", "greedy"):
            assert part in head
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
        assert {len(row) for row in cells} == {13}
        assert [row[0] for row in cells[2:]] == NAMES
        assert [row[-1] == "" for row in cells[2:]] == [True, True, False]

    def test_one_member(
        self, tiny_models: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            main(["bench", "-m", str(tiny_models["smol"]), "-c", "256", *self.TINY])
        table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        assert len(table) == 3
        assert "÷" not in table[0]


class TestSweeps:
    def test_lengths(self, bench: Callable[..., str]) -> None:
        document = json.loads(bench("-t", "1", "-p", "5,0", "-n", "0, 2", "-r", "1", "--json"))
        tests = [row["test"] for row in document["results"]]
        assert tests == [test for test in ("pp5", "pp5+tg2", "tg2") for _ in NAMES]
        for row in document["results"]:
            assert ("prompt_per_s" in row) == (row["n_prompt"] > 0)
            assert ("tokens_per_s" in row) == (row["n_gen"] > 0)
            assert ("of_fastest" in row) == (row["name"] == "together")
        rows = bench("-t", "1", "-p", "5", "-n", "0,2", "-r", "1", "-o", "csv")
        shares = [row["decode_share"] for row in csv.DictReader(io.StringIO(rows))]
        assert [share == "" for share in shares] == [True] * 3 + [False] * 3

    def test_threads_of_each_member(self, bench: Callable[..., str]) -> None:
        options = ("-p", "5", "-n", "0", "-r", "1", "--json")
        for given, threads in (("-t", "1,1"), ("--sweep-threads", "1")):
            results = json.loads(bench(given, threads, *options))["results"]
            assert [row["threads"] for row in results] == ["1", "1", "1+1"]

    def test_sampling(self, bench: Callable[..., str]) -> None:
        options = ("-t", "1", "-p", "5", "-n", "2", "-r", "1", "--json", "--temp", "0.8")
        for strategy in ("fuse", "bytes", "mix"):
            results = json.loads(bench(*options, "--strategy", strategy))["results"]
            assert {row["sampling"] for row in results} == {"temperature 0.8"}
            for row in results:
                check(row)

    @pytest.mark.parametrize("strategy", ["fuse", "bytes"])
    def test_batches(self, pair: list[str], strategy: str) -> None:
        """In a process of its own: llama.cpp aborts if a batch has fewer rows than sequences."""
        options = ["-t", "1", "-p", "40", "-n", "2", "-r", "1", "--sweep-batch", "1,32"]
        command = [sys.executable, "-m", "logitfuse", "bench", *pair, *options]
        done = subprocess.run(
            [*command, "--strategy", strategy, "-o", "jsonl"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[:1000]
        sizes = [json.loads(line)["n_batch"] for line in done.stdout.splitlines()]
        least = 2 if strategy == "fuse" else 17  # one row per sequence
        assert sizes == [least] * 3 + [32] * 3


def test_on_a_terminal(pair: list[str]) -> None:
    arguments = ["-m", "logitfuse", "bench", *pair, "-t", "1", "-p", "5", "-n", "2", "-r", "1"]
    arguments += ["--sweep-batch", "32,64"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200"}
    child = pexpect.spawn(sys.executable, arguments, env=environment, encoding="utf-8", timeout=60)
    for _ in range(2):
        child.expect_exact("measuring")
        child.expect(r"\d:\d\d:\d\d")  # the time that remains
    child.expect_exact("| together | 1+1 | 64 |")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["-p", "0", "-n", "0"], "nothing to measure"),
            (["-p", "1,,2"], "separated by commas, not '1,,2'"),
            (["-p", ""], "separated by commas, not ''"),
            (["-n", "1.5"], "-n/--n-gen takes whole numbers"),
            (["-n", "4,-2"], "-n/--n-gen must be at least 0, not -2"),
            (["-p", "-3"], "-p/--n-prompt must be at least 0, not -3"),
            (["-r", "0"], "Must be >= 1"),
            (["--sweep-threads", "0"], "--sweep-threads must be at least 1, not 0"),
            (["--sweep-batch", "64,x"], "--sweep-batch takes whole numbers"),
            (["--sweep-threads", "1", "-t", "1"], "either --sweep-threads or -t"),
            (["--sweep-batch", "64", "-b", "64"], "either --sweep-batch or -b"),
            (["-o", "xml"], "xml"),
        ],
    )
    def test_options(self, refusal: Callable[..., str], options: list[str], message: str) -> None:
        assert message in refusal(*options)

    @pytest.mark.parametrize(
        ("lengths", "needed"), [((250, 64), 314), ((256, 0), 257), ((10**9, 1), 10**9 + 1)]
    )
    def test_small_contexts(
        self, refusal: Callable[..., str], lengths: tuple[int, int], needed: int
    ) -> None:
        line = refusal("-t", "1", "-p", str(lengths[0]), "-n", str(lengths[1]))
        assert "n_ctx=256" in line
        assert f"takes {needed} tokens; raise -c" in line


class TestMeasure:
    def test_series(self, fused: Callable[..., Fuse]) -> None:
        engine = fused("smol", "gemma3")
        plan = Plan([Trial(9, 4), Trial(0, 0), Trial(6, 0)], repetitions=3)
        calls: list[None] = []
        series = measure(engine, plan, TEXT, advance=lambda: calls.append(None))
        assert len(calls) == plan.runs(2) == 2 * 3 * 4
        rows = [(one.name, one.test) for one in series]
        assert rows == [(name, test) for test in plan.kept for name in NAMES]
        for one in series:
            assert {len(values) for values in one.figures.values()} == {3}
        assert series[0].prompt_tokens == series[2].prompt_tokens == 9

    def test_ratios(self, fused: Callable[..., Fuse]) -> None:
        *alone, together = measure(fused("smol", "gemma3"), Plan([Trial(5, 3)], 2), TEXT)
        for key, choose in (("of_slowest", min), ("of_fastest", max)):
            member = choose(alone, key=lambda one: one.mean("tokens_per_s"))
            speeds = zip(
                together.figures["tokens_per_s"], member.figures["tokens_per_s"], strict=True
            )
            assert together.figures[key] == [ours / theirs for ours, theirs in speeds]

    def test_threads_are_set_and_given_back(self, fused: Callable[..., Fuse]) -> None:
        engine = fused("smol")
        (one, two) = measure(engine, Plan([Trial(2, 0)], 1, threads=(1, 2)), TEXT)
        assert (one.threads, two.threads) == ((1,), (2,))
        assert engine.members[0].context.n_threads == 1

    def test_a_context_that_fills(self, load_branching: Callable[..., Any]) -> None:
        """One member's symbols may be many tokens of another."""
        members = [load_branching(name, n_ctx=256) for name in ("smol", "gemma3")]
        with pytest.raises(ConfigError, match=r"full after \d+ of 250 tokens; raise -c"):
            measure(Fuse(members), Plan([Trial(2, 250)], 1), TEXT)

    def test_figures(self) -> None:
        series = Series("a", Trial(0, 1), (1, 2), 64)
        for value in (1.0, 2.0, 4.5):
            series.add(total_s=value)
        assert (series.mean("total_s"), series.spread("total_s")) == (2.5, math.sqrt(3.25))
        assert series.as_dict()["threads"] == "1+2"
        assert series.as_dict()["test"] == "tg1"

    def test_refusals(self) -> None:
        for tests, repetitions in (([Trial(0, 0)], 1), ([], 1), ([Trial(1, 1)], 0)):
            with pytest.raises(ConfigError):
                Plan(tests, repetitions)
        with pytest.raises(ConfigError, match=r"0 .* or more"):
            Plan([Trial(-1, 1)], 1)
        with pytest.raises(ConfigError, match="threads"):
            Plan([Trial(1, 1)], 1, threads=(0,))


def test_machine() -> None:
    info = machine()
    assert info["cpu"]
    assert info["cores"] >= 1
    assert info["memory_bytes"] is None or info["memory_bytes"] > 2**27
    assert all(info[key] for key in ("os", "compiler", "llama_cpp", "llama_cpp_python", "numpy"))

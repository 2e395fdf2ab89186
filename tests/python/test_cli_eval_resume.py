"""``logitfuse eval`` that is disturbed, and goes on."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from command_line import interrupted, kill_again_and_again
from eval_commands import Eval, lasting, process, program, strict

pytest_plugins = ["eval_fixtures"]


class TestDisturbed:
    OPTIONS = ("choice", "sums:easy", "--questions", "14", "--mode", "both")

    @pytest.fixture
    def undisturbed(self, evaluate: Eval, two: list[str]) -> tuple[dict[str, Any], list[str]]:
        code, out, err = evaluate(*self.OPTIONS, *two, "-o", "whole", "--json")
        assert code == 0, err
        return self.found(out, Path("whole"))

    @staticmethod
    def found(out: str, desk: Path) -> tuple[dict[str, Any], list[str]]:
        """The summary and the rows, but for the time they took."""
        summary = lasting(strict(out))
        del summary["files"]
        rows = []
        for line in (desk / "outcomes.jsonl").read_text(encoding="utf-8").splitlines():
            row = strict(line)
            del row["seconds"]
            rows.append(json.dumps(row, sort_keys=True))
        return summary, rows

    def test_ctrl_c(self, evaluate: Eval, two: list[str], undisturbed: Any) -> None:
        done = process(*self.OPTIONS, *two, "-o", "cut", change=interrupted("LlamaContext"))
        assert (done.returncode, done.stdout) == (130, "")
        assert "Traceback" not in done.stderr
        rows = len(Path("cut/outcomes.jsonl").read_text().splitlines())
        assert 0 < rows < 42
        assert f"{rows} new outcomes are kept in 'cut/outcomes.jsonl'" in done.stderr
        code, out, _ = evaluate(*self.OPTIONS, *two, "-o", "cut", "--json")
        assert code == 0
        assert self.found(out, Path("cut")) == undisturbed

    def test_kills(self, evaluate: Eval, two: list[str], undisturbed: Any) -> None:
        command = program(*self.OPTIONS, *two, "-o", "cut")
        kill_again_and_again(command, Path("cut/outcomes.jsonl"), 9000)
        code, out, _ = evaluate(*self.OPTIONS, *two, "-o", "cut", "--json")
        assert code == 0
        assert self.found(out, Path("cut")) == undisturbed

    def test_a_full_disk(self, evaluate: Eval, two: list[str], undisturbed: Any) -> None:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

        done = process(*self.OPTIONS, *two, "-o", "cut", preexec_fn=limit)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        line = done.stderr.splitlines()[-1]
        assert line.startswith("logitfuse: File too large: ")
        assert "new outcomes are kept in 'cut/outcomes.jsonl'" in line
        size = Path("cut/outcomes.jsonl").stat().st_size
        assert 0 < size <= 9000
        code, out, _ = evaluate(*self.OPTIONS, *two, "-o", "cut", "--json")
        assert code == 0
        assert self.found(out, Path("cut")) == undisturbed

    def test_without_matplotlib(self, two: list[str], desk: Path) -> None:
        change = "sys.modules['matplotlib'] = None"
        done = process("choice", "choices.jsonl", *two, "--json", change=change, cwd=desk)
        assert done.returncode == 0
        assert "no plots: " in done.stderr
        assert "pip install 'logitfuse[eval]'" in done.stderr
        files = [Path(file).name for file in strict(done.stdout)["files"]]
        assert files == ["summary.json", "report.html"]
        assert (desk / "choices.eval" / "report.html").exists()

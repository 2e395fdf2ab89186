"""Fixtures of the tests of ``logitfuse eval``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from command_line import in_process, loggers_kept
from eval_commands import CHOICES, SUMS, TEXT, Eval, write


@pytest.fixture(scope="module")
def two(tiny_models: Mapping[str, Path]) -> list[str]:
    """Options for two members."""
    files = [part for name in ("gpt2", "llama-spm") for part in ("-m", str(tiny_models[name]))]
    return [*files, "-t", "1", "-c", "256"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user works."""
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text(TEXT, encoding="utf-8")
    write("choices.jsonl", CHOICES)
    write("sums.jsonl", SUMS)
    return tmp_path


@pytest.fixture
def evaluate(desk: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Eval]:
    """Runs a command in this process: exit status, stdout, stderr."""

    def command(*arguments: str) -> tuple[int, str, str]:
        code = in_process("eval", *arguments)
        said = capsys.readouterr()
        assert Path.cwd() == desk
        return code, said.out, said.err

    with loggers_kept():
        yield command

"""Fixtures of the tests of ``logitfuse batch``: ensembles, a folder, and the command in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from batch_files import Run
from command_line import in_process, loggers_kept


@pytest.fixture(scope="module")
def file(tiny_models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ensembles of two members."""
    path = tmp_path_factory.mktemp("asked") / "two.toml"
    members = "".join(
        f'[[member]]\nmodel = "{tiny_models[name]}"\nn_threads = 1\nn_ctx = 256\n'
        for name in ("smol", "gemma3")
    )
    path.write_text(
        f'{members}[[ensemble]]\nname = "pair"\nstrategy = "fuse"\n'
        '[[ensemble]]\nname = "one"\nmembers = ["smol"]\n'
    )
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, file: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs the command in this process: exit status, stdout, stderr."""

    def command(*options: str, models: Sequence[str] = ("-e", str(file))) -> tuple[int, str, str]:
        code = in_process("batch", "in.jsonl", "out.jsonl", *models, *options)
        said = capfd.readouterr()
        assert Path.cwd() == folder
        return code, said.out, said.err

    with loggers_kept():
        yield command

"""``logitfuse fit`` as users meet it."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_texts import Scored, members_of
from logitfuse.cli import main
from logitfuse.gatefile import load_gatefile

#: Its name in the package is that of the command.
MODULE = importlib.import_module("logitfuse.cli.fit")
TEXT, SCORES = members_of(1200, [(4.0, 0.7), (4.0, 0.7)])


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """Options for two members; nothing but their names and hashes is asked for."""
    for name in "ab":
        (tmp_path / f"{name}.gguf").write_bytes(name.encode())
    return ["-m", str(tmp_path / "a.gguf"), "-m", str(tmp_path / "b.gguf")]


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A text file."""
    (tmp_path / "text.txt").write_bytes(TEXT)
    return str(tmp_path / "text.txt")


@pytest.fixture
def answers(tmp_path: Path) -> str:
    """An outcome file of the members a and b."""
    table = np.log(np.random.default_rng(0).uniform(0.1, 1, (40, 2)))
    lines = (
        json.dumps({"question": q, "member": name, "logprob": row[m]})
        for q, row in enumerate(table)
        for m, name in enumerate("ab")
    )
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "answers.jsonl")


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The members' byte matrices are known; `TestModels` runs the part that makes them."""

    def score(_config: Any, text: bytes) -> list[Scored]:
        assert text == TEXT
        return SCORES

    monkeypatch.setattr(MODULE, "score", score)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["fit", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.usefixtures("scored")
class TestText:
    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("weights", ("equal weights", "best member", "95 %", "fitted weights", "fit")),
            ("gate", ("online weights", "fitted weights", "saves", "gate")),
            ("critical", ("a alone", "all, always", "if critical", "asked")),
        ],
    )
    def test_report_and_file(
        self,
        kind: str,
        words: tuple[str, ...],
        text: str,
        models: list[str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path = tmp_path / "out.json"
        assert run(text, *models, "--kind", kind, "-o", str(path)) == 0
        out, err = capsys.readouterr()
        for word in words:
            assert word in out
        assert "pay" in out
        assert "written" in err
        hashes = [hashlib.sha256(name.encode()).hexdigest() for name in "ab"]
        file = load_gatefile(path, hashes)
        assert file.learned.kind == kind
        assert [member.name for member in file.member] == ["a", "b"]
        assert file.data_sha256 == hashlib.sha256(TEXT).hexdigest()
        assert run(text, *models, "--kind", kind, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert report["names"] == ["a", "b"]
        assert report["learned"] == file.learned.model_dump()
        assert report["figures"] == file.figures
        assert report["figures"]["verdict"] in out

    def test_figures(
        self, text: str, models: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(text, *models, "--json")
        report = json.loads(capsys.readouterr().out)
        figures = report["figures"]
        assert sum(report["learned"]["weights"]) == pytest.approx(1)
        assert figures["fitted"] == pytest.approx(figures["uniform"], rel=0.02)
        assert figures["over_best"]["low"] > 0
        assert figures["n"] == 1200
        run(text, *models)
        out = capsys.readouterr().out
        assert f"{figures['fitted']:.4f}" in out
        run(text, *models, "--pool", "log-linear", "--json")
        assert json.loads(capsys.readouterr().out)["learned"]["pool"] == "log-linear"

    def test_impossible_figures_are_null(
        self,
        monkeypatch: pytest.MonkeyPatch,
        text: str,
        models: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        own = SCORES[0].logprobs.copy()
        own[3, TEXT[3]] = -math.inf
        monkeypatch.setattr(MODULE, "score", lambda *_: [Scored(TEXT, own), SCORES[1]])
        assert run(text, *models, "--json") == 0
        assert json.loads(capsys.readouterr().out)["figures"]["members"][0] is None


class TestOutcomes:
    def test_without_models(self, answers: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--outcomes", answers) == 0
        assert "bits per question" in capsys.readouterr().out

    def test_for_models(
        self,
        answers: str,
        models: list[str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path = str(tmp_path / "out.json")
        backwards = [*models[2:], *models[:2]]
        assert run("--outcomes", answers, *backwards, "-o", path, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert report["names"] == ["b", "a"]
        assert [member.name for member in load_gatefile(path).member] == ["b", "a"]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that fails."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"logitfuse: [^\n]+\n", err)
    return err


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "is empty; give at least 512"),
            (b"x" * 511, "has only 511 bytes; give at least 512"),
            (b"\xff" * 600, "is not valid UTF-8"),
            (None, "cannot read"),
        ],
    )
    def test_text(
        self,
        data: bytes | None,
        words: str,
        tmp_path: Path,
        models: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        file = tmp_path / "text.txt"
        if data is not None:
            file.write_bytes(data)
        assert words in refusal(capsys, str(file), *models)

    def test_options(
        self,
        text: str,
        answers: str,
        models: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        for arguments, words in (
            ([*models], "either a text file or --outcomes"),
            ([text, "--outcomes", answers], "either a text file or --outcomes"),
            ([text], "no models"),
            ([text, *models[:2]], "one member: there is nothing to fit"),
            ([text, *models, "--weights", "1,1"], "--weights has no meaning here"),
            ([text, *models, "--kind", "magic"], "magic"),
            (["--outcomes", answers, "--kind", "gate"], "--kind gate needs a text file"),
            (["--outcomes", answers, "-o", "x.json"], "-o needs the models"),
            (["--outcomes", answers, *models, "--pool", "log-linear"], "not log-linear"),
            (["--outcomes", answers, *models[:2]], "no member 'b' among a"),
            (["--outcomes", "missing.jsonl"], "cannot read"),
        ):
            assert words in refusal(capsys, *arguments)

    @pytest.mark.usefixtures("scored")
    def test_when_all_is_scored(
        self,
        text: str,
        models: list[str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        linear_only = refusal(capsys, text, *models, "--kind", "gate", "--pool", "log-linear")
        assert "linear pool" in linear_only
        nowhere = str(tmp_path / "missing" / "out.json")
        assert "cannot write" in refusal(capsys, text, *models, "-o", nowhere)


class TestModels:
    def test_real_members(
        self, tiny_models: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("logitfuse.bytescores")
        file = tmp_path / "text.txt"
        file.write_text("Two boats had come in before dawn, and the fishermen were busy. " * 9)
        members = ["-m", str(tiny_models["smol"]), "-m", str(tiny_models["gemma3"]), "-t", "1"]
        path = tmp_path / "out.json"
        assert run(str(file), *members, "-c", "256", "-o", str(path), "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert report["names"] == ["smol", "gemma3"]
        assert report["figures"]["n"] == 576
        assert load_gatefile(path).learned.members == 2

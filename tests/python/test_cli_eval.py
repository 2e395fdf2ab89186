"""``logitfuse eval`` as users meet it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pexpect
import pytest
from eval_commands import (
    CHOICES,
    ENVIRONMENT,
    SUMS,
    Eval,
    lasting,
    process,
    program,
    strict,
    write,
)
from logitfuse.cli import app
from logitfuse.evaluation.makers import MAKERS
from logitfuse.evaluation.table import OutcomeTable

pytest_plugins = ["eval_fixtures"]


class TestBpb:
    def test_a_text(self, evaluate: Eval, two: list[str], desk: Path) -> None:
        code, out, err = evaluate("bpb", "notes.txt", *two, "--window", "60", "--stride", "30")
        assert code == 0, err
        assert out.startswith("Bits per byte of 1 text: gpt2+llama-spm, 4 items, 95 % intervals")
        for line in ("gpt2", "llama-spm", "ensemble", "Cost per item", "peak memory: "):
            assert f"\n{line}" in out
        made = {path.name for path in (desk / "notes.eval").iterdir()}
        assert made == {"outcomes.jsonl", "summary.json", "report.html"} | {
            f"{plot}.{kind}" for plot in ("pareto", "weights") for kind in ("png", "svg")
        }
        report = (desk / "notes.eval" / "report.html").read_text(encoding="utf-8")
        assert "<svg" in report
        assert "src=" not in report

    def test_json_of_a_folder(self, evaluate: Eval, two: list[str]) -> None:
        for name, content in (("a.txt", b"The fox."), ("b.md", b"A dog."), ("c.txt", b"\xff")):
            (Path("texts") / name).parent.mkdir(exist_ok=True)
            (Path("texts") / name).write_bytes(content)
        code, out, err = evaluate("bpb", "texts", *two, "--json", "--limit", "5")
        assert code == 0
        assert "1 file not UTF-8 or empty: texts/c.txt" in err
        summary = strict(out)
        assert summary["items"] == 2
        assert summary["title"].startswith("Bits per byte of 2 texts")
        assert set(summary["rows"][0]["by_group"]) == {"a.txt", "b.md"}
        assert summary["metrics"] == ["bits_per_byte"]
        assert summary["lower_is_better"]
        assert [curve["member"] for curve in summary["curves"]] == ["gpt2", "llama-spm"]
        assert {Path(file).name for file in summary["files"]} >= {"summary.json", "groups.svg"}
        (written,) = Path().glob("*/summary.json")
        assert strict(written.read_text()) == {k: v for k, v in summary.items() if k != "files"}

    def test_a_folder_is_read_again_without_its_outcomes(
        self, evaluate: Eval, two: list[str]
    ) -> None:
        for _ in range(2):
            code, out, _ = evaluate("bpb", ".", *two, "--json", "--limit", "9")
            assert (code, strict(out)["items"]) == (0, 1)

    def test_what_failed_is_said_and_tried_again(self, evaluate: Eval, two: list[str]) -> None:
        Path("long.txt").write_text("fox " * 300)
        options = ("--window", "1200", "--stride", "200")
        for _ in range(2):
            code, out, err = evaluate("bpb", "long.txt", *two, *options)
            assert code == 1
            assert "failed, the first: gpt2 on long.txt:0: ContextLengthError" in " ".join(
                err.split()
            )
            assert "--retry" in err
            assert "nan" not in out
        assert evaluate("bpb", "long.txt", *two, *options, "--retry", "--json")[0] == 1
        two = [*two[:-1], "1024"]
        assert evaluate("bpb", "long.txt", *two, "--window", "300", "--stride", "250")[0] == 0


class TestChoice:
    @pytest.mark.parametrize("mode", ["full", "letter", "both"])
    def test_modes(self, evaluate: Eval, two: list[str], mode: str) -> None:
        code, out, _ = evaluate("choice", "choices.jsonl", *two, "--mode", mode, "--json")
        assert code == 0
        summary = strict(out)
        assert (summary["task"], summary["items"]) == ("choice", 3)
        kinds = [row["kind"] for row in summary["rows"]]
        assert kinds == ["member", "member", "chosen", "random", "oracle", "ensemble"]
        report = Path("choices.eval/report.html").read_text(encoding="utf-8")
        if mode == "both" and "Where is the fox?" in report:
            assert "A. Lyon" in report

    def test_tables(self, evaluate: Eval, two: list[str]) -> None:
        options = ("--chat", "-sys", "Be [/brief].", "--shots", "1", "-o", "out")
        code, out, err = evaluate("choice", "choices.jsonl", *two, *options)
        assert code == 0, err
        assert "2 items" in out
        assert Path("out/report.html").exists()

    def test_an_ensemble_file(self, evaluate: Eval, tiny_models: Mapping[str, Path]) -> None:
        members = "".join(
            f'[[member]]\nmodel = "{tiny_models[file]}"\nname = "[/{name}]"\n'
            "n_threads = 1\nn_ctx = 256\n"
            for file, name in (("gpt2", "one"), ("smol", "two"))
        )
        Path("pair.toml").write_text(f'strategy = "fuse"\n{members}')
        code, out, _ = evaluate("choice", "choices.jsonl", "-e", "pair.toml")
        assert code == 0
        assert "\n[/one] " in out
        assert "\n[/two] " in out

    def test_a_built_in_task(self, evaluate: Eval, two: list[str]) -> None:
        found = []
        for seed in ("0", "1"):
            options = ("--questions", "4", "--shots", "1", "--task-seed", seed, "--json")
            code, out, _ = evaluate("choice", "sums:easy", *two, *options)
            assert (code, strict(out)["items"]) == (0, 4)
            found.append(Path("sums-easy.eval/outcomes.jsonl").read_text())
        assert found[1].startswith(found[0])
        assert len(found[1]) > 1.5 * len(found[0])

    def test_one_member(self, evaluate: Eval, two: list[str]) -> None:
        for options in (two[2:], [*two, "--weights", "0,1"]):
            code, out, _ = evaluate("choice", "choices.jsonl", *options)
            assert code == 0
            assert "llama-spm is alone" in " ".join(out.split())

    def test_one_file_twice(self, evaluate: Eval, two: list[str]) -> None:
        code, out, _ = evaluate("choice", "choices.jsonl", *two[:2], *two[:2], *two[4:], "--json")
        assert code == 0
        assert [row["name"] for row in strict(out)["rows"][:2]] == ["gpt2", "gpt2 (2)"]

    def test_bad_lines_are_left_out(self, evaluate: Eval, two: list[str]) -> None:
        write("bad.jsonl", [CHOICES[0], "{", {"question": "?"}, CHOICES[1]])
        code, out, err = evaluate("choice", "bad.jsonl", *two, "--skip-bad", "--json")
        assert (code, strict(out)["items"]) == (0, 2)
        assert "2 lines cannot be used: 2, 3" in err


class TestExact:
    def test_the_best_member_is_asked_again(self, evaluate: Eval, two: list[str]) -> None:
        code, out, _ = evaluate("exact", "sums.jsonl", *two, "-n", "4", "--json")
        assert code == 0
        summary = strict(out)
        kinds = [row["kind"] for row in summary["rows"]]
        assert kinds == ["member", "member", "chosen", "random", "oracle", "sampled", "ensemble"]
        with OutcomeTable("sums.eval/outcomes.jsonl") as table:
            rows = table.rows
        sampled = [row for row in rows if " sample " in row.contender]
        budget = sum(row.seconds for row in rows if row.contender == "ensemble")
        assert {row.item for row in sampled if row.contender.endswith(" 1")} == {
            row.item for row in rows
        }
        assert len({row.contender.split(" sample ")[0] for row in sampled}) == 1
        last = max((row for row in sampled), key=lambda row: rows.index(row))
        spent = sum(row.seconds for row in sampled)
        assert spent - last.seconds < budget or len(sampled) == len(SUMS)

    def test_without(self, evaluate: Eval, two: list[str]) -> None:
        options = ("-n", "3", "--no-resample", "--temp", "0.5", "-s", "3", "--stop", "x", "--chat")
        found = []
        for where in ("one", "two"):
            code, out, _ = evaluate("exact", "sums.jsonl", *two, *options, "-o", where, "--json")
            assert code == 0
            found.append(lasting(strict(out)))
            del found[-1]["files"]
            assert "sampled" not in [row["kind"] for row in found[-1]["rows"]]
        assert found[0] == found[1]

    def test_a_mixture(self, evaluate: Eval, two: list[str]) -> None:
        options = ("exact", "sums.jsonl", *two, "-n", "3", "--strategy", "mix", "--no-resample")
        code, _, err = evaluate(*options)
        assert code == 2
        assert err.splitlines()[-1].startswith("logitfuse: mix draws a member")
        assert evaluate(*options, "--temp", "0.7")[0] == 0


class TestTrace:
    def test_an_answer(self, two: list[str], desk: Path) -> None:
        options = ("-n", "6", "--temp", "0", "-o", "trace.html")
        done = process("trace", "Hi [/INST] [b]", *two, *options, cwd=desk)
        assert done.returncode == 0, done.stderr
        assert "6 steps: " in done.stdout
        assert "would have differed" in done.stdout
        assert "<html" in (desk / "trace.html").read_text(encoding="utf-8")

    def test_json_of_a_given_text(self, two: list[str], desk: Path) -> None:
        (desk / "given.txt").write_text(" a naïve 🤖", encoding="utf-8")
        done = process("trace", "Hi", "--given-file", "given.txt", *two, "--json", cwd=desk)
        traced = strict(done.stdout)
        assert (traced["text"], traced["forced"]) == (" a naïve 🤖", True)
        assert sum(len(step["bytes"]) for step in traced["steps"]) == len(" a naïve 🤖".encode())

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["Hi", "--given", ""], "the text to be scored is empty"),
            (["Hi", "--given", "a", "--given-file", "b"], "either --given or --given-file"),
            (["Hi", "--given-file", "nowhere"], "cannot read 'nowhere'"),
            ([], "the prompt is empty"),
        ],
    )
    def test_refusals(self, two: list[str], arguments: list[str], said: str) -> None:
        done = process("trace", *arguments, *two)
        assert done.returncode == 2
        assert said in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


class TestMake:
    def test_tasks(self, evaluate: Eval) -> None:
        code, out, _ = evaluate("make")
        assert code == 0
        for name in MAKERS:
            assert f"\n{name} " in out
        listed = strict(evaluate("make", "--json")[1])
        assert set(listed) == set(MAKERS)

    def test_what_is_made_can_be_used(self, evaluate: Eval, two: list[str]) -> None:
        assert evaluate("make", "chains", "-n", "3", "--level", "easy", "-o", "c.jsonl")[:2] == (
            0,
            "",
        )
        _, out, _ = evaluate("make", "chains", "-n", "3", "--level", "easy")
        assert Path("c.jsonl").read_text(encoding="utf-8") == out
        assert len(out.splitlines()) == 3
        options = ("-n", "2", "--no-resample", "--json")
        code, out, _ = evaluate("exact", "c.jsonl", *two, *options)
        assert (code, strict(out)["items"]) == (0, 3)


class TestRefusals:
    @pytest.mark.parametrize(
        ("command", "line", "said"),
        [
            ("choice", '{"question": ', "line 2: is not JSON"),
            ("choice", "[]", "line 2: is not a JSON object"),
            ("choice", {"question": "?", "options": ["a", "a"], "answer": 0}, "are both 'a'"),
            ("choice", {"question": "?", "options": ["a", "b"], "answer": "c"}, "is none of"),
            ("choice", {"question": "?", "options": ["a", "b"], "answer": 2}, "is none of"),
            ("choice", SUMS[0], "line 2: 'options' is missing"),
            ("exact", {"question": "?"}, "line 2: 'answer' is missing"),
            ("exact", {"question": "?", "answer": "x", "kind": "number"}, "be read as a number"),
        ],
    )
    def test_lines(
        self, evaluate: Eval, two: list[str], command: str, line: Any, said: str
    ) -> None:
        write("bad.jsonl", [(CHOICES if command == "choice" else SUMS)[0], line])
        code, out, err = evaluate(command, "bad.jsonl", *two)
        assert (code, out) == (2, "")
        assert err.startswith("logitfuse: 'bad.jsonl' line 2")
        assert said in err
        assert "--skip-bad" in err
        assert len(err.splitlines()) == 1

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["choice", "nowhere.jsonl"], "there is no file 'nowhere.jsonl'; built-in tasks: "),
            (["exact", "capitals"], "'capitals' is for logitfuse eval choice"),
            (["exact", "chains:huge"], "'chains' has no level 'huge'"),
            (["choice", "."], "cannot read the data set '.'"),
            (["choice", "empty.jsonl"], "has no question: the file is empty"),
            (["choice", "choices.jsonl", "--shots", "3"], "--shots 3 leaves none of the 3"),
            (["choice", "choices.jsonl", "--template", "x"], "the template needs {question}"),
            (["choice", "choices.jsonl", "--template", "{question"], "is broken"),
            (["choice", "choices.jsonl", "--mode", "half"], "half"),
            (["choice", "choices.jsonl", "--questions", "0"], "questions"),
            (["choice", "choices.jsonl", "-o", "notes.txt"], "cannot write to 'notes.txt'"),
            (["choice", "choices.jsonl", "-o", "notes.txt/x"], "cannot write to 'notes.txt/x'"),
            (["exact", "sums.jsonl", "--temp", "-1"], "temperature"),
            (["bpb"], "no text; give files or folders"),
            (["bpb", "nowhere.txt"], "cannot read 'nowhere.txt': No such file"),
            (["bpb", "empty.jsonl"], "'empty.jsonl' is empty"),
            (["bpb", "bare"], "'bare' holds no text"),
            (["bpb", "notes.txt", "--window", "9", "--stride", "10"], "from 1 to the window, 9"),
            (["bpb", "robot.txt", "--limit", "3"], "--limit 3 leaves nothing"),
            (["bpb", "notes.txt", "--learned", "nowhere.json"], "nowhere.json"),
            (["make", "nothing"], "there is no task 'nothing'; known: "),
            (["make", "sums", "--level", "huge"], "'sums' has no level 'huge'"),
            (["make", "sums", "-n", "0"], "for -n"),
            (["make", "sums", "-o", "nowhere/x.jsonl"], "nowhere/x.jsonl"),
        ],
        ids=lambda part: part if isinstance(part, str) else " ".join(part),
    )
    def test_one_line(
        self, evaluate: Eval, two: list[str], arguments: list[str], said: str
    ) -> None:
        Path("empty.jsonl").touch()
        Path("bare").mkdir()
        Path("robot.txt").write_text("🤖")
        models = [] if arguments[0] == "make" else two
        code, out, err = evaluate(*arguments, *models)
        assert (code, out) == (2, ""), err
        (line,) = (line for line in err.splitlines() if line.startswith("logitfuse: "))
        assert line == err.splitlines()[-1]
        assert said in line
        assert "Traceback" not in err

    def test_a_table_that_is_in_use(self, evaluate: Eval, two: list[str]) -> None:
        Path("out").mkdir()
        with OutcomeTable("out/outcomes.jsonl"):
            code, _, err = evaluate("choice", "choices.jsonl", *two, "-o", "out")
        assert code == 2
        assert "another run is writing 'out/outcomes.jsonl'" in err.splitlines()[-1]

    def test_a_damaged_table(self, evaluate: Eval, two: list[str]) -> None:
        Path("out").mkdir()
        Path("out/outcomes.jsonl").write_text("something else\n")
        code, _, err = evaluate("choice", "choices.jsonl", *two, "-o", "out")
        assert code == 2
        assert "line 1 of 'out/outcomes.jsonl'" in err
        assert Path("out/outcomes.jsonl").read_text() == "something else\n"


class TestTerminal:
    def test_progress(self, two: list[str], desk: Path) -> None:
        command = program("choice", "sums", "--questions", "60", *two)
        child = pexpect.spawn(
            command[0],
            command[1:],
            env=ENVIRONMENT,
            encoding="utf-8",
            timeout=60,
            cwd=desk,
            dimensions=(40, 160),
        )
        child.expect_exact("━━━━")
        child.expect(r"[1-9]\d?%")
        child.expect(r"\d:\d\d:\d\d")  # what remains
        child.expect_exact("Cost per item")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0

    @pytest.mark.parametrize("command", ["bpb", "choice", "exact", "trace", "make"])
    def test_help(self, evaluate: Eval, command: str) -> None:
        code, out, _ = evaluate(command, "--help")
        assert code == 0
        assert f"logitfuse eval {command} " in out
        assert "Examples:" in out
        described = app["eval"][command].assemble_argument_collection(parse_docstring=True)
        assert [a.names[0] for a in described if a.show and not a.parameter.help] == []
        names = [name for argument in described if argument.show for name in argument.names]
        assert len(names) == len(set(names))  # no option has two meanings

    def test_all_commands_are_listed(self, evaluate: Eval) -> None:
        code, out, _ = evaluate()
        assert code == 0
        for command in ("bpb", "choice", "exact", "trace", "make"):
            assert command in out

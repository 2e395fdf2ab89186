"""What goes wrong on the command line: one line that helps, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import ENVIRONMENT, PROMPT, logitfuse, ok, refusal, run_json, start
from logitfuse import Ensemble

#: Runs the command line with a context's decoding doing something else in its twelfth call.
WITH_DECODE = """
import os, signal, sys
from logitfuse.cli import main
from logitfuse.llama import LlamaContext
decode, calls = LlamaContext.{method}, 0
def decode_or_not(self, *arguments, **options):
    global calls
    calls += 1
    if calls == 12:
        {action}
    return decode(self, *arguments, **options)
LlamaContext.{method} = decode_or_not
main(sys.argv[1:])
"""
#: How each strategy decodes, token by token or all tokenisations at once.
DECODES = [("fuse", "decode"), ("bytes", "decode_branches")]
FAILS, INTERRUPTED = "return -3", "os.kill(os.getpid(), signal.SIGINT)"


@pytest.fixture(scope="module")
def smol(tiny_models: Mapping[str, Path]) -> Path:
    return tiny_models["smol"]


@pytest.fixture(scope="module")
def gemma(tiny_models: Mapping[str, Path]) -> Path:
    return tiny_models["gemma3"]


@pytest.fixture(scope="module")
def pair(smol: Path, gemma: Path) -> list[str | Path]:
    """Options for two members."""
    return ["-m", smol, "-m", gemma, "-t", "1", "-c", "256"]


@pytest.fixture(scope="module")
def greedy(pair: list[str | Path]) -> list[str | Path]:
    """The same for a short answer that is always the same."""
    return [*pair, "--temp", "0", "-n", "8"]


@pytest.fixture(scope="module")
def said(smol: Path, gemma: Path) -> str:
    """That answer to `PROMPT`, from Python."""
    with Ensemble([smol, gemma], n_threads=1, n_ctx=256) as ensemble:
        answer = ensemble(PROMPT, temperature=0.0, max_tokens=8)
    return str(answer["choices"][0]["text"])


class TestErrors:
    @pytest.mark.parametrize("command", ["run", "chat", "check", "bench"])
    def test_no_models(self, command: str) -> None:
        assert "no models; give -m model.gguf" in refusal(logitfuse(command, stdin="Hello"))

    def test_a_model_in_the_place_of_the_prompt(self, pair: list[Any]) -> None:
        assert "repeat -m for every model" in refusal(logitfuse("run", *pair, "b.gguf"))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--weights", "1"], "--weights 1 has 1 values for 2 members"),
            (["--weights", "1,2,3"], "3 values for 2 members"),
            (["--weights", "-1,1"], "the weight of member 0 must be a finite number >= 0"),
            (["--preset", "unit"], "unknown preset 'unit'; did you mean 'unite'?"),
            (["--preset", "proxy"], "has 3 roles, not 2 (members: base, expert, anti-expert)"),
            (["--preset", "cp-delta"], "needs members with one tokenizer"),
            (["--strategy", "byte"], "'bytes' or 'mix', not 'byte'"),
            (["--set", "threshold"], "--set takes KEY=VALUE, not 'threshold'"),
            (["--set", "treshold=1"], "did you mean 'threshold'?"),
            (["--set", "beam=0"], "'beam'"),
            (["--set", "member=1"], "--set does not set members"),
            (["--strategy", "mix", "--temp", "0"], "greedy sampling draws nothing"),
            (["--learned", "nope.json"], "cannot read the weights 'nope.json'"),
            (["--learned", "nope.json", "--weights", "1,2"], "give no others"),
            (["--solo", "entropy"], "needs a threshold"),
            (["--weights", "nan,1"], "member.0.weight"),
            (["--weights", "0,0"], "sum above 0"),
            (["--weights", "a,b"], "not 'a,b'"),
            (["--pool", "geometric"], "'contrast' or 'consistency', not 'geometric'"),
            (["--gate", "open"], "'boundary' or 'always', not 'open'"),
            (["--tmep", "1"], "Did you mean --temp?"),
            (["extra words"], "Quote a prompt of several words"),
            (["-ngl", "abc"], "--n-gpu-layers takes numbers separated by commas, not 'abc'"),
            (["-b", "many"], 'unable to convert "many" into int'),
            (["--temp", "-1"], "sampling.temperature"),
            (["--top-p", "2"], "sampling.top_p"),
            (["-l", "the"], "--logit-bias takes TEXT=BIAS, not 'the'"),
            (["-l", "no such token=1"], "no member has a token"),
            (["-l", b"\xff=1"], "no member has a token"),
            (["-b", "0"], "member.0.n_batch"),
            (["-f", "nope.txt"], "cannot read the prompt"),
        ],
    )
    def test_options(self, pair: list[Any], options: list[Any], message: str) -> None:
        given = [os.fsdecode(option) for option in options]
        assert message in refusal(logitfuse("run", PROMPT, *pair, "-n", "2", *given))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "there is no model file"),
            (b"PK\x03\x04 and so on", "is not a GGUF file"),
            (b"", "is not a GGUF file"),
            (b"GGUF\x03\x00\x00\x00", "llama.cpp cannot load"),
        ],
    )
    def test_model_files(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        path = tmp_path / "model.gguf"
        if content is not None:
            path.write_bytes(content)
        for command in ("run", "check", "info"):
            said = refusal(logitfuse(command, "-m", path, stdin=PROMPT))
            assert message in said
            assert str(path) in said

    def test_an_embedding_model(self, tiny_models: Mapping[str, Path]) -> None:
        said = refusal(logitfuse("run", PROMPT, "-m", tiny_models["bert"]))
        assert "cannot generate" in said

    def test_ensemble_file(self, tmp_path: Path) -> None:
        file = tmp_path / "pair.toml"
        file.write_text("[[member]]\nmodel = 'a.gguf'\nwieght = 1\n")
        said = refusal(logitfuse("run", PROMPT, "-e", file))
        assert f"unknown key 'member.0.wieght' in '{file}'; did you mean 'weight'?" in said

    @pytest.mark.parametrize(
        ("stdin", "message"),
        [
            (b"caf\xe9", "not valid UTF-8"),
            (b"", "the prompt is empty"),
            (b"\n", "the prompt is empty"),
            (b"word " * 400, "member 'smol' has n_ctx=256"),
        ],
    )
    def test_prompts(self, pair: list[str | Path], stdin: bytes, message: str) -> None:
        assert message in refusal(logitfuse("run", *pair, "-n", "2", stdin=stdin))

    def test_a_prompt_that_no_text_is(self, pair: list[str | Path]) -> None:
        assert "not valid UTF-8" in refusal(logitfuse("run", os.fsdecode(b"\xff"), *pair))


class TestInterruptions:
    @pytest.fixture
    def endless(self, smol: Path, gemma: Path) -> list[str | Path]:
        """Options for an answer that takes long."""
        models = ["-m", smol, "-m", gemma, "-t", "1", "-c", "65536"]
        return [PROMPT, *models, "--temp", "0", "--ignore-eos"]

    def test_ctrl_c_keeps_the_text(self, endless: list[str | Path]) -> None:
        command = [sys.executable, "-m", "logitfuse", "run", *endless]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=ENVIRONMENT
        ) as process:
            assert process.stdout is not None
            first = process.stdout.read(20)
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert (first + rest).decode().endswith("\n")
        assert b"tokens/s" in errors
        assert b"Traceback" not in errors

    @pytest.mark.parametrize(("strategy", "method"), DECODES)
    def test_ctrl_c_keeps_the_json(
        self, endless: list[str | Path], strategy: str, method: str
    ) -> None:
        endless = [*endless, "--strategy", strategy]
        code = WITH_DECODE.format(action=INTERRUPTED, method=method)
        done = start(sys.executable, "-c", code, "run", "--json", *endless)
        assert done.returncode == 130
        report = json.loads(done.stdout)
        assert report["finish_reason"] == "interrupted"
        assert report["tokens"] > 0
        whole = run_json(*endless, "-n", str(report["tokens"]))
        assert report["text"]
        assert whole["text"].startswith(report["text"])

    def test_ctrl_c_while_a_model_loads(self, greedy: list[str | Path]) -> None:
        code = (
            "import os, signal, sys\n"
            "from logitfuse.llama import backend\n"
            "from logitfuse.cli import main\n"
            "once = iter([signal.SIGINT])\n"
            "leave = lambda *_: [os.kill(os.getpid(), number) for number in once]\n"
            "backend._keep_log = backend.lib.llama_log_callback(leave)\n"
            "main(sys.argv[1:])\n"
        )
        done = start(sys.executable, "-c", code, "run", PROMPT, *greedy)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "")

    @pytest.mark.parametrize("options", [[], ["--show-members"]])
    def test_the_reader_leaves(self, endless: list[str | Path], options: list[str]) -> None:
        command = [sys.executable, "-m", "logitfuse", "run", *endless, *options]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=ENVIRONMENT
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(1)
            process.stdout.close()
            errors = process.stderr.read().decode()
        assert {line.split(":")[0] for line in errors.splitlines()} == {"smol", "gemma3"}

    def test_a_full_disk(self, greedy: list[str | Path]) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full here")
        command = [sys.executable, "-m", "logitfuse", "run", PROMPT, *greedy]
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env=ENVIRONMENT,
                check=False,
            )
        assert "No space left" in refusal(done)

    def test_closed_streams(self, greedy: list[str | Path], said: str) -> None:
        command = ["sh", "-c", '"$@" <&-', "sh", sys.executable, "-m", "logitfuse"]
        done = start(*command, "run", PROMPT, *greedy)
        assert (done.returncode, done.stdout) == (0, said + "\n")
        command[2] = '"$@" >&-'
        done = start(*command, "run", PROMPT, *greedy)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False)

    @pytest.mark.parametrize(("strategy", "method"), DECODES)
    def test_a_failing_member(self, endless: list[str | Path], strategy: str, method: str) -> None:
        endless = [*endless, "--strategy", strategy]
        code = WITH_DECODE.format(action=FAILS, method=method)
        done = start(sys.executable, "-c", code, "run", *endless)
        assert "failed to decode" in refusal(done)
        assert any(f"member '{name}'" in done.stderr for name in ("smol", "gemma3"))
        text = done.stdout.removesuffix("\n")
        assert text
        assert ok("run", *endless, "-n", "12").startswith(text)
        report = json.loads(start(sys.executable, "-c", code, "run", "--json", *endless).stdout)
        assert report["finish_reason"] == "error"
        assert ok("run", *endless, "-n", "12").startswith(report["text"])

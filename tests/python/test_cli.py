"""The command line as users meet it: real processes, pipes, terminals and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pexpect
import pytest
from logitfuse import Ensemble, __version__
from logitfuse.cli import app

COMMANDS = ("run", "chat", "presets", "check", "fit", "info", "bench", "demo")
PROMPT = "Once upon a time"
ENVIRONMENT = os.environ | {"TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
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
Done = subprocess.CompletedProcess[str]


def start(*command: str | Path, stdin: str | bytes | None = None, **options: Any) -> Done:
    """Run a program to its end; text from a pipe if given, else from a closed one."""
    raw = stdin.encode() if isinstance(stdin, str) else stdin or b""
    done = subprocess.run(
        [os.fspath(part) for part in command],
        input=raw,
        capture_output=True,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
        **options,
    )
    return Done(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def logitfuse(*arguments: str | Path, **options: Any) -> Done:
    """Run a command as users do."""
    return start(sys.executable, "-m", "logitfuse", *arguments, **options)


def ok(*arguments: str | Path, **options: Any) -> str:
    """What a command that succeeds says on stdout."""
    done = logitfuse(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_json(*arguments: str | Path, **options: Any) -> dict[str, Any]:
    """The document of ``run --json``."""
    report: dict[str, Any] = json.loads(ok("run", "--json", *arguments, **options))
    return report


def refusal(done: Done) -> str:
    """The one line of a command that fails."""
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("logitfuse: ")]
    assert said == done.stderr.splitlines()[-1:]
    return said[0]


def undescribed(command: str) -> set[str]:
    """Options of a command without a help text."""
    return {
        argument.names[0]
        for argument in app[command].assemble_argument_collection(parse_docstring=True)
        if argument.show and not argument.parameter.help
    }


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


class TestRun:
    def test_only_the_answer_goes_to_stdout(self, greedy: list[str | Path], said: str) -> None:
        done = logitfuse("run", PROMPT, *greedy)
        assert (done.returncode, done.stdout) == (0, said + "\n")
        for figure in ("smol: n_ctx 256", "gemma3: n_ctx 256", "8 steps", "tokens/s"):
            assert figure in done.stderr

    def test_json(self, greedy: list[str | Path], said: str) -> None:
        report = run_json(PROMPT, *greedy)
        assert (report["text"], report["finish_reason"]) == (said, "length")
        assert report["tokens"] == report["steps"] == sum(report["decisions"].values()) == 8
        assert report["fused_share"] == report["decisions"]["fused"] / 8
        assert [member["name"] for member in report["members"]] == ["smol", "gemma3"]
        for member in report["members"]:
            assert member["weight"] == 0.5
            assert member["decoded_tokens"] >= 8
            assert member["rolled_back_tokens"] >= 0
            assert member["decode_s"] > 0
        times = report["timings"]
        names = ("prefill", "decode", "sync", "fuse", "sample")
        parts = [times[f"{name}_s"] for name in names]
        assert 0 < sum(parts) <= times["total_s"]
        assert times["load_s"] > 0
        assert report["tokens_per_s"] > 0

    def test_show_members(self, greedy: list[str | Path], said: str) -> None:
        trace = run_json(PROMPT, "--show-members", *greedy)["trace"]
        assert b"".join(bytes(step["bytes"]) for step in trace).decode() == said
        dissenters = []
        for step in trace:
            assert [member["name"] for member in step["members"]] == ["smol", "gemma3"]
            wishes = {member["name"]: member["wish"] for member in step["members"]}
            dissenters += [n for n, wish in wishes.items() if wish not in (None, step["text"])]
        shown = ok("run", PROMPT, "--show-members", *greedy)
        assert dissenters
        for name in ("smol", "gemma3"):
            assert shown.count(f"{name}: ") == dissenters.count(name)

    def test_weights(self, greedy: list[str | Path], smol: Path, gemma: Path) -> None:
        alone = ["-t", "1", "-c", "256", "--temp", "0", "-n", "8"]
        for weights, path in (("1,0", smol), ("0,2.5", gemma)):
            report = run_json(PROMPT, *greedy, "--weights", weights)
            assert report["text"] == run_json(PROMPT, "-m", path, *alone)["text"]
        given = run_json(PROMPT, *greedy, "--weights", "3,1")["members"]
        assert [member["weight"] for member in given] == [0.75, 0.25]

    def test_pool_and_gate(self, pair: list[str | Path], greedy: list[str | Path]) -> None:
        by_tokens = run_json(PROMPT, *greedy, "--strategy", "fuse")["text"]
        parts = ["--pool", "linear", "--gate", "boundary"]
        assert run_json(PROMPT, *greedy, *parts)["text"] == by_tokens
        assert run_json(PROMPT, *greedy, "--pool", "log-linear")["text"] != by_tokens
        longer = [PROMPT, *pair, "--temp", "0", "-n", "64", "--ignore-eos"]
        always = run_json(*longer, "--gate", "always")["members"]
        assert [member["voted_share"] for member in always] == [1, 1]
        careful = run_json(*longer, "--gate", "boundary")["members"]
        assert min(member["voted_share"] for member in careful) < 1

    def test_bytes_by_default(self, smol: Path, greedy: list[str | Path], said: str) -> None:
        assert run_json(PROMPT, *greedy, "--strategy", "bytes")["text"] == said
        assert run_json(PROMPT, *greedy, "--preset", "bytes")["text"] == said
        one = ["-m", smol, "-m", smol, "-t", "1", "-c", "256", "--temp", "0", "-n", "8"]
        by_tokens = run_json(PROMPT, *one, "--strategy", "fuse")["text"]
        assert run_json(PROMPT, *one)["text"] == by_tokens

    def test_other_parts(self, greedy: list[str | Path]) -> None:
        by_hand = [
            *("--strategy", "fuse", "--alignment", "topk-union", "--set", "union_top=10"),
            *("--gate", "always", "--weighting", "given"),
        ]
        unite = run_json(PROMPT, *greedy, "--preset", "unite")["text"]
        assert run_json(PROMPT, *greedy, *by_hand)["text"] == unite
        eager = run_json(PROMPT, *greedy, "--strategy", "fuse")["text"]
        for parts in (
            ["--schedule", "lazy"],
            ["--schedule", "draft", "--set", "drafter=prompt", "--set", "draft_length=3"],
            ["--solo", "certain"],
        ):
            assert run_json(PROMPT, *greedy, *parts)["text"] == eager
        alone = run_json(PROMPT, *greedy, "--solo", "primary", "--set", "threshold=0.0")["members"]
        assert [member["voted_share"] for member in alone] == [1, 0]

    def test_an_ensemble_file(
        self, tmp_path: Path, smol: Path, gemma: Path, greedy: list[str | Path], said: str
    ) -> None:
        for path in (smol, gemma):
            (tmp_path / path.name).symlink_to(path)
        entry = "[[member]]\nmodel = '{}'\nn_threads = 1\nn_ctx = 256\n"
        sampling = "[sampling]\ntemperature = 0.0\n"
        file = tmp_path / "pair.toml"
        file.write_text(sampling + entry.format(smol.name) + entry.format(gemma.name))
        assert run_json(PROMPT, "-e", file, "-n", "8")["text"] == said
        weighted = run_json(PROMPT, "-e", file, "-n", "8", "--weights", "1,0", "--gate", "always")
        assert [member["weight"] for member in weighted["members"]] == [1, 0]
        done = logitfuse("run", PROMPT, "-e", file, *greedy)
        assert "either -e/--ensemble or -m/-hf" in refusal(done)

    def test_sources_of_the_prompt(
        self, tmp_path: Path, greedy: list[str | Path], said: str
    ) -> None:
        file = tmp_path / "prompt.txt"
        file.write_text(PROMPT + "\n")  # as editors and echo end it
        assert ok("run", "-f", file, *greedy) == said + "\n"
        assert ok("run", *greedy, stdin=PROMPT) == said + "\n"
        assert ok("run", *greedy, stdin=PROMPT + "\r\n") == said + "\n"
        joined = ok("run", f"One\n{PROMPT}\nthree", *greedy)
        assert ok("run", "three", "-f", file, *greedy, stdin="One\n") == joined

    def test_chat(self, smol: Path, gemma: Path, greedy: list[str | Path]) -> None:
        system, user = {"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}
        with Ensemble([smol, gemma], n_threads=1, n_ctx=256) as ensemble:
            for messages, options in (([user], ["--chat"]), ([system, user], ["-sys", "Be brief"])):
                answer = ensemble.create_chat_completion(messages, temperature=0, max_tokens=8)
                expected = answer["choices"][0]["message"]["content"]
                assert run_json("Hi", *options, *greedy)["text"] == expected

    def test_stop(self, greedy: list[str | Path], said: str) -> None:
        report = run_json(PROMPT, *greedy, "--stop", "never said", "--stop", said[3:6])
        assert report["text"] == said[: said.index(said[3:6])]
        assert report["finish_reason"] == "stop"

    def test_seed(self, pair: list[str | Path]) -> None:
        first, again, other = (
            ok("run", PROMPT, *pair, "-n", "12", "--seed", seed) for seed in ("7", "7", "8")
        )
        assert first == again != other

    def test_logit_bias(self, greedy: list[str | Path]) -> None:
        by_tokens = [*greedy, "--strategy", "fuse"]
        assert ok("run", PROMPT, *by_tokens, "-l", " the=100") == " the" * 8 + "\n"
        first = run_json(PROMPT, "--show-members", *greedy)["trace"][0]["text"]
        assert not run_json(PROMPT, *greedy, "-l", f"{first}=-inf")["text"].startswith(first)

    def test_what_the_terminal_cannot_show_is_escaped(self, greedy: list[str | Path]) -> None:
        environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
        options = [*greedy, "--strategy", "fuse", "-l", "é=100"]
        command = [sys.executable, "-m", "logitfuse", "run", PROMPT, *options]
        done = subprocess.run(command, input=b"", capture_output=True, env=environment, check=True)
        assert done.stdout == b"\\xe9" * 8 + b"\n"

    def test_the_script(self, greedy: list[str | Path], said: str) -> None:
        script = Path(sys.executable).with_name("logitfuse")
        assert start(script, "run", PROMPT, *greedy).stdout == said + "\n"


class TestChat:
    def test_a_conversation_from_a_pipe(self, greedy: list[str | Path]) -> None:
        talk = "Hello\n/stats\n\n/unknown\nGo on\n/stats\n/reset\nHello\n/exit\nnever read\n"
        done = logitfuse("chat", *greedy, stdin=talk)
        assert done.returncode == 0
        assert "gemma3 has no chat template" in done.stderr
        assert "smol has no chat template" not in done.stderr
        assert done.stderr.count("8 steps") == 2
        assert done.stderr.count("/exit: leave") == 2
        first, again = (ok("chat", *greedy, stdin=line) for line in ("Hello\n", "Hello\nGo on\n"))
        assert again.startswith(first)
        assert done.stdout == again + first  # after /reset as at first
        decoded = [
            int(line.split()[6]) for line in done.stderr.splitlines() if line.startswith("smol  ")
        ]
        assert decoded[1] < decoded[0]  # the second turn reused the first

    def test_what_fails_is_said_and_forgotten(self, greedy: list[str | Path]) -> None:
        done = logitfuse("chat", *greedy, stdin="word " * 400 + "\nHello\n")
        assert done.returncode == 0
        assert "logitfuse: member 'smol' has n_ctx=256" in done.stderr
        assert done.stdout == ok("chat", *greedy, stdin="Hello\n")

    def test_on_a_terminal(self, smol: Path) -> None:
        # An answer of one word, so probable that only a full context ends it.
        arguments = ["-m", "logitfuse", "chat", "-m", str(smol), "-t", "1", "-c", "65536"]
        arguments += ["--temp", "0", "-l", " the=100"]
        child = pexpect.spawn(
            sys.executable, arguments, env=ENVIRONMENT, encoding="utf-8", timeout=60
        )
        child.expect_exact("> ")
        child.sendline("Hello")
        child.expect_exact(" the the the")
        child.sendintr()
        child.expect_exact("\n> ")
        child.sendline("/stats")
        child.expect_exact("tokens/s")
        child.expect_exact("> ")
        child.sendintr()  # at the prompt: nothing to stop
        child.expect_exact("> ")
        child.sendeof()
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0


class TestCheck:
    def test_json(self, pair: list[str | Path]) -> None:
        report = json.loads(ok("check", "--json", *pair))
        names = [member["name"] for member in report["members"]]
        assert names == ["smol", "gemma3"]
        assert [member["chat_template"] for member in report["members"]] == [True, False]
        assert not report["identical_vocabularies"]
        for shares in (report["coverage"][key] for key in ("types", "emitted", "boundaries")):
            assert shares[0][0] == shares[1][1] == 1
            assert 0 < shares[0][1] < 1
        bits = [member["bits_per_byte"] for member in report["members"]]
        assert min(bits) > 0
        assert report["gap"] == pytest.approx(max(bits) / min(bits) - 1)
        assert report["memory"]["needed_bytes"] > 0
        assert (report["suits"]["strategy"], report["suits"]["alignment"]) == ("bytes", "exact")
        common = report["coverage"]["common_boundaries"]
        assert report["suits"]["reason"].startswith(f"{100 * common:.1f} % of the boundaries")

    def test_suits(self, vocab_dir: Path) -> None:
        """What is said follows the figures."""
        for a, b, strategy in (
            ("gpt-2", "gpt-2", "fuse"),
            ("qwen2", "llama-bpe", "fuse"),
            ("gpt-2", "llama-spm", "bytes"),
        ):
            paths = [vocab_dir / f"ggml-vocab-{name}.gguf" for name in (a, b)]
            models = ["-m", paths[0], "-m", paths[1]]
            report = json.loads(ok("check", "--quick", "--json", *models))
            suits, shares = report["suits"], report["coverage"]
            twins = min(map(min, shares["emitted"]))
            assert suits["strategy"] == strategy
            assert (min(twins, shares["common_boundaries"]) >= 0.97) == (strategy == "fuse")
            assert ("embedding" in suits["reason"]) == (twins < 0.9)
            said = ok("check", "--quick", *models)
            assert f"suits: --strategy {strategy} --alignment exact, as {suits['reason']}" in said

    def test_text(self, pair: list[str | Path]) -> None:
        whole, quick = ok("check", *pair), ok("check", "--quick", *pair)
        for word in ("smol -> gemma3", "gemma3 -> smol", "common to all", "memory", "transcript"):
            assert word in whole
            assert word in quick
        assert "bits per byte" in whole
        assert "bits per byte" not in quick

    def test_own_text(self, tmp_path: Path, pair: list[str | Path]) -> None:
        file = tmp_path / "text.txt"
        file.write_text("Two boats had come in before dawn.")
        read, piped, sample = (
            json.loads(ok("check", "--json", *pair, *options, stdin=stdin))
            for options, stdin in (
                (["-f", file], None),
                ([], file.read_text()),
                ([], None),
            )
        )
        # The first token is given, not predicted; gemma3 begins with a token of its own.
        assert [member["scored_bytes"] for member in read["members"]] == [33, 34]
        assert [member["bits_per_byte"] for member in read["members"]] == [
            member["bits_per_byte"] for member in piped["members"]
        ]
        assert sample["members"][0]["scored_bytes"] > 100

    def test_one_vocabulary(self, smol: Path) -> None:
        report = json.loads(ok("check", "--quick", "--json", "-m", smol, "-m", smol))
        assert report["identical_vocabularies"]
        assert report["coverage"]["common_boundaries"] == 1
        assert report["symbols"] == report["members"][0]["n_vocab"]


class TestOtherCommands:
    def test_info(self, smol: Path) -> None:
        report = json.loads(ok("info", "--json", "-m", smol))
        assert report["installation"]["logitfuse"] == __version__
        assert report["installation"]["isa"] in report["installation"]["available_isas"]
        (model,) = report["models"]
        assert (model["name"], model["architecture"]) == ("smol", "llama")
        assert sum(model["tokens_by_kind"].values()) == model["n_vocab"]
        assert "llama_cpp_python" in ok("info")
        assert "pre_tokenizer" in ok("info", "-m", smol)

    @pytest.mark.usefixtures("smollm2_path", "gemma3_path")
    def test_demo(self) -> None:
        prompt = "The three largest cities of France are"
        done = logitfuse("demo", "-n", "8")
        report = json.loads(ok("demo", "-n", "8", "--json"))
        assert done.stdout == prompt + report["text"] + "\n"
        assert report["tokens"] == 8
        assert "Paris" in report["text"]
        assert [m["name"] for m in report["members"]] == ["SmolLM2-135M-Instruct", "Gemma-3-270m"]

    def test_version(self) -> None:
        assert ok("--version") == f"{__version__}\n"

    def test_help(self) -> None:
        listed = ok("--help")
        for command in COMMANDS:
            assert f"│ {command} " in listed
            text = ok(command, "--help")
            assert undescribed(command) == set()
            assert f"    logitfuse {command}" in text[text.index("Examples:") :]


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

"""The command line as users meet it: real processes, pipes and terminals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pexpect
import pytest
from command_line import ENVIRONMENT, PROMPT, logitfuse, ok, refusal, run_json, start
from logitfuse import Ensemble, __version__
from logitfuse.cli import app

COMMANDS = ("run", "chat", "batch", "presets", "check", "fit", "info", "bench", "demo")


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

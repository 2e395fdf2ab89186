"""``logitfuse batch``: every request has one result, whatever happens to the run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pexpect
import pytest
from batch_files import GREEDY, SHORT, Row, Run, asking, by_id, rows, texts, write
from command_line import ENVIRONMENT, logitfuse, refusal
from logitfuse import Ensemble
from logitfuse.api.service import Api
from logitfuse.llama import LlamaDecoder
from openai.types import Completion
from openai.types.chat import ChatCompletion
from servers import CHAT, HELLO, PROMPT, TEXT

pytest_plugins = ["batch_fixtures"]


class TestResults:
    def test_are_the_ensembles_answers(self, run: Run, file: Path) -> None:
        write(
            asking("a chat", CHAT, messages=HELLO, **GREEDY),
            asking("a text", **SHORT, model="one"),
            asking("naïve 🤖\n", prompt=[PROMPT, "x"], n=2, logprobs=1, **GREEDY),
        )
        code, out, err = run("-np", "1", "--json")
        assert code == 0, err
        summary = json.loads(out)
        assert summary.pop("seconds") > 0
        found = by_id(rows())
        usage = [response["body"]["usage"] for response in found.values()]
        assert summary == {
            "requests": 3,
            "known": 0,
            "answered": 3,
            "failed": 0,
            "skipped": 0,
            "prompt_tokens": sum(counts["prompt_tokens"] for counts in usage),
            "completion_tokens": sum(counts["completion_tokens"] for counts in usage),
        }
        chat = ChatCompletion.model_validate(found["a chat"]["body"], strict=True)
        text = Completion.model_validate(found["a text"]["body"], strict=True)
        assert (chat.model, text.model) == ("pair", "one")
        with Ensemble.from_config(f"{file}:pair") as pair:
            expected = pair.create_chat_completion(HELLO, **GREEDY)["choices"][0]
            assert chat.choices[0].message.content == expected["message"]["content"]
        with Ensemble.from_config(f"{file}:one") as one:
            assert text.choices[0].text == one(PROMPT, **GREEDY)["choices"][0]["text"]
        several = Completion.model_validate(found["naïve 🤖\n"]["body"], strict=True).choices
        assert [choice.index for choice in several] == [0, 1, 2, 3]
        assert several[0].text == several[1].text != several[2].text == several[3].text

    def test_constraints(self, run: Run) -> None:
        schema = {
            "type": "object",
            "properties": {"a": {"type": "boolean"}},
            "required": ["a"],
            "additionalProperties": False,
        }
        wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
        chat = {"messages": HELLO, "max_tokens": 60, "response_format": wanted}
        write(*(asking(name, CHAT, **chat) for name in "abc"))
        assert run()[0] == 0
        for response in by_id(rows()).values():
            said = json.loads(response["body"]["choices"][0]["message"]["content"])
            assert said in ({"a": True}, {"a": False})

    def test_come_when_they_are_ready(self, run: Run) -> None:
        long = SHORT | {"max_tokens": 150, "ignore_eos": True}
        write(asking("long", **long), *(asking(f"short {i}") for i in range(6)))
        assert run("-np", "2")[0] == 0
        assert [row["custom_id"] for row in rows()].index("long") > 2  # others overtook it

    def test_failures_are_results(self, run: Run) -> None:
        write(
            asking("stream", **SHORT, stream=True),
            asking("type", prompt=PROMPT, max_tokens="many"),
            asking("model", **SHORT, model="gpt"),
            asking("url", CHAT, **SHORT),
            asking("long", prompt=PROMPT * 200),
            asking("good"),
            asking("weights", **SHORT, logitfuse={"weights": [1, 2, 3]}),
        )
        code, out, err = run("-np", "2", "--json")
        assert code == 1
        assert json.loads(out)["failed"] == 6
        said = err.splitlines()[-1]
        assert said.startswith("6 of 7 failed, the first: ")
        assert said.endswith("(correct them, or --retry asks them again)")
        found = by_id(rows())
        assert len(texts(found.pop("good"))[0]) > 0
        errors = {name: response["body"]["error"] for name, response in found.items()}
        assert {n: response["status_code"] for n, response in found.items()} == dict.fromkeys(
            ("stream", "type", "url", "long", "weights"), 400
        ) | {"model": 404}
        assert errors["stream"]["message"] == "a batch has no streams; leave 'stream' out"
        assert {name: error["param"] for name, error in errors.items()} == {
            "stream": "stream",
            "type": "max_tokens",
            "model": "model",
            "url": "messages",
            "long": errors["long"]["param"],
            "weights": "logitfuse.weights",
        }
        assert errors["long"]["code"] == "context_length_exceeded"

    def test_a_member_that_fails(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        write(*(asking(name) for name in "abc"))
        decode, calls = LlamaDecoder.decode, iter(range(10**6))

        def decode_or_not(decoder: LlamaDecoder, pieces: Any) -> int:
            return -3 if next(calls) == 24 else decode(decoder, pieces)

        with monkeypatch.context() as patch:
            patch.setattr(LlamaDecoder, "decode", decode_or_not)
            assert run("-np", "1")[0] == 1
        found = by_id(rows())
        assert [found[name]["status_code"] for name in "abc"] == [200, 500, 200]
        assert found["b"]["body"]["error"]["code"] == "member_failed"
        assert run("--retry")[0] == 0

    def test_what_nobody_foresaw(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        write(asking("a"), asking("b", CHAT, messages=HELLO, **GREEDY), asking("c"))

        def fail(*_: Any) -> None:
            raise RuntimeError("".join(["about a sec", "ret prompt"]))  # not in the source

        with monkeypatch.context() as patch:
            patch.setattr(Api, "chat", fail)
            code, _, err = run()
        assert code == 1
        assert "unforeseen RuntimeError" in err
        assert "secret" not in err
        found = by_id(rows())
        assert found["b"]["body"]["error"]["code"] == "internal_error"
        assert [found[name]["status_code"] for name in "abc"] == [200, 500, 200]

    def test_the_name_of_the_model(self, run: Run, tiny_models: Mapping[str, Path]) -> None:
        write(asking("a", **SHORT, model="gpt-4o-mini"))
        models = ["-m", str(tiny_models["smol"]), "-t", "1", "-c", "256"]
        assert run("--alias", "gpt-4o-mini", models=models)[0] == 0
        assert rows()[0]["response"]["body"]["model"] == "gpt-4o-mini"
        code, _, err = run("--alias", "gpt-4o-mini")
        assert (code, err) == (
            2,
            "logitfuse: 2 ensembles cannot all be called 'gpt-4o-mini'\n",
        )


BAD_LINES = [
    ("{", "is not JSON: Expecting property name"),
    ("[1]", "is not a JSON object, but '[1]'"),
    ('{"custom_id": "\\ud83d"}', "has half a character"),
    ({"method": "POST", "url": TEXT, "body": SHORT}, "'custom_id': Field required"),
    (asking(""), "'custom_id': String should have at least 1 character"),
    (asking("a"), "the custom_id 'a' is that of line 1; give it another"),
    (asking("b") | {"method": "GET"}, "'method': Input should be 'POST', not 'GET'"),
    (asking("b", "/v1/embeddings"), "'url': Input should be '/v1/chat/completions' or '/v1/com"),
    (asking("b") | {"body": "x"}, "'body': Input should be a valid dictionary, not 'x'"),
]


class TestRefusals:
    @pytest.mark.parametrize(("line", "said"), BAD_LINES)
    def test_lines(self, run: Run, line: Row | str, said: str) -> None:
        write(asking("a"), "", line)
        code, out, err = run()
        assert (code, out) == (2, "")
        assert err.startswith(f"logitfuse: 'in.jsonl' line 3: {said}")
        assert err.endswith("; --skip-bad (skip_bad) leaves such lines out\n")
        assert not Path("out.jsonl").exists()

    def test_lines_that_are_left_out(self, run: Run) -> None:
        write(asking("a"), *(line for line, _ in BAD_LINES))
        code, out, err = run("--skip-bad", "--json")
        assert code == 0
        assert err == "9 lines cannot be used: 2, 3, 4, 5, 6, 7, 8, 9, 10\n"
        assert (json.loads(out)["skipped"], json.loads(out)["requests"]) == (9, 1)
        assert [row["custom_id"] for row in rows()] == ["a"]
        write("{")
        code, _, err = run("--skip-bad")
        assert code == 2
        assert err.startswith("logitfuse: 'in.jsonl' has no request; line 1: is not JSON")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["nowhere", "out.jsonl"], "cannot read the requests: "),
            (["empty", "out.jsonl"], "'empty' has no request"),
            (["in.jsonl", "."], "cannot add to '.': "),
            (["in.jsonl", "no/out.jsonl"], "cannot add to 'no/out.jsonl': "),
            (["in.jsonl", "/dev/null"], "'/dev/null' is no file that can be added to"),
            (["in.jsonl", "-x"], "there is no option '-x'; a file of that name is './-x'"),
            (["in.jsonl", "-", "--json"], "--json prints where the results go"),
            (["in.jsonl"], "requires an argument"),
            (["in.jsonl", "out.jsonl", "-np", "0"], "Must be >= 1"),
            (["in.jsonl", "out.jsonl", "-np", "300"], "300 slots of 1 sequences are more than"),
        ],
        ids=lambda part: part if isinstance(part, str) else " ".join(part),
    )
    def test_options(self, folder: Path, file: Path, options: list[str], said: str) -> None:
        write(asking("a"))
        Path("empty").touch()
        assert said in refusal(logitfuse("batch", *options, "-e", file, cwd=folder))

    def test_no_models(self, folder: Path) -> None:
        write(asking("a"))
        done = logitfuse("batch", "in.jsonl", "out.jsonl", "-m", "nowhere.gguf", cwd=folder)
        assert "there is no model file 'nowhere.gguf'" in refusal(done)
        assert "no models; give -m" in refusal(logitfuse("batch", "in.jsonl", "o", cwd=folder))


class TestTerminal:
    def test_pipes(self, folder: Path, file: Path) -> None:
        lines = "".join(f"{json.dumps(asking(name))}\n" for name in "abc")
        done = logitfuse("batch", "-", "-", "-e", file, stdin=lines, cwd=folder)
        assert done.returncode == 0
        assert by_id(rows(done.stdout)).keys() == set("abc")
        assert done.stderr.startswith("3 requests: 3 new results; ")
        assert list(folder.iterdir()) == []

    def test_progress(self, folder: Path, file: Path) -> None:
        long = SHORT | {"max_tokens": 60, "ignore_eos": True}
        write(*(asking(f"number {i}", **long) for i in range(60)))
        child = pexpect.spawn(
            sys.executable,
            ["-m", "logitfuse", "batch", "in.jsonl", "out.jsonl", "-e", str(file)],
            env=ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "160"},
            encoding="utf-8",
            timeout=60,
            cwd=folder,
            dimensions=(40, 160),
        )
        child.expect_exact("━━━━")
        child.expect(r"[1-9]\d?%")
        child.expect(r"\d:\d\d:\d\d")  # what remains
        child.expect_exact("60 requests: 60 new results")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0

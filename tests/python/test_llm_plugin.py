"""Simon Willison's ``llm`` asks ensembles: its Python API, and its command line as users run it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import llm
import logitfuse
import pexpect
import pytest
from click.testing import CliRunner, Result
from command_line import ENVIRONMENT
from llm import plugins
from logitfuse import Ensemble, llm_plugin
from logitfuse.api import local
from logitfuse.sampling import SamplingParams
from pydantic import BaseModel, Field, ValidationError

REPO = Path(__file__).resolve().parents[2]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def file(tiny_models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble that answers greedily unless it is told otherwise."""
    path = tmp_path_factory.mktemp("plugged") / "pair.toml"
    members = "".join(
        f'[[member]]\nmodel = "{tiny_models[name]}"\nn_threads = 1\nn_ctx = 512\n'
        for name in ("smol", "gemma3")
    )
    path.write_text(f'strategy = "fuse"\n[sampling]\ntemperature = 0\n{members}')
    return path


@pytest.fixture(scope="module")
def several(file: Path) -> Path:
    """Two ensembles."""
    path = file.with_name("several.toml")
    path.write_text(
        f'{file.read_text()}[[ensemble]]\nname = "both"\n[[ensemble]]\nname = "one"\n'
        'members = ["smol"]\n'
    )
    return path


@pytest.fixture(autouse=True)
def user_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where llm keeps what it knows."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    return tmp_path / "llm"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plug-in alone, as llm's plugin manager has it."""
    monkeypatch.setattr(plugins, "LLM_LOAD_PLUGINS", "")
    plugins.load_plugins()
    plugins.pm.register(llm_plugin)
    yield
    plugins.pm.unregister(llm_plugin)


@pytest.fixture
def model(registered: None, file: Path) -> llm.Model:
    del registered
    assert command("add", str(file)).output == "logitfuse/pair\n"
    return llm.get_model("logitfuse/pair")


@pytest.fixture(scope="module")
def ensemble(file: Path) -> Iterator[Ensemble]:
    """The same, without llm."""
    with Ensemble.from_config(file) as made:
        yield made


def command(*arguments: str) -> Result:
    """``llm logitfuse ...``."""
    return CliRunner().invoke(llm_plugin.ensembles, arguments)


def reply(ensemble: Ensemble, *messages: tuple[str, str]) -> str:
    """What the ensemble says to a chat."""
    chat = [{"role": role, "content": text} for role, text in messages]
    answer: Any = ensemble.create_chat_completion(chat, **GREEDY)
    text: str = answer["choices"][0]["message"]["content"]
    return text


class TestAnswers:
    def test_are_the_ensembles(self, model: llm.Model, ensemble: Ensemble) -> None:
        expected = reply(ensemble, ("user", "Hello"))
        pieces = list(model.prompt("Hello", **GREEDY))
        assert "".join(pieces) == expected
        assert len(pieces) > 3
        whole = model.prompt("Hello", stream=False, **GREEDY)
        assert list(whole) == [expected]
        assert whole.usage().output == 12
        assert whole.usage().input > 5
        assert whole.json()["finish_reason"] == "length"

    def test_conversations(self, model: llm.Model, ensemble: Ensemble) -> None:
        talk = model.conversation()
        first = talk.prompt("Hello", system="Be brief.", **GREEDY).text()
        second = talk.prompt("And then?", **GREEDY).text()
        turns = [("system", "Be brief."), ("user", "Hello")]
        assert first == reply(ensemble, *turns)
        turns += [("assistant", first), ("user", "And then?")]
        assert second == reply(ensemble, *turns)

    def test_schemas(self, model: llm.Model) -> None:
        class Sign(BaseModel):
            sign: Literal["+", "-"]

        class Verdict(BaseModel):
            is_true: bool
            signs: list[Sign] = Field(min_length=1, max_length=2)

        for seed in range(3):
            wanted = {"temperature": 1, "max_tokens": 200, "seed": seed}
            said = json.loads(model.prompt("Is it?", schema=Verdict, **wanted).text())
            assert Verdict.model_validate(said).model_dump() == said  # and nothing else
        with pytest.raises(llm.ModelError, match="the JSON schema cannot be used: "):
            model.prompt("Is it?", schema={"type": "nothing"}).text()

    def test_several_at_once(self, model: llm.Model) -> None:
        texts = [model.prompt(word, **GREEDY).text() for word in ("one", "two")]
        both = [iter(model.prompt(word, **GREEDY)) for word in ("one", "two")]
        begun = [next(each) for each in both]
        ends = ["".join(each) for each in both]
        assert [a + b for a, b in zip(begun, ends, strict=True)] == texts

    def test_nobody_waits_for_what_nobody_hears(self, model: llm.Model) -> None:
        unheard = iter(model.prompt("Hello", max_tokens=400))
        next(unheard)
        unheard.close()  # type: ignore[attr-defined]
        assert model.prompt("Hello", **GREEDY).text()

    def test_models_are_loaded_once(
        self, registered: None, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        del registered
        loaded = []

        class Counted(local.Batcher):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                loaded.append(arguments)
                super().__init__(*arguments, **options)

        monkeypatch.setattr(local, "Batcher", Counted)
        other = tmp_path / "other.toml"
        other.write_text(file.read_text())
        command("add", str(other))
        for _ in range(2):
            assert llm.get_model("logitfuse/other").prompt("Hello", **GREEDY).text()
        assert len(loaded) == 1


class TestOptions:
    def test_are_the_sampling_parameters(self, model: llm.Model) -> None:
        known = model.Options.model_json_schema()["properties"]
        assert known.keys() == {*SamplingParams.model_fields, "max_tokens", "stop"}
        assert all(option["description"] for name, option in known.items() if name != "stop")

    def test_by_default_the_files(self, model: llm.Model) -> None:
        asked = [model.prompt("Hello", max_tokens=12).text() for _ in range(2)]
        assert asked[0] == asked[1] == model.prompt("Hello", **GREEDY).text()

    def test_as_the_command_line_gives_them(self, model: llm.Model) -> None:
        drawn = {"temperature": "1.5", "max_tokens": "12", "top_k": "0"}
        one = model.prompt("Hello", seed="1", **drawn).text()
        assert one == model.prompt("Hello", seed="1", **drawn).text()
        assert one != model.prompt("Hello", seed="2", **drawn).text()
        first = next(iter(model.prompt("Hello", **GREEDY)))
        banned = model.prompt("Hello", logit_bias=json.dumps({first: False}), **GREEDY).text()
        assert not banned.startswith(first)
        ended = model.prompt("Hello", stop=json.dumps([first]), **GREEDY)
        assert ended.text() == ""
        assert ended.json()["finish_reason"] == "stop"

    @pytest.mark.parametrize(
        "option", [{"temperature": -1}, {"top_p": "2"}, {"heat": 1}, {"max_tokens": "many"}]
    )
    def test_wrong_ones(self, model: llm.Model, option: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match=next(iter(option))):
            model.prompt("Hello", **option)


class TestErrors:
    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ({"prompt": ""}, "the prompt is empty"),
            ({"prompt": "Hello " * 600}, "has n_ctx=512 but the prompt is "),
            ({"prompt": "Hello", "logit_bias": {"Hellothere": 1}}, "no member has a token"),
            (
                {"messages": [llm.tool_message(llm.parts.ToolResultPart("x", "y"))]},
                "ensembles read only text, no ToolResultPart",
            ),
        ],
    )
    def test_one_line(self, model: llm.Model, asked: dict[str, Any], said: str) -> None:
        with pytest.raises(llm.ModelError) as caught:
            model.prompt(**asked).text()
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_models_that_are_gone(
        self, registered: None, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        del registered
        monkeypatch.chdir(tmp_path)
        Path("gone.toml").write_text('[[member]]\nmodel = "nowhere.gguf"\n')
        assert command("add", "gone.toml").exit_code == 0
        monkeypatch.chdir(file.parent)
        with pytest.raises(llm.ModelError, match=r"there is no model file '/.*/nowhere\.gguf'"):
            llm.get_model("logitfuse/gone").prompt("Hello").text()
        (tmp_path / "gone.toml").unlink()
        with pytest.raises(llm.ModelError, match="cannot read the configuration"):
            llm.get_model("logitfuse/gone").prompt("Hello").text()


class TestCommands:
    def test_ensembles_of_a_file(
        self, several: Path, monkeypatch: pytest.MonkeyPatch, user_path: Path
    ) -> None:
        monkeypatch.chdir(several.parent)
        assert command("list").output == ""
        assert command("add", "several.toml").output == "logitfuse/both\nlogitfuse/one\n"
        assert command("add", "several.toml:one", "--name", "x").output == "logitfuse/x\n"
        assert command("add", "pair.toml", "--name", "y").output == "logitfuse/y\n"
        assert command("list").output.splitlines() == [
            f"logitfuse/both: {several}:both",
            f"logitfuse/one: {several}:one",
            f"logitfuse/x: {several}:one",
            f"logitfuse/y: {several.parent / 'pair.toml'}",
        ]
        for name in ("logitfuse/both", "one", "x"):
            assert command("remove", name).exit_code == 0
        assert json.loads((user_path / "logitfuse.json").read_text()) == {
            "y": str(several.parent / "pair.toml")
        }

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["add", "nowhere.toml"], "cannot read the configuration 'nowhere.toml'"),
            (["add", "several.toml:two"], "has no ensemble 'two'; known: both, one"),
            (["add", "several.toml", "--name", "x"], "several ensembles (both, one); name one: "),
            (["add", "bad.toml"], "unknown key 'pol'"),
            (["add", "parts.toml"], "the strategy 'mix' has no 'gate'"),
            (["remove", "x"], "there is no ensemble 'x'; there are none"),
        ],
    )
    def test_refusals(
        self, several: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(several.parent)
        Path("bad.toml").write_text('pol = "linear"\n[[member]]\nmodel = "x"\n')
        Path("parts.toml").write_text('strategy = "mix"\ngate = "always"\n[[member]]\nmodel = "x"')
        done = command(*arguments)
        assert done.exit_code == 1
        assert done.output.startswith("Error: ")
        assert done.output.count("\n") == 1
        assert said in done.output

    def test_a_damaged_list(
        self, registered: None, user_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        del registered
        user_path.mkdir()
        for text in ("{", "[]"):
            (user_path / "logitfuse.json").write_text(text)
            done = command("list")
            assert done.exit_code == 1
            assert done.output.startswith(f"Error: cannot read '{user_path / 'logitfuse.json'}': ")
            caplog.clear()
            assert "gpt-4o" in {one.model_id for one in llm.get_models()}  # others are still there
            assert "correct or delete it" in caplog.text


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that says of this package what its installation would say."""
    folder = tmp_path_factory.mktemp("installed")
    about = folder / "logitfuse-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: logitfuse\nVersion: 0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in entry_points().items())
    (about / "entry_points.txt").write_text(f"[llm]\n{lines}")
    return folder


def entry_points() -> dict[str, str]:
    """Of the group llm."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points: dict[str, str] = project["entry-points"]["llm"]
    return points


def environment(installed: Path) -> dict[str, str]:
    package = Path(logitfuse.__file__).resolve().parents[1]  # wherever it is installed
    path = [str(installed), str(package), os.environ.get("PYTHONPATH", "")]
    user = {"LLM_USER_PATH": os.environ["LLM_USER_PATH"], "LLM_LOAD_PLUGINS": "logitfuse"}
    return ENVIRONMENT | user | {"PYTHONPATH": os.pathsep.join(path)}


class TestProgram:
    def test_the_entry_point(self) -> None:
        modules = [importlib.import_module(value) for value in entry_points().values()]
        assert modules == [llm_plugin]
        hooks = {name for name in dir(llm_plugin) if hasattr(getattr(llm_plugin, name), "llm_impl")}
        assert hooks == {"register_models", "register_commands"}

    def test_importing_it_is_cheap(self, file: Path) -> None:
        command("add", str(file))
        code = (
            "import sys, llm\nbefore = set(sys.modules)\nfrom logitfuse import llm_plugin\n"
            "llm_plugin.register_models(lambda model: print(model.model_id))\n"
            "print(*sorted(m for m in set(sys.modules) - before if 'logitfuse' in m or m == 'numpy'"
            " or m == 'llama_cpp'))"
        )
        out = subprocess.check_output([sys.executable, "-c", code], text=True)
        assert out.splitlines() == [
            "logitfuse/pair",
            "logitfuse logitfuse._core logitfuse.errors logitfuse.llm_plugin",
        ]

    def test_prompts(self, installed: Path, file: Path, ensemble: Ensemble) -> None:
        def run(*arguments: str, code: int = 0) -> str:
            done = subprocess.run(
                [sys.executable, "-m", "llm", *arguments],
                capture_output=True,
                text=True,
                env=environment(installed),
                timeout=120,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == code, done.stderr
            assert "Traceback" not in done.stderr
            return done.stdout or done.stderr

        assert run("logitfuse", "add", str(file)) == "logitfuse/pair\n"
        assert "Ensemble: logitfuse/pair\n" in run("models")
        options = ("-o", "max_tokens", "12")
        first = run("-m", "logitfuse/pair", "Hello", "-s", "Be brief.", *options)
        turns = [("system", "Be brief."), ("user", "Hello")]
        assert first == reply(ensemble, *turns) + "\n"
        second = run("-c", "And then?", "--no-stream", *options)
        turns += [("assistant", first[:-1]), ("user", "And then?")]
        assert second == reply(ensemble, *turns) + "\n"
        verdict = run("-m", "logitfuse/pair", "Is it?", "--schema", "sure bool", "--no-log")
        assert json.loads(verdict)["sure"] in (True, False)
        logged = json.loads(run("logs", "--json"))
        assert [entry["model"] for entry in logged] == ["logitfuse/pair"] * 2
        assert [entry["output_tokens"] for entry in logged] == [12, 12]
        long = run("-m", "logitfuse/pair", "Hello " * 600, code=1)
        assert long.splitlines()[-1].startswith("Error: member 'smol' has n_ctx=512 but the prompt")

    def test_a_chat(self, installed: Path, file: Path) -> None:
        command("add", str(file))
        child = pexpect.spawn(
            sys.executable,
            ["-m", "llm", "chat", "-m", "logitfuse/pair", "-o", "max_tokens", "300"],
            env=environment(installed),
            encoding="utf-8",
            timeout=60,
        )
        child.expect_exact("Chatting with logitfuse/pair")
        child.expect("> ")
        child.sendline("Hello")
        child.expect_exact("Hello\r\n")
        child.expect(r"\w{3}")  # the reply begins
        child.sendintr()
        child.expect_exact("Aborted!")  # and not the process, in llama.cpp
        child.expect(pexpect.EOF)
        child.close()
        assert (child.exitstatus, child.signalstatus) == (1, None)

"""The TOML file: what it may say, and errors that name the key."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import logitfuse.config
import pytest
from logitfuse import Ensemble
from logitfuse.config import (
    FuseConfig,
    MemberConfig,
    build,
    load_config,
    load_configs,
    parse_config,
)
from logitfuse.errors import ConfigError, LogitfuseError, ModelNotFoundError
from logitfuse.strategies.fuse import Fuse

MEMBER = {"model": "a.gguf"}


def write(folder: Path, text: str) -> Path:
    """A TOML file in a folder."""
    path = folder / "ensemble.toml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def docstring_examples() -> list[str]:
    """The two files in the docstring of `logitfuse.config`; the second one adds to the first."""
    text = logitfuse.config.__doc__
    assert text is not None
    blocks = re.findall(r"::\n\n((?: {4}.*\n|\n)+)", text)
    return [textwrap.dedent(block) for block in blocks]


class TestFile:
    def test_the_example_of_the_docstring(self, tmp_path: Path) -> None:
        config = load_config(write(tmp_path, docstring_examples()[0]))
        assert (config.name, config.pool, config.sampling.temperature) == ("pair", "linear", 0.7)
        assert [member.weight for member in config.member] == [0.6, 0.4]
        assert [member.model for member in config.member] == [
            tmp_path / "smollm2-135m-instruct-q4_1.gguf",
            tmp_path / "gemma-3-270m-q4_k_m.gguf",
        ]

    def test_paths_are_relative_to_the_file(self, tmp_path: Path) -> None:
        absolute = tmp_path / "elsewhere" / "b.gguf"
        config = load_config(
            write(
                tmp_path,
                f"""
                learned = "fits/pair.json"
                [[member]]
                model = "models/a.gguf"
                [[member]]
                model = '{absolute}'
                [[member]]
                hf = "user/repo:Q8_0"
                """,
            )
        )
        paths = [member.model for member in config.member]
        assert paths == [tmp_path / "models" / "a.gguf", absolute, None]
        assert config.learned == tmp_path / "fits" / "pair.json"

    def test_defaults_are_those_of_the_facade(self) -> None:
        config = parse_config({"member": [MEMBER]})
        assert (config.strategy, config.pool, config.gate) == ("auto", "linear", "boundary")
        assert config.member[0] == MemberConfig(model=Path("a.gguf"))

    def test_an_ensemble_of_a_file(
        self, tmp_path: Path, tiny_models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "models").mkdir()
        for name in ("smol", "gemma3"):
            (tmp_path / "models" / f"{name}.gguf").symlink_to(tiny_models[name])
        data = {
            "name": "pair",
            "pool": "log-linear",
            "sampling": {"seed": 5},
            "member": [
                {"model": "models/smol.gguf", "weight": 3, "n_ctx": 256, "n_threads": 1},
                {"model": "models/gemma3.gguf", "name": "second", "n_threads": 1},
            ],
        }
        path = write(
            tmp_path,
            """
            name = "pair"
            pool = "log-linear"
            [sampling]
            seed = 5
            [[member]]
            model = "models/smol.gguf"
            weight = 3
            n_ctx = 256
            n_threads = 1
            [[member]]
            model = "models/gemma3.gguf"
            name = "second"
            n_threads = 1
            """,
        )
        answers = []
        for config in (path, str(path), data, parse_config(data), load_config(path)):
            with Ensemble.from_config(config) as ensemble:
                fuse = ensemble.generator
                assert isinstance(fuse, Fuse)  # bytes, were it not for the pool
                assert (fuse.name, fuse.pool.kind) == ("pair", "log-linear")
                assert ensemble.n_ctx() == 256
                assert [member.name for member in fuse.members] == ["smol", "second"]
                assert fuse.weights == pytest.approx([0.75, 0.25])
                answers.append(ensemble("Once upon a time", max_tokens=8)["choices"][0]["text"])
        assert len(set(answers)) == 1  # of the file's seed


class TestProblems:
    @pytest.mark.parametrize(
        ("text", "key", "message"),
        [
            ("poool = 'linear'", "poool", "did you mean 'pool'?"),
            ("wibble = 1", "wibble", "known: strategy, name, preset, pool, floor"),
            ("[[members]]\nmodel = 'a.gguf'", "members", "did you mean 'member'?"),
            ("[[member]]\nmodle = 'a.gguf'", "member.0.modle", "did you mean 'model'?"),
            ("[sampling]\ntemprature = 1", "sampling.temprature", "did you mean 'temperature'?"),
            ("pool = 'geometric'", "pool", "'contrast' or 'consistency', not 'geometric'"),
            ("gate = 1", "gate", "'boundary' or 'always', not 1"),
            ("strategy = 'cascade'", "strategy", "not 'cascade'"),
            ("floor = 1.0", "floor", "not 1.0"),
            ("[sampling]\ntop_p = 2", "sampling.top_p", "not 2"),
            ("[sampling]\nseed = -2", "sampling.seed", "not -2"),
            ("draft_length = 0", "draft_length", "not 0"),
            ("beam = 0", "beam", "not 0"),
            ("beam = 128", "beam", "not 128"),
            ("prune = 1", "prune", "not 1"),
            ("union_top = 0", "union_top", "not 0"),
            ("preset = 3", "preset", "not 3"),
            ("threshold = nan", "threshold", "not nan"),
            ("[[member]]\nmodel = 'a'\nweight = nan", "member.0.weight", "not nan"),
            ("[[member]]\nmodel = 'a'\nn_ctx = 'big'", "member.0.n_ctx", "not 'big'"),
            ("[[member]]\nmodel = 'a'\nn_threads = 0", "member.0.n_threads", "not 0"),
            ("[[member]]\nmodel = 'a'\nn_gpu_layers = -2", "member.0.n_gpu_layers", "not -2"),
            ("[[member]]\nweight = 1", "member.0", "either 'model'"),
            ("[[member]]\nmodel = 'a'\nhf = 'u/r'", "member.0", "either 'model'"),
            ("member = 3", "member", "list"),
            ("member = []", "member", "at least 1"),
            ("", "member", "required"),
        ],
    )
    def test_key(self, tmp_path: Path, text: str, key: str, message: str) -> None:
        path = write(tmp_path, text)
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert (caught.value.path, caught.value.key) == (path, key)
        assert str(path) in str(caught.value)
        assert f"'{key}'" in str(caught.value)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"pool = ", "not valid TOML"),
            (b"name = '\xff'", "cannot read"),
            (None, "cannot read"),
        ],
    )
    def test_file(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        path = tmp_path / "ensemble.toml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=message) as caught:
            load_config(path)
        assert (caught.value.path, caught.value.key) == (path, None)
        assert str(path) in str(caught.value)

    def test_nothing_stays_open_if_one_model_is_missing(
        self, tmp_path: Path, tiny_models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed = []
        close = logitfuse.Member.close

        def count(member: Any) -> None:
            closed.append(member.name)
            close(member)

        monkeypatch.setattr(logitfuse.Member, "close", count)
        entries = [{"model": tiny_models["smol"]}, {"model": tmp_path / "nope.gguf"}]
        with pytest.raises(ModelNotFoundError, match=r"nope\.gguf") as caught:
            build(parse_config({"member": entries}))
        assert caught.value.path == tmp_path / "nope.gguf"
        assert closed == ["smol"]


SEVERAL = """
    pool = "log-linear"
    [sampling]
    temperature = 0.5
    top_k = 7
    [[member]]
    model = "a.gguf"
    [[member]]
    name = "b"
    model = "two.gguf"
    weight = 3
    [[ensemble]]
    name = "both"
    [[ensemble]]
    name = "careful"
    pool = "min"
    weights = [0.7, 0.3]
    sampling = { temperature = 0 }
    [[ensemble]]
    name = "alone"
    members = ["b"]
    """


class TestSeveral:
    """Several ensembles in one file."""

    def test_the_example_of_the_docstring(self, tmp_path: Path) -> None:
        pair, careful = load_configs(write(tmp_path, "".join(docstring_examples())))
        assert (pair.name, careful.name) == ("pair", "careful")
        assert (pair.pool, careful.pool) == ("linear", "log-linear")
        assert [entry.weight for entry in pair.member] == [0.6, 0.4]
        assert [entry.weight for entry in careful.member] == [0.7, 0.3]

    def test_what_they_share_and_what_is_their_own(self, tmp_path: Path) -> None:
        both, careful, alone = load_configs(write(tmp_path, SEVERAL))
        assert [c.pool for c in (both, careful, alone)] == ["log-linear", "min", "log-linear"]
        samplings = [config.sampling for config in (both, careful, alone)]
        assert [(s.temperature, s.top_k) for s in samplings] == [(0.5, 7), (0, 7), (0.5, 7)]
        assert [entry.weight for entry in both.member] == [1, 3]
        assert [entry.weight for entry in careful.member] == [0.7, 0.3]
        assert [(entry.name, entry.weight) for entry in alone.member] == [("b", 3)]
        assert alone.member[0].model == tmp_path / "two.gguf"

    def test_one_of_them(self, tmp_path: Path) -> None:
        path = write(tmp_path, SEVERAL)
        configs = load_configs(path)
        assert load_config(path) == configs[0]
        for config in configs:
            assert load_config(f"{path}:{config.name}") == config
            assert load_configs(f"{path}:{config.name}") == [config]
        with pytest.raises(ConfigError, match="no ensemble 'nope'; known: both, careful, alone"):
            load_config(f"{path}:nope")

    def test_a_file_of_one(self, tmp_path: Path) -> None:
        path = write(tmp_path, docstring_examples()[0])
        assert load_configs(path) == [load_config(path)] == [load_config(f"{path}:pair")]

    def test_a_colon_in_a_name(self, tmp_path: Path) -> None:
        folder = tmp_path / "a:b"
        folder.mkdir()
        path = write(folder, SEVERAL)
        assert load_config(path).name == "both"
        assert load_config(f"{path}:alone").name == "alone"
        with pytest.raises(ConfigError, match="cannot read"):
            load_config(tmp_path / "a:c" / "ensemble.toml")

    @pytest.mark.parametrize(
        ("was", "becomes", "key", "message"),
        [
            ('name = "both"', "", "name", "needs a name of its own, not None"),
            ('name = "both"', "name = 3", "name", "not 3"),
            ('name = "both"', 'name = "alone"', "name", "not 'alone'"),
            (
                'members = ["b"]',
                'members = ["c"]',
                "members",
                "wants members .'c'.; there are a, b",
            ),
            ('members = ["b"]', "members = 5", "members", "wants members 5"),
            ('members = ["b"]', "members = []", "member", "at least 1"),
            ("[0.7, 0.3]", "[1]", "weights", "has 2 members and needs as many weights"),
            ("[0.7, 0.3]", "1", "weights", "not 1"),
            ("[0.7, 0.3]", '["x", 1]', "member.0.weight", "not 'x'"),
            ("temperature = 0 ", "temperature = -1", "sampling.temperature", "not -1"),
            ("sampling = { temperature = 0 }", "sampling = 3", "sampling", "not 3"),
            ('pool = "min"', 'pol = "min"', "pol", "did you mean 'pool'"),
            ("[[ensemble]]", "[ensemble]", None, "TOML"),
        ],
    )
    def test_refusals(
        self, tmp_path: Path, was: str, becomes: str, key: str | None, message: str
    ) -> None:
        text = SEVERAL.replace(was, becomes, 1)
        assert text != SEVERAL
        with pytest.raises(ConfigError, match=message) as caught:
            load_configs(write(tmp_path, text))
        assert caught.value.key == key
        assert caught.value.path == tmp_path / "ensemble.toml"

    @pytest.mark.parametrize("tables", ["ensemble = 3", "ensemble = []", "ensemble = [1]"])
    def test_no_tables(self, tmp_path: Path, tables: str) -> None:
        with pytest.raises(ConfigError, match="must be tables") as caught:
            load_configs(write(tmp_path, tables))
        assert caught.value.key == "ensemble"


def test_configurations_are_frozen() -> None:
    config = FuseConfig(member=[MemberConfig(model=Path("a.gguf"))])
    with pytest.raises(ValueError, match="frozen"):
        config.pool = "log-linear"


def test_config_errors_are_value_errors_of_ours() -> None:
    with pytest.raises(LogitfuseError):
        parse_config({})
    with pytest.raises(ValueError, match="member"):
        parse_config({})

"""What lm-evaluation-harness calls things, and what an ensemble calls them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lm_eval.utils import simple_parse_args_string
from logitfuse.errors import ConfigError
from logitfuse.harness.arguments import config_of, generation_of
from logitfuse.sampling import SamplingParams


class TestSettings:
    BASE = SamplingParams(top_k=7, seed=3)

    def test_names(self) -> None:
        asked = generation_of(
            {"until": "Q:", "max_new_tokens": 5, "do_sample": True, "temperature": 0.5}
            | {"top_p": 0.9, "repetition_penalty": 1.2, "num_beams": 1, "seed": 11},
            self.BASE,
            99,
        )
        assert (asked.length, asked.stop) == (5, ("Q:",))
        assert asked.sampling == SamplingParams(
            temperature=0.5, top_p=0.9, top_k=7, repeat_penalty=1.2, seed=11
        )

    @pytest.mark.parametrize(
        ("settings", "temperature"),
        [
            ({}, 0),
            ({"temperature": 0.0}, 0),
            ({"temperature": 0.7}, 0.7),
            ({"do_sample": False, "temperature": 0.7}, 0),
            ({"do_sample": True}, 0.8),
        ],
    )
    def test_who_is_greedy(self, settings: dict[str, Any], temperature: float) -> None:
        asked = generation_of(settings, self.BASE, 99)
        assert asked.sampling.temperature == temperature
        assert (asked.length, asked.stop) == (99, ())

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"temprature": 1}, "did you mean 'temperature'"),
            ({"num_beams": 4}, "no beam search"),
            ({"top_p": 2, "do_sample": True}, "top_p"),
        ],
    )
    def test_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            generation_of(settings, self.BASE, 99)


class TestArguments:
    def test_text(self) -> None:
        config = config_of(
            {"model": "a.gguf+b.gguf", "weights": "0.6+0.4", "n_ctx": 1024, "n_threads": "1+2"}
            | {"preset": "gac", "n_batch": 64, "floor": -9.0}
        )
        assert [(str(m.model), m.weight, m.n_threads) for m in config.member] == [
            ("a.gguf", 0.6, 1),
            ("b.gguf", 0.4, 2),
        ]
        assert {(m.n_ctx, m.n_batch) for m in config.member} == {(1024, 64)}
        assert (config.preset, config.floor) == ("gac", -9.0)
        listed = config_of({"model": ["a.gguf", Path("b.gguf")], "weights": [0.6, 0.4]})
        assert [member.weight for member in listed.member] == [0.6, 0.4]
        assert config_of({"hf": "user/repo:Q8_0"}).member[0].hf == "user/repo:Q8_0"

    def test_readme(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("pair.toml").write_text("[[member]]\nmodel = 'a.gguf'\n")
        readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
        given = re.findall(r"--model_args (\S+)", readme)
        assert len(given) == 2
        for text in given:
            assert config_of(simple_parse_args_string(text)).member[0].model == Path("a.gguf")

    def test_a_plus_in_a_name(self, tmp_path: Path) -> None:
        file = tmp_path / "a+b.gguf"
        file.touch()
        assert [member.model for member in config_of({"model": str(file)}).member] == [file]

    def test_files(self, tmp_path: Path) -> None:
        file = tmp_path / "pair.toml"
        file.write_text("pool = 'log-linear'\n[[member]]\nmodel = 'a.gguf'\n")
        config = config_of({"ensemble": str(file), "gate": "always"})
        assert (config.pool, config.gate) == ("log-linear", "always")
        assert config.member[0].model == tmp_path / "a.gguf"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "no models"),
            ({"modle": "a.gguf"}, "did you mean 'model'"),
            ({"model": "a", "weight": 1}, "did you mean 'weights'"),
            ({"model": "a", "member": []}, "unknown model argument 'member'"),
            ({"model": "a", "ensemble": "b.toml"}, "not both"),
            ({"model": "a+b", "weights": 1.0}, "1 values for 2 members"),
            ({"model": "a", "n_ctx": "many"}, "n_ctx takes numbers"),
            ({"model": "a", "pool": "linaer"}, "pool"),
            ({"ensemble": "none.toml"}, "none.toml"),
        ],
    )
    def test_refused(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            config_of(arguments)

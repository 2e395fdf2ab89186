"""Presets: published methods are what they say they are, and run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from lockstep import decode, one_by_one
from logitfuse import Ensemble
from logitfuse.assembly import assemble, n_branches
from logitfuse.cli import main
from logitfuse.config import FuseConfig, MemberConfig, parse_config
from logitfuse.errors import ConfigError
from logitfuse.gatefile import Critical, FileMember, GateFile, identity
from logitfuse.member import Member
from logitfuse.presets import PRESETS, find_preset
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Chunk, Request
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.fuse import Fuse
from logitfuse.strategies.mix import Mix
from tiny import write_tiny

PROMPT = "Once upon a time"
STEPS = 16
GREEDY, SEEDED = SamplingParams(temperature=0), SamplingParams(seed=7)
FAMILY = ("one", "two", "three")  # members of one vocabulary
CELLS = {
    "token: aggregation": {
        *("gac", "unite", "packllm", "packllm-opt", "core", "deepen", "eva", "safe", "spec"),
        *("bytes", "prefix-mass", "mod"),
    },
    "token: steering": {"cp-delta", "contrastive", "proxy", "dera"},
    "token: selection": {"me", "co-llm"},
}
Files = Mapping[str, Path]
Loaded = Callable[[str, int], Member]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_models: Files) -> Files:
    """Two members with different tokenizers, three with one."""
    folder = tmp_path_factory.mktemp("family")
    family = {
        name: write_tiny(folder / f"{name}.gguf", models.smollm2(), max_vocab=2000, seed=40 + i)
        for i, name in enumerate(FAMILY)
    }
    return family | {name: tiny_models[name] for name in ("smol", "gemma3")}


@pytest.fixture(scope="module")
def learned(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A critical-token rule for the two members."""
    rule = Critical(
        primary=0,
        weights=[0.5, 0.5],
        bias=0.1,
        coefficients=[0.5, 0.2, -0.1],
        centre=[1.0, -1.0, 1.0],
        threshold=0.5,
    )
    member = [FileMember(name=name, sha256=identity(files[name])) for name in ("smol", "gemma3")]
    path = tmp_path_factory.mktemp("learned") / "critical.json"
    GateFile(member=member, learned=rule).save(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Projections stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGITFUSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def member(files: Files) -> Iterator[Loaded]:
    """Loads a member once; without branches the same tokens always give the same bits."""
    known: dict[tuple[str, int], Member] = {}

    def load(name: str, branches: int) -> Member:
        if (name, branches) not in known:
            made = known[name, branches] = Member(files[name], n_threads=1, n_branches=branches)
            if not branches:  # the shape of a batch costs bits, which drafts would show
                one_by_one(made)
        return known[name, branches]

    yield load
    for loaded in known.values():
        loaded.close()


def names_for(preset: str) -> tuple[str, ...]:
    """The members that a preset is made for."""
    if not PRESETS[preset].one_vocabulary:
        return ("smol", "gemma3")
    return FAMILY[: max(2, len(PRESETS[preset].weights))]


@pytest.fixture
def make(member: Loaded, files: Files, learned: Path) -> Callable[..., Engine]:
    """A strategy of a preset's members and any parts."""

    def made(method: str, weights: tuple[float, ...] = (), **parts: Any) -> Engine:
        names = names_for(method)
        entries: list[dict[str, Any]] = [{"model": files[name]} for name in names]
        for entry, weight in zip(entries, weights, strict=False):
            entry["weight"] = weight
        if method == "co-llm":
            parts["learned"] = learned
        config = parse_config({**parts, "member": entries})
        return assemble(config, [member(name, n_branches(config)) for name in names])

    return made


def parts_of_characters(engine: Engine) -> dict[int | str | bytes, float]:
    """A bias against them.

    A base of random weights finds next to nothing plausible that ends a character.
    """
    units = [engine.alignment.symbol_bytes(symbol) for symbol in range(len(engine.alignment))]
    return {
        s: -np.inf for s, unit in enumerate(units) if unit.decode(errors="ignore").encode() != unit
    }


def said(engine: Engine, sampling: SamplingParams) -> list[tuple[bytes, str]]:
    """An answer, after a look at what is true of every stream."""
    if isinstance(engine, Fuse) and engine.pool.kind == "contrast":
        sampling = sampling.model_copy(update={"logit_bias": parts_of_characters(engine)})
    request = Request(PROMPT, sampling, max_tokens=STEPS, top_logprobs=2)
    chunks: list[Chunk] = list(engine.stream(request))
    assert [chunk.finish_reason is None for chunk in chunks[:-1]] == [True] * (len(chunks) - 1)
    assert chunks[-1].finish_reason in ("stop", "length")
    steps = [step for chunk in chunks for step in chunk.steps]
    assert 1 <= len(steps) <= STEPS
    assert decode([step.unit for step in steps]) == "".join(chunk.text for chunk in chunks)
    for step in steps:
        assert -np.inf < step.logprob <= 1e-5
        assert -1 <= step.symbol < len(engine.alignment)
        if step.symbol >= 0:
            assert engine.alignment.symbol_bytes(step.symbol) == step.unit
        assert len(step.member_logprobs) == len(step.wishes) == len(engine.members)
        assert any(wish is not None for wish in step.wishes)
        assert 1 <= len(step.top) <= 2
    return [(step.unit, step.decision) for step in steps]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "sampled"])
def test_is_its_parts(preset: str, sampling: SamplingParams, make: Callable[..., Engine]) -> None:
    by_name = make(preset, preset=preset)
    by_hand = make(preset, PRESETS[preset].weights, **PRESETS[preset].parts)
    kind = {"bytes": Bytes, "mix": Mix}.get(PRESETS[preset].parts["strategy"], Fuse)
    assert type(by_name) is type(by_hand) is kind
    if preset == "me" and sampling is GREEDY:
        with pytest.raises(ConfigError, match="draws nothing"):
            said(by_name, sampling)
        return
    assert said(by_name, sampling) == said(by_hand, sampling)


@pytest.mark.parametrize("preset", ["safe", "spec"])
def test_drafts_say_what_lockstep_says(preset: str, make: Callable[..., Engine]) -> None:
    plain = dict(PRESETS[preset].parts) | {"schedule": "eager"}
    plain.pop("draft_length", None)
    for sampling in (GREEDY, SEEDED):
        drafted = said(make(preset, preset=preset), sampling)
        assert drafted == said(make(preset, **plain), sampling)


def test_methods_differ(make: Callable[..., Engine]) -> None:
    """The parts do something: most methods for two tokenizers say something of their own."""
    different = [name for name in PRESETS if names_for(name) == ("smol", "gemma3")]
    answers = {
        name: b"".join(unit for unit, _ in said(make(name, preset=name), SEEDED))
        for name in different
    }
    assert answers["bytes"] != answers["gac"] != answers["unite"] != answers["core"]
    assert len(set(answers.values())) >= 6


class TestTable:
    def test_every_cell(self) -> None:
        cells: dict[str, set[str]] = {}
        for name, preset in PRESETS.items():
            cells.setdefault(preset.cell, set()).add(name)
        assert cells == CELLS

    @pytest.mark.parametrize("name", PRESETS)
    def test_parts_are_keys(self, name: str) -> None:
        preset = PRESETS[name]
        assert set(preset.parts) < set(FuseConfig.model_fields)
        assert preset.parts["strategy"] in ("fuse", "bytes", "mix")
        assert "arXiv" in preset.method or "NAACL" in preset.method
        if preset.weights:
            roles = preset.differs.removeprefix("members: ").partition(";")[0]
            named = roles.partition(", with")[0].split(", ")
            assert len(named) == len(preset.weights)


class TestFillingIn:
    ENTRY: Mapping[str, str] = {"model": "a.gguf"}

    def config(self, preset: str, members: int = 2, **parts: Any) -> FuseConfig:
        entries = [dict(self.ENTRY) for _ in range(members)]
        return parse_config({"preset": preset, "member": entries, **parts})

    @pytest.mark.parametrize("name", PRESETS)
    def test_parts(self, name: str) -> None:
        config = self.config(name, len(PRESETS[name].weights) or 2)
        for key, value in PRESETS[name].parts.items():
            assert getattr(config, key) == value
        untouched = FuseConfig.model_fields.keys() - {*PRESETS[name].parts, "preset", "member"}
        for key in untouched:
            assert getattr(config, key) == FuseConfig.model_fields[key].default

    def test_explicit_keys_win(self) -> None:
        config = self.config("unite", union_top=3, gate="boundary")
        assert (config.union_top, config.gate, config.alignment) == (3, "boundary", "topk-union")
        assert self.config("mod", pool="power", exponent=-1).pool == "power"

    def test_roles(self) -> None:
        assert [m.weight for m in self.config("contrastive").member] == [1.0, -1.0]
        assert [m.weight for m in self.config("proxy", 3).member] == [1.0, 1.0, -1.0]
        assert [m.weight for m in self.config("gac").member] == [1.0, 1.0]
        entries = [{**self.ENTRY, "weight": 1.5}, {**self.ENTRY, "weight": -0.5}]
        given = parse_config({"preset": "contrastive", "member": entries})
        assert [m.weight for m in given.member] == [1.5, -0.5]
        one_given = parse_config({"preset": "contrastive", "member": [entries[0], self.ENTRY]})
        assert [m.weight for m in one_given.member] == [1.5, 1.0]
        made = [MemberConfig(model=Path("a.gguf")), MemberConfig(model=Path("b.gguf"))]
        assert [m.weight for m in FuseConfig(preset="dera", member=made).member] == [0.5, 0.5]

    @pytest.mark.parametrize("members", [1, 2, 4])
    def test_as_many_members_as_roles(self, members: int) -> None:
        message = f"3 roles, not {members} .members: base, expert, anti-expert"
        with pytest.raises(ConfigError, match=message) as caught:
            self.config("proxy", members)
        assert caught.value.key == "preset"

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("unit", "did you mean 'unite'?"), ("GAC", "known: gac, unite"), ("", "known: gac")],
    )
    def test_unknown(self, name: str, hint: str) -> None:
        for fail in (find_preset, self.config):
            with pytest.raises(ConfigError) as caught:
                fail(name)
            assert caught.value.key == "preset"
            assert f"unknown preset '{name}'; {hint}" in str(caught.value)

    @pytest.mark.parametrize("members", [3, [3, 4], "a.gguf"])
    def test_members_that_are_none(self, members: Any) -> None:
        with pytest.raises(ConfigError, match="member"):
            parse_config({"preset": "contrastive", "member": members})

    def test_another_preset_on_the_command_line(self, tmp_path: Path) -> None:
        """Nothing of the file's own preset is left."""
        from logitfuse.cli.options import ModelOptions

        file = tmp_path / "pair.toml"
        entry = "[[member]]\nmodel = 'a.gguf'\n"
        file.write_text("preset = 'contrastive'\nguard = true\n" + 2 * entry)
        config = ModelOptions(ensemble=[file], preset="unite").config()
        assert (config.pool, config.alignment, config.plausibility) == ("linear", "topk-union", 0.1)
        assert [m.weight for m in config.member] == [1.0, 1.0]
        assert config.guard
        assert config.member[0].model == tmp_path / "a.gguf"
        assert "plausibility" not in config.model_fields_set


def test_the_facade(files: Files) -> None:
    paths = [files[name] for name in FAMILY[:2]]
    with Ensemble(paths, preset="contrastive", n_threads=1) as ensemble:
        assert ensemble.generator.weights == [1.0, -1.0]
        by_roles = ensemble(PROMPT, temperature=0.0, max_tokens=8)["choices"][0]["text"]
    with Ensemble(
        paths, weights=[1, -1], strategy="fuse", pool="contrast", n_threads=1
    ) as ensemble:
        assert ensemble(PROMPT, temperature=0.0, max_tokens=8)["choices"][0]["text"] == by_roles


class TestCommand:
    def said(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["presets", *arguments])
        assert caught.value.code == 0
        return capsys.readouterr().out

    def test_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = self.said(capsys)
        for name, preset in PRESETS.items():
            (line,) = (line for line in out.splitlines() if line.split()[:1] == [name])
            assert preset.cell in line
        cells = [cell for line in out.splitlines() for cell in CELLS if f" {cell} " in line]
        assert cells == sorted(cells)
        assert len(cells) == len(PRESETS)

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        listed = json.loads(self.said(capsys, "--json"))
        assert list(listed) == list(PRESETS)
        assert listed["dera"]["weights"] == [0.5, 0.5]
        assert json.loads(self.said(capsys, "gac", "--json")).keys() == {"gac"}

    @pytest.mark.parametrize("name", PRESETS)
    def test_one(self, capsys: pytest.CaptureFixture[str], name: str) -> None:
        out = self.said(capsys, name)
        preset = PRESETS[name]
        for text in (name, preset.method, preset.cell, preset.differs):
            assert " ".join(text.split()) in " ".join(out.split())
        for key, value in preset.parts.items():
            assert f"{key}={value}" in out
        assert ("one tokenizer" in out) == preset.one_vocabulary
        assert (f"weights: {', '.join(map(str, preset.weights))}\n" in out) == bool(preset.weights)

    def test_unknown(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["presets", "unit"])
        out, err = capsys.readouterr()
        assert (caught.value.code, out) == (2, "")
        assert err == "logitfuse: unknown preset 'unit'; did you mean 'unite'?\n"

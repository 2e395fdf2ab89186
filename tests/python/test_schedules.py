"""Schedules change when members decode, never what is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from lockstep import (
    GREEDY,
    PAIRS,
    PROMPT,
    SEEDED,
    STEPS,
    TRIPLE,
    Load,
    answer,
    check_equal,
    one_by_one,
)
from logitfuse.errors import ConfigError
from logitfuse.gates import Certain, Critical, Entropy, Features, Margin, Primary
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.fuse import Fuse

RULES = {
    "none": None,
    "primary": Primary(0.05),
    "entropy": Entropy(5.0),
    "margin": Margin(0.5),
    "critical": Critical(lambda sure: sure.margin < 0.4 and sure.entropy > 1 > sure.logprob),
    "certain": Certain(),
}
WEIGHTS = [0.6, 0.25, 0.15]
UKRAINIAN = "Київ — це місто, де"


def never(_: Features) -> bool:
    """No token is critical."""
    return False


def decoded(fuse: Fuse) -> list[int]:
    return [member.stats.decoded_tokens for member in fuse.members]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "sampled"])
class TestLazy:
    @pytest.mark.parametrize(
        "names",
        [*PAIRS, TRIPLE, ("smol", "mamba", "lfm2"), ("gpt2", "gpt2", "gpt2")],
        ids="+".join,
    )
    def test_equals_eager(
        self, steady: Load, names: tuple[str, ...], sampling: SamplingParams, rule: str
    ) -> None:
        members = [steady(name, k) for k, name in enumerate(names)]
        options: dict[str, Any] = {"weights": WEIGHTS[: len(names)], "solo": RULES[rule]}
        eager = Fuse(members, **options)
        lazy = Fuse(members, schedule="lazy", **options)
        for asked in ({}, {"prompt": UKRAINIAN}, {"prompt": UKRAINIAN, "top_logprobs": 2}):
            check_equal(lazy, eager, sampling, **asked)


class TestLazyMembers:
    @pytest.mark.parametrize("rule", sorted(set(RULES) - {"none", "certain"}))
    def test_decode_only_when_asked(self, load: Load, rule: str) -> None:
        """The primary speaks alone in some steps and not in others."""
        members = [load("gpt2"), load("smol")]
        counts = []
        for schedule in ("eager", "lazy"):
            fuse = Fuse(members, weights=WEIGHTS[:2], solo=RULES[rule], schedule=schedule)
            for member in members:
                member.reset()
            before = decoded(fuse)
            steps = answer(fuse, SamplingParams(seed=3), max_tokens=STEPS).steps
            counts.append([b - a for a, b in zip(before, decoded(fuse), strict=True)])
            assert 0 < fuse.stats.decisions["led"] < len(steps)
            assert fuse.stats.votes[0] > fuse.stats.votes[1]
        assert counts[1][0] == counts[0][0]
        assert counts[1][1] <= counts[0][1]

    def test_catch_up_in_one_batch(self, load: Load) -> None:
        fuse = Fuse([load("gpt2"), load("smol")], solo=Critical(never), schedule="lazy")
        said = answer(fuse)
        assert fuse.stats.decisions == {"led": len(said.steps)}
        assert fuse.stats.votes == [len(said.steps), 0]
        assert list(fuse.members[1].tokens) == fuse.members[1].tokenize_prompt(PROMPT)
        place = fuse.members[1].place(said.text.encode())
        calls = []
        decode = fuse.members[1].context.decode
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                fuse.members[1].context,
                "decode",
                lambda *args, **kwargs: calls.append(args) or decode(*args, **kwargs),
            )
            fuse.members[1].go(place)
        assert len(calls) == 1
        assert list(fuse.members[1].tokens) == place.tokens

    @pytest.mark.parametrize("names", [*PAIRS, TRIPLE], ids="+".join)
    @pytest.mark.parametrize("guard", [False, True])
    def test_certain_is_lossless(self, steady: Load, names: tuple[str, ...], guard: bool) -> None:
        members = [steady(name) for name in names]
        weights = [0.97, 0.02, 0.01][: len(names)]
        plain = answer(Fuse(members, weights=weights, guard=guard), max_tokens=80)
        fuse = Fuse(members, weights=weights, guard=guard, solo=Certain(), schedule="lazy")
        assert answer(fuse, max_tokens=80).units == plain.units
        assert fuse.stats.votes[1] < fuse.stats.votes[0]
        if len(names) == 3:
            assert fuse.stats.votes[2] <= fuse.stats.votes[1]

    def test_full_context_ends_the_answer_alike(self, tiny_models: Mapping[str, Path]) -> None:
        """Also when the member whose context is full has not been asked for long."""
        short = Member(tiny_models["smol"], n_ctx=256, n_threads=1)
        long = Member(tiny_models["gpt2"], n_threads=1)
        options: dict[str, Any] = {"solo": Critical(never), "primary": "gpt2"}
        lazy = Fuse([long, short], schedule="lazy", **options)
        expected = answer(Fuse([long, short], **options), max_tokens=None, ignore_end=True)
        assert expected.finish == "length"
        assert answer(lazy, max_tokens=None, ignore_end=True) == expected
        assert len(expected.steps) > 50


class TestRealModels:
    @pytest.mark.parametrize("prompt", ["The history of bread begins", UKRAINIAN])
    def test_certain(self, smollm2_path: Path, gemma3_path: Path, prompt: str) -> None:
        paths = (smollm2_path, gemma3_path)
        members = [one_by_one(Member(path, n_ctx=512, n_threads=1)) for path in paths]
        weights = [0.7, 0.3]
        plain = answer(Fuse(members, weights=weights), prompt=prompt, max_tokens=32)
        lazy = Fuse(members, weights=weights, solo=Certain(), schedule="lazy")
        assert answer(lazy, prompt=prompt, max_tokens=32).units == plain.units
        assert lazy.stats.votes[1] < lazy.stats.votes[0]


class TestGuard:
    def test_keeps_the_primarys_own_unit(self, load: Load) -> None:
        names = ("gpt2", "llama-spm")
        fuse = Fuse([load(name) for name in names], weights=[0.55, 0.45], guard=True, gate="always")
        seen = 0
        for seed in range(6):
            for step in answer(fuse, SamplingParams(seed=seed)).steps:
                own = step.wishes[0]
                if own and step.unit and own != step.unit:
                    assert not own.startswith(step.unit)
                    assert not step.unit.startswith(own)
                if step.decision == "led" and None not in step.wishes:
                    seen += 1
                    assert step.unit == own
        assert seen > 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "key"),
        [
            ({"schedule": "late"}, "schedule"),
            ({"primary": "nobody"}, "primary"),
            ({"primary": 2}, "primary"),
            ({"primary": 1, "weights": [1, 0]}, "primary"),
        ],
    )
    def test_options(self, fused: Callable[..., Fuse], options: dict[str, Any], key: str) -> None:
        with pytest.raises(ConfigError) as caught:
            fused("gpt2", "smol", **options)
        assert caught.value.key == key

"""Mix says what the linear pool says, one member at a time."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from lockstep import GREEDY, NAMES, PROMPT, PURE, SEEDED, Load, Models, answer, request
from logitfuse.errors import ConfigError
from logitfuse.member import Member
from logitfuse.strategies.base import Step
from logitfuse.strategies.fuse import Fuse
from logitfuse.strategies.mix import Mix
from logitfuse.text import ReplyText

#: Upper 0.1 % point of the chi-square distribution with so many degrees of freedom.
CRITICAL, FREEDOM = 45.31, 20
DRAWS = 600


def may_be_said(unit: bytes) -> bool:
    """At the beginning of a reply."""
    return ReplyText().accepts(unit)


class TestDistribution:
    @pytest.mark.parametrize("names", [("gpt2", "llama-spm"), ("smol", "mamba", "qwen2")])
    @pytest.mark.parametrize("prompt", [PROMPT, "def f(x):"])
    def test_is_that_of_the_linear_pool(
        self, load: Load, names: tuple[str, ...], prompt: str
    ) -> None:
        """Chi-square over groups of symbols of about equal probability."""
        members = [load(name) for name in names]
        weights = [0.6, 0.4] if len(names) == 2 else [0.5, 0.3, 0.2]
        pooled = self.pooled(members, weights, prompt)
        mix = Mix(members, weights=weights)
        draws: Counter[bytes] = Counter()
        for seed in range(DRAWS):
            sampling = PURE.model_copy(update={"seed": seed})
            stream = mix.stream(request(sampling, prompt=prompt, max_tokens=1))
            draws[next(stream).steps[0].unit] += 1
        assert self.statistic(pooled, draws) < CRITICAL

    def test_notices_wrong_weights(self, load: Load) -> None:
        members = [load("gpt2"), load("llama-spm")]
        pooled = self.pooled(members, [0.9, 0.1], PROMPT)
        mix = Mix(members, weights=[0.1, 0.9])
        draws: Counter[bytes] = Counter()
        for seed in range(DRAWS):
            sampling = PURE.model_copy(update={"seed": seed})
            draws[next(mix.stream(request(sampling, max_tokens=1))).steps[0].unit] += 1
        assert self.statistic(pooled, draws) > CRITICAL

    def test_expects_the_linear_pool(self, load: Load) -> None:
        """What the draws are compared with is what `Fuse` says, where all may be said."""
        members, weights = [load("gpt2"), load("llama-spm")], [0.7, 0.3]
        expected = self.pooled(members, weights, PROMPT)
        everything = request(SEEDED, max_tokens=1, top_logprobs=10**6)
        (step,) = next(Fuse(members, weights=weights).stream(everything)).steps
        fused = {unit: math.exp(logprob) for unit, logprob in step.top if may_be_said(unit)}
        assert sum(fused.values()) > 0.9
        for unit, p in fused.items():
            assert expected[unit] == pytest.approx(p, rel=0.1)

    @classmethod
    def pooled(cls, members: list[Member], weights: list[float], prompt: str) -> dict[bytes, float]:
        """Probability of every unit after the prompt, each member's over what may be said."""
        everything = request(SEEDED, prompt=prompt, max_tokens=1, top_logprobs=10**6)
        total: dict[bytes, float] = {}
        for member, weight in zip(members, weights, strict=True):
            (step,) = next(Fuse([member]).stream(everything)).steps
            own = {unit: math.exp(logprob) for unit, logprob in step.top if may_be_said(unit)}
            for unit, p in own.items():
                total[unit] = total.get(unit, 0.0) + weight * p / sum(own.values())
        return total

    @staticmethod
    def statistic(pooled: dict[bytes, float], draws: Counter[bytes]) -> float:
        """Symbols are dealt to the groups by rank."""
        ranked = sorted(pooled, key=lambda unit: -pooled[unit])
        group = np.arange(len(ranked)) % (FREEDOM + 1)
        expected = np.bincount(group, [pooled[s] for s in ranked]) * DRAWS
        seen = np.bincount(group, [draws[s] for s in ranked])
        assert seen.sum() == DRAWS
        return float(((seen - expected) ** 2 / expected).sum())


class TestSteps:
    @pytest.mark.parametrize("names", [("gpt2", "llama-spm"), ("mamba", "gemma3", "lfm2")])
    def test_one_member_speaks_and_the_others_wait(
        self, steady: Load, names: tuple[str, ...]
    ) -> None:
        members = [steady(name) for name in names]
        for member in members:
            member.reset()
        mix = Mix(members)
        said = answer(mix, SEEDED, max_tokens=60)
        assert mix.stats.decisions == {"led": len(said.steps)}
        assert sum(mix.stats.votes) == len(said.steps)
        assert min(mix.stats.votes) > 5
        for step in said.steps:
            voted = [not math.isnan(p) for p in step.member_logprobs]
            assert sum(voted) == 1
            assert [wish is not None for wish in step.wishes] == voted
        assert answer(mix, SEEDED, max_tokens=60) == said
        assert answer(mix, SEEDED.model_copy(update={"seed": 8})).units != said.units

    @pytest.mark.parametrize("name", NAMES)
    def test_one_member_is_that_model(self, steady: Load, name: str) -> None:
        assert (
            answer(Mix([steady(name)]), SEEDED).units == answer(Fuse([steady(name)]), SEEDED).units
        )

    def test_nobody_speaks_about_a_text_it_does_not_believe_in(self, load: Load) -> None:
        class Watched(Mix):
            def _draw(self, reply: ReplyText) -> list[float]:
                votes = super()._draw(reply)
                believers = [
                    i
                    for i, v in zip(self._running, self._schedule.look(self._running), strict=True)
                    if not v.stalled and v.boundary >= 0.5
                ]
                checked.append((votes.index(1.0) in believers, bool(believers)))
                return votes

        checked: list[tuple[bool, bool]] = []
        answer(Watched([load("gpt2"), load("llama-spm"), load("smol")]), SEEDED, max_tokens=80)
        assert all(fine or not somebody for fine, somebody in checked)
        assert len({fine for fine, _ in checked}) == 2 or all(fine for fine, _ in checked)

    def test_one_vocabulary(self, load: Load) -> None:
        mix = Mix([load("gpt2"), load("gpt2", 1)])
        steps: tuple[Step, ...] = answer(mix, SEEDED).steps
        assert len(steps) == 40
        tokens = [step.symbol for step in steps[:-1]]
        for member in mix.members:
            assert list(member.tokens[-3:]) in [tokens[i : i + 3] for i in range(len(tokens))]

    def test_context_is_full(self, tiny_models: Models) -> None:
        members = [Member(tiny_models[name], n_ctx=256, n_threads=1) for name in ("smol", "gpt2")]
        said = answer(Mix(members), SEEDED, max_tokens=None, ignore_end=True)
        assert said.finish == "length"
        assert len(said.steps) > 50


def test_greedy_is_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match="fuse") as caught:
        next(Mix([load("gpt2"), load("smol")]).stream(request(GREEDY)))
    assert caught.value.key == "sampling.temperature"

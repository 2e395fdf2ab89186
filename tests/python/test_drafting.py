"""Drafts change when members decode, never what is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from lockstep import GREEDY, PAIRS, PROMPT, SEEDED, TRIPLE, Load, answer, check_equal
from logitfuse.drafting import Costs, DraftOptions, expected_units
from logitfuse.errors import ConfigError
from logitfuse.gates import Certain, Primary
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.fuse import Fuse

UKRAINIAN = "Київ — це місто, де"
REPEATING = "a b c d e f g h a b c d e f g h a b c"
#: The tiny models say nothing twice; with this they do, so that drafts are accepted.
SHARP = SamplingParams(temperature=0.3, seed=5)


def drafted(length: int, **options: Any) -> DraftOptions:
    return DraftOptions(length=length, adapt=False, **options)


SAMPLINGS = {"greedy": GREEDY, "sampled": SEEDED, "sharp": SHARP}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    "names",
    [*PAIRS, TRIPLE, ("mamba", "lfm2", "smol"), ("gpt2", "gpt2"), ("mamba", "mamba")],
    ids="+".join,
)
class TestEqualsEager:
    @pytest.mark.parametrize("drafter", [0, 1])
    @pytest.mark.parametrize("length", [1, 4, 8])
    def test_member_drafts(
        self, steady: Load, names: Sequence[str], sampling: str, drafter: int, length: int
    ) -> None:
        members = [steady(name, k) for k, name in enumerate(names)]
        options = drafted(length, drafter=drafter)
        draft = Fuse(members, schedule="draft", draft=options)
        for prompt in (PROMPT, UKRAINIAN):
            check_equal(draft, Fuse(members), SAMPLINGS[sampling], prompt=prompt)

    def test_text_drafts(self, steady: Load, names: Sequence[str], sampling: str) -> None:
        members = [steady(name, k) for k, name in enumerate(names)]
        draft = Fuse(members, schedule="draft", draft=drafted(4, ngrams=True))
        for prompt in (REPEATING, UKRAINIAN):
            check_equal(draft, Fuse(members), SAMPLINGS[sampling], prompt=prompt, max_tokens=60)

    def test_adapting(self, steady: Load, names: Sequence[str], sampling: str) -> None:
        members = [steady(name, k) for k, name in enumerate(names)]
        draft = Fuse(members, schedule="draft", draft=DraftOptions())
        check_equal(draft, Fuse(members), SAMPLINGS[sampling], max_tokens=60)

    @pytest.mark.parametrize("solo", [Primary(0.05), Certain()], ids=["primary", "certain"])
    def test_with_a_solo_rule(
        self, steady: Load, names: Sequence[str], sampling: str, solo: Any
    ) -> None:
        members = [steady(name, k) for k, name in enumerate(names)]
        weights = [0.8, 0.15, 0.05][: len(names)]
        options: dict[str, Any] = {"weights": weights, "solo": solo}
        draft = Fuse(members, schedule="draft", draft=drafted(4, drafter=0), **options)
        check_equal(draft, Fuse(members, **options), SAMPLINGS[sampling])


class TestWork:
    """Accepted drafts are decoded once, and read in batches."""

    @staticmethod
    def calls(member: Member, patch: pytest.MonkeyPatch) -> list[int]:
        sizes: list[int] = []
        decode = member.context.decode

        def record(tokens: Sequence[int], *args: Any, **kwargs: Any) -> int:
            sizes.append(len(tokens))
            return decode(tokens, *args, **kwargs)

        patch.setattr(member.context, "decode", record)
        return sizes

    @pytest.mark.parametrize("names", [("gpt2", "gpt2"), ("mamba", "mamba"), ("gemma3", "gemma3")])
    @pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "sampled"])
    def test_twins_accept_everything(
        self, load: Load, names: Sequence[str], sampling: SamplingParams
    ) -> None:
        members = [load(name, k) for k, name in enumerate(names)]
        fuse = Fuse(members, schedule="draft", draft=drafted(4, drafter=0))
        for member in members:
            member.begin(member.tokenize_prompt(PROMPT))
        with pytest.MonkeyPatch.context() as patch:
            first, second = (self.calls(member, patch) for member in members)
            steps = answer(fuse, sampling, max_tokens=31).steps
        assert len(steps) == 31
        assert set(first) == {1}
        assert len(first) in (30, 31)  # a draw may fall between the two distributions' rounding
        assert second[:5] == [5] * 5  # the first step needs no decode

    def test_the_text_drafts(self, load: Load) -> None:
        """A bias makes the model say the text again."""
        member = load("gpt2")
        fuse = Fuse([member], schedule="draft", draft=drafted(4, ngrams=True))
        loop = SamplingParams(temperature=0, logit_bias={" the": 60.0})
        member.begin(member.tokenize_prompt(PROMPT))
        with pytest.MonkeyPatch.context() as patch:
            sizes = self.calls(member, patch)
            steps = answer(fuse, loop, max_tokens=33).steps
        assert {step.unit for step in steps} == {b" the"}
        assert len(sizes) < 16
        assert max(sizes) == 5

    def test_full_context(self, tiny_models: Mapping[str, Path]) -> None:
        members = [Member(tiny_models[name], n_ctx=256, n_threads=1) for name in ("smol", "gpt2")]
        draft = Fuse(members, schedule="draft", draft=drafted(8, drafter=0))
        options: dict[str, Any] = {"max_tokens": None, "ignore_end": True}
        said = answer(draft, **options)
        assert said.finish == "length"
        assert len(said.steps) > 50

    @pytest.mark.parametrize("stop", ["e", " a", "the"])
    def test_stop_strings(self, steady: Load, stop: str) -> None:
        members = [steady("smol"), steady("llama-spm")]
        draft = Fuse(members, schedule="draft", draft=drafted(8, drafter=1))
        check_equal(draft, Fuse(members), SEEDED, stop=(stop,))

    def test_small_batches(self, tiny_models: Mapping[str, Path]) -> None:
        """More places than one batch has rows for are not verified at once."""
        members = [
            Member(tiny_models[name], n_batch=4, n_threads=1) for name in ("smol", "llama-spm")
        ]
        draft = Fuse(members, schedule="draft", draft=drafted(8, drafter=0))
        assert answer(draft) == answer(Fuse(members))

    def test_threads_are_given_back(self, load: Load) -> None:
        members = [load("gpt2"), load("smol")]
        answer(Fuse(members, schedule="draft", draft=drafted(3, drafter=0)))
        assert [member.context.n_threads for member in members] == [1, 1]


class TestRealModels:
    @pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "sampled"])
    @pytest.mark.parametrize("drafter", [0, 1])
    def test_equals_eager(
        self, smollm2_path: Path, gemma3_path: Path, sampling: SamplingParams, drafter: int
    ) -> None:
        """Two drafted units: batches of three are bit-exact for these quantisations."""
        members = [Member(path, n_ctx=512, n_threads=1) for path in (smollm2_path, gemma3_path)]
        draft = Fuse(members, schedule="draft", draft=drafted(2, drafter=drafter))
        prompt = "The history of bread begins"
        expected = answer(Fuse(members), sampling, prompt=prompt, max_tokens=32)
        assert answer(draft, sampling, prompt=prompt, max_tokens=32) == expected


class TestEstimates:
    def test_expected_units(self) -> None:
        assert expected_units(0.5, 0) == 1
        assert expected_units(0.5, 2) == 1.75
        assert expected_units(1.0, 8) == 9

    def test_costs(self) -> None:
        costs = Costs()
        assert costs.of(1) is None
        costs.observe(1, 1.0)
        assert costs.of(8) == 1.0  # not known to cost more
        costs.observe(5, 3.0)
        assert costs.of(3) == pytest.approx(2.0)
        assert costs.of(9) == 3.0
        costs.observe(5, 4.0)
        assert costs.of(5) == pytest.approx(3.1)
        costs.observe(400, 9.0)
        assert costs.of(400) == pytest.approx(3.1)


class TestRefusals:
    @pytest.mark.parametrize("options", [{"length": 0}, {"length": -1}, {"length": 65}])
    def test_numbers(self, options: dict[str, int]) -> None:
        with pytest.raises(ConfigError, match=r"must lie in 1\.\.64, not") as caught:
            DraftOptions(**options)
        assert caught.value.key in options

    def test_drafter_of_ngrams(self) -> None:
        with pytest.raises(ConfigError, match="only one"):
            DraftOptions(ngrams=True, drafter=0)

    @pytest.mark.parametrize(
        ("options", "key"),
        [
            ({"schedule": "draft", "draft": DraftOptions(drafter="x")}, "drafter"),
            ({"draft": DraftOptions()}, "schedule"),
        ],
    )
    def test_of_an_ensemble(self, load: Load, options: dict[str, Any], key: str) -> None:
        with pytest.raises(ConfigError) as caught:
            Fuse([load("gpt2"), load("smol")], **options)
        assert caught.value.key == key

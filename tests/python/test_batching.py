"""Many requests at once: each is answered as if it were alone, and none harms another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from batching import PROMPTS, alone, ask, config_of, running, together
from lockstep import PROMPT
from logitfuse.batching.conductor import Conductor, Task
from logitfuse.config import FuseConfig, build
from logitfuse.errors import (
    ConfigError,
)
from logitfuse.llama import LlamaDecoder, Piece
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Request

Models = Mapping[str, Path]

pytestmark = pytest.mark.usefixtures("float_cells")

SAMPLINGS = {
    "greedy": SamplingParams(temperature=0),
    "sampled": SamplingParams(temperature=0.9, seed=11),
    "biased": SamplingParams(temperature=0, repeat_penalty=1.3, logit_bias={"e": -2.0}),
}
ENSEMBLES: dict[str, tuple[Sequence[str], dict[str, Any]]] = {
    "one": (["gpt2"], {}),
    "tokens": (["smol", "qwen2"], {"strategy": "fuse"}),
    "lazy": (["smol", "gpt2"], {"strategy": "fuse", "schedule": "lazy", "solo": "certain"}),
    "draft": (["gpt2", "smol"], {"strategy": "fuse", "schedule": "draft", "draft_length": 3}),
    "bytes": (["gpt2", "llama-spm"], {}),
    "beam of 2": (["smol", "qwen2"], {"beam": 2, "pool": "log-linear"}),
    "prefix mass": (["smol", "qwen2"], {"alignment": "prefix-mass"}),
    "prompt weights": (["smol", "gpt2"], {"strategy": "fuse", "weighting": "prompt"}),
    "states": (["mamba", "lfm2"], {"strategy": "fuse"}),
    "states in bytes": (["mamba", "gpt2"], {"strategy": "bytes", "beam": 2}),
}


@pytest.mark.parametrize("name", ENSEMBLES)
def test_as_if_alone(wide_models: Models, name: str) -> None:
    names, parts = ENSEMBLES[name]
    config = config_of(wide_models, *names, **parts)
    asked = [
        {"prompt": prompt, "sampling": SAMPLINGS[sampling]}
        for prompt in PROMPTS
        for sampling in SAMPLINGS
    ]
    with running(config, slots=4) as batcher:
        heard = together([partial(ask, batcher, **one) for one in asked])
    for one, options in zip(heard, asked, strict=True):
        expected = alone(config, Request(max_tokens=24, **options))
        assert (one.text, one.finish) == expected, options


def test_mixtures_too(wide_models: Models) -> None:
    config = config_of(wide_models, "smol", "gpt2", strategy="mix")
    with running(config, slots=3) as batcher:
        heard = [ask(batcher, SAMPLINGS["sampled"], prompt=prompt) for prompt in PROMPTS]
        for one, prompt in zip(heard, PROMPTS, strict=True):
            request = Request(prompt, SAMPLINGS["sampled"], max_tokens=24)
            assert (one.wait().text, one.finish) == alone(config, request)


class TestBatches:
    """What one decode call holds."""

    @pytest.fixture
    def batches(self, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
        """The lengths of the pieces of every batch of the first decoder."""
        seen: list[list[int]] = []
        decoders: list[int] = []
        decode = LlamaDecoder.decode

        def record(decoder: LlamaDecoder, pieces: Sequence[Piece]) -> int:
            decoders.append(id(decoder))
            if id(decoder) == decoders[0]:
                seen.append([len(piece.tokens) for piece in pieces])
            return decode(decoder, pieces)

        monkeypatch.setattr(LlamaDecoder, "decode", record)
        return seen

    def test_all_requests_share_a_batch(
        self, wide_models: Models, batches: list[list[int]]
    ) -> None:
        with running(config_of(wide_models, "gpt2"), slots=6) as batcher:
            asks = [partial(ask, batcher, prompt=p, ignore_end=True) for p in PROMPTS]
            assert all(len(one.steps) == 24 for one in together(asks))
        # 6 x 24 steps, the first of which needs the prompt; some come a round or two later.
        assert len(batches) <= 24 + 6
        assert max(map(len, batches)) == 6
        assert sum(map(len, batches)) == 6 * 24

    def test_a_long_prompt_does_not_stall_the_others(
        self, wide_models: Models, batches: list[list[int]]
    ) -> None:
        with running(config_of(wide_models, "gpt2"), slots=3) as batcher:
            first = ask(batcher, max_tokens=60, ignore_end=True)
            first.take()
            long = [ask(batcher, prompt=PROMPT * 60 + tail, max_tokens=4) for tail in ("!", "?")]
            for one in [first, *long]:
                assert one.done
        mixed = [batch for batch in batches if 1 in batch and max(batch) > 1]
        assert len(mixed) > 5
        for batch in mixed:
            assert sum(n for n in batch if n > 16) <= 32  # shorter ones are as good as steps

    def test_everybody_gets_on(self) -> None:
        """Whatever the others have decoded, and however much of it."""
        rounds: list[list[int]] = []
        ends: dict[str, int] = {}

        class Decoder:
            n_batch = 96

            def decode(self, pieces: Sequence[Piece]) -> int:
                rounds.append([len(piece.tokens) for piece in pieces])
                assert sum(rounds[-1]) <= self.n_batch
                return 0

        decoder: Any = Decoder()
        conductor = Conductor([decoder])

        def work(name: str, size: int, times: int) -> None:
            for _ in range(times):
                conductor.decode(decoder, Piece([1] * size, 0, 0, 1))
            ends[name] = len(rounds)
            if len(ends) == 5:
                conductor.stop()

        def begin() -> None:
            for k in range(2):
                conductor.start(partial(work, f"steps {k}", 16, 100), Task())
            for size in (96, 64, 32):
                conductor.start(partial(work, f"prompt of {size}", size, 4), Task())

        conductor.post(begin)
        conductor.run()
        assert max(ends[f"prompt of {size}"] for size in (96, 64, 32)) <= 12
        assert max(ends["steps 0"], ends["steps 1"]) <= 104  # they miss the rounds of 96

    def test_nobody_else_is_there(self, wide_models: Models, batches: list[list[int]]) -> None:
        """A prompt that is read while nobody waits is read in one piece."""
        with running(config_of(wide_models, "gpt2"), slots=3) as batcher:
            assert ask(batcher, prompt=PROMPT * 60, max_tokens=4).done
        assert max(batches[0]) > 200

    def test_more_than_a_batch_holds(self, wide_models: Models) -> None:
        entries = [{"model": wide_models["gpt2"], "n_batch": 4, "n_threads": 1}]
        config = FuseConfig.model_validate({"member": entries})
        with running(config, slots=8) as batcher:
            heard = together([partial(ask, batcher, prompt=p) for p in PROMPTS * 2])
        for one, prompt in zip(heard, PROMPTS * 2, strict=True):
            sampling = SAMPLINGS["greedy"]
            assert one.text == alone(config, Request(prompt, sampling, max_tokens=24))[0]


class TestPrefixes:
    """What has been read is not read again."""

    def test_a_conversation_goes_on_in_its_slot(self, wide_models: Models) -> None:
        with running(config_of(wide_models, "gpt2"), slots=3) as batcher:
            first = ask(batcher, prompt=PROMPT * 20)
            assert first.done.stats.cached_tokens == 0
            others = [ask(batcher, prompt=p) for p in PROMPTS[1:3]]
            assert all(one.done for one in others)
            again = ask(batcher, prompt=PROMPT * 20 + first.text + " and")
            read = again.done.stats.prompt_tokens - again.done.stats.cached_tokens
            assert read < 8

    @pytest.mark.parametrize("strategy", ["fuse", "bytes"])
    def test_a_prompt_is_borrowed_from_a_busy_slot(
        self, wide_models: Models, strategy: str
    ) -> None:
        config = config_of(wide_models, "qwen2", "smol", strategy=strategy)
        with running(config, slots=2) as batcher:
            first = ask(batcher, prompt=PROMPT * 20, max_tokens=40, ignore_end=True)
            first.take()
            second = ask(batcher, prompt=PROMPT * 20 + " but", max_tokens=12)
            cached = second.done.stats.cached_tokens
            assert first.done.stats.cached_tokens == 0
        assert cached > 0.8 * second.done.stats.prompt_tokens
        sampling = SAMPLINGS["greedy"]
        expected = alone(config, Request(PROMPT * 20 + " but", sampling, max_tokens=12))
        assert (second.text, second.finish) == expected

    def test_the_least_recently_used_is_overwritten(self, wide_models: Models) -> None:
        texts = ["One two three " * 10, "Ein Hund " * 10, "def f(x): return " * 10]
        with running(config_of(wide_models, "gpt2"), slots=2) as batcher:

            def cached(text: str) -> bool:
                done = ask(batcher, prompt=text, max_tokens=2).done
                return done.stats.cached_tokens > 0.5 * done.stats.prompt_tokens

            assert [cached(texts[k]) for k in (0, 1, 0, 2, 0, 1)] == [
                *(False, False, True),
                *(False, True, False),
            ]

    def test_siblings_wait_until_the_prompt_is_read(self, wide_models: Models) -> None:
        with running(config_of(wide_models, "gpt2"), slots=4) as batcher:
            wanted: dict[str, Any] = {"prompt": PROMPT * 20, "max_tokens": 100, "ignore_end": True}
            first = ask(batcher, SAMPLINGS["sampled"], **wanted)
            others = [
                ask(batcher, SamplingParams(seed=k), after=first.ticket, **wanted) for k in range(3)
            ]
            for one in others:
                one.take()
            assert batcher.active == 4  # they do not wait for its end
            for one in others:
                assert one.done.stats.cached_tokens >= one.done.stats.prompt_tokens - 1
            assert len({one.text for one in [first.wait(), *others]}) > 1

    def test_states_are_not_borrowed(self, wide_models: Models) -> None:
        config = config_of(wide_models, "mamba")
        with running(config, slots=2) as batcher:
            first = ask(batcher, prompt=PROMPT * 5, max_tokens=30, ignore_end=True)
            first.take()
            second = ask(batcher, prompt=PROMPT * 5 + " but")
            assert second.done.stats.cached_tokens == 0
        request = Request(PROMPT * 5 + " but", SAMPLINGS["greedy"], max_tokens=24)
        assert second.text == alone(config, request)[0]


class TestEnsembles:
    """Several ensembles over the same models, and requests with parts of their own."""

    def test_members_are_loaded_once(self, wide_models: Models) -> None:
        pair = config_of(wide_models, "gpt2", "smol", strategy="fuse")
        careful = pair.model_copy(update={"pool": "min"})
        single = config_of(wide_models, "smol")
        with running(pair, careful, single, slots=3) as batcher:
            assert [model.name for model in batcher._models] == ["gpt2", "smol"]
            heard = [ask(batcher, config=config) for config in (pair, careful, single)]
            texts = [one.wait().text for one in heard]
        request = Request(PROMPT, SAMPLINGS["greedy"], max_tokens=24)
        assert texts == [alone(config, request)[0] for config in (pair, careful, single)]
        assert len(set(texts)) == 3

    def test_overrides(self, wide_models: Models) -> None:
        pair = config_of(wide_models, "gpt2", "smol", strategy="fuse")
        with running(pair, slots=2) as batcher:
            for update in ({"pool": "log-linear"}, {"gate": "always"}, {"strategy": "bytes"}):
                other = FuseConfig.model_validate(pair.model_dump(exclude_unset=True) | update)
                if update.get("strategy") == "bytes":
                    end = ask(batcher, config=other).wait().end
                    assert isinstance(end, ConfigError)  # its contexts have no branches
                    continue
                one = ask(batcher, config=other)
                request = Request(PROMPT, SAMPLINGS["greedy"], max_tokens=24)
                assert one.wait().text == alone(other, request)[0]

    def test_overrides_leave_others_alone(self, wide_models: Models) -> None:
        """Whoever is answered in the slot whose members an override is tried on."""
        pair = config_of(wide_models, "gpt2", "smol", strategy="fuse")
        draft = config_of(wide_models, "gpt2", "smol", strategy="fuse", schedule="draft")
        with running(pair, slots=2) as batcher:
            first = ask(batcher, max_tokens=100, ignore_end=True)
            first.take()
            for length in range(3, 20):
                other = draft.model_copy(update={"draft_length": length, "drafter": "gpt2"})
                assert ask(batcher, config=other, max_tokens=3).done
            assert first.done
            kept = [slot.members[0]._cache.rows._copies.shape[0] for slot in batcher._slots]
            assert kept == [4, 4]
        request = Request(PROMPT, SAMPLINGS["greedy"], max_tokens=100, ignore_end=True)
        assert first.text == alone(pair, request)[0]

    def test_a_model_beside_itself(self, wide_models: Models) -> None:
        """Members that are described alike are members of their own."""
        twins = config_of(wide_models, "gpt2", "gpt2", strategy="fuse")
        triple = config_of(wide_models, "gpt2", "smol", "gpt2", strategy="fuse")
        with running(twins, triple, slots=2) as batcher:
            assert [model.name for model in batcher._models] == ["gpt2", "gpt2", "smol"]
            heard = [ask(batcher, config=config).wait() for config in (twins, triple)]
        request = Request(PROMPT, SAMPLINGS["greedy"], max_tokens=24)
        assert [one.text for one in heard] == [alone(c, request)[0] for c in (twins, triple)]

    def test_many_overrides_do_not_pile_up(self, wide_models: Models) -> None:
        pair = config_of(wide_models, "gpt2", "smol", strategy="fuse")
        with running(pair, slots=1) as batcher:
            for k in range(30):
                members = [entry.model_copy(update={"weight": 1 + k}) for entry in pair.member[:1]]
                other = pair.model_copy(update={"member": [*members, pair.member[1]]})
                assert ask(batcher, config=other, max_tokens=2).done
            (slot,) = batcher._slots
            assert len(slot._engines) == 8


def test_scoring(wide_models: Models) -> None:
    """Texts are scored beside answers."""
    text = " there was a king, who had three sons."
    for strategy in ("fuse", "bytes"):
        config = config_of(wide_models, "gpt2", "smol", strategy=strategy)
        with running(config, slots=3) as batcher:
            heard = [ask(batcher, ignore_end=True), ask(batcher, text=text), ask(batcher)]
            scored = heard[1].wait().steps
            assert all(one.done for one in heard)
        engine = build(config)
        expected = list(engine.score(Request(PROMPT), text))
        engine.close()
        assert b"".join(step.unit for step in scored).decode() == text
        assert [step.logprob for step in scored] == pytest.approx(
            [step.logprob for step in expected], abs=1e-4
        )

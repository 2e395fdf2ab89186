"""Many requests at once: each is answered as if it were alone, and none harms another."""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from batching import WAIT, ask, config_of, running, together
from conftest import RECIPES
from lockstep import PROMPT
from logitfuse.batching import Batcher
from logitfuse.config import FuseConfig, build
from logitfuse.errors import (
    BusyError,
    ConfigError,
    ContextLengthError,
    DecodeError,
    LogitfuseError,
    ModelNotFoundError,
    PromptError,
)
from logitfuse.llama import LlamaDecoder, Piece
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Chunk, Request
from servers import until
from tiny import write_tiny

Models = Mapping[str, Path]

PROMPTS = [
    PROMPT,
    "def quicksort(values):\n    ",
    "Київ — це місто, де",
    "The history of the harbour begins with",
    "1 2 3 4 5 6 7",
    "a",
]
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


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Models to which the size of a batch makes next to no difference; see `steady`."""
    folder = tmp_path_factory.mktemp("wide")
    names = ("gpt2", "llama-spm", "smol", "qwen2", "mamba", "lfm2")
    return {
        name: write_tiny(
            folder / f"{name}.gguf", RECIPES[name].vocab(), **RECIPES[name].options, wide=True
        )
        for name in names
    }


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are float32, without flash attention: a batch changes logits by 1e-6.

    llama.cpp sums in another order where it multiplies several tokens at once.  Rounded to float16,
    such a difference grows to 1e-2, and texts part at near ties.
    """
    defaults = lib.llama_context_default_params

    def wide() -> Any:
        params = defaults()
        params.type_k = params.type_v = lib.GGML_TYPE_F32
        return params

    monkeypatch.setattr(lib, "llama_context_default_params", wide)


def alone(config: FuseConfig, request: Request) -> tuple[str, str | None]:
    """What an ensemble of its own says."""
    engine = build(config)
    try:
        chunks = list(engine.stream(request))
    finally:
        engine.close()
    return "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason


@pytest.mark.parametrize("name", ENSEMBLES)
def test_as_if_alone(tiny_models: Models, name: str) -> None:
    names, parts = ENSEMBLES[name]
    config = config_of(tiny_models, *names, **parts)
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


def test_mixtures_too(tiny_models: Models) -> None:
    config = config_of(tiny_models, "smol", "gpt2", strategy="mix")
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
        self, tiny_models: Models, batches: list[list[int]]
    ) -> None:
        with running(config_of(tiny_models, "gpt2"), slots=6) as batcher:
            asks = [partial(ask, batcher, prompt=p, ignore_end=True) for p in PROMPTS]
            assert all(len(one.steps) == 24 for one in together(asks))
        # 6 x 24 steps, the first of which needs the prompt; some come a round or two later.
        assert len(batches) <= 24 + 6
        assert max(map(len, batches)) == 6
        assert sum(map(len, batches)) == 6 * 24

    def test_a_long_prompt_does_not_stall_the_others(
        self, tiny_models: Models, batches: list[list[int]]
    ) -> None:
        with running(config_of(tiny_models, "gpt2"), slots=3) as batcher:
            first = ask(batcher, max_tokens=60, ignore_end=True)
            first.take()
            long = [ask(batcher, prompt=PROMPT * 60 + tail, max_tokens=4) for tail in ("!", "?")]
            for one in [first, *long]:
                assert one.done
        mixed = [batch for batch in batches if 1 in batch and max(batch) > 1]
        assert len(mixed) > 5
        for batch in mixed:
            assert sum(n for n in batch if n > 16) <= 32  # shorter ones are as good as steps

    def test_nobody_else_is_there(self, tiny_models: Models, batches: list[list[int]]) -> None:
        """A prompt that is read while nobody waits is read in one piece."""
        with running(config_of(tiny_models, "gpt2"), slots=3) as batcher:
            assert ask(batcher, prompt=PROMPT * 60, max_tokens=4).done
        assert max(batches[0]) > 200

    def test_more_than_a_batch_holds(self, tiny_models: Models) -> None:
        entries = [{"model": tiny_models["gpt2"], "n_batch": 4, "n_threads": 1}]
        config = FuseConfig.model_validate({"member": entries})
        with running(config, slots=8) as batcher:
            heard = together([partial(ask, batcher, prompt=p) for p in PROMPTS * 2])
        for one, prompt in zip(heard, PROMPTS * 2, strict=True):
            sampling = SAMPLINGS["greedy"]
            assert one.text == alone(config, Request(prompt, sampling, max_tokens=24))[0]


class TestPrefixes:
    """What has been read is not read again."""

    def test_a_conversation_goes_on_in_its_slot(self, tiny_models: Models) -> None:
        with running(config_of(tiny_models, "gpt2"), slots=3) as batcher:
            first = ask(batcher, prompt=PROMPT * 20)
            assert first.done.cached_tokens == 0
            others = [ask(batcher, prompt=p) for p in PROMPTS[1:3]]
            assert all(one.done for one in others)
            again = ask(batcher, prompt=PROMPT * 20 + first.text + " and")
            read = again.done.stats.prompt_tokens - again.done.cached_tokens
            assert read < 8

    @pytest.mark.parametrize("strategy", ["fuse", "bytes"])
    def test_a_prompt_is_borrowed_from_a_busy_slot(
        self, tiny_models: Models, strategy: str
    ) -> None:
        config = config_of(tiny_models, "qwen2", "smol", strategy=strategy)
        with running(config, slots=2) as batcher:
            first = ask(batcher, prompt=PROMPT * 20, max_tokens=40, ignore_end=True)
            first.take()
            second = ask(batcher, prompt=PROMPT * 20 + " but", max_tokens=12)
            cached = second.done.cached_tokens
            assert first.done.cached_tokens == 0
        assert cached > 0.8 * second.done.stats.prompt_tokens
        sampling = SAMPLINGS["greedy"]
        expected = alone(config, Request(PROMPT * 20 + " but", sampling, max_tokens=12))
        assert (second.text, second.finish) == expected

    def test_the_least_recently_used_is_overwritten(self, tiny_models: Models) -> None:
        texts = ["One two three " * 10, "Ein Hund " * 10, "def f(x): return " * 10]
        with running(config_of(tiny_models, "gpt2"), slots=2) as batcher:

            def cached(text: str) -> bool:
                done = ask(batcher, prompt=text, max_tokens=2).done
                return done.cached_tokens > 0.5 * done.stats.prompt_tokens

            assert [cached(texts[k]) for k in (0, 1, 0, 2, 0, 1)] == [
                *(False, False, True),
                *(False, True, False),
            ]

    def test_siblings_wait_until_the_prompt_is_read(self, tiny_models: Models) -> None:
        with running(config_of(tiny_models, "gpt2"), slots=4) as batcher:
            wanted: dict[str, Any] = {"prompt": PROMPT * 20, "max_tokens": 100, "ignore_end": True}
            first = ask(batcher, SAMPLINGS["sampled"], **wanted)
            others = [
                ask(batcher, SamplingParams(seed=k), after=first.ticket, **wanted) for k in range(3)
            ]
            for one in others:
                one.take()
            assert batcher.active == 4  # they do not wait for its end
            for one in others:
                assert one.done.cached_tokens >= one.done.stats.prompt_tokens - 1
            assert len({one.text for one in [first.wait(), *others]}) > 1

    def test_states_are_not_borrowed(self, tiny_models: Models) -> None:
        config = config_of(tiny_models, "mamba")
        with running(config, slots=2) as batcher:
            first = ask(batcher, prompt=PROMPT * 5, max_tokens=30, ignore_end=True)
            first.take()
            second = ask(batcher, prompt=PROMPT * 5 + " but")
            assert second.done.cached_tokens == 0
        request = Request(PROMPT * 5 + " but", SAMPLINGS["greedy"], max_tokens=24)
        assert second.text == alone(config, request)[0]


class TestQueue:
    def test_too_many(self, tiny_models: Models) -> None:
        with running(config_of(tiny_models, "gpt2"), slots=1, queue=2) as batcher:
            first = ask(batcher, max_tokens=200, ignore_end=True)
            first.take()
            waiting = [ask(batcher, max_tokens=2) for _ in range(2)]
            assert (batcher.active, batcher.waiting) == (1, 2)
            with pytest.raises(BusyError, match="1 requests are being answered and 2 wait") as busy:
                ask(batcher)
            assert busy.value.retry_after > 0
            assert not busy.value.closing
            first.ticket.cancel()
            for one in waiting:
                assert one.done
            assert ask(batcher).done
            assert (batcher.active, batcher.waiting) == (0, 0)

    def test_first_come_first_served(self, tiny_models: Models) -> None:
        order: list[int] = []
        with running(config_of(tiny_models, "gpt2"), slots=1) as batcher:
            heard = [ask(batcher, max_tokens=3) for _ in range(5)]
            threads = [
                threading.Thread(target=lambda k=k: (heard[k].wait(), order.append(k)))  # type: ignore[misc]
                for k in range(5)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(WAIT)
        assert order == sorted(order)

    def test_cancelling_frees_the_slot(self, tiny_models: Models) -> None:
        with running(config_of(tiny_models, "smol", "qwen2"), slots=1) as batcher:
            first = ask(batcher, max_tokens=None, ignore_end=True)
            first.take()
            first.ticket.cancel()
            second = ask(batcher, max_tokens=3)
            assert second.done
            assert not isinstance(first.end, Exception)
            assert len(first.chunks) < 100

    def test_cancelling_within_a_prompt(self, tiny_models: Models) -> None:
        """It is not read to its end."""
        with running(config_of(tiny_models, "gpt2"), slots=2) as batcher:
            other = ask(batcher, max_tokens=100, ignore_end=True)
            other.take()
            long = ask(batcher, prompt=PROMPT * 80, max_tokens=2)
            long.ticket.cancel()
            assert ask(batcher, max_tokens=2).done
            assert other.done
            assert long.is_silent

    def test_cancelling_who_waits(self, tiny_models: Models) -> None:
        with running(config_of(tiny_models, "gpt2"), slots=1) as batcher:
            first = ask(batcher, max_tokens=40, ignore_end=True)
            gone, third = ask(batcher), ask(batcher)
            gone.ticket.cancel()
            assert first.done
            assert third.done
            assert gone.is_silent

    def test_who_leaves_gives_back_a_place(self, tiny_models: Models) -> None:
        with running(config_of(tiny_models, "gpt2"), slots=1, queue=1) as batcher:
            first = ask(batcher, max_tokens=200, ignore_end=True)
            first.take()
            gone = ask(batcher)
            with pytest.raises(BusyError):
                ask(batcher)
            gone.ticket.cancel()
            assert ask(batcher).done

    def test_draining(self, tiny_models: Models) -> None:
        with running(config_of(tiny_models, "gpt2"), slots=1) as batcher:
            first = ask(batcher, max_tokens=40, ignore_end=True)
            first.take()
            second = ask(batcher)
            batcher.drain()
            with pytest.raises(BusyError, match="shutting down") as refused:
                ask(batcher)
            assert refused.value.closing
            assert isinstance(second.wait().end, BusyError)
            assert first.done
            assert first.finish == "length"

    def test_closing_ends_all_within_a_step(self, tiny_models: Models) -> None:
        with running(config_of(tiny_models, "gpt2", "smol"), slots=2) as batcher:
            heard = [ask(batcher, max_tokens=None, ignore_end=True) for _ in range(4)]
            heard[0].take()
        batcher.close()
        assert not batcher._thread.is_alive()

    def test_a_listener_that_fails_is_left(self, tiny_models: Models) -> None:
        from logitfuse.batching import Job

        with running(config_of(tiny_models, "gpt2"), slots=1) as batcher:

            def fail(event: object) -> None:
                raise RuntimeError(f"cannot hear {event}")

            request = Request(PROMPT, max_tokens=100)
            batcher.submit(Job(batcher.configs[0], request), fail)
            assert ask(batcher).done


class TestFailures:
    """A request that fails does not take the others with it."""

    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> set[int]:
        """Trunk sequences whose pieces fail in the second member."""
        sequences: set[int] = set()
        decode = LlamaDecoder.decode

        def decode_or_not(decoder: LlamaDecoder, pieces: Sequence[Piece]) -> int:
            mine = [int(s) for p in pieces for s in set(map(int, _sequences(p)))]
            if decoder.model.path.stem == "smol" and sequences & set(mine):
                return -3
            return decode(decoder, pieces)

        monkeypatch.setattr(LlamaDecoder, "decode", decode_or_not)
        return sequences

    @pytest.mark.parametrize("strategy", ["fuse", "bytes"])
    def test_a_member_that_fails(
        self, tiny_models: Models, failing: set[int], strategy: str
    ) -> None:
        config = (
            config_of(tiny_models, "gpt2", "smol", strategy=strategy, beam=2)
            if (strategy == "bytes")
            else config_of(tiny_models, "gpt2", "smol", strategy=strategy)
        )
        branches = 5 if strategy == "bytes" else 1
        with running(config, slots=3) as batcher:
            heard = [ask(batcher, prompt=p, max_tokens=60, ignore_end=True) for p in PROMPTS[:3]]
            for one in heard:
                one.take()
            failing.update(range(branches, 2 * branches))  # those of the second slot
            ends = [one.wait().end for one in heard]
            failing.clear()
            assert sum(isinstance(end, DecodeError) for end in ends) == 1
            broken = next(end for end in ends if isinstance(end, DecodeError))
            assert (broken.member, broken.code) == ("smol", -3)
            assert broken.text
            for one, prompt in zip(heard, PROMPTS[:3], strict=True):
                if one.end is broken:
                    continue
                request = Request(prompt, SAMPLINGS["greedy"], max_tokens=60, ignore_end=True)
                assert one.text == alone(config, request)[0]
            again = [ask(batcher, prompt=p) for p in PROMPTS[:3]]
            assert all(one.done for one in again)

    def test_a_decoder_that_raises(
        self, tiny_models: Models, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with running(config_of(tiny_models, "gpt2"), slots=2) as batcher:
            first = ask(batcher, max_tokens=100, ignore_end=True)
            first.take()
            with monkeypatch.context() as patch:

                def broken(*_: object) -> int:
                    raise OSError("the device is gone")

                patch.setattr(LlamaDecoder, "decode", broken)
                assert isinstance(first.wait().end, OSError)
            assert ask(batcher).done

    def test_nobody_waits_for_a_batcher_that_has_failed(self, tiny_models: Models) -> None:
        """It never does; but then nothing would ever be said."""
        batcher = Batcher([config_of(tiny_models, "gpt2")], slots=1)
        heard = [ask(batcher, max_tokens=None, ignore_end=True) for _ in range(2)]
        heard[0].take()

        def fail() -> None:
            raise RuntimeError("as tests want it")

        batcher._conductor.post(fail)
        ends = [one.wait().end for one in heard]
        assert [type(end) for end in ends] == [LogitfuseError, BusyError]
        with pytest.raises(BusyError):
            ask(batcher)
        batcher.close()

    def test_no_room(self, tiny_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where cells run out, slots that rest forget; a reply that still has none just ends."""
        with running(config_of(tiny_models, "gpt2"), slots=2) as batcher:
            assert ask(batcher, prompt=PROMPTS[3] * 5).done
            assert ask(batcher, prompt=PROMPTS[1] * 5).done
            decode, refused = LlamaDecoder.decode, []

            def full(decoder: LlamaDecoder, pieces: Sequence[Piece]) -> int:
                held = sum(m.n_tokens for slot in batcher._slots for m in slot.members)
                if held > 40:
                    refused.append(held)
                    return 1
                return decode(decoder, pieces)

            monkeypatch.setattr(LlamaDecoder, "decode", full)
            assert ask(batcher, prompt="something else", max_tokens=4).done
            assert refused

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"prompt": ""}, PromptError),
            ({"prompt": b"\xff"}, PromptError),
            ({"prompt": [{"role": "nobody", "content": "x"}]}, PromptError),
            ({"prompt": "x " * 2000}, ContextLengthError),
        ],
    )
    def test_bad_requests(
        self, tiny_models: Models, options: dict[str, Any], error: type[Exception]
    ) -> None:
        with running(config_of(tiny_models, "gpt2", "smol"), slots=1) as batcher:
            assert isinstance(ask(batcher, **options).wait().end, error)
            assert ask(batcher).done

    def test_what_cannot_be_served(self, tiny_models: Models, tmp_path: Path) -> None:
        good = config_of(tiny_models, "gpt2")
        with pytest.raises(ConfigError, match="slots must be at least 1"):
            Batcher([good], slots=0)
        with pytest.raises(ConfigError, match="fewer slots or a smaller beam"):
            Batcher([config_of(tiny_models, "gpt2", "smol")], slots=16)
        with pytest.raises(ModelNotFoundError):
            Batcher([good, config_of({"x": tmp_path / "x.gguf"}, "x")])
        with pytest.raises(ConfigError, match="one tokenizer"):
            Batcher([config_of(tiny_models, "gpt2", "smol", preset="contrastive")])


class TestEnsembles:
    """Several ensembles over the same models, and requests with parts of their own."""

    def test_members_are_loaded_once(self, tiny_models: Models) -> None:
        pair = config_of(tiny_models, "gpt2", "smol", strategy="fuse")
        careful = pair.model_copy(update={"pool": "min"})
        single = config_of(tiny_models, "smol")
        with running(pair, careful, single, slots=3) as batcher:
            assert [model.name for model in batcher._models] == ["gpt2", "smol"]
            heard = [ask(batcher, config=config) for config in (pair, careful, single)]
            texts = [one.wait().text for one in heard]
        request = Request(PROMPT, SAMPLINGS["greedy"], max_tokens=24)
        assert texts == [alone(config, request)[0] for config in (pair, careful, single)]
        assert len(set(texts)) == 3

    def test_overrides(self, tiny_models: Models) -> None:
        pair = config_of(tiny_models, "gpt2", "smol", strategy="fuse")
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

    def test_many_overrides_do_not_pile_up(self, tiny_models: Models) -> None:
        pair = config_of(tiny_models, "gpt2", "smol", strategy="fuse")
        with running(pair, slots=1) as batcher:
            for k in range(30):
                members = [entry.model_copy(update={"weight": 1 + k}) for entry in pair.member[:1]]
                other = pair.model_copy(update={"member": [*members, pair.member[1]]})
                assert ask(batcher, config=other, max_tokens=2).done
            (slot,) = batcher._slots
            assert len(slot._engines) == 8


def test_scoring(tiny_models: Models) -> None:
    """Texts are scored beside answers."""
    text = " there was a king, who had three sons."
    for strategy in ("fuse", "bytes"):
        config = config_of(tiny_models, "gpt2", "smol", strategy=strategy)
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


def test_a_time_limit_ends_an_answer(tiny_models: Models) -> None:
    with running(config_of(tiny_models, "gpt2"), slots=2) as batcher:
        limited = ask(batcher, max_tokens=400, ignore_end=True, time_limit=0.0)
        assert limited.done
        assert (limited.finish, len(limited.chunks)) == ("length", 1)
        assert ask(batcher, time_limit=1e6, ignore_end=True).wait().chunks[-1].steps


def test_nothing_is_left_behind(tiny_models: Models) -> None:
    """Neither tasks nor rows nor branches pile up over many requests."""
    config = config_of(tiny_models, "smol", "gpt2")
    with running(config, slots=4) as batcher:

        def some() -> int:
            asks = [partial(ask, batcher, SamplingParams(seed=k), max_tokens=3) for k in range(50)]
            assert all(isinstance(one.chunks[-1], Chunk) for one in together(asks))
            gc.collect()
            return len(gc.get_objects())

        some()
        before = some()
        for _ in range(3):
            after = some()
        assert after - before < 200
        until(lambda: not batcher._conductor._tasks)


def _sequences(piece: Piece) -> Sequence[int]:
    found: list[int] = np.atleast_1d(np.asarray(piece.sequences)).tolist()
    return found

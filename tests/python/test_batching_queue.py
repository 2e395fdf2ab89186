"""Who waits, who leaves, what fails, and what is left: a batcher keeps going."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batching import PROMPTS, WAIT, alone, ask, config_of, running, together
from lockstep import GREEDY, PROMPT
from logitfuse.batching import Batcher, Job
from logitfuse.errors import (
    BusyError,
    ConfigError,
    ContextLengthError,
    DecodeError,
    LogitfuseError,
    ModelNotFoundError,
    PromptError,
    TimeLimitError,
)
from logitfuse.llama import LlamaDecoder, Piece
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Chunk, Request
from servers import until

pytestmark = pytest.mark.usefixtures("float_cells")

Models = Mapping[str, Path]


class TestQueue:
    def test_too_many(self, wide_models: Models) -> None:
        with running(config_of(wide_models, "gpt2"), slots=1, queue=2) as batcher:
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

    def test_first_come_first_served(self, wide_models: Models) -> None:
        order: list[int] = []
        with running(config_of(wide_models, "gpt2"), slots=1) as batcher:
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

    def test_cancelling_frees_the_slot(self, wide_models: Models) -> None:
        with running(config_of(wide_models, "smol", "qwen2"), slots=1) as batcher:
            first = ask(batcher, max_tokens=None, ignore_end=True)
            first.take()
            first.ticket.cancel()
            second = ask(batcher, max_tokens=3)
            assert second.done
            assert not isinstance(first.end, Exception)
            assert len(first.chunks) < 100

    def test_cancelling_within_a_prompt(self, wide_models: Models) -> None:
        """It is not read to its end."""
        with running(config_of(wide_models, "gpt2"), slots=2) as batcher:
            other = ask(batcher, max_tokens=100, ignore_end=True)
            other.take()
            long = ask(batcher, prompt=PROMPT * 80, max_tokens=2)
            long.ticket.cancel()
            assert ask(batcher, max_tokens=2).done
            assert other.done
            assert long.is_silent

    def test_cancelling_who_waits(self, wide_models: Models) -> None:
        with running(config_of(wide_models, "gpt2"), slots=1) as batcher:
            first = ask(batcher, max_tokens=40, ignore_end=True)
            gone, third = ask(batcher), ask(batcher)
            gone.ticket.cancel()
            assert first.done
            assert third.done
            assert gone.is_silent

    def test_who_leaves_gives_back_a_place(self, wide_models: Models) -> None:
        with running(config_of(wide_models, "gpt2"), slots=1, queue=1) as batcher:
            first = ask(batcher, max_tokens=200, ignore_end=True)
            first.take()
            gone = ask(batcher)
            with pytest.raises(BusyError):
                ask(batcher)
            gone.ticket.cancel()
            assert ask(batcher).done

    def test_who_left_the_queue_costs_nothing(self, wide_models: Models) -> None:
        """The slot is not taken for it, and keeps what it has read."""
        with running(config_of(wide_models, "gpt2"), slots=1) as batcher:
            first = ask(batcher, prompt=PROMPT * 20, max_tokens=60, ignore_end=True)
            first.take()
            ask(batcher, prompt="Something else altogether").ticket.cancel()
            assert first.done
            stats = ask(batcher, prompt=PROMPT * 20 + " and").done.stats
            assert stats.cached_tokens > 0.9 * stats.prompt_tokens

    def test_what_was_read_is_kept(self, wide_models: Models) -> None:
        """Of a request that leaves while its prompt is read."""
        with running(config_of(wide_models, "gpt2"), slots=2) as batcher:
            other = ask(batcher, max_tokens=None, ignore_end=True)
            other.take()
            gone = ask(batcher, prompt=PROMPT * 40)
            slot = next(s for s in batcher._slots if s.members[0].n_tokens == 0)
            until(lambda: slot.members[0].n_tokens > 100)
            gone.ticket.cancel()
            until(lambda: not slot.busy)
            read = slot.members[0].n_tokens
            again = ask(batcher, prompt=PROMPT * 40, max_tokens=4)
            assert again.done.stats.cached_tokens >= read > 100
            other.ticket.cancel()
        request = Request(PROMPT * 40, GREEDY, max_tokens=4)
        assert again.text == alone(batcher.configs[0], request)[0]

    def test_tokens_are_counted(self, wide_models: Models) -> None:
        """No more prompts are taken than tokens may wait; one that is alone always is."""
        config = config_of(wide_models, "gpt2", "smol", strategy="fuse")
        with running(config, slots=1, queue=8, queue_tokens=300) as batcher:
            engine = batcher.engine(config)
            request = Request(PROMPT * 20, GREEDY, max_tokens=40, ignore_end=True)
            prompts = engine.render(request.prompt)
            size = max(len(prompt.tokens) for prompt in prompts.values())
            assert 100 < size < 150
            job = Job(config, request, prompts=prompts)
            jobs = [replace(job, prompts=dict(prompts)) for _ in range(3)]
            ends: list[object] = []
            tickets = [batcher.submit(job, ends.append) for job in (*jobs[:2], jobs[0])]
            assert [ticket.n_tokens for ticket in tickets] == [size, size, size]
            with pytest.raises(BusyError, match=f"with prompts of {2 * size} tokens"):
                batcher.submit(jobs[2], ends.append)
            until(lambda: not batcher.active and not batcher.waiting)
            longer = Request(PROMPT * 60, GREEDY, max_tokens=1)
            prompts = engine.render(longer.prompt)
            assert batcher.submit(Job(config, longer, prompts=prompts), print).n_tokens > 300

    def test_draining(self, wide_models: Models) -> None:
        with running(config_of(wide_models, "gpt2"), slots=1) as batcher:
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

    def test_draining_lets_answers_be_whole(self, wide_models: Models) -> None:
        """Those of which a part is done."""
        with running(config_of(wide_models, "gpt2"), slots=1) as batcher:
            first = ask(batcher, max_tokens=60, ignore_end=True, group="one")
            first.take()
            parts = [ask(batcher, max_tokens=3, group="one") for _ in range(2)]
            other = ask(batcher, group="another")
            batcher.drain()
            assert isinstance(other.wait().end, BusyError)
            assert all(one.done for one in (first, *parts))

    def test_closing_ends_all_within_a_step(self, wide_models: Models) -> None:
        with running(config_of(wide_models, "gpt2", "smol"), slots=2) as batcher:
            heard = [ask(batcher, max_tokens=None, ignore_end=True) for _ in range(4)]
            heard[0].take()
        batcher.close()
        assert not batcher._thread.is_alive()

    def test_closing_ends_who_is_just_beginning(
        self, wide_models: Models, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with running(config_of(wide_models, "gpt2"), slots=1) as batcher:
            place, begins = batcher._place, threading.Event()

            def slowly(job: Job) -> Any:
                begins.set()
                time.sleep(0.3)
                return place(job)

            monkeypatch.setattr(batcher, "_place", slowly)
            heard = ask(batcher, max_tokens=None, ignore_end=True)
            assert begins.wait(WAIT)
        assert heard.is_silent

    def test_a_listener_that_fails_is_left(self, wide_models: Models) -> None:

        with running(config_of(wide_models, "gpt2"), slots=1) as batcher:

            def fail(event: object) -> None:
                raise RuntimeError(f"cannot hear {event}")

            request = Request(PROMPT, max_tokens=100)
            batcher.submit(Job(batcher.configs[0], request), fail)
            assert ask(batcher).done


class TestTimeLimit:
    def test_an_answer_ends(self, wide_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
        decode = LlamaDecoder.decode

        def slowly(decoder: LlamaDecoder, pieces: Sequence[Piece]) -> int:
            time.sleep(0.01)
            return decode(decoder, pieces)

        monkeypatch.setattr(LlamaDecoder, "decode", slowly)
        with running(config_of(wide_models, "gpt2"), slots=2) as batcher:
            limited = ask(batcher, max_tokens=None, ignore_end=True, time_limit=0.3)
            assert limited.done
            assert limited.finish == "length"
            assert 1 < limited.done.stats.steps < 35
            assert ask(batcher, time_limit=1e6, ignore_end=True).wait().chunks[-1].steps

    @pytest.mark.parametrize("strategy", ["fuse", "bytes"])
    def test_so_does_a_prompt(self, wide_models: Models, strategy: str) -> None:
        config = config_of(wide_models, "gpt2", "smol", strategy=strategy)
        with running(config, slots=2) as batcher:
            limited = ask(batcher, prompt=PROMPT * 20, time_limit=1e-6)
            with pytest.raises(TimeLimitError, match="within 1e-06 seconds"):
                assert limited.done
            assert ask(batcher).done

    def test_so_does_a_text_that_is_scored(self, wide_models: Models) -> None:
        with running(config_of(wide_models, "gpt2"), slots=2) as batcher:
            text = PROMPT * 20
            assert b"".join(step.unit for step in ask(batcher, text=text).wait().steps)
            with pytest.raises(TimeLimitError):
                assert ask(batcher, text=text + "!", time_limit=1e-6).done
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
        self, wide_models: Models, failing: set[int], strategy: str
    ) -> None:
        config = (
            config_of(wide_models, "gpt2", "smol", strategy=strategy, beam=2)
            if (strategy == "bytes")
            else config_of(wide_models, "gpt2", "smol", strategy=strategy)
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
                request = Request(prompt, GREEDY, max_tokens=60, ignore_end=True)
                assert one.text == alone(config, request)[0]
            again = [ask(batcher, prompt=p) for p in PROMPTS[:3]]
            assert all(one.done for one in again)

    def test_a_decoder_that_raises(
        self, wide_models: Models, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with running(config_of(wide_models, "gpt2"), slots=2) as batcher:
            first = ask(batcher, max_tokens=100, ignore_end=True)
            first.take()
            with monkeypatch.context() as patch:

                def broken(*_: object) -> int:
                    raise OSError("the device is gone")

                patch.setattr(LlamaDecoder, "decode", broken)
                assert isinstance(first.wait().end, OSError)
            assert ask(batcher).done

    def test_nobody_waits_for_a_batcher_that_has_failed(self, wide_models: Models) -> None:
        """It never does; but then nothing would ever be said."""
        batcher = Batcher([config_of(wide_models, "gpt2")], slots=1)
        heard = [ask(batcher, max_tokens=None, ignore_end=True) for _ in range(2)]
        heard[0].take()

        def fail() -> None:
            raise RuntimeError("as tests want it")

        assert batcher.failed is None
        batcher._conductor.post(fail)
        ends = [one.wait().end for one in heard]
        assert [type(end) for end in ends] == [LogitfuseError, BusyError]
        assert isinstance(batcher.failed, RuntimeError)
        with pytest.raises(BusyError):
            ask(batcher)
        batcher.close()

    def test_no_room(self, wide_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where cells run out, slots that rest forget; a reply that still has none just ends."""
        with running(config_of(wide_models, "gpt2"), slots=2) as batcher:
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

    def test_nothing_is_not_a_document(self, wide_models: Models) -> None:
        """Texts that are scored may begin from nothing, answers may not, also beside them."""
        with running(config_of(wide_models, "gpt2"), slots=2) as batcher:
            scored = ask(batcher, text="the king and the queen went home " * 12, prompt="")
            scored.take()
            assert isinstance(ask(batcher, prompt="").wait().end, PromptError)
            assert scored.done

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
        self, wide_models: Models, options: dict[str, Any], error: type[Exception]
    ) -> None:
        with running(config_of(wide_models, "gpt2", "smol"), slots=1) as batcher:
            assert isinstance(ask(batcher, **options).wait().end, error)
            assert ask(batcher).done

    def test_what_cannot_be_served(self, wide_models: Models, tmp_path: Path) -> None:
        good = config_of(wide_models, "gpt2")
        with pytest.raises(ConfigError, match="slots must be at least 1"):
            Batcher([good], slots=0)
        with pytest.raises(ConfigError, match="fewer slots or a smaller beam"):
            Batcher([config_of(wide_models, "gpt2", "smol")], slots=16)
        with pytest.raises(ModelNotFoundError):
            Batcher([good, config_of({"x": tmp_path / "x.gguf"}, "x")])
        with pytest.raises(ConfigError, match="one tokenizer"):
            Batcher([config_of(wide_models, "gpt2", "smol", preset="contrastive")])


def test_nothing_is_left_behind(wide_models: Models) -> None:
    """Neither tasks nor rows nor branches pile up over many requests."""
    config = config_of(wide_models, "smol", "gpt2")
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

"""How answers of the lockstep engine end, and what may go wrong, on tiny models."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from lockstep import (
    PROMPT,
    STEPS,
    Load,
    Models,
    Scripted,
    answer,
    decode,
    forbidding_the_end,
    may_follow,
    request,
)
from logitfuse import chat
from logitfuse.alignment import align
from logitfuse.errors import (
    ConfigError,
    ContextLengthError,
    DecodeError,
    FusionError,
    MemberError,
    PromptError,
)
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Request
from logitfuse.strategies.fuse import Fuse


class TestStop:
    def test_anywhere_in_the_text(self, pair: Fuse) -> None:
        """Across borders of tokens, inside tokens, inside and around multi-byte characters."""
        whole = answer(pair, max_tokens=60).text
        assert len(whole) > 50
        for begin in range(0, len(whole) - 6, 5):
            for length in (1, 2, 6):
                stop = whole[begin : begin + length]
                stopped = answer(pair, max_tokens=60, stop=(stop,))
                assert stopped.text == whole[: whole.index(stop)]
                assert stopped.finish == "stop"

    def test_multi_byte_characters(self, fused: Callable[..., Fuse]) -> None:
        """Written byte by byte."""
        fuse = fused("gpt2", "smol")
        bias = {"Ы".encode()[:1]: 90.0, "Ы".encode()[1:]: 60.0, fuse.alignment.end: -60.0}
        sampling = SamplingParams(temperature=0, logit_bias=bias)
        free = answer(fuse, sampling)
        assert free.text == "Ы" * (STEPS // 2)
        for stop in ("Ы", "ЫЫЫ"):
            stopped = answer(fuse, sampling, stop=(stop,))
            assert (stopped.text, stopped.finish) == ("", "stop")
            assert stopped.units == free.units[: 2 * len(stop)]
        assert answer(fuse, sampling, stop=("Ыb", "\u0451")).text == free.text

    def test_the_first_of_several(self, pair: Fuse) -> None:
        whole = answer(pair).text
        stops = (whole[30:34], whole[12:15], whole[20:21], "not in it at all")
        stopped = answer(pair, stop=stops)
        assert stopped.text == whole[: min(whole.find(stop) for stop in stops[:3])]

    def test_none_of_them(self, pair: Fuse) -> None:
        whole = answer(pair)
        almost = whole.text[-4:] + "no"
        without = answer(pair, stop=(almost, whole.text[5:9] + "no"))
        assert without == whole

    def test_at_the_very_start(self, pair: Fuse) -> None:
        whole = answer(pair).text
        stopped = answer(pair, stop=(whole[:2],))
        assert (stopped.text, stopped.finish) == ("", "stop")

    def test_end_symbol(self, pair: Fuse) -> None:
        bias = SamplingParams(temperature=0, logit_bias={pair.alignment.end: 100.0})
        ended = answer(pair, bias)
        assert (ended.text, ended.units, ended.finish) == ("", [b""], "stop")

    def test_end_never_cuts_a_character(self, pair: Fuse) -> None:
        reasons = set()
        for seed in range(30):
            sampling = SamplingParams(
                temperature=1.5,
                top_p=1,
                min_p=0,
                top_k=0,
                seed=seed,
                logit_bias={pair.alignment.end: 5.0},
            )
            said = answer(pair, sampling, max_tokens=12)
            reasons.add(said.finish)
            if said.finish == "stop":
                assert b"".join(said.units).decode() == said.text
        assert reasons == {"stop", "length"}

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_max_tokens(self, pair: Fuse, n: int) -> None:
        said = answer(pair, max_tokens=n)
        assert said.units == answer(pair).units[:n]
        assert said.finish == "length"

    @pytest.mark.parametrize("names", [("gpt2",), ("gpt2", "llama-spm"), ("mamba", "gemma3")])
    def test_context_is_full(self, tiny_models: Models, names: tuple[str, ...]) -> None:
        """The text is kept, and the next request works."""
        fuse = Fuse([Member(tiny_models[name], n_ctx=256, n_threads=1) for name in names])
        sampling = forbidding_the_end(fuse)
        short = answer(fuse, sampling, max_tokens=20)
        full = answer(fuse, sampling, max_tokens=None)
        assert full.finish == "length"
        assert full.units[:20] == short.units
        assert 250 <= max(member.n_tokens for member in fuse.members) <= 256
        assert answer(fuse, sampling, max_tokens=20) == short

    def test_text_is_always_valid(self, pair: Fuse) -> None:
        """Random models would write bytes in any order; `answer` checks."""
        odd = 0
        for seed in range(12):
            sampling = SamplingParams(seed=seed, temperature=3.0, top_k=0, top_p=1, min_p=0)
            odd += any(not may_follow(b"", unit) for unit in answer(pair, sampling).units)
        assert odd


class TestInterruption:
    def test_closing_early(self, pair: Fuse) -> None:
        whole = answer(pair)
        stream = pair.stream(request())
        said = "".join(next(stream).text for _ in range(5))
        stream.close()
        assert whole.text.startswith(said)
        assert answer(pair) == whole

    @pytest.mark.parametrize("failing", [0, 1])
    @pytest.mark.parametrize("after", [0, 1, 7])
    def test_a_member_fails(self, pair: Fuse, failing: int, after: int) -> None:
        """The error keeps the text; the next request works."""
        whole = answer(pair)
        streamed, error = self.interrupt(pair, failing, after, lambda: -3, DecodeError)
        assert (error.member, error.code) == (pair.members[failing].name, -3)
        assert error.text == decode(whole.units[: len(streamed)])
        assert error.text.startswith("".join(streamed))
        assert answer(pair) == whole

    def test_logits_of_nothing_but_nan(self, pair: Fuse, monkeypatch: pytest.MonkeyPatch) -> None:
        """A broken model is named, its text is kept; the next request works."""
        whole = answer(pair)
        broken = pair.members[1]
        row = np.full(len(broken.vocab), np.nan, np.float32)
        streamed = []
        chunks = pair.stream(request(max_tokens=STEPS))
        for _ in range(3):
            streamed.append(next(chunks).text)
        rest = (streamed.append(chunk.text) for chunk in chunks)
        with monkeypatch.context() as patch:
            patch.setattr(broken.context, "row", lambda _back=1: row)
            sure = property(lambda _: 1.0, lambda _self, _belief: None)
            patch.setattr(Member, "boundary", sure, raising=False)  # nobody abstains
            with pytest.raises(MemberError, match="NaN") as caught:
                list(rest)
        assert caught.value.member == broken.name
        assert caught.value.text.startswith("".join(streamed))
        assert answer(pair) == whole

    def test_what_a_stop_string_held_back_is_kept(self, fused: Callable[..., Fuse]) -> None:
        fuse = fused("gpt2", "llama-spm")
        whole = answer(fuse)
        stop = decode(whole.units[:7]) + "no"
        options = {"stop": (stop,)}
        streamed, error = self.interrupt(fuse, 0, 4, lambda: -3, DecodeError, **options)
        assert "".join(streamed) == ""
        assert error.text == decode(whole.units[: len(streamed)])

    @pytest.mark.parametrize("failing", [0, 1])
    def test_an_exception_in_a_thread(self, pair: Fuse, failing: int) -> None:
        def interrupted() -> int:
            raise KeyboardInterrupt

        whole = answer(pair)
        self.interrupt(pair, failing, 5, interrupted, KeyboardInterrupt)
        assert answer(pair) == whole

    def test_no_member_is_left_half_way(self, fused: Callable[..., Fuse]) -> None:
        """The error waits for those that still decode."""
        fuse = fused("gpt2", "llama-spm")
        slow = fuse.members[1].context
        original = slow.decode
        done = []

        def decode_slowly(*args: Any, **kwargs: Any) -> int:
            time.sleep(0.02)
            code = original(*args, **kwargs)
            done.append(code)
            return code

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slow, "decode", decode_slowly)
            self.interrupt(fuse, 0, 0, lambda: -3, DecodeError)
            assert len(done) == 2  # another prompt, and this one

    @pytest.mark.skipif(sys.platform == "win32", reason="cannot send itself a Ctrl-C")
    @pytest.mark.parametrize("names", [("gpt2",), ("gpt2", "llama-spm"), ("mamba", "gemma3")])
    @pytest.mark.parametrize("after", [0, 4])
    def test_ctrl_c(self, fused: Callable[..., Fuse], names: tuple[str, ...], after: int) -> None:
        """The main thread is interrupted while the members decode."""
        fuse = fused(*names)
        whole = answer(fuse)

        def press() -> int:
            os.kill(os.getpid(), signal.SIGINT)
            return 0

        self.interrupt(fuse, 0, after, press, KeyboardInterrupt)
        assert answer(fuse) == whole

    @staticmethod
    def interrupt(
        fuse: Fuse,
        failing: int,
        after: int,
        event: Callable[[], int],
        error: type[BaseException],
        **options: Any,
    ) -> tuple[list[str], Any]:
        """Let something happen in one member's decode after so many calls.

        Returns what was streamed before, and the error.
        """
        context = fuse.members[failing].context
        original = context.decode
        calls = 0

        def decode(*args: Any, **kwargs: Any) -> int:
            nonlocal calls
            calls += 1
            if calls != after + 1:
                return original(*args, **kwargs)
            code = event()
            return original(*args, **kwargs) if code == 0 else code

        for member in fuse.members:
            member.begin(member.tokenize_prompt("Something else"))
        streamed: list[str] = []
        chunks = (streamed.append(chunk.text) for chunk in fuse.stream(request(**options)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(context, "decode", decode)
            with pytest.raises(error) as caught:
                list(chunks)
        return streamed, caught.value


class TestChat:
    MESSAGES = ({"role": "user", "content": "What is a fjord?"},)

    def test_every_member_has_its_own_prompt(self, fused: Callable[..., Fuse]) -> None:
        fuse = fused("smol", "gpt2")
        answer(fuse, prompt=self.MESSAGES, max_tokens=1)
        for member in fuse.members:
            rendered = chat.render(member.model, self.MESSAGES)
            assert list(member.tokens) == member.tokenize_prompt(rendered.text)

    def test_a_transcript_ends_where_the_user_would_speak(self, load: Load) -> None:
        fuse = Scripted([load("smol"), load("gpt2")], script="Hi\nUser:\nMore")
        said = answer(fuse, prompt=self.MESSAGES)
        assert (said.text, said.finish) == ("Hi", "stop")

    def test_a_template_has_no_stop_strings(self, load: Load) -> None:
        fuse = Scripted([load("smol")], script="Hi\nUser:\nMore")
        assert answer(fuse, prompt=self.MESSAGES, max_tokens=13).text == "Hi\nUser:\nMore"

    def test_refusals_come_before_the_first_chunk(self, pair: Fuse) -> None:
        for prompt in ("", b"", [], b"\xff", [{"role": "bot", "content": ""}], ["hello"]):
            with pytest.raises(PromptError):
                next(pair.stream(request(prompt=prompt)))
        assert answer(pair, max_tokens=3).steps

    def test_long_prompt(self, pair: Fuse) -> None:
        with pytest.raises(ContextLengthError) as caught:
            next(pair.stream(request(prompt=1000 * "All work and no play. ")))
        member = next(m for m in pair.members if m.name == caught.value.member)
        assert caught.value.n_ctx == member.n_ctx < caught.value.n_tokens
        assert answer(pair, max_tokens=3).steps


class TestRefusals:
    def test_pool(self, fused: Callable[..., Fuse]) -> None:
        with pytest.raises(FusionError, match="geometric"):
            fused("gpt2", pool="geometric")

    def test_gate(self, fused: Callable[..., Fuse]) -> None:
        with pytest.raises(ConfigError, match="'never'; known: boundary, always") as caught:
            fused("gpt2", gate="never")
        assert caught.value.key == "gate"

    @pytest.mark.parametrize("n", [0, -1])
    def test_max_tokens(self, n: int) -> None:
        with pytest.raises(ConfigError, match="max_tokens must be at least 1"):
            Request(PROMPT, max_tokens=n)

    def test_no_members(self) -> None:
        with pytest.raises(ConfigError, match="at least one"):
            Fuse([])

    @pytest.mark.parametrize("key", ["no member says this in one piece", -1, 10**6, b"\xff\xff"])
    def test_bias(self, pair: Fuse, key: int | str | bytes) -> None:
        with pytest.raises(FusionError, match="logit bias"):
            next(pair.stream(request(SamplingParams(logit_bias={key: 1.0}))))

    def test_everything_is_forbidden(self, fused: Callable[..., Fuse]) -> None:
        fuse = fused("gpt2")
        bias = dict.fromkeys(range(len(align([fuse.members[0].vocab]))), -math.inf)
        with pytest.raises(FusionError):
            next(fuse.stream(request(SamplingParams(temperature=0, logit_bias=bias))))

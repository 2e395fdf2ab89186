"""Members stay in step: after every step the cache holds the canonical tokens of the whole reply.

The oracle is a second context of the same model which reads everything afresh.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logitfuse import _core, chat
from logitfuse.errors import (
    DecodeError,
    PromptError,
)
from logitfuse.llama import LlamaContext
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Request
from logitfuse.strategies.fuse import Fuse
from logitfuse.text import ReplyText
from members import (
    ATOL,
    CHINESE,
    CODE,
    ENGLISH,
    NAMES,
    PROMPT,
    STATEFUL,
    TEXTS,
    UKRAINIAN,
    Fresh,
    Load,
    advance,
    check_sync,
    common_prefix,
    cut,
    decoded_by,
    distance,
    sizes,
    target,
    texts,
)
from tiny import write_tiny


@pytest.fixture(scope="module")
def load(tiny_models: Mapping[str, Path]) -> Load:
    """Loads a tiny member and its oracle, once for all tests."""

    @functools.cache
    def loaded(name: str) -> tuple[Member, Fresh]:
        member = Member(tiny_models[name], name=name, n_threads=1)
        return member, Fresh(member)

    return loaded


@pytest.fixture(scope="module")
def real(smollm2_path: Path, gemma3_path: Path) -> list[Member]:
    """The demo models."""
    return [Member(path, n_ctx=1024, n_threads=1) for path in (smollm2_path, gemma3_path)]


@pytest.mark.parametrize("name", NAMES)
class TestSync:
    @settings(deadline=None, max_examples=40)
    @given(prompt=st.sampled_from([PROMPT, "def", CHINESE]), text=texts, lengths=sizes)
    def test_any_pieces(
        self, load: Load, name: str, prompt: str, text: bytes, lengths: list[int]
    ) -> None:
        member, fresh = load(name)
        tokens = member.tokenize_prompt(prompt)
        member.begin(tokens)
        reply = ReplyText()
        check_sync(member, fresh, tokens, reply)
        for piece in cut(text, lengths):
            assert advance(member, reply, piece)
            check_sync(member, fresh, tokens, reply)

    @pytest.mark.parametrize("text", TEXTS, ids=["english", "code", "ukrainian", "chinese", "odd"])
    @pytest.mark.parametrize("length", [1, 5])
    def test_long_texts(self, load: Load, name: str, text: str, length: int) -> None:
        """Far longer than any sliding window, and than the tail that is tokenised again."""
        member, _ = load(name)
        prompt = member.tokenize_prompt(PROMPT)
        member.begin(prompt)
        reply = ReplyText()
        for piece in cut((3 * text).encode()[:300], [length]):
            assert advance(member, reply, piece)
            assert list(member.tokens) == target(member, prompt, reply)

    def test_member_may_append_tokens_of_its_own(self, load: Load, name: str) -> None:
        member, fresh = load(name)
        prompt = member.tokenize_prompt(PROMPT)
        own = [400, 401, 300, 301, 302]
        member.begin(prompt)
        for token in own:
            assert member.append(token)
        assert list(member.tokens) == prompt + own
        np.testing.assert_allclose(member.row, fresh.rows(prompt + own)[1], atol=ATOL, rtol=0)
        member.begin(prompt)
        reply = ReplyText()
        advance(member, reply, b" and")
        check_sync(member, fresh, prompt, reply)

    def test_full_context_changes_nothing(self, tiny_models: Mapping[str, Path], name: str) -> None:
        member = Member(tiny_models[name], n_ctx=256, n_threads=1)
        assert member.n_ctx == 256
        prompt = member.tokenize_prompt(PROMPT)
        member.begin(prompt)
        reply = ReplyText()
        words = cut(20 * ENGLISH.encode(), [3])
        while advance(member, reply, next(words)):
            was = member.tokens, member.row.copy(), member.boundary, member.stalled
        assert 250 <= member.n_tokens <= 256
        assert member.tokens == was[0]
        np.testing.assert_array_equal(member.row, was[1])
        assert (member.boundary, member.stalled) == was[2:]
        while member.append(300):
            pass
        assert member.n_tokens == 256
        member.begin(prompt)
        assert list(member.tokens) == prompt


class TestBegin:
    @pytest.mark.parametrize("name", NAMES)
    def test_reads_only_what_is_new(self, load: Load, name: str) -> None:
        """A second turn: the first prompt, the reply, and more."""
        member, fresh = load(name)
        member.begin(member.tokenize_prompt(CHINESE))  # nothing in common
        first = member.tokenize_prompt("\n\nUser:\nHello there, how are you?\n\nAssistant:\n")
        member.begin(first)
        reply = ReplyText()
        advance(member, reply, b"I am", b" fine,", b" thank you.")
        held = list(member.tokens)
        assert decoded_by(member, lambda: member.begin(held)) == 0
        second = held + member.tokenize(b"\n\nUser:\nAnd your dog?\n\nAssistant:\n")
        assert decoded_by(member, lambda: member.begin(second)) == len(second) - len(held)
        check_sync(member, fresh, second, ReplyText())
        assert member.tokens == tuple(second)

    @pytest.mark.parametrize("name", sorted(set(NAMES) - set(STATEFUL)))
    def test_keeps_the_common_part(self, load: Load, name: str) -> None:
        member, fresh = load(name)
        first = member.tokenize_prompt(ENGLISH + CODE)
        second = member.tokenize_prompt(ENGLISH + UKRAINIAN)
        member.begin(first)
        reused = member.stats.reused_tokens
        common = common_prefix(first, second)
        assert common > 20
        assert decoded_by(member, lambda: member.begin(second)) == len(second) - common
        assert member.stats.reused_tokens - reused == common
        check_sync(member, fresh, second, ReplyText())

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("answer", ["", "Yes", ENGLISH])
    def test_same_prompt_again(self, load: Load, name: str, answer: str) -> None:
        member, fresh = load(name)
        prompt = member.tokenize_prompt(ENGLISH)
        member.begin(prompt)
        reply = ReplyText()
        for piece in cut(answer.encode(), [4]):
            advance(member, reply, piece)
        decoded = decoded_by(member, lambda: member.begin(prompt))
        checkpoint_is_gone = name in STATEFUL and answer
        assert decoded <= (len(prompt) if checkpoint_is_gone else bool(answer))
        check_sync(member, fresh, prompt, ReplyText())

    @pytest.mark.parametrize("name", NAMES)
    def test_a_prefix_of_what_is_held(self, load: Load, name: str) -> None:
        member, fresh = load(name)
        prompt = member.tokenize_prompt(ENGLISH)
        member.begin(prompt)
        for length in (len(prompt) // 2, 2, 1):
            member.begin(prompt[:length])
            assert list(member.tokens) == prompt[:length]
        member.begin(prompt)
        check_sync(member, fresh, prompt, ReplyText())

    def test_far_behind_a_sliding_window(self, load: Load, tiny_models: Mapping[str, Path]) -> None:
        """llama.cpp would claim that it can go back, whether it can or not."""
        _, fresh = load("gemma3")
        member = Member(tiny_models["gemma3"], n_batch=32, n_threads=1)
        assert 0 < member.model.n_swa < 32
        prompt = member.tokenize_prompt(8 * ENGLISH)
        assert len(prompt) > 200
        member.begin(prompt)
        member.begin(prompt[:40])
        check_sync(member, fresh, prompt[:40], ReplyText())

    @pytest.mark.parametrize("n_batch", [1, 2, 3, 64])
    def test_in_small_batches(
        self, load: Load, tiny_models: Mapping[str, Path], n_batch: int
    ) -> None:
        """The rows that are wanted come from one batch, whatever its size."""
        _, fresh = load("gpt2")
        member = Member(tiny_models["gpt2"], n_batch=n_batch, n_threads=1)
        prompt = member.tokenize_prompt(ENGLISH)
        for n in range(1, 10):
            member.begin(prompt)
            reply = ReplyText()
            advance(member, reply, 8 * b"x y"[:n])
            check_sync(member, fresh, prompt, reply)
            member.begin(prompt[:1])


class TestUnspellable:
    def test_stalls_until_the_character_is_complete(self, load: Load) -> None:
        """SmolLM2 has no token for the byte f1."""
        member, fresh = load("smol")
        prompt = member.tokenize_prompt(PROMPT)
        member.begin(prompt)
        reply = ReplyText()
        assert member.vocab.lookup(b"\xf1") is None
        advance(member, reply, b" no")
        held = member.tokens
        for byte in (b"\xf1", b"\x80", b"\x80"):
            assert decoded_by(member, functools.partial(advance, member, reply, byte)) == 0
            assert member.stalled
            assert member.tokens == held
        advance(member, reply, b"\x80")
        assert not member.stalled
        check_sync(member, fresh, prompt, reply)
        advance(member, reply, b" matter")
        check_sync(member, fresh, prompt, reply)

    def test_takes_back_what_it_had_followed(self, load: Load) -> None:
        member, fresh = load("smol")
        prompt = member.tokenize_prompt(PROMPT)
        member.begin(prompt)
        reply = ReplyText()
        advance(member, reply, b" so")
        held = member.tokens
        assert member.vocab.lookup(b"\xf0") is not None
        assert member.vocab.lookup(b"\xa0\xa0") is None
        advance(member, reply, b"\xf0")
        assert len(member.tokens) == len(held) + 1
        advance(member, reply, b"\xa0\xa0")
        assert member.stalled
        assert member.tokens == held
        advance(member, reply, b"\xa0")
        check_sync(member, fresh, prompt, reply)

    def test_begin_ends_a_stall(self, load: Load) -> None:
        member, _ = load("smol")
        prompt = member.tokenize_prompt(PROMPT)
        member.begin(prompt)
        advance(member, ReplyText(), b"\xf1")
        assert member.stalled
        member.begin(prompt)
        assert not member.stalled


class TestTail:
    """Only a tail is tokenised again; it must never differ from the whole."""

    def test_does_not_begin_inside_a_number(self, vocab_dir: Path, tmp_path: Path) -> None:
        """Llama 3 takes digits by threes, counted from where the number begins."""
        path = write_tiny(tmp_path / "llama3.gguf", vocab_dir / "ggml-vocab-llama-bpe.gguf")
        text = "So " + 7 * "１２３" + "4567890123"
        self.check(Member(path, n_threads=1), text.encode(), [3, 1])

    @pytest.mark.parametrize("name", NAMES)
    @settings(deadline=None, max_examples=30)
    @given(text=texts, lengths=sizes)
    def test_equals_the_whole(self, load: Load, name: str, text: bytes, lengths: list[int]) -> None:
        self.check(load(name)[0], 3 * text, lengths)

    @pytest.mark.parametrize("text", TEXTS, ids=["english", "code", "ukrainian", "chinese", "odd"])
    def test_with_real_vocabularies(self, real: list[Member], text: str) -> None:
        for member in real:
            self.check(member, (8 * text).encode(), [5, 2, 1, 9])

    @pytest.mark.parametrize("name", ["gpt2", "qwen2", "lfm2"])
    def test_checks_itself(self, load: Load, name: str) -> None:
        """A tail that begins with ``'st`` has a contraction in it that the whole has not."""
        member, _ = load(name)
        before = member.stats.full_tokenisations
        text = "aaa'' asa' 'st    'tsst't'  aass '  tsaats ''t 'ss 'ssat't ta 'sta'attt''st"
        self.check(member, 2 * text.encode(), [1])
        assert member.stats.full_tokenisations > before

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("text", [ENGLISH, UKRAINIAN, CHINESE], ids=["en", "uk", "zh"])
    def test_is_used(self, load: Load, name: str, text: str) -> None:
        """The check of the tail passes, and a step looks at a few bytes only."""
        member, _ = load(name)
        before = member.stats.full_tokenisations
        asked: list[int] = []
        reply = ReplyText()
        member.begin(member.tokenize_prompt(PROMPT))
        tokenize = member._canonical.tokenize
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                member._canonical,
                "tokenize",
                lambda text: asked.append(len(text)) or tokenize(text),
            )
            for piece in cut((6 * text).encode(), [4]):
                reply.append(piece)
                member.place(reply.complete)
        assert member.stats.full_tokenisations - before <= 2
        assert sum(length > 150 for length in asked) <= 2

    @staticmethod
    def check(member: Member, text: bytes, lengths: Sequence[int]) -> None:
        prompt = member.tokenize_prompt(PROMPT)
        member.begin(prompt)
        reply = ReplyText()
        for piece in cut(text, lengths):
            reply.append(piece)
            place = member.place(reply.complete)
            assert place.tokens == prompt + member.tokenize(reply.complete)


class TestTokenize:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("text", [ENGLISH, CODE, UKRAINIAN, CHINESE, "x", " x", "\n"])
    def test_continues_earlier_text(self, load: Load, name: str, text: str) -> None:
        """No space is put before it."""
        member, _ = load(name)
        assert member.vocab.join(member.tokenize(text.encode())) == text.encode()

    def test_spm_prompt_begins_as_it_was_trained(self, load: Load) -> None:
        member, _ = load("llama-spm")
        tokens = member.tokenize_prompt("Hello")
        assert tokens[0] == member.model.bos
        assert member.vocab.join(tokens[1:]) == b" Hello"

    def test_begin_of_text_is_not_doubled(self, load: Load) -> None:
        member, _ = load("gemma3")
        assert member.tokenize_prompt("<bos>x") == member.tokenize_prompt("x")

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ("", "empty"),
            (b"", "empty"),
            (b"caf\xe9 au lait", "0xe9 at position 3"),
            (b"abc\xf0\x9f", "position 3"),
            ("\ud800", "0xed at position 0"),
        ],
    )
    def test_refuses(self, load: Load, prompt: str | bytes, message: str) -> None:
        with pytest.raises(PromptError, match=message):
            load("gpt2")[0].tokenize_prompt(prompt)


class TestFailure:
    """A failed decode forgets everything, so that the next request starts from a clean state."""

    @pytest.mark.parametrize("name", ["gpt2", "gemma3", "mamba", "lfm2"])
    @pytest.mark.parametrize("failure", [-3, KeyboardInterrupt()])
    @pytest.mark.parametrize("done", [False, True])
    def test_recovers(
        self, load: Load, name: str, failure: int | BaseException, done: bool
    ) -> None:
        """Whether llama.cpp had decoded the tokens or not."""
        member, fresh = load(name)
        prompt = member.tokenize_prompt(PROMPT)
        member.begin(prompt)
        reply = ReplyText()
        advance(member, reply, b" there")
        decode = member.context.decode

        def fail(*args: Any, **kwargs: Any) -> int:
            if done:
                decode(*args, **kwargs)
            if isinstance(failure, BaseException):
                raise failure
            return failure

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(member.context, "decode", fail)
            with pytest.raises((DecodeError, KeyboardInterrupt)) as caught:
                advance(member, reply, b" was")
        if isinstance(caught.value, DecodeError):
            assert (caught.value.member, caught.value.code) == (name, -3)
            assert name in str(caught.value)
            assert "-3" in str(caught.value)
        assert member.n_tokens == 0
        advance(member, reply, b" a king")
        check_sync(member, fresh, prompt, reply)


class TestRealModels:
    """Steps of a real pair, checked against the law."""

    @pytest.mark.parametrize(
        "prompt",
        ["The history of bread begins", "def quicksort(items):\n", "Київ — це місто, де"],
        ids=["english", "code", "ukrainian"],
    )
    def test_in_step(self, real: list[Member], prompt: str) -> None:
        fuse = Fuse(real, gate="always")
        prompts = [member.tokenize_prompt(prompt) for member in real]
        reply = ReplyText()
        chunks = fuse.stream(Request(prompt, SamplingParams(temperature=0), max_tokens=32))
        for i, chunk in enumerate(chunks):
            for member, tokens in zip(real, prompts, strict=True):  # they are still before it
                assert list(member.tokens) == target(member, tokens, reply)
                if i % 10 == 9 and not member.stalled:
                    self.check_row(member)
            reply.append(chunk.steps[0].unit)
        assert i > 20

    @staticmethod
    def check_row(member: Member) -> None:
        context = LlamaContext(member.model, n_ctx=member.n_ctx, n_threads=1)
        assert context.decode(member.tokens, 0, outputs=2) == 0
        before = np.ascontiguousarray(context.row(2))
        assert distance(member.row, context.row()) < 0.05
        assert int(np.argmax(member.row)) in np.argsort(-context.row())[:2]
        expected = _core.boundary_probability(member.vocab._core, before, member.tokens[-1])
        assert member.boundary == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("name", ["smol", "gpt2"])
def test_second_turn_of_a_chat(load: Load, name: str) -> None:
    """With a template and without: the turn before is not read again."""
    member, _ = load(name)
    chat_so_far = [{"role": "user", "content": "What is a fjord?"}]
    member.begin(member.tokenize_prompt(chat.render(member.model, chat_so_far).text))
    reply = ReplyText()
    advance(member, reply, b"A long,", b" narrow inlet.")
    held = list(member.tokens)
    chat_so_far += [
        {"role": "assistant", "content": reply.complete.decode()},
        {"role": "user", "content": "Name one."},
    ]
    second = member.tokenize_prompt(chat.render(member.model, chat_so_far).text)
    common = common_prefix(held, second)
    assert common >= len(held) - 2
    assert decoded_by(member, lambda: member.begin(second)) == len(second) - common

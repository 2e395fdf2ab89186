"""The ensemble as a model of lm-evaluation-harness, with the real harness on local tasks."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import reference
from harness_models import (
    BATCH,
    CHAT,
    PROSE,
    Make,
    Models,
    ask,
    load_harness,
    load_pair,
    load_smollm2,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.model import CacheHook
from lockstep import oracle_vocab
from logitfuse import chat
from logitfuse.errors import ConfigError, ContextLengthError, ModelNotFoundError
from logitfuse.harness import LogitfuseLM
from logitfuse.harness.transcript import read_context, split_space, write_chat
from logitfuse.harness.windows import Room, windows
from logitfuse.llama.backend import repacks_safely
from logitfuse.member import Member
from logitfuse.scoring import score_reply
from logitfuse.strategies.base import Request
from numpy.typing import NDArray

BEGUN = {"role": "assistant", "content": "The capital of France is "}
PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is ", "Berlin"),
    ("The capital of France is", " a small town"),
    ("", "The sun rises in the east"),
    (" \n", "The sun"),
    ("Once upon a time", " there was a girl"),
]


class Direct:
    """Log-likelihoods by llama-cpp-python alone: teacher forcing along the canonical tokens."""

    def __init__(self, path: Path) -> None:
        self._llama = llama_cpp.Llama(
            str(path),
            n_ctx=512,
            n_batch=BATCH,
            n_ubatch=BATCH,
            n_threads=1,
            n_threads_batch=1,
            flash_attn=True,
            logits_all=True,
            verbose=False,
        )
        self.close = self._llama.close

    def tokens(self, text: str, **options: bool) -> list[int]:
        return list(self._llama.tokenize(text.encode(), **{"add_bos": False} | options))

    def rows(self, head: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float64]:
        """Logits before each of the tokens behind a head."""
        self._llama.reset()
        self._llama.eval([*head, *tokens])
        return self._llama.scores[len(head) - 1 : len(head) + len(tokens) - 1].astype(np.float64)

    def score(self, head: Sequence[int], tokens: Sequence[int]) -> tuple[float, bool]:
        rows = self.rows(head, tokens)
        listed = rows[np.arange(len(tokens)), tokens]
        nats = float((listed - np.logaddexp.reduce(rows, axis=1)).sum())
        return nats, bool((rows.argmax(axis=1) == tokens).all())

    def continuation(self, opening: int, context: str, text: str) -> tuple[float, bool]:
        """As the harness's own models do it."""
        kept = context.rstrip()
        head = self.tokens(kept, add_bos=True, special=True) if kept else [opening]
        return self.score(head, self.tokens(context[len(kept) :] + text))


@pytest.fixture(scope="module")
def direct() -> Iterator[Callable[[Path], Direct]]:
    """Opens models with llama-cpp-python, without the repacking that crashes builds by GCC 12."""
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def like_ours() -> Any:
        params = defaults()
        params.use_extra_bufts = repacks_safely()
        return params

    opened: list[Direct] = []

    def make(path: Path) -> Direct:
        opened.append(Direct(path))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", like_ours)
        yield make
    for model in opened:
        model.close()


@pytest.fixture(scope="module")
def make(tiny_models: Models) -> Iterator[Make]:
    """Loads a model of the harness by the names of tiny models."""
    made: list[LogitfuseLM] = []

    def load(*names: str, **arguments: Any) -> LogitfuseLM:
        made.append(load_harness(*(tiny_models[name] for name in names), **arguments))
        return made[-1]

    yield load
    for model in made:
        model.ensemble.close()


@pytest.fixture(scope="module")
def pair(tiny_models: Models) -> Iterator[LogitfuseLM]:
    model = load_pair(tiny_models)
    yield model
    model.ensemble.close()


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[LogitfuseLM]:
    model = load_smollm2(smollm2_path)
    yield model
    model.ensemble.close()


@pytest.fixture(scope="module")
def members(pair: LogitfuseLM) -> Sequence[Member]:
    return pair.ensemble.generator.members


class TestOneMember:
    """The numbers of llama.cpp."""

    def test_continuations(
        self, smollm2: LogitfuseLM, smollm2_path: Path, direct: Callable[[Path], Direct]
    ) -> None:
        llama = direct(smollm2_path)
        opening = smollm2.ensemble.generator.members[0].opening
        found = ask(smollm2, "loglikelihood", *PAIRS)
        expected = [llama.continuation(opening, *pair) for pair in PAIRS]
        assert [nats for nats, _ in found] == pytest.approx([n for n, _ in expected], rel=1e-6)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        assert {greedy for _, greedy in found} == {True, False}

    def test_documents(
        self, smollm2: LogitfuseLM, smollm2_path: Path, direct: Callable[[Path], Direct]
    ) -> None:
        llama, text = direct(smollm2_path), PROSE * 3
        opening = smollm2.ensemble.generator.members[0].opening
        found = ask(smollm2, "loglikelihood_rolling", (text,))
        assert found == [pytest.approx(llama.score([opening], llama.tokens(text))[0], rel=1e-6)]

    def test_long_documents(
        self, make: Make, tiny_models: Models, direct: Callable[[Path], Direct]
    ) -> None:
        model, llama, text = make("gpt2", n_ctx=256), direct(tiny_models["gpt2"]), PROSE * 20
        (member,) = model.ensemble.generator.members
        expected = 0.0
        for context, piece in windows(Room([member]), text):
            head = llama.tokens(context) if context else [member.opening]
            expected += llama.score(head, llama.tokens(piece))[0]
        assert ask(model, "loglikelihood_rolling", (text,)) == [pytest.approx(expected, rel=1e-5)]

    @pytest.mark.parametrize("begun", [False, True])
    def test_chats(
        self,
        smollm2: LogitfuseLM,
        smollm2_path: Path,
        direct: Callable[[Path], Direct],
        begun: bool,
    ) -> None:
        llama = direct(smollm2_path)
        messages = [*CHAT, BEGUN] if begun else CHAT
        context = smollm2.apply_chat_template(messages, add_generation_prompt=not begun)
        prompt = chat.render(smollm2.ensemble.generator.members[0].model, CHAT).text
        if begun:  # the space at its end belongs to what follows
            prompt += BEGUN["content"].rstrip()
        head, tokens = (
            llama.tokens(prompt, special=True),
            llama.tokens(" Paris" if begun else "The"),
        )
        ((nats, greedy),) = ask(smollm2, "loglikelihood", (context, "Paris" if begun else "The"))
        assert nats == pytest.approx(llama.score(head, tokens)[0], rel=1e-6)
        assert greedy

    @pytest.mark.parametrize("name", ["gpt2", "llama-spm", "gemma3", "mamba"])
    def test_any_architecture(
        self, make: Make, name: str, tiny_models: Models, direct: Callable[[Path], Direct]
    ) -> None:
        """Random weights believe in control tokens, which are never said: compare without them."""
        model, llama = make(name), direct(tiny_models[name])
        member = model.ensemble.generator.members[0]
        vocab = oracle_vocab(member)
        for context, text in PAIRS:
            kept = context.rstrip()
            head = member.tokenize_prompt(kept) if kept else [member.opening]
            tokens = member.tokenize((context[len(kept) :] + text).encode())
            nats, greedy = 0.0, True
            for row, token in zip(llama.rows(head, tokens), tokens, strict=True):
                logprobs = reference.member_logprobs(row, *vocab)
                nats += logprobs[vocab[0][token]]
                greedy &= max(logprobs, key=logprobs.__getitem__) == vocab[0][token]
            (found,) = ask(model, "loglikelihood", (context, text))
            assert found == (pytest.approx(nats, rel=1e-5), greedy)


class TestRequests:
    def test_answers_are_in_the_order_of_the_requests(self, pair: LogitfuseLM) -> None:
        found = ask(pair, "loglikelihood", *PAIRS, *reversed(PAIRS))
        assert found == [*found[: len(PAIRS)], *reversed(found[: len(PAIRS)])]
        engine = pair.ensemble.generator
        for (context, text), (nats, greedy) in zip(PAIRS, found, strict=False):
            kept = context.rstrip()
            score = score_reply(engine, Request(kept), context[len(kept) :] + text)
            assert (nats, greedy) == (score.nats, score.greedy)

    def test_a_common_context_is_read_once(self, make: Make) -> None:
        model = make("smol", n_ctx=512)
        member = model.ensemble.generator.members[0]
        contexts = [PROSE * 4 + str(i) for i in range(2)]
        before = member.stats.decoded_tokens
        ask(model, "loglikelihood", *((contexts[i % 2], f" {i}") for i in range(10)))
        assert member.stats.decoded_tokens - before < 2 * len(member.tokenize_prompt(contexts[0]))

    def test_the_order_of_options_does_not_matter(self, pair: LogitfuseLM) -> None:
        asked = [(PROSE + "It is made", option) for option in (" of wood", " of stone", " by hand")]
        expected = ask(pair, "loglikelihood", *asked)
        for first in range(3):
            pair.ensemble.reset()
            order = [first, *(i for i in range(3) if i != first)]
            found = ask(pair, "loglikelihood", *(asked[i] for i in order))
            assert found == [expected[i] for i in order]

    def test_nothing_is_certain(self, pair: LogitfuseLM) -> None:
        assert ask(pair, "loglikelihood", ("Once", "")) == [(0.0, True)]
        assert ask(pair, "loglikelihood_rolling", ("",)) == [0.0]
        assert ask(pair, "loglikelihood") == []

    def test_long_contexts_lose_their_beginning(self, pair: LogitfuseLM) -> None:
        long = PROSE * 30
        ((nats, _),) = ask(pair, "loglikelihood", (long, "It stands."))
        assert math.isfinite(nats)
        settings = {"until": [], "max_gen_toks": 4}
        (reply,) = ask(pair, "generate_until", (long, settings))
        assert reply
        with pytest.raises(ContextLengthError):
            ask(pair, "loglikelihood", ("Once", long))
        too_long = pair.apply_chat_template([{"role": "user", "content": long}])
        with pytest.raises(ContextLengthError):
            ask(pair, "generate_until", (too_long, settings))

    def test_answers_are_cached_one_by_one(
        self, pair: LogitfuseLM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cached = []

        class Hook(CacheHook):  # type: ignore[misc]
            def add_partial(self, attr: str, req: Any, res: Any) -> None:
                cached.append((attr, req, res))

        monkeypatch.setattr(pair, "cache_hook", Hook(None))
        found = ask(pair, "loglikelihood", *PAIRS[:2])
        assert sorted(cached) == sorted(
            ("loglikelihood", pair, answer) for pair, answer in zip(PAIRS, found, strict=False)
        )


class TestReplies:
    def test_greedy_as_the_ensemble(self, smollm2: LogitfuseLM) -> None:
        expected: Any = smollm2.ensemble("The capital of France is", max_tokens=12, temperature=0)
        text = expected["choices"][0]["text"]
        settings = {"until": ["\n\n", "."], "max_gen_toks": 12}
        asked = [("The capital of France is", settings | more) for more in ({}, {"until": []})]
        stopped, whole = ask(smollm2, "generate_until", *asked)
        assert whole == text
        assert stopped == text.partition(".")[0] != text
        assert stopped[0] == " "  # nothing is stripped

    def test_chats(self, smollm2: LogitfuseLM) -> None:
        settings = {"until": ["\n"], "max_gen_toks": 12}
        expected: Any = smollm2.ensemble.create_chat_completion(CHAT, max_tokens=12, temperature=0)
        context = smollm2.apply_chat_template(CHAT)
        start = BEGUN | {"content": BEGUN["content"].rstrip()}
        begun = smollm2.apply_chat_template([*CHAT, start], add_generation_prompt=False)
        found = ask(smollm2, "generate_until", (context, settings), (begun, settings))
        assert found[0] == expected["choices"][0]["message"]["content"].partition("\n")[0]
        assert found[1].startswith(" Paris")

    def test_samples_follow_the_seed_of_the_harness(self, pair: LogitfuseLM) -> None:
        settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8, "until": []}
        runs = []
        for seed in (1, 1, 2):
            random.seed(seed)
            runs.append(ask(pair, "generate_until", *[("Once upon a time", settings)] * 3))
        assert runs[0] == runs[1] != runs[2]
        assert len(set(runs[0])) == 3


class TestModels:
    def test_from_arguments(self, make: Make, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError):
            LogitfuseLM(model=str(tmp_path / "none.gguf"))
        model = make("gpt2")
        again = LogitfuseLM(ensemble=model.ensemble, batch_size=8, device="cuda:0")
        assert again.ensemble is model.ensemble
        with pytest.raises(ConfigError, match="n_ctx"):
            LogitfuseLM(ensemble=model.ensemble, n_ctx=9)
        assert (model.rank, model.world_size) == (0, 1)
        assert model.get_model_info()["member_names"] == ["gpt2"]
        json.dumps(model.get_model_info())


class TestChats:
    @given(
        st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), min_size=1),
        st.booleans(),
    )
    def test_there_and_back(self, messages: list[dict[str, str]], begun: bool) -> None:
        found = read_context(write_chat(messages, begun=begun))
        assert isinstance(found, list)
        assert [{k: m[k] for k in ("role", "content")} for m in found] == messages
        assert [bool(m.get("prefix")) for m in found] == [False] * (len(found) - 1) + [begun]

    @given(st.text())
    def test_plain(self, text: str) -> None:
        assert read_context(text) == text
        kept, space = split_space(text)
        assert f"{kept}{space}" == text
        assert not space.strip()

    def test_what_tasks_add_begins_the_reply(self) -> None:
        added = {"role": "assistant", "content": " A", "prefix": True}
        assert read_context(write_chat(CHAT, begun=False) + " A") == [*CHAT, added]
        begun = BEGUN | {"content": BEGUN["content"] + " A", "prefix": True}
        assert read_context(write_chat([*CHAT, BEGUN], begun=True) + " A") == [*CHAT, begun]

    def test_names(self, pair: LogitfuseLM) -> None:
        assert pair.tokenizer_name == "logitfuse"
        assert pair.chat_template() is None
        assert "smol: {%" in str(pair.chat_template(True))
        with pytest.raises(ConfigError, match="own chat template"):
            pair.chat_template("alpaca")


class TestWindows:
    @settings(max_examples=25)
    @given(st.data())
    def test_every_byte_once(self, members: Sequence[Member], data: st.DataObject) -> None:
        words = st.sampled_from(["harbour", " ", "  ", "\n", "стіна", "城", "(x+1)", "e" * 40])
        text = "".join(data.draw(st.lists(words, max_size=40))) * data.draw(st.integers(1, 30))
        pieces = list(windows(Room(members), text))
        assert "".join(piece for _, piece in pieces) == text
        at = 0
        for context, piece in pieces:
            assert piece
            assert text[:at].endswith(context)
            for member in members:
                head = member.tokenize_prompt(context) if context else [member.opening]
                assert len(head) + len(member.tokenize(piece.encode())) < member.n_ctx
            at += len(piece)

    def test_contexts(self, members: Sequence[Member]) -> None:
        text = PROSE * 30
        first, *middle, last = windows(Room(members), text)
        assert first[0] == ""
        assert all(context == context.strip() and 0 < len(context) <= 32 for context, _ in middle)
        assert all(piece[0] == " " for _, piece in [*middle, last])
        assert not Room(members).holds(text[-len("".join(last)) - 5 :])  # as much as fits

    def test_no_room(self, members: Sequence[Member]) -> None:
        with pytest.raises(ContextLengthError):
            Room(members).beginning_of("x", PROSE * 30)

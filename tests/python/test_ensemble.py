"""`Ensemble`: answers, chats, symbols, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ensembles import CHAT, GREEDY, PROMPT, text
from logitfuse import Ensemble, LogitfuseError
from logitfuse.cache import MemberStats
from logitfuse.errors import ConfigError, ContextLengthError, FusionError, PromptError
from logitfuse.llama import LlamaModel
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.fuse import Fuse

#: Of log-probabilities.
KEYS = ("tokens", "text_offset", "token_logprobs", "top_logprobs")


@pytest.fixture(scope="module")
def one(tiny_models: Mapping[str, Path]) -> Iterator[Ensemble]:
    with Ensemble(tiny_models["smol"], n_ctx=512, n_threads=1) as ensemble:
        yield ensemble


@pytest.fixture(scope="module", params=["auto", "fuse"])
def pair(request: pytest.FixtureRequest, tiny_models: Mapping[str, Path]) -> Iterator[Ensemble]:
    """Members with different tokenizers: byte by byte by default, or token by token."""
    paths = [tiny_models["smol"], tiny_models["gemma3"]]
    with Ensemble(paths, n_threads=1, strategy=request.param) as ensemble:
        assert isinstance(ensemble.generator, Bytes if request.param == "auto" else Fuse)
        yield ensemble


@pytest.fixture(scope="module")
def tokens(tiny_models: Mapping[str, Path]) -> Iterator[Ensemble]:
    """The same members, token by token."""
    paths = [tiny_models["smol"], tiny_models["gemma3"]]
    with Ensemble(paths, n_threads=1, strategy="fuse") as ensemble:
        yield ensemble


def streamed(chunks: Any) -> str:
    """The text of a stream, of either kind."""
    choices = [chunk["choices"][0] for chunk in chunks]
    return "".join(
        choice["text"] if "text" in choice else choice["delta"].get("content", "")
        for choice in choices
    )


class TestAnswers:
    def test_streaming_gives_the_same_text(self, pair: Ensemble) -> None:
        wanted: dict[str, Any] = {"max_tokens": 24, "temperature": 1.2, "seed": 7}
        assert streamed(pair(PROMPT, stream=True, **wanted)) == text(pair(PROMPT, **wanted))
        assert streamed(pair(PROMPT, stream=True, echo=True, **wanted)) == text(
            pair(PROMPT, echo=True, **wanted)
        )
        assert streamed(pair.create_chat_completion(CHAT, stream=True, **wanted)) == text(
            pair.create_chat_completion(CHAT, **wanted)
        )

    def test_seeds(self, tiny_models: Mapping[str, Path]) -> None:
        def answers(seed: int | None, *own: int | None) -> list[str]:
            with Ensemble(tiny_models["smol"], n_threads=1, seed=seed) as ensemble:
                return [text(ensemble(PROMPT, max_tokens=8, seed=one)) for one in own]

        assert answers(3, None, None) == answers(None, 3, 3) == answers(4, 3, 3)
        assert answers(3, None) != answers(4, None)
        assert len(set(answers(-1, None, None, None))) > 1  # llama.cpp: a random one

    def test_echo(self, pair: Ensemble) -> None:
        plain, echoed = pair(PROMPT, **GREEDY), pair(PROMPT, echo=True, **GREEDY)
        assert text(echoed) == PROMPT + text(plain)
        assert echoed["usage"] == plain["usage"]

    def test_logprobs_are_at_their_text(self, pair: Ensemble) -> None:
        answer = pair(PROMPT, logprobs=2, **GREEDY)
        listed = answer["choices"][0]["logprobs"]
        assert len(listed["tokens"]) == answer["usage"]["completion_tokens"] == 12
        for token, offset in zip(listed["tokens"], listed["text_offset"], strict=True):
            assert (PROMPT + text(answer))[offset:].startswith(token)
        assert all(p <= 0 for p in listed["token_logprobs"])

    @pytest.mark.parametrize("prompt", [PROMPT, "naïve 你好 🤖 fox"])
    def test_echo_with_logprobs(self, pair: Ensemble, prompt: str) -> None:
        symbols = pair.tokenize(prompt.encode())
        plain = pair(prompt, logprobs=2, **GREEDY)["choices"][0]["logprobs"]
        for asked in (prompt, symbols):
            answer = pair(asked, echo=True, logprobs=2, **GREEDY)
            listed = answer["choices"][0]["logprobs"]
            n = len(symbols)
            assert len(listed["tokens"]) == n + 12
            assert answer["usage"]["completion_tokens"] == 12
            assert listed["token_logprobs"][0] is listed["top_logprobs"][0] is None
            for token, offset, logprob, top in list(
                zip(*(listed[key] for key in KEYS), strict=True)
            )[1:]:
                assert text(answer)[offset:].startswith(token.rstrip("\ufffd"))
                assert logprob <= 0
                assert top[token] >= logprob
                assert len(top) <= 3
            if asked is prompt:
                for key in ("tokens", "text_offset", "token_logprobs"):
                    assert listed[key][n:] == pytest.approx(plain[key], abs=0.05)
            chunks = list(pair(asked, echo=True, logprobs=2, stream=True, **GREEDY))
            pieces = [chunk["choices"][0]["logprobs"] for chunk in chunks]
            assert pieces[0]["tokens"] == listed["tokens"][:n]
            for key in listed:
                joined = [value for piece in pieces if piece for value in piece[key]]
                assert str(joined)[:200] == str(listed[key])[:200]

    def test_the_end_is_a_token_behind_a_prompt(self, pair: Ensemble) -> None:
        """So clients know that all but the last one are the prompt's."""
        end = {"logit_bias": {pair.token_eos(): 100.0}, "max_tokens": 1, "temperature": 0.0}
        n = len(pair.tokenize(PROMPT.encode()))
        answer = pair(PROMPT, echo=True, logprobs=1, **end)
        assert (text(answer), answer["usage"]["completion_tokens"]) == (PROMPT, 0)
        assert len(answer["choices"][0]["logprobs"]["tokens"]) == n + 1
        assert answer["choices"][0]["logprobs"]["tokens"][-1] == ""
        streams = list(pair(PROMPT, echo=True, logprobs=1, stream=True, **end))
        tokens = [c["choices"][0]["logprobs"] for c in streams if c["choices"][0]["logprobs"]]
        assert sum(len(piece["tokens"]) for piece in tokens) == n + 1
        assert pair(PROMPT, logprobs=1, **end)["choices"][0]["logprobs"]["tokens"] == []

    def test_what_was_said_is_always_listed(self, tokens: Ensemble) -> None:
        for n in (0, 2):
            answer = tokens(PROMPT, logprobs=n, temperature=1.5, seed=1, max_tokens=12)
            listed = answer["choices"][0]["logprobs"]
            for token, logprob, top in zip(
                listed["tokens"], listed["token_logprobs"], listed["top_logprobs"], strict=True
            ):
                assert top[token] >= logprob
                assert len(top) in (n, n + 1)

    def test_usage(self, pair: Ensemble) -> None:
        usage = pair(PROMPT, **GREEDY)["usage"]
        prompt = len(pair.generator.members[0].tokenize_prompt(PROMPT))
        assert usage == {
            "prompt_tokens": prompt,
            "completion_tokens": 12,
            "total_tokens": prompt + 12,
        }

    def test_stop(self, pair: Ensemble) -> None:
        whole = pair(PROMPT, **GREEDY)
        word = text(whole)[3:6]
        before = text(whole)[: text(whole).index(word)]
        assert whole["choices"][0]["finish_reason"] == "length"
        for stop in (word, [word], ("never said", word)):
            answer = pair(PROMPT, stop=stop, **GREEDY)
            assert text(answer) == before
            assert answer["choices"][0]["finish_reason"] == "stop"
            assert streamed(pair(PROMPT, stop=stop, stream=True, **GREEDY)) == before
        for stop in (None, [], "", "\udcff"):  # a lone surrogate: no text, as from a shell
            assert text(pair(PROMPT, stop=stop, **GREEDY)) == text(whole)

    def test_no_limit_is_the_end_or_the_context(self, pair: Ensemble) -> None:
        for limit in (None, 0, -1):
            answer = pair(PROMPT, max_tokens=limit, temperature=0.0)
            assert answer["usage"]["completion_tokens"] > 16
            assert answer["choices"][0]["finish_reason"] in ("stop", "length")

    def test_logit_bias(self, pair: Ensemble) -> None:
        best = next(iter(pair(PROMPT, logprobs=1, **GREEDY)["choices"][0]["logprobs"]["tokens"]))
        assert not text(pair(PROMPT, logit_bias={best: -np.inf}, **GREEDY)).startswith(best)

    def test_logit_bias_of_a_token(self, tokens: Ensemble) -> None:
        assert text(tokens(PROMPT, logit_bias={" the": 100.0}, **GREEDY)) == " the" * 12
        (symbol,) = tokens.tokenize(b" the", add_bos=False)
        assert text(tokens(PROMPT, logit_bias={symbol: 100.0}, **GREEDY)) == " the" * 12

    def test_an_abandoned_stream_leaves_nothing_behind(self, pair: Ensemble) -> None:
        expected = text(pair(PROMPT, **GREEDY))
        with closing(pair("Something else", stream=True, **GREEDY)) as chunks:
            next(chunks)
        assert text(pair(PROMPT, **GREEDY)) == expected

    def test_weights(self, tiny_models: Mapping[str, Path]) -> None:
        paths = [tiny_models["smol"], tiny_models["gemma3"]]
        for weights, alone in (([1, 0], paths[0]), ([0, 3], paths[1])):
            with (
                Ensemble(paths, weights=weights, n_threads=1) as both,
                Ensemble(alone, n_threads=1) as single,
            ):
                answer = both(PROMPT, logprobs=1, **GREEDY)
                assert text(answer) == text(single(PROMPT, **GREEDY))

    def test_paths_alone_or_in_a_sequence(self, tiny_models: Mapping[str, Path]) -> None:
        path = tiny_models["smol"]
        answers = set()
        for paths in (path, str(path), [path], (str(path),)):
            with Ensemble(paths, n_threads=1) as ensemble:
                answers.add(text(ensemble(PROMPT, **GREEDY)))
        assert len(answers) == 1


class TestChat:
    def test_the_next_turn_reuses_what_was_read(self, pair: Ensemble) -> None:
        pair.reset()
        first = pair.create_chat_completion(CHAT, **GREEDY)
        known = [member.n_tokens for member in pair.generator.members]
        for member in pair.generator.members:
            member.stats = MemberStats()
        turns = [
            *CHAT,
            {"role": "assistant", "content": text(first)},
            {"role": "user", "content": "Go on"},
        ]
        second = pair.create_chat_completion(turns, **GREEDY)
        for member, tokens in zip(pair.generator.members, known, strict=True):
            # All but the template's end of the turn, where a token may be cut otherwise.
            assert member.stats.reused_tokens >= tokens - 4
            fresh = member.n_tokens - member.stats.reused_tokens
            if isinstance(pair.generator, Fuse):  # other tokenisations are decoded besides
                assert member.stats.decoded_tokens <= fresh + 2 * member.stats.rollbacks
        pair.reset()
        assert text(pair.create_chat_completion(turns, **GREEDY)) == text(second)

    def test_every_member_reads_its_own_template(self, pair: Ensemble) -> None:
        pair.create_chat_completion(CHAT, **GREEDY)
        templated, plain = pair.generator.members
        assert b"<|im_start|>user\nHello there<|im_end|>" in spelled(templated.tokens, templated)
        assert b"User:\nHello there\n\nAssistant:\n" in spelled(plain.tokens, plain)


def spelled(tokens: tuple[int, ...], member: Any) -> bytes:
    """Tokens as text, special ones by their name."""
    model = member.model
    names = {t: n.encode() for n in ("<|im_start|>", "<|im_end|>") for t in tokenized(model, n)}
    return b"".join(names.get(token) or member.vocab.token_bytes(token) for token in tokens)


def tokenized(model: LlamaModel, name: str) -> list[int]:
    """The one token that a special text is, or nothing."""
    tokens = model.tokenize(name.encode(), parse_special=True)
    return tokens if len(tokens) == 1 else []


class TestSymbols:
    def test_generate_ends_with_the_end(self, tokens: Ensemble) -> None:
        prompt = tokens.tokenize(PROMPT.encode())
        symbols = next(
            found
            for seed in range(10, 20)
            if (found := list(tokens.generate(prompt, seed=seed)))[-1] == tokens.token_eos()
        )
        assert tokens.token_eos() not in symbols[:-1]
        assert all(0 <= symbol < tokens.n_vocab() for symbol in symbols)

    def test_generate_says_what_a_completion_says(self, tokens: Ensemble) -> None:
        symbols = tokens.generate(tokens.tokenize(PROMPT.encode()), temp=0.0)
        said = tokens.detokenize([next(symbols) for _ in range(12)])
        assert said.decode() == text(tokens(PROMPT, **GREEDY))

    def test_units_of_bytes_may_be_no_symbols(self, pair: Ensemble) -> None:
        """What is generated is what a completion says, up to the first that is no symbol."""
        prompt = pair.tokenize(PROMPT.encode())
        symbols: list[int] = []
        if isinstance(pair.generator, Bytes):
            with pytest.raises(ConfigError, match="strategy='fuse'") as caught:
                symbols.extend(pair.generate(prompt, temp=0.0))
            assert caught.value.key == "strategy"
        else:
            symbols.extend(pair.generate(prompt, temp=0.0))
        assert text(pair(prompt, temperature=0.0, max_tokens=None)).startswith(
            pair.detokenize([s for s in symbols if s != pair.token_eos()]).decode()
        )

    def test_symbols_are_a_prompt(self, tokens: Ensemble, one: Ensemble) -> None:
        for ensemble in (tokens, one):
            symbols = ensemble.tokenize(PROMPT.encode())
            assert ensemble.detokenize(symbols) == PROMPT.encode()
            assert text(ensemble(symbols, echo=True, **GREEDY)) == text(
                ensemble(PROMPT, echo=True, **GREEDY)
            )

    def test_different_vocabularies_share_no_special_tokens(self, pair: Ensemble) -> None:
        assert pair.token_bos() == -1
        with pytest.raises(PromptError, match="chat messages"):
            pair.tokenize(b"<bos>", special=True)

    def test_sizes(self, pair: Ensemble) -> None:
        smol, gemma = pair.generator.members
        assert pair.n_vocab() == len(pair.generator.alignment)
        assert max(len(smol.vocab), len(gemma.vocab)) < pair.n_vocab()
        assert pair.n_ctx() == min(smol.n_ctx, gemma.n_ctx)

    @pytest.mark.parametrize("symbol", [-1, 10**9])
    def test_unknown_symbols(self, pair: Ensemble, one: Ensemble, symbol: int) -> None:
        for ensemble in (pair, one):
            with pytest.raises(PromptError, match=str(symbol)):
                ensemble([symbol])
            with pytest.raises(PromptError, match=str(symbol)):
                ensemble.detokenize([symbol])


class TestRefusals:
    def test_the_prompt_does_not_fit(self, tiny_models: Mapping[str, Path]) -> None:
        paths = [tiny_models["smol"], tiny_models["gemma3"]]
        with Ensemble(paths, n_ctx=[512, 256], n_threads=1) as ensemble:
            assert ensemble.n_ctx() == 256
            with pytest.raises(ContextLengthError, match="n_ctx=256") as caught:
                ensemble("word " * 300)
            assert caught.value.member == "gemma3"
            assert caught.value.n_ctx == 256 < caught.value.n_tokens
            assert text(ensemble(PROMPT, **GREEDY))  # it goes on

    @pytest.mark.parametrize("prompt", ["", [], "\udcff"])
    def test_prompts(self, pair: Ensemble, prompt: Any) -> None:
        with pytest.raises(PromptError):
            pair(prompt)

    @pytest.mark.parametrize(
        "options",
        [{"temperature": float("nan")}, {"top_p": 2.0}, {"seed": -2}, {"repeat_penalty": 0.0}],
    )
    def test_sampling(self, pair: Ensemble, options: dict[str, float]) -> None:
        with pytest.raises(ConfigError) as caught:
            pair(PROMPT, **options)
        assert caught.value.key == next(iter(options))

    @pytest.mark.parametrize("bias", [{10**9: 1.0}, {"no single token": 1.0}, {"\udcff": 1.0}])
    def test_bias(self, pair: Ensemble, bias: dict[Any, float]) -> None:
        with pytest.raises(FusionError, match="bias"):
            pair(PROMPT, logit_bias=bias)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"weights": [1, 2, 3]}, ConfigError, "2 models need as many weights, not 3"),
            ({"weights": [0, 0]}, FusionError, "sum above 0"),
            ({"weights": [1, -1]}, FusionError, "weight of member 1 must be .* >= 0"),
            ({"weights": [1, np.nan]}, ConfigError, "member.1.weight"),
            ({"n_ctx": [256]}, ConfigError, "n_ctx"),
            ({"n_threads": [1, 0]}, ConfigError, "member.1.n_threads"),
            ({"pool": "geometric"}, ConfigError, "log-linear"),
            ({"gate": "open"}, ConfigError, "boundary"),
            ({"floor": 1.0}, ConfigError, "floor"),
        ],
    )
    def test_construction(
        self,
        tiny_models: Mapping[str, Path],
        options: dict[str, Any],
        error: type[Exception],
        message: str,
    ) -> None:
        with pytest.raises(error, match=message):
            Ensemble([tiny_models["smol"], tiny_models["gemma3"]], **options)

    def test_no_models(self) -> None:
        with pytest.raises(ConfigError, match="member"):
            Ensemble([])


class TestLifetime:
    def test_closed(self, tiny_models: Mapping[str, Path]) -> None:
        with Ensemble(tiny_models["smol"], n_threads=1) as ensemble:
            ensemble(PROMPT, **GREEDY)
        ensemble.close()  # a second time
        assert ensemble.stats.steps == 12
        assert "smol" in repr(ensemble)
        for use in (lambda: ensemble(PROMPT), lambda: ensemble.tokenize(b"x"), ensemble.reset):
            with pytest.raises(LogitfuseError, match="closed"):
                use()

    def test_reset_forgets_the_prompts(self, one: Ensemble) -> None:
        (member,) = one.generator.members
        for reset, reused in ((False, True), (True, False)):
            one(PROMPT, **GREEDY)
            before = member.stats.reused_tokens
            if reset:
                one.reset()
            one(PROMPT, **GREEDY)
            assert (member.stats.reused_tokens > before) == reused

    def test_threads_are_divided_among_the_running(
        self, tiny_models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("logitfuse.member.cores", lambda: 8)
        paths = [tiny_models["smol"], tiny_models["gemma3"]]
        for options, expected in (
            ({}, [4, 4]),
            ({"weights": [1, 0]}, [8, 8]),
            ({"n_threads": 3}, [3, 3]),
            ({"n_threads": [1, 2]}, [1, 2]),
        ):
            with Ensemble(paths, **options) as ensemble:
                members = ensemble.generator.members
                assert [member.context.n_threads for member in members] == expected

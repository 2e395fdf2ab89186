"""`Ensemble` quacks like `llama_cpp.Llama`: same words, same dictionaries, alone the same text."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import reference
from ensembles import CHAT, GREEDY, PROMPT, text
from lockstep import oracle_vocab
from logitfuse import Ensemble, TokenKind
from logitfuse.llama import LlamaModel
from logitfuse.llama.backend import repacks_safely

GENERATORS = ["gpt2", "llama-spm", "smol", "qwen2", "gemma3", "mamba", "lfm2"]
#: llama-cpp-python's parameters that mean nothing here, or not yet.
ABSENT = {
    *("suffix", "tfs_z", "mirostat_mode", "mirostat_tau", "mirostat_eta"),
    *("logits_processor", "stopping_criteria", "penalize_nl", "reset"),
    *("functions", "function_call", "tools", "tool_choice"),
    *("prev_tokens", "special"),
}
SHARED_METHODS = (
    *("create_completion", "__call__", "create_chat_completion", "generate", "tokenize"),
    *("detokenize", "n_vocab", "n_ctx", "token_eos", "token_bos", "reset", "close"),
)
Load = Callable[..., llama_cpp.Llama]


@pytest.fixture
def load_llama(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Load `llama_cpp.Llama` as a member is loaded.

    llama-cpp-python always lets llama.cpp repack weights, which crashes builds by GCC 12 on CPUs
    with AMX; `LlamaModel` knows better, so the other side of the comparison is given its choice.
    """
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def like_ours() -> Any:
        params = defaults()
        params.use_extra_bufts = repacks_safely()
        return params

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", like_ours)
    loaded = []

    def load(path: Path, **options: Any) -> llama_cpp.Llama:
        settings = {"n_ctx": 512, "n_batch": 512, "n_threads": 1, "n_threads_batch": 1}
        loaded.append(
            llama_cpp.Llama(str(path), flash_attn=True, verbose=False, **settings | options)
        )
        return loaded[-1]

    yield load
    for model in loaded:
        model.close()


@pytest.fixture(scope="module")
def one(tiny_models: Mapping[str, Path]) -> Iterator[Ensemble]:
    with Ensemble(tiny_models["smol"], n_ctx=512, n_threads=1) as ensemble:
        yield ensemble


def keys(value: Any, path: str = "") -> set[str]:
    """The dotted paths of all keys."""
    if isinstance(value, Mapping):
        return {f"{path}.{key}" for key in value}.union(
            *(keys(item, f"{path}.{key}") for key, item in value.items())
        )
    if isinstance(value, list):
        return set().union(*(keys(item, f"{path}[]") for item in value))
    return set()


def plain_text_only(ensemble: Ensemble) -> dict[int, float]:
    """A bias that forbids what only random weights would say.

    Where a model's own tokens do not spell text, an ensemble differs on purpose: it never breaks a
    character, sums tokens of equal bytes, and leaves control tokens out.
    """
    vocab = ensemble.generator.members[0].vocab
    units = [vocab.token_bytes(token) for token in range(len(vocab))]
    count = Counter(units)
    return {
        token: -np.inf
        for token, unit in enumerate(units)
        if vocab.kinds[token] != TokenKind.TEXT
        or count[unit] > 1
        or unit.decode(errors="ignore").encode() != unit
    }


class TestSameAsLlama:
    @pytest.mark.parametrize("name", GENERATORS)
    def test_one_member_says_what_the_model_says(
        self, tiny_models: Mapping[str, Path], load_llama: Load, name: str
    ) -> None:
        llama = load_llama(tiny_models[name])
        with Ensemble(tiny_models[name], n_ctx=512, n_threads=1) as ensemble:
            wanted = {"temperature": 0.0, "max_tokens": 32, "logit_bias": plain_text_only(ensemble)}
            for prompt in (PROMPT, "def f(x):\n    return", "Їжак 🙂 12345"):
                expected, answer = llama(prompt, **wanted), ensemble(prompt, **wanted)
                assert text(answer) == text(expected)
                assert answer["usage"] == expected["usage"]

    @pytest.mark.parametrize("name", ["smollm2_path", "gemma3_path"])
    def test_a_real_model_alone(
        self, request: pytest.FixtureRequest, load_llama: Load, name: str
    ) -> None:
        path = request.getfixturevalue(name)
        llama = load_llama(path)
        with Ensemble(path, n_ctx=512, n_threads=1) as ensemble:
            for prompt in ("The three largest cities of France are", "# Sort a list\ndef sort("):
                expected = llama(prompt, temperature=0.0, max_tokens=32)
                assert text(ensemble(prompt, temperature=0.0, max_tokens=32)) == text(expected)
            if LlamaModel(path, vocab_only=True).chat_template is not None:
                question = [{"role": "user", "content": "Why is the sky blue?"}]
                wanted = {"messages": question, "temperature": 0.0, "max_tokens": 32}
                answer = ensemble.create_chat_completion(**wanted)
                expected = llama.create_chat_completion(**wanted)
                assert text(answer) == text(expected)
                assert answer["usage"] == expected["usage"]

    @pytest.mark.parametrize("method", SHARED_METHODS)
    def test_same_parameters_and_defaults(self, method: str) -> None:
        theirs = inspect.signature(getattr(llama_cpp.Llama, method)).parameters
        ours = inspect.signature(getattr(Ensemble, method)).parameters
        extra = {"seed"} if method == "generate" else set()
        assert set(theirs) - set(ours) <= ABSENT
        assert set(ours) - set(theirs) == extra
        shared = [name for name in theirs if name in ours]
        assert [name for name in ours if name in theirs] == shared
        for name in shared:
            default = theirs[name].default
            assert ours[name].default == (() if default == [] else default), name

    @pytest.mark.parametrize("logprobs", [None, 1])
    @pytest.mark.parametrize("stream", [False, True])
    def test_same_keys_of_a_completion(
        self,
        one: Ensemble,
        tiny_models: Mapping[str, Path],
        load_llama: Load,
        logprobs: int | None,
        stream: bool,
    ) -> None:
        llama = load_llama(tiny_models["smol"], logits_all=True)
        wanted = GREEDY | {"prompt": PROMPT, "logprobs": logprobs, "stream": stream}
        ours, theirs = one.create_completion(**wanted), llama.create_completion(**wanted)
        if stream:
            ours, theirs = list(ours), list(theirs)
            assert [keys(chunk) for chunk in ours] == [keys(chunk) for chunk in theirs]
        else:
            assert keys(ours) == keys(theirs)

    @pytest.mark.parametrize("stream", [False, True])
    def test_same_keys_of_a_chat(
        self, one: Ensemble, tiny_models: Mapping[str, Path], load_llama: Load, stream: bool
    ) -> None:
        llama = load_llama(tiny_models["smol"])
        wanted = GREEDY | {"messages": CHAT, "stream": stream}
        ours, theirs = one.create_chat_completion(**wanted), llama.create_chat_completion(**wanted)
        if stream:
            ours, theirs = list(ours), list(theirs)
            assert [keys(chunk) for chunk in ours] == [keys(chunk) for chunk in theirs]
        else:
            assert keys(ours) == keys(theirs)
            assert text(ours) == text(theirs)

    def test_same_logprobs(
        self, one: Ensemble, tiny_models: Mapping[str, Path], load_llama: Load
    ) -> None:
        llama = load_llama(tiny_models["smol"], logits_all=True)
        ours, theirs = (
            model.create_completion(PROMPT, logprobs=3, **GREEDY)["choices"][0]["logprobs"]
            for model in (one, llama)
        )
        assert ours["tokens"] == theirs["tokens"]
        assert ours["text_offset"] == theirs["text_offset"]
        # All logits of a batch are not computed as the last ones alone are.
        np.testing.assert_allclose(ours["token_logprobs"], theirs["token_logprobs"], atol=0.1)
        assert all(len(top) == 3 for top in ours["top_logprobs"])

    @pytest.mark.parametrize("name", GENERATORS)
    @pytest.mark.parametrize("prompt", [PROMPT, "Їжак 🙂 12345 naïve\n\nfoxes"])
    def test_same_logprobs_of_a_prompt(
        self, tiny_models: Mapping[str, Path], load_llama: Load, name: str, prompt: str
    ) -> None:
        """Of the model's rows: those of its answer are off by one where there is no BOS.

        As always, tokens of equal bytes are summed, and control tokens left out.
        """
        llama = load_llama(tiny_models[name], logits_all=True)
        wanted = {"echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0.0}
        with Ensemble(tiny_models[name], n_ctx=512, n_threads=1) as ensemble:
            member = ensemble.generator.members[0]
            tokens = member.tokenize_prompt(prompt)
            ours = ensemble(prompt, **wanted)["choices"][0]
            vocab = oracle_vocab(member)
        theirs = llama(prompt, **wanted)["choices"][0]
        n = len(tokens) - member.model.add_bos
        assert len(theirs["logprobs"]["tokens"][:n]) == len(ours["logprobs"]["tokens"][:n]) == n
        if prompt == PROMPT:  # of pieces of characters, llama-cpp-python shows nothing
            first, *others = theirs["logprobs"]["tokens"][:n]
            assert ours["logprobs"]["tokens"][:n] == [first.removeprefix(" "), *others]
        llama.reset()
        llama.eval(tokens)
        expected = [
            reference.member_logprobs(row, *vocab)[member.vocab.token_bytes(token)]
            for row, token in zip(llama.scores[: len(tokens)], tokens[1:], strict=False)
        ]
        found = ours["logprobs"]["token_logprobs"][:n]
        assert found.count(None) <= 3  # a space, and the pieces of a character
        known = [p for p in found if p is not None]
        np.testing.assert_allclose(known, expected[-len(known) :], atol=5e-4)

    def test_same_keys_of_chat_logprobs(
        self, one: Ensemble, tiny_models: Mapping[str, Path], load_llama: Load
    ) -> None:
        llama = load_llama(tiny_models["smol"], logits_all=True)
        wanted = GREEDY | {"messages": CHAT, "logprobs": True, "top_logprobs": 2}
        answer = one.create_chat_completion(**wanted)
        assert keys(answer) == keys(llama.create_chat_completion(**wanted))
        for entry in answer["choices"][0]["logprobs"]["content"]:
            assert bytes(entry["bytes"]).decode() == entry["token"]
            assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]  # greedy

    def test_same_tokens(
        self, one: Ensemble, tiny_models: Mapping[str, Path], load_llama: Load
    ) -> None:
        llama = load_llama(tiny_models["smol"])
        marked = b"<|im_start|>user\nHello"
        for options in ({}, {"add_bos": False}, {"special": True}):
            assert one.tokenize(marked, **options) == llama.tokenize(marked, **options)
        tokens = one.tokenize(PROMPT.encode())
        symbols = one.generate(tokens, temp=0.0)
        expected = llama.generate(tokens, temp=0.0)
        assert [next(symbols) for _ in range(12)] == [next(expected) for _ in range(12)]
        assert one.n_vocab() == llama.n_vocab()
        assert one.n_ctx() == llama.n_ctx()
        assert one.token_bos() == llama.token_bos()

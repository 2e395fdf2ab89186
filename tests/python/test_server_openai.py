"""The official client, unmodified, against a running server."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest
from logitfuse import Ensemble
from logitfuse.batching import Batcher
from openai import OpenAI
from servers import HELLO, PROMPT, Served, ensembles, serving

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def served(tiny_models: Mapping[str, Path]) -> Iterator[Served]:
    configs = ensembles(tiny_models)
    with serving(lambda: Batcher(configs, slots=4, queue=8)) as started:
        yield started


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def ensemble(tiny_models: Mapping[str, Path]) -> Iterator[Ensemble]:
    """The first ensemble of the server, in Python."""
    with Ensemble.from_config(ensembles(tiny_models)[0]) as made:
        yield made


def chat(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(
        **({"model": "pair", "messages": HELLO} | GREEDY | options)
    )


def complete(client: OpenAI, **options: Any) -> Any:
    return client.completions.create(**({"model": "pair", "prompt": PROMPT} | GREEDY | options))


class TestChat:
    def test_the_answer_is_the_ensembles(self, client: OpenAI, ensemble: Ensemble) -> None:
        answer = chat(client)
        expected = ensemble.create_chat_completion(HELLO, **GREEDY)
        assert answer.object == "chat.completion"
        assert answer.model == "pair"
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.content == expected["choices"][0]["message"]["content"]
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.model_dump(include=expected["usage"].keys()) == expected["usage"]
        assert answer.system_fingerprint == chat(client).system_fingerprint

    def test_stream(self, client: OpenAI) -> None:
        chunks = list(chat(client, stream=True))
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == chat(client).choices[0].message.content
        assert len({chunk.id for chunk in chunks}) == 1
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
        assert reasons == [None] * (len(chunks) - 1) + ["length"]
        assert [chunk.usage for chunk in chunks] == [None] * len(chunks)

    def test_usage_of_a_stream(self, client: OpenAI) -> None:
        chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
        assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1].choices == []
        assert chunks[-1].usage == chat(client).usage

    def test_logprobs(self, client: OpenAI, ensemble: Ensemble) -> None:
        asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 3}
        listed = chat(client, **asked).choices[0].logprobs.content
        answer = ensemble.create_chat_completion(HELLO, **GREEDY, **asked)
        expected = answer["choices"][0]["logprobs"]["content"]
        assert [entry.token for entry in listed] == [entry["token"] for entry in expected]
        assert [bytes(entry.bytes) for entry in listed] == [bytes(e["bytes"]) for e in expected]
        for entry, other in zip(listed, expected, strict=True):
            assert entry.logprob == pytest.approx(other["logprob"], abs=0.02)
            assert entry.top_logprobs[0].token == entry.token  # greedy
            assert len(entry.top_logprobs) == 3
        assert chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
        assert chat(client).choices[0].logprobs is None

    def test_logprobs_of_a_stream(self, client: OpenAI) -> None:
        chunks = list(chat(client, stream=True, logprobs=True, top_logprobs=2))
        found = [
            entry
            for chunk in chunks
            if chunk.choices[0].logprobs
            for entry in chunk.choices[0].logprobs.content
        ]
        assert found == chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content

    def test_several_answers(self, client: OpenAI) -> None:
        asked: dict[str, Any] = {"n": 3, "seed": 5, "temperature": 1, "top_p": 1}
        answer = chat(client, **asked)
        texts = [choice.message.content for choice in answer.choices]
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert len(set(texts)) == 3
        alone = chat(client, seed=7, temperature=1, top_p=1, logprobs=True).choices[0]
        assert texts[2].startswith(alone.logprobs.content[0].token)  # the third one's seed
        assert answer.usage.prompt_tokens == chat(client).usage.prompt_tokens
        assert answer.usage.completion_tokens == 36

    def test_a_stream_of_several_answers(self, client: OpenAI) -> None:
        chunks = list(chat(client, stream=True, n=3))
        texts = ["", "", ""]
        for chunk in chunks:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert texts == [chat(client).choices[0].message.content] * 3
        ends = [c.choices[0].index for c in chunks if c.choices[0].finish_reason]
        assert sorted(ends) == [0, 1, 2]

    def test_stop(self, client: OpenAI) -> None:
        whole = chat(client).choices[0].message.content
        stop = whole[len(whole) // 2 :][:3]
        for stops in (stop, ["not in it", stop]):
            answer = chat(client, stop=stops).choices[0]
            assert answer.message.content == whole[: whole.index(stop)]
            assert answer.finish_reason == "stop"

    def test_the_beginning_of_a_reply(self, client: OpenAI) -> None:
        begun: Any = [*HELLO, {"role": "assistant", "content": "I am", "prefix": True}]
        assert chat(client, messages=begun).choices[0].message.content

    def test_parts_of_messages(self, client: OpenAI) -> None:
        parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}]
        answer = chat(client, messages=[{"role": "user", "content": parts}])
        assert answer.choices[0].message == chat(client).choices[0].message

    def test_developers_are_the_system(self, client: OpenAI) -> None:
        said = [
            chat(client, messages=[{"role": role, "content": "Be brief."}, *HELLO])
            for role in ("developer", "system")
        ]
        assert said[0].choices == said[1].choices


class TestCompletions:
    def test_the_answer_is_the_ensembles(self, client: OpenAI, ensemble: Ensemble) -> None:
        answer = complete(client)
        expected = ensemble(PROMPT, **GREEDY)
        assert answer.object == "text_completion"
        assert answer.choices[0].text == expected["choices"][0]["text"]
        assert answer.usage.total_tokens == expected["usage"]["total_tokens"]

    @pytest.mark.parametrize("model", ["pair", "exact", "one"])
    def test_models(self, client: OpenAI, tiny_models: Mapping[str, Path], model: str) -> None:
        config = next(c for c in ensembles(tiny_models) if c.name == model)
        with Ensemble.from_config(config) as alone:
            expected = alone(PROMPT, **GREEDY)["choices"][0]["text"]
        answer = complete(client, model=model)
        assert answer.choices[0].text == expected
        assert answer.model == model

    def test_stream(self, client: OpenAI) -> None:
        chunks = list(complete(client, stream=True))
        assert "".join(c.choices[0].text for c in chunks) == complete(client).choices[0].text

    def test_logprobs(self, client: OpenAI, ensemble: Ensemble) -> None:
        listed = complete(client, logprobs=2).choices[0].logprobs
        expected = ensemble(PROMPT, logprobs=2, **GREEDY)["choices"][0]["logprobs"]
        assert listed.tokens == expected["tokens"]
        assert listed.text_offset == expected["text_offset"]
        assert listed.token_logprobs == pytest.approx(expected["token_logprobs"], abs=0.02)
        assert all(math.isfinite(p) for top in listed.top_logprobs for p in top.values())

    def test_several_prompts(self, client: OpenAI) -> None:
        prompts = [PROMPT, "The capital of France is"]
        answer = complete(client, prompt=prompts, n=2)
        alone = [complete(client, prompt=prompt) for prompt in prompts]
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        texts = [choice.text for choice in answer.choices]
        assert texts == [one.choices[0].text for one in alone for _ in range(2)]
        assert answer.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)

    def test_prompts_of_symbols(self, client: OpenAI, ensemble: Ensemble) -> None:
        symbols = ensemble.tokenize(PROMPT.encode())
        text = complete(client).choices[0].text
        assert complete(client, prompt=symbols).choices[0].text == text
        answer = complete(client, prompt=[symbols, symbols[:1]])
        assert answer.choices[0].text == text
        assert answer.choices[1].index == 1

    def test_echo(self, client: OpenAI) -> None:
        text = complete(client).choices[0].text
        assert complete(client, echo=True).choices[0].text == PROMPT + text
        chunks = list(complete(client, echo=True, stream=True))
        assert chunks[0].choices[0].text == PROMPT
        assert "".join(chunk.choices[0].text for chunk in chunks) == PROMPT + text

    def test_the_length_is_16_unless_told(self, client: OpenAI) -> None:
        answer = client.completions.create(model="pair", prompt=PROMPT, temperature=0)
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 16

    def test_llama_cpps_fields(self, client: OpenAI, ensemble: Ensemble) -> None:
        sampling: dict[str, Any] = {
            "temperature": 1.5,
            "top_p": 0.9,
            "seed": 3,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.25,
        }
        more = {"top_k": 7, "min_p": 0.01, "typical_p": 0.9, "repeat_penalty": 1.2}
        answer = complete(client, **sampling, extra_body=more)
        expected = ensemble(PROMPT, **GREEDY | sampling | more)
        assert answer.choices[0].text == expected["choices"][0]["text"]

    def test_logit_bias(self, client: OpenAI, ensemble: Ensemble) -> None:
        plain = complete(client, logprobs=0).choices[0]
        (first,) = ensemble.tokenize(b" the", add_bos=False)
        banned = complete(client, logit_bias={str(first): 100}).choices[0]
        assert banned.text.startswith(" the")
        extra = {"logit_bias": [[plain.logprobs.tokens[0], False]]}
        others = complete(client, extra_body=extra, logprobs=0).choices[0].logprobs
        assert others.tokens[0] != plain.logprobs.tokens[0]

    def test_ignore_eos(self, client: OpenAI) -> None:
        answer = complete(client, max_tokens=200, extra_body={"ignore_eos": True})
        assert answer.usage.completion_tokens == 200

    def test_a_full_context(self, client: OpenAI) -> None:
        answer = complete(client, max_tokens=5000, extra_body={"ignore_eos": True})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.total_tokens <= 520

    def test_answers_do_not_depend_on_earlier_ones(
        self, client: OpenAI, ensemble: Ensemble
    ) -> None:
        """What slots still hold of earlier texts must be what it was: attention that slides
        (gemma3) may have given up cells of the prompt."""
        listed = ensemble(PROMPT, logprobs=0, **GREEDY)["choices"][0]["logprobs"]
        for more in (HELLO, [*HELLO, {"role": "user", "content": "And now?"}]) * 4:
            chat(client, messages=more, n=2)
            found = complete(client, logprobs=0).choices[0].logprobs
            assert found.tokens == listed["tokens"]
            assert found.token_logprobs == pytest.approx(listed["token_logprobs"], abs=0.05)


class TestModels:
    def test_list(self, client: OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["pair", "exact", "one"]

    def test_one(self, client: OpenAI) -> None:
        assert client.models.retrieve("exact").id == "exact"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")


class TestErrors:
    def test_an_unknown_model(self, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="known: pair, exact, one") as caught:
            chat(client, model="gpt-4")
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"

    def test_a_prompt_that_is_too_long(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="n_ctx=512") as caught:
            complete(client, prompt="word " * 1000)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError):
            complete(client, prompt="word " * 1000, stream=True)

    @pytest.mark.parametrize(
        ("options", "param"),
        [
            ({"prompt": ""}, None),
            ({"prompt": []}, None),
            ({"prompt": [10**8]}, None),
            ({"logit_bias": {"100000": 1}}, None),
            ({"temperature": -1}, "temperature"),
            ({"suffix": "end"}, "suffix"),
            ({"best_of": 3}, "best_of"),
            ({"n": 100}, "n"),
            ({"extra_body": {"logitfuse": {"weights": {"nobody": 1}}}}, "logitfuse.weights"),
            ({"extra_body": {"logitfuse": {"member": []}}}, "logitfuse.member"),
        ],
    )
    def test_bad_requests(self, client: OpenAI, options: dict[str, Any], param: str | None) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            complete(client, **options)
        assert caught.value.type == "invalid_request_error"
        assert caught.value.param == param

    def test_embeddings(self, client: OpenAI) -> None:
        with pytest.raises(openai.InternalServerError) as caught:
            client.embeddings.create(model="pair", input="text")
        assert caught.value.status_code == 501

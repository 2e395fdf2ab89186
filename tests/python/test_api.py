"""The API without HTTP: overrides, lengths, errors."""

from __future__ import annotations

from typing import Any

import pytest
from logitfuse import errors
from logitfuse.api.asking import length_of, request_of
from logitfuse.api.bodies import ChatBody, CompletionBody, GenerationBody
from logitfuse.api.overrides import PARTS, override
from logitfuse.api.problems import Problem, ProblemError, problem_of
from logitfuse.config import FuseConfig, parse_config
from logitfuse.errors import ConfigError, FusionError
from logitfuse.sampling import SamplingParams
from pydantic import ValidationError

MEMBERS = ["a", "b"]
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


def served(*weights: float, **parts: Any) -> FuseConfig:
    """An ensemble of two."""
    entries: list[dict[str, Any]] = [{"model": f"{name}.gguf"} for name in MEMBERS]
    for entry, weight in zip(entries, weights, strict=False):
        entry["weight"] = weight
    return parse_config({"member": entries, "name": "it", **parts})


def weights(config: FuseConfig) -> list[float]:
    return [entry.weight for entry in config.member]


class TestOverrides:
    def test_nothing(self) -> None:
        config = served(0.6, 0.4)
        assert override(config, MEMBERS, {}) is config

    def test_parts(self) -> None:
        config = override(served(0.6, 0.4, gate="always"), MEMBERS, {"pool": "log-linear"})
        assert (config.pool, config.gate, config.name) == ("log-linear", "always", "it")
        assert weights(config) == [0.6, 0.4]
        assert [str(entry.model) for entry in config.member] == ["a.gguf", "b.gguf"]

    def test_null_is_the_default(self) -> None:
        config = override(served(gate="always", pool="log-linear"), MEMBERS, {"gate": None})
        assert (config.pool, config.gate) == ("log-linear", "boundary")
        assert "gate" not in config.model_fields_set

    @pytest.mark.parametrize("given", [{"b": 2.0}, [0.0, 2.0], [0, 2]])
    def test_weights(self, given: Any) -> None:
        assert weights(override(served(0.6, 0.4), MEMBERS, {"weights": given})) == [0, 2]

    def test_a_preset_stands_for_all_parts(self) -> None:
        config = override(served(pool="log-linear", guard=True), MEMBERS, {"preset": "gac"})
        assert (config.pool, config.gate, config.guard) == ("linear", "always", False)
        config = override(config, MEMBERS, {"preset": "packllm", "gate": "always"})
        assert (config.pool, config.gate) == ("log-linear", "always")
        assert override(config, MEMBERS, {"preset": None}).strategy == "auto"

    def test_presets_with_roles_bring_weights(self) -> None:
        config = override(served(0.6, 0.4), MEMBERS, {"preset": "contrastive"})
        assert weights(config) == [1, -1]
        assert weights(override(config, MEMBERS, {"preset": "gac"})) == [1, 1]
        given = {"preset": "contrastive", "weights": [1.5, -0.5]}
        assert weights(override(served(), MEMBERS, given)) == [1.5, -0.5]

    @pytest.mark.parametrize(
        ("parts", "key", "message"),
        [
            ({"polo": 1}, "polo", "did you mean 'solo'"),
            ({"zzz": 1}, "zzz", "known: alignment"),
            ({"member": []}, "member", "is fixed where it is served"),
            ({"learned": "/etc/passwd"}, "learned", "is fixed"),
            ({"sampling": {}}, "sampling", "is fixed"),
            ({"name": "x"}, "name", "is fixed"),
            ({"preset": "gca"}, "preset", "did you mean 'gac'"),
            ({"preset": 5}, "preset", "valid string"),
            ({"pool": "x"}, "pool", "'linear', 'log-linear'"),
            ({"beam": 0}, "beam", "greater than or equal to 1"),
            ({"weights": [1]}, "weights", "2 members (a, b) need as many weights, not 1"),
            ({"weights": {"c": 1}}, "weights", "no member is called 'c'; there are a, b"),
            ({"strategy": "bytes", "guard": True}, "guard", "has no 'guard'"),
            ({"preset": "eva"}, "alignment", "takes long"),
        ],
    )
    def test_refusals(self, parts: dict[str, Any], key: str, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            override(served(), MEMBERS, parts)
        assert message in str(caught.value)
        assert caught.value.key == key

    def test_bad_weights(self) -> None:
        with pytest.raises(FusionError):
            override(served(), MEMBERS, {"weights": [-1, 1]})

    def test_no_part_is_a_path(self) -> None:
        assert {"weights", "pool", "preset"} <= set(PARTS)
        assert not {"member", "learned", "name", "sampling"} & set(PARTS)


def text(**body: Any) -> CompletionBody:
    return CompletionBody.model_validate({"prompt": "x", **body})


def chat(**body: Any) -> ChatBody:
    return ChatBody.model_validate(CHAT | body)


class TestAsking:
    @pytest.mark.parametrize(
        ("body", "limit", "length"),
        [
            (text(), None, 16),
            (text(max_tokens=5), None, 5),
            (text(n_predict=7), None, 7),
            (text(max_tokens=5, n_predict=7), None, 5),
            (text(max_tokens=-1), None, None),
            (text(max_tokens=-1), 9, 9),
            (text(max_tokens=50), 9, 9),
            (text(max_tokens=0, echo=True, logprobs=0), None, 0),
            (text(max_tokens=0), 9, 0),
            (text(n_predict=0), None, 0),
            (text(n_predict=-2), 9, 9),
            (text(max_tokens=None), None, 16),
            (chat(n_predict=0), None, 0),
            (chat(max_tokens=None, max_completion_tokens=None), None, None),
            (chat(), None, None),
            (chat(), 9, 9),
            (chat(max_completion_tokens=3, max_tokens=5), 9, 3),
        ],
    )
    def test_lengths(self, body: GenerationBody, limit: int | None, length: int | None) -> None:
        assert length_of(body, limit) == length

    @pytest.mark.parametrize("body", [chat(max_tokens=0), chat(max_completion_tokens=0)])
    def test_no_length(self, body: GenerationBody) -> None:
        with pytest.raises(ConfigError, match="must be at least 1"):
            length_of(body, None)

    def test_whole_numbers(self) -> None:
        """As JSON has them: of any spelling."""
        given = '{"prompt": [1.0, 2e0], "max_tokens": 3.0, "logprobs": 2.0, "seed": 1e3}'
        body = CompletionBody.model_validate_json(given)
        assert (body.prompt, body.max_tokens, body.logprobs, body.seed) == ([1, 2], 3, 2, 1000)
        for wrong in ("1.5", "true", '"1"', "[1]"):
            with pytest.raises(ValidationError, match="valid integer"):
                CompletionBody.model_validate_json(f'{{"prompt": "a", "n": {wrong}}}')

    def test_sampling_of_the_file_and_of_the_body(self) -> None:
        base = SamplingParams(temperature=0.3, top_k=7, logit_bias={" a": 1.0})
        body = text(top_k=9, repeat_last_n=5, seed=-1, logit_bias={"12": -1, " b": False})
        asked = request_of(body, base, 5, 1.0)
        assert asked.sampling == SamplingParams(
            temperature=0.3,
            top_k=9,
            penalty_last_n=5,
            logit_bias={" a": 1.0, 12: -1.0, " b": -float("inf")},
        )
        assert (asked.max_tokens, asked.time_limit) == (5, 1.0)
        pairs = text(logit_bias=[[12, 1], ["12", 2], [" b", False]])
        biases = request_of(pairs, SamplingParams(), None, None).sampling.logit_bias
        assert biases == {12: 1.0, "12": 2.0, " b": -float("inf")}

    @pytest.mark.parametrize(
        ("given", "seed"),
        [(None, 7), (-1, None), (0, 0), (-2, 2**32 - 2), (-(2**31), 2**31), (2**64 - 1, 2**64 - 1)],
    )
    def test_seeds(self, given: int | None, seed: int | None) -> None:
        asked = request_of(text(seed=given), SamplingParams(seed=7), None, None)
        assert asked.sampling.seed == seed

    def test_traces(self) -> None:
        for extension, n in (
            ({"trace": True, "candidates": 5}, 5),
            ({"trace": True}, 0),
            ({"candidates": 5}, 0),
        ):
            asked = request_of(text(logitfuse=extension), SamplingParams(), None, None)
            assert asked.member_top == n

    def test_log_probabilities(self) -> None:
        for body, n in (
            (chat(logprobs=True, top_logprobs=3), 3),
            (chat(top_logprobs=3), 0),
            (text(logprobs=2), 2),
        ):
            assert request_of(body, SamplingParams(), None, None).top_logprobs == n


class TestProblems:
    @pytest.mark.parametrize(
        ("error", "status", "kind", "code", "param"),
        [
            (
                errors.ContextLengthError(member="a", n_tokens=9, n_ctx=8),
                *(400, "invalid_request_error", "context_length_exceeded", None),
            ),
            (
                errors.TimeLimitError(5),
                *(400, "invalid_request_error", "time_limit_exceeded", None),
            ),
            (errors.PromptError("x"), 400, "invalid_request_error", None, None),
            (errors.ConfigError("x", key="n"), 400, "invalid_request_error", None, "n"),
            (errors.FusionError("x"), 400, "invalid_request_error", None, None),
            (errors.BusyError("x", retry_after=1), 429, "rate_limit_error", "queue_full", None),
            (
                errors.BusyError("x", retry_after=1, closing=True),
                *(503, "server_error", "unavailable", None),
            ),
            (errors.MemberError("x", member="a"), 500, "server_error", "member_failed", None),
            (
                errors.DecodeError("x", member="a", code=1),
                *(500, "server_error", "member_failed", None),
            ),
            (errors.LogitfuseError("x"), 500, "server_error", "internal_error", None),
            (ValueError("x"), 500, "server_error", "internal_error", None),
        ],
    )
    def test_from_classes(
        self, error: Exception, status: int, kind: str, code: str | None, param: str | None
    ) -> None:
        problem = problem_of(error)
        assert problem.status == status
        assert problem.body["error"].keys() == {"message", "type", "param", "code"}
        assert problem.body["error"]["type"] == kind
        assert problem.body["error"]["code"] == code
        assert problem.body["error"]["param"] == param

    def test_when_to_come_again(self) -> None:
        assert problem_of(errors.BusyError("x", retry_after=1.2)).headers == {"Retry-After": "2"}
        assert problem_of(errors.PromptError("x")).headers == {}

    def test_its_own(self) -> None:
        problem = Problem(404, "x")
        assert problem_of(ProblemError(problem)) is problem

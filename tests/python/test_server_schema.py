"""The server does what its own description says, whatever is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from logitfuse.batching import Batcher
from logitfuse.sampling import SamplingParams
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from servers import PROMPT, Served, ensembles, serving, until

#: Whether a body that fits is answered depends on more than its shape: there are only so many
#: symbols, models and slots.
OTHERWISE = {"positive_data_acceptance"}


EXAMPLES = 40
#: What a server seldom answers if it is made up; all but the first are tried now and then.
MADE_UP = [
    "model",
    "best_of",
    "grammar",
    "json_schema",
    "response_format",
    "logit_bias",
    "logitfuse",
]
WITH_BODY = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"]
OTHERS = ["/v1/models", "/v1/models/{name}", "/tokenizer_info", "/props", "/health"]


@pytest.fixture(scope="module")
def served(tiny_models: Mapping[str, Path]) -> Iterator[Served]:
    configs = ensembles(tiny_models)
    with serving(lambda: Batcher(configs, slots=8, queue=8), max_tokens=4) as started:
        yield started


@pytest.fixture(scope="module")
def description(served: Served) -> Any:
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def statuses(operation: Any, mode: GenerationMode) -> Counter[int]:
    """Call an operation with all sorts of things; how often each status came."""
    checks = [check for check in CHECKS.get_all() if check.__name__ not in OTHERWISE]
    seen: Counter[int] = Counter()

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def call(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            for field in MADE_UP[: 1 if seen.total() % 4 == 0 else None]:
                case.body.pop(field, None)
            if "prompt" in case.body and seen.total() % 3 == 0:
                case.body["prompt"] = PROMPT
            if case.body.keys() & {"messages", "prompt"}:
                case.body["stream"] = seen.total() % 2 == 0
        seen[case.call_and_validate(checks=checks).status_code] += 1

    call()
    return seen


@pytest.mark.parametrize("path", [*WITH_BODY, *OTHERS])
def test_what_fits(served: Served, description: Any, path: str) -> None:
    (operation,) = description[path].values()
    seen = statuses(operation, GenerationMode.POSITIVE)
    assert seen.keys() <= {200, 400, 404, 429}
    assert seen[200] or path == "/v1/models/{name}"
    until(served.is_idle)


@pytest.mark.parametrize("path", WITH_BODY)
def test_what_does_not_fit(served: Served, description: Any, path: str) -> None:
    (operation,) = description[path].values()
    seen = statuses(operation, GenerationMode.NEGATIVE)
    assert seen.keys() <= {400, 404, 405, 415}
    assert seen[400] > EXAMPLES / 4
    until(served.is_idle)


def test_ranges_are_those_of_sampling(served: Served) -> None:
    """Bodies and `SamplingParams` declare the same things."""
    bodies = served.http.get("/openapi.json").json()["components"]["schemas"]
    ours = SamplingParams.model_json_schema()["properties"]
    limits = {"minimum", "maximum", "exclusiveMinimum"}
    for name, field in ours.items():
        if name not in ("logit_bias", "seed", "top_k"):
            wire = bodies["CompletionBody"]["properties"][name]["anyOf"][0]
            assert {k: wire[k] for k in limits & wire.keys()} == {
                k: field[k] for k in limits & field.keys()
            }, name


def test_keys_are_described(tiny_models: Mapping[str, Path]) -> None:
    configs = ensembles(tiny_models)[2:]
    with serving(lambda: Batcher(configs, slots=1, queue=0), api_key=["key"]) as started:
        headers = {"Authorization": "Bearer key"}
        told = started.http.get("/openapi.json", headers=headers).json()
    guarded = {
        path for path, item in told["paths"].items() for op in item.values() if "security" in op
    }
    assert guarded == told["paths"].keys() - {"/", "/health"}

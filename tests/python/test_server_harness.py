"""lm-evaluation-harness's own client of OpenAI's API, unmodified, against a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness_models import ask
from harness_tasks import run_offline, write_tasks
from logitfuse import Ensemble
from logitfuse.batching import Batcher
from logitfuse.config import FuseConfig, parse_config
from logitfuse.harness import LogitfuseLM
from servers import TEXT, serving

#: By ensemble and task: what was asked, and what was answered.
Samples = dict[str, dict[str, list[tuple[list[Any], Any]]]]

ENSEMBLES = {"single": ("qwen2",), "pair": ("smol", "llama-spm")}
TASKS = ["facts", "prose", "sums"]
CODE = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

tasks, names, urls = json.loads(sys.argv[1])
for url in urls:
    results = simple_evaluate(
        model="local-completions",
        model_args={"base_url": url, "model": "it", "max_length": 500},
        tasks=names,
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        num_fewshot=1,
        bootstrap_iters=0,
    )
    told = {
        name: [[sample["arguments"], sample["resps"]] for sample in samples]
        for name, samples in results["samples"].items()
    }
    print("told: " + json.dumps(told))
"""


def config_of(models: Mapping[str, Path], name: str) -> FuseConfig:
    entries = [{"model": models[member], "n_threads": 1} for member in ENSEMBLES[name]]
    return parse_config({"name": "it", "member": entries})


@pytest.fixture(scope="module")
def samples(tiny_models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """What the harness asked over HTTP and was answered; it tokenizes through the server, too."""
    tasks = write_tasks(tmp_path_factory.mktemp("tasks"))
    with ExitStack() as stack:
        urls = []
        for name in ENSEMBLES:
            load = partial(Batcher, [config_of(tiny_models, name)], slots=2, queue=16)
            urls.append(stack.enter_context(serving(load)).url + TEXT)
        output = run_offline(tasks, "-c", CODE, json.dumps([str(tasks), TASKS, urls]))
    told = [line[6:] for line in output.splitlines() if line.startswith("told: ")]
    return dict(zip(ENSEMBLES, map(json.loads, told), strict=True))


@pytest.fixture(params=list(ENSEMBLES))
def plugin(
    request: pytest.FixtureRequest, tiny_models: Mapping[str, Path]
) -> Iterator[LogitfuseLM]:
    """The same ensemble as the harness's own model."""
    with Ensemble.from_config(config_of(tiny_models, request.param)) as ensemble:
        yield LogitfuseLM(ensemble=ensemble)


@pytest.fixture
def told(plugin: LogitfuseLM, samples: Samples) -> dict[str, list[tuple[list[Any], Any]]]:
    return samples["single" if len(plugin.ensemble.config.member) == 1 else "pair"]


def test_options_are_as_likely(plugin: LogitfuseLM, told: Any) -> None:
    """One model gives the plug-in's figures.  To an ensemble a prompt is one document, in which no
    reply begins: it gives the figures of `Ensemble` for that prompt."""
    for asked, answers in told["facts"]:
        single = len(plugin.ensemble.config.member) == 1
        found = (
            ask(plugin, "loglikelihood", *map(tuple, asked))
            if single
            else [behind(plugin.ensemble, *pair) for pair in asked]
        )
        said = [(float(nats), greedy) for ((nats, greedy),) in answers]
        assert said == [(pytest.approx(nats, rel=1e-3), greedy) for nats, greedy in found]


def behind(ensemble: Ensemble, context: str, text: str) -> tuple[float, bool]:
    """How likely a text is behind a context, and whether greedily so, if both are a prompt."""
    n = len(ensemble.tokenize(context.encode()))
    answer: Any = ensemble(
        ensemble.tokenize((context + text).encode()), max_tokens=1, echo=True, logprobs=1
    )
    listed = answer["choices"][0]["logprobs"]
    nats, tops = listed["token_logprobs"][n:-1], listed["top_logprobs"][n:-1]
    greedy = all(own == max(top.values()) for own, top in zip(nats, tops, strict=True))
    return sum(nats), greedy


def test_documents_are_as_likely(plugin: LogitfuseLM, told: Any) -> None:
    for asked, answers in told["prose"]:
        found = ask(plugin, "loglikelihood_rolling", *map(tuple, asked))
        assert [float(answer[0]) for answer in answers] == pytest.approx(found, rel=1e-3)


def test_answers_are_the_same(plugin: LogitfuseLM, told: Any) -> None:
    for asked, answers in told["sums"]:
        ((context, settings),) = asked
        symbols = plugin.ensemble.tokenize(context.encode())  # what the harness makes of it
        answer: Any = plugin.ensemble(symbols, max_tokens=6, temperature=0, stop=settings["until"])
        assert answers == [[answer["choices"][0]["text"]]]

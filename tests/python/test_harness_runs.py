"""The real harness on local tasks, which reach no hub."""

from __future__ import annotations

import importlib.metadata
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from harness_models import (
    BATCH,
    PROSE,
    Models,
    ask,
    load_pair,
    load_smollm2,
)
from harness_tasks import FACTS, TASKS, run_offline, write_tasks
from lm_eval.api.registry import get_model
from logitfuse.harness import LogitfuseLM
from logitfuse.harness import __main__ as launcher
from logitfuse.harness.transcript import read_context


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
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks with their data."""
    return write_tasks(tmp_path_factory.mktemp("tasks"))


class TestHarness:
    def test_command_line(
        self, tasks: Path, tmp_path: Path, smollm2: LogitfuseLM, smollm2_path: Path
    ) -> None:
        run_offline(
            tasks,
            *("-m", "logitfuse.harness", "run", "--model", "logitfuse"),
            *("--model_args", f"model={smollm2_path},n_threads=1,n_ctx=256,n_batch={BATCH}"),
            *("--tasks", "facts,prose,sums", "--include_path", str(tasks), "--num_fewshot", "1"),
            *("--output_path", str(tmp_path), "--log_samples"),
        )
        (report,) = tmp_path.rglob("results_*.json")
        results = json.loads(report.read_text())
        assert results["config"]["member_names"] == ["SmolLM2-135M-Instruct.Q4_1"]
        samples = {
            name: [json.loads(line) for line in file.read_text().splitlines()]
            for name in TASKS
            for file in tmp_path.rglob(f"samples_{name}_*")
        }
        right = 0
        for sample in samples["facts"]:
            asked = [tuple(request.values()) for request in sample["arguments"].values()]
            assert asked[0][0].count("Answer:") == 2
            found = ask(smollm2, "loglikelihood", *asked)
            said = [(float(nats), greedy == "True") for ((nats, greedy),) in sample["resps"]]
            assert said == [(pytest.approx(nats, rel=1e-6), greedy) for nats, greedy in found]
            right += int(np.argmax([nats for nats, _ in found])) == sample["doc"]["answer"]
        assert results["results"]["facts"]["acc,none"] == pytest.approx(right / len(FACTS))
        for sample in samples["sums"]:
            (asked,) = [tuple(request.values()) for request in sample["arguments"].values()]
            assert sample["resps"] == [ask(smollm2, "generate_until", asked)]
            assert sample["exact_match"] == (sample["filtered_resps"] == [sample["target"]])
        texts = [PROSE * n for n in (1, 2)]
        nats = ask(smollm2, "loglikelihood_rolling", *((text,) for text in texts))
        bits = -sum(nats) / math.log(2) / sum(len(text.encode()) for text in texts)
        found = results["results"]["prose"]["bits_per_byte,none"]
        assert found == pytest.approx(bits, rel=1e-6)

    def test_python_and_chats(self, tasks: Path, tiny_models: Models, pair: LogitfuseLM) -> None:
        code = """
import json, sys
import logitfuse.harness
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

results = simple_evaluate(
    model="logitfuse",
    model_args=json.loads(sys.argv[2]),
    tasks=["facts", "sums"],
    task_manager=TaskManager(include_path=sys.argv[1], include_defaults=False),
    num_fewshot=1,
    apply_chat_template=True,
    fewshot_as_multiturn=True,
    bootstrap_iters=0,
)
for name, samples in results["samples"].items():
    print(json.dumps([name, [[sample["arguments"], sample["resps"]] for sample in samples]]))
"""
        paths = [str(tiny_models[name]) for name in ("smol", "llama-spm")]
        arguments = {"model": paths, "weights": [0.6, 0.4], "n_ctx": 256, "n_threads": 1}
        lines = run_offline(tasks, "-c", code, str(tasks), json.dumps(arguments)).splitlines()
        samples = dict(json.loads(line) for line in lines if line.startswith("["))
        for requests, answers in samples["facts"]:
            found = ask(pair, "loglikelihood", *map(tuple, requests))
            # What was read before decides how prompts are cut into batches, which costs digits.
            assert [[[pytest.approx(nats, rel=1e-3), greedy]] for nats, greedy in found] == answers
            roles = [message["role"] for message in read_context(requests[0][0])]  # type: ignore[index]
            assert roles == ["user", "assistant", "user"]
        for requests, answers in samples["sums"]:
            assert answers == [ask(pair, "generate_until", *map(tuple, requests))]
            begun = {"role": "assistant", "content": "=", "prefix": True}
            assert read_context(requests[0][0])[-1] == begun

    def test_what_is_wrong_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def cli_evaluate() -> None:
            LogitfuseLM.create_from_arg_string("modle=a.gguf,n_ctx=256", {"device": "cuda:0"})

        monkeypatch.setattr(launcher, "cli_evaluate", cli_evaluate)
        with pytest.raises(SystemExit) as stopped:
            launcher.main()
        expected = "logitfuse: unknown model argument 'modle'; did you mean 'model'?"
        assert stopped.value.code == expected

    def test_registered(self) -> None:
        assert get_model("logitfuse") is LogitfuseLM
        (entry,) = importlib.metadata.entry_points(group="lm_eval.models", name="logitfuse")
        assert entry.load() is LogitfuseLM

    def test_without_the_harness(self) -> None:
        code = (
            "import sys; sys.modules['lm_eval'] = None\n"
            "from logitfuse.errors import ConfigError\n"
            "try: import logitfuse.harness\n"
            "except ConfigError as error: print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert "pip install 'logitfuse[lm-eval]'" in done.stdout

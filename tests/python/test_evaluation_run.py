"""Runs with real models: what makes a row, what does not, failures, resuming."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from logitfuse.config import FuseConfig, build, parse_config
from logitfuse.errors import ConfigError, DecodeError
from logitfuse.evaluation.bpb import BpbTask, windows
from logitfuse.evaluation.choice import ChoiceTask
from logitfuse.evaluation.consistency import SelfConsistency, sample_of
from logitfuse.evaluation.contenders import Contender, contenders
from logitfuse.evaluation.exact import ExactTask
from logitfuse.evaluation.prompts import Asking
from logitfuse.evaluation.questions import Choice, Exact
from logitfuse.evaluation.runner import Run, Task
from logitfuse.evaluation.summary import summarise
from logitfuse.evaluation.table import Outcome, OutcomeTable
from logitfuse.llama import LlamaContext
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.engine import Engine

CITIES = [
    Choice("q1", "cities", "Where is the fox?", ("Lyon", "Paris"), 1),
    Choice("q2", "cities", "And the dog?", ("in Rome", "far away", "here"), 0),
]
SUMS = [Exact("s1", "sums", "2 + 2?", "4", "number"), Exact("s2", "sums", "3?", "3", "number")]
NAMES = ("gpt2", "llama-spm")


class Loaded:
    """Ensembles of tiny models, loaded once for each configuration."""

    def __init__(self, folder: Mapping[str, Path]) -> None:
        self.folder = folder
        self.engines: list[Engine] = []

    def __call__(self, *names: str | Path, **parts: Any) -> list[Contender]:
        members = [
            {"model": name if isinstance(name, Path) else self.folder[name]}
            | {"n_threads": 1, "n_ctx": 256}
            | parts.get("each", {})
            for name in names or NAMES
        ]
        for member, weight in zip(members, parts.get("weights", ()), strict=False):
            member["weight"] = weight
        rest = {key: part for key, part in parts.items() if key not in ("each", "weights", "exact")}
        config: FuseConfig = parse_config({"strategy": "fuse", "member": members} | rest)
        self.engines.append(build(config))
        return contenders(config, self.engines[-1], exact=parts.get("exact", False))


@pytest.fixture
def entered(tiny_models: Mapping[str, Path]) -> Any:
    loaded = Loaded(tiny_models)
    yield loaded
    for engine in loaded.engines:
        engine.close()


@pytest.fixture
def table(tmp_path: Path) -> Any:
    with OutcomeTable(tmp_path / "outcomes.jsonl") as opened:
        yield opened


def finish(
    table: OutcomeTable, who: Sequence[Contender], task: Task[Any] | None = None, **how: Any
) -> tuple[list[Outcome], int]:
    """The outcomes, and how many of them are new."""
    before = len(table)
    outcomes = Run(task or ChoiceTask(CITIES), who, table, **how).finish()
    return outcomes, len(table) - before


class TestRows:
    def test_every_item_and_contender(self, entered: Loaded, table: OutcomeTable) -> None:
        told: list[tuple[int, int, str]] = []
        outcomes = Run(ChoiceTask(CITIES), entered(), table).finish(lambda *at: told.append(at))
        who = [*NAMES, "ensemble"]
        assert [(row.item, row.contender) for row in outcomes] == [
            (item.id, name) for item in CITIES for name in who
        ]
        assert told == [(k, 6, who[k % 3]) for k in range(6)]
        for row in outcomes:
            assert row.error is None
            assert row.seconds > 0
            assert set(row.tokens) == (
                set(NAMES) if row.contender == "ensemble" else {row.contender}
            )
            assert set(row.scores) == {"per_byte", "plain"}
        assert list(table.rows) == outcomes

    def test_first_forward_passes_do_not_count(
        self, entered: Loaded, table: OutcomeTable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They read files and start threads; if all is there already, there are none."""
        warm: list[str] = []
        monkeypatch.setattr(Contender, "warm_up", lambda self: warm.append(self.name))
        who = entered()
        for _ in range(2):
            finish(table, who)
            assert warm == [*NAMES, "ensemble"]

    def test_a_second_run_does_nothing(self, entered: Loaded, table: OutcomeTable) -> None:
        who = entered()
        first, new = finish(table, who)
        assert new == 6
        assert finish(table, who) == (first, 0)

    def test_what_does_not_matter_makes_no_row(
        self, entered: Loaded, table: OutcomeTable, tiny_models: Mapping[str, Path], tmp_path: Path
    ) -> None:
        first, _ = finish(table, entered())
        who = entered(each={"n_threads": 2, "use_mmap": False})
        assert finish(table, who) == (first, 0)
        assert finish(table, list(reversed(who)))[1] == 0
        renamed = [
            Choice(f"other {item.id}", "g", item.question, item.options, item.answer)
            for item in CITIES
        ]
        again, new = finish(table, who, ChoiceTask(renamed))
        assert new == 0
        assert {row.item for row in again} == {"other q1", "other q2"}
        assert {row.group for row in again} == {"g"}
        copies = [
            Path(shutil.copy(tiny_models[name], tmp_path / f"{name} copy.gguf")) for name in NAMES
        ]
        moved, new = finish(table, entered(*copies))
        assert new == 0
        called = [f"{name} copy" for name in NAMES]
        assert [row.contender for row in moved] == [*called, "ensemble"] * 2
        assert set(moved[2].tokens) == set(called)
        assert [row.scores for row in moved] == [row.scores for row in first]

    @pytest.mark.parametrize(
        "parts",
        [
            {"weights": (0.3, 0.7)},
            {"pool": "log-linear"},
            {"gate": "always"},
            {"solo": "certain"},
            {"strategy": "bytes"},
        ],
        ids=str,
    )
    def test_parts_make_new_rows_of_the_ensemble_only(
        self, entered: Loaded, table: OutcomeTable, parts: dict[str, Any]
    ) -> None:
        task = ChoiceTask(CITIES[:1])
        finish(table, entered(), task)
        assert finish(table, entered(**parts), task)[1] == 1

    def test_other_models_and_contexts_make_new_rows(
        self, entered: Loaded, table: OutcomeTable
    ) -> None:
        task = ChoiceTask(CITIES[:1])
        finish(table, entered(), task)
        assert finish(table, entered("gpt2", "smol"), task)[1] == 2
        assert finish(table, entered(each={"n_ctx": 512}), task)[1] == 3
        assert finish(table, entered(*reversed(NAMES)), task)[1] == 1

    def test_parameters_make_new_rows(self, entered: Loaded, table: OutcomeTable) -> None:
        who = entered()
        item = CITIES[0]
        tasks: list[Task[Any]] = [
            ChoiceTask([item]),
            ChoiceTask([item], "letter"),
            ChoiceTask([item], full=Asking("{question}")),
            ChoiceTask([item], full=Asking("{question}", chat=True)),
            ChoiceTask([item], full=Asking("{question}", chat=True, system="Be brief.")),
            ChoiceTask([item], full=Asking("{question}", examples=[("1?", "one")])),
            ChoiceTask([Choice("q1", "cities", item.question, item.options, 0)]),
            ChoiceTask([Choice("q1", "cities", item.question, ("Lyon", "Rome"), 1)]),
            ExactTask(SUMS[:1], max_tokens=2),
            ExactTask(SUMS[:1], max_tokens=3),
            ExactTask(SUMS[:1], max_tokens=3, stop=("x",)),
            ExactTask(SUMS[:1], max_tokens=3, sampling=SamplingParams(temperature=0.5)),
            ExactTask(SUMS[:1], max_tokens=3, sampling=SamplingParams(temperature=0.5, seed=1)),
        ]
        for task in tasks:
            assert finish(table, who, task)[1] == 3
        for task in tasks:
            assert finish(table, who, task)[1] == 0

    def test_beams_make_new_rows_of_members_that_read_bytes(
        self, entered: Loaded, table: OutcomeTable
    ) -> None:
        task = BpbTask(list(windows("t", b"The fox.")))
        finish(table, entered(strategy="bytes", exact=True), task)
        assert finish(table, entered(strategy="bytes", beam=4, exact=True), task)[1] == 3

    def test_one_file_twice(self, entered: Loaded, table: OutcomeTable) -> None:
        """Its rows are made once, and both members have them."""
        outcomes, new = finish(table, entered("smol", "smol"), ChoiceTask(CITIES[:1]))
        assert [row.contender for row in outcomes] == ["smol", "smol (2)", "ensemble"]
        assert new == 2
        assert outcomes[0].data["nats"] == outcomes[1].data["nats"]
        assert outcomes[1].tokens.keys() == {"smol (2)"}
        summarise(
            outcomes,
            task="choice",
            title="",
            metrics=["per_byte"],
            members=["smol", "smol (2)"],
            ensemble="ensemble",
        )

    def test_equal_texts_share_rows(self, entered: Loaded, table: OutcomeTable) -> None:
        items = [piece for name in ("a", "b") for piece in windows(name, b"The fox.")]
        outcomes, new = finish(table, entered("smol"), BpbTask(items))
        assert new == 1
        assert [row.item for row in outcomes] == ["a:0", "b:0"]

    def test_a_member_without_weight_is_not_entered(self, entered: Loaded) -> None:
        assert [one.name for one in entered(weights=(1, 0))] == ["gpt2"]


class TestFailures:
    def test_rows_are_marked_and_tried_again_if_asked(
        self, entered: Loaded, table: OutcomeTable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        who = entered()
        decode, calls = LlamaContext.decode, 0

        def fails(self: LlamaContext, *arguments: Any, **options: Any) -> int:
            nonlocal calls
            calls += self.model.path.stem == "llama-spm"
            return -3 if calls == 4 else decode(self, *arguments, **options)

        with monkeypatch.context() as broken:
            broken.setattr(LlamaContext, "decode", fails)
            outcomes, new = finish(table, who)
        assert new == 6
        failed = [row for row in outcomes if row.error is not None]
        assert [(row.item, row.contender) for row in failed] == [("q1", "llama-spm")]
        assert failed[0].error is not None
        assert failed[0].error.startswith(f"{DecodeError.__name__}: member 'llama-spm' failed")
        assert failed[0].scores == {}
        assert finish(table, who) == (outcomes, 0)
        mended, _ = finish(table, who, retry=True)
        assert all(row.error is None for row in mended)
        assert [row for row in mended if row.key != failed[0].key] == [
            row for row in outcomes if row.error is None
        ]

    def test_a_text_that_does_not_fit(self, entered: Loaded, table: OutcomeTable) -> None:
        items = list(windows("t", b"fox " * 230))
        outcomes, _ = finish(table, entered(), BpbTask(items))
        reasons = {row.contender: row.error for row in outcomes}
        assert all("ContextLengthError" in (error or "") for error in reasons.values())
        assert "n_ctx=256" in str(reasons["gpt2"])

    @pytest.mark.parametrize("strategy", ["fuse", "bytes"])
    def test_a_pool_that_leaves_the_text_out(
        self, entered: Loaded, table: OutcomeTable, strategy: str
    ) -> None:
        parts = {"pool": "contrast", "plausibility": 0.9, "weights": (-0.5, 1.5)}
        items = list(windows("t", b"Nobody expects this of a random model."))
        outcomes, _ = finish(table, entered(strategy=strategy, **parts), BpbTask(items))
        assert [row.error is None for row in outcomes] == [True, True, False]

    def test_what_is_never_done_ends_the_run(self, entered: Loaded, table: OutcomeTable) -> None:
        with pytest.raises(ConfigError, match="greedy sampling draws nothing"):
            finish(table, entered(strategy="mix"), ExactTask(SUMS, max_tokens=2))
        warm = ExactTask(SUMS, max_tokens=2, sampling=SamplingParams(temperature=0.7))
        assert finish(table, entered(strategy="mix"), warm)[1] == 6

    def test_a_run_goes_on_where_it_was(self, entered: Loaded, tmp_path: Path) -> None:
        who = entered()
        with OutcomeTable(tmp_path / "whole.jsonl") as table:
            whole, _ = finish(table, who)
        path = tmp_path / "cut.jsonl"

        def stop(done: int, *_: object) -> None:
            if done == 4:
                raise KeyboardInterrupt

        with OutcomeTable(path) as table, pytest.raises(KeyboardInterrupt):
            Run(ChoiceTask(CITIES), who, table).finish(stop)
        with path.open("ab") as file:
            file.write(b'{"version":1,"key":"half of')
        with OutcomeTable(path) as table:
            assert len(table) == 4
            rest, new = finish(table, who)
        assert new == 2
        for one, other in zip(rest, whole, strict=True):
            assert one.data == other.data
            assert one.scores == other.scores
            assert one.tokens == other.tokens


class TestSamples:
    def test_samples_are_rows_of_their_own(self, entered: Loaded, table: OutcomeTable) -> None:
        who = entered()
        run = Run(ExactTask(SUMS, max_tokens=3), who, table)
        outcomes = run.finish()
        rounds = SelfConsistency([item.id for item in SUMS], 1e-9)
        while (asked := rounds.next_sample()) is not None:
            item = next(item for item in SUMS if item.id == asked[0])
            outcomes.append(run.outcome(item, who[0], sample=asked[1]))
            rounds.add(sample_of(outcomes[-1]))
        assert len(table) == 8  # the first round is finished, however little time there is
        assert [row.contender for row in outcomes[6:]] == ["gpt2 sample 1"] * 2
        summary = summarise(
            outcomes,
            task="exact",
            title="",
            metrics=["right"],
            members=NAMES,
            ensemble="ensemble",
        )
        assert [row.kind for row in summary.rows].count("sampled") == 1

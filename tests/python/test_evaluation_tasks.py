"""Questions and texts put to real models: every figure against the engine, and laws."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lockstep import Load, Put
from logitfuse.config import FuseConfig
from logitfuse.errors import ConfigError, FusionError
from logitfuse.evaluation.bpb import BpbTask, Window
from logitfuse.evaluation.choice import ChoiceTask
from logitfuse.evaluation.contenders import Contender, contenders, name_apart
from logitfuse.evaluation.exact import ExactTask
from logitfuse.evaluation.prompts import LETTERED, Asking
from logitfuse.evaluation.questions import Choice, Exact
from logitfuse.evaluation.trace import trace
from logitfuse.llama import LlamaContext
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.scoring import score_reply
from logitfuse.strategies.base import Request
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.fuse import Fuse

CITY = Choice("q1", "cities", "Where is the fox?", ("in Lyon", "Paris", "the big city of Rome"), 1)
SUM = Exact("s1", "sums", "What is 2 + 2?", "4", "number")
PROSE = "The naïve fox sat — 7 dogs came. 你好 🤖!\n" * 4


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[Member]:
    member = Member(smollm2_path, n_threads=1, n_ctx=512, n_branches=16)
    yield member
    member.close()


class TestChoice:
    @pytest.mark.parametrize("strategy", [Fuse, Bytes])
    def test_full(self, put: Put, strategy: type[Engine]) -> None:
        who = put(strategy, "gpt2", "llama-spm")
        found = ChoiceTask([CITY]).put(CITY, who)
        prompt = "Question: Where is the fox?\nAnswer:"
        nats = [score_reply(who.engine, Request(prompt), f" {o}").nats for o in CITY.options]
        assert found.data["nats"] == pytest.approx(nats, abs=1e-3)
        assert found.data["bytes"] == [7, 5, 20]
        best = int(np.argmax(np.array(nats) / [7, 5, 20]))
        assert found.scores == {"per_byte": best == 1, "plain": int(np.argmax(nats)) == 1}
        assert found.data["said"] == CITY.options[best]
        assert found.data["expected"] == "Paris"
        assert found.data["question"].splitlines()[1:] == [
            *("A. in Lyon", "B. Paris", "C. the big city of Rome")
        ]

    def test_letters(self, put: Put) -> None:
        who = put(Fuse, "smol", "gemma3")
        task = ChoiceTask([CITY], "both")
        assert task.metrics == ("per_byte", "plain", "letter")
        found = task.put(CITY, who)
        prompt = LETTERED.format(
            question=CITY.question, options="A. in Lyon\nB. Paris\nC. the big city of Rome"
        )
        nats = [score_reply(who.engine, Request(prompt), f" {letter}").nats for letter in "ABC"]
        assert found.data["letter_nats"] == pytest.approx(nats, abs=1e-3)
        assert found.scores["letter"] == (int(np.argmax(nats)) == 1)
        alone = ChoiceTask([CITY], "letter").put(CITY, who)
        assert set(alone.scores) == {"letter"}
        assert alone.data["said"].split(". ")[1] in CITY.options

    @pytest.mark.parametrize(
        ("strategy", "names"),
        [
            (Fuse, ("smol",)),
            (Fuse, ("gpt2", "llama-spm")),
            (Fuse, ("mamba", "lfm2")),
            (Bytes, ("gemma3",)),
            (Bytes, ("gpt2", "llama-spm")),
            (Bytes, ("mamba",)),
        ],
        ids=str,
    )
    def test_the_order_of_options_changes_nothing(
        self, put: Put, strategy: type[Engine], names: Sequence[str]
    ) -> None:
        """To the last bit, though a long prompt gives other bits than the end of it alone."""
        question = "Where is the fox, and what does it do there? " * 12
        options = ("Paris", "Lyon", "Paris and Rome", "L", "a city that is far away")
        found = {}
        for order in list(permutations(options))[::23]:
            item = Choice("q", "g", question, order, 0)
            who = put(strategy, *names)
            with who.measured():
                nats = ChoiceTask([item]).put(item, who).data["nats"]
            found[tuple(dict(zip(order, nats, strict=True))[option] for option in options)] = order
        assert len(found) == 1

    def test_chats(self, put: Put) -> None:
        who = put(Fuse, "smol")
        asking = Asking("{question}", chat=True, system="Be brief.", examples=[("1?", "one")])
        found = ChoiceTask([CITY], full=asking).put(CITY, who)
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1?"},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": CITY.question},
        ]
        nats = [score_reply(who.engine, Request(messages), o).nats for o in CITY.options]
        assert found.data["nats"] == pytest.approx(nats, abs=1e-3)

    def test_shots_stand_before_the_question(self) -> None:
        asking = Asking("Q: {question}\nA:", examples=[("Q: 1?\nA:", "one")])
        filled = asking.fill("2?")
        assert asking.prompt(filled) + asking.reply("two") == "Q: 1?\nA: one\n\nQ: 2?\nA: two"

    @pytest.mark.parametrize(
        "pair", [("é", "e"), ("🤖", "?"), ('"', "'"), ("-1", "1e9"), (" ", "x")]
    )
    def test_odd_options(self, put: Put, pair: tuple[str, str]) -> None:
        item = Choice("q", "g", "?", pair, 0)
        found = ChoiceTask([item]).put(item, put(Bytes, "llama-spm"))
        assert np.isfinite(found.data["nats"]).all()

    def test_more_options_than_letters(self, put: Put) -> None:
        many = Choice("q", "g", "Which?", tuple(f"no. {k}" for k in range(27)), 26)
        with pytest.raises(ConfigError, match=r"27 options.*--mode full"):
            ChoiceTask([many], "letter")
        found = ChoiceTask([many]).put(many, put(Fuse, "smol"))
        assert found.data["question"].endswith("27. no. 26")

    def test_no_option_has_a_probability(self, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
        who = put(Fuse, "smol")
        monkeypatch.setattr(
            "logitfuse.scoring.score_reply",
            lambda *_: type("Score", (), {"nats": -math.inf}),
        )
        with pytest.raises(FusionError, match="no option"):
            ChoiceTask([CITY]).put(CITY, who)


class TestDemoModels:
    """Trained models, in which control tokens have no share to speak of."""

    ITEM = Choice("q", "g", "What is the capital of France?", ("Lyon", "Paris", "the sea"), 1)

    def test_choices_are_what_llama_cpp_says(self, smollm2: Member) -> None:
        found = ChoiceTask(()).put(self.ITEM, Contender("it", "member", Fuse([smollm2]), {}))
        prompt = smollm2.tokenize_prompt("Question: What is the capital of France?\nAnswer:")
        for option, nats in zip(self.ITEM.options, found.data["nats"], strict=True):
            own = smollm2.tokenize(f" {option}".encode())
            smollm2.reset()
            assert smollm2.context.decode(prompt + own, 0, outputs=len(own) + 1) == 0
            direct = 0.0
            for k, token in enumerate(own):
                row = np.array(smollm2.context.row(len(own) + 1 - k), np.float64)
                direct += row[token] - np.logaddexp.reduce(row)
            assert nats == pytest.approx(direct, abs=0.05)
            smollm2.reset()
        assert found.scores == {"per_byte": 1.0, "plain": 1.0}

    def test_bits_by_bytes_and_by_tokens(self, smollm2: Member) -> None:
        """All spellings together are at least as probable as the canonical one, by little."""
        piece = Window("t:0", "t", b"", b"The harbour lay quiet under the morning fog. " * 3)
        by_bytes, by_tokens = (
            BpbTask(()).put(piece, Contender("it", "member", engine, {})).scores["bits"]
            for engine in (Bytes([smollm2], prune=1e-3), Fuse([smollm2]))
        )
        assert 0.9 * by_tokens < by_bytes < by_tokens


class TestTemplates:
    @pytest.mark.parametrize(
        ("template", "said"),
        [
            ("no field", "needs {question}"),
            ("{question} {answer}", "field {answer}"),
            ("{question", "broken"),
            ("{question} {", "broken"),
            ("{question:d}", "broken"),
            ("{question:{width}}", "broken"),
            ("{question!x}", "broken"),
            ("{question.__class__}", "field {question.__class__}"),
            ("{} {question}", "field {}"),
        ],
    )
    def test_refusals(self, template: str, said: str) -> None:
        with pytest.raises(ConfigError) as error:
            Asking(template)
        assert said in str(error.value)

    def test_braces_of_questions_are_only_braces(self) -> None:
        assert Asking("{{{question}}}").fill("{x} {0}") == "{{x} {0}}"


class TestExact:
    def test_an_answer(self, put: Put) -> None:
        who = put(Fuse, "gpt2", "llama-spm")
        task = ExactTask([SUM], max_tokens=12)
        found = task.put(SUM, who)
        prompt = "Question: What is 2 + 2?\nAnswer:"
        request = Request(prompt, SamplingParams(temperature=0), 12, task.stop)
        text = "".join(chunk.text for chunk in who.engine.stream(request)).strip()
        assert found.data["said"] == text
        assert found.data["gold"] == "4"
        assert found.scores["right"] == float(found.data["parsed"] == "4")
        assert task.put(SUM, who) == found

    def test_what_cannot_be_read_is_wrong(self, put: Put) -> None:
        who = put(Fuse, "smol")
        item = Exact("x", "g", "True?", "yes", "bool")
        task = ExactTask([item], sampling=SamplingParams(temperature=0), max_tokens=1, stop=("",))
        found = task.put(item, who)
        assert (found.data["parsed"], found.scores["right"]) == (None, 0.0)

    def test_every_question_and_sample_has_a_seed(self) -> None:
        task = ExactTask([SUM], sampling=SamplingParams(temperature=0.5, seed=1))
        other = Exact("s2", "sums", "What is 3 + 3?", "6", "number")
        seeds = {task._sampling(item, sample).seed for item in (SUM, other) for sample in range(3)}
        assert len(seeds) == 6
        renamed = Exact("another id", "g", SUM.question, "4", "number")
        assert task._sampling(SUM, 1) == task._sampling(renamed, 1)
        greedy = ExactTask([SUM])
        assert greedy._sampling(SUM, 0).temperature == 0
        assert greedy._sampling(SUM, 2).temperature == 0.7

    def test_samples_differ(self, put: Put) -> None:
        who = put(Fuse, "smol")
        task = ExactTask([SUM], max_tokens=8)
        said = [task.put(SUM, who, sample=k).data["said"] for k in (1, 2, 3)]
        assert len(set(said)) > 1
        assert task.put(SUM, who, sample=2).data["said"] == said[1]


class TestContenders:
    @staticmethod
    def config(paths: Sequence[Path], **parts: Any) -> FuseConfig:
        return FuseConfig(member=[{"model": path} for path in paths], **parts)

    def test_members_alone_have_the_threads_of_all(
        self, tiny_models: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Engine, "threads_alone", None)
        monkeypatch.setattr("logitfuse.evaluation.contenders.cores", lambda: 3)
        members = [
            Member(tiny_models[name], n_threads=n)
            for name, n in (("gpt2", 1), ("smol", 2), ("qwen2", 1))
        ]
        ensemble = Fuse(members, weights=[1, 1, 0])
        config = self.config([m.model.path for m in members])
        found = contenders(config, ensemble)
        assert [one.name for one in found] == ["gpt2", "smol", "ensemble"]
        assert [one.engine.threads_alone for one in found] == [3, 3, None]
        used: list[int] = []
        monkeypatch.setattr(LlamaContext, "set_threads", lambda _, n: used.append(n))
        with found[1].measured() as cost:
            score_reply(found[1].engine, Request("a"), " fox")
        assert set(used[::2]) == {3}
        assert set(used[1::2]) == {2}  # as before
        assert set(cost.tokens) == {"smol"}
        ensemble.close()

    def test_costs_are_those_of_empty_caches(self, put: Put) -> None:
        who = put(Fuse, "gpt2", "smol")
        costs = []
        for _ in range(2):
            with who.measured() as cost:
                score_reply(who.engine, Request("Once upon a time"), " there")
            costs.append(cost.tokens)
        assert costs[0] == costs[1]
        for name, n in costs[0].items():
            member = next(m for m in who.engine.members if m.name == name)
            assert n >= len(member.tokenize_prompt("Once upon a time"))
        assert cost.seconds > 0

    def test_names_apart(self, load: Load) -> None:
        members = [load("smol", k) for k in range(4)]
        before = [member.name for member in members]
        for member, name in zip(members, ("a", "a", "ensemble", "a (2)"), strict=True):
            member.name = name
        name_apart(members)
        assert [m.name for m in members] == ["a", "a (2)", "ensemble (2)", "a (2) (2)"]
        for member, name in zip(members, before, strict=True):
            member.name = name

    def test_prefix_mass_members_read_alike(self, load: Load) -> None:
        """They have no branches, which all tokenisations would need."""
        members = [load("gpt2"), load("llama-spm")]
        engine = Bytes(members, tokenisations="canonical")
        config = self.config([m.model.path for m in members], alignment="prefix-mass")
        piece = Window("t:0", "t", b"", b"The fox.")
        for who in contenders(config, engine, exact=True):
            assert BpbTask(()).put(piece, who).scores["bits"] > 0


class TestTrace:
    def test_a_member_that_has_no_say(self, put: Put) -> None:
        who = put(Fuse, "gpt2", "llama-spm", weights=[1, 0])
        traced = trace(who.engine, Request("Once"), " upon")
        assert traced["summary"]["llama-spm_bits_per_byte"] is None
        assert traced["steps"][0]["members"][1]["logprob"] is None
        assert traced["summary"]["gpt2_bits_per_byte"] == traced["summary"]["bits_per_byte"] > 0

    @pytest.mark.parametrize("strategy", [Fuse, Bytes])
    def test_candidates_of_each_member_are_there_if_they_are_asked_for(
        self, put: Put, strategy: type[Engine]
    ) -> None:
        who = put(strategy, "gpt2", "llama-spm", weights=[1, 0])
        plain = trace(who.engine, Request("Once"), " upon")
        assert all("candidates" not in m for s in plain["steps"] for m in s["members"])
        traced = trace(who.engine, Request("Once", member_top=3), " upon")
        json.dumps(traced, allow_nan=False)
        for one in traced["steps"]:
            voter, absent = one["members"]
            assert absent["candidates"] == []
            assert len(voter["candidates"]) == 3
            assert voter["candidates"][0]["text"] == voter["wish"]
            for entry in voter["candidates"]:
                assert bytes(entry["bytes"]).decode("utf-8", "replace") == entry["text"]

    @pytest.mark.parametrize("given_text", [None, " there was a naïve 🤖"])
    @pytest.mark.parametrize("strategy", [Fuse, Bytes])
    def test_figures(self, put: Put, strategy: type[Engine], given_text: str | None) -> None:
        who = put(strategy, "gpt2", "llama-spm")
        traced = trace(who.engine, Request("Once", SamplingParams(temperature=0), 12), given_text)
        json.dumps(traced, allow_nan=False)
        joined = b"".join(bytes(step["bytes"]) for step in traced["steps"])
        assert joined.startswith(traced["text"].encode()[:4])
        if given_text is not None:
            assert traced["text"].encode() == joined == given_text.encode()
            nats = score_reply(who.engine, Request("Once"), given_text).nats
            bits = traced["summary"]["bits_per_byte"] * len(joined)
            assert bits == pytest.approx(-nats / math.log(2), abs=1e-2)
        assert all(value is not None for value in traced["summary"].values())
        shares = [traced["summary"][f"{d}_share"] for d in ("fused", "agree", "certain", "led")]
        assert sum(shares) == pytest.approx(1)

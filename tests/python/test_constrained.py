"""Constrained replies of every strategy, and their probabilities."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import byte_reference
import jsonschema
import numpy as np
import pytest
import reference
from batching import ask, config_of, running
from bigram_members import CAREFUL, BigramMember, make_bigram
from constraints import may_come, one_of, untried
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lockstep import (
    GREEDY,
    PAIRS,
    PROMPT,
    PURE,
    SEEDED,
    TRIPLE,
    Answer,
    Load,
    Models,
    Recording,
    answer,
    check_equal,
    request,
)
from logitfuse.constraint import Constraint
from logitfuse.drafting import DraftOptions
from logitfuse.errors import ConfigError, FusionError
from logitfuse.gates import Certain, Entropy, Primary
from logitfuse.guide import Guide
from logitfuse.pooling import PoolOptions
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.fuse import Fuse
from logitfuse.strategies.mix import Mix
from logitfuse.vocab import Vocab
from logitfuse.weights import Given

Make = Callable[..., Engine]

SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": -3, "maximum": 40},
        "é": {"enum": ["ї", 'x"y\\', None, {"k": []}]},
        "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "s": {"type": "string", "maxLength": 4},
        "c": {"const": {"a": [1, 2.5]}},
    },
    "required": ["n", "é", "list", "c"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
REGEX = r"[a-f]{2,5}(é|ß|😀){1,2}-[xy]{0,8}z?"
GBNF = 'root ::= "[" (item ("," item)*)? "]"\nitem ::= [0-9]{1,3} | "ключ" | root'
LARK = 'start: pair ("; " pair)~0..2\npair: WORD "=" WORD\nWORD: /[a-zà-ü]{1,6}/'


def fits_gbnf(text: str) -> bool:
    """Nested lists of numbers of up to three digits and one word."""
    while (shorter := re.sub(r"\[((\d{1,3}|ключ|L)(,(\d{1,3}|ключ|L))*)?\]", "L", text)) != text:
        text = shorter
    return text == "L"


def fits_schema(text: str) -> bool:
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


WORD = "[a-zà-ü]{1,6}"
CONSTRAINTS: dict[str, tuple[Constraint, Callable[[str], object]]] = {
    "schema": (untried("schema", json.dumps(SCHEMA)), fits_schema),
    "object": (untried("schema", '{"type": "object"}'), lambda t: isinstance(json.loads(t), dict)),
    "regex": (untried("regex", REGEX), re.compile(REGEX).fullmatch),
    "gbnf": (untried("gbnf", GBNF), fits_gbnf),
    "lark": (untried("lark", LARK), re.compile(f"{WORD}={WORD}(; {WORD}={WORD}){{0,2}}").fullmatch),
}
FUSES: dict[str, dict[str, Any]] = {
    "linear": {},
    "log-linear": {"pool": "log-linear"},
    "min": {"pool": "min", "gate": "always"},
    "contrast": {"pool": "contrast", "weights": [1.0, -0.3]},
    "union": {"pool": PoolOptions("linear", union_top=10)},
    "embedding": {"alignment": "embedding"},
    "certain": {"solo": Certain(), "weights": [0.8, 0.2]},
    "primary": {"solo": Primary(0.2), "guard": True},
    "entropy": {"solo": Entropy(2.0), "schedule": "lazy"},
    "draft": {"schedule": "draft", "draft": DraftOptions(length=4, adapt=False)},
}
BYTES: dict[str, dict[str, Any]] = {
    "bytes": {},
    "bytes of units": {"per": "unit"},
    "log-linear bytes": {"pool": "log-linear", "weigher": Given([0.5, 0.5], "log-linear")},
    "canonical bytes": {"tokenisations": "canonical"},
    "wide bytes": {"prune": 0.002},
    "narrow bytes": {"prune": 0.4, "width": 1},
}
SAMPLINGS = [GREEDY, SEEDED, *(PURE.model_copy(update={"seed": seed}) for seed in range(3))]


@pytest.fixture
def make(load: Load, load_branching: Load) -> Make:
    """Makes an ensemble of tiny members by the name of a strategy."""

    def made(strategy: str, *names: str) -> Engine:
        if strategy in BYTES:
            return Bytes([load_branching(name) for name in names], **BYTES[strategy])
        members = [load(name) for name in names]
        if strategy == "mix":
            return Mix(members)
        options = dict(FUSES[strategy])
        if len(members) == 1:
            options = {key: value for key, value in options.items() if key != "weights"}
        return Fuse(members, **options)

    return made


@pytest.fixture(scope="module")
def bigrams(tmp_path_factory: pytest.TempPathFactory) -> list[BigramMember]:
    folder = tmp_path_factory.mktemp("bigrams")
    return [make_bigram(folder, name, seed=k) for k, name in enumerate(["gpt2", "llama-spm"])]


BYTEWISE = Vocab([bytes([byte]) for byte in range(256)] + [b"</s>"], end_ids=[256])


def check(said: Answer, constraint: Constraint, fits: Callable[[str], object]) -> None:
    """It is what it may be, or a beginning of it; its probabilities are probabilities."""
    raw = b"".join(said.units)
    if said.finish == "stop":
        assert fits(said.text), said.text
    Guide(constraint, [BYTEWISE]).allowed(0, raw)  # it can still become one
    for step in said.steps:
        assert -math.inf < step.logprob <= 0
        assert any(p > -math.inf for p in step.member_logprobs)


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("strategy", [*FUSES, "mix", *BYTES])
class TestReplies:
    def test_of_two_vocabularies(self, make: Make, strategy: str, name: str) -> None:
        constraint, fits = CONSTRAINTS[name]
        ensemble = make(strategy, "gpt2", "smol" if strategy == "embedding" else "llama-spm")
        ends = set()
        for sampling in SAMPLINGS:
            if strategy == "mix" and sampling is GREEDY:
                continue
            said = answer(ensemble, sampling, max_tokens=70, constraint=constraint)
            check(said, constraint, fits)
            ends.add(said.finish)
            assert answer(ensemble, sampling, max_tokens=70, constraint=constraint) == said
        assert "stop" in ends or name == "object"


@pytest.mark.parametrize("name", CONSTRAINTS)
class TestMembers:
    @pytest.mark.parametrize("strategy", ["linear", "log-linear", "draft", "mix", "bytes"])
    def test_of_one_vocabulary(
        self, load: Load, load_branching: Load, strategy: str, name: str
    ) -> None:
        constraint, fits = CONSTRAINTS[name]
        loaded = load_branching if strategy == "bytes" else load
        members = [loaded("smol"), loaded("smol", copy=1)]
        ensemble: Engine = Bytes(members) if strategy == "bytes" else Mix(members)
        if strategy in FUSES:
            ensemble = Fuse(members, **FUSES[strategy])
        for sampling in SAMPLINGS[1:]:
            said = answer(ensemble, sampling, max_tokens=70, constraint=constraint)
            check(said, constraint, fits)

    @pytest.mark.parametrize("strategy", ["linear", "bytes", "canonical bytes"])
    @pytest.mark.parametrize("names", [TRIPLE, ("qwen2",), ("mamba", "lfm2")], ids="+".join)
    def test_of_all_kinds(self, make: Make, strategy: str, names: Sequence[str], name: str) -> None:
        constraint, fits = CONSTRAINTS[name]
        ensemble = make(strategy, *names)
        for sampling in SAMPLINGS[:3]:
            said = answer(ensemble, sampling, max_tokens=40, constraint=constraint)
            check(said, constraint, fits)


LANGUAGE = ("abba", "abé", "ababab", "éa😀", "b", "ba", "the cat", "the dog", "0.25")


class TestDistribution:
    @pytest.mark.parametrize("names", [*PAIRS, TRIPLE, ("gpt2",)], ids="+".join)
    @pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seeded", "0", "1", "2"])
    def test_is_the_pool_restricted_and_normalised(
        self, load: Load, names: Sequence[str], sampling: SamplingParams
    ) -> None:
        """Token by token, against float64."""
        fuse = Recording([load(name) for name in names])
        said = answer(fuse, sampling, constraint=one_of(LANGUAGE), top_logprobs=5)
        assert said.text in LANGUAGE
        text = b""
        for i, step in enumerate(said.steps):
            pooled = {
                symbol: math.exp(p)
                for symbol, p in fuse.pooled(i).items()
                if self.may_follow(text, symbol)
            }
            total = sum(pooled.values())
            symbol = reference.END if step.symbol == fuse.alignment.end else step.unit
            assert math.exp(step.logprob) == pytest.approx(pooled[symbol] / total, rel=1e-4)
            best = sorted((p for p in pooled.values() if p > 0), reverse=True)[:5]
            listed = [math.exp(p) for _, p in step.top]
            assert listed == pytest.approx([p / total for p in best], rel=1e-4)
            assert all(self.may_follow(text, unit or reference.END) for unit, _ in step.top)
            for m, wish in enumerate(step.wishes):
                if wish is None:
                    continue
                alone = {s: p for s, p in fuse.alone(i, m).items() if self.may_follow(text, s)}
                assert alone[wish or reference.END] == pytest.approx(max(alone.values()), abs=1e-4)
            text += step.unit

    @staticmethod
    def may_follow(text: bytes, symbol: reference.Symbol) -> bool:
        if isinstance(symbol, str):
            return text in (word.encode() for word in LANGUAGE)
        return any(word.encode().startswith(text + symbol) for word in LANGUAGE)

    @pytest.mark.parametrize("per", ["byte", "unit"])
    def test_of_bytes(self, bigrams: list[BigramMember], per: Any) -> None:
        """Of bigram models the oracle knows all: the tokens that cannot come are struck."""
        weights = [0.3, 0.7]
        members = [one.member for one in bigrams]
        ensemble = Bytes(members, weights=weights, weigher=Given(weights), per=per, **CAREFUL)
        said = answer(ensemble, PURE, constraint=one_of(LANGUAGE), top_logprobs=50)
        oracles = []
        for one in bigrams:
            rows, tokens, kinds = one.oracle(one.member.tokenize_prompt(PROMPT)[-1])
            vocab = one.member.vocab

            def bound(path: tuple[int, ...], rows: Any = rows, vocab: Vocab = vocab) -> Any:
                return np.where(may_come(vocab, LANGUAGE, vocab.join(path)), rows(path), -np.inf)

            oracles.append((bound, tokens, kinds))
        text = b""
        for step in said.steps[:3]:
            want = byte_reference.pooled_units(oracles, weights, text, per)
            for unit, logprob in step.top:
                wanted = want.get(unit or reference.END, 0)
                assert math.exp(logprob) == pytest.approx(wanted, rel=0.01, abs=1e-4)
            text += step.unit

    def test_drafts_and_delays_change_nothing(self, steady: Load) -> None:
        constraint = CONSTRAINTS["schema"][0]
        for names in (("gpt2", "llama-spm"), ("gpt2", "gpt2")):
            members = [steady(name, k) for k, name in enumerate(names)]
            others = [Fuse(members, schedule="lazy")]
            for drafting in ({"drafter": 0}, {"drafter": 1}, {"ngrams": True}):
                options = DraftOptions(length=4, adapt=False, **drafting)  # type: ignore[arg-type]
                others.append(Fuse(members, schedule="draft", draft=options))
            for sampling in (GREEDY, SEEDED):
                for other in others:
                    check_equal(other, Fuse(members), sampling, constraint=constraint)

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        words=st.sets(st.text("abé1 ", min_size=1, max_size=5), min_size=1, max_size=4),
        seed=st.integers(0, 99),
        strategy=st.sampled_from(["linear", "mix", "bytes", "canonical bytes"]),
    )
    def test_words(self, make: Make, words: set[str], seed: int, strategy: str) -> None:
        ensemble = make(strategy, "gpt2", "smol")
        sampling = PURE.model_copy(update={"seed": seed})
        said = answer(ensemble, sampling, constraint=one_of(words))
        assert (said.text in words, said.finish) == (True, "stop")


class TestEnds:
    @pytest.fixture(params=["linear", "mix", "bytes", "canonical bytes"])
    def ensemble(self, request: pytest.FixtureRequest, make: Make) -> Engine:
        return make(request.param, "gpt2", "llama-spm")

    def test_where_nothing_else_may_follow(self, ensemble: Engine) -> None:
        """Without a step of its own, which would cost a pass."""
        for ignore_end in (False, True):
            said = answer(ensemble, PURE, constraint=one_of(["ab"]), ignore_end=ignore_end)
            assert (said.text, said.finish) == ("ab", "stop")
            assert all(said.units)

    def test_where_more_may_follow(self, ensemble: Engine) -> None:
        said = answer(ensemble, PURE, constraint=untried("regex", "a*"), max_tokens=30)
        assert set(said.text) <= {"a"}
        on = answer(
            ensemble, PURE, constraint=untried("regex", "a*"), max_tokens=30, ignore_end=True
        )
        assert (set(on.text), on.finish, len(on.units)) == ({"a"}, "length", 30)

    def test_at_the_last_token(self, ensemble: Engine) -> None:
        """What is complete is complete, even if no more tokens may come."""
        said = answer(ensemble, PURE, constraint=one_of(["a"]), max_tokens=1)
        assert (said.text, said.finish) == ("a", "stop")
        said = answer(ensemble, PURE, constraint=one_of(["a1"]), max_tokens=1)
        assert said.finish == ("stop" if said.text == "a1" else "length")

    def test_nothing_at_all(self, ensemble: Engine) -> None:
        said = answer(ensemble, PURE, constraint=untried("regex", ""))
        assert (said.text, said.finish, said.units) == ("", "stop", [b""])
        with pytest.raises(FusionError):
            answer(ensemble, PURE, constraint=untried("regex", ""), ignore_end=True)

    def test_stop_strings(self, ensemble: Engine) -> None:
        said = answer(ensemble, PURE, constraint=one_of(["ab-cd"]), stop=("-",))
        assert (said.text, said.finish) == ("ab", "stop")

    def test_the_next_reply_is_free(self, ensemble: Engine) -> None:
        free = answer(ensemble, SEEDED)
        assert answer(ensemble, SEEDED, constraint=one_of(["ab"])).text == "ab"
        assert answer(ensemble, SEEDED) == free

    def test_a_full_context(self, load_branching: Load) -> None:
        member = load_branching("gpt2", n_ctx=256)
        for ensemble in (Fuse([member]), Bytes([member])):
            said = answer(
                ensemble,
                PURE,
                constraint=untried("regex", "(ab)*"),
                ignore_end=True,
                max_tokens=None,
            )
            assert (said.finish, set(said.text)) == ("length", set("ab"))

    def test_a_chat(self, ensemble: Engine) -> None:
        chat = [{"role": "user", "content": "Hi!"}]
        assert answer(ensemble, PURE, prompt=chat, constraint=one_of(["é1"])).text == "é1"


class TestAlongside:
    def test_scoring_knows_no_constraints(self, make: Make) -> None:
        for strategy in ("linear", "bytes"):
            ensemble = make(strategy, "gpt2", "llama-spm")
            free = list(ensemble.score(request(), "time"))
            bound = list(ensemble.score(request(constraint=one_of(["ab"])), "time"))
            assert str(bound) == str(free)

    @pytest.mark.parametrize("strategy", ["linear", "bytes"])
    def test_biases(self, make: Make, strategy: str) -> None:
        ensemble = make(strategy, "gpt2", "smol")
        words = ["a1", "b1"]
        for word, other in (words, words[::-1]):
            bias = {other[0]: -math.inf, "c": 100.0}
            sampling = PURE.model_copy(update={"logit_bias": bias})
            assert answer(ensemble, sampling, constraint=one_of(words)).text == word
        bias = {"a": -math.inf, "b": -math.inf, "a1": -math.inf, "b1": -math.inf}
        known = {text: p for text, p in bias.items() if ensemble.alignment.lookup(text.encode())}
        sampling = GREEDY.model_copy(update={"logit_bias": known})
        with pytest.raises(FusionError, match=r"forbids every candidate|any probability left"):
            answer(ensemble, sampling, constraint=one_of(words))

    @pytest.mark.parametrize("strategy", ["linear", "bytes", "canonical bytes"])
    def test_penalties(self, make: Make, strategy: str) -> None:
        sampling = SEEDED.model_copy(update={"repeat_penalty": 1.5, "frequency_penalty": 1.0})
        constraint, fits = CONSTRAINTS["schema"]
        check(
            answer(make(strategy, "gpt2", "smol"), sampling, max_tokens=60, constraint=constraint),
            constraint,
            fits,
        )

    @pytest.mark.parametrize("strategy", ["linear", "bytes", "canonical bytes"])
    def test_who_cannot_spell_it_is_absent(self, make: Make, strategy: str) -> None:
        """SmolLM2 cannot spell the byte f1."""
        ensemble = make(strategy, "gpt2", "smol")
        said = answer(ensemble, PURE, constraint=untried("regex", "[\U00040000-\U0007ffff]a"))
        assert re.fullmatch("[\U00040000-\U0007ffff]a", said.text)
        assert not said.steps[0].member_logprobs[1] > -math.inf

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("strategy", ["mix", "primary", "certain"])
    def test_who_cannot_spell_it_is_not_asked_alone(
        self, load: Load, strategy: str, seed: int
    ) -> None:
        """Whoever is drawn, or asked first, somebody else can go on."""
        members = [load("smol"), load("gpt2")]
        sampling = PURE.model_copy(update={"seed": seed})
        if strategy == "mix":
            ensemble: Engine = Mix(members)
        elif strategy == "certain":
            ensemble = Fuse(members, weights=[0.7, 0.3], solo=Certain(), schedule="lazy")
            sampling = GREEDY
        else:
            ensemble = Fuse(members, solo=Primary(), primary="smol", schedule="lazy")
        said = answer(ensemble, sampling, constraint=untried("regex", "[\U00040000-\U0007ffff]a"))
        assert re.fullmatch("[\U00040000-\U0007ffff]a", said.text)

    @pytest.mark.parametrize(
        "strategy", ["linear", "log-linear", "mix", "bytes", "canonical bytes"]
    )
    def test_the_members_own_candidates(self, make: Make, strategy: str) -> None:
        """Are such as may come, too."""
        ensemble = make(strategy, "gpt2", "llama-spm")
        text = b""
        for step in answer(ensemble, PURE, constraint=one_of(LANGUAGE), member_top=50).steps:
            for top in filter(None, step.member_tops):
                total = sum(math.exp(p) for _, p in top)  # of bytes, waiting paths have the rest
                assert 0.9 < total < 1.001
                assert strategy == "bytes" or total > 0.999
                for unit, _ in top:
                    assert TestDistribution.may_follow(text, unit or reference.END)
            text += step.unit

    def test_what_nobody_can_spell(self, make: Make) -> None:
        constraint = untried("regex", "[\U00040000-\U0007ffff]")
        for strategy in ("linear", "bytes"):
            with pytest.raises(FusionError, match=r"no member can|no candidate"):
                answer(make(strategy, "smol"), PURE, constraint=constraint)

    def test_grammars_that_lead_nowhere(self, make: Make) -> None:
        nowhere = untried("lark", 'start: "a" x\nx: "b" y\ny: y "c"')
        for strategy in ("linear", "bytes", "draft"):
            with pytest.raises(ConfigError, match="behind byte 2 of the reply: no text fits it"):
                answer(make(strategy, "gpt2", "smol"), PURE, constraint=nowhere)

    def test_the_best_units_are_listed(self, make: Make) -> None:
        for strategy in ("linear", "mix", "bytes"):
            ensemble = make(strategy, "gpt2", "llama-spm")
            said = answer(ensemble, PURE, constraint=one_of(["1", "é", "ключ"]), top_logprobs=9)
            first = said.steps[0]
            assert {unit[:1] for unit, _ in first.top} <= {b"1", "é".encode()[:1], "к".encode()[:1]}
            assert sum(math.exp(p) for _, p in first.top) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("parts", [{"strategy": "fuse"}, {"strategy": "bytes"}], ids=str)
def test_many_at_once(tiny_models: Models, parts: dict[str, Any]) -> None:
    """Each has its own constraint, or none; one that fails harms nobody."""
    nowhere = untried("lark", 'start: "a" x\nx: "b" y\ny: y "c"')
    with running(config_of(tiny_models, "gpt2", "smol", **parts), slots=4) as batcher:
        bad = ask(batcher, PURE, constraint=nowhere)
        free = ask(batcher, SEEDED)
        bound = {
            name: ask(batcher, SEEDED, max_tokens=70, constraint=constraint)
            for name, (constraint, _) in CONSTRAINTS.items()
        }
        assert isinstance(bad.wait().end, ConfigError)
        assert free.done
        for name, heard in bound.items():
            assert heard.done
            said = Answer(heard.text, [s.unit for s in heard.steps], heard.finish, ())  # type: ignore[arg-type]
            check(said, *CONSTRAINTS[name])

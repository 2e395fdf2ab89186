"""From a configuration to a strategy: which one, and what does not go together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from logitfuse import Ensemble, Member
from logitfuse.assembly import assemble, check_parts, n_branches
from logitfuse.cli import main
from logitfuse.config import FuseConfig, build, parse_config
from logitfuse.errors import ConfigError, FusionError, LogitfuseError
from logitfuse.gatefile import Critical, FileMember, Gate, GateFile, Weights, identity
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Request
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.fuse import Fuse
from logitfuse.strategies.mix import Mix
from logitfuse.weights import Given, Online, PromptBits, PromptGreedy

PROMPT = "Once upon a time"
NAMES = ("smol", "gemma3")
CONTRAST = {"strategy": "fuse", "pool": "contrast"}
Files = Mapping[str, Path]
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def members(tiny_models: Files) -> Iterator[dict[str, Member]]:
    """Loaded once, with room for beams."""
    loaded = {name: Member(tiny_models[name], n_threads=1, n_branches=16) for name in NAMES}
    yield loaded
    for member in loaded.values():
        member.close()


def configured(tiny_models: Files, *names: str, weights: Any = None, **parts: Any) -> FuseConfig:
    entries: list[dict[str, Any]] = [
        {"model": tiny_models[name], "n_threads": 1} for name in names or NAMES
    ]
    for entry, weight in zip(entries, weights or (), strict=False):
        entry["weight"] = weight
    return parse_config({**parts, "member": entries})


@pytest.fixture
def make(tiny_models: Files, members: dict[str, Member]) -> Make:
    """Joins loaded members (two with different tokenizers) with any parts."""

    def made(*names: str, **parts: Any) -> Engine:
        config = configured(tiny_models, *names, **parts)
        return assemble(config, [members[name] for name in names or NAMES])

    return made


@pytest.fixture
def fitted(tiny_models: Files, tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of something learned for members by name."""

    def written(learned: Weights | Gate | Critical, *names: str) -> Path:
        path = tmp_path / "learned.json"
        member = [
            FileMember(name=name, sha256=identity(tiny_models[name])) for name in names or NAMES
        ]
        GateFile(member=member, learned=learned).save(path)
        return path

    return written


WEIGHTS = Weights(weights=[0.25, 0.75])
GATE = Gate(bias=[0.0, 0.0], matrix=[[0.1] * 9, [0.2] * 9], centre=[0.0] * 9)
CRITICAL = Critical(
    primary=1,
    weights=[0.7, 0.3],
    bias=0.0,
    coefficients=[1.0, 0.0, 0.0],
    centre=[0.0, 0.0, 0.0],
    threshold=0.5,
)


class TestStrategy:
    @pytest.mark.parametrize(
        ("names", "parts", "kind"),
        [
            (NAMES, {}, Bytes),
            (("smol", "smol"), {}, Fuse),
            (("smol",), {}, Fuse),
            (NAMES, {"weights": [1, 0]}, Fuse),
            (NAMES, {"gate": "always"}, Fuse),
            (NAMES, {"solo": "primary"}, Fuse),
            (NAMES, {"schedule": "lazy"}, Fuse),
            (NAMES, {"pool": "log-linear"}, Fuse),
            (NAMES, {"alignment": "topk-union"}, Fuse),
            (NAMES, {"alignment": "prefix-mass"}, Bytes),
            (NAMES, {"weighting": "prompt"}, Bytes),
            (("smol", "smol"), {"prune": 0.1}, Bytes),
            (NAMES, {"strategy": "fuse"}, Fuse),
            (("smol", "smol"), {"strategy": "bytes"}, Bytes),
            (NAMES, {"strategy": "bytes", "pool": "log-linear"}, Bytes),
            (NAMES, {"strategy": "mix"}, Mix),
        ],
    )
    def test_which(
        self, names: tuple[str, ...], parts: dict[str, Any], kind: type[Engine], make: Make
    ) -> None:
        assert type(make(*names, **parts)) is kind

    @pytest.mark.parametrize(
        ("parts", "expected"),
        [
            ({}, 16),  # who knows the tokenizers
            ({"beam": 3}, 6),
            ({"strategy": "bytes", "alignment": "prefix-mass"}, 0),
            ({"strategy": "fuse"}, 0),
            ({"strategy": "mix"}, 0),
            ({"gate": "always"}, 0),
            ({"weights": [1, 0]}, 0),
            ({"learned": "x.json", "pool": "log-linear"}, 16),  # perhaps a gate
        ],
    )
    def test_branches(self, parts: dict[str, Any], expected: int, tiny_models: Files) -> None:
        assert n_branches(configured(tiny_models, **parts)) == expected


class TestParts:
    def test_of_fuse(self, make: Make) -> None:
        fuse = make(
            strategy="fuse",
            name="both",
            pool="power",
            exponent=0.3,
            floor=-9,
            gate="always",
            solo="margin",
            threshold=2.0,
            primary="gemma3",
            guard=True,
            schedule="draft",
            draft_length=3,
            drafter="smol",
        )
        assert isinstance(fuse, Fuse)
        assert (fuse.name, fuse.pool.kind, fuse.pool.exponent) == ("both", "power", 0.3)
        assert (fuse.pool.floor, fuse.gate, fuse.guard, fuse.schedule) == (
            -9,
            "always",
            True,
            "draft",
        )
        assert fuse.draft is not None
        assert (fuse.draft.length, fuse.draft.drafter, fuse.draft.ngrams) == (3, "smol", False)
        assert type(fuse.solo).__name__ == "Margin"
        by_text = make(strategy="fuse", schedule="draft", drafter="prompt")
        assert isinstance(by_text, Fuse)
        assert by_text.draft is not None
        assert (by_text.draft.drafter, by_text.draft.ngrams) == (None, True)

    def test_of_pools(self, make: Make) -> None:
        union = make(strategy="fuse", alignment="topk-union", union_top=4)
        assert isinstance(union, Fuse)
        assert union.pool.union_top == 4
        exact = make(strategy="fuse", union_top=4)
        assert isinstance(exact, Fuse)
        assert exact.pool.union_top == 0

    def test_of_bytes(self, make: Make) -> None:
        exact = make(strategy="bytes", per="unit", weights=[3, 1])
        assert isinstance(exact, Bytes)
        assert (exact.per, exact.tokenisations) == ("unit", "all")
        assert exact.weights == [0.75, 0.25]
        near = make(alignment="prefix-mass")
        assert isinstance(near, Bytes)
        assert near.tokenisations == "canonical"

    @pytest.mark.parametrize(
        ("parts", "kind"),
        [
            ({}, Online),
            ({"weighting": "given"}, Given),
            ({"weighting": "online"}, Online),
            ({"weighting": "prompt"}, PromptBits),
            ({"weighting": "prompt-greedy"}, PromptGreedy),
            ({"strategy": "fuse"}, Given),
            ({"strategy": "fuse", "weighting": "given"}, Given),
            ({"strategy": "fuse", "weighting": "online"}, Online),
            ({"strategy": "fuse", "weighting": "prompt"}, PromptBits),
            ({"strategy": "bytes", "pool": "log-linear"}, Given),
            ({**CONTRAST, "weights": [1, -1]}, Given),
        ],
    )
    def test_weighting(self, parts: dict[str, Any], kind: type[Any], make: Make) -> None:
        engine = make(**parts)
        assert isinstance(engine, Fuse | Bytes)
        assert type(engine.weigher) is kind


class TestLearned:
    def test_weights(self, make: Make, fitted: Callable[..., Path]) -> None:
        for strategy in ("bytes", "fuse"):
            engine = make(strategy=strategy, learned=fitted(WEIGHTS))
            assert isinstance(engine, Fuse | Bytes)
            assert isinstance(engine.weigher, Given)
            assert engine.weights == engine.weigher.current() == [0.25, 0.75]
        online = make(weighting="online", learned=fitted(WEIGHTS))
        assert isinstance(online, Bytes)
        assert online.weigher.current() == pytest.approx([0.25, 0.75])

    def test_gate(self, make: Make, fitted: Callable[..., Path]) -> None:
        engine = make(learned=fitted(GATE))
        assert isinstance(engine, Bytes)
        assert engine.gate is not None
        one_vocabulary = make("smol", "smol", learned=fitted(GATE, "smol", "smol"))
        assert isinstance(one_vocabulary, Bytes)
        answer = list(engine.stream(Request(PROMPT, SamplingParams(temperature=0), max_tokens=8)))
        assert answer[-1].finish_reason is not None

    def test_critical(self, make: Make, fitted: Callable[..., Path]) -> None:
        """Its own primary leads, and alone where no token is critical."""
        for threshold, asked in ((2.0, False), (0.0, True)):
            rule = CRITICAL.model_copy(update={"threshold": threshold})
            engine = make(learned=fitted(rule), schedule="lazy", gate="always")
            assert isinstance(engine, Fuse)
            assert engine.weights == [0.7, 0.3]
            request = Request(PROMPT, SamplingParams(temperature=0), max_tokens=8)
            steps = [step for chunk in engine.stream(request) for step in chunk.steps]
            for step in steps:
                assert step.wishes[1] is not None
                assert (step.wishes[0] is not None) == asked
        auto = make(learned=fitted(CRITICAL), primary="gemma3")
        assert isinstance(auto, Fuse)


def learned_cases() -> list[Any]:
    """What a file is asked to do that it cannot: file, its members, parts, words, key."""
    return [
        (WEIGHTS, ("gemma3", "smol"), {}, "in another order; give them as gemma3, smol", None),
        (WEIGHTS, ("smol", "qwen2"), {}, "fitted for another model than member 1", None),
        (WEIGHTS, NAMES, {"weights": [1, 2]}, "brings the weights", "learned"),
        (WEIGHTS, NAMES, {"weighting": "prompt"}, "off the prompt", "weighting"),
        (WEIGHTS, NAMES, {"pool": "log-linear"}, "was fitted for the linear pool", "pool"),
        (WEIGHTS, NAMES, {"solo": "critical"}, "needs learned=FILE", "learned"),
        (GATE, NAMES, {"strategy": "fuse"}, "a learned gate needs strategy='bytes'", "strategy"),
        (GATE, NAMES, {"strategy": "mix"}, "'mix' has no 'learned'", "learned"),
        (GATE, NAMES, {"schedule": "lazy"}, "'bytes' has no 'schedule'", "schedule"),
        (GATE, NAMES, {"weighting": "online"}, "leaves no other weighting", "weighting"),
        (GATE, NAMES, {"pool": "log-linear"}, "weighs the linear pool only", None),
        (CRITICAL, NAMES, {"strategy": "bytes"}, "needs strategy='fuse'", "strategy"),
        (CRITICAL, NAMES, {"solo": "margin", "threshold": 1.0}, "needs solo='critical'", "solo"),
        (CRITICAL, NAMES, {"threshold": 0.5}, "takes no threshold", "threshold"),
        (CRITICAL, NAMES, {"primary": "smol"}, "was fitted for 'gemma3' as the primary", "primary"),
        (CRITICAL, NAMES, {"pool": "min"}, "was fitted for the linear pool", "pool"),
    ]


@pytest.mark.parametrize(("learned", "names", "parts", "words", "key"), learned_cases())
def test_what_was_learned_does_not_fit(
    learned: Weights | Gate | Critical,
    names: tuple[str, ...],
    parts: dict[str, Any],
    words: str,
    key: str | None,
    make: Make,
    fitted: Callable[..., Path],
) -> None:
    with pytest.raises(ConfigError if key else LogitfuseError, match=re.escape(words)) as caught:
        make(learned=fitted(learned, *names), **parts)
    assert getattr(caught.value, "key", None) == key


#: Parts that need no model to be refused, the words, and the key (None: FusionError).
AT_ONCE: list[tuple[dict[str, Any], str, str | None]] = [
    ({"weights": [1, -1]}, "the weight of member 1 must be a finite number >= 0", None),
    ({"weights": [0, 0]}, "sum above 0", None),
    ({**CONTRAST, "weights": [-1, -1]}, "a contrast needs a member of positive weight", None),
    ({"pool": "product", "weights": [1, 1e7]}, "at most 1e6", None),
    ({"solo": "entropy"}, "needs a threshold", "threshold"),
    ({"solo": "margin"}, "needs a threshold", "threshold"),
    ({"solo": "primary", "threshold": 1.5}, "a probability in 0..1", "threshold"),
    ({"solo": "margin", "threshold": -1.0}, "at least 0", "threshold"),
    ({"solo": "certain", "threshold": 0.5}, "takes no threshold", "threshold"),
    ({"solo": "critical"}, "needs learned=FILE", "learned"),
    ({"threshold": 0.5}, "a threshold needs a solo rule", "threshold"),
    ({"draft_length": 3}, "need schedule='draft'", "schedule"),
    ({"drafter": "smol", "schedule": "lazy"}, "need schedule='draft'", "schedule"),
    ({**CONTRAST, "weighting": "online"}, "takes weights as given", "weighting"),
    ({"pool": "product", "weighting": "prompt"}, "takes weights as given", "weighting"),
    ({"weighting": "prompt", "weights": [1, 0]}, "off the prompt; give no others", "weighting"),
    ({"strategy": "bytes", "schedule": "lazy"}, "'bytes' has no 'schedule'", "schedule"),
    ({"strategy": "bytes", "solo": "primary"}, "'bytes' has no 'solo'", "solo"),
    ({"strategy": "bytes", "gate": "always"}, "'bytes' has no 'gate'", "gate"),
    ({"strategy": "bytes", "guard": True}, "'bytes' has no 'guard'", "guard"),
    ({"strategy": "bytes", "alignment": "embedding"}, "needs strategy='fuse'", "alignment"),
    ({"strategy": "bytes", "alignment": "topk-union"}, "needs strategy='fuse'", "alignment"),
    ({"strategy": "fuse", "alignment": "prefix-mass"}, "needs strategy='bytes'", "alignment"),
    ({"strategy": "fuse", "per": "unit"}, "'fuse' has no 'per'", "per"),
    ({"strategy": "fuse", "beam": 4}, "'fuse' has no 'beam'", "beam"),
    ({"strategy": "mix", "pool": "min"}, "'mix' has no 'pool'", "pool"),
    ({"strategy": "mix", "floor": -3}, "'mix' has no 'floor'", "floor"),
    ({"strategy": "mix", "weighting": "online"}, "'mix' has no 'weighting'", "weighting"),
    ({"strategy": "mix", "alignment": "embedding"}, "'mix' has no 'alignment'", "alignment"),
    ({"strategy": "mix", "gate": "always"}, "'mix' has no 'gate'", "gate"),
    ({"preset": "safe", "strategy": "bytes"}, "'schedule' of the preset 'safe'", "schedule"),
    ({"preset": "unite", "strategy": "bytes"}, "'gate' of the preset 'unite'", "gate"),
    ({"preset": "co-llm"}, "needs learned=FILE", "learned"),
    ({"preset": "packllm", "weights": [1, 2]}, "off the prompt", "weighting"),
]

#: The same with loaded models.
WITH_MODELS: list[tuple[dict[str, Any], str, str | None]] = [
    ({**CONTRAST, "plausibility": 0.0, "weights": [1, -1]}, "plausibility", None),
    ({**CONTRAST, "plausibility": 1.5}, "plausibility", None),
    ({"pool": "power", "exponent": 0.0}, "exponent", None),
    ({"strategy": "bytes", "pool": "power", "exponent": 0.0}, "exponent", None),
    ({"strategy": "bytes", "pool": "contrast", "plausibility": 0.0}, "plausibility", None),
    ({"strategy": "bytes", "per": "unit", "pool": "log-linear"}, "only the linear pool", None),
    ({"primary": "nobody"}, "no member 'nobody' with weight; there are 'smol'", "primary"),
    ({"schedule": "draft", "drafter": "nobody"}, "no member 'nobody'", "drafter"),
    ({"primary": "gemma3", "weights": [1, 0]}, "no member 'gemma3' with weight", "primary"),
    ({"schedule": "draft", "draft_length": 512}, "must lie in 1..64, not 512", "length"),
    ({"preset": "cp-delta"}, "needs members with one tokenizer", "preset"),
    ({"preset": "contrastive"}, "needs members with one tokenizer", "preset"),
    ({"beam": 9}, "a beam of 9 needs members with 18 branches", "width"),
    ({"beam": 4, "gate": "always"}, "'bytes' has no 'gate'", "gate"),
]


def refuse(action: Callable[[], object], words: str, key: str | None) -> None:
    """One typed error that says what is wrong."""
    with pytest.raises(ConfigError if key else FusionError, match=re.escape(words)) as caught:
        action()
    assert getattr(caught.value, "key", None) == key
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("parts", "words", "key"), AT_ONCE)
def test_before_anybody_waits(
    parts: dict[str, Any], words: str, key: str | None, tiny_models: Files, make: Make
) -> None:
    refuse(lambda: check_parts(configured(tiny_models, **parts)), words, key)
    refuse(lambda: make(**parts), words, key)
    missing = {name: Path("nowhere.gguf") for name in NAMES}
    refuse(lambda: build(configured(missing, **parts)), words, key)


@pytest.mark.parametrize(("parts", "words", "key"), WITH_MODELS)
def test_with_models(parts: dict[str, Any], words: str, key: str | None, make: Make) -> None:
    refuse(lambda: make(**parts), words, key)


def test_mix_is_never_greedy(make: Make) -> None:
    request = Request(PROMPT, SamplingParams(temperature=0), max_tokens=2)
    mix = make(strategy="mix")
    refuse(
        lambda: next(mix.stream(request)), "greedy sampling draws nothing", "sampling.temperature"
    )


@pytest.mark.parametrize(("parts", "words", "key"), [*AT_ONCE[::6], *WITH_MODELS[::5]])
def test_the_facade_refuses_alike(
    parts: dict[str, Any], words: str, key: str | None, tiny_models: Files
) -> None:
    paths = [tiny_models[name] for name in NAMES]
    refuse(lambda: Ensemble(paths, n_threads=1, **parts), words, key)


OPTIONS = ("preset", "strategy", "pool", "alignment", "weighting", "gate", "solo", "schedule")


@pytest.mark.parametrize(("parts", "words", "key"), [*AT_ONCE, *WITH_MODELS])
def test_the_command_line(
    parts: dict[str, Any],
    words: str,
    key: str | None,
    tiny_models: Files,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit 2 and one line."""
    monkeypatch.setattr("logitfuse.cli.output.piped", lambda: b"")
    if "beam" in parts and key == "width":
        return  # the command line makes members with enough branches
    arguments = ["run", PROMPT, "-t", "1", "-c", "512", "-n", "2"]
    for name in NAMES:
        arguments += ["-m", str(tiny_models[name])]
    for name, value in parts.items():
        if name == "weights":
            arguments += ["--weights", ",".join(map(str, value))]
        elif name in OPTIONS:
            arguments += [f"--{name}", value]
        else:
            arguments += ["--set", f"{name}={str(value).lower() if value is True else value}"]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert re.fullmatch(r"logitfuse: [^\n]+\n", err)
    assert words in err

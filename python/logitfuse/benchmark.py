"""Measure an ensemble beside each of its members alone, all in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from logitfuse.errors import ConfigError
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Chunk, Request

if TYPE_CHECKING:
    from logitfuse.member import Member
    from logitfuse.strategies.engine import Engine

#: Where the time of a run goes; what is left belongs to chunks and stop strings.
PARTS = ("prefill", "decode", "sync", "fuse", "sample")
#: Name of the ensemble's own rows.
TOGETHER = "together"
#: Tokens of the run that warms up.
_WARM_UP = 4


class Trial(NamedTuple):
    """How long the prompt is and how much is generated, tokens; 0: that part is not measured."""

    n_prompt: int
    n_gen: int

    @property
    def name(self) -> str:
        """As in llama-bench, e.g. ``pp512+tg128``."""
        parts = (("pp", self.n_prompt), ("tg", self.n_gen))
        return "+".join(f"{part}{n}" for part, n in parts if n)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes
    ----------
    tests : sequence of Trial
    repetitions : int
        Rounds, after one to warm up.
    threads : sequence of (int or None)
        Threads of every member, one value after the other; None: as they are.
    sampling : SamplingParams
        Greedy by default.

    Raises
    ------
    ConfigError
        Nothing to measure; a number that is too small.
    """

    tests: Sequence[Trial]
    repetitions: int
    threads: Sequence[int | None] = (None,)
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0))

    def __post_init__(self) -> None:
        if self.repetitions < 1 or any(n is not None and n < 1 for n in self.threads):
            raise ConfigError("repetitions and threads must be at least 1")
        if any(min(test) < 0 for test in self.tests):
            raise ConfigError("lengths of prompts and answers must be 0 (skip it) or more")
        if not any(test.name for test in self.tests):
            raise ConfigError("there is nothing to measure without a prompt and an answer (-p, -n)")

    @property
    def kept(self) -> list[Trial]:
        """The tests that measure something."""
        return [test for test in self.tests if test.name]

    def runs(self, n_members: int) -> int:
        """How often `measure` calls back."""
        rows = n_members + (n_members > 1)
        return len(self.kept) * len(self.threads) * rows * (self.repetitions + 1)


@dataclass
class Series:
    """The repetitions of one test by one generator: one figure per round.

    Attributes
    ----------
    name : str
        A member's, or `TOGETHER`.
    test : Trial
    threads : tuple of int
        Of each member.
    n_batch : int
        Most prompt tokens per decode call.
    prompt_tokens : int
        What the prompt really was, in tokens of the first member that runs.
    figures : dict of list of float
        ``prompt_per_s, tokens_per_s`` (steps), ``bytes_per_s``; seconds and shares of the whole
        run for each of `PARTS`; ``total_s``; ``overhead``: the share of the time after the prompt
        that is not spent waiting for `llama_decode`; ``fused_share``; and, together,
        ``of_slowest, of_fastest``: speed over that member's in the same round.
    """

    name: str
    test: Trial
    threads: tuple[int, ...]
    n_batch: int
    prompt_tokens: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **figures: float) -> None:
        """Add one round's figures."""
        for key, value in figures.items():
            self.figures.setdefault(key, []).append(value)

    def mean(self, key: str) -> float:
        """Mean over the rounds."""
        return statistics.fmean(self.figures[key])

    def spread(self, key: str) -> float:
        """Standard deviation over the rounds."""
        values = self.figures[key]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, figures as mean and ``_sd``."""
        data: dict[str, Any] = {
            "name": self.name,
            "test": self.test.name,
            "threads": "+".join(map(str, self.threads)),
            "n_batch": self.n_batch,
            "n_prompt": self.test.n_prompt,
            "n_gen": self.test.n_gen,
            "prompt_tokens": self.prompt_tokens,
        }
        for key in self.figures:
            data[key] = self.mean(key)
            data[f"{key}_sd"] = self.spread(key)
        return data


def measure(
    engine: Engine, plan: Plan, text: str, *, advance: Callable[[], object] = bool
) -> list[Series]:
    """Run all tests on every member alone and on all together.

    Within a test all take turns, so that other load on the machine falls on all alike.

    Parameters
    ----------
    engine : Engine
    plan : Plan
    text : str
        Prompts are cut from it; it is repeated as often as they need.
    advance : callable
        Called after each of the `Plan.runs`.

    Raises
    ------
    ConfigError
        A context is too small.
    """
    from logitfuse.strategies.fuse import Fuse  # llama.cpp is loaded where it is needed

    prompts = {test: _prompt(engine, test, text) for test in plan.kept}
    alone: list[Engine] = [Fuse([member], name=member.name) for member in engine.members]
    found: list[Series] = []
    own = [member.context.n_threads for member in engine.members]
    try:
        for n_threads in plan.threads:
            for member, n in zip(engine.members, own, strict=True):
                member.context.set_threads(n_threads or n)
            for test, prompt in prompts.items():
                found += _in_turns(engine, alone, plan, test, prompt, advance)
    finally:
        for member, n in zip(engine.members, own, strict=True):
            member.context.set_threads(n)
    return found


def _in_turns(
    engine: Engine,
    alone: Sequence[Engine],
    plan: Plan,
    test: Trial,
    prompt: str,
    advance: Callable[[], object],
) -> list[Series]:
    """One test, by all."""
    generators = [*alone, engine] if len(alone) > 1 else [engine]
    series = []
    for generator in generators:
        contexts = [member.context for member in generator.members]
        series.append(
            Series(
                TOGETHER if generator is engine and len(alone) > 1 else generator.members[0].name,
                test,
                tuple(context.n_threads for context in contexts),
                min(context.n_batch for context in contexts),
            )
        )
    for round_ in range(plan.repetitions + 1):
        for generator, result in zip(generators, series, strict=True):
            n = max(1, test.n_gen if round_ else min(_WARM_UP, test.n_gen))
            chunks = _answer(generator, Request(prompt, plan.sampling, n, ignore_end=True))
            if round_:
                _record(generator, result, chunks)
            advance()
    if len(series) > 1:
        _compare(series)
    return series


def _answer(generator: Engine, request: Request) -> list[Chunk]:
    for member in generator.members:
        member.reset()
    chunks = list(generator.stream(request))
    if request.max_tokens is not None and generator.stats.steps < request.max_tokens:
        raise ConfigError(
            f"a context was full after {generator.stats.steps} of {request.max_tokens} tokens; "
            "raise -c/--ctx-size"
        )
    return chunks


def _record(generator: Engine, series: Series, chunks: Sequence[Chunk]) -> None:
    stats = generator.stats
    series.prompt_tokens = stats.prompt_tokens
    if series.test.n_prompt:
        series.add(prompt_per_s=stats.prompt_tokens / stats.prefill_s)
    if not series.test.n_gen:
        series.add(prefill_s=stats.prefill_s)
        return
    answering = stats.total_s - stats.prefill_s
    seconds = {part: getattr(stats, f"{part}_s") for part in PARTS}
    series.add(
        tokens_per_s=stats.steps / answering,
        bytes_per_s=sum(len(chunk.text.encode()) for chunk in chunks) / answering,
        total_s=stats.total_s,
        **{f"{part}_s": s for part, s in seconds.items()},
        **{f"{part}_share": s / stats.total_s for part, s in seconds.items()},
        overhead=1 - stats.decode_s / answering,
        fused_share=stats.fused_share,
    )


def _compare(series: Sequence[Series]) -> None:
    """Add what the ensemble, which is the last, is beside the slowest and the fastest member."""

    def speeds(one: Series) -> list[float]:
        if one.test.n_gen:
            return one.figures["tokens_per_s"]
        return [1 / s for s in one.figures["prefill_s"]]  # tokens of a prompt are not comparable

    *members, together = (speeds(one) for one in series)
    for key, chosen in (
        ("of_slowest", min(members, key=statistics.fmean)),
        ("of_fastest", max(members, key=statistics.fmean)),
    ):
        for ours, theirs in zip(together, chosen, strict=True):
            series[-1].add(**{key: ours / theirs})


def _prompt(engine: Engine, test: Trial, text: str) -> str:
    """About as many tokens of the first member as the test wants, at least one."""
    first, wanted = engine.members[0], max(1, test.n_prompt)
    _require_room(first, wanted, test)
    while len(first.tokenize(text.encode())) < wanted:
        text += text
    tokens = first.tokenize(text.encode())[:wanted]
    prompt = first.vocab.join(tokens).decode("utf-8", "ignore") or text[:1]
    for member in engine.members:
        _require_room(member, len(member.tokenize_prompt(prompt)), test)
    return prompt


def _require_room(member: Member, n_prompt: int, test: Trial) -> None:
    needed = n_prompt + max(1, test.n_gen)
    if needed > member.n_ctx:
        raise ConfigError(
            f"member '{member.name}' has n_ctx={member.n_ctx} but {test.name} takes {needed} "
            "tokens; raise -c/--ctx-size"
        )

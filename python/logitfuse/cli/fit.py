"""``logitfuse fit``: weights and gates for your own text, and whether they pay."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.progress import Progress, TaskID

from logitfuse.cli import output
from logitfuse.cli.options import Flag, ModelOptions
from logitfuse.config import WIDTH, FuseConfig, locate
from logitfuse.critical_gates import CriticalFigures, train_critical
from logitfuse.errors import ConfigError
from logitfuse.fitting import MIN_BYTES, FitReport, Interval, fit_outcomes, fit_text
from logitfuse.gatefile import (
    Critical,
    FileMember,
    Gate,
    GateFile,
    Weights,
    finite,
    identity,
)
from logitfuse.learned_gates import GateFigures, train_gate

if TYPE_CHECKING:
    from logitfuse.bytescores import ByteScores

Kind = Literal["weights", "gate", "critical"]


@dataclass(frozen=True)
class _Result:
    """What was learned, for whom, and what it is worth."""

    names: tuple[str, ...]
    learned: Weights | Gate | Critical
    figures: FitReport | GateFigures | CriticalFigures

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures = self.figures.as_dict() | {"verdict": self.figures.verdict}
        return {"names": self.names, "learned": self.learned.model_dump(), "figures": figures}


def fit(
    text_file: Path | None = None,
    *,
    outcomes: Path | None = None,
    kind: Kind = "weights",
    save_as: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    json: Flag = False,
    models: ModelOptions | None = None,
) -> None:
    """Fit weights or a gate to a text, and tell on held-out parts of it whether they pay.

    Examples:

        logitfuse fit my_text.txt -m a.gguf -m b.gguf -o pair.json

        logitfuse fit my_text.txt -m a.gguf -m b.gguf --kind gate

        logitfuse fit --outcomes answers.jsonl

    Parameters
    ----------
    text_file
        Text like the one to be generated, at least 512 bytes.
    outcomes
        Instead: JSON lines {"question": id, "member": name, "logprob": nats of the right answer}.
    kind
        weights: constant ones; gate: weights that depend on how sure the members are; critical:
        at which bytes the first member had better ask the others.
    save_as
        Keep what was fitted in this file.
    json
        Print JSON.
    """
    options = models or ModelOptions()
    if (text_file is None) == (outcomes is None):
        raise ConfigError("give either a text file or --outcomes FILE")
    if options.weights is not None:
        raise ConfigError("--weights has no meaning here: weights are what is fitted")
    if outcomes is not None:
        config, data = _for_outcomes(options, kind, save_as), _read(outcomes)
        names = [_name(config, m) for m in range(len(config.member))] if config else None
        report = fit_outcomes(outcomes, names=names)
        result = _Result(report.names, Weights(weights=list(report.weights)), report)
    else:
        assert text_file is not None
        config, data = options.config(), _read_text(text_file)
        if len(config.member) < 2:
            raise ConfigError("one member: there is nothing to fit; give -m or -hf at least twice")
        result = _learn(config, score(config, data), kind)
    if save_as is not None:
        assert config is not None
        _save(save_as, config, result, data)
    if json:
        output.dump(finite(result.as_dict()))
    else:
        _print(result)


def score(config: FuseConfig, text: bytes) -> list[ByteScores]:
    """The byte matrix of every member; one model at a time is in memory."""
    from logitfuse.bytescores import score_bytes
    from logitfuse.member import Member, cores

    scores = []
    with output.progress() as bar:
        for m, entry in enumerate(config.member):
            task = bar.add_task(_name(config, m), total=len(text))
            kept = entry.model_dump(exclude={"model", "hf", "weight", "n_threads"})
            kept["n_branches"] = 2 * WIDTH
            member = Member(locate(entry), n_threads=entry.n_threads or cores(), **kept)
            try:
                scores.append(score_bytes(member, text, progress=partial(_show, bar, task)))
            finally:
                member.close()
    return scores


def _learn(config: FuseConfig, scores: list[ByteScores], kind: Kind) -> _Result:
    names = tuple(_name(config, m) for m in range(len(config.member)))
    with output.progress() as bar:
        show = partial(_show, bar, bar.add_task("fitting"))
        if kind == "weights":
            report = fit_text(scores, names=names, pool=config.pool, progress=show)
            weights = Weights(weights=list(report.weights), pool=config.pool)
            return _Result(names, weights, report)
        if config.pool != "linear":
            raise ConfigError(f"a {kind} is fitted for the linear pool, not {config.pool}")
        if kind == "gate":
            gate = train_gate(scores, progress=show)
            return _Result(names, Gate.of(gate), gate.figures)
        critical = train_critical(scores, progress=show)
        return _Result(names, Critical.of(critical), critical.figures)


def _for_outcomes(options: ModelOptions, kind: Kind, save_as: Path | None) -> FuseConfig | None:
    if kind != "weights":
        raise ConfigError(f"--kind {kind} needs a text file: outcomes tell nothing about tokens")
    given = options.model or options.hf_repo or options.ensemble
    if not given:
        if save_as is not None:
            raise ConfigError("-o needs the models that the weights are for: give -m or -hf")
        return None
    config = options.config()
    if config.pool != "linear":
        raise ConfigError(f"outcomes fit weights of the linear pool, not {config.pool}")
    return config


def _name(config: FuseConfig, member: int) -> str:
    entry = config.member[member]
    return entry.name or locate(entry).stem


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error}", path=path) from error


def _read_text(path: Path) -> bytes:
    data = _read(path)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the text '{path}' is not valid UTF-8: {error}", path=path) from None
    if len(data) < MIN_BYTES:
        what = f"has only {len(data)} bytes" if data else "is empty"
        raise ConfigError(
            f"the text '{path}' {what}; give at least {MIN_BYTES}, better 10,000", path=path
        )
    return data


def _save(path: Path, config: FuseConfig, result: _Result, data: bytes) -> None:
    with output.working("hashing the models"):
        members = [
            FileMember(name=name, sha256=identity(locate(entry)))
            for name, entry in zip(result.names, config.member, strict=True)
        ]
    GateFile(
        member=members,
        learned=result.learned,
        data_sha256=hashlib.sha256(data).hexdigest(),
        figures=finite(result.as_dict()["figures"]),
    ).save(path)
    output.note(f"written: {path}")


def _show(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def _print(result: _Result) -> None:
    figures = result.figures
    if isinstance(figures, FitReport):
        _print_weights(figures)
    elif isinstance(figures, GateFigures):
        _print_gate(result.names, figures)
    else:
        _print_critical(result, figures)
    output.out.print(figures.verdict)


def _print_weights(report: FitReport) -> None:
    rows = [
        (name, f"{weight:.3f}", f"{bits:.4f}")
        for name, weight, bits in zip(report.names, report.weights, report.members, strict=True)
    ]
    rows += [
        ("best member", "", f"{report.best:.4f}"),
        ("equal weights", f"{1 / len(report.names):.3f}", f"{report.uniform:.4f}"),
        ("fitted weights", "", f"{report.fitted:.4f}"),
    ]
    bits = f"bits per {report.unit}"
    title = f"Held out in {len(report.folds)} parts of {report.n:,} {report.unit}s"
    output.out.print(output.table(title, ("", "weight", bits), rows))
    if report.left_out:
        output.out.print(f"{report.left_out} that no member can spell are left out")
    output.out.print(_gain("fitted weights", "equal weights", report.over_uniform, bits))
    output.out.print(_gain("fitted weights", "the best member", report.over_best, bits))


def _print_gate(names: tuple[str, ...], figures: GateFigures) -> None:
    rows = [
        *zip(names, (f"{bits:.4f}" for bits in figures.members), strict=True),
        ("best member", f"{figures.best:.4f}"),
        ("equal weights", f"{figures.uniform:.4f}"),
        ("fitted weights", f"{figures.constant:.4f}"),
        ("online weights", f"{figures.online:.4f}"),
        ("gate", f"{figures.gate:.4f}"),
    ]
    title = f"Held out: {figures.held_out:,} of {figures.n:,} bytes"
    output.out.print(output.table(title, ("", "bits per byte"), rows))
    output.out.print(_gain("the gate", "fitted weights", figures.over_constant, "bits per byte"))
    output.out.print(_gain("the gate", "the best member", figures.over_best, "bits per byte"))


def _print_critical(result: _Result, figures: CriticalFigures) -> None:
    assert isinstance(result.learned, Critical)
    rows = [
        (f"{result.names[result.learned.primary]} alone", "", f"{figures.primary:.4f}"),
        ("all, always", output.percent(1.0), f"{figures.always:.4f}"),
        ("all, if critical", output.percent(figures.asked), f"{figures.critical:.4f}"),
    ]
    title = f"Held out: {figures.held_out:,} of {figures.n:,} bytes"
    output.out.print(output.table(title, ("", "asked", "bits per byte"), rows))


def _gain(this: str, that: str, gain: Interval, bits: str) -> str:
    return (
        f"{this} save {gain.mean:.4f} {bits} over {that} (95 %: {gain.low:.4f} to {gain.high:.4f})"
    ).replace("the gate save", "the gate saves")

"""``logitfuse check``: do these models fit together?  Answered before anybody waits."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.progress import Progress, TaskID

from logitfuse.alignment import Alignment, Coverage, align
from logitfuse.cli import output
from logitfuse.cli.options import Flag, ModelOptions
from logitfuse.config import FuseConfig, build, locate
from logitfuse.errors import ConfigError
from logitfuse.vocab import Vocab

if TYPE_CHECKING:
    from logitfuse.llama import LlamaModel

#: Used where no text is given: prose, figures, code.
SAMPLE = """\
The harbour lay quiet under the morning fog. Two boats had come in before dawn, and the fishermen
were already sorting the catch: 38 crates of herring, 12 of cod, one small halibut. Prices had
fallen by 7.5 % since March, so nobody spoke much. "We should have stayed out another day," said
the older of the two, and lit his pipe.

def moving_average(values, window):
    total = sum(values[:window])
    averages = [total / window]
    for i in range(window, len(values)):
        total += values[i] - values[i - window]
        averages.append(total / window)
    return averages

The function above keeps a running total instead of summing every window again, which makes it
linear in the number of values. It returns an empty result for an empty list only if the window is
not larger than the list; otherwise the first average is taken over fewer values than expected.
"""
#: Members whose bits per byte differ by more than this share rarely gain from equal weights.
_GAP = 0.10
#: Where so large a share of boundaries and tokens is common, fusing tokens loses next to nothing.
_COMMON = 0.97
#: Where a smaller share of the tokens used has a twin, the others are worth a projection.
_TWINS = 0.9


def check(
    text_file: Annotated[Path | None, Parameter(name=["--file", "-f"])] = None,
    *,
    quick: Flag = False,
    json: Flag = False,
    models: ModelOptions | None = None,
) -> None:
    """Tell whether models fit together: tokens, boundaries, templates, memory, bits per byte.

    Says which strategy and alignment suit them.

    Examples:

        logitfuse check -m a.gguf -m b.gguf

        logitfuse check -m a.gguf -m b.gguf -f my_text.txt --json

    Parameters
    ----------
    text_file
        Text like the one to be generated; a short English sample with code by default.  A text
        from a pipe counts as well.
    quick
        Read the vocabularies only: no bits per byte.
    json
        Print JSON.
    """
    from logitfuse.llama import LlamaModel

    config = (models or ModelOptions()).config()
    text = _read_text(text_file)
    with output.working("reading the vocabularies"):
        heads = [LlamaModel(locate(entry), vocab_only=True) for entry in config.member]
        alignment = align([Vocab.from_llama(head) for head in heads])
        coverage = alignment.coverage(text)
    report = _describe(config, heads, alignment, coverage, text)
    if not json:
        _print_fit(report)
    if not quick:
        _score(config, report, text)
        if not json:
            _print_scores(report)
    if json:
        output.dump(report)


def _read_text(path: Path | None) -> bytes:
    try:
        data = output.piped() if path is None else path.read_bytes()
        data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the text: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the text is not valid UTF-8: {error}") from None
    return data or SAMPLE.encode()


def _describe(
    config: FuseConfig,
    heads: list[LlamaModel],
    alignment: Alignment,
    coverage: Coverage,
    text: bytes,
) -> dict[str, Any]:
    members: list[dict[str, Any]] = []
    for entry, head, vocab in zip(config.member, heads, alignment.vocabs, strict=True):
        n_ctx = head.default_n_ctx(entry.n_ctx)
        members.append(
            {
                "name": entry.name or head.path.stem,
                "architecture": head.architecture,
                "n_vocab": len(vocab),
                "n_ctx": n_ctx,
                "end_tokens": [vocab.token_bytes(int(i)).decode() for i in vocab.end_ids],
                "chat_template": head.chat_template is not None,
                "tokens_in_text": len(vocab.tokenize(text)),
                "weight_bytes": head.path.stat().st_size,
                "cache_bytes": head.cache_bytes(n_ctx),
            }
        )
    assert coverage.emitted is not None
    assert coverage.boundaries is not None
    return {
        "members": members,
        "symbols": len(alignment),
        "identical_vocabularies": alignment.identical,
        "coverage": {
            "types": coverage.types.tolist(),
            "emitted": coverage.emitted.tolist(),
            "boundaries": coverage.boundaries.tolist(),
            "common_boundaries": coverage.common,
        },
        "suits": _suits(alignment, coverage),
        "memory": {
            "needed_bytes": sum(m["weight_bytes"] + m["cache_bytes"] for m in members),
            "available_bytes": available_memory(),
        },
    }


def _suits(alignment: Alignment, coverage: Coverage) -> dict[str, str]:
    """The strategy and alignment that these vocabularies call for, and why."""
    assert coverage.emitted is not None
    assert coverage.common is not None
    twins = float(coverage.emitted.min())
    if alignment.identical:
        strategy, reason = "fuse", "there is one vocabulary, so nothing is lost token by token"
    elif min(coverage.common, twins) >= _COMMON:
        strategy = "fuse"
        reason = (
            f"{output.percent(coverage.common)} of the boundaries are common and at least "
            f"{output.percent(twins)} of the tokens used have twins, so tokens are nearly as good "
            "as bytes and cost less"
        )
    else:
        strategy = "bytes"
        reason = (
            f"{output.percent(coverage.common)} of the boundaries are common and as few as "
            f"{output.percent(twins)} of the tokens used have twins, which costs nothing byte by "
            "byte; if forward passes are dear, --alignment prefix-mass needs fewer"
        )
        if twins < _TWINS:
            reason += ", and if it has to be tokens, --alignment embedding finds the others a place"
    return {"strategy": strategy, "alignment": "exact", "reason": reason}


def _score(config: FuseConfig, report: dict[str, Any], text: bytes) -> None:
    """Add every member's bits per byte and what the gap means."""
    from logitfuse.scoring import score_text

    with output.working("loading the models"):
        fuse = build(config)
    try:
        with output.progress() as bar:
            for member, entry in zip(fuse.members, report["members"], strict=True):
                task = bar.add_task(member.name)
                score = score_text(member, text, partial(_show, bar, task))
                entry["bits_per_byte"] = score.bits_per_byte
                entry["scored_bytes"] = score.n_bytes
    finally:
        fuse.close()
    bits = [entry["bits_per_byte"] for entry in report["members"]]
    report["gap"] = max(bits) / min(bits) - 1
    report["advice"] = _advice(report)


def _show(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def _advice(report: dict[str, Any]) -> str:
    names = [entry["name"] for entry in report["members"]]
    bits = [entry["bits_per_byte"] for entry in report["members"]]
    best = names[bits.index(min(bits))]
    if len(bits) == 1:
        return "one member: nothing to ensemble"
    if report["gap"] <= _GAP:
        return (
            f"the members are within {100 * _GAP:.0f} % of each other on this text: equal weights "
            "are a good start"
        )
    return (
        f"{best} predicts this text {100 * report['gap']:.0f} % better than the weakest member: "
        "equal weights may do worse than the best member alone; raise its --weights and measure"
    )


def available_memory() -> int | None:
    """Memory that can still be taken, bytes; None where the system does not say."""
    try:
        with Path("/proc/meminfo").open() as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def _print_fit(report: dict[str, Any]) -> None:
    members = report["members"]
    output.out.print(
        output.table(
            "Members",
            ("name", "architecture", "tokens", "context", "ends", "template", "weights", "cache"),
            (
                (
                    m["name"],
                    m["architecture"],
                    f"{m['n_vocab']:,}",
                    str(m["n_ctx"]),
                    " ".join(m["end_tokens"]),
                    "own" if m["chat_template"] else "transcript",
                    _mib(m["weight_bytes"]),
                    _mib(m["cache_bytes"]),
                )
                for m in members
            ),
        )
    )
    coverage = report["coverage"]
    if len(members) > 1:
        rows = []
        for a, one in enumerate(members):
            for b, other in enumerate(members):
                if a != b:
                    figures = (coverage[k][a][b] for k in ("types", "emitted", "boundaries"))
                    rows.append(
                        (f"{one['name']} -> {other['name']}", *map(output.percent, figures))
                    )
        output.out.print(
            output.table(
                "Share of the first one's ... that the second one has",
                ("pair", "token types", "tokens used", "boundaries"),
                rows,
            )
        )
        output.out.print(
            f"common to all: {output.percent(coverage['common_boundaries'])} of the boundaries"
            + (" (one vocabulary)" if report["identical_vocabularies"] else "")
        )
        suits = report["suits"]
        output.out.print(
            f"suits: --strategy {suits['strategy']} --alignment {suits['alignment']}, as "
            f"{suits['reason']}",
            markup=False,
        )
    memory = report["memory"]
    available = memory["available_bytes"]
    line = f"memory: {_mib(memory['needed_bytes'])} needed"
    if available is not None:
        line += f", {_mib(available)} available"
        if memory["needed_bytes"] > available:
            line += " - too little; use smaller models, a smaller -c, or -ngl"
    output.out.print(line)


def _print_scores(report: dict[str, Any]) -> None:
    rows = [
        (m["name"], f"{m['bits_per_byte']:.3f}", str(m["scored_bytes"]), str(m["tokens_in_text"]))
        for m in report["members"]
    ]
    output.out.print(
        output.table("On this text", ("name", "bits per byte", "bytes", "tokens"), rows)
    )
    output.out.print(report["advice"])


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.0f} MiB"

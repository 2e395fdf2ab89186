"""Print how well strategies, as they run, predict texts: ``python bench/strategies.py``.

Every strategy is given the beginnings of the twelve texts of `texts` and says how probable they are
to it (`Engine.score`), unit by unit; ``quality.py`` pools the members' own beliefs instead, byte by
byte, and so compares rules that no strategy runs.  Outcomes are kept (``--cache``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import models
from logitfuse.assembly import assemble
from logitfuse.config import FuseConfig, parse_config
from logitfuse.evaluation.bpb import BpbTask, Window
from logitfuse.evaluation.contenders import Contender, contenders
from logitfuse.evaluation.runner import Run
from logitfuse.evaluation.statistics import Interval, Resamples
from logitfuse.evaluation.table import Outcome, OutcomeTable
from logitfuse.member import Member
from quality import rows
from rich.console import Console
from rich.progress import Progress
from texts import texts

DEFAULT_CACHE = Path(__file__).resolve().parents[1] / ".cache" / "strategies.jsonl"
#: Parts by what the table calls them.
STRATEGIES: dict[str, dict[str, Any]] = {
    "bytes (default)": {"strategy": "bytes"},
    "bytes, weights as given": {"strategy": "bytes", "weighting": "given"},
    "bytes, weights per unit": {"strategy": "bytes", "per": "unit"},
    "bytes, log-linear": {"strategy": "bytes", "pool": "log-linear"},
    "prefix mass": {"alignment": "prefix-mass"},
    "fuse": {"strategy": "fuse"},
    "fuse, online weights": {"strategy": "fuse", "weighting": "online"},
    "fuse, everybody votes": {"strategy": "fuse", "gate": "always"},
    "fuse, log-linear": {"strategy": "fuse", "pool": "log-linear"},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="the table of outcomes")
    parser.add_argument("--bytes", type=int, default=1000, help="of every text")
    options = parser.parse_args()
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    files = [models.smollm2(), models.gemma3()]
    with OutcomeTable(options.cache) as table:
        print(markdown(measure(files, windows_of(options.bytes), STRATEGIES, table)))


def windows_of(size: int) -> list[Window]:
    """The beginning of every text."""
    return [
        Window(f"{domain}:0", domain, b"", text[:size].decode("utf-8", "ignore").encode())
        for domain, text in texts().items()
    ]


def measure(
    files: Sequence[Path],
    items: Sequence[Window],
    strategies: dict[str, dict[str, Any]],
    table: OutcomeTable,
) -> dict[str, list[Outcome]]:
    """What every member, byte by byte, and every strategy makes of every window, by name."""
    members = [Member(file, n_threads=1, n_branches=16) for file in files]
    try:
        entered = [
            one for name, parts in strategies.items() for one in _entered(name, parts, members)
        ]
        found: dict[str, list[Outcome]] = {}
        with Progress(console=Console(stderr=True)) as progress:
            line = progress.add_task("", total=None)
            unique = list({one.name: one for one in entered}.values())
            outcomes = Run(BpbTask(items), unique, table).finish(
                lambda done, total, who: progress.update(
                    line, completed=done, total=total, description=who
                )
            )
        for outcome in outcomes:
            found.setdefault(outcome.contender, []).append(outcome)
    finally:
        for member in members:
            member.close()
    return found


def _entered(name: str, parts: dict[str, Any], members: Sequence[Member]) -> list[Contender]:
    """Members alone, as exact as the strategy, and the strategy by its name."""
    config: FuseConfig = parse_config(
        {**parts, "member": [{"model": member.model.path} for member in members]}
    )
    *alone, ensemble = contenders(config, assemble(config, members), exact=True)
    kind = "bytes" if config.strategy == "bytes" else "tokens"
    named = [
        Contender(f"{one.name} ({kind})", "member", one.engine, one.identity)
        for one in alone
        if config.alignment != "prefix-mass"
    ]
    return [*named, Contender(name, "ensemble", ensemble.engine, ensemble.identity)]


def markdown(found: dict[str, list[Outcome]]) -> str:
    """Bits per byte over all texts and by domain; what is saved against the better member."""
    domains = [outcome.group for outcome in next(iter(found.values()))]
    resamples = Resamples(["all"] * len(domains))
    bits = {
        name: np.array([o.scores.get("bits", np.nan) for o in own]) for name, own in found.items()
    }
    sizes = np.array([o.scores["bytes"] for o in next(iter(found.values()))])
    exact = [name for name in found if name.endswith("(bytes)")]
    best = min(exact, key=lambda name: bits[name].sum())
    body = []
    for name, own in bits.items():
        saved = resamples.ratio_difference(bits[best], sizes, own, sizes)
        seconds = sum(outcome.seconds for outcome in found[name]) / sizes.sum()
        body.append((name, f"{own.sum() / sizes.sum():.4f}", shown(saved), f"{1000 * seconds:.1f}"))
    head = ("", "bits per byte", f"saved against {best}", "ms per byte")
    by_domain = [
        (name, *(f"{b / n:.3f}" for b, n in zip(own, sizes, strict=True)))
        for name, own in bits.items()
    ]
    return rows(head, body) + "\n\n" + rows(("", *domains), by_domain)


def shown(value: Interval) -> str:
    """A mean and its interval."""
    return f"{value.mean:+.4f} ({value.low:+.4f} to {value.high:+.4f})"


if __name__ == "__main__":
    main()

"""Print how well ensembles predict texts beside their members: ``python bench/quality.py``.

Bits per byte are exact but for pruning, and comparable across tokenizers.  The members' byte
matrices are kept (``--cache``): the first run takes each model about a minute per text, later ones
little.  A weaker third model, for ensembles of unequal members, is made by ``requantise.py``::

    python bench/requantise.py FOLDER Q2_K
    python bench/quality.py --weak FOLDER/SmolLM2-135M-Instruct.Q2_K.gguf
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import models
import rules
from bytecache import DEFAULT_CACHE, ByteCache
from logitfuse.fitting import Floats, Interval, block_length, gain
from rich.console import Console
from rich.progress import Progress
from rules import Material, Rule
from texts import texts

#: What online weights are tried with besides their defaults.
RATES, SHARES = (0.03, 0.1, 0.3, 1.0), (0.0, 0.0005, 0.002, 0.01, 0.05)
#: What savings are against.
SAVED = ("saved against the best member", "saved against the best of each text")
#: Differences below this are rounding, bits per byte.
NOTICEABLE = 1e-4


@dataclass(frozen=True)
class Line:
    """One rule beside the members; bits per byte, and what is saved of them.

    Attributes
    ----------
    name : str
    bits : float
        Over all texts.
    by_domain : dict of str to float
    over_best : Interval
        Saved against the member that is best over all texts.
    over_oracle : Interval
        Saved against the member that is best on each text.
    wins, losses : dict of str to Interval
        The texts on which the rule is clearly better or worse than the best member there, and what
        it saves.
    """

    name: str
    bits: float
    by_domain: dict[str, float]
    over_best: Interval
    over_oracle: Interval
    wins: dict[str, Interval]
    losses: dict[str, Interval]


@dataclass(frozen=True)
class Table:
    """All rules for one set of members."""

    title: str
    members: tuple[str, ...]
    lines: tuple[Line, ...]

    def losers(self) -> list[Line]:
        """Ensembles that are clearly worse than the best member over all texts."""
        return [
            line
            for line in self.lines
            if line.name not in self.members and line.over_best.high < -NOTICEABLE
        ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for the matrices")
    parser.add_argument("--weak", type=Path, help="a GGUF file for the unequal ensembles")
    parser.add_argument("--bytes", type=int, default=4096, help="of every text (4096: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    tables, grids = measure(read(ByteCache(options.cache), options.weak, options.bytes))
    if options.json:
        plain = {"tables": [as_dict(table) for table in tables], "online": grids}
        print(json.dumps(plain, indent=1))
        return
    print("\n\n".join(markdown(table) for table in tables))
    for title, grid in grids.items():
        print(f"\n{markdown_grid(title, grid)}")


def members(weak: Path | None) -> tuple[dict[str, Path], dict[str, tuple[str, ...]]]:
    """The models by name, and the sets of them that are compared."""
    files = {"SmolLM2": models.smollm2(), "Gemma": models.gemma3()}
    sets: dict[str, tuple[str, ...]] = {"comparable": ("SmolLM2", "Gemma")}
    if weak is not None:
        files["weak"] = weak
        sets |= {"unequal": ("Gemma", "weak"), "three": ("SmolLM2", "Gemma", "weak")}
    return files, sets


def read(cache: ByteCache, weak: Path | None, size: int) -> dict[str, Material]:
    """The sets of members, scored on the beginnings of all texts."""
    files, sets = members(weak)
    cut = {d: text[:size].decode("utf-8", "ignore").encode() for d, text in texts().items()}
    scores = {name: cache.scores(file, cut) for name, file in files.items()}
    return {
        title: Material(names, {d: [scores[name][d] for name in names] for d in cut})
        for title, names in sets.items()
    }


def measure(
    sets: Mapping[str, Material],
) -> tuple[list[Table], dict[str, dict[str, float]]]:
    """Two tables for each set, by whole texts and by what follows a prompt; grids of `online`."""
    tables, grids = [], {}
    for title, data in sets.items():
        tables.append(compare(title, data, rules.rules(data.names)))
        rest = f"{title}, last {1 - rules.PROMPT:.0%} of each text"
        tables.append(compare(rest, data, rules.prompt_rules(data.names), from_prompt_on=True))
        grids[title] = {
            f"rate {rate:g}, share {share:g}": total(data, rules.online(rate, share))
            for rate in RATES
            for share in SHARES
        }
    return tables, grids


def compare(
    title: str, data: Material, chosen: Mapping[str, Rule], *, from_prompt_on: bool = False
) -> Table:
    """All rules on the same bytes: whole texts, or what follows their prompts."""
    first = {
        domain: rules.prompt_length(len(table)) if from_prompt_on else 0
        for domain, table in data.tables.items()
    }
    alone = {d: -table[first[d] :] / math.log(2) for d, table in data.tables.items()}
    overall = int(np.argmin(np.concatenate(list(alone.values())).sum(axis=0)))
    best = {domain: own[:, overall] for domain, own in alone.items()}
    oracle = {domain: own[:, int(np.argmin(own.sum(axis=0)))] for domain, own in alone.items()}
    lines = []
    with Progress(console=Console(stderr=True)) as progress:
        for name, rule in progress.track(chosen.items(), description=title):
            bits = {d: -rule(data, d)[first[d] :] / math.log(2) for d in data.tables}
            lines.append(line(name, bits, best, oracle))
    return Table(title, data.names, tuple(lines))


def line(
    name: str,
    bits: Mapping[str, Floats],
    best: Mapping[str, Floats],
    oracle: Mapping[str, Floats],
) -> Line:
    """Sum up one rule."""
    against = {domain: saved(oracle[domain], own) for domain, own in bits.items()}
    whole = np.concatenate(list(bits.values()))
    return Line(
        name,
        float(whole.mean()),
        {domain: float(own.mean()) for domain, own in bits.items()},
        saved(np.concatenate(list(best.values())), whole),
        saved(np.concatenate(list(oracle.values())), whole),
        {domain: one for domain, one in against.items() if one.low > NOTICEABLE},
        {domain: one for domain, one in against.items() if one.high < -NOTICEABLE},
    )


def saved(reference: Floats, bits: Floats) -> Interval:
    """Bits per byte saved, with a 95 % interval from a block bootstrap of fixed seed."""
    return gain(reference - bits, block_length(len(bits)))


def total(data: Material, rule: Rule) -> float:
    """Bits per byte over all texts."""
    return float(-np.concatenate([rule(data, d) for d in data.tables]).mean() / math.log(2))


def as_dict(table: Table) -> dict[str, Any]:
    """Plain data; intervals as mean, low, high."""
    return asdict(table) | {"losers": [line.name for line in table.losers()]}


def markdown(table: Table) -> str:
    """The figures over all texts, by domain, and in words where members are better."""
    domains = list(table.lines[0].by_domain)
    parts = [
        f"**{table.title}: {' + '.join(table.members)}**\n",
        rows(
            ("rule", "bits per byte", *SAVED, "texts won", "texts lost"),
            [
                (
                    own.name,
                    f"{own.bits:.4f}",
                    interval(own.over_best),
                    interval(own.over_oracle),
                    str(len(own.wins)),
                    str(len(own.losses)),
                )
                for own in table.lines
            ],
        ),
        "",
        rows(
            ("rule", *domains),
            [(own.name, *(f"{own.by_domain[d]:.3f}" for d in domains)) for own in table.lines],
        ),
        "",
        *verdicts(table),
    ]
    return "\n".join(parts)


def verdicts(table: Table) -> Iterable[str]:
    """Which ensembles lose to the best member, over all and where."""
    losers = [own.name for own in table.losers()]
    unclear = [
        own.name
        for own in table.lines
        if own.name not in (*table.members, *losers) and own.over_best.low <= NOTICEABLE
    ]
    yield f"Clearly worse than the best member over all texts: {'; '.join(losers) or 'none'}."
    yield f"Neither clearly worse nor better: {'; '.join(unclear) or 'none'}."
    for own in table.lines:
        if own.name in table.members or not own.losses:
            continue
        where = ", ".join(f"{domain} ({one.mean:+.3f})" for domain, one in own.losses.items())
        yield f"* {own.name} is clearly worse than the best member of the text on {where}."


def markdown_grid(title: str, grid: Mapping[str, float]) -> str:
    """Bits per byte of `online` by rate and share."""
    body = [
        (f"rate {rate:g}", *(f"{grid[f'rate {rate:g}, share {share:g}']:.4f}" for share in SHARES))
        for rate in RATES
    ]
    return rows((f"online, {title}", *(f"share {share:g}" for share in SHARES)), body)


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left."""
    rule = "|".join(["---", *["--:"] * (len(head) - 1)])
    return "\n".join(
        [f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(r)} |" for r in body)]
    )


def interval(value: Interval) -> str:
    """A mean and its interval."""
    return f"{value.mean:+.4f} ({value.low:+.4f} to {value.high:+.4f})"


if __name__ == "__main__":
    main()

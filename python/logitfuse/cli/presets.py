"""``logitfuse presets``: published methods and the parts they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from logitfuse.cli import output
from logitfuse.cli.options import Flag
from logitfuse.presets import PRESETS, find_preset


def presets(name: str | None = None, *, json: Flag = False) -> None:
    """List the presets, sorted by their place in the survey (arXiv 2502.18036).

    Examples:

        logitfuse presets

        logitfuse presets unite

        logitfuse run "Two and two is" -m a.gguf -m b.gguf --preset unite

    Parameters
    ----------
    name
        Tell all about one of them.
    json
        Print JSON.
    """
    chosen = PRESETS if name is None else {name: find_preset(name)}
    if json:
        output.dump({key: asdict(preset) for key, preset in chosen.items()})
        return
    if name is not None:
        preset = chosen[name]
        output.out.print(f"{name}: {preset.method}\n{preset.cell}", markup=False)
        output.out.print(_parts(preset.parts), markup=False)
        if preset.weights:
            output.out.print(f"weights: {', '.join(map(str, preset.weights))}", markup=False)
        if preset.one_vocabulary:
            output.out.print("for members with one tokenizer", markup=False)
        output.out.print(preset.differs, markup=False)
        return
    rows = [
        (key, preset.cell, preset.method, _parts(preset.parts))
        for key, preset in sorted(PRESETS.items(), key=lambda item: (item[1].cell, item[0]))
    ]
    table = output.table("", ("preset", "survey cell", "method", "parts"), rows)
    for column in table.columns:
        column.justify = "left"  # no figures
    output.out.print(table)


def _parts(parts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in parts.items())

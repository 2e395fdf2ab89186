"""One answer, unit by unit: what fusion changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from logitfuse.evaluation.labels import wrap
from logitfuse.evaluation.pages import clipped, render

#: Units with a card, and characters of the prompt; the rest of a longer answer is plain text.
_UNITS, _PROMPT = 3000, 20_000
_DECISIONS = {
    "fused": "the pool decided",
    "agree": "every member wanted it",
    "certain": "one candidate had the majority of the pool",
    "led": "one member spoke alone",
}
#: The drawing of bits: its room, the room for names on the right, and the height of a name.
_WIDTH, _HEIGHT, _LEFT, _NAMES, _BOTTOM, _TOP, _LINE = 720.0, 280.0, 52.0, 190.0, 40.0, 12.0, 16.0
_POINTS = 400
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 2 1 2")


def trace_page(trace: Mapping[str, Any]) -> str:
    """The trace of one answer as an HTML page, with nothing outside it.

    Parameters
    ----------
    trace : mapping
        ``prompt, text, members`` (names), ``forced`` (whether the text was given), ``steps`` (as
        `logitfuse.evaluation.trace.trace_entry` makes them), ``summary`` (figures by name).
    """
    members, steps = list(trace["members"]), list(trace["steps"])
    n = max(1, len(steps))
    counts = {name: sum(s["decision"] == name for s in steps) for name in _DECISIONS}
    return render(
        "trace",
        title="The given text, step by step" if trace["forced"] else "The answer, step by step",
        forced=trace["forced"],
        prompt=clipped(str(trace["prompt"]), _PROMPT),
        text=trace["text"],
        n_steps=f"{len(steps):,}",
        decisions=[
            {
                "name": name,
                "what": what,
                "count": counts[name],
                "share": f"{100 * counts[name] / n:.0f} %",
            }
            for name, what in _DECISIONS.items()
        ],
        departures=_departures(members, steps),
        units=[_unit(i, step) for i, step in enumerate(steps[:_UNITS])],
        rest="".join(step["text"] for step in steps[_UNITS:]),
        figures=[
            (key.replace("_", " "), f"{v:,.4g}")
            for key, v in trace["summary"].items()
            if v is not None
        ],
        chart=_chart(members, steps),
    )


def _differs(step: Mapping[str, Any], member: Mapping[str, Any]) -> bool:
    return member["wish"] is not None and member["wish"] != step["text"]


def _departures(members: Sequence[str], steps: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """How often a unit is not what a member, or any member, would have said."""
    rows = []
    for i, name in enumerate(members):
        voted = [step for step in steps if step["members"][i]["wish"] is not None]
        count = sum(_differs(step, step["members"][i]) for step in voted)
        rows.append(_share(f"from what {name} would have said", count, len(voted)))
    voted = [step for step in steps if any(m["wish"] is not None for m in step["members"])]
    count = sum(_new(step) for step in voted)
    rows.append(_share("from what any member would have said", count, len(voted)))
    return rows


def _share(what: str, count: int, n: int) -> dict[str, str]:
    share = f"{100 * count / n:.1f} %" if n else "–"
    return {"what": what, "count": f"{count:,} of {n:,}", "share": share}


def _new(step: Mapping[str, Any]) -> bool:
    """Whether no member would have said it."""
    voters = [m for m in step["members"] if m["wish"] is not None]
    return bool(voters) and all(_differs(step, m) for m in voters)


def _unit(i: int, step: Mapping[str, Any]) -> dict[str, Any]:
    """A unit and its card as text."""
    return {
        "id": i,
        "text": _marked(step),
        "decision": step["decision"],
        "what": _DECISIONS[step["decision"]],
        "new": _new(step),
        "probability": _probability(step["logprob"]),
        "logprob": _nats(step["logprob"]),
        "members": [
            {
                "name": m["name"],
                "wish": "did not vote" if m["wish"] is None else _quoted(m["wish"]),
                "differs": _differs(step, m),
                "probability": _probability(m["logprob"]),
                "logprob": _nats(m["logprob"]),
                "candidates": [
                    {"text": _quoted(c["text"]), "probability": _probability(c["logprob"])}
                    for c in m.get("candidates", ())
                ],
            }
            for m in step["members"]
        ],
    }


def _marked(step: Mapping[str, Any]) -> str:
    """The text with ends of lines visible; the end, and pieces of characters, as what they are."""
    if not step["bytes"]:
        return "⟨end⟩"
    try:
        bytes(step["bytes"]).decode("utf-8")
    except UnicodeDecodeError:
        return f"⟨{bytes(step['bytes']).hex(' ')}⟩"
    return str(step["text"]).replace("\n", "⏎\n")


def _quoted(wish: str) -> str:
    return f"“{wish}”".replace("\n", "⏎") if wish else "⟨end⟩"


def _probability(logprob: float | None) -> str:
    if logprob is None:
        return "–"
    percent = 100 * math.exp(min(0.0, logprob))
    return f"{percent:.1f} %" if percent >= 0.05 else f"{percent:.1g} %"


def _nats(logprob: float | None) -> str:
    return "–" if logprob is None else f"{logprob:.3f} nats"


def _chart(members: Sequence[str], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Lines of the bits spent so far, over the steps in which everybody has a probability."""
    columns = []
    for step in steps:
        column = [step["logprob"], *(m["logprob"] for m in step["members"])]
        if all(v is not None for v in column):
            columns.append([-v / math.log(2) for v in column])
    if not columns:
        return None
    sums = [[0.0] * len(columns[0])]
    for column in columns:
        sums.append([a + b for a, b in zip(sums[-1], column, strict=True)])
    top = max(max(sums[-1]), 1e-9)
    height = max(_HEIGHT, _TOP + _BOTTOM + _LINE * (len(members) + 2))
    right, base = _WIDTH - _NAMES, height - _BOTTOM

    def at(step: int, bits: float) -> tuple[float, float]:
        x = _LEFT + (right - _LEFT) * step / len(columns)
        return x, base - (base - _TOP) * bits / top

    kept = sorted({round(i * len(columns) / _POINTS) for i in range(_POINTS + 1)})
    names = ["ensemble", *members]
    ends = [at(len(columns), bits)[1] for bits in sums[-1]]
    lines = []
    for i, (name, end, y) in enumerate(zip(names, ends, _apart(ends, base), strict=True)):
        points = " ".join("{:.1f},{:.1f}".format(*at(k, sums[k][i])) for k in kept)
        lines.append(
            {
                "name": name,
                "short": wrap(name, 17, 1),
                "bits": f"{sums[-1][i]:,.1f}",
                "points": points,
                "dash": "" if i == 0 else _DASHES[(i - 1) % len(_DASHES)],
                "index": 0 if i == 0 else 1 + (i - 1) % len(_DASHES),
                "end": f"{end:.1f}",
                "y": f"{y:.1f}",
            }
        )
    return {
        "width": _WIDTH,
        "height": height,
        "left": _LEFT,
        "right": right,
        "base": base,
        "lines": lines,
        "n": len(columns),
        "of": len(steps),
        "rows": [(f"{at(0, v)[1]:.1f}", f"{v:,g}") for v in _ticks(top)],
        "columns": [
            (f"{at(round(v), 0)[0]:.1f}", f"{v:,g}") for v in _ticks(len(columns)) if v >= 1
        ],
    }


def _apart(heights: Sequence[float], base: float) -> list[float]:
    """The same heights, moved so that names there do not overlap, none below `base`."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [0.0] * len(heights)
    low = -math.inf
    for i in order:
        low = placed[i] = max(heights[i], low + _LINE)
    high = base
    for i in reversed(order):
        placed[i] = min(placed[i], high)
        high = placed[i] - _LINE
    return placed


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to at most `top`, three to six of them."""
    unit = 10.0 ** math.floor(math.log10(top))
    step = next(s for s in (unit * 2, unit, unit / 2, unit / 5) if top / s >= 3 or s < unit / 2)
    return [i * step for i in range(int(top / step + 1e-9) + 1)]

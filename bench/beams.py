"""Print what following fewer tokenisations saves and costs: ``python bench/beams.py``.

The bits per byte that a narrow beam adds to a wide one, against the forward passes that it takes
per canonical token.  Scores are kept (``--cache``), as those of ``quality.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import models
from bytecache import DEFAULT_CACHE, ByteCache, Settings
from logitfuse.bytescores import ByteScores
from texts import texts

#: English prose; notations split into rarer tokens in more ways.
DOMAINS = ("manual", "legal", "sentences")
SIZE = 1200  # bytes of each text
WIDE = Settings(prune=0.003, width=32)
NARROW = tuple(Settings(prune=prune, width=8) for prune in (0.1, 0.05, 0.03, 0.02, 0.01))
#: What the default setting should meet: passes per canonical token, bits per byte too many.
MOST_PASSES, MOST_EXCESS = 1.6, 0.001


@dataclass(frozen=True)
class Point:
    """One model's scores of all texts under one setting.

    Attributes
    ----------
    member : str
    settings : Settings
    passes : float
        Tokens decoded per canonical token.
    bits : float
        Per byte.
    excess : float
        Bits per byte more than those of the wide beam.
    by_text : dict of str to (float, float)
        Passes and excess.
    """

    member: str
    settings: Settings
    passes: float
    bits: float
    excess: float
    by_text: dict[str, tuple[float, float]]

    @property
    def meets(self) -> bool:
        """Whether it is as cheap and as exact as the default setting should be."""
        return self.passes <= MOST_PASSES and self.excess < MOST_EXCESS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for the scores")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    cache = ByteCache(options.cache)
    cut = {domain: texts()[domain][:SIZE].decode("utf-8", "ignore").encode() for domain in DOMAINS}
    points = [
        point
        for name, model in {"SmolLM2": models.smollm2(), "Gemma": models.gemma3()}.items()
        for point in curve(name, cache, model, cut)
    ]
    if options.json:
        print(json.dumps([asdict(point) | {"meets": point.meets} for point in points], indent=1))
    else:
        print(markdown(points))


def curve(
    name: str,
    cache: ByteCache,
    model: Path,
    cut: Mapping[str, bytes],
    narrow: Sequence[Settings] = NARROW,
    wide: Settings = WIDE,
) -> list[Point]:
    """One model under every setting, the wide one last."""
    exact = cache.scores(model, cut, wide)
    return [
        summary(name, settings, cache.scores(model, cut, settings), exact)
        for settings in (*narrow, wide)
    ]


def summary(
    name: str,
    settings: Settings,
    found: Mapping[str, ByteScores],
    exact: Mapping[str, ByteScores],
) -> Point:
    """Over all texts."""
    bits, least = (
        sum(one.bits_per_byte * len(one.text) for one in scores.values())
        / sum(len(one.text) for one in scores.values())
        for scores in (found, exact)
    )
    decoded, tokens = (
        sum(getattr(one, count) for one in found.values()) for count in ("n_decoded", "n_tokens")
    )
    by_text = {
        text: (one.n_decoded / one.n_tokens, one.bits_per_byte - exact[text].bits_per_byte)
        for text, one in found.items()
    }
    return Point(name, settings, decoded / tokens, bits, bits - least, by_text)


def markdown(points: Sequence[Point]) -> str:
    """All points, and whether the default setting is good enough."""
    lines = [
        "| model | prune | width | passes per canonical token | bits per byte | excess "
        "| passes, excess by text |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for own in points:
        by_text = "; ".join(f"{text} {n:.2f}, {x:+.4f}" for text, (n, x) in own.by_text.items())
        lines.append(
            f"| {own.member} | {own.settings.prune:g} | {own.settings.width} | {own.passes:.2f} | "
            f"{own.bits:.4f} | {own.excess:+.4f} | {by_text} |"
        )
    lines += ["", *(verdict(own) for own in points if own.settings == Settings())]
    return "\n".join(lines)


def verdict(own: Point) -> str:
    """Whether a model's default setting is good enough."""
    met = "met" if own.meets else "missed"
    return (
        f"{own.member}, default setting: {own.passes:.2f} passes (at most {MOST_PASSES}) at "
        f"{own.excess:+.4f} bits per byte (below {MOST_EXCESS}): {met}."
    )


if __name__ == "__main__":
    main()

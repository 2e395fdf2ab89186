"""The figures of a run, for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from logitfuse.cli.output import percent, table

if TYPE_CHECKING:
    from logitfuse.strategies.engine import Engine


def run_report(
    fuse: Engine, *, text: str, finish_reason: str | None, load_s: float
) -> dict[str, Any]:
    """What one answer took.

    Returns
    -------
    dict
        ``text, finish_reason, tokens, steps, fused_share, decisions, members, timings,
        tokens_per_s``; times in seconds, shares of 1.  ``tokens`` leaves out the end symbol.
    """
    stats = fuse.stats
    answering = max(stats.total_s - stats.prefill_s, 1e-9)
    return {
        "text": text,
        "finish_reason": finish_reason,
        "tokens": stats.steps - stats.ends,
        "steps": stats.steps,
        "fused_share": stats.fused_share,
        "decisions": dict(stats.decisions),
        "members": [
            {
                "name": member.name,
                "weight": weight,
                "voted_share": votes / max(1, stats.steps),
                "won_share": wins / max(1, stats.decisions["fused"]),
                **member.stats.as_dict(),
            }
            for member, weight, votes, wins in zip(
                fuse.members, fuse.weights, stats.votes, stats.wins, strict=True
            )
        ],
        "timings": {
            "load_s": load_s,
            "prefill_s": stats.prefill_s,
            "decode_s": stats.decode_s,
            "sync_s": stats.sync_s,
            "fuse_s": stats.fuse_s,
            "sample_s": stats.sample_s,
            "total_s": stats.total_s,
        },
        "tokens_per_s": stats.steps / answering,
    }


def run_tables(report: dict[str, Any]) -> Group:
    """The same for people."""
    members = table(
        "",
        ("member", "weight", "voted", "won fused", "decoded", "rolled back", "decode s"),
        (
            (
                m["name"],
                f"{m['weight']:.2f}",
                percent(m["voted_share"]),
                percent(m["won_share"]),
                str(m["decoded_tokens"]),
                str(m["rolled_back_tokens"]),
                f"{m['decode_s']:.2f}",
            )
            for m in report["members"]
        ),
    )
    times = report["timings"]
    answering = max(times["total_s"] - times["prefill_s"], 1e-9)
    spent = ", ".join(
        f"{key[:-2]} {times[key]:.2f} s ({percent(times[key] / answering)})"
        for key in ("decode_s", "sync_s", "fuse_s", "sample_s")
    )
    decisions = ", ".join(f"{name} {n}" for name, n in report["decisions"].items())
    lines = Table.grid()
    lines.add_row(f"{report['steps']} steps: {decisions}; fused {percent(report['fused_share'])}")
    lines.add_row(f"{report['tokens_per_s']:.1f} tokens/s; {spent}")
    return Group(members, lines)

"""What fusion changed, step by step: of an answer, or of a given text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from logitfuse.strategies.base import Request, Step

if TYPE_CHECKING:
    from logitfuse.strategies.engine import Engine


def trace(engine: Engine, request: Request, given: str | None = None) -> dict[str, Any]:
    """Let an ensemble answer, or score a given reply, and keep every step.

    Returns
    -------
    dict
        ``prompt, text, members, forced`` (whether the reply was given), ``finish_reason, steps``
        (see `trace_entry`) and ``summary``: figures by name, bits per byte of the ensemble and of
        each member among them.

    Raises
    ------
    PromptError, ContextLengthError, FusionError, MemberError
    """
    finish = None
    if given is None:
        steps: list[Step] = []
        text = ""
        for chunk in engine.stream(request):
            steps += chunk.steps
            text += chunk.text
            finish = chunk.finish_reason
    else:
        steps, text = list(engine.score(request, given)), given
    names = [member.name for member in engine.members]
    return {
        "prompt": request.prompt if isinstance(request.prompt, str) else list(request.prompt),
        "text": text,
        "members": names,
        "forced": given is not None,
        "finish_reason": finish,
        "steps": [trace_entry(step, names) for step in steps],
        "summary": figures(steps, names),
    }


def figures(steps: Sequence[Step], names: Sequence[str]) -> dict[str, float | None]:
    """How often fusion spoke, and for whom; likelihoods in bits per byte.

    A member *differs* where it voted and would have said something else; a unit is *new* if no
    voting member would have said it.  Bits are over the steps in which a member gave the unit some
    probability, per byte of these; None: there are none.
    """
    n = max(1, len(steps))
    found: dict[str, float | None] = {
        f"{decision}_share": sum(step.decision == decision for step in steps) / n
        for decision in ("fused", "agree", "certain", "led")
    }
    found["new_share"] = sum(_is_new(step) for step in steps) / n
    found["bits_per_byte"] = _bits_per_byte([(step.logprob, len(step.unit)) for step in steps])
    for i, name in enumerate(names):
        wishes = [(step.wishes[i], step.unit) for step in steps if step.wishes[i] is not None]
        differs = sum(wish != unit for wish, unit in wishes)
        found[f"{name}_differs_share"] = differs / max(1, len(wishes))
        own = [(step.member_logprobs[i], len(step.unit)) for step in steps]
        found[f"{name}_bits_per_byte"] = _bits_per_byte(own)
    return found


def _is_new(step: Step) -> bool:
    wishes = [wish for wish in step.wishes if wish is not None]
    return bool(wishes) and step.unit not in wishes


def _bits_per_byte(own: Sequence[tuple[float, int]]) -> float | None:
    known = [(p, n) for p, n in own if math.isfinite(p)]
    n_bytes = sum(n for _, n in known)
    return abs(math.fsum(p for p, _ in known)) / math.log(2) / n_bytes if n_bytes else None


def trace_entry(step: Step, names: Sequence[str]) -> dict[str, Any]:
    """One step as JSON; a log-probability is null where a member has none.

    A member's own candidates are there if the step lists them.
    """
    members = []
    for i, (name, wish) in enumerate(zip(names, step.wishes, strict=True)):
        entry: dict[str, Any] = {
            "name": name,
            "logprob": _finite(step.member_logprobs[i]),
            "wish": None if wish is None else wish.decode("utf-8", "replace"),
        }
        if step.member_tops:
            entry["candidates"] = [
                {**_spelled(unit), "logprob": logprob} for unit, logprob in step.member_tops[i]
            ]
        members.append(entry)
    return {
        **_spelled(step.unit),
        "logprob": _finite(step.logprob),
        "decision": step.decision,
        "members": members,
    }


def _spelled(unit: bytes) -> dict[str, Any]:
    return {"text": unit.decode("utf-8", "replace"), "bytes": list(unit)}


def _finite(value: float) -> float | None:
    return value if abs(value) < math.inf else None  # false for NaN too

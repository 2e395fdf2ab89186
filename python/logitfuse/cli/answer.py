"""Stream one answer to the terminal."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from logitfuse.cli import output
from logitfuse.errors import MemberError
from logitfuse.strategies.base import Request, Step

if TYPE_CHECKING:
    from logitfuse.strategies.engine import Engine


@dataclass
class Answer:
    """An answer as far as it came."""

    text: str = ""
    finish_reason: str | None = None
    steps: list[Step] = field(default_factory=list)
    #: What cut it short: Ctrl-C or a failing member.
    error: KeyboardInterrupt | MemberError | None = None


def stream_answer(
    fuse: Engine, request: Request, *, quiet: bool = False, show_members: bool = False
) -> Answer:
    """Print an answer while it comes (unless `quiet`); what was generated is never lost."""
    from logitfuse.cache import MemberStats

    names = [member.name for member in fuse.members]
    for member in fuse.members:
        member.stats = MemberStats()  # of this answer
    answer = Answer()
    try:
        with closing(fuse.stream(request)) as chunks:
            for chunk in chunks:
                if not quiet:
                    output.say(chunk.text)  # before anything can interrupt
                answer.text += chunk.text
                answer.steps += chunk.steps
                answer.finish_reason = chunk.finish_reason
                if show_members and not quiet:
                    for step in chunk.steps:
                        output.out.print(output.dissent(step, names), end="")
    except KeyboardInterrupt as error:
        answer.error, answer.finish_reason = error, "interrupted"
    except MemberError as error:
        answer.text, answer.error, answer.finish_reason = error.text, error, "error"
    if not quiet and not answer.text.endswith("\n"):
        output.say("\n")
    return answer

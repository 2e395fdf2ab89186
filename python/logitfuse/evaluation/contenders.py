"""Who is evaluated: every member alone, and the ensemble, on the same loaded models."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from logitfuse import _core
from logitfuse.cache import MemberStats
from logitfuse.config import FuseConfig, MemberConfig
from logitfuse.errors import LogitfuseError
from logitfuse.gatefile import identity
from logitfuse.member import Member, cores
from logitfuse.strategies.base import Request
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.fuse import Fuse

ContenderKind = Literal["member", "ensemble"]
#: Its name; no member has it.
ENSEMBLE = "ensemble"

#: Keys of a configuration that change nothing about what is said.
_SILENT = {"name", "preset", "member", "learned", "sampling", "primary", "drafter"}
#: The same of a member.
_SILENT_MEMBER = {"model", "hf", "name", "weight", "n_threads", "use_mmap"}


@dataclass
class Cost:
    """What a piece of work took.

    Attributes
    ----------
    seconds : float
    tokens : dict of int
        Tokens that went through a forward pass, by member.
    """

    seconds: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """Somebody who is evaluated.

    Attributes
    ----------
    name : str
    kind : {"member", "ensemble"}
    engine : Engine
    identity : dict
        All that determines what it says, as JSON.
    """

    name: str
    kind: ContenderKind
    engine: Engine
    identity: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members."""
        return tuple(member.name for member in self.engine.members)

    def warm_up(self) -> None:
        """Have the first forward pass, which reads files and starts threads, before it counts."""
        with suppress(LogitfuseError):  # whoever cannot do this will say so at the first item
            list(self.engine.score(Request("\n"), "\n"))

    @contextmanager
    def measured(self) -> Iterator[Cost]:
        """Work that begins with empty caches, so that nobody profits from who came before."""
        members = self.engine.members
        for member in members:
            member.reset()
            member.stats = MemberStats()
        cost, started = Cost(), time.perf_counter()
        try:
            yield cost
        finally:
            cost.seconds = time.perf_counter() - started
            cost.tokens = {
                member.name: member.stats.decoded_tokens
                for member in members
                if member.stats.decoded_tokens
            }


def contenders(config: FuseConfig, ensemble: Engine, *, exact: bool = False) -> list[Contender]:
    """Every member that has a weight, and the ensemble, if it is more than one of them.

    A member alone runs as its user would run it: token by token, with the threads of all.

    Parameters
    ----------
    config : FuseConfig
        Of the ensemble.
    ensemble : Engine
        Its members are given names of their own: see `name_apart`.
    exact : bool
        Members are run byte by byte where the ensemble is, so that likelihoods of texts are exact.
    """
    name_apart(ensemble.members)
    hashes: dict[Path, str] = {}
    for member in ensemble.members:
        path = member.model.path
        hashes[path] = hashes.get(path) or identity(path)
    members = [
        _member_identity(entry, hashes[member.model.path])
        for entry, member in zip(config.member, ensemble.members, strict=True)
    ]
    weighed = [i for i, weight in enumerate(ensemble.weights) if weight]
    threads = sum(ensemble.members[i].context.n_threads for i in weighed)
    found = []
    for i in weighed:
        member = ensemble.members[i]
        engine, how = _alone(ensemble, member, exact=exact)
        engine.in_turns = True
        if engine.threads_alone is None:
            engine.threads_alone = max(member.context.n_threads, min(threads, cores()))
        found.append(Contender(member.name, "member", engine, members[i] | {"exact": how}))
    if len(weighed) > 1:
        parts = _identity(config, ensemble) | {"members": members}
        found.append(Contender(ENSEMBLE, "ensemble", ensemble, parts))
    return found


def name_apart(members: Sequence[Member]) -> None:
    """Give members that are called alike, as the same file twice, names of their own."""
    taken = {ENSEMBLE}
    for member in members:
        name, k = member.name.encode("utf-8", "replace").decode(), 1
        member.name = name
        while member.name in taken:
            k += 1
            member.name = f"{name} ({k})"
        taken.add(member.name)


def _alone(ensemble: Engine, member: Member, *, exact: bool) -> tuple[Engine, Any]:
    """How a member is run alone, and what identifies that."""
    if not (exact and isinstance(ensemble, Bytes)):
        return Fuse([member]), None
    how = (ensemble.prune, ensemble.width, ensemble.tokenisations)
    prune, width, tokenisations = how
    return Bytes([member], prune=prune, width=width, tokenisations=tokenisations), how


def _member_identity(entry: MemberConfig, sha256: str) -> dict[str, Any]:
    own = entry.model_dump(mode="json", exclude=_SILENT_MEMBER)
    return {"version": _core.__version__, "model": sha256, **own}


def _identity(config: FuseConfig, ensemble: Engine) -> dict[str, Any]:
    """The parts; what was learned by its hash, members that are named by their place."""
    places: Mapping[str | None, int] = {m.name: i for i, m in enumerate(ensemble.members)}
    return {
        **config.model_dump(mode="json", exclude=_SILENT),
        "strategy": type(ensemble).__name__,
        "learned": None if config.learned is None else identity(config.learned),
        "weights": list(ensemble.weights),
        "primary": places.get(config.primary, config.primary),
        "drafter": places.get(config.drafter, config.drafter),
    }

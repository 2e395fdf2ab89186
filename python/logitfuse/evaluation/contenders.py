"""Who is evaluated: every member alone, and the ensemble, on the same loaded models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from logitfuse import _core
from logitfuse.cache import MemberStats
from logitfuse.config import FuseConfig
from logitfuse.gatefile import identity
from logitfuse.member import Member
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.fuse import Fuse

ContenderKind = Literal["member", "ensemble"]

#: Keys of a configuration that change nothing about what is said.
_SILENT = {"name", "preset", "member", "learned", "sampling"}
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
    exact : bool
        Members are run byte by byte where the ensemble is, so that likelihoods of texts are exact.
    """
    hashes = {member.name: identity(member.model.path) for member in ensemble.members}
    weighed = [i for i, weight in enumerate(ensemble.weights) if weight]
    found = [
        Contender(
            ensemble.members[i].name,
            "member",
            _alone(ensemble, ensemble.members[i], exact=exact),
            _member_identity(config, i, hashes[ensemble.members[i].name])
            | {"exact": exact and isinstance(ensemble, Bytes)},
        )
        for i in weighed
    ]
    if len(weighed) > 1:
        found.append(
            Contender("ensemble", "ensemble", ensemble, _identity(config, ensemble, hashes))
        )
    return found


def _alone(ensemble: Engine, member: Member, *, exact: bool) -> Engine:
    engine: Engine
    if exact and isinstance(ensemble, Bytes):
        engine = Bytes([member], prune=ensemble.prune, width=ensemble.width)
    else:
        engine = Fuse([member])
    engine.in_turns = True
    if engine.threads_alone is None:
        engine.threads_alone = sum(one.context.n_threads for one in ensemble.members)
    return engine


def _member_identity(config: FuseConfig, i: int, sha256: str) -> dict[str, Any]:
    own = config.member[i].model_dump(mode="json", exclude=_SILENT_MEMBER)
    return {"version": _core.__version__, "model": sha256, **own}


def _identity(config: FuseConfig, ensemble: Engine, hashes: dict[str, str]) -> dict[str, Any]:
    """The parts, with what was learned by its hash, and the members in order."""
    return {
        **config.model_dump(mode="json", exclude=_SILENT),
        "strategy": type(ensemble).__name__,
        "learned": None if config.learned is None else identity(config.learned),
        "weights": list(ensemble.weights),
        "members": [
            _member_identity(config, i, hashes[member.name])
            for i, member in enumerate(ensemble.members)
        ],
    }

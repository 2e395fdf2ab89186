"""From a configuration and loaded members to a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from logitfuse import _core
from logitfuse.config import FuseConfig
from logitfuse.drafting import DraftOptions
from logitfuse.errors import ConfigError
from logitfuse.gatefile import Critical, Gate, Weights, identity, load_gatefile
from logitfuse.gates import Certain, Features, Solo, make_solo
from logitfuse.member import Member
from logitfuse.pooling import PoolOptions
from logitfuse.presets import PRESETS
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.fuse import Fuse
from logitfuse.strategies.mix import Mix
from logitfuse.weights import Given, Online, PromptBits, PromptGreedy, Weigher

#: Parts that only one strategy has, with their keys in a configuration.
_OF_FUSE = ("solo", "threshold", "primary", "guard", "schedule", "draft_length", "drafter")
_OF_BYTES = ("per", "prune", "beam")
_OF_POOLS = ("pool", "floor", "exponent", "plausibility", "alignment", "union_top")


def n_branches(config: FuseConfig) -> int:
    """How many branches the members' contexts must hold."""
    strategy = config.strategy
    if strategy == "auto" and config.learned is None:  # what is learned may ask for bytes
        strategy = _asked_for(config) or "bytes"
    beams = strategy in ("auto", "bytes") and config.alignment != "prefix-mass"
    return 2 * config.beam if beams else 0


def check_parts(config: FuseConfig) -> None:
    """Refuse parts that do not go together, as far as that can be told without the members.

    Raises
    ------
    ConfigError
    FusionError
        Bad weights.
    """
    if config.strategy != "auto":
        _refuse(config, config.strategy)
    if config.learned is None:
        weights = [entry.weight for entry in config.member]
        _core.normalise_weights(weights, len(weights), config.pool)
        _solo(config, None, [])
    elif any("weight" in entry.model_fields_set for entry in config.member):
        raise ConfigError("'learned' brings the weights; give no others", key="learned")
    others = config.learned is not None or len({entry.weight for entry in config.member}) > 1
    if config.weighting in ("prompt", "prompt-greedy") and others:
        raise ConfigError(
            f"weighting='{config.weighting}' reads the weights off the prompt; give no others",
            key="weighting",
        )
    if config.weighting not in ("auto", "given"):
        PoolOptions(config.pool).require_shares()
    _draft(config)


def assemble(config: FuseConfig, members: Sequence[Member]) -> Engine:
    """Join members as a configuration says.

    Raises
    ------
    ConfigError
        Parts that do not go together, or a file that was fitted for other models.
    FusionError
        Bad weights or parameters.
    """
    check_parts(config)
    weights = [entry.weight for entry in config.member]
    one_vocabulary = all(member.vocab == members[0].vocab for member in members)
    if config.preset and PRESETS[config.preset].one_vocabulary and not one_vocabulary:
        raise ConfigError(
            f"the preset '{config.preset}' needs members with one tokenizer; these differ. Give "
            "its parts without the preset to try it nevertheless (logitfuse presets)",
            key="preset",
        )
    learned = None
    if config.learned is not None:
        identities = [identity(member.model.path) for member in members]
        learned = load_gatefile(config.learned, identities).learned
    if isinstance(learned, Weights | Critical):
        weights = list(learned.weights)
        _require_pool(config, learned)
    strategy = config.strategy
    if strategy == "auto":
        strategy = _choose(config, one_vocabulary, learned)
    _refuse(config, strategy)
    if strategy == "mix":
        return Mix(members, weights=weights, name=config.name)
    pool = PoolOptions(
        config.pool,
        config.floor,
        config.exponent,
        config.plausibility,
        config.union_top if config.alignment == "topk-union" else 0,
    )
    weigher = _weigher(config, strategy, weights, learned)
    if strategy == "bytes":
        if isinstance(learned, Critical):
            raise ConfigError("a critical-token rule needs strategy='fuse'", key="strategy")
        if isinstance(learned, Gate) and config.weighting != "auto":
            raise ConfigError("a learned gate leaves no other weighting", key="weighting")
        return Bytes(
            members,
            weights=weights,
            weigher=weigher,
            pool=pool,
            gate=learned.native() if isinstance(learned, Gate) else None,
            per=config.per,
            tokenisations="canonical" if config.alignment == "prefix-mass" else "all",
            prune=config.prune,
            width=config.beam,
            name=config.name,
        )
    if isinstance(learned, Gate):
        raise ConfigError("a learned gate needs strategy='bytes'", key="strategy")
    return Fuse(
        members,
        weights=weights,
        weigher=weigher,
        pool=pool,
        alignment="embedding" if config.alignment == "embedding" else "exact",
        gate=config.gate,
        solo=_solo(config, learned, members),
        primary=_primary(config, learned, members),
        guard=config.guard,
        schedule=config.schedule,
        draft=_draft(config),
        name=config.name,
    )


def _choose(config: FuseConfig, one_vocabulary: bool, learned: object) -> Literal["fuse", "bytes"]:
    """Bytes where they are worth it and nothing asks for tokens."""
    if isinstance(learned, Gate):
        return "bytes"
    if isinstance(learned, Critical):
        return "fuse"
    return _asked_for(config) or ("fuse" if one_vocabulary else "bytes")


def _asked_for(config: FuseConfig) -> Literal["fuse", "bytes"] | None:
    """What the parts that are given ask for, whoever the members are; None: either will do."""
    asked = config.model_fields_set
    if config.alignment == "prefix-mass" or asked & set(_OF_BYTES):
        return "bytes"
    tokens = asked & {*_OF_FUSE, "gate"} or config.alignment != "exact" or config.pool != "linear"
    single = sum(entry.weight != 0 for entry in config.member) == 1
    return "fuse" if tokens or single else None


def _refuse(config: FuseConfig, strategy: str) -> None:
    """Parts that this strategy does not have."""
    foreign: dict[str, tuple[str, ...]] = {
        "fuse": _OF_BYTES,
        "bytes": (*_OF_FUSE, "gate"),
        "mix": (*_OF_FUSE, *_OF_BYTES, *_OF_POOLS, "gate", "weighting", "learned"),
    }
    preset = PRESETS[config.preset].parts if config.preset else {}
    for key in foreign[strategy]:
        value = getattr(config, key)
        if value != FuseConfig.model_fields[key].default:
            whose = f" of the preset '{config.preset}'" if preset.get(key) == value else ""
            raise ConfigError(f"the strategy '{strategy}' has no '{key}'{whose}", key=key)
    if strategy == "fuse" and config.alignment == "prefix-mass":
        raise ConfigError("alignment='prefix-mass' needs strategy='bytes'", key="alignment")
    if strategy == "bytes" and config.alignment in ("topk-union", "embedding"):
        raise ConfigError(f"alignment='{config.alignment}' needs strategy='fuse'", key="alignment")


def _weigher(
    config: FuseConfig, strategy: str, weights: list[float], learned: object
) -> Weigher | None:
    """Where the weights come from; None: the strategy's own choice."""
    kind = config.weighting
    if kind == "auto" and isinstance(learned, Weights):
        kind = "given"
    if kind == "auto":
        return None
    if kind == "given":
        return Given(weights, config.pool) if strategy == "bytes" else None
    if kind == "online":
        return Online(weights)
    made = PromptBits if kind == "prompt" else PromptGreedy
    return made(len(weights))


def _require_pool(config: FuseConfig, learned: Weights | Critical) -> None:
    """Refuse another pool than the one that weights were fitted for."""
    fitted = learned.pool if isinstance(learned, Weights) else "linear"
    if config.pool != fitted:
        raise ConfigError(
            f"'{config.learned}' was fitted for the {fitted} pool, not the {config.pool} one; "
            f"give pool='{fitted}'",
            key="pool",
        )


def _primary(config: FuseConfig, learned: object, members: Sequence[Member]) -> str | int | None:
    """Who leads; a critical-token rule knows only the member that it was fitted to."""
    if not isinstance(learned, Critical):
        return config.primary
    name = members[learned.primary].name
    if config.primary not in (None, name):
        raise ConfigError(
            f"the critical-token rule was fitted for '{name}' as the primary", key="primary"
        )
    return learned.primary


def _solo(config: FuseConfig, learned: object, members: Sequence[Member]) -> Solo | Certain | None:
    if isinstance(learned, Critical):
        if config.solo not in (None, "critical"):
            raise ConfigError("a critical-token rule needs solo='critical'", key="solo")
        token = CriticalToken(learned, members)
        return make_solo("critical", config.threshold, classifier=token)
    if config.solo is None:
        if config.threshold is not None:
            raise ConfigError("a threshold needs a solo rule", key="threshold")
        return None
    if config.solo == "critical":
        raise ConfigError(
            "solo='critical' needs learned=FILE, made by logitfuse fit --kind critical",
            key="learned",
        )
    return make_solo(config.solo, config.threshold)


class CriticalToken:
    """Whether the next byte is one at which the primary had better ask the others.

    Parameters
    ----------
    learned : Critical
    members : sequence of Member
        As when it was fitted.
    """

    def __init__(self, learned: Critical, members: Sequence[Member]) -> None:
        self._gate = learned.native()
        self._threshold = learned.threshold
        trie = members[learned.primary].vocab.trie
        self._beam = _core.ByteBeam(trie, prune=0.5, width=1)
        self._next = np.empty(_core.BYTE_OUTCOMES, np.float32)

    def __call__(self, features: Features) -> bool:
        """From the primary's row: what it believes about the next byte."""
        self._beam.row(self._beam.begin(), features.row)
        self._beam.next(self._next)
        return self._gate.probability(self._next) >= self._threshold


def _draft(config: FuseConfig) -> DraftOptions | None:
    if config.schedule != "draft":
        if config.draft_length is not None or config.drafter is not None:
            raise ConfigError("draft_length and drafter need schedule='draft'", key="schedule")
        return None
    ngrams = config.drafter == "prompt"
    return DraftOptions(
        length=8 if config.draft_length is None else config.draft_length,
        drafter=None if ngrams else config.drafter,
        ngrams=ngrams,
    )

"""What a request may change of the ensemble that it asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from logitfuse.assembly import check_parts
from logitfuse.config import FuseConfig, parse_config
from logitfuse.errors import ConfigError
from logitfuse.presets import find_preset

#: Keys of an ensemble's file that are not a request's affair: models, files, and what has fields of
#: its own in a body.
_FIXED = {"member", "learned", "name", "sampling"}
#: Keys that a request may give; null: the default, whatever the file says.
PARTS = (*sorted(FuseConfig.model_fields.keys() - _FIXED), "weights")


def override(served: FuseConfig, members: Sequence[str], parts: Mapping[str, Any]) -> FuseConfig:
    """An ensemble with other parts.

    A preset stands for all parts: those of the file do not count besides it, nor besides null.

    Parameters
    ----------
    served : FuseConfig
    members : sequence of str
        Their names.
    parts : mapping
        Keys of `PARTS`.

    Raises
    ------
    ConfigError, FusionError
        Unknown or forbidden keys, wrong values, parts that do not go together.
    """
    for key in parts:
        if key not in PARTS:
            raise _unknown(key)
    if not parts:
        return served
    given = {key: value for key, value in parts.items() if key != "weights" and value is not None}
    data = served.model_dump(exclude_unset=True, exclude=set(parts))
    data["member"] = [entry.model_dump(exclude_unset=True) for entry in served.member]
    if "preset" in parts:
        data = {key: value for key, value in data.items() if key in _FIXED}
        names = [name for name in (served.preset, parts["preset"]) if isinstance(name, str)]
        if any(find_preset(name).weights for name in names):  # those of roles
            _drop_weights(data["member"])
    if parts.get("weights") is not None:
        _set_weights(data["member"], members, parts["weights"])
    config = parse_config(data | given)
    check_parts(config)
    if config.alignment == "embedding" != served.alignment:
        raise ConfigError(
            "alignment 'embedding' takes long to prepare; serve an ensemble that has it",
            key="alignment",
        )
    return config


def _unknown(key: str) -> ConfigError:
    near = get_close_matches(key, PARTS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(PARTS)}"
    what = "is fixed where it is served" if key in _FIXED else "is no part of an ensemble"
    return ConfigError(f"'{key}' {what}; {hint}", key=key)


def _drop_weights(entries: Sequence[dict[str, Any]]) -> None:
    for entry in entries:
        entry.pop("weight", None)


def _set_weights(
    entries: Sequence[dict[str, Any]],
    members: Sequence[str],
    weights: Mapping[str, float] | Sequence[float],
) -> None:
    """Give members their weights; who is not named has none."""
    if isinstance(weights, Mapping):
        for name in weights.keys() - set(members):
            raise ConfigError(
                f"no member is called '{name}'; there are {', '.join(members)}", key="weights"
            )
        weights = [weights.get(name, 0.0) for name in members]
    if len(weights) != len(members):
        raise ConfigError(
            f"{len(members)} members ({', '.join(members)}) need as many weights, not "
            f"{len(weights)}",
            key="weights",
        )
    for entry, weight in zip(entries, weights, strict=True):
        entry["weight"] = weight

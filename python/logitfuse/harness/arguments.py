"""What the harness is given - model arguments, generation settings - as we call it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from logitfuse.config import FuseConfig, parse_config, read_config
from logitfuse.errors import ConfigError
from logitfuse.sampling import SamplingParams

#: Arguments with one value for all members or one for each; the key of a member; what it holds.
_EACH: dict[str, tuple[str, type[float | int]]] = {
    "weights": ("weight", float),
    "n_ctx": ("n_ctx", int),
    "n_threads": ("n_threads", int),
    "n_gpu_layers": ("n_gpu_layers", int),
    "main_gpu": ("main_gpu", int),
}
_SHARED = ("n_batch", "flash_attn", "use_mmap", "repack")
_SOURCES = ("ensemble", "model", "hf")
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def config_of(arguments: Mapping[str, Any]) -> FuseConfig:
    """The ensemble that model arguments describe.

    Parameters
    ----------
    arguments : mapping
        ``model`` (GGUF files) or ``hf`` (user/repo[:quant]) or ``ensemble`` (a TOML file);
        ``weights, n_ctx, n_threads, n_gpu_layers, main_gpu``, one value or one for each member;
        ``n_batch, flash_attn, use_mmap, repack``; any other key of `FuseConfig`.  Several values
        are a list, or text joined by ``+``, since the harness splits at commas.

    Raises
    ------
    ConfigError
        No models, unknown keys (the nearest one is named), wrong values.
    """
    parts = [key for key in FuseConfig.model_fields if key != "member"]
    known = [*_SOURCES, *_EACH, *_SHARED, *parts]
    for key in arguments:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown model argument '{key}'; {hint}", key=key)
    data = _sources(arguments) | {key: arguments[key] for key in parts if key in arguments}
    members = data["member"]
    for name, (key, kind) in _EACH.items():
        if name not in arguments:
            continue
        values = _numbers(name, arguments[name], kind)
        if len(values) == 1 and name != "weights":
            values *= len(members)
        if len(values) != len(members):
            raise ConfigError(
                f"{name} has {len(values)} values for {len(members)} members", key=name
            )
        for member, value in zip(members, values, strict=True):
            member[key] = value
    for member in members:
        member |= {key: arguments[key] for key in _SHARED if key in arguments}
    return parse_config(data)


def _sources(arguments: Mapping[str, Any]) -> dict[str, Any]:
    given = [key for key in _SOURCES if key in arguments]
    if "ensemble" in given and len(given) > 1:
        raise ConfigError("give either ensemble or model and hf, not both", key=given[-1])
    if not given:
        raise ConfigError(
            "no models; give --model_args model=a.gguf+b.gguf, hf=user/repo or ensemble=pair.toml",
            key="model",
        )
    if given == ["ensemble"]:
        data = read_config(arguments["ensemble"])
        parse_config(data, path=Path(arguments["ensemble"]))  # what is wrong is said of the file
        return data
    entries = [{key: value} for key in given for value in _several(arguments[key])]
    return {"member": entries}


def _several(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, str) and not Path(value).exists():
        return value.split("+")
    return [value]


def _numbers(name: str, value: Any, kind: type[float | int]) -> list[Any]:
    try:
        return [kind(part) for part in _several(value)]
    except (TypeError, ValueError):
        raise ConfigError(f"{name} takes numbers joined by '+', not {value!r}", key=name) from None


@dataclass(frozen=True)
class Generation:
    """How a reply is to be generated.

    Attributes
    ----------
    sampling : SamplingParams
    length : int
        Most units.
    stop : tuple of str
    """

    sampling: SamplingParams
    length: int
    stop: tuple[str, ...]


def generation_of(settings: Mapping[str, Any], base: SamplingParams, length: int) -> Generation:
    """What a task's ``generation_kwargs`` ask for.

    Without ``do_sample`` or a temperature a reply is greedy.  A sampled one has the ensemble's own
    parameters where the task gives none, and a seed from Python's ``random``, which the harness
    seeds: a run can be repeated, and the repeats of one question differ.

    Parameters
    ----------
    settings : mapping
        ``until, do_sample``, a length by any of its names, ``repetition_penalty``, and the names of
        `SamplingParams`.
    base : SamplingParams
    length : int
        Where the task sets none.

    Raises
    ------
    ConfigError
        A setting that is unknown or impossible.
    """
    rest = dict(settings)
    until = rest.pop("until", None) or ()
    lengths = [value for key in _LENGTHS if (value := rest.pop(key, None)) is not None]
    if rest.pop("num_beams", 1) != 1:
        raise ConfigError("there is no beam search; num_beams must be 1", key="num_beams")
    if "repetition_penalty" in rest:
        rest["repeat_penalty"] = rest.pop("repetition_penalty")
    sampled = rest.pop("do_sample", None)
    if sampled is None:
        sampled = bool(rest.get("temperature"))
    if not sampled:
        rest["temperature"] = 0.0
    elif rest.get("seed") is None:
        rest["seed"] = random.getrandbits(32)
    data = base.model_dump() | {key: value for key, value in rest.items() if value is not None}
    sampling = parse_config({"sampling": data, "member": [{"model": "-"}]}).sampling
    stop = (until,) if isinstance(until, str) else tuple(until)
    return Generation(sampling, int(lengths[0]) if lengths else length, stop)

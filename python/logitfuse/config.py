"""The TOML file that describes an ensemble, read alike by Python, the command line and the server.

::

    name = "pair"
    preset = "bytes"                             # or parts: strategy, pool, gate, ...

    [sampling]
    temperature = 0.7

    [[member]]
    model = "smollm2-135m-instruct-q4_1.gguf"    # relative to this file, or hf = "user/repo:Q8_0"
    weight = 0.6

    [[member]]
    model = "gemma-3-270m-q4_k_m.gguf"
    weight = 0.4

A file may describe several ensembles of its members.  What stands above holds for all of them; each
has a name, the parts that are its own, and if need be ``members`` (names) and ``weights``::

    [[ensemble]]
    name = "pair"

    [[ensemble]]
    name = "careful"
    pool = "log-linear"
    weights = [0.7, 0.3]
"""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from logitfuse.errors import ConfigError
from logitfuse.gates import GateName, SoloName
from logitfuse.pooling import EXPONENT, FLOOR, PLAUSIBILITY, PoolName
from logitfuse.presets import with_preset
from logitfuse.sampling import SamplingParams

if TYPE_CHECKING:
    from logitfuse.strategies.engine import Engine

#: Of the byte beam: share below which a tokenisation is not followed, and how many are.
PRUNE, WIDTH = 0.03, 8


class MemberConfig(BaseModel):
    """One model and how to run it; see `logitfuse.Member`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path | None = None
    hf: str | None = Field(None, description="user/repo[:quant] on the Hugging Face hub")
    name: str | None = None
    weight: float = Field(1.0, allow_inf_nan=False)
    n_ctx: int | None = Field(None, ge=0)
    n_batch: int = Field(512, ge=1)
    n_threads: int | None = Field(None, ge=1)
    n_gpu_layers: int = Field(0, ge=-1)
    main_gpu: int = Field(0, ge=0)
    flash_attn: bool = True
    use_mmap: bool = True
    repack: bool | None = None

    @model_validator(mode="after")
    def _one_source(self) -> MemberConfig:
        if (self.model is None) == (self.hf is None):
            raise ValueError("a member needs either 'model' (a file) or 'hf' (user/repo[:quant])")
        return self


class FuseConfig(BaseModel):
    """Members, and parts that combine to make an ensemble of them.

    ======================  =====================================================================
    ``preset``              a published method; its parts stand where nothing else is said
    ``strategy``            ``fuse`` (tokens), ``bytes`` (exact), ``mix`` (one member per step);
                            ``auto``: ``bytes`` if tokenizers differ and nothing asks for tokens
    ``pool``                see `logitfuse.fuse`, with ``floor, exponent, plausibility``
    ``alignment``           ``exact``, ``topk-union`` (of ``union_top`` tokens), ``embedding``, or
                            ``prefix-mass`` (`logitfuse.strategies.bytes`, canonical)
    ``weighting``           where weights come from: ``given``, ``prompt``, ``prompt-greedy`` or
                            ``online`` (see `logitfuse.weights`); ``auto``: ``online`` for bytes
    ``learned``             a file of ``logitfuse fit``: weights, a gate, or a critical-token rule;
                            members then have no ``weight`` of their own
    ``gate``                who votes (`logitfuse.gates`)
    ``solo``                when the primary speaks alone, with its ``threshold``; ``primary``
    ``guard``               CoRE's substring guard
    ``schedule``            ``eager``, ``lazy`` or ``draft`` (`logitfuse.schedules`), with
                            ``draft_length`` and ``drafter`` (a member's name, or ``prompt``)
    ``per, prune, beam``    of ``bytes``
    ======================  =====================================================================
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Literal["auto", "fuse", "bytes", "mix"] = "auto"
    name: str | None = None
    preset: str | None = None
    pool: PoolName = "linear"
    floor: float = Field(FLOOR, le=0, allow_inf_nan=False, description="nats")
    exponent: float = Field(EXPONENT, allow_inf_nan=False)
    plausibility: float = Field(PLAUSIBILITY, allow_inf_nan=False)
    alignment: Literal["exact", "topk-union", "prefix-mass", "embedding"] = "exact"
    union_top: int = Field(10, ge=1)
    weighting: Literal["auto", "given", "prompt", "prompt-greedy", "online"] = "auto"
    learned: Path | None = None
    gate: GateName = "boundary"
    solo: SoloName | None = None
    threshold: float | None = Field(None, allow_inf_nan=False)
    primary: str | None = None
    guard: bool = False
    schedule: Literal["eager", "lazy", "draft"] = "eager"
    draft_length: int | None = Field(None, ge=1)
    drafter: str | None = None
    per: Literal["byte", "unit"] = "byte"
    prune: float = Field(PRUNE, gt=0, lt=1)
    beam: int = Field(WIDTH, ge=1, le=127)  # llama.cpp holds 256 sequences, two per tokenisation
    sampling: SamplingParams = SamplingParams()
    member: list[MemberConfig] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("preset"), str):
            return data
        return with_preset(data)


def load_config(path: str | PathLike[str]) -> FuseConfig:
    """Read one ensemble of a TOML file.

    Parameters
    ----------
    path : path
        The file; ``FILE:NAME`` for one of several ensembles in it, by default the first.  Model
        paths in it are relative to the file.

    Raises
    ------
    ConfigError
        No such file or ensemble, not TOML, an unknown key (the nearest one is named), a wrong
        value.
    """
    return parse_config(read_config(path), path=Path(path))


def load_configs(path: str | PathLike[str]) -> list[FuseConfig]:
    """Read all ensembles of a TOML file (of ``FILE:NAME``: that one).

    Raises
    ------
    ConfigError
        As `load_config`; ensembles without names of their own, or of members that are not there.
    """
    return [parse_config(data, path=Path(path)) for data in read_configs(path)]


def read_config(path: str | PathLike[str]) -> dict[str, Any]:
    """What a TOML file says of one ensemble (see `load_config`), unchecked.

    Raises
    ------
    ConfigError
        No such file or ensemble, not TOML.
    """
    return read_configs(path)[0]


def read_configs(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """What a TOML file says of each of its ensembles (of ``FILE:NAME``: of that one), unchecked.

    Raises
    ------
    ConfigError
        No such file or ensemble, not TOML.
    """
    file, name = Path(path), ""
    if not file.exists():
        whole, _, part = str(path).rpartition(":")
        if whole and Path(whole).exists():
            file, name = Path(whole), part
    ensembles = _split(_read_toml(file), file)
    if not name:
        return ensembles
    known = [str(data.get("name")) for data in ensembles]
    if name not in known:
        raise ConfigError(
            f"'{file}' has no ensemble '{name}'; known: {', '.join(known)}", path=file
        )
    return [ensembles[known.index(name)]]


def _read_toml(file: Path) -> dict[str, Any]:
    """A TOML file, with paths that do not depend on where we are."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration '{file}': {error}", path=file) from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"'{file}' is not valid TOML: {error}", path=file) from error
    entries = data.get("member")
    members = entries if isinstance(entries, list) else []
    for table, key in ((data, "learned"), *((entry, "model") for entry in members)):
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = str(file.parent / table[key])
    return data


def _split(data: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """What a file says of each of its ensembles."""
    if "ensemble" not in data:
        return [data]
    tables = data["ensemble"]
    if not (isinstance(tables, list) and tables and all(isinstance(t, dict) for t in tables)):
        raise ConfigError("'ensemble' must be tables: [[ensemble]]", path=path, key="ensemble")
    names = [table.get("name") for table in tables]
    for name in names:
        if not isinstance(name, str) or names.count(name) > 1:
            raise ConfigError(
                f"every [[ensemble]] needs a name of its own, not {name!r}", path=path, key="name"
            )
    common = {key: value for key, value in data.items() if key not in ("ensemble", "name")}
    return [_split_off(common, dict(table), path) for table in tables]


def _split_off(common: dict[str, Any], table: dict[str, Any], path: Path) -> dict[str, Any]:
    entries = common.get("member")
    if not isinstance(entries, list):
        return {**common, **table}  # what is wrong is said when it is parsed
    known = {_name_of(entry): entry for entry in entries if isinstance(entry, dict)}
    chosen = table.pop("members", list(known))
    weights = table.pop("weights", None)
    if not isinstance(chosen, list) or not set(map(str, chosen)) <= known.keys():
        raise ConfigError(
            f"ensemble '{table['name']}' wants members {chosen!r}; there are {', '.join(known)}",
            path=path,
            key="members",
        )
    members = [dict(known[name]) for name in chosen]
    if weights is not None:
        if not isinstance(weights, list) or len(weights) != len(members):
            raise ConfigError(
                f"ensemble '{table['name']}' has {len(members)} members and needs as many "
                f"weights, not {weights!r}",
                path=path,
                key="weights",
            )
        members = [{**member, "weight": w} for member, w in zip(members, weights, strict=True)]
    both = common.get("sampling", {}), table.get("sampling", {})
    if all(isinstance(sampling, dict) for sampling in both):
        table["sampling"] = both[0] | both[1]
    return {**common, **table, "member": members}


def _name_of(entry: dict[str, Any]) -> str:
    """How a file calls a member: by its name, or by the stem of its model."""
    source = entry.get("model") or entry.get("hf") or ""
    return str(entry.get("name") or Path(str(source)).stem)


def parse_config(data: dict[str, Any], *, path: Path | None = None) -> FuseConfig:
    """Check a configuration given as a dictionary.

    Raises
    ------
    ConfigError
        Unknown key or wrong value; `ConfigError.key` is its dotted name.
    """
    try:
        return FuseConfig.model_validate(data)
    except ValidationError as error:
        raise explain(error, path) from None


def build(config: FuseConfig) -> Engine:
    """Load the models of a configuration and join them.

    The cores are divided among the members that run, unless a member says otherwise: they decode at
    the same time, and OpenMP teams that share cores are catastrophically slow.

    Raises
    ------
    ModelError, UnsupportedTokenizerError, FusionError, ConfigError
    """
    from logitfuse.assembly import assemble, check_parts, n_branches
    from logitfuse.member import Member, cores

    check_parts(config)  # before anybody waits for models
    running = sum(member.weight != 0 for member in config.member)
    share = max(1, cores() // max(1, running))
    members: list[Member] = []
    try:
        for entry in config.member:
            members.append(
                Member(
                    locate(entry),
                    n_threads=entry.n_threads or share,
                    n_branches=n_branches(config),
                    **entry.model_dump(exclude={"model", "hf", "weight", "n_threads"}),
                )
            )
        return assemble(config, members)
    except BaseException:
        for member in members:
            member.close()
        raise


def locate(entry: MemberConfig) -> Path:
    """The file of a member, downloaded if it comes from the hub."""
    if entry.model is not None:
        return entry.model
    from logitfuse.hub import download

    assert entry.hf is not None
    return download(entry.hf)


def explain(error: ValidationError, path: Path | None = None) -> ConfigError:
    """The first problem of a validation as one helpful sentence."""
    problems = error.errors()  # a mistyped key first: it is why another one is missing
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return ConfigError(str(cause), path=path, key=cause.key)
    key = ".".join(str(part) for part in first["loc"])
    where = f" in '{path}'" if path else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        near = get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return ConfigError(f"unknown key '{key}'{where}; {hint}", path=path, key=key)
    value = "" if isinstance(first["input"], dict | list) else f", not {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"'{key or 'config'}'{where}: {message}{value}", path=path, key=key or None)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    rooms: dict[int | str, type[BaseModel]] = {"member": MemberConfig, "sampling": SamplingParams}
    model = rooms[location[0]] if location else FuseConfig
    return list(model.model_fields)

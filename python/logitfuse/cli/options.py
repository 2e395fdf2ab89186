"""Options that several commands share, with llama.cpp's names."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from logitfuse.config import FuseConfig, parse_config, read_configs
from logitfuse.constraint import Constraint, constraint_of
from logitfuse.errors import ConfigError
from logitfuse.sampling import SamplingParams

#: An option that is off unless it is given.
Flag = Annotated[bool, Parameter(negative="", show_default=False)]

#: Options that are keys of an ensemble file.
_PARTS = (
    "preset",
    "strategy",
    "pool",
    "alignment",
    "weighting",
    "learned",
    "gate",
    "solo",
    "schedule",
)

_models = Group("Models", sort_key=1)
_sampling = Group("Sampling", sort_key=2)
_constraint = Group("Constraint", sort_key=3)


@Parameter(name="*", group=_models)
@dataclass
class ModelOptions:
    """Which models, and how to run them.  Lists: one value for all members, or one each."""

    model: Annotated[
        list[Path], Parameter(name=["--model", "-m"], negative="", show_default=False)
    ] = field(default_factory=list)
    "GGUF file of a member; repeat it."

    hf_repo: Annotated[
        list[str], Parameter(name=["--hf-repo", "-hf"], negative="", show_default=False)
    ] = field(default_factory=list)
    "Member from the Hugging Face hub: user/repo[:quant]; repeat it."

    ensemble: Annotated[
        list[Path], Parameter(name=["--ensemble", "-e"], negative="", show_default=False)
    ] = field(default_factory=list)
    "TOML file that describes the ensemble (FILE:NAME: one of several), instead of -m and -hf."

    weights: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    "Weights in member order, e.g. 0.6,0.4; equal by default."

    preset: str | None = None
    "A published method, e.g. gac, unite, safe, bytes (logitfuse presets lists them)."

    strategy: str | None = None
    "fuse (tokens), bytes (exact), mix (one member per step); default: bytes if tokenizers differ."

    pool: str | None = None
    "linear (default), log-linear, power, min, product, contrast or consistency."

    alignment: str | None = None
    "exact (default), topk-union, prefix-mass or embedding."

    weighting: str | None = None
    "Where weights come from: given, prompt, prompt-greedy or online."

    learned: Path | None = None
    "A file of logitfuse fit: weights, a gate or a critical-token rule."

    gate: str | None = None
    "Who votes: boundary (default) or always."

    solo: str | None = None
    "When the primary speaks alone: primary, entropy, margin, critical or certain."

    schedule: str | None = None
    "Who decodes when: eager (default), lazy or draft."

    set: Annotated[list[str], Parameter(name=["--set"], negative="", show_default=False)] = field(
        default_factory=list
    )
    "Any other key of an ensemble file, KEY=VALUE, e.g. --set threshold=0.5; repeat it."

    ctx_size: Annotated[str | None, Parameter(name=["--ctx-size", "-c"])] = None
    "Context length, tokens; 0: what the model was trained for; default: that, 4096 at most."

    threads: Annotated[str | None, Parameter(name=["--threads", "-t"])] = None
    "Threads per member; default: the cores divided among the members."

    gpu_layers: Annotated[
        str | None,
        Parameter(name=["--n-gpu-layers", "--gpu-layers", "-ngl"], allow_leading_hyphen=True),
    ] = None
    "Layers on the GPU; -1: all; default: 0."

    main_gpu: Annotated[str | None, Parameter(name=["--main-gpu", "-mg"])] = None
    "GPU of each member."

    batch_size: Annotated[int | None, Parameter(name=["--batch-size", "-b"])] = None
    "Prompt tokens per decode call; default: 512."

    repack: Annotated[
        bool | None, Parameter(name=["--repack"], negative=["--no-repack", "-nr"])
    ] = None
    "Let llama.cpp rearrange weights for the CPU; default: unless that is known to crash."

    def config(self) -> FuseConfig:
        """The ensemble that these options describe.

        Raises
        ------
        ConfigError
            No models, both -e and -m, wrong values.
        """
        if len(self.ensemble) > 1:
            raise ConfigError("this command takes one ensemble; give -e once")
        return self._parse(*self._described()[0])

    def configs(self, alias: str | None = None) -> list[FuseConfig]:
        """All ensembles that these options describe: those of all files.

        Parameters
        ----------
        alias : str, optional
            Name of the only one, instead of its own.

        Raises
        ------
        ConfigError
            As `config`; several ensembles that would have one name.
        """
        configs = [self._parse(data, path) for data, path in self._described()]
        if alias is None:
            return configs
        if len(configs) > 1:
            raise ConfigError(f"{len(configs)} ensembles cannot all be called '{alias}'")
        return [configs[0].model_copy(update={"name": alias})]

    def _described(self) -> list[tuple[dict[str, Any], Path | None]]:
        """What is said of each ensemble, and in which file."""
        if self.ensemble:
            if self.model or self.hf_repo:
                raise ConfigError("give either -e/--ensemble or -m/-hf, not both")
            return [(data, path) for path in self.ensemble for data in read_configs(path)]
        sources = [{"model": m} for m in self.model] + [{"hf": h} for h in self.hf_repo]
        if not sources:
            raise ConfigError(
                "no models; give -m model.gguf (repeat it), -hf user/repo or -e ensemble.toml"
            )
        return [({"member": sources}, None)]

    def _parse(self, data: dict[str, Any], path: Path | None) -> FuseConfig:
        """What is said of an ensemble, and what the other options say besides."""
        if path is not None:
            parse_config(data, path=path)  # what is wrong with it is said of the file
        for key in _PARTS:
            if getattr(self, key) is not None:
                data[key] = getattr(self, key)
        settings = dict(_setting(text) for text in self.set)
        if "member" in settings:
            raise ConfigError("--set does not set members; give -m, -hf or -e")
        data |= settings
        self._set_members(data["member"])
        return parse_config(data)

    def _set_members(self, members: list[dict[str, Any]]) -> None:
        for key, flag, text, kind in (
            ("weight", "--weights", self.weights, float),
            ("n_ctx", "--ctx-size", self.ctx_size, int),
            ("n_threads", "--threads", self.threads, int),
            ("n_gpu_layers", "--n-gpu-layers", self.gpu_layers, int),
            ("main_gpu", "--main-gpu", self.main_gpu, int),
        ):
            if text is None:
                continue
            values = _numbers(flag, text, kind)
            if len(values) == 1 and key != "weight":
                values *= len(members)
            if len(values) != len(members):
                raise ConfigError(
                    f"{flag} {text} has {len(values)} values for {len(members)} members"
                )
            for member, value in zip(members, values, strict=True):
                member[key] = value
        for member in members:
            if self.batch_size is not None:
                member["n_batch"] = self.batch_size
            if self.repack is not None:
                member["repack"] = self.repack


def _setting(text: str) -> tuple[str, Any]:
    """A key and its value, which is read as TOML where it can be."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set takes KEY=VALUE, not '{text}'")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _numbers(flag: str, text: str, kind: type[float | int]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag} takes numbers separated by commas, not '{text}'") from None


@Parameter(name="*", group=_sampling)
@dataclass
class SamplingOptions:
    """How a token is chosen from the pool; unset: as in the ensemble file, or the default."""

    temp: Annotated[float | None, Parameter(name=["--temp", "--temperature"])] = None
    "Temperature; 0: greedy; default: 0.8."

    top_k: int | None = None
    "Keep the k best; 0: all; default: 40."

    top_p: float | None = None
    "Keep the best that sum to p; 1: all; default: 0.95."

    min_p: float | None = None
    "Keep what has at least p times the probability of the best; 0: all; default: 0.05."

    typical: float | None = None
    "Locally typical sampling; 1: off (default)."

    repeat_penalty: float | None = None
    "1: off (default)."

    presence_penalty: float | None = None
    "0: off (default)."

    frequency_penalty: float | None = None
    "0: off (default)."

    repeat_last_n: int | None = None
    "How far back penalties look, tokens; default: 64."

    seed: Annotated[int | None, Parameter(name=["--seed", "-s"])] = None
    "Random seed; -1: a random one (default)."

    logit_bias: Annotated[
        list[str], Parameter(name=["--logit-bias", "-l"], negative="", show_default=False)
    ] = field(default_factory=list)
    "Nats added to a token, TEXT=BIAS; -inf forbids it; repeat it."

    def params(self, base: SamplingParams) -> SamplingParams:
        """These options over those of an ensemble file.

        Raises
        ------
        ConfigError
            A value is out of range.
        """
        given = {
            "temperature": self.temp,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "typical_p": self.typical,
            "repeat_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "penalty_last_n": self.repeat_last_n,
            "seed": self.seed,
        }
        biases = dict(_bias(text) for text in self.logit_bias)
        data = base.model_dump() | {k: v for k, v in given.items() if v is not None}
        data["logit_bias"] = base.logit_bias | biases
        return parse_config({"sampling": data, "member": [{"model": "-"}]}).sampling


def _bias(text: str) -> tuple[str, float]:
    token, _, value = text.rpartition("=")
    try:
        return token, float(value)
    except ValueError:
        raise ConfigError(f"--logit-bias takes TEXT=BIAS, not '{text}'") from None


@Parameter(name="*", group=_constraint)
@dataclass
class ConstraintOptions:
    """What the answer may be; one of these."""

    grammar: str | None = None
    "Grammar as in llama.cpp (GBNF); Lark if it begins with %llguidance."

    grammar_file: Path | None = None
    "The same in a file."

    json_schema: Annotated[str | None, Parameter(name=["--json-schema", "-j"])] = None
    "JSON schema; {}: any JSON."

    json_schema_file: Annotated[Path | None, Parameter(name=["--json-schema-file", "-jf"])] = None
    "The same in a file."

    def constraint(self) -> Constraint | None:
        """What these options ask for, if anything.

        Raises
        ------
        ConfigError
            More than one is given; a file cannot be read; a grammar or schema cannot be used.
        """
        given = {
            "--grammar": self.grammar,
            "--grammar-file": self.grammar_file,
            "--json-schema": self.json_schema,
            "--json-schema-file": self.json_schema_file,
        }
        given = {flag: value for flag, value in given.items() if value is not None}
        if len(given) > 1:
            raise ConfigError(f"give only one of {' and '.join(given)}")
        for flag, value in given.items():
            text = _text_of(flag, value) if isinstance(value, Path) else str(value)
            return constraint_of(grammar=text) if "grammar" in flag else Constraint("schema", text)
        return None


def _text_of(flag: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {flag} {path}: {error}") from None

"""The file that keeps what was fitted: weights or a gate, for which models, and what it was worth.

::

    {
      "format": "logitfuse-weights", "version": 1, "logitfuse": "0.3.0",
      "member": [{"name": "a", "sha256": "..."}, {"name": "b", "sha256": "..."}],
      "learned": {"kind": "weights", "pool": "linear", "weights": [0.6, 0.4]},
      "data_sha256": "...",
      "figures": {...}
    }
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from logitfuse import _core
from logitfuse.critical_gates import TrainedCritical
from logitfuse.errors import ConfigError, FusionError
from logitfuse.learned_gates import TrainedGate
from logitfuse.pooling import PoolName

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileMember(_Strict):
    """A model that something was fitted for."""

    name: str
    sha256: _Sha256


class Weights(_Strict):
    """Constant weights."""

    kind: Literal["weights"] = "weights"
    pool: PoolName = "linear"
    weights: list[_Number]

    @property
    def members(self) -> int:
        """How many members it is for."""
        return len(self.weights)

    def check(self) -> None:
        """Raise FusionError if these are no weights."""
        _core.normalise_weights(self.weights, self.members)


class Gate(_Strict):
    """Weights per byte; see `TrainedGate`."""

    kind: Literal["gate"] = "gate"
    features: int = _core.GATE_FEATURES
    bias: list[_Number]
    matrix: list[list[_Number]]
    centre: list[_Number]

    @classmethod
    def of(cls, gate: TrainedGate) -> Gate:
        """What is kept of a trained gate."""
        matrix = [list(row) for row in gate.matrix]
        return cls(bias=list(gate.bias), matrix=matrix, centre=list(gate.centre))

    @property
    def members(self) -> int:
        """How many members it is for."""
        return len(self.bias)

    def native(self) -> _core.ByteGate:
        """The gate as the byte engine runs it."""
        return _core.ByteGate(
            self.bias, [value for row in self.matrix for value in row], self.centre
        )

    def check(self) -> None:
        """Raise FusionError if the sizes do not fit."""
        self.native()


class Critical(_Strict):
    """When to ask the others; see `TrainedCritical`."""

    kind: Literal["critical"] = "critical"
    features: int = _core.GATE_FEATURES
    primary: int = Field(ge=0)
    weights: list[_Number]
    bias: _Number
    coefficients: list[_Number] = Field(
        min_length=_core.ROW_FEATURES, max_length=_core.ROW_FEATURES
    )
    centre: list[_Number] = Field(min_length=_core.ROW_FEATURES, max_length=_core.ROW_FEATURES)
    threshold: _Number

    @classmethod
    def of(cls, gate: TrainedCritical) -> Critical:
        """What is kept of a trained gate."""
        return cls(
            primary=gate.primary,
            weights=list(gate.weights),
            bias=gate.bias,
            coefficients=list(gate.coefficients),
            centre=list(gate.centre),
            threshold=gate.threshold,
        )

    @property
    def members(self) -> int:
        """How many members it is for."""
        return len(self.weights)

    def native(self) -> _core.CriticalGate:
        """The gate as the byte engine runs it."""
        return _core.CriticalGate(self.bias, self.coefficients, self.centre)

    def check(self) -> None:
        """Raise FusionError if the weights or the primary are impossible."""
        _core.normalise_weights(self.weights, self.members)
        if self.primary >= self.members:
            raise FusionError(f"there is no member {self.primary}", member=self.primary)


class GateFile(_Strict):
    """All that one file holds."""

    format: Literal["logitfuse-weights"] = "logitfuse-weights"
    version: Literal[1] = 1
    logitfuse: str = _core.__version__
    member: list[FileMember] = Field(min_length=1)
    learned: Weights | Gate | Critical = Field(discriminator="kind")
    data_sha256: _Sha256 | None = Field(None, description="of the text or the outcomes")
    figures: dict[str, Any] = {}

    @model_validator(mode="after")
    def _consistent(self) -> GateFile:
        if self.learned.members != len(self.member):
            raise ValueError(
                f"fitted for {self.learned.members} members, but {len(self.member)} are named"
            )
        if not isinstance(self.learned, Weights) and self.learned.features != _core.GATE_FEATURES:
            raise ValueError(
                f"fitted to features of version {self.learned.features}, and this version computes "
                f"{_core.GATE_FEATURES}; run logitfuse fit again"
            )
        try:
            self.learned.check()
        except FusionError as error:
            raise ValueError(str(error)) from None
        return self

    def require(self, identities: Sequence[str], *, path: Path | None = None) -> None:
        """Refuse other models than those that this was fitted for.

        Parameters
        ----------
        identities : sequence of str
            From `identity`, in member order.

        Raises
        ------
        ConfigError
        """
        where = f"'{path}' was" if path is not None else "these weights were"
        known = [member.sha256 for member in self.member]
        names = ", ".join(member.name for member in self.member)
        if known == list(identities):
            return
        if sorted(known) == sorted(identities):
            raise ConfigError(
                f"{where} fitted for the members in another order; give them as {names}", path=path
            )
        if len(known) != len(identities):
            raise ConfigError(
                f"{where} fitted for {len(known)} members ({names}), not for {len(identities)}",
                path=path,
            )
        at = next(m for m, found in enumerate(identities) if found != known[m])
        raise ConfigError(
            f"{where} fitted for another model than member {at}: its sha256 is "
            f"{identities[at][:12]}..., that of '{self.member[at].name}' was {known[at][:12]}...; "
            "load the model it was fitted for, or run logitfuse fit again",
            path=path,
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the file.

        Raises
        ------
        ConfigError
            It cannot be written.
        """
        text = json.dumps(finite(self.model_dump()), ensure_ascii=False, indent=2, allow_nan=False)
        try:
            Path(path).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write '{path}': {error}", path=Path(path)) from error


def load_gatefile(path: str | PathLike[str], identities: Sequence[str] | None = None) -> GateFile:
    """Read what was fitted.

    Parameters
    ----------
    path : path
    identities : sequence of str, optional
        Of the models it is to be used with; see `GateFile.require`.

    Raises
    ------
    ConfigError
        No such file, not such a file, damaged, or for other models.
    """
    file = Path(path)
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the weights '{file}': {error}", path=file) from error
    try:
        found = GateFile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"'{file}' holds no weights of logitfuse: {key + ': ' if key else ''}{message}",
            path=file,
            key=key or None,
        ) from None
    if identities is not None:
        found.require(identities, path=file)
    return found


def identity(path: str | PathLike[str]) -> str:
    """What tells a model from all others: the SHA-256 of its file, in hexadecimal.

    Raises
    ------
    ConfigError
        The file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read the model '{path}': {error}", path=Path(path)) from error


def finite(data: Any) -> Any:
    """The same for JSON: null for a figure that is not finite, lists for tuples."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data

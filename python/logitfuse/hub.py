"""Models from the Hugging Face hub: ``user/repo[:quant]``, llama.cpp's ``-hf`` spelling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from logitfuse.errors import ConfigError

#: What llama.cpp takes when no quantisation is named.
_DEFAULTS = ("Q4_K_M", "Q8_0")


def download(source: str) -> Path:
    """Download a model unless it is in the hub's cache; returns its path there.

    Parameters
    ----------
    source : str
        ``user/repo`` or ``user/repo:quant``.

    Raises
    ------
    ConfigError
        The name is malformed, the ``[hub]`` extra is missing, the repository cannot be reached, or
        no file in it has that quantisation.
    """
    repo, quant = parse_source(source)
    try:
        from huggingface_hub import hf_hub_download, list_repo_files
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ConfigError(
            f"-hf {source} needs the hub extra: pip install 'logitfuse[hub]'", key="hf"
        ) from None
    try:
        files = choose_files(list_repo_files(repo), quant, source=source)
        paths = [hf_hub_download(repo, file) for file in files]
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(f"cannot download {source}: {error}", key="hf") from error
    return Path(paths[0])


def parse_source(source: str) -> tuple[str, str | None]:
    """Split ``user/repo[:quant]``."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?", source)
    if match is None:
        raise ConfigError(f"'{source}' is not of the form user/repo[:quant]", key="hf")
    return match[1], match[2]


def choose_files(files: Sequence[str], quant: str | None, *, source: str) -> list[str]:
    """The files of one quantisation: one, or all parts of a split model in order."""
    models = sorted(f for f in files if f.endswith(".gguf") and "mmproj" not in f.lower())
    wanted = (quant,) if quant else _DEFAULTS
    for name in wanted:
        pattern = re.compile(rf"(^|[^a-z0-9]){re.escape(name)}([^a-z0-9_]|$)", re.IGNORECASE)
        matching = [f for f in models if pattern.search(f)]
        if matching:
            parts = [f for f in matching if re.search(r"-\d{5}-of-\d{5}\.gguf$", f)]
            return parts if parts and parts[0] == matching[0] else matching[:1]
    if models and quant is None:
        return models[:1]
    listed = ", ".join(models) or "no GGUF files"
    raise ConfigError(f"{source}: no such quantisation; the repository has {listed}", key="hf")

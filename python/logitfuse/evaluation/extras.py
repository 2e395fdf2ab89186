"""Libraries of the ``eval`` extra, imported when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from logitfuse.errors import ConfigError


def need(module: str, purpose: str) -> Any:
    """Import a library of the extra.

    Raises
    ------
    ConfigError
        It is not installed; the message says what to do.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{purpose} needs '{error.name}'; pip install 'logitfuse[eval]'", key="eval"
        ) from error

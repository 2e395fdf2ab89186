"""What figures were measured on: the machine, and the versions of all that ran on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from logitfuse import _core


def machine() -> dict[str, Any]:
    """The machine and the installation.

    Returns
    -------
    dict
        ``cpu, memory_bytes`` (None where the system does not say), ``os`` and all of
        `installation`.
    """
    return {
        "cpu": _cpu(),
        "memory_bytes": _memory(),
        "os": platform.platform(),
        **installation(),
    }


def installation() -> dict[str, Any]:
    """Versions, instruction sets and what llama.cpp was built for."""
    from logitfuse.llama import backend_info
    from logitfuse.member import cores

    return {
        "logitfuse": _core.__version__,
        "compiler": _core.__compiler__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "isa": _core.isa(),
        "available_isas": _core.available_isas(),
        "cores": cores(),
        **backend_info(),
    }


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None

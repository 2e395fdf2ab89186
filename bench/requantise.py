"""Coarser copies of a model, for methods that need members of one tokenizer.

llama.cpp's own quantiser makes them from the demo model: a weaker brother to contrast with, or two
of unequal quality to fuse::

    python bench/requantise.py FOLDER [Q2_K Q3_K ...]

The rows of SmolLM2 are no multiple of 256 values, so that llama.cpp falls back to four bits in most
tensors of the ``_K`` types: ``Q2_K`` needs 2 to 17 % more bits per byte than the original,
depending on the text.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import llama_cpp.llama_cpp as lib
from logitfuse.llama.backend import forget_log, last_log, start_backend

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import models

KINDS = {
    "Q2_K": lib.LLAMA_FTYPE_MOSTLY_Q2_K,
    "Q3_K": lib.LLAMA_FTYPE_MOSTLY_Q3_K_M,
    "Q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0,
}


def requantise(source: Path, target: Path, kind: str) -> Path:
    """Write a copy of a GGUF model in another type, whole or not at all.

    Parameters
    ----------
    source, target : Path
    kind : str
        A key of `KINDS`.

    Returns
    -------
    Path
        `target`.

    Raises
    ------
    RuntimeError
        llama.cpp refuses.
    """
    start_backend()
    params = lib.llama_model_quantize_default_params()
    params.ftype = KINDS[kind]
    params.allow_requantize = True
    params.nthread = 1
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    forget_log()
    try:
        failed = lib.llama_model_quantize(
            os.fsencode(source), os.fsencode(partial), ctypes.byref(params)
        )
        if failed:
            raise RuntimeError(f"llama.cpp does not write '{source}' as {kind}: {last_log()}")
        return partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def main(folder: str, *kinds: str) -> None:
    """Write copies of SmolLM2 and print their sizes."""
    source = models.smollm2()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for kind in kinds or KINDS:
        target = Path(folder) / f"SmolLM2-135M-Instruct.{kind}.gguf"
        requantise(source, target, kind)
        print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])

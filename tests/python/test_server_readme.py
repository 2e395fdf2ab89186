"""What the README says to do with a server, done with one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from logitfuse.batching import Batcher
from servers import Served, ensembles, serving

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
#: Blocks that say so, by language.
BLOCKS = re.findall(
    r"<!-- runs in the tests -->\n```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE
)


@pytest.fixture(scope="module")
def served(tiny_models: Mapping[str, Path]) -> Iterator[Served]:
    with serving(partial(Batcher, ensembles(tiny_models), slots=2)) as server:
        yield server


def run(*command: str) -> str:
    """What a program says."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def block(language: str, served: Served, mark: str = "") -> str:
    """The only block of a language with a mark in it, for this server."""
    (found,) = [text for known, text in BLOCKS if known == language and mark in text]
    assert "127.0.0.1:8080" in found
    return found.replace("127.0.0.1:8080", f"127.0.0.1:{served.port}")


def test_curl(served: Served) -> None:
    commands = re.split(r"\n(?=curl )", block("sh", served).strip())
    chat, text, props = (run("bash", "-c", command) for command in commands)
    assert json.loads(chat)["choices"][0]["message"]["content"]
    lines = text.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    first = json.loads(lines[0].removeprefix("data: "))["choices"][0]
    assert first["text"] == "The capital of France is"
    assert first["logprobs"]["token_logprobs"][1] < 0
    assert "pair" in json.loads(props)["models"]


def test_openai(served: Served) -> None:
    said = run(sys.executable, "-c", block("py", served, "from openai")).splitlines()
    assert 0 <= float(said[-2]) <= 1
    assert "'wish'" in said[-1]


def test_langchain(served: Served) -> None:
    assert run(sys.executable, "-c", block("py", served, "from langchain_openai"))

"""Runs the command line: as users do, in processes with pipes, or in this one."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from logitfuse.cli import main

PROMPT = "Once upon a time"
ENVIRONMENT = os.environ | {"TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
Done = subprocess.CompletedProcess[str]


#: Runs the command line with one thing changed.
_CHANGED = """
import os, signal, sys
from logitfuse.strategies.engine import Engine
Engine.threads_alone = 1  # as everywhere in the tests
{change}
from logitfuse.cli import main
main(sys.argv[1:])
"""
_INTERRUPTED = """
from logitfuse.llama import {room}
decode, calls = {room}.decode, 0
def decode_or_not(self, *arguments, **options):
    global calls
    calls += 1
    if calls == 60:
        os.kill(os.getpid(), signal.SIGINT)
    return decode(self, *arguments, **options)
{room}.decode = decode_or_not
"""


def interrupted(room: str) -> str:
    """A change: Ctrl-C at the 60th decode of a `LlamaContext` or `LlamaDecoder`."""
    return _INTERRUPTED.format(room=room)


def changed(change: str, *arguments: str) -> list[str]:
    """The command line with one thing changed, as a program to run."""
    return [sys.executable, "-c", _CHANGED.format(change=change), *arguments]


@contextmanager
def loggers_kept() -> Iterator[None]:
    """Commands that run in this process leave their handlers behind."""
    log = logging.getLogger("logitfuse")
    handlers = list(log.handlers)
    try:
        yield
    finally:
        log.handlers[:] = handlers


def in_process(*arguments: str) -> int:
    """Run a command in this process; gives its exit status."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def start(*command: str | Path, stdin: str | bytes | None = None, **options: Any) -> Done:
    """Run a program to its end; text from a pipe if given, else from a closed one."""
    raw = stdin.encode() if isinstance(stdin, str) else stdin or b""
    done = subprocess.run(
        [os.fspath(part) for part in command],
        input=raw,
        capture_output=True,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
        **options,
    )
    return Done(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def logitfuse(*arguments: str | Path, **options: Any) -> Done:
    """Run a command as users do."""
    return start(sys.executable, "-m", "logitfuse", *arguments, **options)


def kill_again_and_again(command: Sequence[str], file: Path, most: int) -> None:
    """Start a command four times, and kill it when its file has grown by up to `most` bytes."""
    rng, ends = random.Random(5), []
    for _ in range(4):
        before = file.stat().st_size if file.exists() else 0
        wanted = before + rng.randrange(1, most)
        child = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while child.poll() is None:
            if file.exists() and file.stat().st_size >= wanted:
                child.kill()
                break
            time.sleep(0.001)
        ends.append(child.wait())
    assert -signal.SIGKILL in ends


def ok(*arguments: str | Path, **options: Any) -> str:
    """What a command that succeeds says on stdout."""
    done = logitfuse(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_json(*arguments: str | Path, **options: Any) -> dict[str, Any]:
    """The document of ``run --json``."""
    report: dict[str, Any] = json.loads(ok("run", "--json", *arguments, **options))
    return report


def refusal(done: Done) -> str:
    """The one line of a command that fails."""
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("logitfuse: ")]
    assert said == done.stderr.splitlines()[-1:]
    return said[0]

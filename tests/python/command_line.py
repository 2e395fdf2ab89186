"""Runs the command line as users do: processes of their own, with pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROMPT = "Once upon a time"
ENVIRONMENT = os.environ | {"TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
Done = subprocess.CompletedProcess[str]


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

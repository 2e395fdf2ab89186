"""llguidance's grammars: what they may cost, and whether one is fit for use.

llguidance (https://github.com/guidance-ai/llguidance) bounds the work of a step, but not everything
that it does with a grammar before the first one: a schema with many patterns for one string takes
years, and rules that name one another in a long chain overflow the stack and end the process.  So a
grammar is first tried by a process of its own (``python -m logitfuse.grammar``), which has little
time, little memory and a small stack, and which ends by itself when nobody waits any more.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from logitfuse.errors import BusyError, ConfigError
from logitfuse.kept import Kept

#: What a step may cost (see ``llguidance.LLParserLimits``).  With a large vocabulary half a million
#: items take a quarter of a second, and a grammar of single characters needs nearly as many.
LIMITS: dict[str, Any] = {"step_max_items": 500_000, "verbose_errors": False}
#: What a trial may cost: seconds of computing, once Python and llguidance have started, and bytes.
#: Each member's first reply costs as much again, and a schema of 100 kB takes a tenth of a second:
#: machines that are ten times slower take it as well.  The stack is less than any thread of Python
#: has, so that what passes here passes everywhere.
_SECONDS, _MEMORY, _STACK = 1.0, 1 << 29, 1 << 20
#: So many trials are made at a time.
TRIALS = 2
_TRIALS = threading.BoundedSemaphore(TRIALS)
#: How many seconds a grammar waits for its turn, and for its verdict.
_TURN, _VERDICT = 5.0, 10.0
#: llguidance takes tokens that begin with this byte for special ones; no UTF-8 text has it.
_MARKER = b"\xff"
#: The most characters of a verdict.
_LINE = 200
#: What is wrong with the grammars that were tried last.
_VERDICTS: Kept[str] = Kept(1024)


def library() -> Any:
    """The module ``llguidance``.

    Raises
    ------
    ConfigError
        It is not installed.
    """
    try:
        import llguidance
    except ImportError:
        raise ConfigError(
            "grammars, JSON schemas and regexes need llguidance: pip install 'logitfuse[grammar]'",
            key="grammar",
        ) from None
    return llguidance


def tokenizer(tokens: Sequence[bytes]) -> Any:
    """The ``llguidance.LLTokenizer`` of some tokens, the 256 bytes and an end, in this order.

    Raises
    ------
    ConfigError
        llguidance is not installed.
    """
    wrapper = library().TokenizerWrapper(_Tokens(tokens))
    made = library().LLTokenizer(wrapper, slices=[])
    wrapper.tokens = ()  # may be millions of bytes, which it has copied
    return made


class _Tokens:
    """What llguidance asks of a tokenizer; this one cuts texts into bytes."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes]) -> None:
        plain = [*tokens, *(bytes([byte]) for byte in range(256))]
        self.tokens = [b"" if token.startswith(_MARKER) else token for token in plain]
        self.tokens.append(_MARKER + b"<end>")
        self.eos_token_id = len(plain)
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        return [self.eos_token_id - 256 + byte for byte in text]


def reason(message: str) -> str:
    """What llguidance says is wrong, in one line."""
    if message.startswith("NoExtension"):
        return "no text fits it"
    first, *rest = message.splitlines() or [""]
    if first.startswith("panic: ") or " panicked at " in first:  # of no use to anybody
        return "it is too complex"
    if len(first) > _LINE:
        first = first[:_LINE] + "..."
    causes = [line.removeprefix("error: ") for line in rest if line.startswith("error: ")]
    return ": ".join([first.rstrip(" :"), *causes])


def fault(key: bytes, grammar: Callable[[], str]) -> str:
    """What is wrong with a grammar; empty: nothing.

    Parameters
    ----------
    key : bytes
        Under which the verdict is kept.
    grammar : callable
        Called for the grammar, unless there is a verdict.

    Raises
    ------
    ConfigError
        llguidance is not installed.
    BusyError
        The machine has too much to do to find out.
    """
    library()
    return _VERDICTS.get(key, lambda: _tried(grammar()))


def _tried(grammar: str) -> str:
    """See `fault`; by another process."""
    if not _TRIALS.acquire(timeout=_TURN):
        raise BusyError("too many grammars are being tried; try again later", retry_after=_VERDICT)
    try:
        subprocess.check_output(
            # Not from the working directory, which may be anybody's.
            [sys.executable, "-P", "-m", "logitfuse.grammar"],
            input=grammar.encode(),
            stderr=subprocess.STDOUT,
            timeout=_VERDICT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except subprocess.TimeoutExpired:
        message = f"the grammar was not tried within {_VERDICT:g} seconds; try again later"
        raise BusyError(message, retry_after=_VERDICT) from None
    except subprocess.CalledProcessError as error:
        if error.returncode == 1:
            return reason(error.output.decode(errors="replace"))
        if error.returncode == -getattr(signal, "SIGPROF", 0):
            return "it is too complex: not understood within a second"
        return "it is too complex: it overflows the memory or the stack"
    finally:
        _TRIALS.release()
    return ""


def _try(grammar: str) -> str:
    """See `fault`; here and now."""
    lib = library()
    limits = lib.LLParserLimits(**LIMITS)
    matcher = lib.LLMatcher(tokenizer([]), grammar, log_level=0, limits=limits)
    mask = matcher.compute_bitmask()
    if not matcher.is_error():
        first = next(bit for bit in range(len(mask) * 8) if mask[bit // 8] >> bit % 8 & 1)
        matcher.consume_token(first)
        matcher.rollback(1)  # some options cannot be taken back
    return str(matcher.get_error())


def _main() -> None:
    with suppress(ImportError, OSError, ValueError):  # not every system has such limits
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        memory = _MEMORY if most == resource.RLIM_INFINITY else min(_MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (memory, most))
    library()
    if hasattr(signal, "setitimer"):  # counts what this process computes, however busy others are
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    found = ["it is too complex"]  # unless the trial comes to an end

    def run() -> None:
        found[0] = _try(sys.stdin.buffer.read().decode())

    threading.stack_size(_STACK)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    sys.exit(found[0] or 0)


if __name__ == "__main__":
    _main()

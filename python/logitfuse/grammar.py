"""llguidance's grammars: what they may cost, and whether one is fit for use.

llguidance (https://github.com/guidance-ai/llguidance) bounds the work of a step, but not everything
that it does with a grammar before the first one: a schema with many patterns for one string takes
years, and rules that name one another in a long chain overflow the stack and end the process.  So a
grammar is first tried by a process of its own (``python -m logitfuse.grammar``), which has little
memory and a small stack, and for which nobody waits for ever.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from logitfuse.errors import ConfigError

#: What a step may cost (see ``llguidance.LLParserLimits``).  With a large vocabulary half a million
#: items take a quarter of a second, and a grammar of single characters needs nearly as many.
LIMITS: dict[str, Any] = {"step_max_items": 500_000, "verbose_errors": False}
#: What a trial may cost: seconds, and bytes.  The stack is less than any thread of Python has, so
#: that what passes here passes everywhere.
_PATIENCE, _MEMORY, _STACK = 10, 1 << 30, 1 << 20
#: So many trials at a time.
_TRIALS = threading.BoundedSemaphore(2)
#: llguidance takes tokens that begin with this byte for special ones; no UTF-8 text has it.
_MARKER = b"\xff"
#: Verdicts that are remembered, and the most characters of one.
_REMEMBERED, _LINE = 256, 200


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
    if len(first) > _LINE:
        first = first[:_LINE] + "..."
    causes = [line.removeprefix("error: ") for line in rest if line.startswith("error: ")]
    return ": ".join([first.rstrip(" :"), *causes])


@lru_cache(_REMEMBERED)
def fault(grammar: str) -> str:
    """What is wrong with a grammar; empty: nothing.

    Raises
    ------
    ConfigError
        llguidance is not installed.
    TimeoutError
        It took too long to find out.
    """
    library()
    # Not from the working directory, which may be anybody's.
    command = [sys.executable, "-P", "-m", "logitfuse.grammar"]
    try:
        with _TRIALS:
            subprocess.check_output(
                command,
                input=grammar.encode(),
                stderr=subprocess.STDOUT,
                timeout=_PATIENCE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
    except subprocess.TimeoutExpired:
        message = f"it is too complex: not understood within {_PATIENCE} seconds"
        raise TimeoutError(message) from None
    except subprocess.CalledProcessError as error:
        if error.returncode == 1:
            return reason(error.output.decode(errors="replace"))
        return "it is too complex: it overflows the memory or the stack"
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

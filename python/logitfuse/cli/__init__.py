"""The command line: ``logitfuse run | chat | serve | batch | check | fit | eval | ...``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from logitfuse._core import __version__
from logitfuse.cli import output
from logitfuse.cli.batch import batch
from logitfuse.cli.bench import bench
from logitfuse.cli.chat import chat
from logitfuse.cli.check import check
from logitfuse.cli.demo import demo
from logitfuse.cli.evaluate import app as evaluate
from logitfuse.cli.fit import fit
from logitfuse.cli.info import info
from logitfuse.cli.presets import presets
from logitfuse.cli.run import run
from logitfuse.cli.serve import app as serve
from logitfuse.errors import LogitfuseError

app = App(
    name="logitfuse",
    version=__version__,
    help="Several local GGUF language models answer as one.",
    help_format="plaintext",
)
for command in (run, chat, batch, presets, check, fit, info, bench, demo):
    app.command(command)
app.command(evaluate)
app.command(serve)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit 0, or 2 with one line on stderr, or 130 after Ctrl-C."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("logitfuse").addHandler(output.NoteHandler())
    try:
        app(tokens, exit_on_error=False, print_error=False)
    except (CycloptsError, LogitfuseError) as error:
        output.fail(error)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of our output has left
        output.drop_stdout()
        code = 0
    except OSError as error:  # the disk is full
        output.drop_stdout()
        output.fail(error)
        code = 2
    else:
        code = 0
    sys.exit(code)

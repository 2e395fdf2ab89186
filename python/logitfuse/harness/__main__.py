"""The command line of lm-evaluation-harness, with the model ``logitfuse`` registered."""

from __future__ import annotations

import sys

from lm_eval.__main__ import cli_evaluate

from logitfuse.errors import LogitfuseError


def main() -> None:
    """Run the harness; what is wrong with an ensemble is one line."""
    try:
        cli_evaluate()
    except LogitfuseError as error:
        sys.exit(f"logitfuse: {error}")


if __name__ == "__main__":
    main()

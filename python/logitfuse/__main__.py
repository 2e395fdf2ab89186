"""``python -m logitfuse``: the command line."""

from logitfuse.cli import main

main()

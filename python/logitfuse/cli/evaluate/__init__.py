"""``logitfuse eval``: does this ensemble beat its best member, by how much, at what cost?"""

from __future__ import annotations

from cyclopts import App

from logitfuse.cli.evaluate.make import make
from logitfuse.cli.evaluate.tasks import bpb, choice, exact
from logitfuse.cli.evaluate.trace import trace

app = App(
    name="eval",
    help="Does this ensemble beat its best member, by how much, at what cost?",
    help_format="plaintext",
)
for command in (bpb, choice, exact, trace, make):
    app.command(command)

"""``logitfuse eval bpb | choice | exact``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from logitfuse.cli import output
from logitfuse.cli.evaluate.questions import QuestionOptions
from logitfuse.cli.evaluate.session import OutcomeOptions, Session
from logitfuse.cli.options import ModelOptions, SamplingOptions
from logitfuse.errors import ConfigError
from logitfuse.evaluation.bpb import STRIDE, WINDOW, BpbTask, windows
from logitfuse.evaluation.choice import ChoiceMode, ChoiceTask
from logitfuse.evaluation.exact import GREEDY, STOP, ExactTask
from logitfuse.evaluation.prompts import LETTERED, LETTERS, OPEN
from logitfuse.evaluation.texts import read_texts

_POSITIVE = Number(gte=1)
_Count = Annotated[int | None, Parameter(validator=_POSITIVE)]


def bpb(
    *files: Path,
    window: Annotated[int, Parameter(validator=_POSITIVE)] = WINDOW,
    stride: Annotated[int, Parameter(validator=_POSITIVE)] = STRIDE,
    limit: _Count = None,
    models: ModelOptions | None = None,
    outcomes: OutcomeOptions | None = None,
) -> None:
    """Bits per byte of texts: how well members and ensemble predict them.

    Every byte is scored once, with at least window - stride bytes before it unless the text
    begins there.  Likelihoods are exact where the ensemble works byte by byte, and along one
    member's tokens where it works token by token.

    Examples:

        logitfuse eval bpb notes.txt -m a.gguf -m b.gguf

        logitfuse eval bpb corpus/ -e pair.toml -o corpus.eval

    Parameters
    ----------
    files
        Texts, and folders of texts (.txt, .md, .py and the like, also below; no hidden files).
    window
        Bytes that are read at a time; as many tokens must fit the contexts.
    stride
        Bytes of every window but the first that are scored.
    limit
        Score the first so many bytes of every text only.
    """
    if not files:
        raise ConfigError("no text; give files or folders")
    texts, skipped = read_texts(files)
    if skipped:
        output.note(
            f"{output.some(len(skipped), 'file')} not UTF-8 or empty: {output.listed(skipped)}"
        )
    items = [
        piece
        for name, text in texts.items()
        for piece in windows(name, _cut(text, limit), window=window, stride=stride)
    ]
    if not items:
        raise ConfigError(f"--limit {limit} leaves nothing of the texts")
    name = files[0].resolve().stem or "texts"
    if len(files) > 1:
        name += f"+{len(files) - 1}"
    config = (models or ModelOptions()).config()
    title = f"Bits per byte of {output.some(len(texts), 'text')}"
    Session(name, title, config, outcomes or OutcomeOptions()).carry_out(BpbTask(items))


def _cut(text: bytes, limit: int | None) -> bytes:
    return text if limit is None else text[:limit].decode("utf-8", "ignore").encode()


def choice(
    data: str,
    *,
    mode: ChoiceMode = "full",
    template: str | None = None,
    asked: QuestionOptions | None = None,
    models: ModelOptions | None = None,
    outcomes: OutcomeOptions | None = None,
) -> None:
    """Questions with options: is the right one the most probable?

    Every option is scored as the answer, behind the question alone or, in letter mode, behind the
    question and all options.  Nothing is generated, and sampling has no part in it.

    Examples:

        logitfuse eval choice questions.jsonl -m a.gguf -m b.gguf

        logitfuse eval choice capitals:easy --questions 60 -m a.gguf -m b.gguf

    Parameters
    ----------
    data
        JSON lines {"question", "options": [...], "answer": index, letter or text, "group"?,
        "id"?}, or a built-in task, NAME or NAME:LEVEL (logitfuse eval make lists them).
    mode
        full: score the options (per byte, and plain); letter: show them and score their letters;
        both.
    template
        How to ask, with {question} and {options}.
    """
    asked = asked or QuestionOptions()
    name, shown, items = asked.read(data, "choice")
    task = ChoiceTask(
        items,
        mode,
        asked.asking(template or OPEN, shown, lambda q: q.options[q.answer]),
        # In full mode any letter will do.
        asked.asking(template or LETTERED, shown, lambda q: LETTERS[q.answer % len(LETTERS)]),
    )
    config = (models or ModelOptions()).config()
    Session(name, f"Choices of {name}", config, outcomes or OutcomeOptions()).carry_out(task)


def exact(
    data: str,
    *,
    template: str = OPEN,
    predict: Annotated[
        int, Parameter(name=["--predict", "--n-predict", "-n"], validator=_POSITIVE)
    ] = 256,
    stop: Annotated[list[str] | None, Parameter(name=["--stop"], negative="")] = None,
    resample: Annotated[bool, Parameter(show_default=False)] = True,
    asked: QuestionOptions | None = None,
    models: ModelOptions | None = None,
    sampling: SamplingOptions | None = None,
    outcomes: OutcomeOptions | None = None,
) -> None:
    """Questions whose answers are generated, read and compared.

    Answers are greedy unless --temp is given; then every question has a seed of its own.  The best
    member is also asked again and again, at a temperature of 0.7 if not another one, for as long as
    the ensemble took, and its answers are put to the vote (adaptive self-consistency).

    Examples:

        logitfuse eval exact sums.jsonl -m a.gguf -m b.gguf --chat

        logitfuse eval exact chains:easy --shots 4 -n 16 -m a.gguf -m b.gguf

    Parameters
    ----------
    data
        JSON lines {"question", "answer", "kind"?: number, choice, label, bool, json or text,
        "labels"?, "group"?, "id"?}, or a built-in task, NAME or NAME:LEVEL.
    template
        How to ask, with {question} and {options}.
    predict
        Most tokens of an answer.
    stop
        End an answer before this string; repeat it; default: a blank line or the next question.
    resample
        --no-resample: do not ask the best member again.
    """
    asked = asked or QuestionOptions()
    name, shown, items = asked.read(data, "exact")
    config = (models or ModelOptions()).config()
    default = () if asked.chats else STOP
    task = ExactTask(
        items,
        asked.asking(template, shown, lambda q: q.answer),
        (sampling or SamplingOptions()).params(GREEDY),
        predict,
        default if stop is None else tuple(stop),
    )
    session = Session(name, f"Answers to {name}", config, outcomes or OutcomeOptions())
    session.carry_out(task, resample=resample)

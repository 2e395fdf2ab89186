"""``logitfuse eval bpb | choice | exact``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter
from cyclopts.validators import Number

from logitfuse.cli import output
from logitfuse.cli.evaluate.session import OutcomeOptions, Session
from logitfuse.cli.options import Flag, ModelOptions, SamplingOptions
from logitfuse.errors import ConfigError
from logitfuse.evaluation.bpb import STRIDE, WINDOW, BpbTask, windows
from logitfuse.evaluation.choice import ChoiceMode, ChoiceTask
from logitfuse.evaluation.exact import GREEDY, STOP, ExactTask
from logitfuse.evaluation.makers import MAKERS
from logitfuse.evaluation.makers import make as make_questions
from logitfuse.evaluation.prompts import LETTERED, LETTERS, OPEN, Asking
from logitfuse.evaluation.questions import Choice, Dataset, Exact, read_choices, read_exact
from logitfuse.evaluation.texts import read_texts

Q = TypeVar("Q", Choice, Exact)

_POSITIVE = Number(gte=1)
_Count = Annotated[int | None, Parameter(validator=_POSITIVE)]
#: How many questions a built-in task gives if nobody says.
_MADE = 50


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
        output.note(f"{_some(len(skipped), 'file')} not UTF-8 or empty: {_listed(skipped)}")
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
    title = f"Bits per byte of {_some(len(texts), 'text')}"
    Session(name, title, config, outcomes or OutcomeOptions()).carry_out(BpbTask(items))


def _cut(text: bytes, limit: int | None) -> bytes:
    return text if limit is None else text[:limit].decode("utf-8", "ignore").encode()


def choice(
    data: str,
    *,
    mode: ChoiceMode = "full",
    template: str | None = None,
    chat: Flag = False,
    system: Annotated[str, Parameter(name=["--system-prompt", "-sys"])] = "",
    shots: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    questions: _Count = None,
    task_seed: int = 0,
    skip_bad: Flag = False,
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
    chat
        Ask through every member's own chat template.
    system
        System message; implies --chat.
    shots
        Show so many of the first questions with their answers before each other one.
    questions
        Ask so many, the first ones behind those that are shown; default: all, of a built-in
        task 50.
    task_seed
        Other questions of a built-in task.
    skip_bad
        Leave lines out that cannot be used, and count them.
    """
    name, shown, asked = _questions(
        data, "choice", read_choices, shots, questions, task_seed, skip_bad
    )

    def asking(default: str, answer: Callable[[Choice], str]) -> Asking:
        plain = Asking(template or default)
        examples = tuple((plain.fill(q.question, q.options), answer(q)) for q in shown)
        return Asking(plain.template, chat or bool(system), system, examples)

    task = ChoiceTask(
        asked,
        mode,
        asking(OPEN, lambda q: q.options[q.answer]),
        asking(LETTERED, lambda q: LETTERS[q.answer % len(LETTERS)]),  # full mode: any will do
    )
    config = (models or ModelOptions()).config()
    title = f"Choices of {name}"
    Session(name, title, config, outcomes or OutcomeOptions()).carry_out(task)


def exact(
    data: str,
    *,
    template: str = OPEN,
    chat: Flag = False,
    system: Annotated[str, Parameter(name=["--system-prompt", "-sys"])] = "",
    shots: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    questions: _Count = None,
    task_seed: int = 0,
    predict: Annotated[
        int, Parameter(name=["--predict", "--n-predict", "-n"], validator=_POSITIVE)
    ] = 256,
    stop: Annotated[list[str] | None, Parameter(name=["--stop"], negative="")] = None,
    resample: Annotated[bool, Parameter(show_default=False)] = True,
    skip_bad: Flag = False,
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
    chat
        Ask through every member's own chat template.
    system
        System message; implies --chat.
    shots
        Show so many of the first questions with their answers before each other one.
    questions
        Ask so many, the first ones behind those that are shown; default: all, of a built-in
        task 50.
    task_seed
        Other questions of a built-in task.
    predict
        Most tokens of an answer.
    stop
        End an answer before this string; repeat it; default: a blank line or the next question.
    resample
        --no-resample: do not ask the best member again.
    skip_bad
        Leave lines out that cannot be used, and count them.
    """
    name, shown, asked = _questions(
        data, "exact", read_exact, shots, questions, task_seed, skip_bad
    )
    plain = Asking(template)
    examples = tuple((plain.fill(q.question, q.labels), q.answer) for q in shown)
    chatting = chat or bool(system)
    config = (models or ModelOptions()).config()
    default = () if chatting else STOP
    task = ExactTask(
        asked,
        Asking(template, chatting, system, examples),
        (sampling or SamplingOptions()).params(GREEDY),
        predict,
        default if stop is None else tuple(stop),
    )
    session = Session(name, f"Answers to {name}", config, outcomes or OutcomeOptions())
    session.carry_out(task, resample=resample)


def _questions(
    data: str,
    kind: str,
    read: Callable[..., Dataset[Q]],
    shots: int,
    n: int | None,
    seed: int,
    skip_bad: bool,
) -> tuple[str, Sequence[Any], Sequence[Any]]:
    """Name of a file or a built-in task, the questions that are shown, those that are asked."""
    task, _, level = data.partition(":")
    items: Sequence[Any]
    if task in MAKERS and not Path(data).exists():
        if MAKERS[task].task != kind:
            other = MAKERS[task].task
            raise ConfigError(f"'{task}' is for logitfuse eval {other}, not {kind}")
        items = make_questions(task, n=shots + (n or _MADE), seed=seed, level=level or "medium")
        name = data.replace(":", "-")
    else:
        if not Path(data).exists():
            known = ", ".join(name for name, maker in MAKERS.items() if maker.task == kind)
            raise ConfigError(f"there is no file '{data}'; built-in tasks: {known}")
        found = read(Path(data), skip_bad=skip_bad)
        if found.skipped:
            lines = [str(bad.line) for bad in found.skipped]
            output.note(f"{_some(len(lines), 'line')} cannot be used: {_listed(lines)}")
        items, name = found.items, found.name
    if shots >= len(items):
        raise ConfigError(f"--shots {shots} leaves none of the {_some(len(items), 'question')}")
    return name, items[:shots], items[shots : None if n is None else shots + n]


def _some(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _listed(names: Sequence[str]) -> str:
    """The first of them."""
    return ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")

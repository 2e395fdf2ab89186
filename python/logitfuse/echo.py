"""How probable an ensemble finds a prompt, token by token: OpenAI's ``echo`` with ``logprobs``.

An ensemble has no tokens of its own.  Prompts are cut into those of its *scribe*, along whose
tokens texts are scored (`Engine.scribe`); in ``bytes`` too, the units of a scored text end where
the scribe's tokens end.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from logitfuse.errors import PromptError
from logitfuse.scoring import is_greedy
from logitfuse.strategies.base import Candidate, Request, Step
from logitfuse.strategies.engine import Engine
from logitfuse.text import from_character, valid_text
from logitfuse.vocab import TokenKind


@dataclass(frozen=True)
class Cut:
    """A prompt in tokens: some begin it and are only read, all others are scored.

    Attributes
    ----------
    tokens : tuple of bytes
        What each token adds to the prompt; the end symbol adds nothing.
    n_given : int
        How many are only read: the first one; all up to the last special token, of which no
        ensemble has a probability; and as many more as it takes to end a character.
    given : bytes or tuple of int
        These, as the prompt of a `Request`.
    text : bytes
        All others; empty: there are none.
    """

    tokens: tuple[bytes, ...]
    n_given: int
    given: bytes | tuple[int, ...]
    text: bytes

    def request(self, top_logprobs: int = 0) -> Request:
        """What `Engine.score` is to be asked together with `text`, if there is any."""
        return Request(self.given, top_logprobs=top_logprobs)


@dataclass(frozen=True)
class TokenScore:
    """A token and how probable it was.

    Attributes
    ----------
    text : bytes
        Empty for the end.
    logprob : float or None
        Nats; None: nobody was asked.
    top : tuple of (bytes, float)
        What might have come instead, if asked for, and the token itself, the most probable first.
        Then the token is the first one if and only if the ensemble would have said it.
    """

    text: bytes
    logprob: float | None
    top: tuple[Candidate, ...] = ()


def tokenize(engine: Engine, text: bytes, *, special: bool = False) -> list[int]:
    """Symbols of a text, cut as the ensemble's scribe cuts it.

    Parameters
    ----------
    engine : Engine
    text : bytes
        Valid UTF-8.
    special : bool
        Recognise special tokens if all members share a vocabulary.  Different ones share nothing
        but the end: a text that is its name (see `tokenizer_info`) is the end symbol.
    """
    scribe, end = engine.members[engine.scribe], engine.alignment.end
    if engine.alignment.identical:
        return scribe.model.tokenize(text, parse_special=special)
    if special and end is not None and text and text == scribe.model.special_text("eos").encode():
        return [end]
    symbols = (engine.alignment.symbol(engine.scribe, token) for token in scribe.tokenize(text))
    return [symbol for symbol in symbols if symbol is not None]


def tokenizer_info(engine: Engine) -> dict[str, str | None]:
    """What clients that tokenize remotely want to know, with vLLM's names.

    Returns
    -------
    dict
        ``eos_token`` and ``bos_token``: texts that `tokenize` with `special` makes one symbol of;
        a prompt that begins with it is a document from its beginning.  ``chat_template``: of the
        scribe.  Different vocabularies share only the end.
    """
    scribe = engine.members[engine.scribe]
    info: dict[str, str | None] = {
        "eos_token": scribe.model.special_text("eos") or None,
        "bos_token": None,
        "chat_template": None,
    }
    if engine.alignment.identical:
        info["bos_token"] = scribe.vocab.token_bytes(scribe.opening).decode("utf-8", "replace")
        info["chat_template"] = scribe.model.chat_template
    return info


def cut_prompt(engine: Engine, prompt: str | bytes | Sequence[int]) -> Cut:
    """Cut a prompt into tokens.

    A text is read as a prompt is: special tokens are recognised if all members share a vocabulary,
    and a begin-of-text token that a member puts before it is no part of it.  Symbols stay as they
    are, one token each; those of different vocabularies mean their bytes, and the end symbol at
    their beginning that they are a document from its beginning.

    Raises
    ------
    PromptError
        The prompt is empty or not valid UTF-8, there is no such symbol, or the scribe's tokenizer
        changes the text.
    """
    if isinstance(prompt, str | bytes):
        return _cut_text(engine, valid_text(prompt, "the prompt"))
    if not prompt:
        raise PromptError("the prompt is empty; give at least one token")
    pieces = engine.alignment.spell(prompt)
    n = _count_given(engine, prompt, pieces)
    given: bytes | tuple[int, ...] = tuple(prompt[:n])
    if not engine.alignment.identical:
        given = from_character(b"".join(pieces[:n]))
    return Cut(tuple(pieces), n, given, b"".join(pieces[n:]))


def _cut_text(engine: Engine, raw: bytes) -> Cut:
    symbols = tokenize(engine, raw, special=engine.alignment.identical)
    pieces = engine.alignment.spell(symbols)
    added = max(0, len(b"".join(pieces)) - len(raw))  # a space before every text
    pieces[:1] = [piece[added:] for piece in pieces[:1]]
    n = _count_given(engine, symbols, pieces)
    text = b"".join(pieces[n:])
    if not pieces or not raw.endswith(text):
        name = engine.members[engine.scribe].name
        raise PromptError(f"member '{name}' cannot spell the prompt: its tokenizer changes it")
    return Cut(tuple(pieces), n, raw[: len(raw) - len(text)], text)


def _count_given(engine: Engine, symbols: Sequence[int], pieces: Sequence[bytes]) -> int:
    """How many tokens are only read (see `Cut`)."""
    if engine.alignment.identical:
        kinds = engine.alignment.vocabs[0].kinds[list(symbols)]
        special = np.flatnonzero(~np.isin(kinds, (TokenKind.TEXT, TokenKind.BYTE)))
    else:
        special = np.flatnonzero(np.array(symbols) == engine.alignment.end)
    spelled = (i for i, piece in enumerate(pieces) if piece)
    n = 1 + (int(special[-1]) if len(special) else next(spelled, 0))
    while n < len(pieces) and from_character(pieces[n]) != pieces[n]:
        n += 1
    return n


def score_prompt(
    engine: Engine, prompt: str | bytes | Sequence[int], top_logprobs: int = 0
) -> tuple[TokenScore, ...]:
    """How probable an ensemble finds each token of a prompt.

    The prompt is scored as one document: weights that learn have learned from its beginning, and
    gates know no place where a reply begins.  So its end need not be as probable as a reply to its
    beginning (`logitfuse.scoring.score_reply`).

    Raises
    ------
    PromptError, ContextLengthError, FusionError, MemberError
    """
    cut = cut_prompt(engine, prompt)
    steps = engine.score(cut.request(top_logprobs), cut.text) if cut.text else ()
    return score_tokens(cut, steps, top_logprobs)


def score_tokens(cut: Cut, steps: Iterable[Step], top_logprobs: int = 0) -> tuple[TokenScore, ...]:
    """What the steps of a scored prompt say of its tokens.

    A unit belongs to the token in which it ends.  So the log-probabilities sum to that of the text,
    and so do those of any tokens that begin and end where units do; a token inside a longer unit
    has probability 1.

    Parameters
    ----------
    cut : Cut
    steps : iterable of Step
        From `Engine.score` of ``cut.request(top_logprobs)`` and ``cut.text``.
    top_logprobs : int
        How many of the most probable units are listed; the token itself always is.

    Returns
    -------
    tuple of TokenScore
        One for each of ``cut.tokens``.
    """
    scores = [TokenScore(token, None) for token in cut.tokens[: cut.n_given]]
    waiting = deque(steps)
    end_of_token = end_of_units = 0
    for token in cut.tokens[cut.n_given :]:
        end_of_token += len(token)
        units: list[Step] = []
        while waiting and end_of_units + len(waiting[0].unit) <= end_of_token:
            units.append(waiting.popleft())
            end_of_units += len(units[-1].unit)
        scores.append(_score_token(token, units, top_logprobs, last=not waiting))
    return tuple(scores)


def score_step(step: Step, top_logprobs: int) -> TokenScore:
    """A step of an answer, as a token."""
    return _score_token(step.unit, [step], top_logprobs)


def _score_token(
    token: bytes, units: Sequence[Step], top_logprobs: int, *, last: bool = False
) -> TokenScore:
    """A token in which these units end; the last one of the text may be cut short.

    What might have come instead is told of the first unit that the ensemble would not have said.
    If it would have said all of them, of the last one, where all else is less probable.
    """
    logprob = math.fsum(step.logprob for step in units)
    if not units:
        return TokenScore(token, logprob, ((token, logprob),))
    greedy = [is_greedy(step, last=last and step is units[-1]) for step in units]
    at = greedy.index(False) if False in greedy else len(units) - 1
    before = b"".join(step.unit for step in units[:at])
    so_far = math.fsum(step.logprob for step in units[:at])
    others = [
        (before + unit, so_far + own)
        for unit, own in units[at].top[:top_logprobs]
        # What scoring has charged for (see `Bytes`) must not make the ensemble's wish another one.
        if unit != units[at].unit and not (all(greedy) and so_far + own > logprob)
    ]
    top = sorted([(token, logprob), *others], key=lambda candidate: -candidate[1])
    return TokenScore(token, logprob, tuple(top))

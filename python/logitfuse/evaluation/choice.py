"""Questions with options: which one is most probable?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from logitfuse.errors import ConfigError, FusionError
from logitfuse.evaluation.prompts import LETTERED, LETTERS, OPEN, Asking, lettered
from logitfuse.evaluation.questions import Choice
from logitfuse.evaluation.runner import Findings
from logitfuse.strategies.base import Request

if TYPE_CHECKING:
    from logitfuse.evaluation.contenders import Contender

#: What is scored: the options themselves, or letters that stand for them.
ChoiceMode = Literal["full", "letter", "both"]
#: The default ways to ask.
OPENLY, BY_LETTER = Asking(OPEN), Asking(LETTERED)
METRICS: dict[ChoiceMode, tuple[str, ...]] = {
    "full": ("per_byte", "plain"),
    "letter": ("letter",),
    "both": ("per_byte", "plain", "letter"),
}


@dataclass(frozen=True)
class ChoiceTask:
    """Every option is scored as the answer.

    Parameters
    ----------
    items : sequence of Choice
    mode : {"full", "letter", "both"}
        ``full``: the options are scored behind the question alone (metrics ``plain``, by their
        log-likelihood, and ``per_byte``, divided by their bytes, so that long options are not at a
        disadvantage); ``letter``: the options are shown, and their letters are scored (``letter``).
    full, letter : Asking
        How the question is put in either mode.

    Raises
    ------
    ConfigError
        More options than letters.
    """

    items: Sequence[Choice]
    mode: ChoiceMode = "full"
    full: Asking = OPENLY
    letter: Asking = BY_LETTER
    kind: str = "choice"

    def __post_init__(self) -> None:
        if self.mode == "full":
            return
        for item in self.items:
            if len(item.options) > len(LETTERS):
                raise ConfigError(
                    f"question '{item.id}' has {len(item.options)} options, and there are "
                    f"{len(LETTERS)} letters; use --mode full"
                )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The first is the main one."""
        return METRICS[self.mode]

    def parameters(self, item: Choice) -> dict[str, Any]:
        """See `Task`."""
        asked = {
            name: dict(asking.parameters)
            for name, asking in (("full", self.full), ("letter", self.letter))
            if self.mode in (name, "both")
        }
        return {
            "question": item.question,
            "options": list(item.options),
            "answer": item.answer,
            "asked": asked,
        }

    def put(self, item: Choice, contender: Contender, *, sample: int = 0) -> Findings:
        """See `Task`; nothing is random here: to sample an option often is to take the best."""
        del sample
        found = Findings(
            {},
            {
                "question": f"{item.question}\n{lettered(item.options)}",
                "expected": item.options[item.answer],
            },
        )
        if self.mode != "letter":
            nats = self._score(contender, self.full, item, item.options)
            sizes = [len(option.encode()) for option in item.options]
            best = int(np.argmax(nats / np.array(sizes)))
            found.scores["per_byte"] = float(best == item.answer)
            found.scores["plain"] = float(int(np.argmax(nats)) == item.answer)
            found.data |= {"said": item.options[best], "nats": nats.tolist(), "bytes": sizes}
        if self.mode != "full":
            letters = LETTERS[: len(item.options)]
            nats = self._score(contender, self.letter, item, letters)
            best = int(np.argmax(nats))
            found.scores["letter"] = float(best == item.answer)
            found.data.setdefault("said", f"{letters[best]}. {item.options[best]}")
            found.data["letter_nats"] = nats.tolist()
        return found

    def _score(
        self, contender: Contender, asking: Asking, item: Choice, answers: Sequence[str]
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Log-likelihood of each answer, nats; the prompt is read once."""
        from logitfuse.scoring import score_reply

        prompt = asking.prompt(asking.fill(item.question, item.options))
        nats = np.array(
            [
                score_reply(contender.engine, Request(prompt), asking.reply(answer)).nats
                for answer in answers
            ]
        )
        if not np.isfinite(nats).any():
            raise FusionError("no option has any probability")
        return nats

"""Questions whose answers are generated, read and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitfuse.evaluation.answers import canonical
from logitfuse.evaluation.prompts import OPEN, Asking
from logitfuse.evaluation.questions import Exact
from logitfuse.evaluation.runner import Findings
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Request

if TYPE_CHECKING:
    from logitfuse.evaluation.contenders import Contender

#: Where the answer to a question ends that is put as a text: before the next question.
STOP = ("\nQuestion:", "\n\n")
#: The default way to ask.
OPENLY = Asking(OPEN)
GREEDY = SamplingParams(temperature=0)
#: The temperature at which a greedy member is asked again.
RESAMPLING = 0.7


@dataclass(frozen=True)
class ExactTask:
    """An answer is generated, and read as what the question asks for.

    Parameters
    ----------
    items : sequence of Exact
    asking : Asking
    sampling : SamplingParams
        Greedy by default; else every question has a seed of its own.
    max_tokens : int
    stop : tuple of str
    """

    items: Sequence[Exact]
    asking: Asking = OPENLY
    sampling: SamplingParams = GREEDY
    max_tokens: int = 256
    stop: tuple[str, ...] = STOP
    kind: str = "exact"
    metrics: tuple[str, ...] = ("right",)

    def parameters(self, item: Exact) -> dict[str, Any]:
        """See `Task`."""
        return {
            "question": item.question,
            "answer": [item.kind, item.answer, *item.labels],
            "asked": dict(self.asking.parameters),
            "sampling": self.sampling.model_dump(mode="json"),
            "max_tokens": self.max_tokens,
            "stop": list(self.stop),
        }

    def put(self, item: Exact, contender: Contender, *, sample: int = 0) -> Findings:
        """See `Task`; an answer that cannot be read is wrong, and has no vote."""
        request = Request(
            self.asking.prompt(self.asking.fill(item.question, item.labels)),
            sampling=self._sampling(item, sample),
            max_tokens=self.max_tokens,
            stop=self.stop,
        )
        chunks = list(contender.engine.stream(request))
        text = "".join(chunk.text for chunk in chunks).strip()
        said = canonical(text, item.kind, item.labels)
        expected = canonical(item.answer, item.kind, item.labels)
        data = {
            "question": item.question,
            "expected": item.answer,
            "said": text,
            "parsed": said,
            "gold": expected,
            "finish_reason": chunks[-1].finish_reason,
        }
        return Findings({"right": float(said is not None and said == expected)}, data)

    def _sampling(self, item: Exact, sample: int) -> SamplingParams:
        params = self.sampling
        temperature = params.temperature or (RESAMPLING if sample else 0)
        if temperature == 0:
            return params
        name = f"{params.seed or 0} {sample} {item.question}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])
        return params.model_copy(update={"seed": seed, "temperature": temperature})

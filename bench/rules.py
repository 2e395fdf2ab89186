"""Ways to weigh members, replayed on byte matrices: what each would have given every byte.

Whatever is fitted is fitted to the other texts, so that no text is predicted from itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from logitfuse import _core
from logitfuse.bytescores import ByteScores
from logitfuse.fitting import Floats, Scores, fit_linear, fit_log_linear, linear_logprobs, observed
from logitfuse.learned_gates import train_gate
from logitfuse.pooling import FLOOR, PoolName, pool_matrix
from logitfuse.weights import PromptBits, PromptEvidence, PromptGreedy, Weigher, online_mixture

#: Share of a text that prompt weights are read off; they are judged by the rest.
PROMPT = 0.25
#: Pools that are replayed byte by byte with equal weights, besides the linear and log-linear one.
OTHER_POOLS: tuple[PoolName, ...] = tuple(
    pool for pool in get_args(PoolName) if pool not in ("linear", "log-linear", "contrast")
)


@dataclass(frozen=True)
class Material:
    """Texts by domain, each scored by all members.

    Attributes
    ----------
    names : tuple of str
        The members.
    scores : mapping of str to sequence of Scores
    """

    names: tuple[str, ...]
    scores: Mapping[str, Sequence[Scores]]

    @functools.cached_property
    def tables(self) -> dict[str, Floats]:
        """Log-probability that each member gave each byte, nats, ``[n_bytes, members]``."""
        return {domain: observed(own) for domain, own in self.scores.items()}

    @property
    def equal(self) -> Floats:
        """Equal weights."""
        return np.full(len(self.names), 1 / len(self.names))

    def others(self, domain: str) -> Floats:
        """The tables of the other texts, one behind the other."""
        return np.concatenate([own for name, own in self.tables.items() if name != domain])

    def other_scores(self, domain: str) -> list[ByteScores]:
        """The other texts as if they were one."""
        rest = [own for name, own in self.scores.items() if name != domain]
        return [
            ByteScores(
                b"".join(own[member].text for own in rest),
                np.concatenate([own[member].logprobs for own in rest]),
                n_tokens=0,
                n_decoded=0,
            )
            for member in range(len(self.names))
        ]


#: Log-probability of every byte of one of the texts, nats.
Rule = Callable[[Material, str], Floats]


def member(index: int) -> Rule:
    """One member alone."""
    return lambda data, domain: data.tables[domain][:, index]


def best_elsewhere(data: Material, domain: str) -> Floats:
    """The member that is best on the other texts."""
    return data.tables[domain][:, int(np.argmax(data.others(domain).sum(axis=0)))]


def best_here(data: Material, domain: str) -> Floats:
    """The member that is best on this very text: nobody can know it beforehand."""
    table = data.tables[domain]
    return table[:, int(np.argmax(table.sum(axis=0)))]


def uniform(data: Material, domain: str) -> Floats:
    """Linear pool of the next byte, equal weights."""
    return linear_logprobs(data.tables[domain], data.equal)


def by_word(data: Material, domain: str) -> Floats:
    """Linear pool of whole words with the space before them, equal weights.

    The members are mixed once per word; within it, a byte counts for those who foresaw the bytes
    before it.
    """
    table, text = data.tables[domain], data.scores[domain][0].text
    out = np.empty(len(text))
    for word in re.finditer(rb"\s*\S+|\s+", text):
        joint = np.logaddexp.reduce(table[slice(*word.span())].cumsum(axis=0), axis=1)
        out[slice(*word.span())] = np.diff(joint, prepend=np.log(len(data.names)))
    return out


def fitted(data: Material, domain: str) -> Floats:
    """Linear pool of the next byte, weights fitted to the other texts."""
    weights, _ = fit_linear(data.others(domain))
    return linear_logprobs(data.tables[domain], np.asarray(weights))


def online(rate: float, share: float) -> Rule:
    """Linear pool, weights learned from the bytes before; see `logitfuse.weights.Online`."""
    return lambda data, domain: online_mixture(data.tables[domain], rate=rate, share=share)[0]


def from_prompt(weigher: Callable[[int], Weigher]) -> Rule:
    """Linear pool, weights read off the beginning of the text, which counts byte by byte."""

    def rule(data: Material, domain: str) -> Floats:
        table = data.tables[domain]
        begin = prompt_length(len(table))
        chosen = weigher(len(data.names))
        ends = np.arange(1, begin + 1)
        chosen.begin([PromptEvidence(ends, column) for column in table[:begin].T])
        return linear_logprobs(table, np.asarray(chosen.current()))

    return rule


def prompt_length(n_bytes: int) -> int:
    """Bytes of a text that count as its prompt."""
    return int(PROMPT * n_bytes)


def log_linear(data: Material, domain: str) -> Floats:
    """Log-linear pool of all 257 outcomes, equal weights."""
    return _log_linear(data.scores[domain], data.equal.tolist())


def log_linear_fitted(data: Material, domain: str) -> Floats:
    """Log-linear pool of all 257 outcomes, weights fitted to the other texts."""
    weights, _ = fit_log_linear(data.other_scores(domain), tolerance=1e-6)
    return _log_linear(data.scores[domain], weights)


def _log_linear(scores: Sequence[Scores], weights: Sequence[float]) -> Floats:
    text = np.frombuffer(scores[0].text, np.uint8)
    at = np.arange(len(text), dtype=np.int32)
    return _core.log_linear_logprobs([own.logprobs for own in scores], text, at, FLOOR, weights)


def pooled(pool: PoolName) -> Rule:
    """Any pool of all 257 outcomes, equal weights."""

    def rule(data: Material, domain: str) -> Floats:
        own = data.scores[domain]
        stacked = np.stack([scores.logprobs for scores in own], axis=1)
        rows = (pool_matrix(place, pool=pool) for place in stacked)
        return np.array([row[byte] for row, byte in zip(rows, own[0].text, strict=True)])

    return rule


def gate(data: Material, domain: str) -> Floats:
    """Linear pool, weights per byte from a gate that learned from the other texts."""
    trained = train_gate(data.other_scores(domain))
    own = data.scores[domain]
    features = _core.features_of_text(
        [scores.logprobs for scores in own], np.frombuffer(own[0].text, np.uint8)
    )
    known = np.nan_to_num(features - np.asarray(trained.centre), nan=0.0)
    scores = known @ np.asarray(trained.matrix).T + np.asarray(trained.bias)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return linear_logprobs(data.tables[domain], weights / weights.sum(axis=1, keepdims=True))


def rules(names: Sequence[str]) -> dict[str, Rule]:
    """What is judged by whole texts."""
    return {
        **{name: member(index) for index, name in enumerate(names)},
        "best member on the other texts": best_elsewhere,
        "best member of each text (oracle)": best_here,
        "linear, equal, per byte": uniform,
        "linear, equal, per word": by_word,
        "linear, fitted to the other texts": fitted,
        "linear, online": online(rate=0.1, share=0.002),
        "linear, learned gate": gate,
        "log-linear, equal": log_linear,
        "log-linear, fitted to the other texts": log_linear_fitted,
        **{f"{pool}, equal": pooled(pool) for pool in OTHER_POOLS},
    }


def prompt_rules(names: Sequence[str]) -> dict[str, Rule]:
    """What is judged by the text behind a prompt."""
    return {
        **{name: member(index) for index, name in enumerate(names)},
        "linear, equal, per byte": uniform,
        "linear, fitted to the other texts": fitted,
        "linear, prompt softmax": from_prompt(PromptBits),
        "linear, prompt greedy": from_prompt(PromptGreedy),
        "linear, online, warmed up by the prompt": online(rate=0.1, share=0.002),
    }

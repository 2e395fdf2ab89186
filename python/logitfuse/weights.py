"""Weights: where the N numbers come from - given, read off the prompt, or learned on the go.

All likelihoods are compared per byte, or over the same bytes, so that the members' tokenizers do
not matter.  Log-probabilities are in nats; NaN: not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitfuse import _core
from logitfuse.errors import FusionError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PromptEvidence:
    """How one member reads a prompt that all members share.

    Attributes
    ----------
    ends : int array, shape ``[n_tokens]``
        Where each token ends, in bytes from the beginning of the shared text; never decreasing.
    logprobs : float array, shape ``[n_tokens]``
        Its log-probability, nats; NaN where it is not known (the first token of a model without a
        begin-of-text token).  That of a token without bytes does not count.
    """

    ends: NDArray[np.int64]
    logprobs: Floats


@dataclass(frozen=True)
class Segments:
    """A prompt cut where the tokens of all members end together.

    Attributes
    ----------
    n_bytes : int64 array, shape ``[n]``
        Length of each segment.
    logprobs : float64 array, shape ``[n, members]``
        What each member gives it, nats; never NaN: segments that a member could not score are
        left out.
    """

    n_bytes: NDArray[np.int64]
    logprobs: Floats

    def bits_per_byte(self) -> Floats:
        """Each member's, over the same bytes; shape ``[members]``, NaN without segments."""
        total = int(self.n_bytes.sum())
        if total == 0:
            return np.full(self.logprobs.shape[1], np.nan)
        bits: Floats = -self.logprobs.sum(axis=0) / total / math.log(2)
        return bits


def segments(evidence: Sequence[PromptEvidence]) -> Segments:
    """Cut a prompt at the boundaries that all members share.

    Raises
    ------
    FusionError
        Offsets that decrease, or not one log-probability per token.
    """
    for member, own in enumerate(evidence):
        if own.ends.shape != own.logprobs.shape or np.any(np.diff(own.ends, prepend=0) < 0):
            raise FusionError(
                f"the prompt evidence of member {member} needs one log-probability per token and "
                "offsets that never decrease",
                member=member,
            )
    common = {0}.union(*(own.ends.tolist() for own in evidence[:1]))
    for own in evidence[1:]:
        common &= {0, *own.ends.tolist()}
    cuts = sorted(common)
    lengths = np.array([b - a for a, b in pairwise(cuts)], np.int64)
    table = np.array(
        [[_between(own, a, b) for own in evidence] for a, b in pairwise(cuts)], np.float64
    ).reshape(len(lengths), len(evidence))
    known = ~np.isnan(table).any(axis=1)
    return Segments(lengths[known], table[known])


def _between(own: PromptEvidence, begin: int, end: int) -> float:
    """Log-probability of the tokens that lie in these bytes; those without bytes do not count."""
    first, last = np.searchsorted(own.ends, (begin, end), side="right")
    lengths = np.diff(own.ends[first:last], prepend=begin)
    return float(own.logprobs[first:last][lengths > 0].sum())


class Weigher(Protocol):
    """Gives the weights of a reply, step by step."""

    #: `begin` wants evidence: the prompt has to be scored, which costs an output row per token.
    reads_prompt: bool

    def begin(self, evidence: Sequence[PromptEvidence]) -> None:
        """A new reply starts; one piece of evidence per member, or none at all."""

    def current(self) -> list[float]:
        """The weights of the next step; they sum to 1."""

    def observe(self, logprobs: Sequence[float], n_bytes: int) -> None:
        """Each member's log-probability of the unit just emitted, nats; NaN: did not vote."""


class Given:
    """Weights that somebody chose, or fitted, or that are proportional to benchmark scores.

    Parameters
    ----------
    weights : sequence of float
        Non-negative, not all zero; normalised.  GaC (arXiv 2406.12585) gives each member its
        benchmark score.
    pool : str
        Product and contrast take the weights as given.

    Raises
    ------
    FusionError
    """

    reads_prompt = False

    def __init__(self, weights: Sequence[float], pool: str = "linear") -> None:
        self._weights = _core.normalise_weights([float(w) for w in weights], len(weights), pool)

    def begin(self, evidence: Sequence[PromptEvidence]) -> None:
        """Nothing to learn."""

    def current(self) -> list[float]:
        """The weights, normalised."""
        return list(self._weights)

    def observe(self, logprobs: Sequence[float], n_bytes: int) -> None:
        """Nothing to learn."""


class _FromPrompt:
    """Weights that depend on the prompt only; equal ones where it tells nothing."""

    reads_prompt = True

    def __init__(self, members: int) -> None:
        self._members = members
        self._weights = Given([1.0] * members).current()

    def begin(self, evidence: Sequence[PromptEvidence]) -> None:
        """Weigh the members by how they read the prompt."""
        self._weights = Given([1.0] * self._members).current()
        parts = segments(_one_each(evidence, self._members))
        if np.isfinite(parts.bits_per_byte()).any():
            self._weights = self._weigh(parts)

    def current(self) -> list[float]:
        """The weights of this reply."""
        return list(self._weights)

    def observe(self, logprobs: Sequence[float], n_bytes: int) -> None:
        """Only the prompt counts."""

    def _weigh(self, parts: Segments) -> list[float]:
        raise NotImplementedError


class PromptBits(_FromPrompt):
    """Weights ``softmax(-nats per byte / tau)`` over the bytes of the prompt that all can score.

    PackLLM-sim (arXiv 2404.11531) with likelihood per byte instead of per token, so that a member
    is not punished for long tokens.

    Parameters
    ----------
    members : int
    tau : float
        Nats per byte, above 0.  PackLLM's 1 nat per token is 0.25 at 4 bytes per token.

    Raises
    ------
    FusionError
    """

    def __init__(self, members: int, tau: float = 0.25) -> None:
        super().__init__(members)
        if not (tau > 0 and math.isfinite(tau)):
            raise FusionError(f"tau must be a finite number above 0, not {tau}")
        self._tau = tau

    def _weigh(self, parts: Segments) -> list[float]:
        scores = -parts.bits_per_byte() * math.log(2) / self._tau
        return Given(np.exp(scores - scores.max()).tolist()).current()


class PromptGreedy(_FromPrompt):
    """Members are mixed in one by one, the best first, each with what lowers the prompt's loss.

    PackLLM-opt (arXiv 2404.11531): the shares tried are 0, 0.05, ..., 1.  It averages the logits of
    every token, which needs one vocabulary; here the linear pool of whole segments between common
    boundaries is compared, which needs none.

    Parameters
    ----------
    members : int
    """

    def _weigh(self, parts: Segments) -> list[float]:
        order = np.argsort(parts.bits_per_byte(), kind="stable")
        weights = np.zeros(self._members)
        weights[order[0]] = 1.0
        pooled = parts.logprobs[:, order[0]]
        grid = np.linspace(1.0, 0.0, 21)  # the present mixture wins ties
        with np.errstate(divide="ignore"):  # a share of 0
            kept, added = np.log(grid)[:, None], np.log1p(-grid)[:, None]
        for member in order[1:]:
            mixed = np.logaddexp(kept + pooled, added + parts.logprobs[:, member])
            best = int(np.argmax(mixed.sum(axis=1)))
            weights *= grid[best]
            weights[member] = 1.0 - grid[best]
            pooled = mixed[best]
        return Given(weights.tolist()).current()


class Online:
    """Hedge with fixed share: weights follow who predicted the reply so far.

    After a unit ``w_i <- w_i p_i(unit)^rate``, normalised; then, per byte, a share of all weight
    goes back to the prior.  A member that did not vote keeps its relative weight.

    Parameters
    ----------
    prior : sequence of float
        Weights at the beginning; a weight of 0 stays 0.
    rate : float
        0: nothing is learned; 1 with share 0: the Bayesian mixture.
    share : float
        Per byte, 0..1.
    warm_up : bool
        Learn from the prompt first.

    Raises
    ------
    FusionError

    Notes
    -----
    Freund & Schapire, JCSS 55 (1997); fixed share: Herbster & Warmuth, Machine Learning 32 (1998);
    sleeping members: Freund et al., STOC (1997).
    """

    def __init__(
        self,
        prior: Sequence[float],
        *,
        rate: float = 0.1,
        share: float = 0.002,
        warm_up: bool = False,
    ) -> None:
        self.reads_prompt = warm_up
        self._members = len(prior)
        self._core = _core.OnlineWeights([float(w) for w in prior], rate, share)

    def begin(self, evidence: Sequence[PromptEvidence]) -> None:
        """Start from the prior, or from what the prompt says."""
        self._core.reset()
        if self.reads_prompt:
            parts = segments(_one_each(evidence, self._members))
            for logprobs, n_bytes in zip(parts.logprobs, parts.n_bytes, strict=True):
                self._core.observe(logprobs.tolist(), int(n_bytes))

    def current(self) -> list[float]:
        """The weights of the next unit."""
        return self._core.weights

    def observe(self, logprobs: Sequence[float], n_bytes: int) -> None:
        """Learn from the unit just emitted."""
        self._core.observe([float(value) for value in logprobs], n_bytes)


def online_mixture(
    observed: ArrayLike,
    *,
    rate: float = 0.1,
    share: float = 0.002,
    prior: Sequence[float] | None = None,
) -> tuple[Floats, list[float]]:
    """`Online` over a whole scored text.

    Parameters
    ----------
    observed : float array, shape ``[n_bytes, members]``
        Log-probability of each byte that came, nats; NaN: did not vote.
    rate, share, prior
        As for `Online`; equal weights at first by default.

    Returns
    -------
    mixture : float64 array, shape ``[n_bytes]``
        Log-probability of each byte under the weights learned before it.
    weights : list of float
        Those after the last byte.

    Raises
    ------
    FusionError
    """
    table = np.ascontiguousarray(observed, np.float64)
    if prior is None:
        prior = [1.0] * (table.shape[1] if table.ndim == 2 else 0)
    return _core.online_mixture(table, [float(w) for w in prior], rate, share)


def _one_each(evidence: Sequence[PromptEvidence], members: int) -> Sequence[PromptEvidence]:
    if evidence and len(evidence) != members:
        raise FusionError(f"expected prompt evidence of {members} members, got {len(evidence)}")
    nothing = PromptEvidence(np.empty(0, np.int64), np.empty(0))
    return evidence or [nothing] * members

"""Byte matrices without models: random members that know more or less of a text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scored:
    """What scoring a text gives: see `logitfuse.fitting.Scores`."""

    text: bytes
    logprobs: NDArray[np.float32]


def scored(text: bytes, logits: NDArray[np.float64]) -> Scored:
    """Logits ``[n_bytes, 257]`` as log-probabilities."""
    peak = logits.max(axis=1, keepdims=True)
    log_z = peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
    return Scored(text, (logits - log_z).astype(np.float32))


def members_of(
    n: int, hints: list[tuple[float, float]], *, seed: int = 0
) -> tuple[bytes, list[Scored]]:
    """A random text, and members that each give it a hint of so many nats at so many places.

    Where a member has no hint it is led astray as far.
    """
    random = np.random.default_rng(seed)
    text = random.integers(97, 107, n).astype(np.uint8)
    members = []
    for strength, share in hints:
        logits = random.normal(0.0, 1.0, (n, 257))
        logits[:, 97:107] += 4.0
        knows = random.random(n) < share
        at = np.where(knows, text, 97 + (text - 96) % 10)
        logits[np.arange(n), at] += strength
        members.append(scored(text.tobytes(), logits))
    return text.tobytes(), members

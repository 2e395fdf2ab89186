"""How much a request may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes
    ----------
    tokens : int or None
        Most symbols of an answer; more are not refused but not given.
    seconds : float or None
        For an answer, its prompt included; then it ends.
    prompt : int
        Longest prompt, in characters or symbols; a message of a chat counts 16 besides.
    """

    tokens: int | None = None
    seconds: float | None = None
    prompt: int = 200_000

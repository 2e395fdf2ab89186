"""What the server has done, for Prometheus."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from logitfuse.batching import Batcher, Event
from logitfuse.strategies.base import Chunk

if TYPE_CHECKING:
    from logitfuse.api.exchange import Exchange

MEDIA_TYPE = CONTENT_TYPE_LATEST
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "logitfuse_requests",
            "Requests answered",
            ["endpoint", "status", "model"],
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "logitfuse_prompt_tokens", "Tokens of prompts", ["model"], registry=registry
        )
        self.generated_tokens = Counter(
            "logitfuse_generated_tokens", "Tokens of answers", ["model"], registry=registry
        )
        self.steps = Counter(
            "logitfuse_steps",
            "Steps, by how they were decided",
            ["model", "decision"],
            registry=registry,
        )
        self.first_token = Histogram(
            "logitfuse_time_to_first_token_seconds",
            "From a request to its first token",
            ["model"],
            buckets=_FIRST,
            registry=registry,
        )
        self.next_token = Histogram(
            "logitfuse_time_per_token_seconds",
            "From one token of an answer to the next",
            ["model"],
            buckets=_BETWEEN,
            registry=registry,
        )

    def watch(self, batcher: Batcher) -> None:
        """Show what a batcher is doing."""
        for name, what, read in (
            ("active", "Requests that are being answered", lambda: batcher.active),
            ("waiting", "Requests that wait", lambda: batcher.waiting),
            ("slots", "Requests that can be answered at once", lambda: batcher.slots),
        ):
            Gauge(f"logitfuse_{name}", what, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)


class Meter:
    """Measures one exchange.

    Parameters
    ----------
    metrics : Metrics
    exchange : Exchange
    """

    def __init__(self, metrics: Metrics, exchange: Exchange) -> None:
        self._metrics = metrics
        self._exchange = exchange
        self._started = time.perf_counter()
        self._last: dict[int, float] = {}

    def hear(self, i: int, event: Event) -> None:
        """Note when a token of the i-th answer came."""
        if not isinstance(event, Chunk):
            return
        now, model = time.perf_counter(), self._exchange.model
        if i in self._last:
            self._metrics.next_token.labels(model).observe(now - self._last[i])
        else:
            self._metrics.first_token.labels(model).observe(now - self._started)
        self._last[i] = now

    def end(self) -> None:
        """Count what was read and written."""
        exchange = self._exchange
        self._metrics.prompt_tokens.labels(exchange.model).inc(exchange.prompt_tokens)
        self._metrics.generated_tokens.labels(exchange.model).inc(exchange.completion_tokens)
        for decision, n in exchange.decisions.items():
            self._metrics.steps.labels(exchange.model, decision).inc(n)

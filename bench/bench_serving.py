"""Many streams, and the server over many requests, once each: the scripts that measure them run."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import endurance
import models
import pytest
import serving
from logitfuse.batching import Batcher
from logitfuse.batching.slots import load, unload


def test_streams() -> None:
    config = serving.config_of("fuse")
    batcher = Batcher([config], slots=2)
    streams = serving.Streams()
    serving.run_streams(batcher, 2, 6, 0, streams)
    batcher.close()
    assert len(streams.first_s) == 2
    assert 0 < min(streams.first_s) < max(streams.first_s) < 60
    assert streams.tokens_per_s[0] > 0


def test_rounds() -> None:
    shared = load([serving.config_of("fuse")], 3, 1)
    assert [model.name for model in shared] == [
        models.smollm2().stem,
        models.gemma3().stem,
    ]
    assert serving.round_seconds(shared, 3, 2) > 0
    unload(shared)


def test_percentiles() -> None:
    values = [float(k) for k in range(100, 0, -1)]
    assert serving.percentile(values, 0.95) == 96
    assert serving.percentile([3.0], 0.95) == 3


def test_endurance() -> None:
    process, address = endurance.start_server([models.smollm2()], 2, "-c", "512", "-t", "1")
    try:
        with ThreadPoolExecutor(1) as thread:  # this one may have a loop of its own, of a browser
            work = endurance.endure(address, process.pid, 12, 2, 4)
            memory, ends, _ = thread.submit(asyncio.run, work).result()
    finally:
        process.terminate()
        code = process.wait(60)
    assert code == 0
    assert sum(ends.values()) == 12
    assert ends.keys() <= {"200", "dropped"}
    assert [n for n, _ in memory] == [4, 8, 12]
    assert memory[-1][1] == pytest.approx(memory[0][1], rel=0.5)

"""Whether the server's memory stays flat: ``python bench/endurance.py [-n REQUESTS]``.

A server process of the demo models answers requests, so many at a time: chats and texts, streamed
and whole, of different lengths, some of which are dropped in the middle.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import httpx
import models

_TEXT = """the old harbour was quiet in the morning and nobody had yet gone out to sea in any of
the twelve boats that lay in two rows along the quay"""


def start_server(paths: Sequence[Path], parallel: int, *options: str) -> tuple[Any, str]:
    """A server process, and its address once it answers."""
    command = [sys.executable, "-m", "logitfuse", "serve", "--port", "0", "-np", str(parallel)]
    for path in paths:
        command += ["-m", str(path)]
    # A file, not a pipe, which would be full of log lines at last, and stop the server.
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as file:
            process = subprocess.Popen([*command, *options], stderr=file)
        while process.poll() is None:
            if found := re.search(r"http://\S+", log.read_text()):
                return process, found[0].rstrip("/")
            time.sleep(0.1)
        raise RuntimeError(f"the server has ended before it was ready: {log.read_text()}")


def resident(pid: int) -> float:
    """Memory of a process, MiB: without files that are mapped, which come and go."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


async def ask(client: httpx.AsyncClient, rng: random.Random) -> str:
    """One request of any kind; tells how it ended."""
    text = " ".join(rng.choices(_TEXT.split(), k=rng.randint(3, 30)))
    body: dict[str, Any] = {"max_tokens": rng.randint(1, 6), "seed": rng.randrange(2**31)}
    stream, chat = rng.random() < 0.7, rng.random() < 0.5
    body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    if not stream:
        answer = await client.post(path, json=body)
        return str(answer.status_code)
    leaves = rng.random() < 0.1
    async with client.stream("POST", path, json=body | {"stream": True}) as answer:
        async for line in answer.aiter_lines():
            if leaves and line:
                return "dropped"
    return str(answer.status_code)


async def endure(
    address: str, pid: int, n: int, parallel: int, every: int
) -> tuple[list[tuple[int, float]], dict[str, int], float]:
    """Ask n times; gives the memory along the way, how requests ended, and the seconds."""
    rng, asked, done = random.Random(1), iter(range(n)), 0
    ends: dict[str, int] = {}
    memory: list[tuple[int, float]] = []
    started = time.perf_counter()
    async with httpx.AsyncClient(base_url=address, timeout=300) as client:

        async def worker() -> None:
            nonlocal done
            for _ in asked:
                end = await ask(client, rng)
                ends[end] = ends.get(end, 0) + 1
                done += 1
                if done % every == 0:
                    memory.append((done, resident(pid)))

        await asyncio.gather(*(worker() for _ in range(parallel)))
    return memory, ends, time.perf_counter() - started


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=2000, help="requests")
    parser.add_argument("-np", type=int, default=8, help="at a time")
    parser.add_argument("--every", type=int, default=250, help="requests between two readings")
    options = parser.parse_args()
    process, address = start_server([models.smollm2(), models.gemma3()], options.np, "-c", "512")
    try:
        memory, ends, seconds = asyncio.run(
            endure(address, process.pid, options.n, options.np, options.every)
        )
    finally:
        process.terminate()
    print(f"{options.n} requests in {seconds:.0f} s, {options.np} at a time: {ends}")
    print("\n| requests | memory, MiB |\n|--:|--:|")
    for n, mib in memory:
        print(f"| {n} | {mib:.0f} |")
    code = process.wait(60)
    print(f"\nAfter SIGTERM the server ended with {os.strerror(code) if code else 0}.")


if __name__ == "__main__":
    main()

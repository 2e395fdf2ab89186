"""What streams hold back and are held to, and who is not held up by whom."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from logitfuse import grammar
from logitfuse.batching import Batcher
from logitfuse.grammar import TRIALS
from servers import (
    CHAT,
    HELLO,
    PROMPT,
    TEXT,
    WAIT,
    Served,
    ensembles,
    error_of,
    events,
    raw,
    serving,
    until,
)

LONG: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 40, "ignore_eos": True, "temperature": 0}
MODELS = ["pair", "exact", "one"]
SLOTS, QUEUE = 2, 4
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served(tiny_models: Mapping[str, Path]) -> Iterator[Served]:
    configs = ensembles(tiny_models)
    with serving(lambda: Batcher(configs, slots=SLOTS, queue=QUEUE)) as started:
        yield started


def stream(served: Served, path: str = TEXT, **body: Any) -> list[dict[str, Any]]:
    """The choices of a stream, in the order in which they came."""
    response = served.http.post(path, json=body | {"stream": True})
    *told, end = events(response.text.splitlines())
    assert end == "[DONE]"
    return [json.loads(line)["choices"][0] for line in told]


def joined(pieces: list[dict[str, Any]]) -> str:
    return "".join(piece["text"] for piece in pieces)


@pytest.mark.parametrize("model", MODELS)
def test_stop_strings_over_several_pieces(served: Served, model: str) -> None:
    pieces = [piece["text"] for piece in stream(served, **LONG, model=model) if piece["text"]]
    text, stops = "".join(pieces), 0
    for i in range(len(pieces) - 3):
        stop = pieces[i][-1] + pieces[i + 1] + pieces[i + 2][0]
        found = stream(served, **LONG, model=model, stop=["nothing of the kind", stop])
        assert joined(found) == text[: text.index(stop)]
        assert found[-1]["finish_reason"] == "stop"
        stops += 1
    assert stops > 10


@pytest.mark.parametrize("model", MODELS)
def test_characters_over_several_pieces(served: Served, model: str) -> None:
    wanted = "naïve 🤖, же 漢"
    found = stream(
        served,
        **LONG,
        model=model,
        grammar=f'root ::= "{wanted}"',
        logitfuse={"trace": True},
    )
    units = [bytes(step["bytes"]) for piece in found for step in piece["logitfuse"]["steps"]]
    assert joined(found) == b"".join(units).decode() == wanted
    if model != "exact":  # whose units may be as long as the grammar lets them be
        assert any("�" in unit.decode(errors="replace") for unit in units)
    assert not any("�" in piece["text"] for piece in found)


@pytest.mark.parametrize("model", MODELS)
def test_schemas(served: Served, model: str) -> None:
    asked: dict[str, Any] = {"messages": HELLO, "temperature": 0, "json_schema": SCHEMA}
    pieces = stream(served, CHAT, **asked, model=model)
    text = "".join(piece["delta"].get("content") or "" for piece in pieces)
    assert json.loads(text)["answer"] in ("yes", "no")
    assert pieces[-1]["finish_reason"] == "stop"
    assert sum(bool(piece["delta"].get("content")) for piece in pieces) > 3


def hostile(i: int) -> dict[str, Any]:
    """A body whose constraint takes seconds to be found too complex; each is another one."""
    patterns = [{"pattern": f"^(a|b)*a(a|b){{{n}}}$"} for n in range(10 + i, 40 + i)]
    return LONG | {"json_schema": {"type": "string", "allOf": patterns}}


class TestTrials:
    def test_nobody_waits_for_those_of_others(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """More than there are worker threads for everything else."""
        done, tried = threading.Event(), grammar._tried
        monkeypatch.setattr(grammar, "_tried", lambda text: done.wait(WAIT) and tried(text))
        clients = [served.connect() for _ in range(48)]
        for i, client in enumerate(clients):
            client.sendall(raw(hostile(i)))
        until(lambda: served.state.trials == TRIALS + SLOTS + QUEUE)
        response = served.http.post(TEXT, json=hostile(99))
        assert error_of(response, 429)["code"] == "queue_full"
        assert int(response.headers["retry-after"]) > 0
        found = stream(served, **LONG, logitfuse={"trace": True})
        assert sum(len(piece["logitfuse"]["steps"]) for piece in found) == 40
        assert served.ask("/tokenize", content=PROMPT)["tokens"]
        assert served.state.trials == TRIALS + SLOTS + QUEUE
        for client in clients:
            client.close()
        until(lambda: served.state.trials == TRIALS)  # nothing can stop those
        done.set()
        until(lambda: served.state.trials == 0)

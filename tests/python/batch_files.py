"""What the tests of ``logitfuse batch`` share: files of requests and of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from servers import PROMPT, TEXT

Run = Callable[..., tuple[int, str, str]]
Row = dict[str, Any]
GREEDY: Row = {"temperature": 0, "max_tokens": 8}
SHORT: Row = {"prompt": PROMPT, **GREEDY}


def asking(custom_id: str, url: str = TEXT, **body: Any) -> Row:
    """A line of a batch file."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body or SHORT}


def write(*lines: Row | str) -> None:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    Path("in.jsonl").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def rows(text: str | None = None) -> list[Row]:
    """The results, all in OpenAI's shape."""
    text = Path("out.jsonl").read_text(encoding="utf-8") if text is None else text
    found = []
    for line in text.splitlines():
        row = json.loads(line)
        assert row.keys() == {"id", "custom_id", "response", "error"}
        assert row["error"] is None
        assert row["id"].startswith("batch_req_")
        assert row["response"].keys() == {"status_code", "request_id", "body"}
        found.append(row)
    return found


def by_id(found: Sequence[Row]) -> dict[str, Row]:
    """Responses by what their requests are called: one each."""
    named = {row["custom_id"]: row["response"] for row in found}
    assert len(named) == len(found)
    return named


def texts(response: Row) -> list[str]:
    assert response["status_code"] == 200, response
    return [choice.get("text") for choice in response["body"]["choices"]]

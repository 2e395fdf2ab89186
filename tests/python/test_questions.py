"""Data sets: what is read, and what is said about every fault."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from logitfuse.errors import ConfigError
from logitfuse.evaluation.answers import KINDS, canonical
from logitfuse.evaluation.questions import (
    BadLine,
    Choice,
    Exact,
    as_jsonl,
    read_choices,
    read_exact,
)

GOOD = '{"question": "Which?", "options": ["Lyon", "Paris", "Nice"], "answer": 1}'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of a data set."""
    return tmp_path / "capitals.jsonl"


def choice(file: Path, **fields: Any) -> Choice:
    """The one question of a file."""
    line = {**json.loads(GOOD), **fields}
    file.write_text(json.dumps(line), encoding="utf-8")
    return read_choices(file).items[0]


def exact(file: Path, **fields: Any) -> Exact:
    """The one question of a file."""
    file.write_text(json.dumps({"question": "How many?", **fields}), encoding="utf-8")
    return read_exact(file).items[0]


class TestChoices:
    def test_a_file(self, file: Path) -> None:
        second = '{"id": 7, "group": "x", "question": " Who? ", "options": ["a", " b"], '
        text = f'\ufeff{GOOD}\r\n\n  \n{second}"answer": "b", "source": ["a book"]}}'
        file.write_text(text, encoding="utf-8")
        data = read_choices(file)
        assert data.items == (
            Choice("line 1", "all", "Which?", ("Lyon", "Paris", "Nice"), 1),
            Choice("7", "x", "Who?", ("a", "b"), 1),
        )
        assert data.name == "capitals"
        assert data.skipped == ()
        assert data.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()

    @pytest.mark.parametrize("answer", [1, "B", "Paris", " Paris "])
    def test_answers(self, file: Path, answer: int | str) -> None:
        assert choice(file, answer=answer).answer == 1

    @pytest.mark.parametrize(
        ("options", "answer", "right"),
        [
            (["3", "5"], "5", 1),
            (["1", "0"], "0", 1),
            (["A", "B"], "B", 1),  # letter and text agree
            (["x", "A"], "B", 1),
            (["0", "1"], 1, 1),
            (["b", "a"], "b", 0),  # a lower-case letter is a text
        ],
    )
    def test_what_seems_ambiguous(
        self, file: Path, options: list[str], answer: int | str, right: int
    ) -> None:
        assert choice(file, options=options, answer=answer).answer == right

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"options": ["a"]}, "'options': there must be at least two, and there are 1"),
            ({"options": []}, "at least two, and there are 0"),
            ({"options": ["a", "b", "a "]}, "'options': option 0 and 2 are both 'a'"),
            ({"options": ["a", " "]}, "option 1 is empty"),
            ({"options": "ab"}, "'options': Input should be a valid list, not 'ab'"),
            ({"options": ["a", 1]}, "'options.1': Input should be a valid string, not 1"),
            ({"answer": "Rome"}, "none of the options.*index from 0 to 2.*A to C.*, not 'Rome'"),
            ({"answer": "D"}, "none of the options.*, not 'D'"),
            ({"answer": 3}, "none of the options.*, not 3"),
            ({"answer": -1}, "none of the options.*, not -1"),
            ({"answer": True}, "must be an index.*, not True"),
            ({"answer": 1.0}, "must be an index.*, not 1.0"),
            ({"answer": None}, "must be an index.*, not None"),
            ({"answer": ["Paris"]}, "must be an index"),
            ({"options": ["B", "A"], "answer": "B"}, "may be the option 'B' or 'A'"),
            ({"options": ["1", "0"], "answer": 0}, "may be the option '1' or '0'"),
            ({"options": ["5", "7"], "answer": 7}, "no index; write it as the text '7'"),
            ({"question": " "}, "'question': is empty; write the question"),
            ({"question": 5}, "'question': .*string, not 5"),
            ({"id": ""}, "'id': is empty"),
            ({"id": 1.5}, "'id': must be a text or a whole number, not 1.5"),
            ({"group": True}, "'group': must be"),
        ],
    )
    def test_faults(self, file: Path, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            choice(file, **fields)
        assert str(caught.value).startswith(f"'{file}' line 1: ")
        assert caught.value.path == file

    @pytest.mark.parametrize("key", ["question", "options", "answer"])
    def test_missing(self, file: Path, key: str) -> None:
        line = json.loads(GOOD)
        del line[key]
        file.write_text(f"{GOOD}\n\n{json.dumps(line)}\n")
        with pytest.raises(
            ConfigError, match=rf"line 3: '{key}' is missing; a line needs"
        ) as caught:
            read_choices(file)
        assert caught.value.key == key


class TestLines:
    BAD = (
        (b'{"question": ', "is not JSON: Expecting value \\(column 14\\): '{\"question\":'"),
        (b"What?", "is not JSON"),
        (b"[1, 2]", "is not a JSON object, but '\\[1, 2\\]'"),
        (b'{"question": "\xff"}', "is not UTF-8: .*0xff.*save the file as UTF-8"),
        (b'{"question": "\\ud800", "options": ["a", "b"], "answer": 0}', "half a character"),
        (b'{"answer": NaN}', "NaN is no JSON number"),
        (b'{"answer": ' + b"9" * 5000 + b"}", "is not usable JSON"),
        (b"[" * 200_000, "is not usable JSON"),
    )

    @pytest.mark.parametrize(("line", "message"), BAD, ids=lambda part: repr(part)[:30])
    def test_faults(self, file: Path, line: bytes, message: str) -> None:
        file.write_bytes(GOOD.encode() + b"\n\n" + line)
        with pytest.raises(ConfigError, match=message) as caught:
            read_choices(file)
        assert str(caught.value).startswith(f"'{file}' line 3: ")
        assert str(caught.value).endswith("--skip-bad (skip_bad) leaves such lines out")

    def test_skip_bad(self, file: Path) -> None:
        lines = [line for line, _ in self.BAD]
        file.write_bytes(b"\n".join([*lines, GOOD.encode(), b"", b"{}"]))
        data = read_choices(file, skip_bad=True)
        assert [item.id for item in data.items] == [f"line {len(lines) + 1}"]
        assert [bad.line for bad in data.skipped] == [*range(1, len(lines) + 1), len(lines) + 3]
        for bad, (_, message) in zip(data.skipped, self.BAD, strict=False):
            assert re.search(message, bad.reason)
        assert data.skipped[-1] == BadLine(
            len(lines) + 3,
            "'question' is missing; a line needs question, options, answer and has nothing",
        )

    def test_same_id(self, file: Path) -> None:
        line = GOOD.replace("{", '{"id": "q", ')
        file.write_text(f"{line}\n{line}\n")
        with pytest.raises(ConfigError, match="line 2: the id 'q' was there before"):
            read_choices(file)
        data = read_choices(file, skip_bad=True)
        assert (len(data.items), [bad.line for bad in data.skipped]) == (1, [2])

    def test_an_id_like_a_line(self, file: Path) -> None:
        file.write_text(GOOD.replace("{", '{"id": "line 2", ') + "\n" + GOOD)
        with pytest.raises(ConfigError, match="line 2: the id 'line 2' was there before"):
            read_choices(file)

    @pytest.mark.parametrize("content", [b"", b"\n\n \n", b"\xef\xbb\xbf"])
    @pytest.mark.parametrize("skip_bad", [False, True])
    def test_empty(self, file: Path, content: bytes, skip_bad: bool) -> None:
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="has no question: the file is empty"):
            read_exact(file, skip_bad=skip_bad)

    def test_nothing_left(self, file: Path) -> None:
        file.write_text("x\ny\n")
        with pytest.raises(ConfigError, match="all its 2 lines are faulty; line 1: is not JSON"):
            read_exact(file, skip_bad=True)

    def test_no_file(self, file: Path) -> None:
        with pytest.raises(ConfigError, match=r"cannot read the data set .*No such file"):
            read_choices(file, skip_bad=True)
        with pytest.raises(ConfigError, match=r"cannot read the data set .*directory"):
            read_choices(file.parent)


class TestExact:
    @pytest.mark.parametrize(
        ("fields", "answer", "kind"),
        [
            ({"answer": 15}, "15", "number"),
            ({"answer": 0.5}, "0.5", "number"),
            ({"answer": "3/4"}, "3/4", "number"),
            ({"answer": True}, "true", "bool"),
            ({"answer": "No"}, "No", "bool"),
            ({"answer": "B"}, "B", "choice"),
            ({"answer": {"a": [1, "é"]}}, '{"a": [1, "é"]}', "json"),
            ({"answer": ["x"]}, '["x"]', "json"),
            ({"answer": "Paris"}, "Paris", "text"),
            ({"answer": 1984, "kind": "text"}, "1984", "text"),
            ({"answer": "5", "kind": "json"}, "5", "json"),
        ],
    )
    def test_kinds(self, file: Path, fields: dict[str, Any], answer: str, kind: str) -> None:
        item = exact(file, **fields)
        assert (item.answer, item.kind, item.labels) == (answer, kind, ())
        assert canonical(item.answer, item.kind) is not None

    def test_labels(self, file: Path) -> None:
        item = exact(file, answer="good", labels=["good", "bad"])
        assert (item.answer, item.kind, item.labels) == ("good", "label", ("good", "bad"))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({}, "'answer' is missing; a line needs question, answer and has question"),
            ({"answer": None}, "'answer': is empty"),
            ({"answer": " "}, "'answer': is empty"),
            ({"answer": "many", "kind": "number"}, "cannot be read as a number: 'many'"),
            ({"answer": "?!"}, "cannot be read as a text: '\\?!'"),
            ({"answer": "x", "kind": "json"}, "cannot be read as a json"),
            ({"answer": "x", "kind": "numbers"}, "'kind': .*'number'.*, not 'numbers'"),
            ({"answer": "x", "labels": ["y", "z"]}, "label of \\['y', 'z'\\]: 'x'"),
            ({"answer": "x", "kind": "label"}, "'labels' is missing"),
            ({"answer": "x", "labels": ["x", "X"]}, "'labels': 'x' and 'X' are the same"),
            ({"answer": "x", "labels": ["x", ""]}, "label 1 is empty"),
            ({"answer": "E", "kind": "choice", "labels": ["A", "B"]}, "cannot be read as a choice"),
        ],
    )
    def test_faults(self, file: Path, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            exact(file, **fields)


NAMES = st.text(min_size=1).map(str.strip).filter(bool)


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    """Any question with options."""
    words = NAMES.filter(lambda name: len(name) > 1)
    names = draw(st.sampled_from([words, st.sampled_from("AB"), st.sampled_from("012")]))
    options = draw(st.lists(names, min_size=2, max_size=3, unique=True))
    answer = draw(st.integers(0, len(options) - 1))
    return Choice(draw(NAMES), draw(NAMES), draw(NAMES), tuple(options), answer)


class TestWriting:
    @given(st.lists(choices(), min_size=1, max_size=4, unique_by=lambda one: one.id))
    def test_choices(self, tmp_path_factory: pytest.TempPathFactory, items: list[Choice]) -> None:
        path = tmp_path_factory.mktemp("data") / "x.jsonl"
        path.write_text(as_jsonl(items), encoding="utf-8", newline="")
        assert read_choices(path).items == tuple(items)

    @given(NAMES, NAMES, st.sampled_from(KINDS), NAMES)
    def test_exact(
        self, tmp_path_factory: pytest.TempPathFactory, id: str, question: str, kind: Any, text: str
    ) -> None:
        labels = (text, f"not {text}") if kind == "label" else ()
        assume(canonical(text, kind, labels) is not None)
        item = Exact(id, "all", question, text, kind, labels)
        path = tmp_path_factory.mktemp("data") / "x.jsonl"
        path.write_text(as_jsonl([item]), encoding="utf-8", newline="")
        assert read_exact(path).items == (item,)

    def test_what_cannot_be_read_back(self) -> None:
        with pytest.raises(ConfigError, match="'q' cannot be written: white space"):
            as_jsonl([Choice("q", "g", "Which? ", ("a", "b"), 0)])
        with pytest.raises(ConfigError, match="'q' cannot be written: 'answer': may be"):
            as_jsonl([Choice("q", "g", "Which?", ("B", "A", "1", "0"), 0)])
        with pytest.raises(ConfigError, match="'q' cannot be written: 'answer' cannot be read"):
            as_jsonl([Exact("q", "g", "How many?", "many", "number")])

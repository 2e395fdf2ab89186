"""The outcome table: nothing that was acknowledged is lost, whatever happens to the run."""

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logitfuse.errors import ConfigError
from logitfuse.evaluation.table import Outcome, OutcomeTable, outcome_key


def outcome(n: int = 0, **changes: Any) -> Outcome:
    """A row that is told from others by its number."""
    row = Outcome(
        key=outcome_key(n=n),
        task="exact",
        item=f"question {n}",
        group="sums",
        contender="ensemble",
        scores={"accuracy": 1.0},
        data={"text": "41\n", "parsed": None},
        seconds=0.25,
        tokens={"a": 7, "b": 9},
    )
    return replace(row, **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outcomes.jsonl"


@pytest.fixture
def written(path: Path) -> bytes:
    """A table of three rows."""
    with OutcomeTable(path) as table:
        for n in range(3):
            table.append(outcome(n))
    return path.read_bytes()


def run_child(program: str, *arguments: object) -> str:
    """Output of a program in a process of its own."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def reopened(path: Path) -> tuple[Outcome, ...]:
    with OutcomeTable(path) as table:
        return table.rows


class TestRows:
    def test_come_back(self, path: Path) -> None:
        rows = [outcome(0), outcome(1, scores={}, error="DecodeError: no"), outcome(2)]
        with OutcomeTable(path) as table:
            assert [table.append(row) for row in rows] == rows
            assert rows[0].key in table
            assert outcome_key(n=9) not in table
            assert table.get(rows[1].key) == rows[1]
            assert table.get("nobody") is None
            assert len(table) == 3
            assert table.rows == tuple(rows)
        assert reopened(path) == tuple(rows)

    def test_are_lines_of_strict_json(self, written: bytes) -> None:
        lines = written.decode().split("\n")
        assert lines.pop() == ""
        for n, line in enumerate(lines):
            entry = json.loads(line)
            assert entry.pop("version") == 1
            assert Outcome(**entry) == outcome(n)

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )

    @given(st.dictionaries(st.text(), json_values), st.text(), st.floats(0, 1e9))
    def test_whatever_a_model_says(
        self, tmp_path_factory: pytest.TempPathFactory, data: Any, text: str, seconds: float
    ) -> None:
        path = tmp_path_factory.mktemp("table") / "outcomes.jsonl"
        with OutcomeTable(path) as table:
            row = table.append(outcome(data=data, item=text, error=text, seconds=seconds))
        assert reopened(path) == (row,)
        assert row.seconds == seconds
        assert row.item == text.encode("utf-8", "replace").decode()
        assert path.read_bytes().count(b"\n") == 1
        json.loads(path.read_bytes().decode("utf-8"), parse_constant=pytest.fail)

    def test_what_is_no_number_is_missing(self, path: Path) -> None:
        scores = {"letter": -math.inf, "plain": math.nan, "accuracy": 0.0}
        data = {"logprobs": [-math.inf, -2.5], "half": "\ud83d", "pair": (1, 2)}
        with OutcomeTable(path) as table:
            row = table.append(outcome(scores=scores, data=data))
        assert row.scores == {"accuracy": 0.0}
        assert row.data == {"logprobs": [None, -2.5], "half": "?", "pair": [1, 2]}
        entry = json.loads(path.read_text(encoding="utf-8"))
        assert entry["scores"] == {"letter": None, "plain": None, "accuracy": 0.0}

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"seconds": math.nan}, ValueError),
            ({"tokens": {"a": 1.5}}, ValueError),
            ({"data": {"x": object()}}, TypeError),
        ],
    )
    def test_what_cannot_be_kept(
        self, path: Path, written: bytes, changes: Any, error: type[Exception]
    ) -> None:
        with OutcomeTable(path) as table, pytest.raises(error):
            table.append(outcome(5, **changes))
        assert path.read_bytes() == written

    def test_only_failed_rows_are_tried_again(self, path: Path) -> None:
        failed, retried = outcome(0, scores={}, error="out of memory"), outcome(0)
        with OutcomeTable(path) as table:
            table.append(failed)
            table.append(outcome(1))
            table.append(retried)
            with pytest.raises(ValueError, match="has the row"):
                table.append(retried)
            assert table.rows == (retried, outcome(1))
        assert reopened(path) == (retried, outcome(1))
        assert path.read_bytes().count(b"\n") == 3

    def test_closed(self, path: Path) -> None:
        table = OutcomeTable(path)
        table.close()
        table.close()
        with pytest.raises(ValueError, match="is closed"):
            table.append(outcome())

    def test_key(self) -> None:
        key = outcome_key(models=["ab", "cd"], prompt="Ґ", temperature=0.7)
        assert key == outcome_key(temperature=0.7, prompt="Ґ", models=["ab", "cd"])
        assert len(key) == 64
        changed = [{"prompt": "G"}, {"models": ["cd", "ab"]}, {"temperature": None}]
        parts = {"models": ["ab", "cd"], "prompt": "Ґ", "temperature": 0.7}
        assert len({key, *(outcome_key(**(parts | change)) for change in changed)}) == 4
        with pytest.raises(ValueError, match="JSON"):
            outcome_key(temperature=math.nan)


class TestDamage:
    def test_a_line_cut_anywhere_is_dropped(self, path: Path, written: bytes) -> None:
        ends = [i + 1 for i, byte in enumerate(written) if byte == 10]
        for size in range(len(written) + 1):
            path.write_bytes(written[:size])
            whole = [end for end in ends if end <= size]
            with OutcomeTable(path) as table:
                assert table.rows == tuple(outcome(n) for n in range(len(whole)))
                assert path.stat().st_size == max(whole, default=0)
            if size % 50 == 0:
                with OutcomeTable(path) as table:
                    for n in range(len(whole), 3):
                        table.append(outcome(n))
                assert path.read_bytes() == written

    def test_zeros_of_a_power_cut(self, path: Path, written: bytes) -> None:
        path.write_bytes(written + b"\0" * 100)
        assert len(reopened(path)) == 3
        assert path.read_bytes() == written

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"{\n", "line 2 of .*: Expecting"),
            (b"\n", "line 2 of .*: Expecting value"),
            (b"\xff\n", "line 2 of .*utf-8"),
            (b"[]\n", "line 2 of .*: Input should be"),
            (b'{"version":1}\n', "line 2 of .*: key: Field required"),
            (b'{"version":2,"key":"x"}\n', "line 2 of .*another version .*format 2"),
            (b'{"seconds":NaN}\n', "line 2 of .*NaN is no number"),
            (b"notes without an end", "line 2 of .*: not a line that was written here"),
        ],
    )
    def test_anything_else_is_refused(
        self, path: Path, written: bytes, line: bytes, reason: str
    ) -> None:
        first = written[: written.index(b"\n") + 1]
        damaged = first + line + (written[len(first) :] if line.endswith(b"\n") else b"")
        path.write_bytes(damaged)
        for _ in range(2):  # the lock is given back
            with pytest.raises(ConfigError, match=reason) as caught:
                OutcomeTable(path)
            assert caught.value.path == path
            assert "or delete the line" in str(caught.value)
        assert path.read_bytes() == damaged

    def test_values_of_a_wrong_type(self, path: Path, written: bytes) -> None:
        entry = json.loads(written.split(b"\n")[0])
        for change, where in (
            ({"seconds": "1"}, "seconds"),
            ({"scores": {"accuracy": "good"}}, "scores.accuracy"),
            ({"seconds": 10**400}, "seconds"),
            ({"extra": 1}, "extra"),
        ):
            path.write_text(json.dumps(entry | change) + "\n", encoding="utf-8")
            with pytest.raises(ConfigError, match=f"line 1 of .*: {where}: "):
                OutcomeTable(path)

    def test_nowhere_to_write(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "no" / "folder"):
            with pytest.raises(ConfigError, match="cannot add to"):
                OutcomeTable(path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs the signals and locks of POSIX")
class TestRuns:
    def test_two_runs_do_not_share_a_table(self, path: Path, written: bytes) -> None:
        program = (
            "import sys\nfrom logitfuse.errors import ConfigError\n"
            "from logitfuse.evaluation.table import OutcomeTable\n"
            "try: print(len(OutcomeTable(sys.argv[1])))\n"
            "except ConfigError as error: print(error)"
        )
        with OutcomeTable(path):
            assert f"another run is writing '{path}'" in run_child(program, path)
            with pytest.raises(ConfigError, match="another run"):
                OutcomeTable(path)
        assert run_child(program, path) == "3\n"
        assert path.read_bytes() == written

    def test_a_full_disk(self, path: Path, written: bytes) -> None:
        out = run_child(FULL_DISK, path)
        assert out.split() == [errno.errorcode[errno.EFBIG]] * 3 + ["4"]
        assert path.read_bytes()[: len(written)] == written
        assert reopened(path) == tuple(outcome(n) for n in range(4))

    def test_killed_at_any_moment(self, path: Path) -> None:
        acknowledged = int(run_child(KILLS, path))
        assert acknowledged >= 30  # else this has tested little


COMMON = """
import errno, os, random, resource, select, signal, sys, time
from dataclasses import replace
from logitfuse.evaluation.table import Outcome, OutcomeTable, outcome_key
path = sys.argv[1]
def outcome(n, text="41\\n"):
    return Outcome(outcome_key(n=n), "exact", f"question {n}", "sums", "ensemble",
        {"accuracy": 1.0}, {"text": text, "parsed": None}, 0.25, {"a": 7, "b": 9})
"""

FULL_DISK = (
    COMMON
    + """
with OutcomeTable(path) as table:
    size = os.path.getsize(path)
    for room in (0, 1, 100):  # a write that fails, and two that are short
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
        try:
            table.append(outcome(3))
        except OSError as error:
            print(errno.errorcode[error.errno])
        assert os.path.getsize(path) == size and outcome(3).key not in table
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    table.append(outcome(3))
    print(len(table))
"""
)

KILLS = (
    COMMON
    + """
def child(pipe):
    with OutcomeTable(path) as table:
        while True:
            n = len(table)
            table.append(outcome(n, "x" * (2_000_000 if n % 3 == 0 else 10)))
            os.write(pipe, b"%d\\n" % n)

rng, total, known = random.Random(0), 0, set()
for kill in range(60):
    if kill % 12 == 0:
        with OutcomeTable(path) as table:
            os.truncate(path, 0)
        known = set()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        child(writer)
    os.close(writer)
    if kill % 3 == 0:  # in the middle of a line
        size = os.path.getsize(path)
        while os.path.getsize(path) < size + 100_000:
            pass
    elif kill % 6:  # else it may not even have opened the table
        select.select([reader], [], [], 20)
        time.sleep(rng.uniform(0.0, 0.01))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as pipe:
        acknowledged = set(map(int, pipe.read().split()))
    known, total = known | acknowledged, total + len(acknowledged)
    with OutcomeTable(path) as table:
        keys = [row.key for row in table.rows]
        assert keys == [outcome_key(n=n) for n in range(len(keys))]
        assert known <= set(range(len(keys)))
    with open(path, "rb") as lines:
        assert sum(1 for _ in lines) == len(keys)
print(total)
"""
)

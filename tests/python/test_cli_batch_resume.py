"""``logitfuse batch``: what was answered stays, and the same command goes on."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from batch_files import SHORT, Run, asking, by_id, rows, texts, write
from command_line import ENVIRONMENT, changed, interrupted, kill_again_and_again, logitfuse, refusal
from logitfuse.api.batch import Results
from logitfuse.batching import Batcher, Job, Listener, Ticket

pytest_plugins = ["batch_fixtures"]


class TestGoingOn:
    def test_nothing_is_asked_twice(self, run: Run) -> None:
        write(asking("a"), asking("b"))
        assert run()[0] == 0
        first = Path("out.jsonl").read_bytes()
        code, _, err = run(models=["-m", "nowhere.gguf"])  # nothing is loaded
        assert code == 0
        note, summary = err.splitlines()
        assert note.startswith("2 results from before came from another ensemble (system_fing")
        assert summary.startswith("2 requests: 0 new results, 2 known from before; 0 tokens read")
        changed = asking("b", **SHORT | {"max_tokens": 3})
        write(asking("c"), asking("a"), changed)
        code, out, _ = run("--json")
        assert code == 0
        assert json.loads(out)["known"] == 1
        assert Path("out.jsonl").read_bytes().startswith(first)
        found = rows()[2:]
        assert {row["custom_id"] for row in found} == {"b", "c"}
        assert by_id(found)["b"]["body"]["usage"]["completion_tokens"] == 3

    def test_results_of_another_ensemble(self, run: Run, file: Path) -> None:
        changed = asking("c", **SHORT, logitfuse={"pool": "log-linear"})
        write(asking("a"), asking("b", **SHORT, model="one"), changed, asking("d", **SHORT, n=0))
        assert run()[0] == 1
        other = file.with_name("other.toml")
        other.write_text(file.read_text().replace('"fuse"', '"fuse"\npool = "log-linear"'))
        for source, note in (
            (file, "4 requests: "),
            (other, "1 result from before came from another ensemble (system_fingerprint); "),
            (f"{other}:one", "1 result"),
        ):
            assert run(models=["-e", str(source)])[2].startswith(note)

    def test_failures_are_asked_again_only_if_wanted(
        self, run: Run, tiny_models: Mapping[str, Path]
    ) -> None:
        write(asking("a"), asking("b", **SHORT, model="other"))
        assert run()[0] == 1
        code, out, err = run("--json")
        assert (code, json.loads(out)["failed"], json.loads(out)["known"]) == (1, 1, 2)
        assert "1 of 2 failed, the first: b: there is no model 'other'" in err
        models = ["-m", str(tiny_models["smol"]), "-t", "1", "-a", "other"]
        assert run("--retry", models=models)[0] == 0
        assert [row["custom_id"] for row in rows()] == ["b", "a", "b"]
        assert run()[0] == 0

    def test_a_line_cut_anywhere(self, run: Run) -> None:
        write(*(asking(name) for name in "abc"))
        assert run("-np", "1")[0] == 0
        written = Path("out.jsonl").read_bytes()
        lasting = [row["response"]["body"]["choices"] for row in rows()]
        for size in (1, 20, written.index(b"\n"), written.index(b"\n") + 2, len(written) - 1):
            Path("out.jsonl").write_bytes(written[:size])
            code, out, _ = run("-np", "1", "--json")
            assert (code, json.loads(out)["known"]) == (0, written[:size].count(b"\n"))
            assert [row["response"]["body"]["choices"] for row in rows()] == lasting

    def test_one_run_per_file(self, run: Run) -> None:
        write(asking("a"))
        with Results("out.jsonl"):
            code, _, err = run()
        assert code == 2
        assert "another run is writing 'out.jsonl'" in err

    def test_files_in_the_wrong_order(self, run: Run) -> None:
        write(asking("a"))
        Path("in.jsonl").rename("out.jsonl")
        Path("in.jsonl").write_bytes(before := Path("out.jsonl").read_bytes())
        code, _, err = run()
        assert code == 2
        assert err.startswith("logitfuse: line 1 of 'out.jsonl': 'id': Field required; give")
        assert Path("out.jsonl").read_bytes() == before


class TestDisturbed:
    @pytest.fixture
    def options(self, folder: Path, file: Path) -> list[str]:
        """A run of many requests."""
        del folder
        write(*(asking(f"number {i}") for i in range(30)))
        return ["batch", "in.jsonl", "out.jsonl", "-e", str(file), "-np", "3"]

    @staticmethod
    def assert_complete(run: Run, known: int | None = None) -> None:
        """The same command goes on; then every request has one result."""
        code, out, err = run("-np", "3", "--json")
        assert code == 0, err
        if known is not None:
            assert json.loads(out)["known"] == known
        found = by_id(rows())
        assert found.keys() == {f"number {i}" for i in range(30)}
        assert all(len(texts(response)) == 1 for response in found.values())

    def test_ctrl_c(self, run: Run, options: list[str]) -> None:
        done = subprocess.run(
            changed(interrupted("LlamaDecoder"), *options),
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (130, "")
        assert "Traceback" not in done.stderr
        kept = len(rows())
        assert 0 < kept < 30
        assert f"{kept} new results kept in 'out.jsonl'; the same command goes on" in done.stderr
        self.assert_complete(run, kept)

    def test_a_batcher_that_fails(
        self, run: Run, options: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing of that is the result of a request."""
        del options
        submit, calls = Batcher.submit, iter(range(10**6))

        def fail() -> None:
            raise RuntimeError("as tests want it")

        def submit_or_fail(batcher: Batcher, job: Job, listener: Listener) -> Ticket:
            if next(calls) == 12:
                batcher._conductor.post(fail)
            return submit(batcher, job, listener)

        with monkeypatch.context() as patch:
            patch.setattr(Batcher, "submit", submit_or_fail)
            code, _, err = run("-np", "3")
        assert code == 2
        kept = len(rows())
        assert 0 < kept <= 12
        assert f"{kept} new results kept in 'out.jsonl'; the same command goes on" in err
        self.assert_complete(run, kept)

    def test_kills(self, run: Run, options: list[str]) -> None:
        command = [sys.executable, "-m", "logitfuse", *options]
        kill_again_and_again(command, Path("out.jsonl"), 4000)
        self.assert_complete(run)

    def test_a_full_disk(self, run: Run, options: list[str]) -> None:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

        said = refusal(logitfuse(*options, preexec_fn=limit))
        assert said.startswith("logitfuse: File too large: ")
        kept = len(rows())
        assert 0 < kept < 30
        assert said.endswith(f"{kept} new results kept in 'out.jsonl'; the same command goes on")
        assert Path("out.jsonl").stat().st_size <= 5000
        self.assert_complete(run, kept)

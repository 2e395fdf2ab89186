"""Bits per byte of texts put to real models: windows, folders, blocks and curves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lockstep import Load, Put
from logitfuse.errors import ConfigError, FusionError
from logitfuse.evaluation.beliefs import BLOCK, WEIGHTS, Beliefs, by_block, weight_curves
from logitfuse.evaluation.bpb import BpbTask, Window, windows
from logitfuse.evaluation.table import Outcome
from logitfuse.evaluation.texts import read_texts
from logitfuse.scoring import score_reply, score_text
from logitfuse.strategies.base import Request, Step
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.fuse import Fuse
from logitfuse.weights import Given

PROSE = "The naïve fox sat — 7 dogs came. 你好 🤖!\n" * 4


class TestWindows:
    @given(st.text(max_size=60), st.integers(1, 40), st.data())
    def test_every_byte_is_scored_once(self, text: str, window: int, data: st.DataObject) -> None:
        stride = data.draw(st.integers(1, window))
        raw = text.encode()
        cut = list(windows("t", raw, window=window, stride=stride))
        assert b"".join(piece.text for piece in cut) == raw
        at = 0
        for piece in cut:
            piece.text.decode()  # characters are whole
            piece.before.decode()
            assert piece.text
            assert piece.id == f"t:{at}"
            assert raw[:at].endswith(piece.before)
            assert len(piece.before) >= min(at, window - stride)
            at += len(piece.text)
            longest = max(4, window if piece is cut[0] else stride)
            assert len(piece.text) <= longest
            assert len(piece.before) + len(piece.text) <= window + 6  # two broken characters

    def test_lengths(self) -> None:
        cut = list(windows("t", b"x" * 100, window=40, stride=10))
        assert [len(piece.text) for piece in cut] == [40] + [10] * 6
        assert [len(piece.before) for piece in cut] == [0] + [30] * 6

    @pytest.mark.parametrize("stride", [0, 41, -1])
    def test_a_stride_outside_the_window(self, stride: int) -> None:
        with pytest.raises(ConfigError, match="from 1 to the window, 40 bytes"):
            list(windows("t", b"x", window=40, stride=stride))


class TestTexts:
    def test_folders(self, tmp_path: Path) -> None:
        for name, content in {
            "a.txt": b"one",
            "sub/b.MD": b"two",
            "sub/.hidden.txt": b"no",
            ".git/c.txt": b"no",
            "old.eval/report.html": b"no",
            "image.png": b"\x89PNG",
            "sub/binary.txt": b"\xff\xfe\x00",
            "sub/__init__.py": b"",
        }.items():
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
        texts, skipped = read_texts([tmp_path])
        assert texts == {"a.txt": b"one", "sub/b.MD": b"two"}
        assert [Path(name).name for name in skipped] == ["__init__.py", "binary.txt"]

    def test_equal_names(self, tmp_path: Path) -> None:
        for folder in "xy":
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "a.txt").write_text(folder)
        x, y = tmp_path / "x", tmp_path / "y"
        by_path = {(x / "a.txt").as_posix(): b"x", (y / "a.txt").as_posix(): b"y"}
        assert read_texts([x, y]).texts == by_path
        assert read_texts([x / "a.txt", y / "a.txt"]).texts == by_path
        assert read_texts([x / "a.txt", x, x / "a.txt"]).texts == {"a.txt": b"x"}

    def test_refusals(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").touch()
        (tmp_path / "b.txt").write_bytes(b"ok \xe9")
        for path, said in (("a.txt", "is empty"), ("b.txt", r"UTF-8 \(byte 3\)"), ("c", "No such")):
            with pytest.raises(ConfigError, match=said):
                read_texts([tmp_path / path])
        with pytest.raises(ConfigError, match="holds no text"):
            read_texts([tmp_path])


class TestBpb:
    @pytest.mark.parametrize("strategy", [Fuse, Bytes])
    def test_bits_are_those_of_the_engine(self, put: Put, strategy: type[Engine]) -> None:
        who = put(strategy, "gpt2", "llama-spm")
        pieces = list(windows("t", PROSE.encode(), window=80, stride=40))
        task = BpbTask(pieces)
        for piece in pieces[:3]:
            found = task.put(piece, who)
            score = score_reply(who.engine, Request(piece.before), piece.text)
            assert found.scores["bytes"] == len(piece.text)
            assert found.scores["bits"] == pytest.approx(-score.nats / math.log(2), rel=1e-4)

    def test_a_member_by_tokens_is_what_llama_cpp_says(self, put: Put, load: Load) -> None:
        """But for twins and control tokens, which have next to no share in a trained model."""
        found = BpbTask(()).put(Window("t:0", "t", b"", PROSE.encode()), put(Fuse, "gemma3"))
        direct = score_text(load("gemma3", 1), PROSE)
        assert found.scores["bytes"] == direct.n_bytes
        assert found.scores["bits"] == pytest.approx(direct.bits, rel=0.05)

    def test_windows_add_up(self, put: Put) -> None:
        """With all of the text before each, the bits are those of the whole."""
        who = put(Bytes, "smol")
        raw = b"The fox and the dog. " * 5
        whole = BpbTask(()).put(Window("t:0", "t", b"", raw), who).scores["bits"]
        cut = list(windows("t", raw, window=len(raw) - 1, stride=30))
        assert len(cut) == 2
        parts = [BpbTask(()).put(piece, who).scores["bits"] for piece in cut]
        assert sum(parts) == pytest.approx(whole, rel=0.02)

    @pytest.mark.parametrize("strategy", [Fuse, Bytes])
    def test_curves(self, put: Put, strategy: type[Engine]) -> None:
        """At weight 1 a member's own bits, at its own weight the linear pool of units."""
        weights = [0.3, 0.7]
        names = ("gpt2", "llama-spm")
        options: dict[str, Any] = {"weights": weights}
        if strategy is Bytes:
            options |= {"weigher": Given(weights), "per": "unit"}
        else:
            options |= {"gate": "always"}
        who = put(strategy, *names, **options)
        piece = Window("t:0", "t", b"", PROSE.encode())
        found = BpbTask(()).put(piece, who)
        steps = score_reply(who.engine, Request(b""), piece.text).steps
        curves = [
            [None if None in blocks else sum(blocks) for blocks in curve]
            for curve in found.data["curves"]
        ]
        for i, curve in enumerate(curves):
            own = -math.fsum(step.member_logprobs[i] for step in steps) / math.log(2)
            if math.isfinite(own):
                assert curve[-1] == pytest.approx(own, rel=1e-4)
            assert curve[0] == (curves[1 - i][-1] and pytest.approx(curves[1 - i][-1]))
            at = WEIGHTS.index(round(who.engine.weights[i], 2))
            assert curve[at] == pytest.approx(found.scores["bits"], rel=0.02)

    def test_curves_by_hand(self) -> None:
        def step(*logprobs: float) -> Step:
            return Step(0, b"xy", 0.0, logprobs, (b"xy",) * len(logprobs), "fused")

        steps = [
            step(math.log(0.5), math.log(0.25), math.nan),
            step(math.nan, math.log(0.5), math.log(0.25)),
            step(math.nan, math.nan, math.log(0.5)),
            step(-math.inf, math.log(0.125), math.nan),
        ]
        first, _, last = Beliefs(steps).curves([0.5, 0.5, 0.0])[:3]
        assert last is None  # it has no weight
        assert first is not None
        assert first[0] == [pytest.approx(2 + 1 + 1 + 3)]
        half = WEIGHTS.index(0.5)
        bits = -math.log2(0.375) + 1 + 1 - math.log2(0.0625)
        assert first[half] == [pytest.approx(bits, abs=1e-4)]
        assert first[-1] == [None]  # the first member alone cannot say the last unit
        assert Beliefs(steps).curves([1.0, 0.0, 0.0]) == [None] * 3
        unheard = step(math.nan, math.nan, math.nan)
        assert Beliefs([unheard]).curves([0.5, 0.5, 0.0])[0] == [[None]] * len(WEIGHTS)
        rows = [
            Outcome(
                *("k", "bpb", "t", "t", "ensemble"),
                scores={"bits": 1.0, "bytes": 8.0},
                data={
                    "blocks": Beliefs(steps).blocks(),
                    "curves": Beliefs(steps).curves([0.5, 0.5, 0.0]),
                },
            )
        ]
        one, two = weight_curves(rows, "ensemble", ("a", "b", "c"))
        assert (one.member, two.member) == ("a", "b")
        assert one.weights == WEIGHTS[:-1]
        assert one.bits[0].mean == pytest.approx(7 / 8)
        assert weight_curves(rows, "nobody", ("a", "b", "c")) == ()

    @pytest.mark.parametrize("lengths", [(1,), (255, 1, 3), (300, 100, 400), (1, 2, 3) * 300])
    def test_blocks(self, lengths: tuple[int, ...]) -> None:
        """Every byte has its share of the bits of its unit, and of the cost of its window."""
        steps = [
            Step(0, b"x" * n, -math.log(2) * n * (k + 1), (0.0,), (b"x",), "fused")
            for k, n in enumerate(lengths)
        ]
        total = sum(lengths)
        bits = [float(k + 1) for k, n in enumerate(lengths) for _ in range(n)]
        window = Outcome(
            *("k", "bpb", "t:0", "t", "ensemble"),
            scores={"bits": sum(bits), "bytes": float(total)},
            data={"blocks": Beliefs(steps).blocks()},
            seconds=8.0,
            tokens={"a": 101},
        )
        rows = by_block([window])
        assert len(rows) == max(1, total // BLOCK)
        assert len({row.item for row in rows}) == len({row.key for row in rows}) == len(rows)
        at = 0
        for row in rows:
            n = int(row.scores["bytes"])
            assert row.scores["bits"] == pytest.approx(sum(bits[at : at + n]), abs=1e-3)
            assert row.seconds == pytest.approx(8 * n / total)
            at += n
        assert at == total
        assert sum(row.tokens["a"] for row in rows) == 101

    def test_a_window_that_failed_has_no_blocks(self) -> None:
        failed = Outcome("k", "bpb", "t:0", "t", "ensemble", error="no")
        assert by_block([failed]) == [failed]

    def test_no_probability_is_a_failure(self, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
        who = put(Fuse, "smol")
        said = who.engine._said

        def never(*arguments: Any) -> Step:
            return replace(said(*arguments), logprob=-math.inf)

        monkeypatch.setattr(who.engine, "_said", never)
        with pytest.raises(FusionError, match="no probability at all"):
            BpbTask(()).put(Window("t:0", "t", b"", b"fox"), who)

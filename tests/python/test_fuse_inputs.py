"""What `fuse` takes and what it refuses."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest
from fuse_checks import (
    every_pool,
    fused,
    same_bits,
)
from logitfuse import _core
from logitfuse.alignment import align
from logitfuse.errors import FusionError
from logitfuse.pooling import PoolName, fuse, fuse_batch
from logitfuse.vocab import TokenKind, Vocab
from strategies_core import (
    INF,
    Row,
    random_step,
)


class OnlyDlpack:
    """An array library's own array: neither a buffer nor an ndarray."""

    def __init__(self, row: Row) -> None:
        self._row = row

    def __dlpack__(self, **options: Any) -> Any:
        return self._row.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._row.__dlpack_device__()


ABC = Vocab([b"a", b"b", b"c", b"<eos>"], end_ids=[3])
BCD = Vocab([b"b", b"c", b"d"])


def abc(*logits: float) -> Row:
    return np.array(logits or (0, 1, 2, 3), np.float32)


def abc_with(value: float) -> list[Row]:
    return [np.zeros(3, np.float32), abc(0, value, 0, 0)]


class TestInputs:
    alignment = align([BCD, ABC])

    @pytest.mark.parametrize(
        "wrap",
        [
            memoryview,
            bytearray,
            OnlyDlpack,
            lambda row: array.array("f", row),
            lambda row: np.ascontiguousarray(row).view(),
            lambda row: row.view(type("Subclass", (np.ndarray,), {})),
        ],
        ids=["memoryview", "bytearray", "dlpack", "array.array", "view", "subclass"],
    )
    def test_anything_with_a_buffer_or_dlpack(self, wrap: Any) -> None:
        if wrap is bytearray:
            wrap = lambda row: memoryview(bytearray(row.tobytes())).cast("f")  # noqa: E731
        rows = [np.zeros(3, np.float32), abc()]
        wrapped = [wrap(row) for row in rows]
        same_bits(fuse(wrapped, self.alignment, dense=True), fuse(rows, self.alignment, dense=True))

    @every_pool
    def test_rows_are_not_modified(self, pool: PoolName) -> None:
        step = random_step(8, "forbidden", "ties")
        before = [row.tobytes() for row in step.rows]
        for row in step.rows:
            row.flags.writeable = False
        fused(step, pool=pool, dense=True)
        assert [row.tobytes() for row in step.rows] == before

    @pytest.mark.parametrize(
        "row",
        [
            np.zeros(4),
            np.zeros(8, np.float32)[::2],
            np.zeros(4, np.int32),
            np.zeros(4, ">f4"),
            [0.0, 0.0, 0.0, 0.0],
            "abcd",
            3.0,
            OnlyDlpack(np.zeros(4)),  # type: ignore[arg-type]
            array.array("d", [0, 0, 0, 0]),
        ],
        ids=lambda row: f"{type(row).__name__}-{getattr(row, 'dtype', '')}",
    )
    def test_anything_else_is_a_type_error(self, row: Any) -> None:
        with pytest.raises(TypeError, match="row of member 1 must be a C-contiguous float32 array"):
            fuse([np.zeros(3, np.float32), row], self.alignment)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (np.zeros(3, np.float32), r"member 1 has shape \(3,\); its vocabulary has 4"),
            (np.zeros((1, 4), np.float32), r"member 1 has shape \(1, 4\)"),
            (abc(0, np.nan, 0, 0), "member 1 holds NaN"),
            (abc(np.nan, np.nan, np.nan, np.nan), "member 1 holds NaN"),
            (abc(-INF, -INF, np.nan, -INF), "member 1 holds NaN"),
            (abc(0, INF, 0, 0), r"member 1 holds \+inf"),
            (abc(-INF, -INF, -INF, -INF), "member 1 holds nothing but -inf"),
            (None, "member 1 has a weight but no row"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_bad_rows_name_the_member(self, row: Any, message: str) -> None:
        with pytest.raises(FusionError, match=message) as raised:
            fuse([np.zeros(3, np.float32), row], self.alignment)
        assert raised.value.member == 1

    def test_what_cannot_be_emitted_may_be_anything(self) -> None:
        vocab = Vocab([b"a", b"b", b"c"], [TokenKind.TEXT, TokenKind.CONTROL, TokenKind.UNUSED])
        result = fuse([np.array([3, INF, np.nan], np.float32)], align([vocab]))
        assert result.ids.tolist() == [0]
        assert result.logprobs.tolist() == [0]

    @pytest.mark.parametrize(
        ("weights", "message", "member"),
        [
            ([1], "expected 2 weights, one per member, got 1", None),
            ([1, 1, 1], "expected 2 weights", None),
            ([1, -1], "weight of member 1 must be a finite number >= 0, not -1", 1),
            ([np.nan, 1], "weight of member 0 .* not nan", 0),
            ([1, INF], "weight of member 1 .* not inf", 1),
            ([0, 0], "finite sum above 0", None),
            ([1.7e308, 1.7e308], "finite sum above 0", None),
        ],
    )
    def test_bad_weights(self, weights: list[float], message: str, member: int | None) -> None:
        with pytest.raises(FusionError, match=message) as raised:
            fuse([np.zeros(3, np.float32), abc()], self.alignment, weights=weights)
        assert raised.value.member == member
        with pytest.raises(FusionError, match=message):
            _core.normalise_weights(weights, 2)

    @pytest.mark.parametrize(
        ("pool", "weights", "message", "member"),
        [
            ("product", [1, -1], "weight of member 1 must be a finite number >= 0, not -1", 1),
            ("product", [2e6, 1], "weight of member 0 must be at most 1e6 in size", 0),
            ("product", [0, 0], "finite sum above 0", None),
            ("contrast", [1, INF], "weight of member 1 must be a finite number, not inf", 1),
            ("contrast", [1, -2e6], "weight of member 1 must be at most 1e6 in size", 1),
            ("contrast", [0, -1], "needs a member of positive weight", None),
            ("min", [1, -1], "weight of member 1 must be a finite number >= 0", 1),
            ("consistency", [np.nan, 1], "weight of member 0 .* not nan", 0),
        ],
    )
    def test_bad_weights_of_a_kind(
        self, pool: PoolName, weights: list[float], message: str, member: int | None
    ) -> None:
        with pytest.raises(FusionError, match=message) as raised:
            fuse([np.zeros(3, np.float32), abc()], self.alignment, weights=weights, pool=pool)
        assert raised.value.member == member
        with pytest.raises(FusionError, match=message):
            _core.normalise_weights(weights, 2, pool)

    @pytest.mark.parametrize("n", [0, 1, 3])
    def test_wrong_number_of_rows(self, n: int) -> None:
        with pytest.raises(FusionError, match=f"expected 2 rows, got {n}"):
            fuse([np.zeros(3, np.float32)] * n, self.alignment)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pool": "geometric"}, "unknown pool 'geometric'; known: linear, log-linear, power, "),
            ({"exponent": 0}, "exponent must be a finite number at least 0.001 away from 0"),
            ({"exponent": INF}, "exponent must be .* not inf"),
            ({"plausibility": 0}, r"plausibility must be in \(0, 1\] .* not 0"),
            ({"plausibility": 1.1}, "plausibility must be"),
            ({"plausibility": np.nan}, "plausibility must be"),
            ({"top": 0}, "top must be at least 1"),
            ({"top": -3}, "top must be at least 1"),
            ({"floor": 1.0}, "floor must be a finite log-probability <= 0"),
            ({"floor": -INF}, "floor must be"),
            ({"floor": np.nan}, "floor must be"),
        ],
    )
    def test_bad_options(self, options: Any, message: str) -> None:
        with pytest.raises(FusionError, match=message) as raised:
            fuse([np.zeros(3, np.float32), abc()], self.alignment, **options)
        assert raised.value.member is None

    def test_a_failed_step_leaves_no_trace(self) -> None:
        rows = [np.zeros(3, np.float32), abc()]
        before = fuse(rows, self.alignment, dense=True)
        for bad in (np.nan, INF):
            with pytest.raises(FusionError):
                fuse(abc_with(bad), self.alignment, dense=True)
        same_bits(fuse(rows, self.alignment, dense=True), before)

    @pytest.mark.parametrize(
        ("blocks", "error", "message"),
        [
            ([(2, 3)], FusionError, "expected 2 blocks of rows, got 1"),
            ([], FusionError, "expected 2 blocks of rows, got 0"),
            ([(2, 3), (3, 4)], FusionError, "member 1 has rows for 3 steps, member 0 for 2"),
            ([(2, 3), (2, 5)], FusionError, "member 1 has shape"),
            ([(3,), (4,)], FusionError, "member 0 has shape"),
        ],
    )
    def test_bad_batches(self, blocks: Any, error: type[Exception], message: str) -> None:
        for dense in (False, True):
            with pytest.raises(error, match=message):
                fuse_batch([np.zeros(b, np.float32) for b in blocks], self.alignment, dense=dense)

    def test_an_empty_batch(self) -> None:
        rows = [np.zeros((0, n), np.float32) for n in (3, 4)]
        assert fuse_batch(rows, self.alignment) == []

"""The core, on three rows of 49,152 + 151,936 + 262,144 logits; every result is checked."""

from __future__ import annotations

from collections.abc import Iterator

import inputs
import numpy as np
import pytest
from inputs import WEIGHTS, StepInput
from logitfuse import _core
from logitfuse.alignment import align
from logitfuse.llama import LlamaModel
from logitfuse.pooling import TOP, Fused, fuse, fuse_batch
from logitfuse.vocab import TokenKind, Vocab
from numpy.typing import DTypeLike, NDArray
from numpy_pool import NumpyPool
from pytest_benchmark.fixture import BenchmarkFixture

#: What the docstring of `fuse` promises, nats, absolute and relative.
TOLERANCE = 5e-7


@pytest.fixture(params=_core.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


@pytest.fixture(scope="module")
def step() -> StepInput:
    return inputs.step()


@pytest.fixture
def pool(step: StepInput) -> _core.Pool:
    return _core.Pool(step.alignment._core, "linear", -16.0)


def check(step: StepInput, symbols: NDArray[np.int32], logprobs: NDArray[np.floating]) -> None:
    """The best symbols of the oracle, with its log-probabilities."""
    best = np.argsort(-step.oracle, kind="stable")[: len(symbols)]
    assert step.error(symbols, logprobs) <= TOLERANCE * (1 - logprobs[-1])
    np.testing.assert_allclose(logprobs, step.oracle[best], rtol=TOLERANCE, atol=TOLERANCE)


def check_fused(step: StepInput, fused: Fused | _core.Fused) -> None:
    """As `check`, for as many as are certain to be the best."""
    symbols = fused.ids if isinstance(fused, Fused) else fused.symbols
    certain = np.count_nonzero(fused.logprobs > fused.outside)
    assert certain >= TOP / 2
    check(step, symbols[:certain], fused.logprobs[:certain])


def test_rows_are_as_peaked_as_text(step: StepInput) -> None:
    assert all(2 <= entropy <= 4 for entropy in inputs.entropies(step.rows))


@pytest.mark.benchmark(group="kernels")
@pytest.mark.usefixtures("isa")
def test_log_sum_exp(benchmark: BenchmarkFixture, step: StepInput) -> None:
    result = benchmark(lambda: [_core.log_sum_exp(row) for row in step.rows])
    for row, got in zip(step.rows, result, strict=True):
        assert got == pytest.approx(np.logaddexp.reduce(row.astype(np.float64)), abs=2e-7)


@pytest.mark.benchmark(group="fuse")
@pytest.mark.usefixtures("isa")
class TestFuse:
    """From the rows to candidates, on every instruction set."""

    def test_read(self, benchmark: BenchmarkFixture, step: StepInput, pool: _core.Pool) -> None:
        benchmark(pool.read, step.rows, WEIGHTS)
        check_fused(step, pool.candidates(TOP))

    def test_candidates(
        self, benchmark: BenchmarkFixture, step: StepInput, pool: _core.Pool
    ) -> None:
        def run() -> _core.Fused:
            pool.read(step.rows, WEIGHTS)
            return pool.candidates(TOP)

        check_fused(step, benchmark(run))

    def test_decide(self, benchmark: BenchmarkFixture, step: StepInput, pool: _core.Pool) -> None:
        pool.read(step.rows, WEIGHTS)
        decision, symbol = benchmark(pool.decide)
        assert (decision == _core.Decision.open) == (symbol < 0)
        assert symbol < 0 or symbol == np.argmax(step.oracle)

    def test_fuse(self, benchmark: BenchmarkFixture, step: StepInput) -> None:
        check_fused(step, benchmark(fuse, step.rows, step.alignment, weights=WEIGHTS))

    def test_batch_of_8(self, benchmark: BenchmarkFixture, step: StepInput) -> None:
        rows = [np.tile(row, (8, 1)) for row in step.rows]
        for fused in benchmark(fuse_batch, rows, step.alignment, weights=WEIGHTS):
            check_fused(step, fused)

    def test_dense(self, benchmark: BenchmarkFixture, step: StepInput, pool: _core.Pool) -> None:
        pool.read(step.rows, WEIGHTS)
        union = np.empty(len(step.alignment), np.float32)
        benchmark(pool.dense, union)
        np.testing.assert_allclose(union, step.oracle, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.benchmark(group="fuse")
@pytest.mark.parametrize("partition", [False, True], ids=["argsort", "argpartition"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_numpy(
    benchmark: BenchmarkFixture, step: StepInput, dtype: DTypeLike, partition: bool
) -> None:
    numpy_pool = NumpyPool(step.alignment, dtype, partition=partition)
    symbols, logprobs = benchmark.pedantic(
        numpy_pool.fuse, (step.rows, WEIGHTS, TOP), rounds=5, warmup_rounds=1
    )
    check(step, symbols, logprobs)


@pytest.mark.benchmark(group="align")
def test_align(benchmark: BenchmarkFixture) -> None:
    vocabs = inputs.vocabs()
    alignment = benchmark.pedantic(align, (vocabs,), rounds=5, warmup_rounds=1)
    spelled = {
        vocab.token_bytes(int(token))
        for vocab in vocabs
        for token in np.flatnonzero(vocab.kinds <= TokenKind.BYTE)
    }
    assert len(alignment) == len(spelled) + 1  # and the end


@pytest.mark.benchmark(group="vocab")
@pytest.mark.parametrize("member", range(3), ids=["smollm2", "qwen2", "gemma3"])
def test_vocab_of_a_loaded_model(benchmark: BenchmarkFixture, member: int) -> None:
    known = inputs.vocabs()[member]
    model = known._tokenizer
    assert isinstance(model, LlamaModel)
    vocab = benchmark.pedantic(Vocab.from_llama, (model,), rounds=5, warmup_rounds=1)
    assert vocab == known
    text = "Zażółć gęślą jaźń, 你好 👋🏽\n\tif x == 1_000:".encode()
    assert vocab.join(vocab.tokenize(text)).strip() == text

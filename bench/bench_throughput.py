"""Throughput beside NumPy and PyTorch, once and on small vocabularies: all ways agree."""

from __future__ import annotations

import json
from pathlib import Path

import inputs
import numpy as np
import pytest
import reference
import throughput
from logitfuse.alignment import align
from logitfuse.vocab import TokenKind, Vocab

#: Strings that two members spell differently often, ends, a control token, twins.
SMALL = (
    Vocab(
        [bytes([97 + i % 26]) * (1 + i // 26) for i in range(400)] + [b"a", b"a", b"<s>", b"", b""],
        [TokenKind.TEXT] * 400
        + [TokenKind.BYTE, TokenKind.TEXT, TokenKind.CONTROL, TokenKind.END, TokenKind.END],
    ),
    Vocab([bytes([97 + i % 26]) * (2 + i // 26) for i in range(500)] + [b""], end_ids=[500]),
)


@pytest.mark.parametrize("pool", ["linear", "log-linear"])
def test_exact_is_the_oracle(pool: str) -> None:
    alignment = align(SMALL)
    rows = inputs.make_rows(alignment)
    tables = [
        (
            [vocab.token_bytes(token) for token in range(len(vocab))],
            [TokenKind(kind).name.lower() for kind in vocab.kinds],
        )
        for vocab in SMALL
    ]
    expected = reference.pool(rows, tables, [0.7, 0.3], pool)
    found = throughput.exact(alignment, rows, [0.7, 0.3], pool)
    keys = [alignment.symbol_bytes(symbol) or reference.END for symbol in range(len(alignment))]
    np.testing.assert_allclose(
        found - np.logaddexp.reduce(found), [expected[key] for key in keys], atol=1e-12
    )


@pytest.mark.parametrize("pool", ["linear", "log-linear"])
@pytest.mark.parametrize("same", [False, True], ids=["two vocabularies", "one vocabulary"])
def test_baselines_are_exact(pool: str, same: bool) -> None:
    setting = throughput.Setting([SMALL[0], SMALL[0]] if same else SMALL)
    oracle = setting.exact(pool)
    oracle = oracle - np.logaddexp.reduce(oracle)
    for step in setting.baselines(pool, ("union", "candidates")).values():
        symbols, logprobs = step.best(setting.rows, setting.weights, len(oracle) // 2)
        if pool == "log-linear":
            logprobs = logprobs + np.logaddexp.reduce(oracle[symbols])
        np.testing.assert_allclose(logprobs, oracle[symbols], atol=1e-5)
        np.testing.assert_allclose(
            oracle[symbols], np.sort(oracle)[::-1][: len(symbols)], atol=1e-5
        )


@pytest.mark.parametrize("members", [2, 3])
def test_drawn_vocabularies(members: int) -> None:
    vocabs = throughput.vocabularies(16_000, members)
    assert [len(vocab) for vocab in vocabs] == [16_000] * members
    assert vocabs == throughput.vocabularies(16_000, members)
    assert 0.2 < throughput.overlap(align(vocabs)) < 0.8
    assert len({bytes(vocab.token_bytes(300)) for vocab in vocabs}) > 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = ["--sizes", "2000", "32000", "--members", "2", "3", "--rounds", "1"]
    throughput.main([*small, "--json"])
    found = [throughput.Cell(**cell) for cell in json.loads(capsys.readouterr().out)["cells"]]
    assert len(found) == 4 * len(throughput.TASKS)
    assert all(cell.seconds.keys() >= {"NumPy", throughput.OURS} for cell in found)
    throughput.print_grid(found[:4])
    throughput.print_summary(found)
    printed = capsys.readouterr().out
    assert all(f"| {task} |" in printed for task in throughput.TASKS)
    pytest.importorskip("matplotlib")
    once = [file.read_bytes() for file in throughput.plot(found, tmp_path / "a")]
    assert once == [file.read_bytes() for file in throughput.plot(found, tmp_path / "b")]

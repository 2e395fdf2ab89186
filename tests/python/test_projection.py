"""Projections onto a pivot: known geometry, real models, and the cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import projection as bench
import pytest
from lockstep import Load
from logitfuse import projection
from logitfuse.alignment import align
from logitfuse.errors import FusionError, VocabError
from logitfuse.llama.tensors import Tensor
from logitfuse.projection import Projection, cache_dir, project, projection_for
from logitfuse.vocab import TokenKind, Vocab
from numpy.typing import NDArray

TWINS, LONELY, WIDTH = 300, 120, 24
N = TWINS + LONELY


class Rotated:
    """A pivot, and a member whose table is the pivot's in other coordinates and another order.

    Token ``i`` of the member means what the pivot's ``partner[i]`` means.  The first `TWINS` of the
    pivot are spelled alike in both; the last two tokens of both are a byte and an end.
    """

    def __init__(self, noise: float = 0.0) -> None:
        random = np.random.default_rng(7)
        spelled = [b"same%d" % i for i in range(TWINS)]
        self.partner = random.permutation(N)
        names = [*spelled, *(b"theirs%d" % i for i in range(LONELY))]
        self.pivot = self.vocab([*names, b"\x01", b""])
        own = [
            names[partner] if partner < TWINS else b"own%d" % partner for partner in self.partner
        ]
        self.member = self.vocab([*own, b"\x02", b""])
        # Not the same length in every direction, nor centred, as real tables are.
        scales = np.linspace(0.2, 3.0, WIDTH)
        table = random.normal(size=(N + 2, WIDTH)) * scales + random.normal(size=WIDTH)
        rotation = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0]
        moved = table[[*self.partner, N, N + 1]] @ rotation
        moved += noise * random.normal(size=moved.shape)
        self.pivot_table = table.astype(np.float32)
        self.member_table = moved.astype(np.float32)

    @staticmethod
    def vocab(texts: list[bytes]) -> Vocab:
        kinds = [TokenKind.TEXT] * N + [TokenKind.BYTE, TokenKind.END]
        return Vocab(texts, kinds)

    def project(self, neighbours: int = 10) -> Projection:
        return project(
            self.member, self.member_table, self.pivot, self.pivot_table, neighbours=neighbours
        )

    @property
    def lonely(self) -> NDArray[np.int64]:
        """The member's text tokens without a twin."""
        return np.flatnonzero(self.partner >= TWINS)


def nearest(found: Projection) -> NDArray[np.int32]:
    """The heaviest entry of every token that has some."""
    return found.tokens[found.offsets[:-1][np.diff(found.offsets) > 0]]


def check(found: Projection, n_tokens: int) -> None:
    """What every projection must be."""
    assert found.offsets.shape == (n_tokens + 1,)
    assert (found.offsets.dtype, found.tokens.dtype, found.weights.dtype) == (
        np.int64,
        np.int32,
        np.float32,
    )
    assert found.offsets[0] == 0
    assert found.offsets[-1] == len(found.tokens) == len(found.weights)
    assert np.all(found.weights > 0)
    for start, end in zip(found.offsets[:-1], found.offsets[1:], strict=True):
        if start < end:
            weights = found.weights[start:end]
            assert weights.sum(dtype=np.float64) == pytest.approx(1, abs=1e-5)
            assert np.all(np.diff(weights) <= 0)
            assert len(set(found.tokens[start:end].tolist())) == end - start


class TestGeometry:
    def test_a_rotated_copy_is_found(self) -> None:
        case = Rotated()
        found = case.project()
        check(found, N + 2)
        counts = np.diff(found.offsets)
        assert np.flatnonzero(counts).tolist() == case.lonely.tolist()
        assert np.all(counts <= 10)
        assert nearest(found).tolist() == case.partner[case.lonely].tolist()

    def test_so_it_is_in_noise(self) -> None:
        case = Rotated(noise=0.15)
        hits = nearest(case.project()) == case.partner[case.lonely]
        assert np.mean(hits) > 0.9

    def test_a_shuffled_table_finds_nothing(self) -> None:
        case = Rotated()
        case.pivot_table = np.random.default_rng(0).permutation(case.pivot_table)
        hits = nearest(case.project()) == case.partner[case.lonely]
        assert np.mean(hits) < 0.1

    @pytest.mark.parametrize("neighbours", [1, 3, 100])
    def test_neighbours(self, neighbours: int) -> None:
        case = Rotated()
        found = case.project(neighbours)
        check(found, N + 2)
        counts = np.diff(found.offsets)[case.lonely]
        assert counts.max() <= neighbours
        # Half the tokens of a space lie on the other side: they are no neighbours.
        assert np.all(counts == neighbours) if neighbours < 10 else counts.min() > 50
        if neighbours == 1:
            np.testing.assert_array_equal(found.weights, 1)
        most = case.project(100)
        for token in case.lonely:
            few, many = found.offsets[token], most.offsets[token]
            count = counts[case.lonely == token][0]
            np.testing.assert_array_equal(
                found.tokens[few : few + count], most.tokens[many : many + count]
            )

    def test_widths_may_differ(self) -> None:
        case = Rotated()
        case.member_table = np.hstack([case.member_table, np.zeros_like(case.member_table)])
        assert nearest(case.project()).tolist() == case.partner[case.lonely].tolist()

    def test_only_text_is_projected_and_aimed_at(self) -> None:
        case = Rotated()
        target = int(case.lonely[0])
        kinds = np.array([TokenKind.TEXT] * N + [TokenKind.BYTE, TokenKind.END])
        for kind in (TokenKind.CONTROL, TokenKind.UNUSED):
            own, theirs = kinds.copy(), kinds.copy()
            own[case.lonely[1]] = kind
            theirs[case.partner[target]] = kind
            texts = [[v.token_bytes(i) for i in range(N + 2)] for v in (case.member, case.pivot)]
            member, pivot = Vocab(texts[0], list(own)), Vocab(texts[1], list(theirs))
            found = project(member, case.member_table, pivot, case.pivot_table)
            counts = np.diff(found.offsets)
            assert counts[case.lonely[1]] == 0
            assert counts[target] > 0
            assert np.all(pivot.kinds[found.tokens] == TokenKind.TEXT)

    def test_targets_are_canonical(self) -> None:
        case = Rotated()
        texts = [case.pivot.token_bytes(i) for i in range(N + 2)]
        texts[TWINS + 1] = texts[TWINS]
        pivot = Vocab(texts)
        found = project(case.member, case.member_table, pivot, case.pivot_table, neighbours=100)
        assert pivot.lookup(texts[TWINS]) == TWINS
        assert TWINS in found.tokens
        assert TWINS + 1 not in found.tokens

    def test_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case, calls = Rotated(), []
        whole = case.project()
        monkeypatch.setattr(projection, "_SCORES", 7000)
        monkeypatch.setattr(projection, "_ROWS", 13)
        found = project(
            case.member,
            case.member_table,
            case.pivot,
            case.pivot_table,
            progress=lambda done, total: calls.append((done, total)),
        )
        np.testing.assert_array_equal(found.tokens, whole.tokens)
        np.testing.assert_allclose(found.weights, whole.weights, atol=1e-4)
        assert calls[-1] == (LONELY, LONELY)
        assert [done for done, _ in calls] == sorted({done for done, _ in calls})
        assert len(calls) == -(-LONELY // 6)

    def test_symbols(self) -> None:
        case = Rotated()
        found = case.project()
        third = Vocab([b"a", b"own300", b"theirs5"])
        alignment = align([third, case.pivot, case.member])
        symbols = found.symbols(alignment, 1)
        assert symbols.dtype == np.int32
        for symbol, token in zip(symbols.tolist(), found.tokens.tolist(), strict=True):
            assert alignment.symbol_bytes(symbol) == case.pivot.token_bytes(token)

    def test_one_vocabulary_has_nothing_to_project(self) -> None:
        case = Rotated()
        found = project(case.pivot, case.pivot_table, case.pivot, case.pivot_table)
        check(found, N + 2)
        assert len(found.tokens) == 0
        alignment = align([case.pivot, case.pivot])
        assert len(found.symbols(alignment, 0)) == 0


class TestSearch:
    @pytest.mark.parametrize("count", [1, 10, 100])
    def test_largest(self, count: int) -> None:
        scores = np.random.default_rng(count).normal(size=(20, 4096)).astype(np.float32)
        found = projection._largest(scores, count)
        np.testing.assert_array_equal(found, np.argsort(-scores, axis=1)[:, :count])


class TestRefused:
    def test_a_table_of_another_size(self) -> None:
        case = Rotated()
        case.member_table = case.member_table[:-1]
        with pytest.raises(VocabError, match=f"{N + 2} tokens need as many embeddings"):
            case.project()

    @pytest.mark.parametrize("neighbours", [0, -1, 101])
    def test_neighbours(self, neighbours: int) -> None:
        with pytest.raises(FusionError, match=f"not {neighbours}"):
            Rotated().project(neighbours)

    def test_strangers(self) -> None:
        case = Rotated()
        stranger = Vocab([b"x%d" % i for i in range(N + 2)])
        with pytest.raises(VocabError, match="only 0 tokens"):
            project(stranger, case.member_table, case.pivot, case.pivot_table)


def test_held_out_twins_of_the_demo_models(smollm2_path: Path, gemma3_path: Path) -> None:
    """By chance one in 49,000 would be nearest."""
    member, pivot = Vocab.from_gguf(gemma3_path), Vocab.from_gguf(smollm2_path)
    tables = [Tensor(path, "token_embd.weight") for path in (gemma3_path, smollm2_path)]
    pairs = bench.twins(member, pivot)
    hidden = bench.hide(member, pairs[:300, 0], pairs[300:, 0])
    found = project(hidden, tables[0], pivot, tables[1])
    assert np.flatnonzero(np.diff(found.offsets)).tolist() == sorted(pairs[:300, 0].tolist())
    assert bench.precision(found, pairs[:300], 1) > 0.9
    assert bench.precision(found, pairs[:300], 10) > 0.97


class TestCache:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("LOGITFUSE_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache" / "projections"

    @pytest.fixture
    def computed(self, load: Load, folder: Path) -> Projection:
        found = projection_for(load("smol"), load("gpt2"))
        assert len(list(folder.iterdir())) == 1
        return found

    @staticmethod
    def same(one: Projection, two: Projection) -> bool:
        pairs = zip(vars(one).values(), vars(two).values(), strict=True)
        return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)

    def test_computed_once(
        self, load: Load, computed: Projection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        check(computed, len(load("smol").vocab))
        assert len(computed.tokens) > 0
        monkeypatch.delattr(projection, "project")
        assert self.same(projection_for(load("smol"), load("gpt2")), computed)

    @pytest.mark.parametrize("change", ["neighbours", "direction", "pivot"])
    def test_something_else_is_another_file(
        self, change: str, load: Load, folder: Path, computed: Projection
    ) -> None:
        members = {"direction": ("gpt2", "smol"), "pivot": ("smol", "qwen2")}
        member, pivot = map(load, members.get(change, ("smol", "gpt2")))
        found = projection_for(member, pivot, neighbours=3 if change == "neighbours" else 10)
        assert not self.same(found, computed)
        assert len(list(folder.iterdir())) == 2

    @pytest.mark.parametrize(
        "damage", ["cut", "empty", "bit", "foreign", "grown", "array", "key", "range"]
    )
    def test_nothing_else_is_trusted(
        self, damage: str, load: Load, folder: Path, computed: Projection
    ) -> None:
        (path,) = folder.iterdir()
        whole = path.read_bytes()
        with np.load(path) as file:
            arrays = dict(file)
        match damage:
            case "cut":
                path.write_bytes(whole[: len(whole) // 2])
            case "empty":
                path.write_bytes(b"")
            case "bit":
                middle = len(whole) // 2
                path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
            case "foreign":
                projection_for(load("gpt2"), load("smol"))
                (other,) = set(folder.iterdir()) - {path}
                shutil.move(other, path)
            case "grown":
                path.write_bytes(whole + bytes(10_000_000))
            case "array":
                with path.open("wb") as file:
                    np.save(file, np.zeros(3))
            case "key":
                arrays["key"] = arrays["key"][::-1]
                np.savez(path, **arrays)
            case "range":
                arrays["tokens"] = arrays["tokens"] + len(load("gpt2").vocab)
                np.savez(path, **arrays)
        assert path.read_bytes() != whole
        assert self.same(projection_for(load("smol"), load("gpt2")), computed)
        assert path.read_bytes() == whole
        assert list(folder.iterdir()) == [path]

    def test_no_place_to_keep_it(
        self, load: Load, folder: Path, computed: Projection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (path,) = folder.iterdir()
        monkeypatch.setenv("LOGITFUSE_CACHE", str(path))  # a file
        assert self.same(projection_for(load("smol"), load("gpt2")), computed)

    def test_the_oldest_go(self, load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        projection_for(load("smol"), load("gpt2"))
        (first,) = folder.iterdir()
        os.utime(first, (1, 1))
        monkeypatch.setattr(projection, "_KEPT", 2)
        for neighbours in (1, 2):
            projection_for(load("smol"), load("gpt2"), neighbours=neighbours)
        assert not first.exists()
        assert len(list(folder.iterdir())) == 2


class TestCacheDir:
    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("LOGITFUSE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))

    @pytest.mark.parametrize(
        ("platform", "variables", "expected"),
        [
            ("linux", {}, "/home/me/.cache/logitfuse"),
            ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/logitfuse"),
            ("linux", {"XDG_CACHE_HOME": "/x", "LOGITFUSE_CACHE": "/y"}, "/y"),
            ("darwin", {"XDG_CACHE_HOME": "/x"}, "/home/me/Library/Caches/logitfuse"),
            ("win32", {}, "/home/me/AppData/Local/logitfuse"),
            ("win32", {"LOCALAPPDATA": "/l"}, "/l/logitfuse"),
        ],
    )
    def test_platforms(
        self,
        platform: str,
        variables: dict[str, str],
        expected: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("sys.platform", platform)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert cache_dir() == Path(expected)

"""Tensors of GGUF files, against the dequantisation of the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import TinyModels
from gguf import GGMLQuantizationType as Kind
from gguf_reader import read_gguf
from logitfuse.errors import ModelLoadError, ModelNotFoundError
from logitfuse.llama.tensors import Tensor
from numpy.typing import NDArray

NAME = "token_embd.weight"
ROWS, WIDTH = 70, 512
#: Of each kind: what the demo models use, plain floats, and one of the grid codes.
KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.TQ2_0]
#: Those that the package can read but not write: any scales that are finite, any codes.
CODED = [Kind.Q4_K, Kind.Q6_K, Kind.IQ4_XS]


def values() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)


def codes(kind: Kind) -> NDArray[np.uint8]:
    """Rows of blocks with arbitrary bytes in which all half-precision scales are finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    shape = (ROWS, size * WIDTH // block)
    return np.random.default_rng(1).integers(0, 60, shape, dtype=np.uint8)


def write(path: Path, data: NDArray[np.generic], kind: Kind) -> Path:
    """A file with some other tensor, and this one."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("output_norm.weight", np.ones(17, np.float32))
    writer.add_tensor(NAME, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def encoded(kind: Kind) -> NDArray[np.generic]:
    return codes(kind) if kind in CODED else gguf.quantize(values(), kind)


@pytest.mark.parametrize("kind", [*KINDS, *CODED], ids=lambda kind: kind.name)
def test_every_type(kind: Kind, tmp_path: Path) -> None:
    data = encoded(kind)
    tensor = Tensor(write(tmp_path / "a.gguf", data, kind), NAME)
    expected = gguf.dequantize(data, kind)
    assert tensor.shape == (len(tensor), WIDTH) == expected.shape
    assert tensor.type_name == kind.name.lower().replace("_k", "_K")
    for rows in (slice(None), slice(3, 40, 2), [69, 0, 0, 12], []):
        found = tensor[rows]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[np.array(rows, int) if rows == [] else rows])


@pytest.mark.parametrize("name", ["smol", "gemma3", "mamba"])
def test_tiny_models(name: str, tiny_models: TinyModels) -> None:
    path = tiny_models[name]
    for tensor in (NAME, "output_norm.weight"):
        expected = read_gguf(path).tensor(tensor)
        np.testing.assert_array_equal(Tensor(path, tensor)[:], np.atleast_2d(expected))


@pytest.mark.parametrize("fixture", ["smollm2_path", "gemma3_path"])
def test_demo_models(fixture: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(fixture)
    header = read_gguf(path)
    place = header.tensors[NAME]
    tensor = Tensor(path, NAME)
    assert tensor.shape == place.shape
    kind = Kind(place.kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    bytes_per_row = place.shape[1] // block * size
    for row in (0, 12_345, place.shape[0] - 1):
        start = header.data_start + place.offset + row * bytes_per_row
        raw = np.fromfile(path, np.uint8, bytes_per_row, offset=start)
        np.testing.assert_array_equal(tensor[[row]][0], gguf.dequantize(raw, kind))


def test_matrices_of_more_axes_are_rows(tmp_path: Path) -> None:
    data = values().reshape(7, 10, WIDTH)
    tensor = Tensor(write(tmp_path / "a.gguf", data, Kind.F32), NAME)
    np.testing.assert_array_equal(tensor[:], values())


def test_rows_out_of_range(tmp_path: Path) -> None:
    tensor = Tensor(write(tmp_path / "a.gguf", values(), Kind.F32), NAME)
    with pytest.raises(IndexError):
        tensor[[ROWS]]
    assert tensor[ROWS:].shape == (0, WIDTH)


def test_hash(tmp_path: Path) -> None:
    hashes = set()
    for change in (0.0, 1e-3):
        data = values()
        data[-1, -1] += change
        for name in ("a", "b"):
            tensor = Tensor(write(tmp_path / f"{name}.gguf", data, Kind.F32), NAME)
            hashes.add(tensor.sha256())
    data = values().reshape(ROWS * 2, -1)
    hashes.add(Tensor(write(tmp_path / "c.gguf", data, Kind.F32), NAME).sha256())
    assert len(hashes) == 3


class TestRefused:
    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match="no model file"):
            Tensor(tmp_path / "a.gguf", NAME)

    def test_not_a_gguf(self, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04" * 100)
        with pytest.raises(ModelLoadError, match="not a GGUF file"):
            Tensor(tmp_path / "a.gguf", NAME)

    def test_no_such_tensor(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.gguf", values(), Kind.F32)
        with pytest.raises(ModelLoadError, match=r"no tensor 'output\.weight'") as caught:
            Tensor(path, "output.weight")
        assert caught.value.path == path

    def test_a_type_that_is_no_number_to_fuse(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.gguf", np.ones((ROWS, WIDTH), np.int32), Kind.I32)
        with pytest.raises(ModelLoadError, match="i32"):
            Tensor(path, NAME)

    @pytest.mark.parametrize("length", [8, 40, 150, 300])
    def test_cut_in_the_header(self, length: int, tmp_path: Path) -> None:
        path = write(tmp_path / "a.gguf", values(), Kind.F32)
        with path.open("rb+") as file:
            file.truncate(length)
        with pytest.raises(ModelLoadError):
            Tensor(path, NAME)

    def test_cut_in_the_tensor(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.gguf", values(), Kind.F32)
        with path.open("rb+") as file:
            file.truncate(path.stat().st_size - WIDTH * 4)
        with pytest.raises(ModelLoadError, match="ends before"):
            Tensor(path, NAME)

"""The tiny models: they load, decode and tokenize, and their memory behaves like a real model's.

This file speaks to llama.cpp directly, so that the fixtures are known to be sound before anything
of this package runs on them. The tests of memory pin down what llama.cpp promises to its callers.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from gguf import GGUFReader
from gguf_reader import read_gguf
from numpy.typing import NDArray
from tiny import ARCHITECTURES, EMBEDDING_ONLY, bigram_logits, write_tiny
from tiny_vocab import read_tokenizer, truncate

_SILENT = lib.llama_log_callback(lambda *_: None)
lib.llama_log_set(_SILENT, ctypes.c_void_p(0))
lib.llama_backend_init()

PARTIAL = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
GENERATIVE = ["gpt2", "llama-spm", "smol", "qwen2", "gemma3", "mamba", "lfm2"]
TEXT = "Hello, world! 123 naïve café 你好 🙂\n\n\tdef f(x):\n        return x  # done".encode()


class Model:
    """One model and one context of one sequence, through llama.cpp's C interface."""

    def __init__(self, path: Path, **context_params: Any) -> None:
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(os.fsencode(path), params)
        assert self.model, f"{path} does not load"
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)
        params = lib.llama_context_default_params()
        options = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "flash_attn_type": 1}
        for name, value in (options | context_params).items():
            setattr(params, name, value)
        self.context = lib.llama_init_from_model(self.model, params)
        assert self.context, f"no context for {path}"
        self.memory = lib.llama_get_memory(self.context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        lib.llama_free(self.context)
        lib.llama_model_free(self.model)

    def tokenize(self, text: bytes) -> list[int]:
        buffer = (lib.llama_token * (3 * len(text) + 8))()
        count = lib.llama_tokenize(self.vocab, text, len(text), buffer, len(buffer), False, False)
        return buffer[:count]

    def piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(512)
        length = lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[:length]

    def decode(self, tokens: Sequence[int], position: int) -> NDArray[np.float32]:
        """Decode tokens ``[n]`` from `position` on; returns logits ``[n, n_vocab]``."""
        self._run(lib.llama_decode, tokens, position)
        rows = lib.llama_get_logits_ith(self.context, 0)
        return np.ctypeslib.as_array(rows, (len(tokens), self.n_vocab)).copy()

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Encode tokens ``[n]``; returns the embedding of the sequence ``[n_embd]``."""
        self._run(lib.llama_encode, tokens, 0)
        vector = lib.llama_get_embeddings_seq(self.context, 0)
        return np.ctypeslib.as_array(vector, (lib.llama_model_n_embd(self.model),)).copy()

    def _run(self, function: Any, tokens: Sequence[int], position: int) -> None:
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, True
        status = function(self.context, batch)
        lib.llama_batch_free(batch)
        assert status == 0, f"{function.__name__} returned {status}"

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Decode tokens in batches of 32 from the start; returns the last row ``[n_vocab]``."""
        for start in range(0, len(tokens), 32):
            rows = self.decode(tokens[start : start + 32], start)
        return rows[-1]

    def roll_back(self, length: int) -> bool:
        """Ask llama.cpp to forget all tokens from position `length` on."""
        return bool(lib.llama_memory_seq_rm(self.memory, 0, length, -1))

    def save(self, flags: int) -> ctypes.Array[ctypes.c_uint8]:
        size = lib.llama_state_seq_get_size_ext(self.context, 0, flags)
        state = (ctypes.c_uint8 * size)()
        assert lib.llama_state_seq_get_data_ext(self.context, state, size, 0, flags) == size
        return state

    def restore(self, state: ctypes.Array[ctypes.c_uint8], flags: int) -> None:
        size = len(state)
        assert lib.llama_state_seq_set_data_ext(self.context, state, size, 0, flags) == size


def some_tokens(n: int, seed: int = 0) -> list[int]:
    """Return ordinary token ids; every tiny vocabulary has more than 1,000 of them above 300."""
    return np.random.default_rng(seed).integers(300, 900, n).tolist()


def entropy(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Entropy in nats of each row of logits ``[n, n_vocab]``."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(axis=-1, keepdims=True)
    return -np.sum(p * np.log(p), axis=-1)


class TestEveryModel:
    @pytest.mark.parametrize("name", GENERATIVE)
    def test_decodes(self, tiny_models: dict[str, Path], name: str) -> None:
        tokens = some_tokens(40)
        with Model(tiny_models[name]) as model:
            rows = model.decode(tokens, 0)
        with Model(tiny_models[name]) as model:
            stepwise = np.concatenate([model.decode([t], i) for i, t in enumerate(tokens)])
        assert np.isfinite(rows).all()
        # Of logits that spread by 3; how activations round to float16 depends on the CPU.
        np.testing.assert_allclose(rows, stepwise, atol=0.1)
        assert np.abs(rows - stepwise).mean() < 5e-3

    @pytest.mark.parametrize("name", GENERATIVE)
    def test_is_peaked_but_undecided(self, tiny_models: dict[str, Path], name: str) -> None:
        with Model(tiny_models[name]) as model:
            rows = model.decode(some_tokens(40), 0)
        assert 2 < entropy(rows).mean() < 5.5
        runner_up, best = np.sort(rows, axis=1)[:, -2:].T
        assert np.median(best - runner_up) > 0.1

    @pytest.mark.parametrize("name", GENERATIVE)
    def test_sees_its_whole_context(self, tiny_models: dict[str, Path], name: str) -> None:
        first, *rest = some_tokens(40)
        with Model(tiny_models[name]) as model, Model(tiny_models[name]) as other:
            difference = model.feed([first, *rest]) - other.feed([first + 1, *rest])
        assert np.abs(difference).max() > 0.05

    @pytest.mark.parametrize("name", GENERATIVE)
    def test_tokenizer_round_trips(self, tiny_models: dict[str, Path], name: str) -> None:
        with Model(tiny_models[name]) as model:
            tokens = model.tokenize(TEXT)
            text = b"".join(map(model.piece, tokens))
        assert len(tokens) < 0.8 * len(TEXT)
        assert text == (b" " + TEXT if name == "llama-spm" else TEXT)

    def test_embedding_model_embeds_and_has_no_memory(self, tiny_models: dict[str, Path]) -> None:
        with Model(tiny_models["bert"], embeddings=True) as model:
            one, same, other = (model.embed(model.tokenize(text)) for text in (b"a", b"a", b"b"))
            assert not model.memory
        np.testing.assert_array_equal(one, same)
        assert np.abs(one - other).max() > 0.1

    def test_chat_template_comes_along(self, tiny_models: dict[str, Path]) -> None:
        with Model(tiny_models["smol"]) as model:
            template = lib.llama_model_chat_template(model.model, None)
            end = next(t for t in range(20) if model.piece(t) == b"<|im_end|>")
            assert lib.llama_vocab_is_eog(model.vocab, end)
        assert b"<|im_start|>" in template


class TestWriter:
    @pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba", "lfm2"])
    def test_bigram_is_its_table(self, tmp_path: Path, vocab_dir: Path, arch: str) -> None:
        vocab = vocab_dir / "ggml-vocab-gpt-2.gguf"
        path = write_tiny(tmp_path / "m.gguf", vocab, arch=arch, max_vocab=1000, kind="bigram")
        tokens = some_tokens(20)
        with Model(path) as model:
            rows = model.decode(tokens, 0)
        np.testing.assert_allclose(rows, bigram_logits(path, tokens), atol=1e-4)
        np.testing.assert_allclose(rows, bigram_logits(path)[tokens], atol=1e-4)

    def test_there_is_no_bigram_of_an_embedding_model(
        self, tmp_path: Path, vocab_dir: Path
    ) -> None:
        vocab = vocab_dir / "ggml-vocab-bert-bge.gguf"
        with pytest.raises(ValueError, match="no logits"):
            write_tiny(tmp_path / "m.gguf", vocab, arch="bert", kind="bigram")

    @pytest.mark.parametrize("arch", ARCHITECTURES)
    def test_seed_fixes_every_byte(self, tmp_path: Path, vocab_dir: Path, arch: str) -> None:
        vocab = read_tokenizer(vocab_dir / "ggml-vocab-gpt-2.gguf")
        paths = [tmp_path / f"{i}.gguf" for i in range(3)]
        for path, seed in zip(paths, [5, 5, 6], strict=True):
            write_tiny(path, vocab, arch=arch, max_vocab=400, seed=seed)
        one, same, other = (path.read_bytes() for path in paths)
        assert one == same
        assert one != other

    def test_bos_and_template_can_be_set(self, tmp_path: Path, vocab_dir: Path) -> None:
        vocab = vocab_dir / "ggml-vocab-phi-3.gguf"
        path = write_tiny(tmp_path / "m.gguf", vocab, add_bos=False, template="{{ messages }}")
        tokenizer = read_tokenizer(path)
        assert tokenizer.flags["tokenizer.ggml.add_bos_token"] is False
        assert tokenizer.template == "{{ messages }}"

    def test_reader_agrees_with_the_gguf_package(self, tmp_path: Path, vocab_dir: Path) -> None:
        vocab = vocab_dir / "ggml-vocab-llama-spm.gguf"
        path = write_tiny(tmp_path / "m.gguf", vocab, max_vocab=500)
        mine, theirs = read_gguf(path), GGUFReader(path)
        for key, value in mine.metadata.items():
            mine_as_text = [text.decode() for text in value] if isinstance(value, list) else value
            field = theirs.get_field(key)
            assert field is not None
            np.testing.assert_array_equal(mine_as_text, field.contents())
        assert set(mine.tensors) == {tensor.name for tensor in theirs.tensors}
        for tensor in theirs.tensors:
            np.testing.assert_array_equal(mine.tensor(tensor.name), tensor.data)


class TestTruncation:
    @pytest.mark.parametrize(
        ("name", "max_vocab"),
        [
            ("gpt-2", 1000),
            ("gpt-2", 50257),
            ("qwen2", 1000),
            ("llama-bpe", 1000),
            ("deepseek-llm", 1000),
            ("falcon", 1000),
            ("llama-spm", 1000),
            ("phi-3", 1000),
            ("phi-3", 32064),
        ],
    )
    def test_still_spells_everything(
        self, tmp_path: Path, vocab_dir: Path, name: str, max_vocab: int
    ) -> None:
        vocab = vocab_dir / f"ggml-vocab-{name}.gguf"
        path = write_tiny(tmp_path / "m.gguf", vocab, dim=32, layers=1, max_vocab=max_vocab)
        prefix = b" " if name in ("llama-spm", "phi-3") else b""
        with Model(path) as model:
            assert model.n_vocab == max_vocab
            tokens = model.tokenize(TEXT)
            assert b"".join(map(model.piece, tokens)) == prefix + TEXT

    @pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "qwen2", "bert-bge"])
    def test_keeps_special_tokens_and_their_order(self, vocab_dir: Path, name: str) -> None:
        whole = read_tokenizer(vocab_dir / f"ggml-vocab-{name}.gguf")
        cut = truncate(whole, 800)
        assert len(cut.tokens) == 800
        positions = [whole.tokens.index(token) for token in cut.tokens]
        assert positions == sorted(positions)
        specials = {key: whole.tokens[token] for key, token in whole.ids.items()}
        assert specials == {key: cut.tokens[token] for key, token in cut.ids.items()}

    def test_every_byte_pair_token_can_be_reached(self, vocab_dir: Path) -> None:
        cut = truncate(read_tokenizer(vocab_dir / "ggml-vocab-gpt-2.gguf"), 800)
        made = {merge.replace(b" ", b"") for merge in cut.merges or ()}
        assert {token for token in cut.tokens if len(token.decode()) > 1} - made == {
            b"<|endoftext|>"
        }

    def test_refuses_less_than_the_base(self, vocab_dir: Path) -> None:
        with pytest.raises(ValueError, match="257"):
            truncate(read_tokenizer(vocab_dir / "ggml-vocab-gpt-2.gguf"), 256)


class TestMemory:
    """What llama.cpp can take back, and what it only claims to."""

    @pytest.mark.parametrize("name", ["gpt2", "gemma3"])
    def test_attention_rolls_back_exactly(self, tiny_models: dict[str, Path], name: str) -> None:
        tokens = some_tokens(300)
        with Model(tiny_models[name], swa_full=True) as model:
            model.feed(tokens)
            assert model.roll_back(64)
            again = model.decode(tokens[64:96], 64)
        with Model(tiny_models[name], swa_full=True) as fresh:
            expected = fresh.feed(tokens[:96])
        np.testing.assert_array_equal(again[-1], expected)

    def test_small_sliding_window_forgets_silently(self, tiny_models: dict[str, Path]) -> None:
        tokens = some_tokens(300)
        options = {"swa_full": False, "n_ubatch": 32}
        with Model(tiny_models["gemma3"], **options) as model:
            model.feed(tokens)
            assert lib.llama_memory_seq_pos_min(model.memory, 0) > 32
            assert model.roll_back(32)  # it says so
            again = model.decode(tokens[32:64], 32)
        with Model(tiny_models["gemma3"], **options) as fresh:
            expected = fresh.feed(tokens[:64])
        assert np.abs(again[-1] - expected).max() > 0.1

    @pytest.mark.parametrize("name", ["mamba", "lfm2"])
    def test_a_state_cannot_be_rolled_back(self, tiny_models: dict[str, Path], name: str) -> None:
        tokens = some_tokens(20)
        with Model(tiny_models[name]) as model:
            model.feed(tokens)
            assert not model.roll_back(19)
            assert model.roll_back(20)  # nothing to remove
            assert model.roll_back(0)  # everything
            assert lib.llama_memory_seq_pos_max(model.memory, 0) == -1

    @pytest.mark.parametrize("name", ["gpt2", "gemma3", "mamba", "lfm2"])
    def test_checkpoint_restores_exactly(self, tiny_models: dict[str, Path], name: str) -> None:
        tokens = some_tokens(60)
        with Model(tiny_models[name]) as model:
            model.feed(tokens[:50])
            checkpoint = model.save(PARTIAL)
            expected = [model.decode([t], 50 + i) for i, t in enumerate(tokens[50:])]
            model.restore(checkpoint, PARTIAL)
            assert model.roll_back(50)  # the part of the memory that the checkpoint leaves out
            again = [model.decode([t], 50 + i) for i, t in enumerate(tokens[50:])]
        np.testing.assert_array_equal(again, expected)

    def test_snapshots_reach_back_within_the_last_batch_only(
        self, tiny_models: dict[str, Path]
    ) -> None:
        """``n_rs_seq`` keeps the states of the latest decode; older ones are stale, not refused."""
        tokens = some_tokens(50)
        with Model(tiny_models["lfm2"]) as fresh:
            expected = fresh.feed(tokens[:45])

        def after_rolling_back(last_batch: int) -> NDArray[np.float32]:
            with Model(tiny_models["lfm2"], n_rs_seq=4) as model:
                model.decode(tokens[: 46 - last_batch], 0)
                model.decode(tokens[46 - last_batch : 46], 46 - last_batch)
                assert model.roll_back(44)  # two tokens
                return model.decode([tokens[44]], 44)[-1]

        np.testing.assert_allclose(after_rolling_back(3), expected, atol=1e-3)
        assert np.abs(after_rolling_back(2) - expected).max() > 0.1

    def test_mamba_has_no_snapshots(self, tiny_models: dict[str, Path]) -> None:
        with Model(tiny_models["mamba"], n_rs_seq=4) as model:
            assert lib.llama_n_rs_seq(model.context) == 0


def test_fixture_covers_every_architecture(tiny_models: dict[str, Path]) -> None:
    found = {str(read_gguf(path).metadata["general.architecture"]) for path in tiny_models.values()}
    assert found == set(ARCHITECTURES)
    assert found > EMBEDDING_ONLY

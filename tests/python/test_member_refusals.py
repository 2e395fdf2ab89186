"""Files and prompts that a member refuses, each with a typed error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from logitfuse.errors import (
    ContextLengthError,
    ModelLoadError,
    ModelNotFoundError,
    PromptError,
    UnsupportedTokenizerError,
)
from logitfuse.llama import LlamaModel
from logitfuse.member import Member
from tiny import write_tiny


class TestRefusals:
    def test_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "none.gguf"
        with pytest.raises(ModelNotFoundError, match=r"none\.gguf") as caught:
            Member(path)
        assert caught.value.path == path
        assert isinstance(caught.value, FileNotFoundError)

    @pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
    def test_truncated(self, tiny_models: Mapping[str, Path], tmp_path: Path, keep: float) -> None:
        path = tmp_path / "half.gguf"
        whole = tiny_models["gpt2"].read_bytes()
        path.write_bytes(whole[: int(keep * len(whole))])
        self.check_refused(path, "half.gguf")

    def test_not_gguf(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(b"\x08\x00\x00\x00{}")
        self.check_refused(path, "not a GGUF file")

    def test_vocabulary_alone(self, vocab_dir: Path) -> None:
        self.check_refused(vocab_dir / "ggml-vocab-gpt-2.gguf", "cannot load")

    def test_embedding_model(self, tiny_models: Mapping[str, Path]) -> None:
        self.check_refused(tiny_models["bert"], "cannot generate")

    def test_embedding_model_that_does_not_say_so(self, vocab_dir: Path, tmp_path: Path) -> None:
        path = tmp_path / "embedder.gguf"
        write_tiny(path, vocab_dir / "ggml-vocab-gpt-2.gguf", arch="bert")
        path.write_bytes(
            path.read_bytes().replace(b"bert.attention.causal", b"bert.attention.xxxxxx")
        )
        assert LlamaModel(path).metadata("bert.attention.causal") is None
        self.check_refused(path, "cannot generate")

    def test_wordpiece(self, vocab_dir: Path) -> None:
        model = LlamaModel(vocab_dir / "ggml-vocab-bert-bge.gguf", vocab_only=True)
        with pytest.raises(UnsupportedTokenizerError) as caught:
            model.require_byte_exact()
        assert caught.value.model_type == "WordPiece"

    def test_prompt_without_tokens(self, tiny_models: Mapping[str, Path]) -> None:
        member = Member(tiny_models["smol"], n_threads=1)
        assert member.tokenize(b"\x14") == []
        with pytest.raises(PromptError, match="member 'smol' has no token for any part"):
            member.tokenize_prompt("\x14\x14")

    def test_long_prompt(self, tiny_models: Mapping[str, Path]) -> None:
        member = Member(tiny_models["gpt2"], name="short", n_ctx=256, n_threads=1)
        prompt = member.tokenize_prompt(100 * "The quick brown fox jumps. ")
        with pytest.raises(ContextLengthError, match=r"short.*n_ctx=256") as caught:
            member.begin(prompt)
        error = caught.value
        assert (error.member, error.n_tokens, error.n_ctx) == ("short", len(prompt), 256)
        member.begin(prompt[:255])
        assert member.n_tokens == 255

    @staticmethod
    def check_refused(path: Path, message: str) -> None:
        with pytest.raises(ModelLoadError, match=message) as caught:
            Member(path, n_threads=1)
        assert caught.value.path == path
        assert isinstance(caught.value, ValueError)

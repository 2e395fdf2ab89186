"""Tiny random-weight models with a real tokenizer: every path of a real model, in milliseconds.

``write_tiny`` writes a GGUF file of any of five architectures, one for each way in which llama.cpp
keeps its memory:

==========  =================================  ==========================================
``llama``   attention                          a plain KV cache
``gemma3``  sliding-window and full attention  two KV caches, one of which forgets
``mamba``   state-space layers                 a state: no token can be removed again
``lfm2``    short convolutions and attention   a state and a KV cache
``bert``    bidirectional attention            none: it embeds text and cannot generate
==========  =================================  ==========================================

A model of the kind ``"bigram"`` has the same tensors, but its layers add nothing to the embedding.
Its logits after a token depend on that token alone, and ``bigram_logits`` computes them in NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGUFWriter, PoolingType
from gguf_reader import read_gguf
from numpy.typing import ArrayLike, DTypeLike, NDArray
from tiny_vocab import Tokenizer, read_tokenizer, truncate

Kind = Literal["random", "bigram"]

RMS_EPS = 1e-6
N_HEADS, N_KV_HEADS = 4, 2
EMBEDDING_ONLY = {"bert"}
ENTROPY = 3.5  # nats, roughly, of a next-token distribution


@dataclass(frozen=True)
class Shape:
    """The sizes of a model.

    Attributes
    ----------
    dim
        Width of the residual stream; a multiple of 32.
    layers
        Number of blocks; those of mixed architectures alternate, the last one being attention.
    ctx
        Context length that the model was "trained" for, in tokens.
    window
        Sliding window of ``gemma3``, in tokens.
    """

    dim: int
    layers: int
    ctx: int
    window: int

    @property
    def head_dim(self) -> int:
        return self.dim // N_HEADS

    @property
    def ffn(self) -> int:
        return 2 * self.dim

    @property
    def kv_heads(self) -> list[int]:
        """Number of KV heads of each layer of a hybrid; 0 where the layer is a convolution."""
        return [N_KV_HEADS * (i % 2) for i in range(self.layers)]


def write_tiny(
    out: Path,
    vocab: Path | Tokenizer,
    *,
    arch: str = "llama",
    dim: int = 64,
    layers: int = 2,
    max_vocab: int = 2000,
    seed: int = 0,
    kind: Kind = "random",
    ctx: int = 512,
    window: int = 16,
    template: str | None = None,
    add_bos: bool | None = None,
    wide: bool = False,
) -> Path:
    """Write a small model with random weights and a real, truncated tokenizer.

    Parameters
    ----------
    out
        File to write.
    vocab
        GGUF file whose tokenizer the model gets, or that tokenizer.
    arch
        A key of `ARCHITECTURES`.
    dim, layers, ctx, window
        See `Shape`.
    max_vocab
        Bound on the number of tokens; see `tiny_vocab.truncate`.
    seed
        Fixes every weight.
    kind
        ``"random"``: logits depend on the whole context. ``"bigram"``: on the last token only.
    template
        Chat template instead of the tokenizer's own.
    add_bos
        Whether llama.cpp adds a BOS token, instead of the tokenizer's own flag.
    wide
        Random matrices are float32: then batches of other sizes, which are summed in another order,
        change logits by 1e-6 only; where activations are rounded to float16 it may be 1e-2.

    Returns
    -------
    Path
        `out`.
    """
    if kind == "bigram" and arch in EMBEDDING_ONLY:
        raise ValueError(f"{arch} has no logits, so there is no bigram kind of it")
    tokenizer = read_tokenizer(vocab) if isinstance(vocab, Path) else vocab
    tokenizer = truncate(tokenizer, max_vocab)
    shape = Shape(dim, layers, ctx, window)
    writer = GGUFWriter(out, arch)
    _write_sizes(writer, shape, len(tokenizer.tokens))
    _write_tokenizer(writer, tokenizer, template or tokenizer.template, add_bos)
    weights = _Weights(writer, seed, kind, wide or kind == "bigram")
    weights.matrix("token_embd.weight", len(tokenizer.tokens), dim, scale=1.0)
    if arch not in EMBEDDING_ONLY:
        _write_output(weights, len(tokenizer.tokens), dim)
    ARCHITECTURES[arch](writer, weights, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def bigram_logits(path: Path, tokens: ArrayLike | None = None) -> NDArray[np.float64]:
    """Compute the logits of a bigram model without running it.

    Parameters
    ----------
    path
        A model written with ``kind="bigram"``.
    tokens
        Token ids ``[n]``, by default the whole vocabulary.

    Returns
    -------
    ndarray
        ``[n, n_vocab]``; row ``i`` holds the logits that follow ``tokens[i]``.
    """
    file = read_gguf(path)
    embedding = file.tensor("token_embd.weight").astype(np.float64)
    output = file.tensor("output.weight").astype(np.float64)
    x = embedding if tokens is None else embedding[np.asarray(tokens)]
    return x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + RMS_EPS) @ output.T


class _Weights:
    """Adds tensors to a model, all drawn from one generator.

    Shapes are NumPy's: a matrix is ``(outputs, inputs)``, the reverse of how ggml prints it.

    Parameters
    ----------
    kind
        See `write_tiny`.
    wide
        Matrices are float32: those of a bigram model are, so that its logits can be computed
        exactly. Else they are float16: there llama.cpp gets the same bits whether it decodes tokens
        one by one or in a batch, on common CPUs at least.
    """

    def __init__(self, writer: GGUFWriter, seed: int, kind: Kind, wide: bool) -> None:
        self._writer = writer
        self._rng = np.random.default_rng(seed)
        self._dtype = np.float32 if wide else np.float16
        self.residual_gain = 0.0 if kind == "bigram" else 2.0

    def matrix(self, name: str, outputs: int, inputs: int, scale: float | None = None) -> None:
        """Add Gaussian values; by default scaled to keep the variance of a vector."""
        self._gaussian(name, (outputs, inputs), scale or inputs**-0.5, self._dtype)

    def residual(self, name: str, outputs: int, inputs: int) -> None:
        """Add the last matrix of a branch, the one whose result joins the residual stream."""
        self._gaussian(name, (outputs, inputs), self.residual_gain * inputs**-0.5, self._dtype)

    def rows(self, name: str, count: int, width: int, scale: float | None = None) -> None:
        """Add Gaussian rows that are not multiplied as a matrix, so llama.cpp wants float32."""
        self._gaussian(name, (count, width), scale or width**-0.5, np.float32)

    def constant(self, name: str, value: ArrayLike, *shape: int) -> None:
        self._writer.add_tensor(name, np.full(shape, value, np.float32))

    def _gaussian(self, name: str, shape: tuple[int, int], scale: float, dtype: DTypeLike) -> None:
        values = self._rng.standard_normal(shape, np.float32) * np.float32(scale)
        self._writer.add_tensor(name, values.astype(dtype))


def _write_sizes(writer: GGUFWriter, shape: Shape, n_vocab: int) -> None:
    writer.add_vocab_size(n_vocab)
    writer.add_context_length(shape.ctx)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(N_HEADS)
    writer.add_layer_norm_rms_eps(RMS_EPS)


def _write_tokenizer(
    writer: GGUFWriter, tokenizer: Tokenizer, template: str | None, add_bos: bool | None
) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    if tokenizer.pre is not None:
        writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types.tolist())
    if tokenizer.scores is not None:
        writer.add_token_scores(tokenizer.scores.tolist())
    if tokenizer.merges is not None:
        writer.add_token_merges(tokenizer.merges)
    for key, token in tokenizer.ids.items():
        writer.add_uint32(key, token)
    flags = dict(tokenizer.flags)
    if add_bos is not None:
        flags["tokenizer.ggml.add_bos_token"] = add_bos
    for key, flag in flags.items():
        writer.add_bool(key, flag)
    if template is not None:
        writer.add_chat_template(template)


def _write_output(weights: _Weights, n_vocab: int, dim: int) -> None:
    """Write an output matrix that makes distributions peaked but not one-hot.

    Gaussian logits of variance ``v`` over ``n`` tokens have an entropy of about ``ln n - v / 2``.
    """
    spread = math.sqrt(2 * max(math.log(n_vocab) - ENTROPY, 0.5))
    weights.matrix("output.weight", n_vocab, dim, scale=spread * dim**-0.5)


def _write_llama(writer: GGUFWriter, weights: _Weights, shape: Shape) -> None:
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_rope_dimension_count(shape.head_dim)
    weights.constant("output_norm.weight", 1.0, shape.dim)
    for i in range(shape.layers):
        _write_attention(weights, f"blk.{i}.", shape)
        _write_feed_forward(weights, f"blk.{i}.", shape)


def _write_gemma3(writer: GGUFWriter, weights: _Weights, shape: Shape) -> None:
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_sliding_window(shape.window)
    writer.add_sliding_window_pattern(2)  # every second layer sees the whole text
    weights.constant("output_norm.weight", 1.0, shape.dim)
    # Gemma scales embeddings by sqrt(dim) and normalises what joins them: give that equal weight.
    branch = weights.residual_gain / 2 * math.sqrt(shape.dim)
    for i in range(shape.layers):
        block = f"blk.{i}."
        _write_attention(weights, block, shape)
        _write_feed_forward(weights, block, shape)
        weights.constant(block + "attn_q_norm.weight", 1.0, shape.head_dim)
        weights.constant(block + "attn_k_norm.weight", 1.0, shape.head_dim)
        weights.constant(block + "post_attention_norm.weight", branch, shape.dim)
        weights.constant(block + "post_ffw_norm.weight", branch, shape.dim)


def _write_mamba(writer: GGUFWriter, weights: _Weights, shape: Shape) -> None:
    inner, state, rank, kernel = 2 * shape.dim, 16, shape.dim // 16, 4
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    weights.constant("output_norm.weight", 1.0, shape.dim)
    decay = -np.arange(1, state + 1, dtype=np.float32)
    for i in range(shape.layers):
        block = f"blk.{i}."
        weights.constant(block + "attn_norm.weight", 1.0, shape.dim)
        weights.matrix(block + "ssm_in.weight", 2 * inner, shape.dim)
        weights.rows(block + "ssm_conv1d.weight", inner, kernel)
        weights.constant(block + "ssm_conv1d.bias", 0.0, inner)
        weights.matrix(block + "ssm_x.weight", rank + 2 * state, inner, scale=3 * inner**-0.5)
        weights.matrix(block + "ssm_dt.weight", inner, rank)
        weights.constant(block + "ssm_dt.bias", -4.0, inner)  # softplus of it: steps of 0.02
        weights.constant(block + "ssm_a", decay, inner, state)
        weights.constant(block + "ssm_d", 1.0, inner)
        weights.residual(block + "ssm_out.weight", shape.dim, inner)


def _write_lfm2(writer: GGUFWriter, weights: _Weights, shape: Shape) -> None:
    kernel = 3
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_shortconv_l_cache(kernel)
    weights.constant("token_embd_norm.weight", 1.0, shape.dim)  # the output norm of this one
    for i, kv_heads in enumerate(shape.kv_heads):
        block = f"blk.{i}."
        if kv_heads:
            _write_attention(weights, block, shape)
            weights.constant(block + "attn_q_norm.weight", 1.0, shape.head_dim)
            weights.constant(block + "attn_k_norm.weight", 1.0, shape.head_dim)
        else:
            weights.constant(block + "attn_norm.weight", 1.0, shape.dim)
            weights.matrix(block + "shortconv.in_proj.weight", 3 * shape.dim, shape.dim)
            weights.rows(block + "shortconv.conv.weight", shape.dim, kernel)
            weights.residual(block + "shortconv.out_proj.weight", shape.dim, shape.dim)
        _write_feed_forward(weights, block, shape)


def _write_bert(writer: GGUFWriter, weights: _Weights, shape: Shape) -> None:
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.MEAN)
    writer.add_token_type_count(2)
    weights.rows("position_embd.weight", shape.ctx, shape.dim, scale=1.0)
    weights.rows("token_types.weight", 2, shape.dim, scale=1.0)
    _write_layer_norm(weights, "token_embd_norm", shape.dim)
    for i in range(shape.layers):
        block = f"blk.{i}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights.matrix(f"{block}{part}.weight", shape.dim, shape.dim)
            weights.constant(f"{block}{part}.bias", 0.0, shape.dim)
        weights.matrix(block + "ffn_up.weight", shape.ffn, shape.dim)
        weights.constant(block + "ffn_up.bias", 0.0, shape.ffn)
        weights.matrix(block + "ffn_down.weight", shape.dim, shape.ffn)
        weights.constant(block + "ffn_down.bias", 0.0, shape.dim)
        _write_layer_norm(weights, block + "attn_output_norm", shape.dim)
        _write_layer_norm(weights, block + "layer_output_norm", shape.dim)


def _write_attention(weights: _Weights, block: str, shape: Shape) -> None:
    """Write grouped-query attention: four query heads share two key and value heads."""
    kv_dim = N_KV_HEADS * shape.head_dim
    weights.constant(block + "attn_norm.weight", 1.0, shape.dim)
    weights.matrix(block + "attn_q.weight", shape.dim, shape.dim)
    weights.matrix(block + "attn_k.weight", kv_dim, shape.dim)
    weights.matrix(block + "attn_v.weight", kv_dim, shape.dim)
    weights.residual(block + "attn_output.weight", shape.dim, shape.dim)


def _write_feed_forward(weights: _Weights, block: str, shape: Shape) -> None:
    weights.constant(block + "ffn_norm.weight", 1.0, shape.dim)
    weights.matrix(block + "ffn_gate.weight", shape.ffn, shape.dim)
    weights.matrix(block + "ffn_up.weight", shape.ffn, shape.dim)
    weights.residual(block + "ffn_down.weight", shape.dim, shape.ffn)


def _write_layer_norm(weights: _Weights, name: str, dim: int) -> None:
    weights.constant(name + ".weight", 1.0, dim)
    weights.constant(name + ".bias", 0.0, dim)


ARCHITECTURES: dict[str, Callable[[GGUFWriter, _Weights, Shape], None]] = {
    "llama": _write_llama,
    "gemma3": _write_gemma3,
    "mamba": _write_mamba,
    "lfm2": _write_lfm2,
    "bert": _write_bert,
}

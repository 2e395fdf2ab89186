"""A member: one model kept in step with a text that it does not write alone.

The members share the bytes of the reply.  Where a member votes, its KV cache holds its own
*canonical* tokens of the whole reply, not a concatenation of separately tokenised pieces: a short
tail is tokenised again, the longest common prefix stays, the rest is rolled back and decoded.
Over 860,000 steps of 20 tokenizers in 7 scripts it never exceeded five tokens (bench/sync.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from logitfuse import _core
from logitfuse.cache import MemberStats, TokenCache
from logitfuse.canonical import CanonicalReply
from logitfuse.errors import ContextLengthError, PromptError
from logitfuse.evidence import Span, share
from logitfuse.llama import LlamaContext, LlamaModel, Row
from logitfuse.places import Place, View
from logitfuse.text import valid_text
from logitfuse.vocab import Vocab
from logitfuse.weights import PromptEvidence


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_model(path: str | os.PathLike[str], **options: Any) -> tuple[LlamaModel, Vocab]:
    """A model that can be a member, and its vocabulary.

    Parameters
    ----------
    path : path
    **options
        Of `LlamaModel`.

    Raises
    ------
    ModelNotFoundError, ModelLoadError, UnsupportedTokenizerError
    """
    model = LlamaModel(path, **options)
    model.require_generator()
    return model, Vocab.from_llama(model)


class Member:
    """One model of an ensemble.

    Parameters
    ----------
    path : path
        GGUF file.
    name : str, optional
        How errors and tables call it; the file's stem by default.
    n_ctx : int, optional
        Context length, tokens.  0: the length the model was trained for; by default that length
        or 4096, whichever is less.
    n_batch : int
        Most prompt tokens per decode call.
    n_threads : int, optional
        Threads per decode; by default all cores.  An ensemble divides the cores among its members.
    n_gpu_layers : int
        Layers on the GPU; -1: all.
    main_gpu : int
        GPU to use.
    flash_attn, use_mmap : bool
        As in llama.cpp.
    repack : bool, optional
        See `LlamaModel`.
    n_branches : int
        Continuations that the context can hold besides the text; see `LlamaContext`.

    Raises
    ------
    ModelNotFoundError, ModelLoadError, UnsupportedTokenizerError
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        n_ctx: int | None = None,
        n_batch: int = 512,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        main_gpu: int = 0,
        flash_attn: bool = True,
        use_mmap: bool = True,
        repack: bool | None = None,
        n_branches: int = 0,
    ) -> None:
        model, vocab = open_model(
            path,
            n_gpu_layers=n_gpu_layers,
            main_gpu=main_gpu,
            use_mmap=use_mmap,
            repack=repack,
        )
        context = LlamaContext(
            model,
            n_ctx=model.default_n_ctx(n_ctx),
            n_batch=n_batch,
            n_threads=n_threads or cores(),
            flash_attn=flash_attn,
            n_branches=n_branches,
        )
        self._settle(context, vocab, name or model.path.stem)

    @classmethod
    def of(cls, context: LlamaContext, vocab: Vocab, name: str) -> Member:
        """A member for one of several texts that share a model.

        Parameters
        ----------
        context : LlamaContext
            The text's own.
        vocab : Vocab
            Of its model.
        name : str
        """
        member = cls.__new__(cls)
        member._settle(context, vocab, name)
        return member

    def _settle(self, context: LlamaContext, vocab: Vocab, name: str) -> None:
        self.context = context
        self.model = context.model
        self.vocab = vocab
        self.name = name
        #: The member's own belief that its last token ends where it ends (see `boundary`).
        self.boundary = 1.0
        #: It cannot spell the unfinished character at the end of the text: its row is stale.
        self.stalled = False
        self._canonical = CanonicalReply(self.model, self.vocab)
        self._cache = TokenCache(self.context, self.name)
        self._prompt: list[int] = []

    def __repr__(self) -> str:
        return f"Member({self.name!r}, {len(self.vocab)} tokens, n_ctx={self.n_ctx})"

    def close(self) -> None:
        """Free the model; the member and rows read from it are unusable afterwards."""
        self.context.close()
        self.model.close()

    @property
    def n_ctx(self) -> int:
        """Context length, tokens."""
        return self.context.n_ctx

    @property
    def n_tokens(self) -> int:
        """Tokens in the KV cache."""
        return len(self._cache.tokens)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the KV cache."""
        return tuple(self._cache.tokens)

    @property
    def last_token(self) -> int:
        """The last token in the KV cache."""
        return self._cache.tokens[-1]

    @property
    def stats(self) -> MemberStats:
        """What the member did since these figures were put in place."""
        return self._cache.stats

    @stats.setter
    def stats(self, stats: MemberStats) -> None:
        self._cache.stats = stats

    @property
    def row(self) -> Row:
        """Logits of the next token: a view, valid until the member moves on."""
        known = self._cache.rows.after(self.n_tokens)
        return self.context.row() if known is None else known

    # -- tokenizing ---------------------------------------------------------------------------

    def tokenize(self, text: bytes) -> list[int]:
        """Canonical tokens of valid UTF-8 text as the continuation of earlier text."""
        return self._canonical.tokenize(text)

    def tokenize_prompt(self, text: str | bytes) -> list[int]:
        """Tokens of a prompt, begun as the model wants it; special tokens are recognised.

        Raises
        ------
        PromptError
            The prompt is empty or not valid UTF-8, or the vocabulary lacks all bytes of it.
        """
        raw = valid_text(text, "the prompt")
        tokens = self.model.tokenize(raw, parse_special=True)
        bos = self.model.bos
        if self.model.add_bos and bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        if not tokens:
            raise PromptError(f"member '{self.name}' has no token for any part of the prompt")
        return tokens

    def check_prompt(self, tokens: Sequence[int]) -> list[int]:
        """A prompt that is given as token ids.

        Raises
        ------
        PromptError
            An id is out of range.
        """
        for token in tokens:
            if not 0 <= token < len(self.vocab):
                raise PromptError(
                    f"prompt token {token} is not in the vocabulary of member '{self.name}' "
                    f"({len(self.vocab)} tokens)"
                )
        return list(tokens)

    @property
    def opening(self) -> int:
        """The token that begins documents: begin-of-text, or the first end where there is none."""
        bos = self.model.bos if self.model.add_bos else None
        return int(self.vocab.end_ids[0]) if bos is None else bos

    def reset(self) -> None:
        """Forget everything: the next prompt is decoded from its first token."""
        self._cache.forget()

    def rest(self) -> None:
        """The answer has ended: nothing but its tokens is needed any more."""
        self.context.drop_branches()
        self._cache.rest()
        self.context.rest()

    def borrow(self, other: Member, n_tokens: int) -> None:
        """Hold the first tokens of another text of the same model, which need not be decoded again.

        Parameters
        ----------
        other : Member
            Its context shares a decoder with this one, and its memory can be cut.
        n_tokens : int
            At most as many as the other holds.
        """
        self._cache.borrow(other._cache, n_tokens)

    # -- moving on ----------------------------------------------------------------------------

    def require_room(self, prompt: Sequence[int]) -> None:
        """Refuse a prompt that leaves no room for an answer.

        Raises
        ------
        ContextLengthError
        """
        if len(prompt) >= self.n_ctx:
            raise ContextLengthError(member=self.name, n_tokens=len(prompt), n_ctx=self.n_ctx)

    def begin(self, prompt: Sequence[int], *, score: bool = False) -> None:
        """Start a new answer: bring the cache to the prompt, reusing what it already holds.

        Parameters
        ----------
        prompt : sequence of int
            From `tokenize_prompt`.
        score : bool
            Keep the log-probabilities of the tokens that are decoded, for `prompt_evidence`.

        Raises
        ------
        ContextLengthError
            The prompt leaves no room for an answer.
        DecodeError
        """
        self.require_room(prompt)
        self.context.drop_branches()
        self._prompt = list(prompt)
        self._canonical.clear()
        self.stalled = False
        kept, _ = self._cache.move(self._prompt, len(prompt), score=score)
        self._cache.rows.pin(len(self._prompt))
        self.stats.reused_tokens += kept
        self.boundary = 1.0  # the prompt ends where its author ended it

    def prompt_evidence(self, text: bytes, spans: Sequence[Span] | None = None) -> PromptEvidence:
        """How well the member predicted the prompt that it has begun with.

        Parameters
        ----------
        text : bytes
            What the prompt was made from.
        spans : sequence of (int, int), optional
            Only these parts of the text count; by default all of it.
        """
        nats = self._cache.nats[: len(self._prompt)]
        pieces = [self.vocab.token_bytes(token) for token in self._prompt]
        return share(pieces, nats, text, [(0, len(text))] if spans is None else spans)

    def place(self, reply: bytes, pending: Sequence[bytes] = ()) -> Place:
        """Where the reply stands, in canonical tokens; nothing is decoded.

        Parameters
        ----------
        reply : bytes
            The whole reply, up to a character boundary.
        pending : sequence of bytes
            Units of the reply behind that boundary which do not yet complete a character.  No
            tokenizer can be asked about them: they are followed by their twins, or the member
            stalls until the character is complete.
        """
        started, misses = time.perf_counter(), self._canonical.misses
        twins = [self.vocab.lookup(unit) for unit in pending]
        known = [twin for twin in twins if twin is not None]
        stalled = len(known) < len(twins)
        tokens = self._prompt + self._canonical.follow(reply) + ([] if stalled else known)
        self.stats.full_tokenisations += self._canonical.misses - misses
        self.stats.sync_s += time.perf_counter() - started
        return Place(tokens, stalled)

    def place_of(self, tokens: Sequence[int]) -> Place:
        """Where the reply stands if it is these tokens: for members of one vocabulary."""
        return Place([*self._prompt, *tokens])

    def go(self, place: Place, views: int = 1) -> None:
        """Bring the cache to a place.

        Parameters
        ----------
        place : Place
            At most `n_ctx` tokens.
        views : int
            How many of the last places, one token apart, `view` will be asked for.

        Raises
        ------
        DecodeError
        """
        self.stalled = place.stalled
        if place.stalled and place.tokens == self._cache.tokens:
            return
        n = len(place.tokens)
        _, dropped = self._cache.move(place.tokens, max(len(self._prompt), n - views))
        if dropped:
            self.stats.rollbacks += 1
            self.stats.rolled_back_tokens += dropped
            self.stats.deepest_rollback = max(self.stats.deepest_rollback, dropped)
        boundary = self._boundary(n)
        self.boundary = 1.0 if boundary is None else boundary

    def view(self, place: Place) -> View | None:
        """What the member knows at a place, if it need not decode for it."""
        n = len(place.tokens)
        if place.stalled:
            return View(0.0, stalled=True)
        rows = self._cache.rows
        if rows.after(n) is None or self._cache.tokens[:n] != place.tokens:
            return None
        boundary = self._boundary(n)
        return None if boundary is None else View(boundary, _rows=rows, _n_tokens=n)

    def _boundary(self, n: int) -> float | None:
        """The boundary probability of the n-th token in the cache; None: no row before it."""
        if n <= len(self._prompt):
            return 1.0
        before = self._cache.rows.after(n - 1)
        if before is None:
            return None
        return _core.boundary_probability(self.vocab._core, before, self._cache.tokens[n - 1])

    def row_before(self) -> Row | None:
        """The row from before the last token, if it is still known; see `row`."""
        return self._cache.rows.after(self.n_tokens - 1)

    def keep_rows(self, n: int) -> None:
        """Remember the rows of the last `n` places that the cache is brought to, until `rest`."""
        self._cache.reserve(n)

    def advance(self, reply: bytes, pending: Sequence[bytes] = ()) -> bool:
        """Bring the cache to where the reply stands (see `place`).

        Returns
        -------
        bool
            False, and nothing has changed, if the context is full.

        Raises
        ------
        DecodeError
        """
        place = self.place(reply, pending)
        if len(place.tokens) > self.n_ctx:
            return False
        self.go(place)
        return True

    def append(self, token: int) -> bool:
        """Follow by a given token, whatever is canonical: for members of one vocabulary.

        Returns
        -------
        bool
            False, and nothing has changed, if the context is full.
        """
        if self.n_tokens == self.n_ctx:
            return False
        self._cache.append(token)
        return True

    def settle(self, branch: int, tokens: list[int]) -> None:
        """Let the cache hold what a branch does, and that is these tokens."""
        self._cache.settle(branch, tokens)

    # -- branches -----------------------------------------------------------------------------

    def extend(self, tokens: list[int]) -> list[Row]:
        """Decode tokens behind those in the cache; see `TokenCache.extend`."""
        return self._cache.extend(tokens)

    def decode_branches(
        self, tokens: Sequence[int], positions: Sequence[int], branches: Sequence[int]
    ) -> list[Row]:
        """Decode one token for each of several branches; see `TokenCache.decode_branches`."""
        return self._cache.decode_branches(tokens, positions, branches)

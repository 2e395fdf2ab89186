"""A member: one model kept in step with a text that it does not write alone.

The members share the bytes of the reply.  After every step a member's KV cache holds its own
*canonical* tokens of the whole reply, not a concatenation of separately tokenised pieces: a short
tail is tokenised again, the longest common prefix stays, the rest is rolled back and decoded.
Over many texts and tokenizer pairs the rollback never exceeded four tokens.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from logitfuse import _core
from logitfuse.errors import ContextLengthError, DecodeError, PromptError
from logitfuse.llama import LlamaContext, LlamaModel, Row, last_log
from logitfuse.vocab import Vocab

#: Tokens tokenised again after each step, and how many of them must come out as they were.  In
#: 110,000 checks over seven tokenizer pairs and five scripts a tail that passed was never wrong.
_TAIL, _CHECK = 12, 2
#: Precedes a tail in vocabularies that put a space before every text; its own tokens are dropped.
_GUARD = b"\n"
#: Checkpoints kept for memories that cannot be cut back: more than the deepest rollback.
_CHECKPOINTS = 8
#: Rows kept from before the last steps, for the boundary probability after a rollback.  Copying one
#: costs 40 us at 262,144 tokens; decoding the token again would cost a forward pass.
_ROWS = 4


@dataclass
class MemberStats:
    """What a member did since these figures were put in place."""

    decoded_tokens: int = 0
    rolled_back_tokens: int = 0
    rollbacks: int = 0
    deepest_rollback: int = 0
    reused_tokens: int = 0  #: of prompts, found in the KV cache
    full_tokenisations: int = 0  #: the tail's self-check failed
    decode_s: float = 0.0
    sync_s: float = 0.0  #: tokenising, comparing, rolling back

    def as_dict(self) -> dict[str, int | float]:
        """All figures by name."""
        return asdict(self)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        self.model = LlamaModel(
            path,
            n_gpu_layers=n_gpu_layers,
            main_gpu=main_gpu,
            use_mmap=use_mmap,
            repack=repack,
        )
        self.model.require_generator()
        self.vocab = Vocab.from_llama(self.model)
        self.name = name or self.model.path.stem
        self.context = LlamaContext(
            self.model,
            n_ctx=self.model.default_n_ctx(n_ctx),
            n_batch=n_batch,
            n_threads=n_threads or cores(),
            flash_attn=flash_attn,
            n_branches=n_branches,
        )
        self.stats = MemberStats()
        #: The member's own belief that its last token ends where it ends (see `boundary`).
        self.boundary = 1.0
        #: It cannot spell the unfinished character at the end of the text: its row is stale.
        self.stalled = False
        self._guard = self._find_guard()
        self._rows = np.empty((_ROWS, len(self.vocab)), np.float32)
        self._rows_at = [-1] * _ROWS  # how many tokens each of them has seen
        self._kv: list[int] = []  # what the cache holds
        self._has_row = False  # ... and whether the row of its last token is at hand
        self._prompt: list[int] = []
        self._reply: list[int] = []  # canonical tokens of the reply
        self._ends: list[int] = []  # where each of them ends in the reply, bytes
        self._checkpoints: deque[tuple[int, NDArray[np.uint8]]] | None = (
            deque(maxlen=_CHECKPOINTS) if self.model.remembers_by_state else None
        )

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
        return len(self._kv)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the KV cache."""
        return tuple(self._kv)

    @property
    def row(self) -> Row:
        """Logits of the next token: a view, valid until the member moves on."""
        return self.context.row()

    # -- tokenizing ---------------------------------------------------------------------------

    def _find_guard(self) -> list[int] | None:
        """Tokens of the guard where the vocabulary puts a space before every text, else None."""
        letter = self.model.tokenize(b"a")
        return None if self.vocab.join(letter) == b"a" else self.model.tokenize(_GUARD)

    def tokenize(self, text: bytes) -> list[int]:
        """Canonical tokens of valid UTF-8 text as the continuation of earlier text."""
        if self._guard is None:
            return self.model.tokenize(text)
        tokens = self.model.tokenize(_GUARD + text)
        return tokens[len(self._guard) :]

    def tokenize_prompt(self, text: str | bytes) -> list[int]:
        """Tokens of a prompt, begun as the model wants it; special tokens are recognised.

        Raises
        ------
        PromptError
            The prompt is empty or not valid UTF-8.
        """
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        if not raw:
            raise PromptError("the prompt is empty; give at least one character")
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PromptError(
                f"the prompt is not valid UTF-8: byte 0x{raw[error.start]:02x} at position "
                f"{error.start}; decode the file with its own encoding first"
            ) from None
        tokens = self.model.tokenize(raw, parse_special=True)
        bos = self.model.bos
        if self.model.add_bos and bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
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

    def reset(self) -> None:
        """Forget everything: the next prompt is decoded from its first token."""
        self._forget()

    def _canonical(self, reply: bytes) -> list[int]:
        """Canonical tokens of the reply, tokenising only its tail where that is provably enough."""
        first = max(0, len(self._reply) - _TAIL)
        while first and _is_inside(reply, self._ends[first - 1]):
            first -= 1
        start = self._ends[first - 1] if first else 0
        tail = self.tokenize(reply[start:])
        if first and tail[:_CHECK] != self._reply[first : first + _CHECK]:
            self.stats.full_tokenisations += 1
            first, start, tail = 0, 0, self.tokenize(reply)
        ends = list(accumulate(self.vocab._core.lengths(tail), initial=start))[1:]
        if ends and ends[-1] != len(reply):
            # The tokenizer changed the text (SentencePiece takes U+2581 for a space): offsets are
            # meaningless, so the next step starts from the whole reply again.
            self._reply, self._ends = [], []
            return self.tokenize(reply)
        self._reply[first:] = tail
        self._ends[first:] = ends
        return self._reply

    # -- moving on ----------------------------------------------------------------------------

    def require_room(self, prompt: Sequence[int]) -> None:
        """Refuse a prompt that leaves no room for an answer.

        Raises
        ------
        ContextLengthError
        """
        if len(prompt) >= self.n_ctx:
            raise ContextLengthError(member=self.name, n_tokens=len(prompt), n_ctx=self.n_ctx)

    def begin(self, prompt: Sequence[int]) -> None:
        """Start a new answer: bring the cache to the prompt, reusing what it already holds.

        Parameters
        ----------
        prompt : sequence of int
            From `tokenize_prompt`.

        Raises
        ------
        ContextLengthError
            The prompt leaves no room for an answer.
        DecodeError
        """
        self.require_room(prompt)
        self._prompt = list(prompt)
        self._reply, self._ends = [], []
        self.stalled = False
        self.stats.reused_tokens += self._move(self._prompt)
        self.boundary = 1.0  # the prompt ends where its author ended it

    def advance(self, reply: bytes, pending: Sequence[bytes] = ()) -> bool:
        """Bring the cache to the canonical tokens of the reply.

        Parameters
        ----------
        reply : bytes
            The whole reply, up to a character boundary.
        pending : sequence of bytes
            Units of the reply behind that boundary which do not yet complete a character.  No
            tokenizer can be asked about them: they are followed by their twins, or the member
            stalls until the character is complete.

        Returns
        -------
        bool
            False, and nothing has changed, if the context is full.

        Raises
        ------
        DecodeError
        """
        started = time.perf_counter()
        twins = [self.vocab.lookup(unit) for unit in pending]
        known = [twin for twin in twins if twin is not None]
        stalled = len(known) < len(twins)
        target = self._prompt + self._canonical(reply) + ([] if stalled else known)
        self.stats.sync_s += time.perf_counter() - started
        if len(target) > self.n_ctx:
            return False
        self.stalled = stalled
        if not (stalled and target == self._kv):
            self._move(target)
        return True

    def append(self, token: int) -> bool:
        """Follow by a given token, whatever is canonical: for members of one vocabulary.

        Returns
        -------
        bool
            False, and nothing has changed, if the context is full.
        """
        if len(self._kv) == self.n_ctx:
            return False
        self._decode([token], len(self._kv), outputs=1)
        return True

    def extend(self, tokens: list[int]) -> list[Row]:
        """Decode tokens behind those in the cache, in one batch of at most `n_batch`.

        Returns
        -------
        list of Row
            One for each: views, valid until the member moves on.
        """
        self._decode(tokens, len(self._kv), outputs=len(tokens))
        return [self.context.row(back) for back in range(len(tokens), 0, -1)]

    def _move(self, target: list[int]) -> int:
        """Make the cache hold exactly `target`; returns how many tokens could stay."""
        started = time.perf_counter()
        kept = common = _common_prefix(self._kv, target)
        if kept == len(target) == len(self._kv) and self._has_row:
            return kept
        self._keep_row()
        kept = min(kept, len(target) - 1)  # the last token gives the row
        if kept < len(self._kv):
            self._count_rollback(len(self._kv) - common)
            if len(self._prompt) <= kept == len(target) - 1 and self._row_after(kept) is None:
                kept = max(0, kept - 1)  # the boundary needs the row before the last token
            kept = self._roll_back(kept)
        new = target[kept:]
        before = self._row_after(kept) if len(new) == 1 else None
        if before is not None:
            self.boundary = self._boundary(before, new[0])
        self.stats.sync_s += time.perf_counter() - started
        self._decode(new, kept, outputs=min(2, len(new)))
        if before is None:
            self.boundary = self._boundary(self.context.row(2), new[-1]) if len(new) > 1 else 1.0
        return kept

    def decode_branches(
        self, tokens: Sequence[int], positions: Sequence[int], branches: Sequence[int]
    ) -> None:
        """Decode one token for each of several branches; rows as in `LlamaContext`.

        Raises
        ------
        DecodeError
        """
        began = time.perf_counter()
        code = self.context.decode_branches(tokens, positions, branches)
        self._has_row = False
        if code != 0:
            self._forget()
            raise self._failed(len(tokens), max(positions), code)
        self.stats.decoded_tokens += len(tokens)
        self.stats.decode_s += time.perf_counter() - began

    def _failed(self, n: int, start: int, code: int) -> DecodeError:
        return DecodeError(
            f"member '{self.name}' failed to decode {n} tokens at position {start} "
            f"(llama_decode returned {code}: {last_log()})",
            member=self.name,
            code=code,
        )

    def _boundary(self, row: Row, token: int) -> float:
        return _core.boundary_probability(self.vocab._core, row, token)

    def _keep_row(self) -> None:
        """Copy the present row, which the next decode overwrites."""
        if self._has_row:
            slot = len(self._kv) % _ROWS
            np.copyto(self._rows[slot], self.row)
            self._rows_at[slot] = len(self._kv)

    def _row_after(self, n_tokens: int) -> Row | None:
        """The row after the first `n_tokens` of the cache, if it was kept."""
        slot = n_tokens % _ROWS
        return self._rows[slot] if self._rows_at[slot] == n_tokens else None

    def _decode(self, tokens: list[int], start: int, *, outputs: int) -> None:
        began = time.perf_counter()
        self._has_row = False
        try:
            code = self.context.decode(tokens, start, outputs=outputs)
        except BaseException:  # Ctrl-C: nobody knows what the cache holds now
            self._forget()
            raise
        if code != 0:
            self._forget()
            raise self._failed(len(tokens), start, code)
        self._kv[start:] = tokens
        self._has_row = True
        if self._checkpoints is not None:
            self._checkpoints.append((len(self._kv), self.context.save()))
        self.stats.decoded_tokens += len(tokens)
        self.stats.decode_s += time.perf_counter() - began

    def _roll_back(self, n_keep: int) -> int:
        """Forget tokens from `n_keep` on, or a few more; returns how many are left."""
        if self._checkpoints is not None:
            n_keep = self._restore(n_keep)
        elif not self.context.cut(n_keep):
            self._forget()
            n_keep = 0
        del self._kv[n_keep:]
        self._has_row = False
        self._rows_at = [n if n <= n_keep else -1 for n in self._rows_at]
        return n_keep

    def _count_rollback(self, dropped: int) -> None:
        if self._reply and dropped:  # not a new prompt
            self.stats.rollbacks += 1
            self.stats.rolled_back_tokens += dropped
            self.stats.deepest_rollback = max(self.stats.deepest_rollback, dropped)

    def _restore(self, n_keep: int) -> int:
        """Roll a recurrent memory back to the last checkpoint at or before `n_keep`."""
        assert self._checkpoints is not None
        while self._checkpoints and self._checkpoints[-1][0] > n_keep:
            self._checkpoints.pop()
        if self._checkpoints:
            n_tokens, state = self._checkpoints[-1]
            if self.context.restore(state) and self.context.cut(n_tokens):
                return n_tokens
        self._forget()
        return 0

    def _forget(self) -> None:
        self.context.clear()
        self._kv.clear()
        self._rows_at = [-1] * _ROWS
        self._has_row = False
        if self._checkpoints is not None:
            self._checkpoints.clear()


def _is_inside(text: bytes, at: int) -> bool:
    """Whether a character or a number goes on at this position.

    A tail that began there would be tokenised as garbage, or with its digits in other groups of
    three than the whole; the latter shows only behind the digits, where no check looks.
    """
    if text[at] & 0xC0 == 0x80:
        return True
    before = text[max(0, at - 4) : at].decode(errors="ignore")[-1:]
    return before.isnumeric() and text[at : at + 4].decode(errors="ignore")[:1].isnumeric()


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    if list(a[:n]) == list(b[:n]):  # one comparison in C for the common case
        return n
    return next(i for i in range(n) if a[i] != b[i])

"""A member's exact belief in the next byte, kept up as the text grows.

The native `ByteBeam` says which tokenisations of the text matter and which of them need a forward
pass; here they get it.  Sequence 0 of the member's context, the *trunk*, holds the canonical tokens
of the text that was given; paths that leave it, and all paths behind it, are branches that share
its cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitfuse import _core
from logitfuse.config import PRUNE, WIDTH
from logitfuse.errors import ConfigError, ContextLengthError, DecodeError
from logitfuse.llama import NO_ROOM, Row
from logitfuse.member import Member
from logitfuse.readers import Allowed, untwinned

#: Tokens at the end of a prompt that may be read in another way than they are written: "token
#: healing", for prompts that end inside a word or with a space.
_HEAL = 6
#: How much is pruned where a byte is reconsidered.
_CAREFUL = 1e-3
#: Trunk tokens decoded at a time: 32 rows of 262,144 logits are 32 MiB.
_CHUNK = 32


@dataclass
class _Path:
    """Where the tokens of a hypothesis are."""

    branch: int  # 0: the trunk, of which it holds the first `n_tokens`
    n_tokens: int
    token: int = -1  # the last one, of a branch
    behind: _Path | None = None  # what a branch goes on from

    def tokens(self, trunk: list[int]) -> list[int]:
        """All of them, from the beginning of the trunk."""
        own: list[int] = []
        path = self
        while path.behind is not None:
            own.append(path.token)
            path = path.behind
        return trunk[: path.n_tokens] + own[::-1]


class Beam:
    """The tokenisations of a text that one member finds likely.

    Parameters
    ----------
    member : Member
        With at least ``2 * width`` branches.
    prune : float
        Share of the probability of the text, 0..1, below which a tokenisation is not followed.
    width : int
        Most tokenisations at a time.

    Raises
    ------
    FusionError
        A parameter is out of range.
    ConfigError
        The member has too few branches.
    """

    def __init__(self, member: Member, *, prune: float = PRUNE, width: int = WIDTH) -> None:
        self.member = member
        self.core = _core.ByteBeam(member.vocab.trie, prune=prune, width=width)
        if member.context.n_branches < 2 * width:
            raise ConfigError(
                f"a beam of {width} needs members with {2 * width} branches; '{member.name}' has "
                f"{member.context.n_branches}",
                key="width",
            )
        self._prune = prune
        self._prompt: list[int] = []
        self._free: list[int] = []
        self._paths: dict[int, _Path] = {}
        self._plan: list[int] = []  # the trunk's tokens, decoded or not
        self._known: list[int] = []  # the canonical tokens of the text, as far as it is known
        self._canonical = -1  # the hypothesis that follows them
        self._rows: dict[int, Row] = {}  # copies, by how many trunk tokens they have seen
        self._allowed: Allowed | None = None
        self._reply = b""  # as far as the paths have come, if something is not allowed

    @property
    def silent(self) -> bool:
        """The member cannot spell the text."""
        return self.core.dead

    def open(
        self,
        prompt: Sequence[int],
        *,
        heal: bool,
        ahead: bytes = b"",
        allowed: Allowed | None = None,
    ) -> None:
        """Read a prompt."""
        member = self.member
        self._prompt = list(prompt)
        self._allowed = allowed
        heal = heal and allowed is None  # what is allowed is known from the reply's beginning on
        start = self._heal_from(self._prompt) if heal else len(prompt)
        rest = member.vocab.join(self._prompt[start:])
        following = member.tokenize(rest + ahead) if ahead else self._prompt[start:]
        if member.vocab.join(following) != rest + ahead:
            following = self._prompt[start:]
        tokens = self._prompt[:start] + following
        if not self._has_room(len(tokens)):
            raise ContextLengthError(member=member.name, n_tokens=len(tokens), n_ctx=member.n_ctx)
        self.begin(tokens, start=start)
        if self.push(rest) < len(rest):  # its end has no other tokenisation
            self.begin(self._prompt, start=len(prompt))
        self.take_kept()

    def take_kept(self) -> float:
        """See `Reader`."""
        return self.core.take_kept()

    def follow(self, unit: bytes, reply: bytes, pending: Sequence[bytes], *, wake: bool) -> bool:
        """Follow a unit; where no path can, read the text anew once its last character is whole."""
        if unit and not self._has_room(self.n_tokens):
            return False
        try:
            return self._follow(unit, reply, pending, wake=wake)
        except DecodeError as error:
            if error.code != NO_ROOM:  # long paths share few cells
                raise
            self._paths.clear()  # the member holds nothing any more
            return False

    def _follow(self, unit: bytes, reply: bytes, pending: Sequence[bytes], *, wake: bool) -> bool:
        if self.push(unit) == len(unit):
            if wake:
                self.core.wake()
                self._decode_wanted()
        elif not pending:
            tokens = self._prompt + self.member.tokenize(reply)
            if not self._has_room(len(tokens)):
                return False
            # Some tokenizers drop what they cannot spell.
            whole = self.member.vocab.join(tokens[len(self._prompt) :]) == reply
            start = None if whole or self._allowed is None else len(tokens)
            rest = self.begin(tokens, start=start, reply=reply)
            if self.push(rest) < len(rest):  # its end has no other tokenisation
                self.begin(tokens, start=len(tokens), reply=reply)
        return True

    def _has_room(self, n_tokens: int) -> bool:
        """Whether every path can go on from so many tokens."""
        return n_tokens + self.member.context.n_branches < self.member.n_ctx

    def reconsider(self, tokens: Sequence[int], start: int, text: bytes) -> NDArray[np.float32]:
        """Read the end of a text again, and prune next to nothing.

        Parameters
        ----------
        tokens, start
            As for `begin`.
        text : bytes
            The text behind the first `start` tokens.

        Returns
        -------
        float32 array, shape ``[257]``
            The log-probabilities of the next byte, nats.
        """
        prune = self._prune
        self.begin(tokens, start=start)
        self.core.set_prune(min(prune, _CAREFUL))
        try:
            out = np.full(_core.BYTE_OUTCOMES, -np.inf, np.float32)
            if self.push(text) == len(text):
                self.core.next(out)
            return out
        finally:
            self.core.set_prune(prune)

    def settle(self) -> None:
        """Let the trunk hold the likeliest tokenisation: a later prompt may begin with it."""
        path = self._paths.get(self.core.best)
        if path is not None and path.branch:
            self.member.settle(path.branch, path.tokens(self._plan))

    @property
    def n_tokens(self) -> int:
        """Tokens of the longest path."""
        return max((path.n_tokens for path in self._paths.values()), default=0)

    def begin(
        self, tokens: Sequence[int], *, start: int | None = None, reply: bytes = b""
    ) -> bytes:
        """Read a text anew.

        Parameters
        ----------
        tokens : sequence of int
            Its canonical tokens, at least one.
        start : int, optional
            Take this many tokens as they are; the bytes of the others are only bytes, and have to
            be pushed.  By default all but the last few, as far as they are plain text.
        reply : bytes
            What they spell of the reply.

        Returns
        -------
        bytes
            What has to be pushed.

        Raises
        ------
        ContextLengthError, DecodeError
        """
        member, plan = self.member, list(tokens)
        member.require_room(plan)
        self._known = untwinned(member, plan)
        by_state = member.model.remembers_by_state
        if start is None:
            start = self._heal_from(plan)
        rest = member.vocab.join(plan[start:])
        self._reply = reply[: len(reply) - len(rest)]
        if by_state:
            del plan[start:]  # a state is forked where it is, so the trunk must not run ahead
        self._free = list(range(member.context.n_branches, 0, -1))
        self._paths.clear()
        self._rows.clear()
        self._plan = plan
        member.begin(plan[:start])
        root = self.core.begin()
        self.core.take_dropped()
        self._paths[root] = _Path(0, start)
        self._give(root, member.row)
        self._expect(root)
        return rest

    def _expect(self, canonical: int) -> None:
        """Follow the tokens that the text is known to have, however improbable they are."""
        self._canonical = canonical
        following = self._known[self._paths[canonical].n_tokens :]
        self.core.expect(canonical, following[0] if following else -1)

    def _heal_from(self, tokens: Sequence[int]) -> int:
        start = len(tokens)
        if self.member.model.remembers_by_state:  # a state is forked where it is
            return start
        first = 1 if self._allowed is None else len(self._prompt)
        first = max(first, len(tokens) - _HEAL)
        while start > first and self.member.vocab.is_text(tokens[start - 1]):
            start -= 1
        return start

    def _give(self, hypothesis: int, row: Row) -> None:
        """Give a path that ends here its row."""
        allowed = None if self._allowed is None else self._allowed(self._reply)
        self.core.row(hypothesis, row, allowed)

    def push(self, text: bytes, out: NDArray[np.float32] | None = None) -> int:
        """The text goes on.

        Parameters
        ----------
        text : bytes
        out : float32 array, shape ``[len(text), 257]``, optional
            Filled with the log-probabilities of the byte (and the end) at each place, nats.  That
            of the byte that came is less by what was pruned there: all that is lost is counted.

        Returns
        -------
        int
            How many bytes were taken: all, or those before the one that no path can spell; then
            the beam is of no use until `begin`.

        Raises
        ------
        DecodeError
        """
        at = 0
        while at < len(text) and not self.core.dead:
            before = at
            if out is None:
                at += self.core.push(text[at:])
            else:
                self.core.next(out[at])
                self.core.take_kept()
                if self.core.push(text[at : at + 1]):
                    out[at, text[at]] += math.log(self.core.take_kept())
                    at += 1
            if self._allowed is not None:
                self._reply += text[before:at]
            self._decode_wanted()
        return max(0, at - 1) if self.core.dead else at

    def _decode_wanted(self) -> None:
        """Give the paths that end here their rows, and free those that were given up."""
        context = self.member.context
        ids: list[int] = []
        for wanted, parent, token in self.core.wanted:
            path = self._paths[parent]
            if path.branch == 0 and self._plan[path.n_tokens : path.n_tokens + 1] == [token]:
                self._paths[wanted] = _Path(0, path.n_tokens + 1)
                self._give(wanted, self._trunk_row(path.n_tokens + 1))
                if parent == self._canonical:
                    self._expect(wanted)
                continue
            branch = self._free.pop()
            context.fork(path.branch, branch, path.n_tokens if path.branch == 0 else -1)
            self._paths[wanted] = _Path(branch, path.n_tokens + 1, token, path)
            ids.append(wanted)
            if parent == self._canonical and self._known[path.n_tokens :][:1] == [token]:
                self._expect(wanted)
        if ids:
            self._decode_branches(ids, {w: token for w, _, token in self.core.wanted})
        for dropped in self.core.take_dropped():
            path = self._paths.pop(dropped)
            if path.branch:
                context.drop(path.branch)
                self._free.append(path.branch)

    def _trunk_row(self, n_tokens: int) -> Row:
        """The row behind the first tokens of the trunk, which is decoded a chunk at a time."""
        if n_tokens not in self._rows:
            done = self.member.n_tokens
            chunk = self._plan[done : done + min(_CHUNK, self.member.context.n_batch)]
            self._rows = {n: row for n, row in self._rows.items() if n > n_tokens - _CHUNK}
            for k, row in enumerate(self.member.extend(chunk)):
                self._rows[done + k + 1] = row.copy()
        return self._rows.pop(n_tokens)

    def _decode_branches(self, ids: list[int], tokens: dict[int, int]) -> None:
        member = self.member
        paths = [self._paths[i] for i in ids]
        rows = member.decode_branches(
            [tokens[i] for i in ids],
            [path.n_tokens - 1 for path in paths],
            [path.branch for path in paths],
        )
        for i, row in zip(ids, rows, strict=True):
            self._give(i, row)
        member.context.rest()  # the core has read them: they need not be copied for others' batches

"""Slots: places for one request at a time, which remember what they have read.

Every slot has a context of its own in every member's decoder.  When its request ends, the tokens
stay; a later prompt that begins with them goes on from there, or borrows its beginning from another
slot, whose cells it then shares.  What was used least recently is overwritten, so the memory is
that of ``slots * n_ctx`` tokens, and a few for the paths of their ends, and no more.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from logitfuse.assembly import assemble
from logitfuse.batching.conductor import Conductor
from logitfuse.cache import MemberStats, common_prefix
from logitfuse.config import FuseConfig, MemberConfig, locate
from logitfuse.llama import LlamaContext, LlamaDecoder
from logitfuse.member import Member, cores, open_model
from logitfuse.strategies.engine import Engine
from logitfuse.vocab import Vocab

#: llama.cpp rounds contexts up to multiples of so many tokens.
_GRAIN = 256
#: Cells of each branch besides: where paths of a text part, each has tokens of its own.
_PARTED = 8
#: Engines that a slot keeps: one for each ensemble, and for overrides that are asked for again.
_ENGINES = 8


class Seat(NamedTuple):
    """A member of an ensemble; ensembles that have it in common share its model.

    Attributes
    ----------
    entry : MemberConfig
        Its weight means nothing.
    twins : int
        How many members before it are described alike; each has a model of its own.
    """

    entry: MemberConfig
    twins: int


@dataclass(frozen=True, eq=False)
class SharedModel:
    """A model that all slots share.

    Attributes
    ----------
    seat : Seat
        Whom it serves.
    name : str
    vocab : Vocab
    decoder : LlamaDecoder
    n_ctx : int
        Most tokens of one text.
    """

    seat: Seat
    name: str
    vocab: Vocab
    decoder: LlamaDecoder
    n_ctx: int


def load(configs: Sequence[FuseConfig], slots: int, sequences: int) -> list[SharedModel]:
    """Load every member of some ensembles once.

    Parameters
    ----------
    configs : sequence of FuseConfig
    slots : int
        Texts that a decoder has cells for.
    sequences : int
        Of each text.

    Raises
    ------
    ModelError, UnsupportedTokenizerError
    """
    wanted = list(dict.fromkeys(seat for config in configs for seat in seats(config)))
    models: list[SharedModel] = []
    try:
        for seat in wanted:
            entry = seat.entry
            options = entry.model_dump(include={"n_gpu_layers", "main_gpu", "use_mmap", "repack"})
            model, vocab = open_model(locate(entry), **options)
            n_ctx = -(-model.default_n_ctx(entry.n_ctx) // _GRAIN) * _GRAIN
            decoder = LlamaDecoder(
                model,
                n_cells=slots * (n_ctx + _PARTED * (sequences - 1)),
                n_sequences=slots * sequences,
                n_batch=entry.n_batch,
                n_threads=entry.n_threads or max(1, cores() // len(wanted)),
                flash_attn=entry.flash_attn,
            )
            name = entry.name or model.path.stem
            models.append(SharedModel(seat, name, vocab, decoder, n_ctx))
    except BaseException:
        unload(models)
        raise
    return models


def unload(models: Sequence[SharedModel]) -> None:
    """Free models; no slot may be used afterwards."""
    for model in models:
        model.decoder.close()
        model.decoder.model.close()


def seats(config: FuseConfig) -> list[Seat]:
    """The seats of an ensemble's members."""
    entries = [entry.model_copy(update={"weight": 1.0}) for entry in config.member]
    return [Seat(entry, entries[:k].count(entry)) for k, entry in enumerate(entries)]


class Slot:
    """A place for one request at a time.

    Parameters
    ----------
    models : sequence of SharedModel
    number : int
    n_branches : int
        See `LlamaContext`.
    conductor : Conductor
        Runs its decodes.
    """

    def __init__(
        self,
        models: Sequence[SharedModel],
        number: int,
        n_branches: int,
        conductor: Conductor,
    ) -> None:
        self._models = models
        self._conductor = conductor
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()
        self.busy = False
        self.used = 0  #: when it was last taken; 0: never
        self.members = [
            Member.of(
                LlamaContext.share(
                    model.decoder,
                    trunk=number * (1 + n_branches),
                    n_ctx=model.n_ctx,
                    n_branches=n_branches,
                    decode=partial(conductor.decode, model.decoder),
                    slice_size=partial(conductor.slice_size, model.decoder),
                ),
                model.vocab,
                model.name,
            )
            for model in models
        ]

    def engine(self, config: FuseConfig) -> Engine:
        """The slot's members, joined as a configuration says; for any thread.

        Raises
        ------
        ConfigError, FusionError
            See `assemble`.
        """
        key = config.model_dump_json(exclude={"sampling"})
        with self._lock:
            engine = self._engines.pop(key, None)
            if engine is None:
                known = [model.seat for model in self._models]
                engine = assemble(config, [self.members[known.index(s)] for s in seats(config)])
                engine.join = self._conductor.join
            self._engines[key] = engine  # the last one used is the last one
            if len(self._engines) > _ENGINES:
                del self._engines[next(iter(self._engines))]
        return engine


class Slots:
    """All slots, and who has them.

    Parameters
    ----------
    slots : sequence of Slot
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self._clock = itertools.count(1)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def free(self) -> int:
        """How many can be taken."""
        return sum(not slot.busy for slot in self._slots)

    def take(self, engine: Engine, prompts: Mapping[int, Sequence[int]]) -> Slot:
        """The free slot that suits a prompt best; its members hold what can be had of it.

        A slot that mostly holds the beginning of the prompt goes on from there, as a chat does;
        else the one that was used least recently begins anew.

        Parameters
        ----------
        engine : Engine
            Any slot's, of the ensemble that is asked.
        prompts : mapping of int to sequence of int
            The tokens of each member that runs.
        """
        models = [member.model for member in self._slots[0].members]
        wanted = {models.index(engine.members[i].model): tokens for i, tokens in prompts.items()}

        def common(slot: Slot) -> int:
            return sum(common_prefix(slot.members[i].tokens, t) for i, t in wanted.items())

        free = [slot for slot in self._slots if not slot.busy]
        slot = max(free, key=lambda slot: (common(slot), slot.used))
        held = sum(slot.members[i].n_tokens for i in wanted)
        if 2 * common(slot) <= held:
            slot = min(free, key=lambda slot: slot.used)
        for i, tokens in wanted.items():
            self._lend(slot, i, tokens)
        slot.busy, slot.used = True, next(self._clock)
        for member in slot.members:
            member.stats = MemberStats()
        return slot

    def _lend(self, slot: Slot, i: int, tokens: Sequence[int]) -> None:
        """Let a member hold the beginning of a prompt that any slot has read."""
        member = slot.members[i]
        if member.model.remembers_by_state:
            return  # a state cannot be had of an earlier place
        lender = max(self._slots, key=lambda s: common_prefix(s.members[i].tokens, tokens))
        n = common_prefix(lender.members[i].tokens, tokens)
        if n > common_prefix(member.tokens, tokens):
            member.borrow(lender.members[i], n)

    def release(self, slot: Slot) -> None:
        """Its request has ended."""
        for member in slot.members:
            member.rest()
        slot.busy = False

    def make_room(self, decoder: LlamaDecoder) -> bool:
        """Let the free slot that was used least recently forget what it holds in a decoder."""
        for slot in sorted(self._slots, key=lambda slot: slot.used):
            for member in slot.members:
                if member.context.decoder is decoder and member.n_tokens and not slot.busy:
                    member.reset()
                    return True
        return False

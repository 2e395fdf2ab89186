"""What an answer has left in the members' caches is not read again by the next prompt."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from lockstep import PROMPT, Load, request
from logitfuse.cache import common_prefix
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Chunk
from logitfuse.strategies.bytes import Bytes
from logitfuse.strategies.engine import Engine
from logitfuse.strategies.fuse import Fuse

#: Tokens at the end of a prompt that `bytes` reads again, to read them in other ways.
HEALED = 6
TALKATIVE = SamplingParams(seed=3)


def read(engine: Engine) -> list[int]:
    """Tokens that each member had decoded for its prompts so far."""
    return [member.stats.decoded_tokens for member in engine.members]


def first(engine: Engine, prompt: str) -> Chunk:
    """The first chunk of an answer."""
    with closing(engine.stream(request(prompt=prompt, max_tokens=1))) as chunks:
        return next(chunks)


def _useful(member: Member, tokens: list[int]) -> int:
    """How many tokens need not be read again."""
    n = common_prefix(member.tokens, tokens)
    if member.model.remembers_by_state and n < member.n_tokens:
        return 0  # a state cannot go back
    assert n >= 12  # random models spell text as they like, but for the prompt's beginning
    return n


@pytest.mark.parametrize("strategy", [Fuse, Bytes])
@pytest.mark.parametrize("names", [("gpt2", "smol"), ("gemma3", "llama-spm"), ("mamba", "lfm2")])
@pytest.mark.parametrize("stopped", [False, True])
def test_the_next_turn_reads_only_what_is_new(
    load: Load,
    load_branching: Load,
    strategy: type[Engine],
    names: Sequence[str],
    stopped: bool,
) -> None:
    loaded = load_branching if strategy is Bytes else load
    engine = strategy([loaded(name, 7) for name in names])
    fresh = strategy([loaded(name, 8) for name in names])
    prompt, said = PROMPT * 4, ""
    with closing(engine.stream(request(TALKATIVE, prompt=prompt, ignore_end=True))) as chunks:
        for n, chunk in enumerate(chunks, 1):
            said += chunk.text
            if stopped and n == 20:
                break
    longer = prompt + said + " and so on, and so forth"
    for member in fresh.members:
        member.reset()
    common = [_useful(member, member.tokenize_prompt(longer)) for member in engine.members]
    before = read(engine), read(fresh)
    found, expected = first(engine, longer), first(fresh, longer)
    for i, n in enumerate(common):
        cost, whole = (read(e)[i] - b[i] for e, b in zip((engine, fresh), before, strict=True))
        assert cost <= whole - n + HEALED
    assert found.steps[0].logprob == pytest.approx(expected.steps[0].logprob, abs=0.05)
    assert found.steps[0].unit == expected.steps[0].unit


def test_a_real_model_spells_its_reply_as_it_reads_it(smollm2_path: Path) -> None:
    member = Member(smollm2_path, n_ctx=512, n_threads=1, n_branches=16)
    engine = Bytes([member])
    prompt = "The history of the harbour begins with the arrival of the first settlers"
    chunks = list(engine.stream(request(prompt=prompt, max_tokens=24)))
    longer = prompt + "".join(chunk.text for chunk in chunks)
    tokens = member.tokenize_prompt(longer)
    assert len(tokens) > 30
    assert common_prefix(member.tokens, tokens) >= len(tokens) - 2
    member.close()

"""What keeping members on their canonical tokens costs, by script: ``python bench/sync.py``.

First the demo models say 200 sampled tokens for each seed; then, without models, every installed
vocabulary follows each text as every other one spells it, token by token.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import permutations
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import models
from logitfuse.cache import MemberStats
from logitfuse.canonical import CanonicalReply
from logitfuse.cli.bench import machine
from logitfuse.errors import UnsupportedTokenizerError
from logitfuse.llama import LlamaModel
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Request
from logitfuse.strategies.fuse import Fuse
from logitfuse.text import ReplyText
from logitfuse.vocab import Vocab
from script_texts import PROMPTS, TEXTS

SEEDS = (1, 2, 3)
TEMPERATURE = 0.8

# -- said by models ------------------------------------------------------------------------------


@dataclass
class Said:
    """What some answers in one script took.

    Attributes
    ----------
    script : str
    steps, fused : int
        All, and those that only the pool could decide.
    votes : list of int
        For every member.
    members : list of MemberStats
    sync, answering : float
        Seconds behind the prompt: waiting for the members besides `llama_decode`; all.
    """

    script: str
    members: list[MemberStats]
    votes: list[int]
    steps: int = 0
    fused: int = 0
    sync: float = 0.0
    answering: float = 0.0


def say(fuse: Fuse, script: str, n_tokens: int, seeds: Sequence[int]) -> Said:
    """Answers with these seeds; at the end of each the members hold canonical tokens."""
    prompt = PROMPTS[script]
    found = Said(script, [MemberStats() for _ in fuse.members], [0] * len(fuse.members))
    for member, stats in zip(fuse.members, found.members, strict=True):
        member.stats = stats
    for seed in seeds:
        sampling = SamplingParams(temperature=TEMPERATURE, seed=seed)
        for _ in fuse.stream(Request(prompt, sampling, max_tokens=n_tokens, ignore_end=True)):
            pass
        for member in fuse.members:
            _check_canonical(member, prompt)
        stats = fuse.stats
        found.steps += stats.steps
        found.fused += stats.decisions["fused"]
        found.votes = [a + b for a, b in zip(found.votes, stats.votes, strict=True)]
        found.sync += stats.sync_s
        found.answering += stats.total_s - stats.prefill_s
    return found


def _check_canonical(member: Member, prompt: str) -> None:
    """The tokens behind the prompt are those of the text they spell, if it is text."""
    n = len(member.tokenize_prompt(prompt))
    tokens = list(member.tokens[n:])
    text = member.vocab.join(tokens)
    try:
        text.decode()
    except UnicodeDecodeError:  # in the middle of a character
        return
    assert tokens == member.tokenize(text)


# -- followed without models ---------------------------------------------------------------------


@dataclass
class Followed:
    """How one vocabulary followed a text that another one spelled.

    Attributes
    ----------
    script, writer, follower : str
    stats : MemberStats
        As of a member that has a model; `decoded_tokens` is what it would have had to decode.
    steps : int
        Tokens of the writer.
    stalled : int
        Steps in which the follower cannot spell an unfinished character.
    """

    script: str
    writer: str
    follower: str
    stats: MemberStats = field(default_factory=MemberStats)
    steps: int = 0
    stalled: int = 0


@dataclass
class Tokenizer:
    """A vocabulary without a model, as a member uses it."""

    name: str
    model: LlamaModel
    vocab: Vocab = field(init=False)
    reply: CanonicalReply = field(init=False)

    def __post_init__(self) -> None:
        self.vocab = Vocab.from_llama(self.model)
        self.reply = CanonicalReply(self.model, self.vocab)

    def units(self, text: bytes) -> list[bytes] | None:
        """The text as its canonical tokens spell it; None if they spell another text."""
        units = [self.vocab.token_bytes(token) for token in self.reply.tokenize(text)]
        return units if b"".join(units) == text else None


def tokenizers() -> list[Tokenizer]:
    """All installed vocabularies that spell text, and those of the demo models."""
    paths = {p.stem.removeprefix("ggml-vocab-"): p for p in sorted(models.vocab_dir().iterdir())}
    paths |= {"smollm2": models.smollm2(), "gemma3": models.gemma3()}
    found = []
    for name, path in paths.items():
        try:
            found.append(Tokenizer(name, LlamaModel(path, vocab_only=True)))
        except UnsupportedTokenizerError:
            continue
    return found


def follow(follower: Tokenizer, writer: str, script: str, units: Sequence[bytes]) -> Followed:
    """Follow a text unit by unit, as `Member.advance` does."""
    found = Followed(script, writer, follower.name)
    canonical, vocab, text, stats = follower.reply, follower.vocab, ReplyText(), found.stats
    canonical.clear()
    misses, held = canonical.misses, list[int]()
    for unit in units:
        text.append(unit)
        complete, pending = text.complete, [vocab.lookup(u) for u in text.units]
        started = time.perf_counter()
        target = canonical.follow(complete)
        stats.sync_s += time.perf_counter() - started
        found.steps += 1
        assert found.steps % 32 or target == canonical.tokenize(complete)
        if None in pending:
            found.stalled += 1
        else:
            target += [token for token in pending if token is not None]
        kept = _common(held, target)
        dropped = len(held) - kept
        stats.rolled_back_tokens += dropped
        stats.rollbacks += dropped > 0
        stats.deepest_rollback = max(stats.deepest_rollback, dropped)
        stats.decoded_tokens += len(target) - kept
        held = target
    assert held == canonical.tokenize(b"".join(units))
    stats.full_tokenisations = canonical.misses - misses
    return found


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def follow_all(known: Sequence[Tokenizer], script: str) -> list[Followed]:
    """Every ordered pair of vocabularies that spell the text, differently."""
    text = TEXTS[script].encode()
    spelled = {tokenizer.name: tokenizer.units(text) for tokenizer in known}
    return [
        follow(follower, writer.name, script, units)
        for writer, follower in permutations(known, 2)
        if (units := spelled[writer.name]) and spelled[follower.name] not in (None, units)
    ]


# -- printing ------------------------------------------------------------------------------------


def print_said(runs: Sequence[Said], names: Sequence[str]) -> None:
    """One line for each script."""
    heads = " | ".join(
        f"{name}: voted | rolled back per 1,000 steps (deepest) | whole text again"
        for name in names
    )
    print(f"| script | steps | fused | {heads} | sync, share of time |")
    print(f"|---|--:|--:|{'--:|--:|--:|' * len(names)}--:|")
    for run in runs:
        cells = [
            f"{votes / run.steps:.0%} | {1000 * m.rolled_back_tokens / run.steps:.0f} "
            f"({m.deepest_rollback}) | {m.full_tokenisations}"
            for votes, m in zip(run.votes, run.members, strict=True)
        ]
        print(
            f"| {run.script} | {run.steps:,} | {run.fused / run.steps:.0%} | {' | '.join(cells)} "
            f"| {run.sync / run.answering:.1%} |"
        )


def print_followed(runs: Sequence[Followed]) -> None:
    """One line for each script: all pairs together, and the worst."""
    print(
        "| script | vocabularies | pairs | steps | steps with a rollback | rolled back per 1,000 "
        "steps | deepest | worst pair, per 1,000 | stalled | whole text again, per 1,000 "
        "| decoded per step | µs per step |\n|---|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|"
    )
    for script in dict.fromkeys(run.script for run in runs):
        own = [run for run in runs if run.script == script]
        steps = sum(run.steps for run in own)
        total = MemberStats(
            **{key: sum(getattr(run.stats, key) for run in own) for key in MemberStats().as_dict()}
        )
        worst = max(own, key=_rolled_back)
        print(
            f"| {script} | {len({run.follower for run in own})} | {len(own)} | {steps:,} "
            f"| {total.rollbacks / steps:.1%} | {1000 * total.rolled_back_tokens / steps:.0f} "
            f"| {max(run.stats.deepest_rollback for run in own)} "
            f"| {worst.writer} → {worst.follower}: {_rolled_back(worst):.0f} "
            f"| {sum(run.stalled for run in own) / steps:.1%} "
            f"| {1000 * total.full_tokenisations / steps:.1f} "
            f"| {total.decoded_tokens / steps:.2f} | {1e6 * total.sync_s / steps:.0f} |"
        )


def _rolled_back(run: Followed) -> float:
    """Tokens per 1,000 steps."""
    return 1000 * run.stats.rolled_back_tokens / run.steps


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-n", type=int, default=200, help="tokens of each answer")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--scripts", nargs="+", default=list(TEXTS), choices=list(TEXTS))
    parser.add_argument("--vocabularies", nargs="+", help="only these follow (all)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    members = [
        Member(path, n_ctx=1024, n_threads=1) for path in (models.smollm2(), models.gemma3())
    ]
    fuse = Fuse(members)
    said = [say(fuse, script, options.n, options.seeds) for script in options.scripts]
    names = [member.name for member in members]
    fuse.close()
    known = [t for t in tokenizers() if t.name in (options.vocabularies or [t.name])]
    followed = [run for script in options.scripts for run in follow_all(known, script)]
    if options.json:
        found = {"said": [asdict(run) for run in said], "followed": [asdict(r) for r in followed]}
        print(json.dumps({"machine": machine(), "members": names} | found, indent=1))
        return
    print(f"{machine()['cpu']}; temperature {TEMPERATURE}, seeds {options.seeds}\n")
    print_said(said, names)
    print()
    print_followed(followed)


if __name__ == "__main__":
    main()

"""The statistics of keeping in step, once and briefly; all that is said there is checked."""

from __future__ import annotations

import json

import pytest
import sync
from logitfuse.cache import MemberStats
from script_texts import PROMPTS, TEXTS


def test_every_script_has_a_prompt() -> None:
    assert PROMPTS.keys() == TEXTS.keys()
    assert all(500 < len(text.encode()) < 2000 for text in TEXTS.values())


def test_follow() -> None:
    """Character by character: each letter of a word takes the token before it back."""
    (follower,) = (known for known in sync.tokenizers() if known.name == "gpt-2")
    word = " harbour"
    found = sync.follow(follower, "letters", "English", [letter.encode() for letter in word])
    cache: list[int] = []
    dropped = []
    for n in range(1, len(word) + 1):
        tokens = follower.model.tokenize(word[:n].encode())
        dropped.append(len(cache) - sync._common(cache, tokens))
        cache = tokens
    assert (found.steps, found.stats.full_tokenisations, found.stalled) == (len(word), 0, 0)
    assert found.stats.rolled_back_tokens == sum(dropped) > 0
    assert found.stats.deepest_rollback == max(dropped)
    assert found.stats.decoded_tokens == sum(dropped) + len(cache)


def test_script(capsys: pytest.CaptureFixture[str]) -> None:
    brief = ["-n", "12", "--seeds", "1", "--scripts", "English", "Chinese"]
    sync.main([*brief, "--vocabularies", "gpt-2", "llama-spm", "gemma3", "--json"])
    found = json.loads(capsys.readouterr().out)
    said = [
        sync.Said(**run | {"members": [MemberStats(**stats) for stats in run["members"]]})
        for run in found["said"]
    ]
    assert [run.steps for run in said] == [12, 12]
    assert all(0 <= run.fused <= run.steps >= max(run.votes) for run in said)
    assert all(0 < run.sync < run.answering for run in said)
    followed = [
        sync.Followed(**run | {"stats": MemberStats(**run["stats"])}) for run in found["followed"]
    ]
    assert len(followed) == 2 * 6
    for run in followed:
        assert run.stats.decoded_tokens > run.stats.rolled_back_tokens
        assert run.stats.deepest_rollback <= min(4, run.stats.rolled_back_tokens)
    sync.print_said(said, found["members"])
    sync.print_followed(followed)
    table = capsys.readouterr().out
    assert "| English | 12 |" in table
    assert "| English | 3 | 6 |" in table
    assert "| Chinese | 3 | 6 |" in table

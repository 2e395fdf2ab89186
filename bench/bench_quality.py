"""The comparison of rules on synthetic members, and the cache on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import beams
import models
import numpy as np
import pytest
import quality
import rules
from byte_texts import members_of, scored
from bytecache import ByteCache, Settings, one_thread
from logitfuse.bytescores import score_bytes
from rules import Material
from tiny import write_tiny


@pytest.fixture(scope="module")
def material() -> Material:
    """Four texts: on each of them the first member knows more than the second, or less."""
    shares = {"one": (0.9, 0.4), "two": (0.8, 0.5), "three": (0.3, 0.9), "four": (0.5, 0.5)}
    return Material(
        ("a", "b"),
        {
            domain: members_of(600, [(4.0, share) for share in own], seed=seed)[1]
            for seed, (domain, own) in enumerate(shares.items())
        },
    )


def test_rules_are_what_they_say(material: Material) -> None:
    a, b = np.exp(material.tables["one"]).T
    assert np.exp(rules.uniform(material, "one")) == pytest.approx((a + b) / 2)
    assert rules.best_here(material, "three").sum() == material.tables["three"][:, 1].sum()
    assert rules.best_elsewhere(material, "three").sum() == material.tables["three"][:, 0].sum()
    log_linear = rules.log_linear(material, "one")
    assert rules.pooled("log-linear")(material, "one") == pytest.approx(log_linear, abs=1e-5)
    assert rules.pooled("linear")(material, "one") == pytest.approx(np.log((a + b) / 2), abs=1e-5)


def test_a_word_is_a_mixture_of_products() -> None:
    text = b"ab  cd"
    random = np.random.default_rng(0)
    own = [scored(text, random.normal(size=(len(text), 257))) for _ in range(2)]
    data = Material(("a", "b"), {"text": own})
    per_byte, p = rules.by_word(data, "text"), np.exp(data.tables["text"])
    for word in (slice(0, 2), slice(2, 6)):
        assert per_byte[word].sum() == pytest.approx(math.log(p[word].prod(axis=0).mean()))
    assert per_byte[2] == pytest.approx(math.log(p[2].mean()))  # equal weights again


def test_prompt_rules_ignore_what_follows(material: Material) -> None:
    begin = rules.prompt_length(600)
    changed = {
        d: [scored(own.text, own.logprobs.astype(float)) for own in s]
        for d, s in material.scores.items()
    }
    for own in changed["one"]:
        own.logprobs[begin:] = own.logprobs[begin:][::-1]
    other = Material(material.names, changed)
    for name in ("linear, prompt softmax", "linear, prompt greedy"):
        rule = rules.prompt_rules(material.names)[name]
        before = (rule(data, "one")[:begin] for data in (material, other))
        assert next(before) == pytest.approx(next(before), abs=1e-5)


def test_compare(material: Material, capsys: pytest.CaptureFixture[str]) -> None:
    tables, grids = quality.measure({"pair": material})
    lines = {line.name: line for line in tables[0].lines}
    assert lines["best member of each text (oracle)"].over_oracle == (0.0, 0.0, 0.0)
    best = min(lines["a"].bits, lines["b"].bits)
    for line in lines.values():
        assert np.isfinite(line.bits)
        assert line.over_best.mean == pytest.approx(best - line.bits)
        assert line.over_best.low <= line.over_best.mean <= line.over_best.high
    assert "three" in lines["a"].losses
    assert grids["pair"]["rate 0.1, share 0.002"] == pytest.approx(lines["linear, online"].bits)
    json.dumps([quality.as_dict(table) for table in tables])
    printed = "\n".join(quality.markdown(table) for table in tables)
    assert all(f"| {name} |" in printed for name in lines)
    assert "rate 0.1" in quality.markdown_grid("pair", grids["pair"])
    assert "pair" in capsys.readouterr().err


def test_losers_are_named(material: Material) -> None:
    def bad(data: Material, domain: str) -> rules.Floats:
        return data.tables[domain].min(axis=1) - 1

    chosen = {**rules.rules(material.names), "bad": bad}
    chosen = {name: chosen[name] for name in ("a", "b", "bad")}
    table = quality.compare("pair", material, chosen)
    assert [line.name for line in table.losers()] == ["bad"]
    first, unclear, *where = quality.verdicts(table)
    assert first.endswith(": bad.")
    assert unclear.endswith(": none.")
    assert len(where) == 1
    assert "four" in where[0]


def test_cache(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", models.smollm2(), max_vocab=2000)
    texts, folder = {"short": b"A short text.", "other": "Zwölf.".encode()}, tmp_path / "cache"
    made = ByteCache(folder).scores(model, texts)
    files = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(files) == 2
    again = ByteCache(folder).scores(model, texts)
    assert files == {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    with one_thread(model) as member:
        for name, text in texts.items():
            direct = score_bytes(member, text)
            for own in (made[name], again[name]):
                assert own.text == text
                assert (own.logprobs == direct.logprobs).all()
                assert (own.n_tokens, own.n_decoded) == (direct.n_tokens, direct.n_decoded)
    ByteCache(folder).scores(model, {"short": b"A short text."}, Settings(prune=0.01))
    assert len(list(folder.iterdir())) == 3


def test_beams(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", models.smollm2(), max_vocab=2000)
    cut, cache = {"short": b"A short text of words."}, ByteCache(tmp_path / "cache")
    narrow = [Settings(prune=prune) for prune in (0.5, 0.01)]
    points = beams.curve("tiny", cache, model, cut, narrow, Settings(prune=0.001, width=16))
    assert [point.settings.prune for point in points] == [0.5, 0.01, 0.001]
    assert points[0].passes < points[1].passes <= points[2].passes
    assert points[2].excess == 0.0
    assert points[0].excess == pytest.approx(points[0].bits - points[2].bits)
    assert "| tiny | 0.5 |" in beams.markdown(points)
    default = dataclasses.replace(points[0], settings=Settings(), passes=1.5, excess=0.0005)
    assert beams.markdown([default]).endswith(": met.")
    assert beams.verdict(dataclasses.replace(default, passes=1.7)).endswith(": missed.")

"""Presets: published methods as parts of this package.

A preset fills in what an ensemble's configuration leaves open; whatever is given besides wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from logitfuse.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """A method of the survey in one line of parts.

    Attributes
    ----------
    method : str
        The method and where it was published.
    cell : str
        Its place in the survey (arXiv 2502.18036).
    parts : mapping
        Keys of `logitfuse.config.FuseConfig`.
    differs : str
        What is done differently here, and why.
    weights : tuple of float
        Of the first members, where nobody gives any; their roles are in `differs`.
    one_vocabulary : bool
        It was made for members of one family, and makes little sense with others.
    """

    method: str
    cell: str
    parts: Mapping[str, Any]
    differs: str
    weights: tuple[float, ...] = ()
    one_vocabulary: bool = field(default=False)


_POOLED, _STEERED, _SWITCHED = "token: aggregation", "token: steering", "token: selection"


def _contrast(method: str, plausibility: float, differs: str, weights: tuple[float, ...]) -> Preset:
    """Steering by the difference of members of one family."""
    parts: dict[str, Any] = {
        "strategy": "fuse",
        "pool": "contrast",
        "plausibility": plausibility,
        "weighting": "given",
    }
    return Preset(method, _STEERED, parts, differs, weights, one_vocabulary=True)


PRESETS: dict[str, Preset] = {
    "gac": Preset(
        "GaC, Yu et al. 2024, arXiv 2406.12585",
        _POOLED,
        {"strategy": "fuse", "pool": "linear", "gate": "always", "weighting": "given"},
        "strings are compared as bytes, equal ones summed; every member ends by its own end "
        "tokens; no cache is dropped; sampling works. With solo='primary', threshold=0.5: GaC's "
        "thresholded mode",
    ),
    "unite": Preset(
        "UniTE, Yao et al. 2024, arXiv 2410.03777",
        _POOLED,
        {
            "strategy": "fuse",
            "alignment": "topk-union",
            "union_top": 10,
            "gate": "always",
            "weighting": "given",
        },
        "a token that several words begin with is shared among them instead of counted for each; "
        "the end is a candidate; the text is followed canonically",
    ),
    "packllm": Preset(
        "PackLLM-sim, Mavromatis et al. 2024, arXiv 2404.11531",
        _POOLED,
        {"strategy": "fuse", "pool": "log-linear", "weighting": "prompt"},
        "nats per byte, not per token, weigh the members; log-probabilities are averaged, not "
        "logits, whose scale is a model's own affair; no token is translated by edit distance",
    ),
    "packllm-opt": Preset(
        "PackLLM-opt, Mavromatis et al. 2024, arXiv 2404.11531",
        _POOLED,
        {"strategy": "fuse", "weighting": "prompt-greedy"},
        "the greedy search mixes probabilities of whole segments between common boundaries",
    ),
    "core": Preset(
        "CoRE, 2025, arXiv 2510.13855",
        _POOLED,
        {"strategy": "fuse", "pool": "consistency", "gate": "always", "guard": True},
        "exact byte twins instead of an edit-distance map; no main model outweighs all others",
    ),
    "deepen": Preset(
        "DeePEn, Huang et al. 2024, arXiv 2404.12715",
        _POOLED,
        {"strategy": "fuse", "alignment": "embedding", "gate": "always", "weighting": "given"},
        "tokens without a twin go to the nearest ones of the heaviest member by a linear map of "
        "the embeddings; relative representations found fewer held-out twins, and the gradient "
        "search for an inverse is not needed",
    ),
    "eva": Preset(
        "EVA, Xu et al. 2024 (NAACL)",
        _POOLED,
        {"strategy": "fuse", "alignment": "embedding", "gate": "boundary", "weighting": "given"},
        "input embeddings, which every GGUF has, instead of output ones; twins by bytes; members "
        "abstain inside words",
    ),
    "safe": Preset(
        "SAFE, 2025, arXiv 2510.15346",
        _POOLED,
        {"strategy": "fuse", "gate": "boundary", "schedule": "draft", "draft_length": 5},
        "drafts only decode ahead: every step is the one of plain lockstep, so nothing depends on "
        "the draft; who stands inside a word abstains by its own boundary probability",
    ),
    "spec": Preset(
        "Speculative Ensemble, Fu et al. 2025, arXiv 2502.01662",
        _POOLED,
        {"strategy": "fuse", "schedule": "draft"},
        "works across tokenizers; the length adapts to measured times; sampled text is the text of "
        "the same seed without drafts",
    ),
    "me": Preset(
        "ME, 2026, arXiv 2605.00419",
        _SWITCHED,
        {"strategy": "mix"},
        "a member that stands inside a word is passed over",
    ),
    "bytes": Preset(
        "Exact byte-level pools: Phan et al., arXiv 2410.09303; ByteSampler, arXiv 2506.14123",
        _POOLED,
        {"strategy": "bytes", "weighting": "online"},
        "any tokenizer, quantised models; units are sampled, not bytes; weights follow who "
        "predicted the text",
    ),
    "prefix-mass": Preset(
        "SAFE's sharpening by prefix mass (arXiv 2510.15346), made exact",
        _POOLED,
        {"strategy": "bytes", "alignment": "prefix-mass", "weighting": "online"},
        "all continuations that begin with a unit count, and units exclude each other",
    ),
    "mod": Preset(
        "MOD, Shi et al. 2024, arXiv 2406.18853",
        _POOLED,
        {"strategy": "fuse", "pool": "log-linear", "weighting": "given"},
        "reverse KL; with pool='power', exponent=-1: forward KL. Works across tokenizers",
        one_vocabulary=True,
    ),
    "cp-delta": Preset(
        "CP-Delta, Vyas et al. 2023, arXiv 2302.10870 (purifying: arXiv 2402.14845)",
        _STEERED,
        {"strategy": "fuse", "pool": "min", "weighting": "given"},
        "with pool='log-linear' and equal weights: the KL variant. What one member lacks counts "
        "as e^floor",
        one_vocabulary=True,
    ),
    "contrastive": _contrast(
        "Contrastive decoding, Li et al. 2022, arXiv 2210.15097",
        0.1,
        "members: expert, amateur; no amateur temperature; (1.5, -0.5) is the form of O'Brien and "
        "Lewis, arXiv 2309.09117",
        (1.0, -1.0),
    ),
    "proxy": _contrast(
        "Proxy-tuning, Liu et al. 2024, arXiv 2401.08565 (DExperts, arXiv 2105.03023)",
        0.1,
        "members: base, expert, anti-expert; only what the base finds plausible is said",
        (1.0, 1.0, -1.0),
    ),
    "dera": _contrast(
        "DeRa, Liu et al. 2024, arXiv 2402.02992",
        0.01,
        "members: reference, aligned, with weights 1 - lambda, lambda; lambda above 1 needs the "
        "plausibility mask, as the first member of positive weight is its base",
        (0.5, 0.5),
    ),
    "co-llm": Preset(
        "Co-LLM, arXiv 2403.03870; CITER, arXiv 2502.01976; CDS, arXiv 2402.17982",
        _SWITCHED,
        {"strategy": "fuse", "solo": "critical", "schedule": "lazy"},
        "needs learned=FILE from 'logitfuse fit --kind critical': a classifier over how sure the "
        "primary is, where the papers fine-tune one; critical tokens are fused, not handed over",
    ),
}


def find_preset(name: str) -> Preset:
    """A preset by its name.

    Raises
    ------
    ConfigError
        There is none.
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(PRESETS)}"
        raise ConfigError(f"unknown preset '{name}'; {hint}", key="preset")
    return PRESETS[name]


def with_preset(data: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with what its preset says where it says nothing itself.

    Raises
    ------
    ConfigError
        Unknown preset, or not as many members as it has roles.
    """
    name = data["preset"]
    preset = find_preset(name)
    filled = dict(preset.parts) | dict(data)
    members = filled.get("member")
    if not preset.weights or not isinstance(members, list):
        return filled
    members = [
        member.model_dump(exclude_unset=True) if isinstance(member, BaseModel) else member
        for member in members
    ]
    if any(not isinstance(member, dict) or "weight" in member for member in members):
        return filled
    if len(members) != len(preset.weights):
        raise ConfigError(
            f"the preset '{name}' has {len(preset.weights)} roles, not {len(members)} "
            f"(members: {preset.differs.split(';')[0].removeprefix('members: ')})",
            key="preset",
        )
    filled["member"] = [
        {**member, "weight": weight} for member, weight in zip(members, preset.weights, strict=True)
    ]
    return filled

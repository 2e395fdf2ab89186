"""``logitfuse demo``: two small models that come with the ``[demo]`` extra."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from logitfuse.cli import output
from logitfuse.cli.options import Flag, ModelOptions, SamplingOptions
from logitfuse.cli.run import answer_once, load
from logitfuse.demo_models import DEMO_MODELS, demo_path
from logitfuse.sampling import SamplingParams
from logitfuse.strategies.base import Request


def demo(
    prompt: str = "The three largest cities of France are",
    *,
    chat: Flag = False,
    predict: Annotated[int, Parameter(name=["--predict", "--n-predict", "-n"])] = 48,
    weights: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    pool: str = "linear",
    show_members: Flag = False,
    json: Flag = False,
    sampling: SamplingOptions | None = None,
) -> None:
    """Two embedded models of different families answer as one; greedy unless told otherwise.

    SmolLM2-135M-Instruct (49,152 tokens, byte-level BPE) and Gemma-3-270m (262,144 tokens,
    SentencePiece); their sha256 is verified first.

    Examples:

        logitfuse demo "The capital of France is"

        logitfuse demo --chat "Why is the sky blue?" --show-members

    Parameters
    ----------
    prompt
        Text to continue, or with --chat a message to answer.
    chat
        Put the prompt through every member's own chat template.
    predict
        Most tokens to generate; 0 or less: until the end.
    weights
        Weights of the two, e.g. 0.6,0.4; equal by default.
    pool
        linear or log-linear.
    show_members
        Behind each token, show what members that wanted another would have said.
    json
        Print one JSON document with text and figures instead of streaming.
    """
    with output.working("verifying the demo models"):
        paths = [demo_path(model) for model in DEMO_MODELS]
    config = ModelOptions(model=paths, weights=weights, pool=pool).config()
    members = [
        entry.model_copy(update={"name": model.name})
        for entry, model in zip(config.member, DEMO_MODELS, strict=True)
    ]
    config = config.model_copy(update={"member": members})
    params = (sampling or SamplingOptions()).params(SamplingParams(temperature=0))
    fuse, load_s = load(config)
    if not (chat or json):
        output.say(prompt)
    request = Request(
        prompt=[{"role": "user", "content": prompt}] if chat else prompt,
        sampling=params,
        max_tokens=predict if predict > 0 else None,
    )
    try:
        answer_once(fuse, request, load_s, json=json, show_members=show_members)
    finally:
        fuse.close()

"""Fields that other servers know and whose meaning cannot be honoured here."""

from __future__ import annotations

from typing import Any

from logitfuse.errors import ConfigError

_TOOLS = "this server calls no tools"
_SAMPLERS = "there is no such sampler here"
_CONSTRAINTS = "give response_format, json_schema or grammar"
_TEMPLATES = "every member reads chats through the template in its own file"

#: Field to the values that change nothing (null never does), and why no other is taken.
_FIELDS: dict[str, tuple[tuple[Any, ...], str]] = {
    "functions": (([],), _TOOLS),
    "function_call": (("none",), _TOOLS),
    "audio": ((), "answers are text"),
    "modalities": ((["text"],), "answers are text"),
    "prediction": ((), "answers cannot be predicted; see the schedule 'draft'"),
    "suffix": (("",), "answers have no end to be led to"),
    "web_search_options": ((), "this server searches nothing"),
    "use_beam_search": ((False,), "answers are sampled"),
    "n_probs": ((0,), "give logprobs"),
    "mirostat": ((0,), _SAMPLERS),
    "mirostat_mode": ((0,), _SAMPLERS),
    "dry_multiplier": ((0,), _SAMPLERS),
    "dynatemp_range": ((0,), _SAMPLERS),
    "xtc_probability": ((0,), _SAMPLERS),
    "guided_json": ((), _CONSTRAINTS),
    "guided_regex": ((), _CONSTRAINTS),
    "guided_choice": ((), _CONSTRAINTS),
    "guided_grammar": ((), _CONSTRAINTS),
    "structured_outputs": ((), _CONSTRAINTS),
    "chat_template": ((), _TEMPLATES),
    "chat_template_kwargs": (({},), _TEMPLATES),
    "lora": (([],), "models are as they were loaded"),
}


def refuse(data: Any) -> Any:
    """Refuse what a body asks in vain; gives it back.

    Raises
    ------
    ConfigError
        Its key is the field.
    """
    if not isinstance(data, dict):
        return data
    if data.get("tools") and data.get("tool_choice") != "none":
        raise _refusal("tools", _TOOLS)
    best_of, n = data.get("best_of"), data.get("n")
    if best_of is not None and best_of != (1 if n is None else n):
        raise _refusal("best_of", "all n answers are given back")
    for field, (harmless, reason) in _FIELDS.items():
        if data.get(field) is not None and data[field] not in harmless:
            raise _refusal(field, reason)
    return data


def refuse_message(data: Any) -> Any:
    """Refuse a message that calls tools; gives it back.

    Raises
    ------
    ConfigError
    """
    for field in ("tool_calls", "function_call"):
        if isinstance(data, dict) and data.get(field):
            raise _refusal(field, _TOOLS)
    return data


def _refusal(field: str, reason: str) -> ConfigError:
    return ConfigError(f"'{field}' cannot be used: {reason}; leave it out", key=field)

"""Messages become each member's own prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment
from logitfuse import chat
from logitfuse.errors import PromptError
from logitfuse.llama import LlamaModel
from tiny import write_tiny

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Why?"}
ASSISTANT = {"role": "assistant", "content": "Because."}

PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.content }}>{% endfor %}"
)
WITH_SPECIALS = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"


@pytest.fixture(scope="module")
def model(tiny_models: Mapping[str, Path]) -> LlamaModel:
    """SmolLM2's vocabulary, which comes with a template."""
    return LlamaModel(tiny_models["smol"], vocab_only=True)


@pytest.fixture
def templated(vocab_dir: Path, tmp_path: Path) -> Callable[[str], LlamaModel]:
    """Makes a model with a given template."""

    def make(template: str) -> LlamaModel:
        path = tmp_path / "templated.gguf"
        write_tiny(path, vocab_dir / "ggml-vocab-llama-spm.gguf", max_vocab=800, template=template)
        return LlamaModel(path, vocab_only=True)

    return make


class TestTemplate:
    @pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER], [USER, ASSISTANT, USER]])
    def test_smollm2(self, model: LlamaModel, messages: list[dict[str, str]]) -> None:
        template = model.chat_template
        assert template is not None
        expected = (
            Environment()
            .from_string(template)
            .render(messages=messages, add_generation_prompt=True, bos_token="", eos_token="")
        )
        assert chat.render(model, messages) == chat.ChatPrompt(expected)
        assert "<|im_start|>user\nWhy?<|im_end|>\n" in expected
        assert expected.endswith("<|im_start|>assistant\n")

    def test_special_tokens(self, templated: Callable[[str], LlamaModel]) -> None:
        assert chat.render(templated(WITH_SPECIALS), [USER]).text == "<s>Why?</s>"

    def test_system_text_goes_to_the_first_user_turn(
        self, templated: Callable[[str], LlamaModel]
    ) -> None:
        model = templated(NO_SYSTEM)
        merged = "[user] Be brief.\n\nWhy?\n[assistant] Because.\n[user] Why?\n"
        messages = [SYSTEM, USER, ASSISTANT, USER]
        assert chat.render(model, messages).text == merged
        assert messages == [SYSTEM, USER, ASSISTANT, USER]

    def test_system_text_alone_becomes_a_user_turn(
        self, templated: Callable[[str], LlamaModel]
    ) -> None:
        assert chat.render(templated(NO_SYSTEM), [SYSTEM]).text == "[user] Be brief.\n"

    def test_system_turn_stays_where_the_template_takes_it(
        self, templated: Callable[[str], LlamaModel]
    ) -> None:
        rendered = chat.render(templated(PLAIN), [SYSTEM, USER]).text
        assert rendered == "[system] Be brief.\n[user] Why?\n[assistant] "

    @pytest.mark.parametrize("messages", [[USER, USER], [SYSTEM, USER, USER], [ASSISTANT]])
    def test_refusal(
        self, templated: Callable[[str], LlamaModel], messages: list[dict[str, str]]
    ) -> None:
        with pytest.raises(PromptError, match=r"templated\.gguf.*must alternate"):
            chat.render(templated(ALTERNATE), messages)

    def test_is_sandboxed(self, templated: Callable[[str], LlamaModel]) -> None:
        with pytest.raises(PromptError, match="unsafe"):
            chat.render(templated("{{ ''.__class__.__mro__ }}"), [USER])


def test_transcript_without_a_template(tiny_models: Mapping[str, Path]) -> None:
    model = LlamaModel(tiny_models["gpt2"], vocab_only=True)
    assert model.chat_template is None
    prompt = chat.render(model, [SYSTEM, USER, ASSISTANT, USER])
    assert prompt.text == (
        "System:\nBe brief.\n\nUser:\nWhy?\n\nAssistant:\nBecause.\n\nUser:\nWhy?\n\nAssistant:\n"
    )
    assert prompt.stop == ("\n\nUser:", "\nUser:\n")


class TestBegunReply:
    BEGUN: Mapping[str, Any] = {"role": "assistant", "content": "Because ", "prefix": True}

    @pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER, ASSISTANT, USER]])
    def test_goes_on_behind_the_template(
        self, model: LlamaModel, messages: list[dict[str, str]]
    ) -> None:
        plain = chat.render(model, messages).text
        assert chat.render(model, [*messages, self.BEGUN]).text == plain + "Because "

    def test_refused_system_role(self, templated: Callable[[str], LlamaModel]) -> None:
        rendered = chat.render(templated(NO_SYSTEM), [SYSTEM, USER, self.BEGUN]).text
        assert rendered == "[user] Be brief.\n\nWhy?\nBecause "

    def test_transcript(self, tiny_models: Mapping[str, Path]) -> None:
        model = LlamaModel(tiny_models["gpt2"], vocab_only=True)
        rendered = chat.render(model, [USER, self.BEGUN]).text
        assert rendered == "User:\nWhy?\n\nAssistant:\nBecause "

    @pytest.mark.parametrize("messages", [[BEGUN], [USER, {**USER, "prefix": True}]])
    def test_malformed(self, model: LlamaModel, messages: list[dict[str, Any]]) -> None:
        with pytest.raises(PromptError, match="the beginning of a reply"):
            chat.render(model, messages)


class TestMessages:
    def test_content_parts(self) -> None:
        parts = [{"type": "text", "text": "Wh"}, "y", {"type": "text", "text": "?"}]
        assert chat.check_messages([{"role": "user", "content": parts}]) == [USER]

    def test_other_keys_are_left_out(self) -> None:
        assert chat.check_messages([{**USER, "name": "Ann"}]) == [USER]

    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ([], "no messages"),
            (["Why?"], "message 0 is 'Why[?]'"),
            ([USER, None], "message 1 is None"),
            ([{"content": "Why?"}], "role None"),
            ([{"role": "bot", "content": "Why?"}], "role 'bot'; known: system, user"),
            ([{"role": ["user"], "content": "Why?"}], r"role \['user'\]"),
            ([USER, {"role": "user"}], r"message 1 \(user\)"),
            ([{"role": "user", "content": None}], "None"),
            ([{"role": "user", "content": 7}], "7"),
            ([{"role": "user", "content": b"Why?"}], "b'Why[?]'"),
            ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "image_url"),
            ([{"role": "user", "content": [{"text": "Why?"}, 7]}], "7"),
        ],
    )
    def test_malformed(self, model: LlamaModel, messages: list[Any], message: str) -> None:
        with pytest.raises(PromptError, match=message):
            chat.render(model, messages)

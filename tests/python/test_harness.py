"""The ensemble as a model of lm-evaluation-harness, with the real harness on local tasks."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import get_model
from lm_eval.utils import simple_parse_args_string
from lockstep import oracle_vocab
from logitfuse import chat
from logitfuse.errors import ConfigError, ContextLengthError, ModelNotFoundError
from logitfuse.harness import LogitfuseLM
from logitfuse.harness import __main__ as launcher
from logitfuse.harness.arguments import config_of, generation_of
from logitfuse.harness.transcript import read_context, split_space, write_chat
from logitfuse.harness.windows import Room, windows
from logitfuse.llama.backend import repacks_safely
from logitfuse.member import Member
from logitfuse.sampling import SamplingParams
from logitfuse.scoring import score_reply
from logitfuse.strategies.base import Request
from logitfuse.strategies.bytes import Bytes
from numpy.typing import NDArray

PROSE = "The harbour was built by fishermen; its oldest wall is of grey stone. "
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
]
BEGUN = {"role": "assistant", "content": "The capital of France is "}
PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is ", "Berlin"),
    ("The capital of France is", " a small town"),
    ("", "The sun rises in the east"),
    (" \n", "The sun"),
    ("Once upon a time", " there was a girl"),
]
#: Tokens that are decoded at a time on both sides: quantised products round otherwise in larger
#: batches, which changes a sum of 80 log-probabilities by 0.1 %.
BATCH = 32

Models = Mapping[str, Path]
Make = Callable[..., LogitfuseLM]


def ask(model: LogitfuseLM, kind: str, *asked: tuple[Any, ...]) -> list[Any]:
    """What the harness does with a model."""
    requests = [Instance(kind, {}, arguments, i) for i, arguments in enumerate(asked)]  # type: ignore[arg-type]
    answers: list[Any] = getattr(model, kind)(requests, disable_tqdm=True)
    return answers


class Direct:
    """Log-likelihoods by llama-cpp-python alone: teacher forcing along the canonical tokens."""

    def __init__(self, path: Path) -> None:
        self._llama = llama_cpp.Llama(
            str(path),
            n_ctx=512,
            n_batch=BATCH,
            n_ubatch=BATCH,
            n_threads=1,
            n_threads_batch=1,
            flash_attn=True,
            logits_all=True,
            verbose=False,
        )
        self.close = self._llama.close

    def tokens(self, text: str, **options: bool) -> list[int]:
        return list(self._llama.tokenize(text.encode(), **{"add_bos": False} | options))

    def rows(self, head: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float64]:
        """Logits before each of the tokens behind a head."""
        self._llama.reset()
        self._llama.eval([*head, *tokens])
        return self._llama.scores[len(head) - 1 : len(head) + len(tokens) - 1].astype(np.float64)

    def score(self, head: Sequence[int], tokens: Sequence[int]) -> tuple[float, bool]:
        rows = self.rows(head, tokens)
        listed = rows[np.arange(len(tokens)), tokens]
        nats = float((listed - np.logaddexp.reduce(rows, axis=1)).sum())
        return nats, bool((rows.argmax(axis=1) == tokens).all())

    def continuation(self, opening: int, context: str, text: str) -> tuple[float, bool]:
        """As the harness's own models do it."""
        kept = context.rstrip()
        head = self.tokens(kept, add_bos=True, special=True) if kept else [opening]
        return self.score(head, self.tokens(context[len(kept) :] + text))


@pytest.fixture(scope="module")
def direct() -> Iterator[Callable[[Path], Direct]]:
    """Opens models with llama-cpp-python, without the repacking that crashes builds by GCC 12."""
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def like_ours() -> Any:
        params = defaults()
        params.use_extra_bufts = repacks_safely()
        return params

    opened: list[Direct] = []

    def make(path: Path) -> Direct:
        opened.append(Direct(path))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", like_ours)
        yield make
    for model in opened:
        model.close()


@pytest.fixture(scope="module")
def make(tiny_models: Models) -> Iterator[Make]:
    """Loads a model of the harness by the names of tiny models."""
    made: list[LogitfuseLM] = []

    def load(*names: str, **arguments: Any) -> LogitfuseLM:
        paths = "+".join(str(tiny_models[name]) for name in names)
        made.append(LogitfuseLM(model=paths, n_threads=1, **arguments))
        return made[-1]

    yield load
    for model in made:
        model.ensemble.close()


@pytest.fixture(scope="module")
def pair(make: Make) -> LogitfuseLM:
    """Two tokenizers, byte by byte."""
    model = make("smol", "llama-spm", weights="0.6+0.4", n_ctx=256)
    assert isinstance(model.ensemble.generator, Bytes)
    return model


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[LogitfuseLM]:
    model = LogitfuseLM(model=str(smollm2_path), n_threads=1, n_ctx=256, n_batch=BATCH)
    yield model
    model.ensemble.close()


@pytest.fixture(scope="module")
def members(pair: LogitfuseLM) -> Sequence[Member]:
    return pair.ensemble.generator.members


class TestOneMember:
    """The numbers of llama.cpp."""

    def test_continuations(
        self, smollm2: LogitfuseLM, smollm2_path: Path, direct: Callable[[Path], Direct]
    ) -> None:
        llama = direct(smollm2_path)
        opening = smollm2.ensemble.generator.members[0].opening
        found = ask(smollm2, "loglikelihood", *PAIRS)
        expected = [llama.continuation(opening, *pair) for pair in PAIRS]
        assert [nats for nats, _ in found] == pytest.approx([n for n, _ in expected], rel=1e-6)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        assert {greedy for _, greedy in found} == {True, False}

    def test_documents(
        self, smollm2: LogitfuseLM, smollm2_path: Path, direct: Callable[[Path], Direct]
    ) -> None:
        llama, text = direct(smollm2_path), PROSE * 3
        opening = smollm2.ensemble.generator.members[0].opening
        found = ask(smollm2, "loglikelihood_rolling", (text,))
        assert found == [pytest.approx(llama.score([opening], llama.tokens(text))[0], rel=1e-6)]

    def test_long_documents(
        self, make: Make, tiny_models: Models, direct: Callable[[Path], Direct]
    ) -> None:
        model, llama, text = make("gpt2", n_ctx=256), direct(tiny_models["gpt2"]), PROSE * 20
        (member,) = model.ensemble.generator.members
        expected = 0.0
        for context, piece in windows(Room([member]), text):
            head = llama.tokens(context) if context else [member.opening]
            expected += llama.score(head, llama.tokens(piece))[0]
        assert ask(model, "loglikelihood_rolling", (text,)) == [pytest.approx(expected, rel=1e-5)]

    @pytest.mark.parametrize("begun", [False, True])
    def test_chats(
        self,
        smollm2: LogitfuseLM,
        smollm2_path: Path,
        direct: Callable[[Path], Direct],
        begun: bool,
    ) -> None:
        llama = direct(smollm2_path)
        messages = [*CHAT, BEGUN] if begun else CHAT
        context = smollm2.apply_chat_template(messages, add_generation_prompt=not begun)
        prompt = chat.render(smollm2.ensemble.generator.members[0].model, CHAT).text
        if begun:  # the space at its end belongs to what follows
            prompt += BEGUN["content"].rstrip()
        head, tokens = (
            llama.tokens(prompt, special=True),
            llama.tokens(" Paris" if begun else "The"),
        )
        ((nats, greedy),) = ask(smollm2, "loglikelihood", (context, "Paris" if begun else "The"))
        assert nats == pytest.approx(llama.score(head, tokens)[0], rel=1e-6)
        assert greedy

    @pytest.mark.parametrize("name", ["gpt2", "llama-spm", "gemma3", "mamba"])
    def test_any_architecture(
        self, make: Make, name: str, tiny_models: Models, direct: Callable[[Path], Direct]
    ) -> None:
        """Random weights believe in control tokens, which are never said: compare without them."""
        model, llama = make(name), direct(tiny_models[name])
        member = model.ensemble.generator.members[0]
        vocab = oracle_vocab(member)
        for context, text in PAIRS:
            kept = context.rstrip()
            head = member.tokenize_prompt(kept) if kept else [member.opening]
            tokens = member.tokenize((context[len(kept) :] + text).encode())
            nats, greedy = 0.0, True
            for row, token in zip(llama.rows(head, tokens), tokens, strict=True):
                logprobs = reference.member_logprobs(row, *vocab)
                nats += logprobs[vocab[0][token]]
                greedy &= max(logprobs, key=logprobs.__getitem__) == vocab[0][token]
            (found,) = ask(model, "loglikelihood", (context, text))
            assert found == (pytest.approx(nats, rel=1e-5), greedy)


class TestRequests:
    def test_answers_are_in_the_order_of_the_requests(self, pair: LogitfuseLM) -> None:
        found = ask(pair, "loglikelihood", *PAIRS, *reversed(PAIRS))
        assert found == [*found[: len(PAIRS)], *reversed(found[: len(PAIRS)])]
        engine = pair.ensemble.generator
        for (context, text), (nats, greedy) in zip(PAIRS, found, strict=False):
            kept = context.rstrip()
            score = score_reply(engine, Request(kept), context[len(kept) :] + text)
            assert (nats, greedy) == (score.nats, score.greedy)

    def test_a_common_context_is_read_once(self, make: Make) -> None:
        model = make("smol", n_ctx=512)
        member = model.ensemble.generator.members[0]
        contexts = [PROSE * 4 + str(i) for i in range(2)]
        before = member.stats.decoded_tokens
        ask(model, "loglikelihood", *((contexts[i % 2], f" {i}") for i in range(10)))
        assert member.stats.decoded_tokens - before < 2 * len(member.tokenize_prompt(contexts[0]))

    def test_the_order_of_options_does_not_matter(self, pair: LogitfuseLM) -> None:
        asked = [(PROSE + "It is made", option) for option in (" of wood", " of stone", " by hand")]
        expected = ask(pair, "loglikelihood", *asked)
        for first in range(3):
            pair.ensemble.reset()
            order = [first, *(i for i in range(3) if i != first)]
            found = ask(pair, "loglikelihood", *(asked[i] for i in order))
            assert found == [expected[i] for i in order]

    def test_nothing_is_certain(self, pair: LogitfuseLM) -> None:
        assert ask(pair, "loglikelihood", ("Once", "")) == [(0.0, True)]
        assert ask(pair, "loglikelihood_rolling", ("",)) == [0.0]
        assert ask(pair, "loglikelihood") == []

    def test_long_contexts_lose_their_beginning(self, pair: LogitfuseLM) -> None:
        long = PROSE * 30
        ((nats, _),) = ask(pair, "loglikelihood", (long, "It stands."))
        assert math.isfinite(nats)
        settings = {"until": [], "max_gen_toks": 4}
        (reply,) = ask(pair, "generate_until", (long, settings))
        assert reply
        with pytest.raises(ContextLengthError):
            ask(pair, "loglikelihood", ("Once", long))
        too_long = pair.apply_chat_template([{"role": "user", "content": long}])
        with pytest.raises(ContextLengthError):
            ask(pair, "generate_until", (too_long, settings))

    def test_answers_are_cached_one_by_one(
        self, pair: LogitfuseLM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cached = []

        class Hook(CacheHook):  # type: ignore[misc]
            def add_partial(self, attr: str, req: Any, res: Any) -> None:
                cached.append((attr, req, res))

        monkeypatch.setattr(pair, "cache_hook", Hook(None))
        found = ask(pair, "loglikelihood", *PAIRS[:2])
        assert sorted(cached) == sorted(
            ("loglikelihood", pair, answer) for pair, answer in zip(PAIRS, found, strict=False)
        )


class TestReplies:
    def test_greedy_as_the_ensemble(self, smollm2: LogitfuseLM) -> None:
        expected: Any = smollm2.ensemble("The capital of France is", max_tokens=12, temperature=0)
        text = expected["choices"][0]["text"]
        settings = {"until": ["\n\n", "."], "max_gen_toks": 12}
        asked = [("The capital of France is", settings | more) for more in ({}, {"until": []})]
        stopped, whole = ask(smollm2, "generate_until", *asked)
        assert whole == text
        assert stopped == text.partition(".")[0] != text
        assert stopped[0] == " "  # nothing is stripped

    def test_chats(self, smollm2: LogitfuseLM) -> None:
        settings = {"until": ["\n"], "max_gen_toks": 12}
        expected: Any = smollm2.ensemble.create_chat_completion(CHAT, max_tokens=12, temperature=0)
        context = smollm2.apply_chat_template(CHAT)
        start = BEGUN | {"content": BEGUN["content"].rstrip()}
        begun = smollm2.apply_chat_template([*CHAT, start], add_generation_prompt=False)
        found = ask(smollm2, "generate_until", (context, settings), (begun, settings))
        assert found[0] == expected["choices"][0]["message"]["content"].partition("\n")[0]
        assert found[1].startswith(" Paris")

    def test_samples_follow_the_seed_of_the_harness(self, pair: LogitfuseLM) -> None:
        settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8, "until": []}
        runs = []
        for seed in (1, 1, 2):
            random.seed(seed)
            runs.append(ask(pair, "generate_until", *[("Once upon a time", settings)] * 3))
        assert runs[0] == runs[1] != runs[2]
        assert len(set(runs[0])) == 3


class TestSettings:
    BASE = SamplingParams(top_k=7, seed=3)

    def test_names(self) -> None:
        asked = generation_of(
            {"until": "Q:", "max_new_tokens": 5, "do_sample": True, "temperature": 0.5}
            | {"top_p": 0.9, "repetition_penalty": 1.2, "num_beams": 1, "seed": 11},
            self.BASE,
            99,
        )
        assert (asked.length, asked.stop) == (5, ("Q:",))
        assert asked.sampling == SamplingParams(
            temperature=0.5, top_p=0.9, top_k=7, repeat_penalty=1.2, seed=11
        )

    @pytest.mark.parametrize(
        ("settings", "temperature"),
        [
            ({}, 0),
            ({"temperature": 0.0}, 0),
            ({"temperature": 0.7}, 0.7),
            ({"do_sample": False, "temperature": 0.7}, 0),
            ({"do_sample": True}, 0.8),
        ],
    )
    def test_who_is_greedy(self, settings: dict[str, Any], temperature: float) -> None:
        asked = generation_of(settings, self.BASE, 99)
        assert asked.sampling.temperature == temperature
        assert (asked.length, asked.stop) == (99, ())

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"temprature": 1}, "did you mean 'temperature'"),
            ({"num_beams": 4}, "no beam search"),
            ({"top_p": 2, "do_sample": True}, "top_p"),
        ],
    )
    def test_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            generation_of(settings, self.BASE, 99)


class TestArguments:
    def test_text(self) -> None:
        config = config_of(
            {"model": "a.gguf+b.gguf", "weights": "0.6+0.4", "n_ctx": 1024, "n_threads": "1+2"}
            | {"preset": "gac", "n_batch": 64, "floor": -9.0}
        )
        assert [(str(m.model), m.weight, m.n_threads) for m in config.member] == [
            ("a.gguf", 0.6, 1),
            ("b.gguf", 0.4, 2),
        ]
        assert {(m.n_ctx, m.n_batch) for m in config.member} == {(1024, 64)}
        assert (config.preset, config.floor) == ("gac", -9.0)
        listed = config_of({"model": ["a.gguf", Path("b.gguf")], "weights": [0.6, 0.4]})
        assert [member.weight for member in listed.member] == [0.6, 0.4]
        assert config_of({"hf": "user/repo:Q8_0"}).member[0].hf == "user/repo:Q8_0"

    def test_readme(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("pair.toml").write_text("[[member]]\nmodel = 'a.gguf'\n")
        readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
        given = re.findall(r"--model_args (\S+)", readme)
        assert len(given) == 2
        for text in given:
            assert config_of(simple_parse_args_string(text)).member[0].model == Path("a.gguf")

    def test_a_plus_in_a_name(self, tmp_path: Path) -> None:
        file = tmp_path / "a+b.gguf"
        file.touch()
        assert [member.model for member in config_of({"model": str(file)}).member] == [file]

    def test_files(self, tmp_path: Path) -> None:
        file = tmp_path / "pair.toml"
        file.write_text("pool = 'log-linear'\n[[member]]\nmodel = 'a.gguf'\n")
        config = config_of({"ensemble": str(file), "gate": "always"})
        assert (config.pool, config.gate) == ("log-linear", "always")
        assert config.member[0].model == tmp_path / "a.gguf"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "no models"),
            ({"modle": "a.gguf"}, "did you mean 'model'"),
            ({"model": "a", "weight": 1}, "did you mean 'weights'"),
            ({"model": "a", "member": []}, "unknown model argument 'member'"),
            ({"model": "a", "ensemble": "b.toml"}, "not both"),
            ({"model": "a+b", "weights": 1.0}, "1 values for 2 members"),
            ({"model": "a", "n_ctx": "many"}, "n_ctx takes numbers"),
            ({"model": "a", "pool": "linaer"}, "pool"),
            ({"ensemble": "none.toml"}, "none.toml"),
        ],
    )
    def test_refused(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            config_of(arguments)

    def test_models(self, make: Make, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError):
            LogitfuseLM(model=str(tmp_path / "none.gguf"))
        model = make("gpt2")
        again = LogitfuseLM(ensemble=model.ensemble, batch_size=8, device="cuda:0")
        assert again.ensemble is model.ensemble
        with pytest.raises(ConfigError, match="n_ctx"):
            LogitfuseLM(ensemble=model.ensemble, n_ctx=9)
        assert (model.rank, model.world_size) == (0, 1)
        assert model.get_model_info()["member_names"] == ["gpt2"]
        json.dumps(model.get_model_info())


class TestChats:
    @given(
        st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), min_size=1),
        st.booleans(),
    )
    def test_there_and_back(self, messages: list[dict[str, str]], begun: bool) -> None:
        found = read_context(write_chat(messages, begun=begun))
        assert isinstance(found, list)
        assert [{k: m[k] for k in ("role", "content")} for m in found] == messages
        assert [bool(m.get("prefix")) for m in found] == [False] * (len(found) - 1) + [begun]

    @given(st.text())
    def test_plain(self, text: str) -> None:
        assert read_context(text) == text
        kept, space = split_space(text)
        assert f"{kept}{space}" == text
        assert not space.strip()

    def test_what_tasks_add_begins_the_reply(self) -> None:
        added = {"role": "assistant", "content": " A", "prefix": True}
        assert read_context(write_chat(CHAT, begun=False) + " A") == [*CHAT, added]
        begun = BEGUN | {"content": BEGUN["content"] + " A", "prefix": True}
        assert read_context(write_chat([*CHAT, BEGUN], begun=True) + " A") == [*CHAT, begun]

    def test_names(self, pair: LogitfuseLM) -> None:
        assert pair.tokenizer_name == "logitfuse"
        assert pair.chat_template() is None
        assert "smol: {%" in str(pair.chat_template(True))
        with pytest.raises(ConfigError, match="own chat template"):
            pair.chat_template("alpaca")


class TestWindows:
    @settings(max_examples=25)
    @given(st.data())
    def test_every_byte_once(self, members: Sequence[Member], data: st.DataObject) -> None:
        words = st.sampled_from(["harbour", " ", "  ", "\n", "стіна", "城", "(x+1)", "e" * 40])
        text = "".join(data.draw(st.lists(words, max_size=40))) * data.draw(st.integers(1, 30))
        pieces = list(windows(Room(members), text))
        assert "".join(piece for _, piece in pieces) == text
        at = 0
        for context, piece in pieces:
            assert piece
            assert text[:at].endswith(context)
            for member in members:
                head = member.tokenize_prompt(context) if context else [member.opening]
                assert len(head) + len(member.tokenize(piece.encode())) < member.n_ctx
            at += len(piece)

    def test_contexts(self, members: Sequence[Member]) -> None:
        text = PROSE * 30
        first, *middle, last = windows(Room(members), text)
        assert first[0] == ""
        assert all(context == context.strip() and 0 < len(context) <= 32 for context, _ in middle)
        assert all(piece[0] == " " for _, piece in [*middle, last])
        assert not Room(members).holds(text[-len("".join(last)) - 5 :])  # as much as fits

    def test_no_room(self, members: Sequence[Member]) -> None:
        with pytest.raises(ContextLengthError):
            Room(members).beginning_of("x", PROSE * 30)


FACTS = [
    ("What is the capital of France?", ["Paris", "Berlin", "a small town"], 0),
    ("What is the capital of Germany?", ["Paris", "Berlin", "the moon"], 1),
    ("What do cows give?", ["stone", "milk", "music and rain"], 1),
]
SUMS = [("2 + 2", "4"), ("1 + 1", "2")]
TASKS = {
    "facts": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: options
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "prose": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
""",
    "sums": """
output_type: generate_until
doc_to_text: "{{question}}"
gen_prefix: "="
doc_to_target: answer
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 6
filter_list:
  - name: number
    filter:
      - function: regex
        regex_pattern: "(-?[0-9]+)"
      - function: take_first
metric_list:
  - metric: exact_match
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks with their data."""
    folder = tmp_path_factory.mktemp("tasks")
    data: dict[str, list[dict[str, Any]]] = {
        "facts": [{"question": q, "options": o, "answer": a} for q, o, a in FACTS],
        "prose": [{"text": PROSE * n} for n in (1, 2)],
        "sums": [{"question": question, "answer": answer} for question, answer in SUMS],
    }
    for name, task in TASKS.items():
        lines = "".join(json.dumps(item) + "\n" for item in data[name])
        (folder / f"{name}.jsonl").write_text(lines)
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\nfewshot_split: test\n"
            f"dataset_kwargs:\n  data_files:\n    test: {folder / name}.jsonl\n{task}"
        )
    return folder


def run_offline(folder: Path, *arguments: str) -> str:
    """Output of Python in a process of its own that can reach no hub."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | offline | {"TQDM_DISABLE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


class TestHarness:
    def test_command_line(
        self, tasks: Path, tmp_path: Path, smollm2: LogitfuseLM, smollm2_path: Path
    ) -> None:
        run_offline(
            tasks,
            *("-m", "logitfuse.harness", "run", "--model", "logitfuse"),
            *("--model_args", f"model={smollm2_path},n_threads=1,n_ctx=256,n_batch={BATCH}"),
            *("--tasks", "facts,prose,sums", "--include_path", str(tasks), "--num_fewshot", "1"),
            *("--output_path", str(tmp_path), "--log_samples"),
        )
        (report,) = tmp_path.rglob("results_*.json")
        results = json.loads(report.read_text())
        assert results["config"]["member_names"] == ["SmolLM2-135M-Instruct.Q4_1"]
        samples = {
            name: [json.loads(line) for line in file.read_text().splitlines()]
            for name in TASKS
            for file in tmp_path.rglob(f"samples_{name}_*")
        }
        right = 0
        for sample in samples["facts"]:
            asked = [tuple(request.values()) for request in sample["arguments"].values()]
            assert asked[0][0].count("Answer:") == 2
            found = ask(smollm2, "loglikelihood", *asked)
            said = [(float(nats), greedy == "True") for ((nats, greedy),) in sample["resps"]]
            assert said == [(pytest.approx(nats, rel=1e-6), greedy) for nats, greedy in found]
            right += int(np.argmax([nats for nats, _ in found])) == sample["doc"]["answer"]
        assert results["results"]["facts"]["acc,none"] == pytest.approx(right / len(FACTS))
        for sample in samples["sums"]:
            (asked,) = [tuple(request.values()) for request in sample["arguments"].values()]
            assert sample["resps"] == [ask(smollm2, "generate_until", asked)]
            assert sample["exact_match"] == (sample["filtered_resps"] == [sample["target"]])
        texts = [PROSE * n for n in (1, 2)]
        nats = ask(smollm2, "loglikelihood_rolling", *((text,) for text in texts))
        bits = -sum(nats) / math.log(2) / sum(len(text.encode()) for text in texts)
        found = results["results"]["prose"]["bits_per_byte,none"]
        assert found == pytest.approx(bits, rel=1e-6)

    def test_python_and_chats(self, tasks: Path, tiny_models: Models, pair: LogitfuseLM) -> None:
        code = """
import json, sys
import logitfuse.harness
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

results = simple_evaluate(
    model="logitfuse",
    model_args=json.loads(sys.argv[2]),
    tasks=["facts", "sums"],
    task_manager=TaskManager(include_path=sys.argv[1], include_defaults=False),
    num_fewshot=1,
    apply_chat_template=True,
    fewshot_as_multiturn=True,
    bootstrap_iters=0,
)
for name, samples in results["samples"].items():
    print(json.dumps([name, [[sample["arguments"], sample["resps"]] for sample in samples]]))
"""
        paths = [str(tiny_models[name]) for name in ("smol", "llama-spm")]
        arguments = {"model": paths, "weights": [0.6, 0.4], "n_ctx": 256, "n_threads": 1}
        lines = run_offline(tasks, "-c", code, str(tasks), json.dumps(arguments)).splitlines()
        samples = dict(json.loads(line) for line in lines if line.startswith("["))
        for requests, answers in samples["facts"]:
            found = ask(pair, "loglikelihood", *map(tuple, requests))
            # What was read before decides how prompts are cut into batches, which costs digits.
            assert [[[pytest.approx(nats, rel=1e-3), greedy]] for nats, greedy in found] == answers
            roles = [message["role"] for message in read_context(requests[0][0])]  # type: ignore[index]
            assert roles == ["user", "assistant", "user"]
        for requests, answers in samples["sums"]:
            assert answers == [ask(pair, "generate_until", *map(tuple, requests))]
            begun = {"role": "assistant", "content": "=", "prefix": True}
            assert read_context(requests[0][0])[-1] == begun

    def test_what_is_wrong_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def cli_evaluate() -> None:
            LogitfuseLM.create_from_arg_string("modle=a.gguf,n_ctx=256", {"device": "cuda:0"})

        monkeypatch.setattr(launcher, "cli_evaluate", cli_evaluate)
        with pytest.raises(SystemExit) as stopped:
            launcher.main()
        expected = "logitfuse: unknown model argument 'modle'; did you mean 'model'?"
        assert stopped.value.code == expected

    def test_registered(self) -> None:
        assert get_model("logitfuse") is LogitfuseLM
        (entry,) = importlib.metadata.entry_points(group="lm_eval.models", name="logitfuse")
        assert entry.load() is LogitfuseLM

    def test_without_the_harness(self) -> None:
        code = (
            "import sys; sys.modules['lm_eval'] = None\n"
            "from logitfuse.errors import ConfigError\n"
            "try: import logitfuse.harness\n"
            "except ConfigError as error: print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert "pip install 'logitfuse[lm-eval]'" in done.stdout

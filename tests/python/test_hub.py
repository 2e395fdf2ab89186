"""Names and files on the hub; nothing here uses the network."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from logitfuse import Ensemble
from logitfuse.errors import ConfigError
from logitfuse.hub import choose_files, download, parse_source

SPLIT = [f"Q8_0/model-Q8_0-{part:05}-of-00003.gguf" for part in (1, 2, 3)]
FILES = [
    "README.md",
    "model-IQ4_XS.gguf",
    "model-Q4_K_M.gguf",
    "model-Q4_K_S.gguf",
    "mmproj-model-Q4_K_M.gguf",
    "model-f16.gguf",
    *reversed(SPLIT),
]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("user/repo", ("user/repo", None)),
        ("user/repo:Q8_0", ("user/repo", "Q8_0")),
        ("some.user/Repo-7B_v1.2-GGUF:IQ4_XS", ("some.user/Repo-7B_v1.2-GGUF", "IQ4_XS")),
    ],
)
def test_sources(source: str, expected: tuple[str, str | None]) -> None:
    assert parse_source(source) == expected


@pytest.mark.parametrize("source", ["", "repo", "a/b/c", "a/b:", "/b", "a/b:c:d", "https://x/y"])
def test_malformed_sources(source: str) -> None:
    with pytest.raises(ConfigError, match=r"user/repo\[:quant\]") as caught:
        parse_source(source)
    assert caught.value.key == "hf"


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        ("Q4_K_M", ["model-Q4_K_M.gguf"]),
        ("q4_k_s", ["model-Q4_K_S.gguf"]),
        ("IQ4_XS", ["model-IQ4_XS.gguf"]),
        ("F16", ["model-f16.gguf"]),
        ("Q8_0", SPLIT),
        (None, ["model-Q4_K_M.gguf"]),
    ],
)
def test_choice(quant: str | None, expected: list[str]) -> None:
    assert choose_files(FILES, quant, source="user/repo") == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["b-Q8_0.gguf", "a-Q2_K.gguf"], ["b-Q8_0.gguf"]),
        (["b-Q6_K.gguf", "a-Q2_K.gguf"], ["a-Q2_K.gguf"]),
        (["model.gguf"], ["model.gguf"]),
    ],
)
def test_default_choice(files: list[str], expected: list[str]) -> None:
    assert choose_files(files, None, source="user/repo") == expected


@pytest.mark.parametrize("quant", ["Q4_K", "Q4", "4_K_M", "Q5_K_M"])
def test_unknown_quantisation(quant: str) -> None:
    with pytest.raises(ConfigError, match=r"model-Q4_K_M\.gguf") as caught:
        choose_files(FILES, quant, source=f"user/repo:{quant}")
    assert f"user/repo:{quant}" in str(caught.value)
    assert "mmproj" not in str(caught.value)


@pytest.mark.parametrize("quant", [None, "Q8_0"])
def test_no_models(quant: str | None) -> None:
    with pytest.raises(ConfigError, match="no GGUF files"):
        choose_files(["README.md", "model.safetensors"], quant, source="user/repo")


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'logitfuse\[hub\]'") as caught:
        download("user/repo:Q8_0")
    assert caught.value.key == "hf"


class Hub(ModuleType):
    """Stands in for ``huggingface_hub``, whose real part is the network."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        super().__init__("huggingface_hub")
        self.errors = ModuleType("huggingface_hub.errors")
        self.errors.HfHubHTTPError = self.errors.LocalEntryNotFoundError = ConnectionError
        self.folder, self.error, self.downloaded = folder, error, []

    def list_repo_files(self, repo: str) -> list[str]:
        if self.error is not None:
            raise self.error
        assert repo == "user/repo"
        return FILES

    def hf_hub_download(self, repo: str, file: str) -> str:
        self.downloaded.append(file)
        return str(self.folder / repo / file)


def install(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Hub:
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", hub.errors)
    return hub


def test_all_parts_of_a_split_model_are_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = install(monkeypatch, Hub(tmp_path))
    assert download("user/repo:Q8_0") == tmp_path / "user/repo" / SPLIT[0]
    assert hub.downloaded == SPLIT


def test_unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, Hub(tmp_path, ConnectionError("no route")))
    with pytest.raises(ConfigError, match="cannot download user/repo: no route"):
        Ensemble.from_pretrained(["user/repo"])

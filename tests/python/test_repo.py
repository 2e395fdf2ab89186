"""What the repository promises of itself: the public API, the layers, the README, the errors."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import logitfuse
import pytest
from logitfuse import errors
from logitfuse.cli import app
from logitfuse.config import parse_config

REPO = Path(__file__).resolve().parents[2]
PACKAGE = REPO / "python" / "logitfuse"
README = (REPO / "README.md").read_text(encoding="utf-8")
PUBLIC = {
    *("Ensemble", "Member", "Vocab", "TokenKind", "Alignment", "SamplingParams", "Fused"),
    *("align", "fuse", "fuse_batch", "LogitfuseError", "__version__"),
}
MAX_LINES = 450


def modules() -> list[str]:
    """Every Python file of the package, relative to it."""
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports(module: str) -> set[str]:
    """Absolute names of all modules and members that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers(name: str) -> set[str]:
    """The files that import a module or something in it."""
    return {
        module
        for module in modules()
        if any(found == name or found.startswith(f"{name}.") for found in imports(module))
    }


def outside(files: set[str], *rooms: str) -> set[str]:
    """Files that are neither these nor in these folders."""
    return {file for file in files if not file.startswith(rooms)}


def sources(folder: str) -> Iterator[Path]:
    """C++ files in a folder of ``cpp``."""
    return (path for path in (REPO / "cpp" / folder).rglob("*.?pp"))


def blocks(language: str) -> list[str]:
    """Code blocks of the README."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


#: Arguments of every ``logitfuse`` in the shell blocks.
COMMANDS = re.findall(r"(?:^|[|&] )logitfuse (.*)", "\n".join(blocks("sh")), re.MULTILINE)


def run_python(code: str, cwd: Path | None = None) -> str:
    """Output of a program in a process of its own."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestPublicNames:
    def test_all(self) -> None:
        assert set(logitfuse.__all__) == PUBLIC == set(dir(logitfuse))
        for name in PUBLIC:
            assert getattr(logitfuse, name) is not None
        with pytest.raises(AttributeError, match="Ensembel"):
            _ = logitfuse.Ensembel

    @pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
    def test_docstrings(self, name: str) -> None:
        thing = getattr(logitfuse, name)
        assert inspect.getdoc(thing)
        if inspect.isclass(thing):
            members = {key: value for key, value in vars(thing).items() if key[0] != "_"}
            assert {
                key
                for key, value in members.items()
                if (inspect.isfunction(value) or isinstance(value, property | classmethod))
                and not inspect.getdoc(value)
            } == set()

    @pytest.mark.parametrize(
        "code",
        [
            "import logitfuse",
            "import logitfuse; dir(logitfuse); logitfuse.LogitfuseError",
            "from logitfuse import fuse, align, Vocab, SamplingParams",
            "from logitfuse.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
            "from logitfuse.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass",
        ],
    )
    def test_llama_cpp_is_not_loaded_before_it_is_needed(self, code: str) -> None:
        loaded = "import sys\nprint([name for name in sys.modules if 'llama_cpp' in name])"
        assert run_python(f"{code}\n{loaded}").splitlines()[-1] == "[]"


class TestLayers:
    def test_one_module_knows_llama_cpp(self) -> None:
        assert outside(importers("llama_cpp"), "llama.py", "llama/") == set()

    def test_nobody_imports_the_command_line_or_the_server(self) -> None:
        assert outside(importers("logitfuse.cli"), "cli/", "__main__.py") == set()
        assert outside(importers("logitfuse.server"), "server/", "cli/") == set()

    @pytest.mark.parametrize("library", ["fastapi", "starlette", "uvicorn"])
    def test_only_the_server_knows_http(self, library: str) -> None:
        assert outside(importers(library), "server/") == set()

    @pytest.mark.parametrize("library", ["cyclopts", "rich"])
    def test_only_the_command_line_knows_terminals(self, library: str) -> None:
        assert outside(importers(library), "cli/") == set()

    def test_one_module_knows_the_library_of_grammars(self) -> None:
        assert importers("llguidance") == {"grammar.py"}

    def test_one_room_knows_the_harness(self) -> None:
        assert outside(importers("lm_eval"), "harness/") == set()
        assert outside(importers("logitfuse.harness"), "harness/") == set()

    def test_one_module_knows_llm(self) -> None:
        assert importers("llm") | importers("click") == {"llm_plugin.py"}
        assert importers("logitfuse.llm_plugin") == set()

    def test_only_the_command_line_prints(self) -> None:
        printing = {
            module
            for module in modules()
            for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))
            if (isinstance(node, ast.Name) and node.id == "print")
            or (isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr"))
        }
        assert outside(printing, "cli/") == set()

    def test_strategies_know_each_other_only_as_generators(self) -> None:
        for module in modules():
            if module.startswith("strategies/"):
                others = {name for name in imports(module) if "logitfuse.strategies" in name}
                rooms = ("base", "engine", "prompts", "stats", "tokens")
                shared = tuple(f"logitfuse.strategies.{room}" for room in rooms)
                assert all(name.startswith(shared) for name in others), module

    def test_only_the_bindings_know_python(self) -> None:
        for folder in ("include", "src"):
            for path in sources(folder):
                assert not re.search(r"pybind11|Python\.h|PyObject", path.read_text()), path

    def test_no_file_is_too_long(self) -> None:
        files = [PACKAGE / module for module in modules()]
        files += [*sources("include"), *sources("src"), *sources("bindings")]
        files += (REPO / "cpp").rglob("*.inl")
        lengths = {
            path.relative_to(REPO).as_posix(): path.read_text(encoding="utf-8").count("\n")
            for path in files
        }
        assert {file: n for file, n in lengths.items() if n > MAX_LINES} == {}


class TestReadme:
    @pytest.mark.parametrize("block", blocks("python"))
    def test_python(
        self, block: str, tmp_path: Path, smollm2_path: Path, gemma3_path: Path
    ) -> None:
        (tmp_path / "a.gguf").symlink_to(smollm2_path)
        (tmp_path / "b.gguf").symlink_to(gemma3_path)
        assert run_python(block, cwd=tmp_path)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_commands(self, command: str) -> None:
        app.parse_args(shlex.split(command, comments=True), exit_on_error=False, print_error=False)

    def test_flags_in_the_text(self) -> None:
        text = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
        commands = [
            app[c]
            for c in ("run", "chat", "serve", "batch", "check", "fit", "bench", "info", "demo")
        ]
        commands += [app["eval"][c] for c in ("bpb", "choice", "exact", "trace", "make")]
        known = {
            name
            for command in commands
            for argument in command.assemble_argument_collection()
            for name in argument.names
        }
        flags = {
            word
            for code in re.findall(r"`([^`]+)`", text)
            if not code.startswith("python ")  # a bench with flags of its own
            for word in code.split()
            if re.fullmatch(r"--?[a-z][a-z-]*", word)
        }
        assert len(flags) > 10
        assert flags - known == set()

    @pytest.mark.parametrize("block", blocks("toml"))
    def test_toml(self, block: str) -> None:
        assert parse_config(tomllib.loads(block)).member

    def test_there_is_something_to_test(self) -> None:
        assert blocks("python")
        assert len(COMMANDS) > 3
        assert blocks("toml")


def drawn_errors() -> dict[str, tuple[str | None, set[str], set[str]]]:
    """The tree in the docstring: name to parent, built-in parents and attributes."""
    tree: dict[str, tuple[str | None, set[str], set[str]]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r" {4}([│├└─ ]*)([A-Z]\w+Error)\b(.*)", line):
            depth = len(match[1]) // 4
            del path[depth:]
            builtins = set(re.findall(r"\((\w+Error)\)", match[3]))
            attributes = set(re.findall(r"(?<!\w)\.([a-z_]+)", match[3]))
            tree[match[2]] = (path[-1] if path else None, builtins, attributes)
            path.append(match[2])
    return tree


class TestErrors:
    def test_all_are_drawn(self) -> None:
        classes = inspect.getmembers(errors, inspect.isclass)
        assert set(drawn_errors()) == {name for name, _ in classes if name.endswith("Error")}

    @pytest.mark.parametrize("name", sorted(drawn_errors()))
    def test_as_drawn(self, name: str) -> None:
        parent, builtins, attributes = drawn_errors()[name]
        error = getattr(errors, name)
        assert inspect.getdoc(error)
        bases = {base.__name__ for base in error.__bases__}
        assert bases == (({parent} if parent else set()) | builtins or {"Exception"})
        assert attributes <= set(inspect.signature(error.__init__).parameters)

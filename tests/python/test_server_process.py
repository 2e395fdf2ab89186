"""``logitfuse serve`` as a process: options, signals, ports, crashes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_line import logitfuse, refusal
from servers import PROMPT, TEXT, Process, error_of, events, process, until

LONG: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def one(tiny_models: Mapping[str, Path]) -> list[str | Path]:
    """Options for one member."""
    return ["-m", tiny_models["smol"], "-t", "1", "-c", "512"]


@pytest.fixture(scope="module")
def file(tiny_models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ensembles of two members."""
    path = tmp_path_factory.mktemp("served") / "two.toml"
    members = "".join(
        f'[[member]]\nmodel = "{tiny_models[name]}"\nn_threads = 1\n' for name in ("smol", "gemma3")
    )
    path.write_text(
        f'{members}[[ensemble]]\nname = "pair"\nstrategy = "fuse"\n'
        '[[ensemble]]\nname = "one"\nmembers = ["smol"]\n'
    )
    return path


class TestOptions:
    def test_ensembles_of_files(self, file: Path, tmp_path: Path) -> None:
        keys = tmp_path / "keys"
        keys.write_text("secret\n")
        with process("-e", file, "--api-key-file", keys, "-np", "2", "--queue", "0") as server:
            assert server.lines[-1].startswith("serving pair, one at http://127.0.0.1:")
            server.http.headers["Authorization"] = "Bearer secret"
            told = server.http.get("/props").json()
            assert (told["slots"], told["queue"]) == (2, 0)
            assert list(told["models"]) == ["pair", "one"]
            answer = server.http.post(TEXT, json=LONG | {"model": "one", "stream": False})
            assert answer.json()["usage"]["completion_tokens"] == 400
            assert server.end(signal.SIGINT) == 0
        assert any(line.startswith(f"POST {TEXT} 200 ") for line in server.lines)

    def test_alias(self, one: list[Any]) -> None:
        few = ("--max-tokens", "3", "--queue-tokens", "50")
        with process(*one, "--alias", "mine", *few) as server:
            told = server.http.get("/props").json()
            answer = server.http.post(TEXT, json=LONG | {"stream": False}).json()
        assert answer["model"] == "mine"
        assert answer["usage"]["completion_tokens"] == 3
        assert told["queue_tokens"] == 50

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([], "no models; give -m model.gguf"),
            (["-m", "a.gguf", "--host", "0.0.0.0"], "give --api-key KEY, or --no-auth"),
            (["-m", "a.gguf", "--port", "99999"], "'port': Input should be less than or equal"),
            (["-m", "a.gguf", "--time-limit", "0"], "'time_limit'"),
            (["-m", "a.gguf", "--queue-tokens", "0"], "'queue_tokens'"),
            (["-m", "a.gguf", "--api-key-file", "none"], "cannot read the keys"),
            (["-m", "a.gguf", "--host", "no.such.host.invalid"], "--no-auth"),
            (["-m", "a.gguf", "--no-auth", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
            (["-m", "a.gguf", "--port", "0"], "there is no model file"),
        ],
    )
    def test_what_cannot_be(self, options: list[str], message: str) -> None:
        assert message in refusal(logitfuse("serve", *options))

    def test_two_of_one_name(self, file: Path) -> None:
        done = logitfuse("serve", "-e", file, "-e", file, "--port", "0")
        assert "two ensembles are called 'pair'" in refusal(done)
        done = logitfuse("serve", "-e", file, "--alias", "x", "--port", "0")
        assert "cannot all be called 'x'" in refusal(done)

    def test_a_port_that_is_taken(self, one: list[Any]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            done = logitfuse("serve", *one, "--port", port)
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in refusal(done)

    def test_from_the_environment(self, one: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOGITFUSE_API_KEY", "secret")
        monkeypatch.setenv("LOGITFUSE_SERVE_PARALLEL", "3")
        with process(*one) as server:
            error_of(server.http.get("/props"), 401)
            told = server.http.get("/props", headers={"Authorization": "Bearer secret"}).json()
            assert told["slots"] == 3

    def test_ipv6(self, one: list[Any]) -> None:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
        with process(*one, "--host", "::1", "--allowed-host", "me") as server:
            assert str(server.url).startswith("http://[::1]:")
            assert server.http.post(TEXT, json=LONG).text.endswith("data: [DONE]\n\n")
            assert server.http.get("/health", headers={"Host": "me"}).status_code == 200

    def test_without_the_extra(self, one: list[Any]) -> None:
        code = (
            "import sys; sys.modules['fastapi'] = None\n"
            f"from logitfuse.cli import main; main(['serve', '-m', {str(one[1])!r}])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "pip install 'logitfuse[server]'" in done.stderr


def busy(server: Process) -> tuple[str, ...]:
    """How many requests are being answered, and how many wait."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines)
    return found["logitfuse_active"], found["logitfuse_waiting"]


class TestEnds:
    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
    def test_running_answers_end(self, one: list[Any], how: int) -> None:
        with process(*one, "-np", "2") as server:
            waiting: list[httpx.Response] = []
            with server.http.stream("POST", TEXT, json=LONG | {"n": 2}) as response:
                lines = response.iter_lines()
                next(lines)
                other = threading.Thread(
                    target=lambda: waiting.append(
                        httpx.post(f"{server.url}{TEXT}", json=LONG, timeout=60)
                    )
                )
                other.start()
                until(lambda: busy(server) == ("2.0", "1.0"))
                server.process.send_signal(how)
                until(lambda: httpx.get(f"{server.url}/health").status_code == 503)
                error_of(httpx.post(f"{server.url}{TEXT}", json=LONG), 503)
                assert events(list(lines))[-1] == "[DONE]"
            other.join()
            error_of(waiting[0], 503)  # it had not begun
            assert server.wait() == 0

    def test_prompts_that_are_being_read(self, one: list[Any]) -> None:
        """They have begun, though nobody has heard of it; those that wait have not."""
        slow = (
            "import time\nfrom logitfuse.llama import LlamaDecoder\ndecode = LlamaDecoder.decode\n"
            "def slowly(*given): time.sleep(0.2); return decode(*given)\n"
            "LlamaDecoder.decode = slowly"
        )
        body = {"prompt": "word " * 200, "max_tokens": 2, "ignore_eos": True}
        answers: dict[str, httpx.Response] = {}

        def ask(name: str, **more: Any) -> threading.Thread:
            def post() -> None:
                answers[name] = httpx.post(f"{server.url}{TEXT}", json=body | more, timeout=60)

            thread = threading.Thread(target=post)
            thread.start()
            return thread

        with process(*one, "-np", "2", "-b", "32", before=slow) as server:
            asked = [ask("whole"), ask("stream", stream=True)]
            until(lambda: busy(server) == ("2.0", "0.0"))
            asked.append(ask("waits"))
            until(lambda: busy(server) == ("2.0", "1.0"))
            server.process.send_signal(signal.SIGTERM)
            for thread in asked:
                thread.join()
            assert server.wait() == 0
        assert answers["whole"].json()["usage"]["completion_tokens"] == 2
        assert events(answers["stream"].text.splitlines())[-1] == "[DONE]"
        error_of(answers["waits"], 503)

    def test_not_for_ever(self, one: list[Any]) -> None:
        with (
            process(*one, "--shutdown-timeout", "0") as server,
            server.http.stream("POST", TEXT, json=LONG) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            assert '"code":"unavailable"' in events(list(lines))[-1]
            assert server.wait() == 0

    def test_a_batcher_that_has_failed(self, one: list[Any]) -> None:
        """A server that answers nobody any more ends, for its service manager to see."""
        fails = (
            "from logitfuse.batching import Batcher\nsubmit = Batcher.submit\n"
            "def fail(): raise RuntimeError('as tests want it')\n"
            "def submit_or_fail(self, job, listener):\n"
            "    if job.request.prompt == 'fail': self._conductor.post(fail)\n"
            "    return submit(self, job, listener)\n"
            "Batcher.submit = submit_or_fail"
        )
        with process(*one, before=fails) as server:
            with server.http.stream("POST", TEXT, json=LONG) as response:
                lines = response.iter_lines()
                next(lines)
                error_of(httpx.post(f"{server.url}{TEXT}", json={"prompt": "fail"}), 503)
                assert '"code":"internal_error"' in events(list(lines))[-1]
            assert server.wait() == 2
        assert "logitfuse: the batcher has failed (RuntimeError('as tests want it'))" in "".join(
            server.lines
        )

    def test_a_second_signal_ends_at_once(self, one: list[Any]) -> None:
        with (
            process(*one, "-np", "4") as server,
            server.http.stream("POST", TEXT, json=LONG | {"n": 4}) as response,
        ):
            lines = response.iter_lines()  # held: the client stays
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(f"{server.url}/health").status_code == 503)
            assert server.end(signal.SIGTERM) == -signal.SIGTERM

    def test_killed_and_started_again(self, one: list[Any]) -> None:
        with process(*one) as server, server.http.stream("POST", TEXT, json=LONG) as response:
            next(response.iter_lines())
            server.end(signal.SIGKILL)
        port = int(str(server.url).rpartition(":")[2])
        with process(*one, port=port) as server:
            assert server.http.post(TEXT, json=LONG | {"max_tokens": 2}).status_code == 200

    def test_while_loading(self, one: list[Any]) -> None:
        code = (
            "import sys, time\nfrom logitfuse.batching import Batcher\n"
            "Batcher.__init__ = lambda *_, **__: time.sleep(60)\n"
            "from logitfuse.cli import main; main(['serve', *sys.argv[1:]])"
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        started = subprocess.Popen([sys.executable, "-c", code, *one, "--port", str(port)])
        try:

            def answers() -> bool:
                try:
                    return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 503
                except httpx.TransportError:
                    return False

            until(answers)
            began = time.monotonic()
            started.terminate()
            assert started.wait(30) == 0
            assert time.monotonic() - began < 20
        finally:
            started.kill()
            started.wait()

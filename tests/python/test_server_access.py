"""Who may ask a server: keys, names of hosts, origins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from logitfuse.batching import Batcher
from logitfuse.errors import ConfigError
from logitfuse.server.app import make_app
from logitfuse.server.settings import Settings
from servers import SHORT, TEXT, Served, ensembles, error_of, serving

KEY = "a-längere-key"
PREFLIGHT = {
    "Origin": "https://example.org",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-retry-count",
}


@pytest.fixture(scope="module")
def batcher(tiny_models: Mapping[str, Path]) -> Iterator[Batcher]:
    with closing(Batcher(ensembles(tiny_models)[2:], slots=1, queue=2)) as made:
        yield made


@pytest.fixture(scope="module")
def served(batcher: Batcher) -> Iterator[Served]:
    with serving(batcher) as started:
        yield started


@pytest.fixture(scope="module")
def guarded(batcher: Batcher) -> Iterator[Served]:
    """A server with keys."""
    with serving(batcher, api_key=["another", KEY]) as started:
        yield started


class TestKeys:
    @pytest.mark.parametrize(
        "given",
        [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, "Bearer another2"],
    )
    def test_wrong_ones(self, guarded: Served, given: str | None) -> None:
        headers = {} if given is None else {"Authorization": given.encode()}
        for path in ("/v1/models", "/props", "/metrics", "/openapi.json", "/nothing"):
            response = guarded.http.get(path, headers=headers)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        assert guarded.http.post(TEXT, content=b"{", headers=headers).status_code == 401

    @pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer  {KEY}", "Bearer another"])
    def test_right_ones(self, guarded: Served, given: str) -> None:
        headers = {"Authorization": given.encode()}
        assert guarded.http.get("/v1/models", headers=headers).status_code == 200
        assert guarded.http.post(TEXT, json=SHORT, headers=headers).status_code == 200

    def test_open_paths(self, guarded: Served) -> None:
        assert guarded.http.get("/health").json() == {"status": "ok"}
        assert guarded.http.get("/").status_code == 200

    def test_keys_that_end_with_what_looks_blank(self, batcher: Batcher) -> None:
        key = "\u00a0kuo\u00e0"  # in UTF-8 its last byte is a blank of Latin-1
        with serving(batcher, api_key=[key]) as started:
            headers = {"Authorization": b"Bearer " + key.encode()}
            assert started.http.get("/v1/models", headers=headers).status_code == 200

    def test_any_name_will_do_with_a_key(self, guarded: Served) -> None:
        headers = {"Host": "example.org", "Authorization": f"Bearer {KEY}".encode()}
        assert guarded.http.get("/v1/models", headers=headers).status_code == 200


class TestSettings:
    def test_other_machines_need_a_key(self, batcher: Batcher) -> None:
        for host in ("0.0.0.0", "::", "192.0.2.1"):
            with pytest.raises(ConfigError, match="give --api-key KEY, or --no-auth"):
                make_app(batcher, Settings(host=host))
            make_app(batcher, Settings(host=host, no_auth=True))
            make_app(batcher, Settings(host=host, api_key=["key"]))
        for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
            make_app(batcher, Settings(host=host))

    def test_files_of_keys(self, tmp_path: Path) -> None:
        file = tmp_path / "keys"
        file.write_text("one\n\n two \n")
        assert Settings(api_key=["zero"], api_key_file=file).keys() == [b"zero", b"one", b"two"]
        file.write_text("\n")
        with pytest.raises(ConfigError, match="no key in"):
            Settings(api_key_file=file).keys()
        with pytest.raises(ConfigError, match="cannot read the keys"):
            Settings(api_key_file=tmp_path / "nothing").keys()
        with pytest.raises(ConfigError, match="empty"):
            Settings(api_key=[""]).keys()


class TestBrowsers:
    def test_no_cors_unless_wanted(self, served: Served) -> None:
        response = served.http.options(TEXT, headers=PREFLIGHT)
        assert response.status_code == 405
        response = served.http.get("/v1/models", headers={"Origin": "https://example.org"})
        assert not [name for name in response.headers if name.startswith("access-control")]

    def test_cors(self, batcher: Batcher) -> None:
        with serving(batcher, cors=["https://example.org"], api_key=[KEY]) as started:
            response = started.http.options(TEXT, headers=PREFLIGHT)
            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == "https://example.org"
            allowed = response.headers["access-control-allow-headers"].split(",")
            assert "x-stainless-retry-count" in allowed
            other = started.http.options(TEXT, headers=PREFLIGHT | {"Origin": "https://a.b"})
            assert other.status_code == 400
            refused = started.http.get("/v1/models", headers={"Origin": "https://example.org"})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == "https://example.org"
            assert refused.headers["access-control-expose-headers"] == "Retry-After"

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "evil.example:80",
            "127.0.0.1.evil.example",
            "[::1].evil.example",
            "",
            "a:b",
        ],
    )
    def test_foreign_names_of_this_machine(self, served: Served, host: str) -> None:
        error = error_of(served.http.get("/health", headers={"Host": host}), 400)
        assert error["code"] == "unknown_host"
        assert f"--allowed-host {host}" in error["message"]

    @pytest.mark.parametrize(
        "host", ["localhost", "LocalHost:1", "127.0.0.1", "[::1]:8080", "[::1]"]
    )
    def test_its_own_names(self, served: Served, host: str) -> None:
        assert served.http.get("/health", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize(
        ("settings", "statuses"),
        [
            ({"allowed_host": ["Host.docker.internal"]}, (200, 400, 200)),
            ({"no_auth": True}, (400, 400, 200)),
            ({"no_auth": True, "host": "0.0.0.0"}, (200, 200, 200)),
            ({"no_auth": True, "host": "0.0.0.0", "allowed_host": ["me"]}, (400, 400, 200)),
            ({"host": "::1"}, (400, 400, 200)),
        ],
    )
    def test_who_is_asked_for_its_name(
        self, batcher: Batcher, settings: dict[str, Any], statuses: tuple[int, ...]
    ) -> None:
        with serving(batcher, **settings) as started:
            hosts = ("host.docker.internal:80", "evil.example", f"localhost:{started.port}")
            responses = [started.http.get("/health", headers={"Host": host}) for host in hosts]
        assert tuple(response.status_code for response in responses) == statuses

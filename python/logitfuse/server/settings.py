"""Where the server listens, to whom, and how much it takes."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from logitfuse.api.limits import Limits
from logitfuse.errors import ConfigError


class Settings(BaseModel):
    """Of a server; every one is a flag of ``logitfuse serve``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0: any free one.")
    parallel: int = Field(4, ge=1, description="Requests that are answered at once.")
    queue: int = Field(64, ge=0, description="Requests that may wait; more are sent away (429).")
    queue_tokens: int | None = Field(
        None,
        ge=1,
        description="Prompt tokens that all requests may have which are answered or wait; more are "
        "sent away (429).",
    )
    api_key: list[str] = Field(
        default_factory=list, description="Key that requests must bring (Bearer); repeat it."
    )
    api_key_file: Path | None = Field(None, description="File of such keys, one per line.")
    no_auth: bool = Field(False, description="Serve other machines without a key.")
    cors: list[str] = Field(
        default_factory=list,
        description="Origin whose pages may ask from browsers (https://example.org); repeat it.",
    )
    allowed_host: list[str] = Field(
        default_factory=list,
        description="Another name of this machine (host.docker.internal) that requests may call it "
        "by where they bring no key; repeat it.",
    )
    max_body: int = Field(2_000_000, ge=1, description="Longest body of a request, bytes.")
    max_prompt: int = Field(
        200_000,
        ge=1,
        description="Longest prompt, characters or tokens; a message of a chat counts 16 besides.",
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Most tokens of an answer, whatever is asked for."
    )
    time_limit: float | None = Field(
        600.0, gt=0, description="Seconds after which an answer ends; its prompt counts."
    )
    shutdown_timeout: float = Field(
        30.0, ge=0, description="Seconds that running answers have after SIGTERM."
    )
    log_prompts: bool = Field(False, description="Write prompts to the log.")

    @property
    def limits(self) -> Limits:
        """Of what requests may ask for."""
        return Limits(tokens=self.max_tokens, seconds=self.time_limit, prompt=self.max_prompt)

    @property
    def is_local(self) -> bool:
        """Only this machine can reach the server."""
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
        except OSError:
            return False  # listening will fail, and say why
        return all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in found)

    def keys(self) -> list[bytes]:
        """What requests must bring one of; none: everybody is served.

        Raises
        ------
        ConfigError
            A file cannot be read or a key is empty; other machines would be served without a key.
        """
        keys = list(self.api_key)
        if self.api_key_file is not None:
            try:
                text = self.api_key_file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"cannot read the keys: {error}", key="api_key_file") from None
            keys += [line.strip() for line in text.splitlines() if line.strip()]
            if not keys:
                raise ConfigError(f"no key in '{self.api_key_file}'", key="api_key_file")
        if not all(keys):
            raise ConfigError("an empty --api-key protects nothing", key="api_key")
        if not (keys or self.no_auth or self.is_local):
            raise ConfigError(
                f"{self.host} can be reached from other machines; give --api-key KEY, or --no-auth "
                "to serve everybody",
                key="host",
            )
        return [key.encode() for key in keys]

"""`manyoyo-mcp serve --http` as a process of its own, for tests, and what a client of it sees."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult

from manyoyo_mcp.http.tokens import Tokens
from manyoyo_mcp.sessions.identity import owner
from tests.support import SLACK


@dataclass
class Server:
    """`manyoyo-mcp serve --http` in a directory of its own, with tokens of its own."""

    directory: Path
    settings: dict[str, str] = field(default_factory=dict)
    quiet: bool = False
    process: subprocess.Popen[bytes] | None = None
    secrets: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.tokens = Tokens(self.directory / "tokens.json")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    @property
    def log(self) -> Path:
        """What a `quiet` one says, which the tests look at."""
        return self.directory / "stderr.log"

    def records(self) -> list[dict[str, Any]]:
        """Its audit log."""
        lines = (self.directory / "state" / "audit" / "audit.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def add(self, name: str, *scopes: str) -> None:
        self.secrets[name] = self.tokens.add(name, list(scopes))

    def start(self) -> None:
        environment = {
            "MANYOYO_STATE_DIR": str(self.directory / "state"),
            "MANYOYO_HTTP_TOKENS": str(self.tokens.path),
            **self.settings,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "manyoyo_mcp", "serve", "--http", f"127.0.0.1:{self.port}"],
            env={**os.environ, **environment},
            cwd=self.directory,
            stderr=self.log.open("ab") if self.quiet else None,
        )
        deadline = time.monotonic() + 60 * SLACK
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.process.poll() is None, "the server ended"
            time.sleep(0.1)
        raise AssertionError("the server does not listen")

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(60 * SLACK)

    def headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secrets[name]}"}

    @contextlib.asynccontextmanager
    async def client(self, name: str, mode: str = "auto", **options: Any) -> AsyncIterator[Client]:
        async with (
            httpx2.AsyncClient(headers=self.headers(name), timeout=300) as http,
            Client(streamable_http_client(self.url, http_client=http), mode=mode, **options) as connected,
        ):
            yield connected


def left(*principals: str) -> list[str]:
    """What these principals of this user's servers have on the host."""
    host = docker.from_env()
    found = []
    for each in principals:
        theirs = {"label": f"org.manyoyo.owner={owner(each)}"}
        found += [each.name for each in host.containers.list(all=True, filters=theirs, ignore_removed=True)]
        found += [each.name for each in host.volumes.list(filters=theirs)]
    host.close()
    return found


def code(result: CallToolResult) -> str:
    return str((result.meta or {}).get("org.manyoyo/error", {}).get("code", "OK"))


def words(result: CallToolResult) -> str:
    return "\n".join(getattr(each, "text", "") for each in result.content)

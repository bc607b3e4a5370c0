"""Testcontainers, as people use it, over an endpoint: a PostgreSQL made from packages, reached as it is reached anywhere."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from mcp import Client

from tests.conftest import server_parameters
from tests.integration.bases import ensure_bases

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("bases_begun"),
    pytest.mark.timeout(900),  # it makes its base image
]
USE = """
import json, sys
import pg8000.native
from testcontainers.postgres import PostgresContainer

with PostgresContainer("localhost/manyoyo/postgres", driver=None) as postgres:
    where = {"host": postgres.get_container_host_ip(), "port": int(postgres.get_exposed_port(5432))}
    who = {"user": postgres.username, "password": postgres.password, "database": postgres.dbname}
    with pg8000.native.Connection(**where, **who) as one, pg8000.native.Connection(**where, **who) as other:
        one.run("CREATE TABLE words (word text)")
        one.run("INSERT INTO words VALUES (:word)", word="x" * 2_000_000)
        [[length]] = other.run("SELECT length(word) FROM words")
        [[version]] = other.run("SELECT version()")
    try:
        pg8000.native.Connection(**where, **who | {"password": "wrong"})
    except pg8000.native.DatabaseError as error:
        refused = error.args[0]["M"]
    print(json.dumps({**where, "length": length, "version": version, "refused": refused}), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module", autouse=True)
async def _postgres() -> None:
    await ensure_bases(["postgres"])


def program(environment: dict[str, str]) -> "subprocess.Popen[str]":
    """The user's, which knows of nothing but its variables."""
    command = [sys.executable, "-c", USE]
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize("engine", ["podman", "docker"])
async def test_a_database_of_ones_own(tmp_path: Path, engine: str) -> None:
    async with Client(server_parameters(tmp_path, MANYOYO_APPROVE="port=allow")) as client:

        async def call(tool: str, **arguments: Any) -> dict[str, Any]:
            result = await client.call_tool(tool, arguments)
            assert not result.is_error and result.structured_content is not None, result.content
            return dict(result.structured_content)

        await call("start_sandbox", engine=engine)
        endpoint = await call("sandbox_endpoint", ports=True)
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "DOCKER_HOST": endpoint["docker_host"],
            "TESTCONTAINERS_RYUK_DISABLED": "true",  # its image is in a registry alone
            "TESTCONTAINERS_CONNECTION_MODE": "docker_host",  # it takes a machine with a /.dockerenv for a nested container
        }  # fmt: skip
        user = program(environment)
        assert user.stdin is not None and user.stdout is not None
        try:
            line = await anyio.to_thread.run_sync(user.stdout.readline)
            assert line, "see stderr"
            said = json.loads(line)
            assert said["length"] == 2_000_000 and said["version"].startswith("PostgreSQL "), said
            assert said["host"] == "localhost" and "password authentication failed" in said["refused"], said
            [status] = (await call("sandbox_status"))["sandboxes"]
            assert len(status["ports"]) == 1 and status["ports"][0].startswith(f"127.0.0.1:{said['port']} to "), status
            user.stdin.write("\n")
            user.stdin.flush()
            assert await anyio.to_thread.run_sync(user.wait) == 0
        finally:
            user.kill()
            user.wait()
            user.stdin.close()
            user.stdout.close()
        with anyio.fail_after(10), socket.socket() as sock:
            while sock.connect_ex(("127.0.0.1", said["port"])) == 0:
                await anyio.sleep(0.1)
        await call("cleanup")

"""Status calls over HTTP: `python -m bench.http [--clients 100] [--seconds 20] [--tool job_status]`.

A server of its own with a sandbox, and clients that each ask again as soon as they are answered, in a process of their own beside it.
`job_status` asks the server alone; `sandbox_status` asks the host's engine and the nested one too.
"""

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2

from manyoyo_mcp.http.tokens import Tokens

_PROTOCOL = "2026-07-28"
_META = {
    "io.modelcontextprotocol/protocolVersion": _PROTOCOL,
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def _call(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    params = {"name": tool, "arguments": arguments, "_meta": _META}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


async def _ask(http: httpx2.AsyncClient, tool: str, arguments: dict[str, Any]) -> str:
    answer = await http.post(
        "/mcp", json=_call(tool, arguments), headers={"Mcp-Method": "tools/call", "Mcp-Name": tool}
    )
    if answer.status_code != 200 or '"isError":true' in answer.text.replace(" ", ""):
        raise RuntimeError(f"{answer.status_code}: {answer.text[:300]}")
    return answer.text


@contextlib.contextmanager
def _server(directory: Path) -> Iterator[tuple[str, str, int]]:
    token = Tokens(directory / "tokens.json").add("bench", ["read", "run"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "MANYOYO_HTTP_TOKENS": str(directory / "tokens.json"),
        "MANYOYO_STATE_DIR": str(directory / "state"),
        "MANYOYO_HTTP_RATE": "100000",
        "MANYOYO_HTTP_CALLS": "1000",
    }
    command = [sys.executable, "-m", "manyoyo_mcp", "serve", "--http", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, env={**os.environ, **environment}, cwd=directory)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None:
                raise RuntimeError("the server ended")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", token, process.pid
    finally:
        process.terminate()
        process.wait(60)


def _cpu_seconds(pid: int) -> float:
    """Of a process, by now: what it takes is told apart from what the machine does beside it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(url: str, token: str, pid: int, clients: int, seconds: float, tool: str) -> None:
    headers = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": _PROTOCOL,
    }
    took: list[float] = []
    failed: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        all_of_them = [
            await stack.enter_async_context(httpx2.AsyncClient(base_url=url, headers=headers, timeout=120))
            for _ in range(clients)
        ]
        await _ask(all_of_them[0], "start_sandbox", {})
        end = time.monotonic() + seconds

        async def ask(http: httpx2.AsyncClient) -> None:
            while (begun := time.monotonic()) < end:
                try:
                    await _ask(http, tool, {})
                    took.append(time.monotonic() - begun)
                except (RuntimeError, httpx2.HTTPError) as error:
                    failed.append(repr(error))
                    await anyio.sleep(0.1)

        begun, cpu = time.monotonic(), _cpu_seconds(pid)
        async with anyio.create_task_group() as group:
            for http in all_of_them:
                group.start_soon(ask, http)
        whole, cpu = time.monotonic() - begun, _cpu_seconds(pid) - cpu
    cuts = statistics.quantiles(took, n=100)
    print(
        f"{tool}, {clients} clients: {len(took) / whole:.0f} calls/s; median {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms; "
        f"{cpu / len(took) * 1000:.1f} ms of the server's CPU a call; "
        f"{len(failed)} failed of {len(took) + len(failed)}" + (f", e.g. {failed[0]}" if failed else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--tool", default="job_status", choices=["job_status", "sandbox_status"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-http-") as directory, _server(Path(directory)) as (url, token, pid):
        anyio.run(measure, url, token, pid, given.clients, given.seconds, given.tool)


if __name__ == "__main__":
    main()

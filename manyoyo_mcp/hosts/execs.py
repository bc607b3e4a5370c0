"""Programs of ours run in containers of ours."""

import time

import docker

from manyoyo_mcp.attached import Attached
from manyoyo_mcp.hosts.base import Completed

_PATIENCE = 10.0
"""Seconds beyond its own limit for what a program says to arrive."""


def execute(
    client: docker.APIClient,
    container_id: str,
    argv: list[str],
    silence: float | None = None,
    stdin: bytes | None = None,
) -> Completed:
    """Run `argv` in a container, given `stdin`, and wait for its end. Raises docker.errors.APIError where that does not run, EngineUnreachable
    where it says nothing for `silence` seconds and a few: a connection over a network may be lost without a word."""
    exec_id = client.exec_create(container_id, argv, stdin=stdin is not None)["Id"]
    silent = None if silence is None else silence + _PATIENCE
    attached = Attached(client.exec_start(exec_id, socket=True), silence=silent)
    output = bytearray()
    try:
        if stdin is not None:
            attached.feed(stdin)
        attached.pump(output.extend)
    finally:
        attached.close()
    for _ in range(250):  # the output's end comes a moment before the process's
        state = client.exec_inspect(exec_id)
        if not state["Running"]:
            break
        time.sleep(0.02)
    code = state["ExitCode"]
    return Completed(125 if code is None else code, output.decode(errors="replace"))

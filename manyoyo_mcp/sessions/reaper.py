"""A process of its own that waits for the server's end, however it comes, and removes what the session left.

Started by the server with its first sandbox, in a session of its own, so that no signal to the server's process group
reaches it. It imports nothing heavy until there is something to do.
"""

import json
import os
import subprocess
import sys
import time

from manyoyo_mcp.sessions.identity import process_start

INTERVAL = 0.5
"""Seconds between looks at the server, where the kernel can't tell of its end by itself."""
PATIENCE = 120.0
"""Seconds for which the host's engine may be away, as when it is restarted; after that a later sweep has to do."""


def spawn(session: str, principal: str = "") -> subprocess.Popen[bytes]:
    """Start the reaper of this process for `session`. It has our environment and so our settings."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "manyoyo_mcp.sessions.reaper",
            json.dumps([os.getpid(), process_start(os.getpid()), session, principal]),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        close_fds=True,
    )


def session_of(argument: str) -> str:
    """The session that a reaper with this argument waits for."""
    return str(json.loads(argument)[2])


def main(argument: str) -> None:
    pid, started, session, *principal = json.loads(argument)
    _wait_for_end(pid, started)
    import anyio

    from manyoyo_mcp.config import Settings
    from manyoyo_mcp.sessions.sweep import remove_session

    end = time.monotonic() + PATIENCE
    pause = 1.0
    while True:
        try:
            anyio.run(remove_session, Settings(), session, *principal)
            return
        except Exception:  # the host's engine may be restarting: try again
            if time.monotonic() + pause > end:
                return
            time.sleep(pause)
            pause = min(2 * pause, 20)


def _wait_for_end(pid: int, started: str) -> None:
    try:
        import select

        descriptor = os.pidfd_open(pid)
        if process_start(pid) == started:
            select.select([descriptor], [], [])
        return
    except (OSError, AttributeError):
        pass
    while os.getppid() == pid:
        time.sleep(INTERVAL)


if __name__ == "__main__":
    main(sys.argv[1])

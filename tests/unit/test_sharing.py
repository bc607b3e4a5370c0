"""The directory that a sandbox shares with its server."""

import os
import socket
from pathlib import Path

import pytest

from manyoyo_mcp.hosts import sharing


@pytest.mark.parametrize("length", [20, 107, 108, 400])
def test_a_socket_is_reached_however_long_its_path(tmp_path: Path, length: int) -> None:
    room = length - len(os.fsencode(tmp_path)) - len("//engine.sock")
    directory = tmp_path.joinpath(*["d" * 40] * (room // 41), "d" * max(room % 41, 1))
    directory.mkdir(parents=True)
    assert length == 20 or len(os.fsencode(directory / "engine.sock")) == length
    assert not sharing.listens(directory / "engine.sock")
    descriptor = os.open(directory, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{descriptor}/engine.sock")
        server.listen()
        assert sharing.listens(directory / "engine.sock")
    os.close(descriptor)

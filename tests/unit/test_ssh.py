"""What is run for a host at the other end of ssh."""

import pytest

from manyoyo_mcp.hosts.ssh import command


@pytest.mark.parametrize(
    ("address", "end"),
    [
        ("ssh://DevBox", ["--", "DevBox", "docker", "system", "dial-stdio"]),
        ("ssh://me@box:2222", ["-l", "me", "-p", "2222", "--", "box", "docker", "system", "dial-stdio"]),
        ("ssh://a%40b@box/", ["-l", "a@b", "--", "box", "docker", "system", "dial-stdio"]),
        (
            "ssh://box/run/a%20b.sock",
            ["--", "box", "docker", "--host", "'unix:///run/a b.sock'", "system", "dial-stdio"],
        ),
    ],
)
def test_address(address: str, end: list[str]) -> None:
    argv = command(address)
    assert argv[0] == "ssh" and argv[-len(end) :] == end and "BatchMode=yes" in argv


@pytest.mark.parametrize(
    "address", ["ssh://", "ssh://-oProxyCommand=x", "ssh://me:secret@box", "ssh://box:x", "ssh://box?a=b"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match="is not ssh://"):
        command(address)

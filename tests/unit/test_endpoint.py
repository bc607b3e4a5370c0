"""The host's engine, where there is none, or none for this user."""

from pathlib import Path

import pytest

from manyoyo_mcp.errors import HostUnavailable
from manyoyo_mcp.hosts.endpoint import _connect, _unavailable


def test_who_does_not_answer_is_named(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/no.sock"
    with pytest.raises(HostUnavailable) as raised:
        _connect(address)
    assert address in raised.value.message and "MANYOYO_DOCKER_HOST" in raised.value.hint


def test_who_may_not_is_told_how_to() -> None:
    """As docker-py wraps it."""
    wrapped = OSError(
        "Error while fetching server API version: ('Connection aborted.', PermissionError(13, 'Permission denied'))"
    )
    told = _unavailable(wrapped, "")
    assert "may not use" in told.message and "default socket" in told.message
    assert "usermod" in told.hint and "systemctl" not in told.hint

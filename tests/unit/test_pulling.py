"""What was meant by the name of an image that is not there."""

import pytest

from manyoyo_mcp.engines.pulling import _meant
from manyoyo_mcp.sessions.logins import registry_of

THERE = ["localhost/manyoyo/python:latest", "localhost/manyoyo/debian:latest", "localhost/app:1"]


@pytest.mark.parametrize(
    ("image", "meant"),
    [
        ("python", "localhost/manyoyo/python"),
        ("python:latest", "localhost/manyoyo/python"),
        ("localhost/manyoyo/pyton", "localhost/manyoyo/python"),
        ("localhost/ap:1", "localhost/app:1"),
        ("redis", None),
        ("python:3.11", None),
        ("localhost/other:1", None),
    ],
)
def test_meant(image: str, meant: str | None) -> None:
    assert _meant(image, THERE) == meant


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("python", "docker.io"),
        ("team/app:1", "docker.io"),
        ("registry.test:5000/app", "registry.test:5000"),
        ("localhost/app", "localhost"),
        ("TEAM/app", ""),  # engines take it for a host, docker-py for a name on Docker Hub
        ("Registry.test/app", ""),
    ],
)
def test_a_login_is_that_of_the_registry_which_engines_ask(image: str, registry: str) -> None:
    assert registry_of(image) == registry

"""What was meant by the name of an image that is not there."""

import pytest

from manyoyo_mcp.engines.pulling import _meant

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

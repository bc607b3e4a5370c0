"""Sizes and caps as callers write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.values import check_cpus, check_pids, docker_size, format_bytes, parse_memory


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("512m", 512 << 20),
        ("1g", 1 << 30),
        ("1.5G", 3 << 29),
        ("64MiB", 64 << 20),
        ("8388608", 8 << 20),
        (1 << 30, 1 << 30),
    ],
)
def test_memory(written: str | int, size: int) -> None:
    assert parse_memory(written) == size


@pytest.mark.parametrize(
    "written", ["0", "-1", "1e99", "lots", "", "5k", "9" * 50, "1 m b", "NaN", "inf", "1t" * 9, "99999999t"]
)
def test_memory_that_is_none(written: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_memory(written)
    assert "512m" in caught.value.hint


@given(st.integers(6 << 20, 1 << 50))
def test_docker_size_is_read_back(size: int) -> None:
    assert parse_memory(docker_size(size)) == size


@pytest.mark.parametrize("cpus", [0, -1, float("nan"), float("inf"), 1e9])
def test_cpus_that_are_none(cpus: float) -> None:
    with pytest.raises(InvalidArgument):
        check_cpus(cpus)


@pytest.mark.parametrize("pids", [0, -5, 1 << 30])
def test_pids_that_are_none(pids: int) -> None:
    with pytest.raises(InvalidArgument):
        check_pids(pids)


def test_format() -> None:
    assert [format_bytes(size) for size in (5, 1 << 20, 3 << 29)] == ["5 B", "1 MiB", "1.5 GiB"]

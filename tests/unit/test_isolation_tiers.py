"""Which tier can be had with which nested engine, and on what was stored in which."""

import pytest

from manyoyo_mcp.errors import InvalidArgument, NotSupported
from manyoyo_mcp.hosts.isolation import TIERS, check


@pytest.mark.parametrize("engine", ["podman", "docker"])
@pytest.mark.parametrize("name", list(TIERS))
def test_a_tier_is_had_with_its_engines_alone(name: str, engine: str) -> None:
    if engine in TIERS[name].engines:
        check(name, engine, None)
        check(name, engine, name)
        return
    with pytest.raises(NotSupported) as refused:
        check(name, engine, None)
    assert refused.value.instance_code == "ISOLATION_UNAVAILABLE" and TIERS[name].why_not in refused.value.message


@pytest.mark.parametrize(
    ("name", "before"),
    [("userns", "privileged"), ("userns", "hardened"), ("hardened", "userns"), ("privileged", "userns")],
)
def test_a_store_with_other_owners_is_not_started_on(name: str, before: str) -> None:
    with pytest.raises(InvalidArgument):
        check(name, "docker", before)


def test_tiers_that_store_alike_may_change() -> None:
    check("hardened", "docker", "privileged")
    check("privileged", "podman", "hardened")

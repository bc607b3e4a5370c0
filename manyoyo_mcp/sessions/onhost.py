"""What may be asked of a sandbox whose engine is the host's own, and its part of that."""

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import NotSupported, PolicyRefused
from manyoyo_mcp.hosts.base import Outer
from manyoyo_mcp.hosts.beside import within
from manyoyo_mcp.hosts.isolation import ON_HOST, check_keeps
from manyoyo_mcp.image import outer as outer_image
from manyoyo_mcp.policy.base import Within
from manyoyo_mcp.policy.egress import Policy


def check_offered(settings: Settings, isolation: str) -> None:
    """Raise PolicyRefused for a tier that the configuration has to name first."""
    if isolation == "sock" and not settings.sock:
        raise PolicyRefused(
            "Isolation sock, which is the host's own engine, is off.",
            "The user can offer it (MANYOYO_SOCK=true), and is asked in each session then. Else take another isolation; common runs, but builds nothing.",
        )


def check(settings: Settings, isolation: str, network: Policy, keeps: str, disk: int | None) -> None:
    """Raise NotSupported for what needs an engine of its own (`keeps`: what is to be kept), PolicyRefused for a tier that is off."""
    check_offered(settings, isolation)
    if keeps:
        check_keeps(isolation, keeps)
    if disk is not None:
        raise NotSupported(
            f"With isolation {isolation} a disk can't be capped: what is run lies on the host's.",
            "Leave disk out, or take another isolation.",
            code="DISK_CAP_UNAVAILABLE",
        )
    if network.mode not in ("open", "none"):
        raise NotSupported(
            f"With isolation {isolation} a network policy is open or none: {network.mode} needs a name server that what is run can't pass for.",
            'Ask for network_policy="none", or for another isolation.',
            code="NETWORK_POLICY_UNAVAILABLE",
        )


def part(settings: Settings, created: Outer) -> Within | None:
    """What of the host's engine is a sandbox's; None where it has one of its own."""
    isolation = created.labels.get("isolation")
    if isolation not in ON_HOST:
        return None
    joins = created.container_id if Policy.of_label(created.labels["network"]).mode != "none" else ""
    images = (*settings.host_images, outer_image.reference(settings))
    return within(created.sandbox_id, joins, images, builds=isolation == "sock")

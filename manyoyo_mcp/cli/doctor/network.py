"""Whether the rules of the network policy can be made here, by making them in a container that does nothing else."""

from contextlib import suppress

import docker

from manyoyo_mcp.archive import tar
from manyoyo_mcp.cli.doctor.check import Check, fail, ok
from manyoyo_mcp.cli.doctor.host import Facts
from manyoyo_mcp.errors import ManyoyoError
from manyoyo_mcp.hosts.base import LABEL
from manyoyo_mcp.hosts.isolation import host_config
from manyoyo_mcp.image import outer
from manyoyo_mcp.sessions import reach
from manyoyo_mcp.sessions.identity import Identity

_LONGEST = 20
"""Seconds that making the rules may take."""


async def network(facts: Facts) -> Check:
    """The policy that is configured, as a sandbox of the configured tier would have it."""
    settings = facts.settings
    try:
        policy = reach.configured(settings)
        files = await reach.files(settings, facts.host, policy, settings.engine)
    except ManyoyoError as error:
        return fail("network", error.message, error.hint)
    if settings.host_runtime not in (None, *(facts.info.get("Runtimes") or {})):
        return ok("network", "not tried without the runtime that is configured: see capabilities")
    image = outer.reference(settings)
    if not await facts.host.image_exists(image):
        return ok("network", "tried once there is the sandbox image: `manyoyo-mcp image build`")
    body = {
        "Image": image,
        "Entrypoint": ["/usr/lib/manyoyo/egress"],
        "Labels": {LABEL + key: value for key, value in Identity().labels().items()},
        "HostConfig": host_config(settings.isolation, settings.host_runtime),
    }

    def attempt(client: docker.APIClient) -> str | None:
        """What is said where they can't be made."""
        container = ""
        try:
            container = client.create_container_from_config(body)["Id"]
            client.put_archive(container, "/", tar(files))
            client.start(container)
            code = client.wait(container, timeout=_LONGEST)["StatusCode"]
            return None if code == 0 else str(client.logs(container).decode(errors="replace"))
        except docker.errors.APIError as error:
            return str(error.explanation or error)
        finally:
            if container:
                with suppress(docker.errors.APIError):
                    client.remove_container(container, force=True, v=True)

    said = await facts.host._call(attempt)
    if said is not None:
        return fail(
            "network",
            f"the rules of the network policy can't be made, and without them no sandbox starts: {said[-300:].strip()}",
            "The host's kernel needs nftables: nf_tables, nft_nat, nft_masq, nft_redir, nft_reject_inet, nft_fib_inet, nft_ct.",
        )
    return ok("network", f"the rules can be made; {policy.words()}")

"""Every engine: what is refused on the way to it, and what a nested container is held by."""

import json
from typing import Any

import docker
import pytest
import requests

from manyoyo_mcp.errors import CapExceeded, PolicyRefused
from tests.support import BUSYBOX, MIB, Box

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "host_config",
    [{"Privileged": True}, {"Binds": ["/:/x"]}, {"PidMode": "host"}, {"MaskedPaths": []}, {"CapAdd": ["ALL"]}],
)
async def test_the_transport_refuses(box: Box, host_config: dict[str, Any]) -> None:
    body = {"Image": BUSYBOX, "Cmd": ["true"], "HostConfig": host_config}
    with pytest.raises(PolicyRefused):
        await box.engine._ask(lambda client: client.create_container_from_config(body))


async def test_a_repeated_key_hides_nothing(box: Box) -> None:
    """Go merges repeated keys, Python keeps the last: the request is written anew, so the engine sees what was decided."""
    raw = f'{{"Image": "{BUSYBOX}", "Cmd": ["true"], "HostConfig": {{"Privileged": true}}, "HostConfig": {{"Memory": {64 * MIB}}}}}'

    def create(client: Any) -> str:
        answer = client._post(client._url("/containers/create"), data=raw, headers={"Content-Type": "application/json"})
        client._raise_for_status(answer)
        return str(answer.json()["Id"])

    container = await box.engine._ask(create)
    try:
        inspected = await box.engine._ask(lambda client: client.inspect_container(container))
        assert inspected["HostConfig"]["Privileged"] is False
        assert inspected["HostConfig"]["Memory"] == 64 * MIB
    finally:
        await box.engine.remove(container)


async def test_caps_are_set_where_a_client_sets_none(box: Box) -> None:
    container = await box.engine._ask(
        lambda client: client.create_container_from_config({"Image": BUSYBOX, "Cmd": ["true"]})["Id"]
    )
    try:
        host_config = (await box.engine._ask(lambda client: client.inspect_container(container)))["HostConfig"]
        default = box.sandbox.limits.default
        assert (host_config["Memory"], host_config["NanoCpus"], host_config["PidsLimit"]) == (
            default.memory, round(default.cpus * 1e9), default.pids,
        )  # fmt: skip
        with pytest.raises(CapExceeded):
            await box.engine._ask(
                lambda client: client._result(
                    client._post_json(client._url("/containers/{0}/update", container), data={"Memory": 1 << 40})
                )
            )
    finally:
        await box.engine.remove(container)


HELD = """
grep -E '^(CapEff|Seccomp|NoNewPrivs)' /proc/self/status
ls /dev | grep -E '^(sd|vd|nvme|loop|kmsg|mem|kvm)' | sed 's/^/device /'
cat /proc/sys/kernel/core_pattern >/dev/null && echo x > /proc/sys/kernel/core_pattern && echo wrote core_pattern
echo 1 > /proc/sysrq-trigger && echo wrote sysrq
mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo mounted
mknod /tmp/disk b 254 0 && cat /tmp/disk >/dev/null && echo read a device
ls /run/manyoyo/engine.sock && echo saw the engine
ip addr
echo done
"""


def held(text: str) -> dict[str, str]:
    assert "done" in text
    for word in ("device ", "wrote ", "mounted", "read a device", "saw the engine"):
        assert word not in text, text
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


async def test_a_run_is_held(box: Box) -> None:
    text = await box.output("sh", "-c", f"({HELD}) 2>/dev/null")
    status = held(text)
    assert address(box) not in text
    assert status["Seccomp"] == "2"
    assert not int(status["CapEff"], 16) & (1 << 21 | 1 << 12 | 1 << 16 | 1 << 19), (
        "no SYS_ADMIN, NET_ADMIN, SYS_MODULE, SYS_PTRACE"
    )


async def test_programs_may_gain_rights_within_their_container(box: Box) -> None:
    """As sudo and su do, also while the sandbox's filter of calls holds."""
    if box.sandbox.isolation in ("rootless", "common", "sock"):
        return  # they promise the opposite
    users = "root::0:0::/:/bin/sh\\nme:x:1000:1000::/:/bin/sh\\n"
    built = await box.build(f"FROM {BUSYBOX}\nRUN printf '{users}' > /etc/passwd && chmod 4755 /bin/busybox\n")
    assert built.image_id, built
    command = ("su", "root", "-c", "id -u")
    assert (await box.output(*command, image=built.image_id, user="1000")).split() == ["0"]


async def test_a_run_step_is_held_just_so(box: Box) -> None:
    output: list[bytes] = []
    script = json.dumps(["sh", "-c", f"({HELD}) 2>/dev/null"])
    built = await box.build(f"FROM {BUSYBOX}\nRUN {script}\n", no_cache=True, output=output)
    assert built.image_id, built
    text = b"".join(output).decode()
    status = held(text.split("STEP 2/2", 1)[-1].split("Running in", 1)[-1].split("\n", 1)[-1])
    assert status["Seccomp"] == "2"
    assert not int(status["CapEff"], 16) & (1 << 21 | 1 << 12 | 1 << 16 | 1 << 19)
    assert address(box) not in text, "a RUN step has a network of its own"


async def test_a_run_step_may_not_have_the_sandboxes_network(box: Box) -> None:
    output: list[bytes] = []
    built = await box.build(f"FROM {BUSYBOX}\nRUN --network=host ip addr\n", no_cache=True, output=output)
    assert built.image_id is None and address(box) not in b"".join(output).decode()


@pytest.mark.parametrize("source", ["tarball:/etc/passwd", "dir:/etc", "oci:/etc:x", "docker-archive:/etc/passwd"])
async def test_a_dockerfile_may_not_read_the_outer_container(box: Box, source: str) -> None:
    built = await box.build(f"FROM {source}\nRUN true\n")
    assert built.image_id is None
    if box.sandbox.engine_name == "podman" and source.startswith("tarball:"):  # the others end before they are asked
        assert "rejected by policy" in built.error, built


_STORE = "containers-storage:[overlay@/var/lib/manyoyo/podman+/run/pwned]" + BUSYBOX
_IN_PIECES = f"ARG A=containers\nARG B={_STORE.removeprefix('containers')}\n"


@pytest.mark.parametrize(
    "dockerfile",
    [
        f"FROM {_STORE}\nRUN true\n",
        f"{_IN_PIECES}FROM $A$B\nRUN true\n",
        f"FROM {BUSYBOX}\nCOPY --from={_STORE} /bin/busybox /other\n",
        f"FROM {BUSYBOX}\nRUN --mount=type=bind,from={_STORE},target=/mnt true\n",
        f"FROM {BUSYBOX} AS one\nONBUILD COPY --from={_STORE} /bin/busybox /other\nFROM one\nRUN true\n",
    ],
    ids=["from", "argument", "copy", "mount", "onbuild"],
)
async def test_a_dockerfile_may_not_name_a_store_of_its_own(box: Box, dockerfile: str) -> None:
    """Podman would open it, and run the program that its options name, as root of the outer container (decision 7)."""
    built = await box.build(dockerfile, no_cache=True)
    assert built.image_id is None or "onbuild" in dockerfile.lower(), (
        built
    )  # an engine may leave triggers of its own stages alone
    outer = docker.from_env().containers.get(box.sandbox.outer.container_id)
    assert outer.exec_run(["test", "-e", "/run/pwned"]).exit_code == 1


def address(box: Box) -> str:
    """The outer container's own address."""
    host = docker.from_env()
    try:
        networks = host.containers.get(box.sandbox.outer.container_id).attrs["NetworkSettings"]["Networks"]
    finally:
        host.close()
    return str(next(iter(networks.values()))["IPAddress"])


async def test_the_guard_is_the_only_client(box: Box) -> None:
    client = box.engine._client
    with pytest.raises(PolicyRefused):
        client.get(f"{client.base_url}/v1.41/info/of/something")
    with pytest.raises(requests.exceptions.InvalidSchema):
        client.get_adapter(f"{client.base_url}/v1.41/_ping")


NEIGHBOUR = """
ip route replace {nested} via {sandbox} && echo routed
/usr/lib/manyoyo/probe/bin/busybox wget -T 3 -qO - http://{nested}:8080/passwd
true
"""


async def test_nothing_outside_the_sandbox_reaches_a_nested_service(box: Box) -> None:
    """A neighbour on the sandbox's own network that knows the way is not let in; another nested container is."""
    service = await box.service("httpd", "-f", "-p", "8080", "-h", "/etc")
    host = docker.from_env()
    try:
        nested = next(row.address for row in await box.engine.containers() if row.container_id == service)
        fetch = f"for i in 1 2 3; do wget -T 3 -qO - http://{nested}:8080/passwd && exit; sleep 1; done"
        assert "guest" in await box.output("sh", "-c", fetch)
        outer = host.containers.get(box.sandbox.outer.container_id)
        (network,) = outer.attrs["NetworkSettings"]["Networks"].values()
        script = NEIGHBOUR.format(nested=nested, sandbox=network["IPAddress"])
        told = host.containers.run(
            outer.image.id, ["-c", script], entrypoint=["sh"], cap_add=["NET_ADMIN"], network=network["NetworkID"],
            remove=True, stderr=True,
        )  # fmt: skip
    finally:
        await box.engine.remove(service)
        host.close()
    assert b"routed" in told and b"guest" not in told, told


@pytest.mark.smoke("podman")
async def test_what_is_called_as_systemd_is_can_not_write_its_cgroups(box: Box) -> None:
    """Podman would let it: it could raise its own caps."""
    tag = "localhost/manyoyo-test/init"
    script = b"#!/bin/sh\ngrep cgroup /proc/mounts\necho done\n"
    dockerfile = (
        f"FROM {BUSYBOX}\nCOPY init /init\nRUN mkdir -p /sbin && mv -f /init /sbin/init && chmod 755 /sbin/init\n"
    )
    built = await box.build(files={"Dockerfile": dockerfile.encode(), "init": script}, tags=[tag])
    assert built.image_id, built
    said = await box.output("/sbin/init", image=tag)
    mounts = [line.split() for line in said.splitlines() if line.split()[2:3] in (["cgroup"], ["cgroup2"])]
    assert said.endswith("done\n") and mounts and all("ro" in fields[3].split(",") for fields in mounts), said

"""A sandbox's part of the host's own engine, asked directly, on a live one: each rule of `policy/bounded.py`. `test_host_engine.py` has the same through a
server."""

import io
import os
import secrets
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import docker
import pytest

from manyoyo_mcp.errors import BudgetExceeded, ContextRefused, PolicyRefused
from manyoyo_mcp.hosts.beside import remove_all, socket_of, within
from manyoyo_mcp.hosts.sharing import connect
from manyoyo_mcp.policy import hostroom, labelled
from manyoyo_mcp.policy.base import Limits, Request
from manyoyo_mcp.policy.bounded import BoundedClient, Missing
from manyoyo_mcp.policy.rules import decide
from manyoyo_mcp.values import Caps
from tests.support import BUSYBOX, SLACK, on_host

pytestmark = pytest.mark.timeout(120 * SLACK)
THEIRS = "localhost/bystanders/bounded:1"
THERE = "tests.invalid/bounded:1"
"""Of a registry that nobody has, and there."""
VOLUME = "localhost/manyoyo-test/volume:1"
_MIB = 1 << 20
_LIMITS = Limits(default=Caps(1, 64 * _MIB, 32), largest=Caps(4, 256 * _MIB, 256))


@pytest.fixture(scope="module")
def host() -> Iterator[docker.DockerClient]:
    with on_host(BUSYBOX, THEIRS) as client:
        client.images.get(BUSYBOX).tag(THERE)
        client.images.build(fileobj=io.BytesIO(f"FROM {BUSYBOX}\nVOLUME /v\n".encode()), tag=VOLUME, rm=True)
        try:
            yield client
        finally:
            for name in (THERE, VOLUME):
                client.images.remove(name, force=True)


@pytest.fixture
def client(host: docker.DockerClient) -> Iterator[BoundedClient]:
    """What the tools have of a sandbox that nobody started."""
    part = within(f"sb-{secrets.token_hex(8)}", "", ("localhost/manyoyo-test/*", "tests.invalid/*"), builds=True)
    bounded = BoundedClient(partial(connect, Path(socket_of(os.environ["DOCKER_HOST"]))), lambda: _LIMITS, part)
    yield bounded
    remove_all(host.api, part.sandbox)
    bounded.close()


@pytest.fixture
def theirs(host: docker.DockerClient, client: BoundedClient) -> Iterator[Any]:
    """Somebody else's container, which says of itself that it is the sandbox's."""
    labels = {labelled.LABEL: client.boundary.within.sandbox, labelled.GRANTS: f"{256 * _MIB} 4000000000 256"}
    made = host.containers.run(THEIRS, ["sleep", "1000"], detach=True, init=True, labels=labels)
    yield made
    made.remove(force=True)


def made(client: BoundedClient, memory: int = 64, image: str = BUSYBOX) -> str:
    """A container of the sandbox's with so many MiB."""
    config = client.create_host_config(mem_limit=memory * _MIB, init=True)
    return str(client.create_container(image, ["sleep", "1000"], host_config=config)["Id"])


def test_what_is_others_is_not_there(host: docker.DockerClient, client: BoundedClient, theirs: Any) -> None:
    for ask in (client.inspect_container, client.start, client.kill, client.logs, partial(client.remove_container, force=True),
                partial(client.exec_create, cmd=["true"])):  # fmt: skip
        for name in (theirs.id, theirs.id[:12], theirs.name):
            with pytest.raises(docker.errors.NotFound, match=f"No such container: {name}"):
                ask(name)
    entered = host.api.exec_create(theirs.id, ["true"])["Id"]
    for ask in (client.exec_inspect, client.exec_start, partial(client.exec_resize, height=1, width=1)):
        with pytest.raises(docker.errors.NotFound, match=f"No such exec instance: {entered}"):
            ask(entered)
    for ask in (client.inspect_image, partial(client.create_container, command=["true"])):
        with pytest.raises(docker.errors.NotFound, match=f"No such image: {THEIRS}"):
            ask(THEIRS)
    assert not client.containers(all=True)
    assert not {tag for each in client.images() for tag in each["RepoTags"]} & {THEIRS}
    theirs.reload()
    assert theirs.status == "running" and not host.api.exec_inspect(entered)["Running"]


def test_no_image_is_removed_renamed_or_fetched_that_others_have(
    host: docker.DockerClient, client: BoundedClient
) -> None:
    image = host.images.get(BUSYBOX).id
    assert client.inspect_image(BUSYBOX)["Id"] == image, "it may be run"
    with pytest.raises(docker.errors.NotFound):
        client.remove_image(image)
    assert host.images.get(image)
    with pytest.raises(PolicyRefused, match="names of images"):
        client.tag(BUSYBOX, THEIRS.rpartition(":")[0], "1")
    assert host.images.get(THEIRS).id != image
    client.tag(BUSYBOX, f"{client.boundary.within.images_prefix}mine")
    with pytest.raises(PolicyRefused, match="already"):
        client.pull(*THERE.rsplit(":", 1))


def test_what_runs_has_no_more_together_than_the_sandbox(client: BoundedClient, theirs: Any) -> None:
    one, other = made(client, 160), made(client, 160)
    client.start(one)  # what others say is theirs takes nothing from it
    with pytest.raises(BudgetExceeded, match="memory"):
        client.start(other)
    client.restart(one, timeout=0)  # its own room is not taken from it
    with pytest.raises(BudgetExceeded, match="memory"), client.boundary.building(Caps(1, 160 * _MIB, 16)):
        pass
    client.kill(one)
    client.wait(one)
    with client.boundary.building(Caps(1, 160 * _MIB, 16)), pytest.raises(BudgetExceeded):
        client.start(other)
    client.start(other)


def test_what_it_costs_the_engine_is_bounded(client: BoundedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostroom, "MOST_CONTAINERS", 2)
    there = [made(client), made(client)]
    with pytest.raises(BudgetExceeded, match="2 containers"):
        made(client)
    client.remove_container(there.pop(), force=True)
    there.append(made(client))
    client.start(there[0])
    monkeypatch.setattr(hostroom, "MOST_EXECS", 1)
    one = client.exec_create(there[0], ["true"])["Id"]
    with pytest.raises(BudgetExceeded, match="1 execs"):
        client.exec_create(there[0], ["true"])
    client.exec_start(one)
    monkeypatch.setattr(hostroom, "MOST_EXECS", 64)
    client.exec_create(there[0], ["true"])
    monkeypatch.setattr(hostroom, "_MOST_KEPT", 8000)
    client.exec_create(there[0], ["echo", "x" * 6000])
    with pytest.raises(BudgetExceeded, match="last 10 minutes"):
        client.exec_create(there[0], ["echo", "x" * 6000])
    client.exec_create(there[0], ["true"])
    with pytest.raises(PolicyRefused, match="128 KiB"):
        client.exec_create(there[0], ["true"], environment=[f"A{at}={'x' * 50_000}" for at in range(3)])


@pytest.mark.parametrize("name", ["passwd", "group"])
def test_a_list_of_users_without_end_is_not_read(host: docker.DockerClient, client: BoundedClient, name: str) -> None:
    """dockerd would keep a hundred bytes for each two of it."""
    container = made(client)
    client.start(container)
    script = f"mkdir -p /etc; rm -f /etc/{name}; yes a | head -c 131073 > /etc/long; ln -s long /etc/{name}"
    client.exec_start(client.exec_create(container, ["sh", "-c", script])["Id"])
    client.exec_start(client.exec_create(container, ["true"])["Id"])  # for which it is not read
    entered = client.exec_create(container, ["true"], user="0")["Id"]
    for ask in (partial(client.exec_start, entered), partial(client.commit, container),
                partial(client.restart, container, timeout=0)):  # fmt: skip
        with pytest.raises(PolicyRefused, match=f"/etc/{name} is larger"):
            ask()
    image = host.api.commit(container)["Id"]
    try:
        client.boundary.check_users_of(BUSYBOX)
        with pytest.raises(PolicyRefused, match=f"/etc/{name} is larger"):  # where a build would look a name up
            client.boundary.check_users_of(image)
    finally:
        host.api.remove_image(image)
    assert len(client.containers(all=True)) == 1
    client.kill(container)
    client.wait(container)
    with pytest.raises(PolicyRefused, match=f"/etc/{name} is larger"):
        client.start(container)


def test_a_list_of_users_that_grows_while_its_container_ends_is_not_read(client: BoundedClient) -> None:
    config = client.create_host_config(mem_limit=64 * _MIB)
    grow = "trap 'mkdir -p /etc; yes a | head -c 131073 > /etc/passwd; exit' TERM; while true; do sleep 0.1; done"
    container = str(client.create_container(BUSYBOX, ["sh", "-c", grow], host_config=config)["Id"])
    client.start(container)
    with pytest.raises(PolicyRefused, match="/etc/passwd is larger"):
        client.restart(container, timeout=30)
    removed = client.create_host_config(mem_limit=64 * _MIB, auto_remove=True)
    container = str(client.create_container(BUSYBOX, ["sleep", "1000"], host_config=removed)["Id"])
    client.start(container)
    with pytest.raises(PolicyRefused, match="--rm"):
        client.restart(container, timeout=0)


@pytest.mark.parametrize("link", ["$(printf '/etc/\\377')", "one"])
def test_a_link_of_which_cannot_be_told_where_it_leads_is_no_list(client: BoundedClient, link: str) -> None:
    container = made(client)
    client.start(container)
    script = f"mkdir -p /etc; cd /etc; rm -f passwd; touch {link} two; ln -s {link} passwd"
    client.exec_start(client.exec_create(container, ["sh", "-c", script])["Id"])
    entered = client.exec_create(container, ["true"], user="0")["Id"]
    if link == "one":  # which can be told
        client.exec_start(entered)
    else:
        with pytest.raises(PolicyRefused, match="a link"):
            client.exec_start(entered)


def test_builds_under_way_count_with_what_they_may_make(client: BoundedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostroom, "MOST_IMAGES", hostroom.IMAGES_OF_A_BUILD)
    caps = Caps(1, 16 * _MIB, 16)
    with client.boundary.building(caps), pytest.raises(BudgetExceeded, match="images"), client.boundary.building(caps):
        pass
    with client.boundary.building(caps):
        pass


def test_containers_that_are_made_at_once_are_counted(client: BoundedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostroom, "MOST_CONTAINERS", 3)

    def attempt(_: int) -> bool:
        try:
            return bool(made(client))
        except BudgetExceeded:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 3
    assert len(client.containers(all=True)) == 3


def test_what_is_gone_is_not_there(host: docker.DockerClient, client: BoundedClient) -> None:
    """Whoever removed it."""
    for ask in (client.inspect_container, client.start, partial(client.exec_create, cmd=["true"])):
        container = made(client)
        host.api.remove_container(container)
        with pytest.raises(docker.errors.NotFound):
            ask(container)
        assert client.boundary.answer("GET", "/images/json", {}) is not None
    container = made(client)
    host.api.remove_container(container)
    with pytest.raises(Missing):
        client.boundary.answer("GET", f"/containers/{container}/json", {})
    with pytest.raises(PolicyRefused, match="600"):
        client.stop(made(client), timeout=-1)


def test_volumes_go_with_their_container(host: docker.DockerClient, client: BoundedClient) -> None:
    container = made(client, image=VOLUME)
    (volume,) = [each["Name"] for each in host.api.inspect_container(container)["Mounts"]]
    client.remove_container(container, v=False)
    with pytest.raises(docker.errors.NotFound):
        host.volumes.get(volume)


def test_what_is_copied_into_a_container(client: BoundedClient) -> None:
    container = made(client)
    client.start(container)
    for kind in (tarfile.BLKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        odd = tarfile.TarInfo("odd")
        odd.type = kind
        with pytest.raises(ContextRefused):
            client.put_archive(container, "/", odd.tobuf() + bytes(1024))
    with pytest.raises(docker.errors.NotFound):
        client.get_archive(container, "/odd")
    # Whose files would be whose the host calls by the name of the container's user.
    request = Request("PUT", f"/containers/{container}/archive", {"path": "/", "copyUIDGID": "1"}, None, ours=True)
    assert client.boundary.decided(request, decide(request, _LIMITS)).query == {"path": "/"}


def test_the_part_may_be_smaller(client: BoundedClient) -> None:
    assert made(client)
    client.boundary.within = replace(client.boundary.within, images=())
    with pytest.raises(docker.errors.NotFound, match="No such image"):
        made(client)

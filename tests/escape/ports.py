"""What is published: through the user's own endpoint, where that was asked for, on this machine's loopback alone; from inside not at all."""

import contextlib
import json
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from manyoyo_mcp.policy.ports import LOOPBACK
from manyoyo_mcp.sessions.forwarding import listening
from tests.escape.roads import IMAGE, Answer, Road, gate
from tests.escape.vectors import GATES, ON_HOST, Out, Outcome, contained, refused, vector
from tests.escape.world import World
from tests.support import BUSYBOX, Box

_CIS = "CIS Docker Benchmark 5.7"
_WEB = ["sh", "-c", "trap 'exit 0' TERM; mkdir -p /tmp/w; echo $WORD > /tmp/w/word; httpd -f -p 8080 -h /tmp/w & wait"]
_SLEEP = ["sh", "-c", "trap 'exit 0' TERM; sleep 300 & wait"]


@asynccontextmanager
async def publishing(box: Box) -> AsyncIterator[None]:
    """Its endpoint publishes, as with `sandbox_endpoint(ports=true)`."""
    box.manager.endpoints.open(box.sandbox, ports=True)
    try:
        yield
    finally:
        box.manager.endpoints._ports.pop(box.sandbox.sandbox_id).close()


def _bound(*rows: tuple[str, str], inner: str = "8080/tcp") -> dict[str, object]:
    """A container's configuration that publishes at these addresses and ports."""
    return {"HostConfig": {"PortBindings": {inner: [{"HostIp": address, "HostPort": port} for address, port in rows]}}}


def _free() -> int:
    with listening(0) as sock:
        return int(sock.getsockname()[1])


def _word(address: str, port: int, seconds: float = 3) -> str:
    """What answers there, as a web server; "" where nobody does."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=seconds) as sock:
        sock.settimeout(seconds)
        sock.sendall(b"GET /word HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(4096), b"")).decode(errors="replace")
    return ""


async def _answers(address: str, port: int, word: str) -> bool:
    """Whether the service there says `word`, which takes it a moment."""
    with anyio.move_on_after(60):
        while word not in await anyio.to_thread.run_sync(_word, address, port):
            await anyio.sleep(0.2)
        return True
    return False


@asynccontextmanager
async def _served(road: Road, address: str, port: int, word: str, image: str = IMAGE) -> AsyncIterator[Answer]:
    """A service that says `word`, made over the road; the answer to its start."""
    made = await road.create(Image=image, Cmd=_WEB, Env=[f"WORD={word}"], **_bound((address, str(port))))
    assert made.ok, made
    container = made.json()["Id"]
    try:
        yield await road.request("POST", f"/containers/{container}/start")
    finally:
        with anyio.CancelScope(shield=True):
            await road.drop(container)


def addresses() -> Iterator[str]:
    """This machine's own IPv4 addresses, but those of loopback."""
    for line in open("/proc/net/fib_trie").read().split("Local:")[-1].split("|--")[1:]:  # noqa: SIM115, PTH123
        address, _, rest = line.strip().partition("\n")
        if "/32 host LOCAL" in rest and not address.startswith("127."):
            yield address


@vector("publish-port", _CIS, roads=("tool", "gate"))
async def publish_port(world: World, road: Road) -> Outcome:
    """At an endpoint that does not publish. At one that does the same is published."""
    body = _bound(("0.0.0.0", str(_free())))
    outcome = refused(await road.create(**body), words="ports are not published")
    if road.name == "gate" and world.tier not in ON_HOST:  # there none publishes
        async with publishing(world.box):
            made = await road.create(**body)
            assert made.ok, f"refused where it is allowed, so this shows nothing: {made}"
            await road.drop(made.json()["Id"])
    return outcome


async def _all_refused(
    world: World, road: Road, rows: list[tuple[str, str]], words: str, inner: str = "8080/tcp"
) -> Outcome:
    async with publishing(world.box):
        outcomes = [refused(await road.create(**_bound(row, inner=inner)), words=words) for row in rows]
    return outcomes[0]


@vector("publish-a-low-port", "CIS Docker Benchmark 5.8 (privileged ports)", roads=("gate",))
async def publish_a_low_port(world: World, road: Road) -> Outcome:
    """The machine's own services; also at the beginning of a range."""
    rows = [("", each) for each in ("1", "22", "80", "443", "1023", "1000-1040")]
    return await _all_refused(world, road, rows, "below 1024")


@vector("publish-the-name-servers-port", "decision 13: who has port 53 answers for others", roads=GATES)
async def publish_the_name_servers_port(world: World, road: Road) -> Outcome:
    rows = [("", each) for each in ("53", "1053", "50-60", "1050-1060")]
    await _all_refused(world, road, rows, "name server", inner="53/udp")
    return await _all_refused(world, road, rows, "name server", inner="53/tcp")


@vector("publish-at-another-address", "CIS Docker Benchmark 5.13", roads=("gate",))
async def publish_at_another_address(world: World, road: Road) -> Outcome:
    named = [*addresses(), "192.0.2.1", "::ffff:192.0.2.1", "fe80::1", "127.0.0.2"]
    assert len(named) > 4, "this machine has no address of its own"
    return await _all_refused(world, road, [(each, str(_free())) for each in named], "may not be published on")


@vector("publish-udp", "decision 13", roads=("gate",))
async def publish_udp(world: World, road: Road) -> Outcome:
    return await _all_refused(world, road, [("", str(_free()))], "what reaches outside is TCP", inner="5353/udp")


@vector(
    "publish-at-all-addresses", "CIS Docker Benchmark 5.13; Docker past the firewall (moby/moby#22054)", roads=("gate",)
)
async def publish_at_all_addresses(world: World, road: Road) -> Outcome:
    """What says 0.0.0.0 listens on loopback alone; neither another address of this machine, nor the sandbox's own, leads there."""
    port, word = _free(), f"word-{secrets.token_hex(4)}"
    async with publishing(world.box), _served(road, "0.0.0.0", port, word) as started:
        assert started.ok, started
        assert await _answers(LOOPBACK, port, word), "it is published nowhere, so this shows nothing"
        outer = (await world.outer("ip -4 -o addr show eth0 | awk '{ print $4 }'")).strip().partition("/")[0]
        for address in (*addresses(), outer):
            if word in await anyio.to_thread.run_sync(_word, address, port):
                raise Out(f"reached at {address}")
        script = f"for each in {' '.join(addresses())} {outer}; do wget -T 1 -qO - http://$each:{port}/word; done; echo TRIED"
        _, said = await world.tool.run(script)
        beside = await world.neighbour.box.output("sh", "-c", script)
    if word in said or word in beside:
        raise Out(f"reached from a nested container: {said} {beside}")
    return contained("on loopback alone")


@vector("publish-a-port-of-this-machines", "port squatting (CWE-605)", roads=("gate",))
async def publish_a_port_of_this_machines(world: World, road: Road) -> Outcome:
    """One that somebody listens at already."""
    async with publishing(world.box):
        with listening(0) as taken:
            port = int(taken.getsockname()[1])
            async with _served(road, LOOPBACK, port, "theirs") as started:
                outcome = refused(started, "PORT_IN_USE", f"Port {port}")
            with socket.create_connection((LOOPBACK, port), timeout=5):
                taken.accept()[0].close()  # still ours
    return outcome


@vector("publish-a-port-of-another-sandbox", "port squatting (CWE-605)", roads=("gate",))
async def publish_a_port_of_another_sandbox(world: World, road: Road) -> Outcome:
    port, theirs = _free(), world.neighbour.box
    other = gate(theirs.manager.endpoints.open(theirs.sandbox))
    async with publishing(theirs), publishing(world.box), _served(other, LOOPBACK, port, "theirs", BUSYBOX) as begun:
        assert begun.ok and await _answers(LOOPBACK, port, "theirs"), begun
        async with _served(road, LOOPBACK, port, "ours") as started:
            outcome = refused(started, "PORT_IN_USE", f"Port {port}")
            assert await _answers(LOOPBACK, port, "theirs"), "it is theirs no more"
    return outcome


@vector("publish-very-many", "resource exhaustion (CWE-770)", roads=("gate",))
async def publish_very_many(world: World, road: Road) -> Outcome:
    """More than a container, and than a sandbox, may have. The latter with podman: dockerd has a process for each, and so this sandbox's cap of
    processes comes first, which its engine does not outlive."""

    def ports(count: int) -> dict[str, object]:
        return {f"{8000 + each}/tcp": [{"HostIp": "", "HostPort": ""}] for each in range(count)}

    made: list[str] = []
    outcome, held = None, []
    async with publishing(world.box):
        try:
            for bindings in (ports(33), {"80/tcp": [{"HostPort": str(2000 + each)} for each in range(5000)]}):
                answer = await road.create(HostConfig={"PortBindings": bindings})
                outcome = refused(answer, words="32 ports, not more")
            for number in range(3 if world.engine == "podman" else 1):
                answer = await road.create(Cmd=_SLEEP, HostConfig={"PortBindings": ports(32)})
                assert answer.ok, answer
                made.append(answer.json()["Id"])
                started = await road.request("POST", f"/containers/{made[-1]}/start")
                if number == 2:
                    outcome = refused(started, "PORT_LIMIT", "64 ports")
                assert started.ok or number == 2, started
            held = world.box.manager.endpoints.published(world.box.sandbox)
        finally:
            with anyio.CancelScope(shield=True):
                for each in made:
                    await road.drop(each)
    assert held and outcome is not None, "none is published, so this shows nothing"
    if len(held) > 64:
        raise Out(f"{len(held)} ports")
    return outcome


@vector("publish-what-an-image-exposes", "docker run -P (CIS Docker Benchmark 5.7)", roads=("gate",))
async def publish_what_an_image_exposes(world: World, road: Road) -> Outcome:
    """A thousand ports, the machine's own services among them."""
    tag = f"localhost/manyoyo-test/exposes:{secrets.token_hex(4)}"
    ports = " ".join(str(each) for each in range(20, 1020))
    built, text = await road.build(f"FROM {IMAGE}\nEXPOSE {ports}\n", tag=tag)
    assert built, text
    try:
        async with (
            publishing(world.box),
            road.service(*_SLEEP, Image=tag, HostConfig={"PublishAllPorts": True}) as container,
        ):
            looked = (await road.request("GET", f"/containers/{container}/json")).json()["HostConfig"]["PortBindings"]
            held = world.box.manager.endpoints.published(world.box.sandbox)
    finally:
        await road.request("DELETE", f"/images/{tag}", {"force": "1"})
    numbers = [int(row["HostPort"]) for rows in looked.values() for row in rows or []]
    assert held, "none is published, so this shows nothing"
    if len(held) > 32 or min(numbers) < 1024:
        raise Out(f"{len(held)} ports, from {min(numbers)} on")
    return contained(f"{len(held)} of 1000, none below 1024")


@vector("publish-from-inside", "decision 13: only the user's endpoint leads outside", roads=("nested",))
async def publish_from_inside(world: World, road: Road) -> Outcome:
    """While the user's own endpoint publishes: a container that a nested one makes says the same of itself as the user's do."""
    port, word = _free(), f"word-{secrets.token_hex(4)}"
    async with publishing(world.box):
        async with _served(world.roads["gate"], LOOPBACK, port, word) as started:
            assert started.ok and await _answers(LOOPBACK, port, word), "not published for the user either"
        async with _served(road, LOOPBACK, port, word) as started:
            assert started.ok, started
            await anyio.sleep(2)
            held = world.box.manager.endpoints.published(world.box.sandbox)
            for address in (LOOPBACK, *addresses(), world.neighbour.outer):
                if word in await anyio.to_thread.run_sync(_word, address, port):
                    raise Out(f"reached at {address}")
    if held:
        raise Out(json.dumps(held))
    return contained("published within the sandbox")


@vector(
    "publish-and-flood", "resource exhaustion (CWE-770): connections to a published port", roads=("gate",), last=True
)
async def publish_and_flood(world: World, road: Road) -> Outcome:
    """A hundred and fifty connections that are left open: each would be a process in the outer container."""
    port, held = _free(), []
    async with publishing(world.box), _served(road, LOOPBACK, port, "word") as started:
        assert started.ok and await _answers(LOOPBACK, port, "word"), started
        try:
            for _ in range(150):
                sock = socket.socket()
                held.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.settimeout(0.2)
                with contextlib.suppress(OSError):  # who finds no place is hung up on
                    await anyio.to_thread.run_sync(sock.connect, (LOOPBACK, port))
            most = 0
            with anyio.move_on_after(8):
                while True:
                    most = max(most, len(world.box.processes("busybox nc ")))
                    await anyio.sleep(0.2)
        finally:
            for sock in held:
                sock.close()
        assert most > 5, f"no connection came about: {most}"
        if most > 64:
            raise Out(f"{most} processes")
        assert await _answers(LOOPBACK, port, "word"), "it does not serve any more"
    return contained(f"{most} of 150 at a time")

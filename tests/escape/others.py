"""Whose is what: other sandboxes, other sessions, the server's own labels and leases."""

import contextlib
import secrets
from typing import Any

import anyio

from manyoyo_mcp.errors import ManyoyoError
from tests.escape.canaries import CANARY
from tests.escape.roads import IMAGE, Road
from tests.escape.vectors import (
    GATES,
    ON_HOST,
    OWN,
    Out,
    Outcome,
    Vector,
    add,
    contained,
    declined,
    nothing_out,
    pointless,
    refused,
    vector,
    withheld,
)
from tests.escape.world import World

_SLEEP = ("sh", "-c", "trap 'exit 0' TERM; sleep 300 & wait")


def _call(
    name: str, source: str, tool: str, code: str, words: str = "", /, *, smoke: bool = False, **arguments: Any
) -> None:
    """A tool's call that is refused."""

    async def attempt(world: World, road: Road) -> Outcome:
        answer = await world.tool.call(tool, **arguments)
        return declined(world, answer, code, words)

    add(Vector(name, source, "others", attempt, roads=("tool",), smoke=smoke))


# -- arguments that are more than a word

_RUN: dict[str, Any] = {"image": IMAGE, "command": ["true"]}
_call(
    "image-is-an-option",
    "argument injection (CWE-88)",
    "nested_run",
    "INVALID_ARGUMENT",
    image="--privileged",
    command=["true"],
)
_call(
    "image-by-a-path", "podman's transports", "nested_run", "INVALID_ARGUMENT", image=f"dir:{CANARY}", command=["true"]
)
_call(
    "container-is-an-option",
    "argument injection (CWE-88)",
    "nested_exec",
    "INVALID_ARGUMENT",
    container="--privileged",
    command=["id"],
)
_call(
    "container-is-a-path", "path traversal (CWE-22)", "nested_logs", "INVALID_ARGUMENT", container="../../images/json"
)
_call("name-with-a-query", "parameter injection", "nested_run", "INVALID_ARGUMENT", **_RUN, detach=True, name="x?all=1")
_call(
    "tag-is-an-option",
    "argument injection (CWE-88)",
    "nested_build",
    "INVALID_ARGUMENT",
    files={"Dockerfile": "FROM scratch\n"},
    tags=["--output=/"],
)
_call(
    "privileged-argument",
    "Docker's --privileged",
    "nested_run",
    "NOT_SUPPORTED",
    "never privileged",
    smoke=True,
    **_RUN,
    privileged=True,
)
_call("volumes-argument", "Docker's -v", "nested_run", "NOT_SUPPORTED", **_RUN, volumes=["/:/x"])
_call(
    "network-of-the-outer",
    "Docker's --network",
    "nested_run",
    "POLICY_REFUSED",
    "outside the nested container",
    **_RUN,
    network="host",
)
_call("network-by-a-path", "podman's ns:PATH", "nested_run", "POLICY_REFUSED", **_RUN, network="ns:/proc/1/ns/net")
_call(
    "outputs-above",
    "path traversal (CWE-22)",
    "nested_run",
    "INVALID_ARGUMENT",
    **_RUN,
    outputs=["../../../etc/shadow"],
)
_call(
    "files-above", "path traversal (CWE-22)", "nested_run", "INVALID_ARGUMENT", **_RUN, files={"/tmp/../../etc/x": "y"}
)
_call(
    "dockerfile-above",
    "path traversal (CWE-22)",
    "nested_build",
    "INVALID_ARGUMENT",
    files={"Dockerfile": "FROM scratch\n"},
    dockerfile="../../etc/shadow",
)


@vector("outputs-through-a-link", "CVE-2018-15664", roads=("tool",))
async def outputs_through_a_link(world: World, road: Road) -> Outcome:
    script = f"ln -s {CANARY}/secret /tmp/x; ln -s /run /tmp/l"
    answer = await world.tool.call(
        "nested_run", image=IMAGE, command=["sh", "-c", script], outputs=["/tmp/x", "/tmp/l/escape-canary/secret"]
    )
    if world.canaries.secret in answer.text:
        raise Out(answer.text[-500:])
    assert answer.ok, answer
    return contained("a link is brought out as none")


@vector("workdir-of-a-run", "CVE-2024-21626 (runc, WORKDIR and exec)", smoke=True)
async def workdir_of_a_run(world: World, road: Road) -> Outcome:
    """Of create and of exec: directories that a runtime left open."""
    script = f"for up in . .. ../.. ../../.. ../../../../../../../..; do [ ! -e $up{CANARY} ] || echo OUT $up; done; echo TRIED"
    ran = 0
    async with road.service(*_SLEEP) as container:
        for fd in (3, 7, 8, 9):
            code, said = await road.run(script, WorkingDir=f"/proc/self/fd/{fd}")
            codes, told = await road.exec(container, "sh", "-c", script, WorkingDir=f"/proc/self/fd/{fd}")
            for each in (said, told):
                if "OUT " in each:
                    raise Out(each)
            ran += (code == 0) + (codes == 0)
    return contained(f"{ran} of 8 started, none outside")


_WATCH = r"""perl -e '
my $end = time + $ARGV[0]; my %seen; $| = 1; print "WATCHING\n";
sub within { opendir(my $d, $_[0]) or return; grep { /^[0-9]+$/ } readdir $d }
while (time < $end) {
    for my $p (within("/proc")) {
        next if $p == $$ or $p == 1;
        for my $fd (within("/proc/$p/fd")) {
            my $f = "/proc/$p/fd/$fd";
            print "OUT $f\n" if -e "$f/../../../../../../run/escape-canary" or -e "$f/run/escape-canary";
        }
        my $exe = readlink "/proc/$p/exe" or next;
        next if $exe =~ m,/bin/(busybox|perl)$,;
        $seen{$exe}++;
        open(my $held, "<", "/proc/$p/exe") or next;
        for (1..200) {
            open(my $f, "+<", "/proc/self/fd/" . fileno($held)) or next;
            print "OUT overwritten: $exe\n" if defined syswrite($f, "\x7fELF");
            last;
        }
    }
}
print "saw ", join(", ", sort keys %seen), "\nTRIED\n"' 3 2>&1"""
"""Lies in wait for the runtime that execs come by, and writes its own first bytes over it, which would show in its time of change."""


@vector(
    "overwrite-the-runtime", "CVE-2019-5736, CVE-2016-9962", roads=("tool", "gate")
)  # hundreds of execs: the nested road is made of them
async def overwrite_the_runtime(world: World, road: Road) -> Outcome:
    async with road.service("sh", "-c", f"cp /bin/busybox /tmp/b; {_WATCH}") as container:
        with anyio.move_on_after(8):
            while "WATCHING" not in await road.logs(container):
                await anyio.sleep(0.1)
        with contextlib.suppress(ManyoyoError):  # its time is over
            for _ in range(8):
                await road.exec(container, "sh", "-c", ":")
        await road.ended(container)
        said = nothing_out(await road.logs(container))
    return contained(said.strip().splitlines()[-2][:60])


# -- others' sandboxes


@vector("guess-a-sandbox", "insecure direct object reference (CWE-639)", roads=("tool",), smoke=True)
async def guess_a_sandbox(world: World, road: Road) -> Outcome:
    """Another user's, by its very id: as unknown as one that never was."""
    theirs = world.neighbour.box.sandbox.sandbox_id
    answers = [
        await world.tool.call(tool, sandbox_id=sandbox, **arguments)
        for sandbox in (theirs, "sb-0123456789abcdef")
        for tool, arguments in (("nested_list", {}), ("nested_run", _RUN), ("sandbox_endpoint", {}))
    ]
    said = {answer.text.replace(theirs, "?").replace("sb-0123456789abcdef", "?") for answer in answers}
    assert len(said) == 1, f"they are told apart: {said}"
    return next(refused(answer, "SANDBOX_NOT_FOUND") for answer in answers)


@vector("cleanup-of-anothers", "insecure direct object reference (CWE-639)", roads=("tool",))
async def cleanup_of_anothers(world: World, road: Road) -> Outcome:
    """Another owner's sandbox, by its very id."""
    theirs = world.neighbour.box.sandbox.sandbox_id
    answer = await world.tool.call("cleanup", sandbox_id=theirs)
    if theirs in answer.json_part().get("removed", []):
        raise Out(answer.text)
    assert "there" in await world.neighbour.box.output("echo", "there"), "the neighbour is gone"
    return contained("there is no such sandbox, it says")


@vector("guess-a-job", "insecure direct object reference (CWE-639)", roads=("tool",))
async def guess_a_job(world: World, road: Road) -> Outcome:
    box = world.neighbour.box
    job = box.manager.work.run(box.sandbox, box.spec("echo", world.neighbour.secret))
    await job.wait(20)
    answer = await world.tool.call_plain("read_log", job_id=job.job_id)
    if world.neighbour.secret in answer.text:
        raise Out(answer.text[:500])
    return refused(answer, "JOB_NOT_FOUND")


@vector("neighbours-service", OWN)
async def neighbours_service(world: World, road: Road) -> Outcome:
    """A service in another sandbox, at the address that it has there and at that of its outer container."""
    neighbour = world.neighbour
    url = f"http://{neighbour.address}:8765/secret"
    assert neighbour.secret in await neighbour.box.output("wget", "-T", "3", "-qO", "-", url), (
        "its own can't reach it either"
    )
    script = f"for each in {neighbour.address} {neighbour.outer}; do wget -T 1 -qO - http://$each:8765/secret; done; echo TRIED"
    _, said = await road.run(script)
    if neighbour.secret in said:
        raise Out(said[:500])
    assert "TRIED" in said, said
    return contained("not reached")


@vector("outer-listeners", OWN)
async def outer_listeners(world: World, road: Road) -> Outcome:
    """Whatever listens in the outer container, at the addresses by which a nested one sees it."""
    addresses = (await world.outer("ip -4 -o addr show | awk '{ print $4 }' | cut -d/ -f1")).split()
    ports = (await world.outer('cat /proc/net/tcp | awk \'$4 == "0A" { split($2, a, ":"); print a[2] }\'')).split()
    tries = [
        (address, int(port, 16)) for address in addresses if not address.startswith("127.") for port in {*ports, "0947"}
    ]
    if world.tier in ON_HOST:  # the machine's own: more than there is time for
        tries = [each for each in tries if ":" not in each[0]][:24]
    script = "; ".join(f"nc -w 1 {address} {port} < /dev/null && echo OUT {address} {port}" for address, port in tries)
    _, said = await road.run(f"{script}; echo TRIED")
    nothing_out(said)
    return contained(f"nothing listens: {len(ports)} ports of its own, none reachable")


@vector("container-of-the-outer-engine", OWN)
async def container_of_the_outer_engine(world: World, road: Road) -> Outcome:
    """The sandbox's own container, by its id and its name, is not among the nested."""
    for each in (world.box.sandbox.outer.container_id, f"manyoyo-{world.box.sandbox.sandbox_id}"):
        answer = await road.request("GET", f"/containers/{each}/json")
        if answer.ok:
            raise Out(answer.text[:300])
    made = await road.create(HostConfig={"PidMode": f"container:{world.box.sandbox.outer.container_id}"})
    if made.ok:  # engines may find out at the start alone
        started = await road.request("POST", f"/containers/{made.json()['Id']}/start")
        await road.drop(made.json()["Id"])
        if started.ok:
            raise Out("joined the outer container's processes")
    return contained("unknown to the engine")


# -- the server's own signs


@vector("forge-our-label", OWN, roads=GATES)
async def forge_our_label(world: World, road: Road) -> Outcome:
    return refused(await road.create(Labels={"org.manyoyo.keep-alive": "yes"}), words="the server's own")


@vector("forge-our-label-in-an-image", OWN)
async def forge_our_label_in_an_image(world: World, road: Road) -> Outcome:
    """A container inherits its image's labels; none of them may keep a sandbox."""
    tag = world.tag("label")
    dockerfile = f"FROM {IMAGE}\nLABEL org.manyoyo.keep-alive=yes org.manyoyo.server-pid=1\n"
    if not world.builds(road):
        return pointless("nothing is built there")
    if world.tier == "sock":
        return withheld(await world.tool.call("nested_build", files={"Dockerfile": dockerfile}))
    built, text = await road.build(dockerfile, tag=tag)
    assert built, text
    gate = world.roads["gate"]
    async with gate.service(*_SLEEP, Image=tag) as container:
        looked = (await gate.request("GET", f"/containers/{container}/json")).json()
    await road.request("DELETE", f"/images/{tag}", {"force": "1"})
    labels = looked["Config"]["Labels"]
    if labels.get("org.manyoyo.keep-alive") == "yes":
        raise Out(str(labels))
    return contained("our labels are overruled")


@vector("forge-a-sandbox", OWN)
async def forge_a_sandbox(world: World, road: Road) -> Outcome:
    """A nested image that says it is a sandbox of somebody's: a sweep looks at the host's engine, not here."""
    name = f"escape-{secrets.token_hex(4)}"
    label = {"org.manyoyo.sandbox": "sb-0123456789abcdef", "org.manyoyo.kind": "sandbox"}
    answer = await road.request("POST", "/volumes/create", body={"Name": name, "Labels": label})
    found = await world.box.manager.host.find({"sandbox": "sb-0123456789abcdef"}, remains=True)
    await road.request("DELETE", f"/volumes/{name}", {"force": "1"})
    if found:
        raise Out(f"{found}")
    assert answer.ok, answer
    return contained("labels inside are not looked at")


@vector("forge-the-lease", OWN)
async def forge_the_lease(world: World, road: Road) -> Outcome:
    """A nested container writes where the lease would be."""
    before = await world.keeps("cat /run/manyoyo/lease 2>&1 | wc -c; ls /run/manyoyo")
    await road.run("mkdir -p /run/manyoyo && echo 99999999999 > /run/manyoyo/lease && : > /run/manyoyo/ending")
    after = await world.keeps("cat /run/manyoyo/lease 2>&1 | wc -c; ls /run/manyoyo")
    if before != after or "ending" in after:
        raise Out(f"{before} {after}")
    return contained("it has a file of its own there")

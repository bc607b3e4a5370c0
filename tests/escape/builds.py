"""What a Dockerfile can ask for that no tool offers: it is read by the engine's builder alone."""

from collections.abc import Mapping

from manyoyo_mcp.errors import ManyoyoError
from tests.escape.canaries import CANARY
from tests.escape.roads import IMAGE, Road
from tests.escape.vectors import BUILDS, ON_HOST, OWN, Out, Outcome, Vector, add, contained, vector
from tests.escape.world import World

_STORE = "containers-storage:[overlay@/var/lib/manyoyo/podman+/run/pwned]" + IMAGE
_PEEK = f'RUN ["sh", "-c", "cat {CANARY}/secret /mnt{CANARY}/secret /mnt/escape-canary/secret /mnt/secret 2>/dev/null; echo LOOKED"]\n'


def _build(
    name: str, source: str, dockerfile: str, *, builds: bool | None = None, files: Mapping[str, bytes] | None = None,
    says: str = "", smoke: bool = False,
) -> None:  # fmt: skip
    """A build in whose output the outer container's secret would stand if it got out. `builds`: whether an image may come of it; None
    where engines differ. `says`: what must not be in the output either."""

    async def attempt(world: World, road: Road) -> Outcome:
        try:
            built, text = await road.build(dockerfile, files)
        except ManyoyoError as error:
            return _not_begun(world, error)
        if world.canaries.secret in text or (says and says in text):
            raise Out(text[-1500:])
        if built and builds is False:
            raise Out(f"an image came of it: {text[-1000:]}")
        assert built or builds is not True, f"it does not build, so this shows nothing: {text[-1000:]}"
        return contained("it builds, and has seen nothing" if built else "no image comes of it")

    add(Vector(name, source, "builds", attempt, roads=BUILDS, smoke=smoke))


for _name, _from in (
    ("dir", f"dir:{CANARY}"), ("oci", f"oci:{CANARY}:x"), ("archive", f"docker-archive:{CANARY}/secret"), ("tarball", f"tarball:{CANARY}/secret"),
    ("daemon", "docker-daemon:x:y"), ("store", _STORE),
):  # fmt: skip
    _build(
        f"from-{_name}",
        "podman's transports (containers-transports(5))",
        f"FROM {_from}\nRUN true\n",
        builds=False,
        smoke=_name == "dir",
    )
_build(
    "from-by-argument",
    "podman's transports",
    f"ARG A=containers\nARG B={_STORE.removeprefix('containers')}\nFROM $A$B\nRUN true\n",
    builds=False,
)
_build("copy-from-store", "podman's transports", f"FROM {IMAGE}\nCOPY --from={_STORE} /bin/busybox /x\n", builds=False)
_build(
    "mount-from-store",
    "podman's transports",
    f"FROM {IMAGE}\nRUN --mount=type=bind,from={_STORE},target=/mnt true\n",
    builds=False,
)
_build(
    "run-network-host",
    "RUN --network=host",
    f"FROM {IMAGE}\nRUN --network=host echo NETWORKED\n",
    builds=False,
    says="\nNETWORKED",
)
_build(
    "run-security-insecure",
    "CVE-2024-23653",
    f"FROM {IMAGE}\nRUN --security=insecure mount -t tmpfs none /mnt && echo MOUN''TED\n",
    builds=False,
    says="\nMOUNTED",
)
_build(
    "run-device",
    OWN,
    f"FROM {IMAGE}\nRUN --device=/dev/mem ls -l /dev/mem && echo DEV''ICE\n",
    builds=False,
    says="\nDEVICE",
)
_build(
    "add-above-the-context",
    "CVE-2014-9357's kin",
    f"FROM {IMAGE}\nADD ../../../../../../../..{CANARY}/secret /secret\nRUN cat /secret\n",
)
_build("copy-an-absolute-path", OWN, f"FROM {IMAGE}\nCOPY {CANARY}/secret /secret\nRUN cat /secret\n", builds=False)
_build("add-a-file-url", OWN, f"FROM {IMAGE}\nADD file://{CANARY}/secret /secret\nRUN cat /secret\n", builds=False)
_build(
    "mount-above-the-context",
    "buildah's bind mounts",
    f"FROM {IMAGE}\nRUN --mount=type=bind,source=../../../../../../../..{CANARY},target=/mnt cat /mnt/secret\n",
    builds=False,
)
_build(
    "mount-through-a-link",
    "CVE-2024-1753",
    f"FROM {IMAGE} AS one\nRUN ln -s / /link\nFROM {IMAGE}\nRUN mkdir -p /mnt\n"
    f"RUN --mount=type=bind,from=one,source=/link,target=/mnt,rw cat /mnt{CANARY}/secret || echo none\n",
)
_build(
    "mount-cache-by-id",
    "CVE-2024-9675",
    f"FROM {IMAGE}\nRUN mkdir -p /mnt\nRUN --mount=type=cache,id=../../../../../../../../run,target=/mnt cat /mnt/escape-canary/secret || echo none\n",
)
_build(
    "mount-cache-source",
    "CVE-2024-9675",
    f"FROM {IMAGE}\nRUN mkdir -p /mnt\nRUN --mount=type=cache,source=../../../../../../../../run,target=/mnt cat /mnt/escape-canary/secret || echo none\n",
)
_build(
    "mount-propagation",
    "CVE-2024-9407",
    f"FROM {IMAGE}\nRUN --mount=type=bind,from={IMAGE},source=/,target=/mnt,bind-propagation=rshared mount -t tmpfs none /mnt/tmp && echo MOUN''TED\n",
    says="\nMOUNTED",
)
_build(
    "mount-a-secret",
    OWN,
    f"FROM {IMAGE}\nRUN --mount=type=secret,id=x,src={CANARY}/secret,target=/mnt/secret cat /mnt/secret || echo none\n",
)
_build(
    "mount-an-agent",
    "RUN --mount=type=ssh",
    f"FROM {IMAGE}\nRUN --mount=type=ssh ls -lR /run; cat /mnt{CANARY}/secret; cat {CANARY}/secret || echo none\n",
)
_build(
    "mount-cache-from-an-image",
    "CVE-2024-9675, CVE-2024-23651 (a race of cache mounts)",
    f"FROM {IMAGE} AS one\nRUN ln -s /run /link\nFROM {IMAGE}\nRUN mkdir -p /mnt\n"
    "RUN --mount=type=cache,from=one,source=/link,target=/mnt cat /mnt/escape-canary/secret || echo none\n",
)
_build(
    "workdir-by-descriptor",
    "CVE-2024-21626",
    f"FROM {IMAGE}\n"
    + "".join(
        f"WORKDIR /proc/self/fd/{fd}\nRUN cat ../../../../../../..{CANARY}/secret ../../..{CANARY}/secret 2>/dev/null || true\n"
        for fd in (7, 8, 9)
    ),
)
_build(
    "links-in-layers",
    "CVE-2014-6407, CVE-2019-18466",
    f"FROM {IMAGE}\nRUN ln -s /run /l && ln -s / /r\nCOPY x /l/escape-canary/empty\nCOPY x /r{CANARY}/empty\n{_PEEK}",
    files={"x": b"pwned"},
)
_build(
    "unmasking-by-links",
    "CVE-2025-31133, CVE-2025-52565",
    f"FROM {IMAGE}\nRUN rm -rf /dev; mkdir -p /dev; ln -sf /proc/sys/kernel/core_pattern /dev/null || true\nRUN ls -l /dev/null /dev/console || true\n"
    'RUN ["sh", "-c", "( : >> /proc/sys/kernel/core_pattern ) 2>/dev/null && echo WRI\'\'TABLE; echo LOOKED"]\n',
    says="\nWRITABLE",
)
_build("onbuild", OWN, f"FROM {IMAGE} AS one\nONBUILD COPY --from={_STORE} /bin/busybox /other\nFROM one\nRUN true\n")
_build("frontend", "CVE-2024-23653's kin: # syntax=", f"# syntax=dir:{CANARY}\nFROM {IMAGE}\n{_PEEK}")
_build(
    "links-in-the-stub",
    "CVE-2024-23652",
    f"FROM {IMAGE} AS one\nRUN mkdir /e\nFROM {IMAGE}\nRUN --mount=type=bind,from=one,source=/e,target=/stub/escape-canary/empty "
    "mv /stub /stub2 && ln -s /run /stub\n",
)  # afterwards a builder removes the place it made for the mount; the canary knows


def _not_begun(world: World, error: ManyoyoError) -> Outcome:
    """Refused before a builder sees it, as where the machine's own engine builds. Raises the error anywhere else."""
    if world.tier not in ON_HOST:
        raise error
    return Outcome("refused", error.instance_code, asked=False)


async def _poisoned(
    world: World, road: Road, dockerfile: str, script: str, files: Mapping[str, bytes] | None = None
) -> Outcome:
    """Run an image that lays a trap for the OCI runtime."""
    tag = world.tag("trap")
    try:
        built, text = await road.build(dockerfile, files, tag)
    except ManyoyoError as error:
        return _not_begun(world, error)
    if not built:
        return contained(f"no image comes of it: {text.strip()[-60:]!r}")
    code, said = await road.run(script, Image=tag)
    await world.control.request("DELETE", f"/images/{tag}", {"force": "1"})
    if "OUT " in said or world.canaries.secret in said:
        raise Out(said[-1000:])
    return contained("it does not start" if code == 125 else "it runs, and reaches nothing")


_TRY = f"( : >> /proc/sys/kernel/core_pattern ) 2>/dev/null && echo OUT core_pattern; cat {CANARY}/secret; ls -la /proc | head -n 5; echo TRIED"


@vector("volume-instruction-proc", "CVE-2019-16884", roads=BUILDS)
async def volume_instruction_proc(world: World, road: Road) -> Outcome:
    return await _poisoned(world, road, f"FROM {IMAGE}\nVOLUME /proc\n", _TRY)


@vector("volume-instruction-dev", "OCI runtimes cover what they mask by the container's own /dev/null", roads=BUILDS)
async def volume_instruction_dev(world: World, road: Road) -> Outcome:
    """With a volume at /dev engines make no devices there, and what is there is the image's."""
    dockerfile = (
        f"FROM {IMAGE}\nRUN mkdir /d && ln -s /proc/keys /d/null\nFROM {IMAGE}\nCOPY --from=0 /d/ /dev/\nVOLUME /dev\n"
    )
    uncovered = (
        'for each in keys timer_list kcore; do case "$(head -c 1 /proc/$each)" in ?) echo OUT $each ;; esac; done'
    )
    return await _poisoned(world, road, dockerfile, f"{uncovered}; {_TRY}")


@vector("proc-is-a-link", "CVE-2023-28642, CVE-2019-19921", roads=BUILDS)
async def proc_is_a_link(world: World, road: Road) -> Outcome:
    dockerfile = f"FROM {IMAGE} AS one\nRUN mkdir -p /t/fake/sys && cp -a /bin /usr /lib* /t/ && ln -s /fake /t/proc\nFROM scratch\nCOPY --from=one /t/ /\nENV PATH=/usr/bin:/bin\n"
    return await _poisoned(world, road, dockerfile, _TRY)


@vector("workdir-instruction", "CVE-2024-21626 (in an image)", roads=BUILDS)
async def workdir_instruction(world: World, road: Road) -> Outcome:
    script = f"pwd; for up in .. ../.. ../../..; do cat $up{CANARY}/secret; done; echo TRIED"
    return await _poisoned(world, road, f"FROM {IMAGE}\nWORKDIR /proc/self/fd/8\n", script)


@vector("entrypoint-is-the-runtime", "CVE-2019-5736", roads=BUILDS)
async def entrypoint_is_the_runtime(world: World, road: Road) -> Outcome:
    """The image's program is /proc/self/exe, which was once the runtime itself."""
    dockerfile = f"FROM {IMAGE}\nRUN printf '#!/proc/self/exe\\n' > /exe && chmod 755 /exe\nENTRYPOINT [\"/exe\"]\n"
    return await _poisoned(world, road, dockerfile, "echo TRIED")

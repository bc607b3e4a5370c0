"""Checks of the host: the container engine on which sandboxes live, and what it has."""

import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import requests
from docker.context import ContextAPI

from manyoyo_mcp.cli.doctor.check import Check, fail, ok, warn
from manyoyo_mcp.config import CONFIG_FILE, ENGINE_SCRIPT, EngineName, Settings
from manyoyo_mcp.errors import ManyoyoError
from manyoyo_mcp.hosts.base import LABEL
from manyoyo_mcp.hosts.docker import DockerHost
from manyoyo_mcp.hosts.isolation import ON_HOST, TIERS, engine_of, host_config, tier
from manyoyo_mcp.hosts.pool import KEEPER
from manyoyo_mcp.image import bases, outer
from manyoyo_mcp.sessions import sweep
from manyoyo_mcp.sessions.identity import Identity
from manyoyo_mcp.values import format_bytes
from manyoyo_mcp.workers import in_thread

API_VERSION = (1, 41)
"""The first with private cgroup namespaces (Docker 20.10): caps in a sandbox can't be proven without."""
REGISTRY_IMAGE = "docker.io/library/busybox"
"""Asked for by name alone: nothing is downloaded."""
_REGISTRY_TIMEOUT = 10
_DISK_FEW, _DISK_TOO_FEW = 10 << 30, 2 << 30
_DEFAULT_ENDPOINT = "unix:///var/run/docker.sock"

# By number, as linux/capability.h has them.
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """What the host said of itself: docker's `info` and `version`. `here`: its engine runs on this machine's kernel."""

    settings: Settings
    host: DockerHost
    info: Mapping[str, Any]
    version: Mapping[str, Any]
    here: bool


def endpoint(settings: Settings, environ: Mapping[str, str]) -> tuple[str, str]:
    """The host engine's endpoint, and what named it."""
    if settings.docker_host:
        return settings.docker_host, "MANYOYO_DOCKER_HOST" if environ.get("MANYOYO_DOCKER_HOST") else str(CONFIG_FILE)
    if environ.get("DOCKER_HOST"):
        return environ["DOCKER_HOST"], "DOCKER_HOST"
    context = ContextAPI.get_current_context()
    if context is not None and context.Name != "default" and context.Host:
        return context.Host, f"docker context {context.Name}"
    return _DEFAULT_ENDPOINT, "docker's default"


async def engine(settings: Settings, host: DockerHost) -> tuple[Check, Facts | None]:
    """Whether the host answers; everything else that is asked of it needs that."""
    url, named_by = endpoint(settings, os.environ)
    try:
        info = await in_thread(lambda: dict(host.client.info()))
        version = await in_thread(lambda: dict(host.client.version()))
    except ManyoyoError as error:
        return fail(
            "host engine",
            f"{url} (from {named_by}): {error.message}",
            error.hint.split("; `manyoyo-mcp doctor`")[0] + ".",
        ), None
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        return fail(
            "host engine", f"{url} (from {named_by}) answers with an error: {error}", "See the engine's own log."
        ), None
    here = sys.platform == "linux" and url.startswith("unix://") and info.get("KernelVersion") == platform.release()
    words = (
        f"{info.get('ServerVersion')} at {url} (from {named_by}), {info.get('NCPU')} CPUs, "
        f"{format_bytes(info.get('MemTotal', 0))} memory, {info.get('OperatingSystem')}"
    )
    return ok("host engine", words), Facts(settings, host, info, version, here)


async def api_version(facts: Facts) -> Check:
    words = str(facts.version.get("ApiVersion", "0"))
    found = tuple(int(part) for part in words.split(".") if part.isdigit())
    if found < API_VERSION:
        return fail("api version", f"{words}; 1.41 is needed", "Update the host's engine to Docker 20.10 or newer.")
    return ok("api version", words)


async def rootful(facts: Facts) -> Check:
    if any("rootless" in option for option in facts.info.get("SecurityOptions") or []):
        return warn(
            "engine mode",
            "the host's engine is rootless; sandboxes may not start in it, or without caps",
            "`manyoyo-mcp doctor --try` tells; a rootful engine works (another docker context, or DOCKER_HOST).",
        )
    return ok("engine mode", "rootful")


async def cgroups(facts: Facts) -> Check:
    info = facts.info
    words = f"version {info.get('CgroupVersion', '1')}, driver {info.get('CgroupDriver', '?')}"
    missing = [
        cap
        for cap, key in (("memory", "MemoryLimit"), ("pids", "PidsLimit"), ("cpu", "CpuCfsQuota"))
        if not info.get(key)
    ]
    if missing:
        return fail(
            "cgroups",
            f"{words}; no controller for {', '.join(missing)}",
            "Enable it at the kernel's command line (e.g. cgroup_enable=memory swapaccount=1) and boot again.",
        )
    return ok("cgroups", f"{words}; memory, cpu and pids can be capped")


async def capabilities(facts: Facts) -> Check:
    """`--privileged` asks for every capability. What this machine's bounding set lacks some engines leave out by
    themselves, others need a runtime that does."""
    runtime, runtimes = facts.settings.host_runtime, facts.info.get("Runtimes") or {}
    if runtime is not None and runtime not in runtimes:
        return unknown_runtime(runtime, runtimes)
    if not facts.here:
        return ok("capabilities", "the engine is not on this machine; `manyoyo-mcp doctor --try` tells")
    status = dict(line.split(":\t", 1) for line in _read("/proc/self/status").splitlines() if ":\t" in line)
    missing = lacking(int(status["CapBnd"], 16), int(_read("/proc/sys/kernel/cap_last_cap")))
    refusal = await _refusal(facts, "privileged") if missing and runtime is None else ""
    return privileged(missing, runtime, refusal, ENGINE_SCRIPT.exists())


def _read(path: str) -> str:
    return Path(path).read_text()


def lacking(bounding: int, last: int) -> list[str]:
    """The names of the capabilities up to number `last` that a bounding set lacks."""
    return [CAPABILITIES[i] if i < len(CAPABILITIES) else str(i) for i in range(last + 1) if not bounding >> i & 1]


def unknown_runtime(host_runtime: str, runtimes: Mapping[str, Any]) -> Check:
    """The failure of a configured runtime that the host does not have."""
    return fail(
        "capabilities",
        f"MANYOYO_HOST_RUNTIME is {host_runtime}, which the host's engine does not have (it has {', '.join(runtimes)})",
        "Register it there (dockerd --add-runtime NAME=PATH), or unset the variable.",
    )


async def isolation(facts: Facts) -> Check:
    """Which tiers this host starts a container in, by trying each."""
    if facts.settings.host_runtime not in (None, *(facts.info.get("Runtimes") or {})):
        return ok("isolation", "not tried without the runtime that is configured: see capabilities")
    refused: dict[str, str] = {}
    for name in dict.fromkeys((*TIERS, facts.settings.isolation)):
        refusal = await _refusal(facts, name, facts.settings.host_runtime)
        if refusal is None:
            return ok("isolation", "tried once there is the sandbox image: `manyoyo-mcp image build`")
        if refusal:
            refused[name] = refusal
    return tiers(facts.settings.isolation, engine_of(facts.settings.isolation, facts.settings), refused)


def tiers(configured: str, engine: EngineName, refused: Mapping[str, str]) -> Check:
    """What becomes of the tiers where the host refuses some, each in its words; a failure where that is the one that is meant. The strongest of
    the others is proposed."""
    if engine not in (possible := tier(configured).engines):
        return fail(
            "isolation",
            f"{configured}, which is configured, can't be had with engine {engine}, which is too: {tier(configured).why_not}",
            f"Set MANYOYO_ENGINE={min(possible)}, or another MANYOYO_ISOLATION (docs/security.md).",
        )
    words = ", ".join(
        f"{name} {'is refused' if name in refused else 'is not refused'}"
        for name in dict.fromkeys((*TIERS, configured))
    )
    words += f" (`manyoyo-mcp doctor isolation` starts each); {configured} where start_sandbox names none"
    if configured in refused:
        others = [
            name for name in TIERS if name not in refused and engine in tier(name).engines and name not in ON_HOST
        ]
        return fail(
            "isolation",
            f"{words}; the engine says: {refused[configured][-200:]}",
            f"Set MANYOYO_ISOLATION={others[-1]}: docs/security.md says what it holds back."
            if others
            else "See capabilities, above.",
        )
    return ok("isolation", words)


async def _refusal(facts: Facts, name: str, runtime: str | None = None) -> str | None:
    """What is said to a container of a tier that does next to nothing: nothing where it starts and succeeds; None where there is no
    image to try it with."""
    image, trial = outer.reference(facts.settings), tier(name).trial
    if not await facts.host.image_exists(image):
        return None
    body = {
        "Image": image,
        "Entrypoint": list(trial),
        "Labels": {LABEL + key: value for key, value in Identity().labels().items()},
        "NetworkDisabled": True,
        "HostConfig": host_config(name, runtime),
    }

    def attempt(client: docker.APIClient) -> str:
        container = ""
        try:
            container = client.create_container_from_config(body)["Id"]
            client.start(container)
            code = client.wait(container, timeout=30)["StatusCode"]
            if code != 0:
                said = client.logs(container).decode(errors="replace").strip()
                return f"{' '.join(trial)} ended with {code}: {said}"
        except docker.errors.APIError as error:
            return str(error.explanation or error)
        finally:
            if container:
                with suppress(docker.errors.APIError):
                    client.remove_container(container, force=True, v=True)
        return ""

    return await facts.host._call(attempt)


def privileged(missing: Sequence[str], host_runtime: str | None, refusal: str | None, with_script: bool) -> Check:
    """What becomes of `--privileged` where capabilities are missing; a warning only where it was refused."""
    if not missing:
        return ok("capabilities", "complete, as --privileged needs them")
    words = f"this machine's bounding set lacks {', '.join(missing)}"
    if host_runtime is not None:
        return ok("capabilities", f"{words}; the runtime {host_runtime} (MANYOYO_HOST_RUNTIME) leaves them out")
    if refusal is None:
        return ok("capabilities", f"{words}; `manyoyo-mcp doctor --try` tells whether the engine leaves them out")
    if not refusal:
        return ok("capabilities", f"{words}; the engine leaves them out")
    return warn(
        "capabilities",
        f"{words}, and the engine refuses --privileged: {refusal[-200:]}",
        'Use an engine with a runtime that leaves them out: `scripts/engine up; eval "$(scripts/engine env)"`.'
        if with_script
        else "Update the engine, or register a runtime with it that leaves them out (dockerd --add-runtime NAME=PATH) "
        "and name that in MANYOYO_HOST_RUNTIME.",
    )


async def overlay(facts: Facts) -> Check:
    driver = str(facts.info.get("Driver"))
    if "overlay" in driver or (facts.here and "\toverlay" in _read("/proc/filesystems")):
        return ok("overlay", f"the kernel has it (host's storage driver: {driver})")
    return warn(
        "overlay",
        f"not seen (host's storage driver: {driver}); without it nested images take long and much space",
        "modprobe overlay on the host, or use a kernel that has it.",
    )


async def disk(facts: Facts) -> Check:
    root = Path(str(facts.info.get("DockerRootDir", "")))
    if not facts.here or not os.access(root, os.X_OK):
        return ok("disk", f"the host's data ({root}) can't be seen from here; `docker system df` on the host tells")
    return disk_free(str(root), shutil.disk_usage(root).free)


def disk_free(root: str, free: int) -> Check:
    words = f"{format_bytes(free)} free for images and sandboxes ({root})"
    mend = "Free some (`manyoyo-mcp gc`, `docker system df`), or move the engine's data root."
    if free < _DISK_TOO_FEW:
        return fail("disk", words, mend)
    return warn("disk", words, mend) if free < _DISK_FEW else ok("disk", words)


async def outer_image(facts: Facts) -> Check:
    name = outer.reference(facts.settings)
    if await facts.host.image_exists(name):
        return ok("sandbox image", name)
    return warn(
        "sandbox image",
        f"{name} is not there yet: the first sandbox waits for it (half a minute or more)",
        f"manyoyo-mcp image {'build' if facts.settings.outer_image is None else 'show'}",
    )


async def pool(facts: Facts) -> Check:
    """Looked at, not made: that is the first sandbox's."""
    if facts.settings.storage == "plain":
        return ok("disk caps", "none: MANYOYO_STORAGE is plain")
    if not await facts.host.volume_exists(KEEPER):
        return ok(
            "disk caps", "the pool that they take is made with the first sandbox, where the host's kernel has btrfs"
        )
    storage = await facts.host.storage(outer.reference(facts.settings))
    if storage.kind == "pool":
        return ok("disk caps", f"{storage.words}, {format_bytes(storage.free)} free")
    return warn(
        "disk caps",
        f"disks are uncapped, forks and checkpoints are copied file by file: {storage.words}",
        "A pool takes btrfs and loop devices in the host's kernel (`modprobe btrfs loop`); it is tried again after ten minutes.",
    )


async def base_images(facts: Facts) -> Check:
    if await facts.host.volume_exists(bases.VOLUME):
        return ok("base images", f"made from packages, in every new sandbox (volume {bases.VOLUME})")
    return ok(
        "base images", "none made here; needed only where no registry is reachable (`manyoyo-mcp image base NAME`)"
    )


async def registry(facts: Facts) -> Check:
    """Asked from the host: sandboxes reach what it reaches."""

    def ask() -> int | str:
        client: Any = facts.host.client
        try:
            answer = client.get(client._url("/distribution/{0}/json", REGISTRY_IMAGE), timeout=_REGISTRY_TIMEOUT)
        except requests.exceptions.RequestException:
            return f"no answer within {_REGISTRY_TIMEOUT} s"
        return (
            answer.status_code
            if answer.ok or answer.status_code == 404
            else str(answer.json().get("message", answer.text))[:160]
        )

    found = await in_thread(ask)
    if found == 404:
        return ok("registry", "this host's engine can't be asked; `docker pull busybox` on it tells")
    if isinstance(found, int):
        return ok("registry", f"the host reaches {REGISTRY_IMAGE}")
    return warn(
        "registry",
        f"the host does not reach {REGISTRY_IMAGE}: {found}",
        "Without one, make base images from packages: `manyoyo-mcp image base debian` (or python, node, busybox, "
        "postgres); they are in every new sandbox as localhost/manyoyo/NAME.",
    )


async def orphans(facts: Facts) -> Check:
    found = await sweep.sweep(facts.host, facts.settings, dry_run=True)
    if not found.sandboxes:
        return ok("orphans", "none: no sandbox of yours without a server")
    names = ", ".join(each.sandbox_id for each in found.sandboxes[:5])
    return warn("orphans", f"{len(found.sandboxes)} sandboxes whose server has ended: {names}", "manyoyo-mcp gc")


CHECKS = (
    api_version, rootful, cgroups, capabilities, isolation, overlay, disk, outer_image, pool, base_images, registry, orphans
)  # fmt: skip
"""In the order in which they are shown."""

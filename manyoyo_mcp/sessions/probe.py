"""Do caps bind on this host? A nested container over-allocates and must be killed; the kernel's record is the evidence."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from manyoyo_mcp.engines.base import Engine, RunSpec
from manyoyo_mcp.errors import EngineFailed, Reason
from manyoyo_mcp.hosts.base import Completed, Host, HostInfo, Outer
from manyoyo_mcp.hosts.isolation import tier
from manyoyo_mcp.values import Caps


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the probe found. `memory`, `cpus` and `pids` say whether each cap binds."""

    memory: bool
    cpus: bool
    pids: bool
    words: str

    @property
    def enforced(self) -> bool:
        return self.memory and self.cpus and self.pids


_LONGEST = 120.0
"""Seconds that a probe may take."""
_PROBE = """
echo "cpu_quota=$(cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null | head -n 1)"
echo "pids_max=$(cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null | head -n 1)"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then echo cgroup_version=2; else echo cgroup_version=1; fi
exec /bin/busybox tail /dev/zero
"""


async def prove(host: Host, outer: Outer, engine: Engine, image: str) -> Evidence:
    """What a sandbox's engine shows of its caps; `image`: the outer one. Raises EngineFailed where no probe runs."""
    own = not tier(outer.labels.get("isolation", "privileged")).on_host
    return judge(await host.maintain(outer, "probe", timeout=_LONGEST) if own else await _ask(engine, image))


async def _ask(engine: Engine, image: str) -> Completed:
    """What `ctl probe` does, by a run of an engine that is no nested one."""
    output = bytearray()
    spec = RunSpec(image, ["sh", "-c", _PROBE], Caps(0.5, 32 << 20, 16), entrypoint=["/bin/busybox"], network="none")
    ended = await engine.run(spec, output.extend)
    facts = f"exit={ended.exit_code}\nkernel={ended.evidence.replace('kernel:', 'oom-kill:')}\noom_killed={str(ended.reason is Reason.OOM_KILLED).lower()}"
    return Completed(0, f"{output.decode(errors='replace')}\n{facts}")


def judge(completed: Completed) -> Evidence:
    """The evidence in `ctl probe`'s output. Raises EngineFailed where it did not run."""
    facts = dict(line.split("=", 1) for line in completed.output.splitlines() if "=" in line)
    if completed.exit_code != 0 or "exit" not in facts:
        raise EngineFailed(
            f"The cap probe did not run: {completed.output.strip()[-400:]}", "sandbox_status shows the engine's log."
        )
    killed = facts["exit"] == "137" and ("oom-kill" in facts.get("kernel", "") or facts.get("oom_killed") == "true")
    quota = facts.get("cpu_quota", "").split()
    cpus = bool(quota) and quota[0].isdigit()
    pids = facts.get("pids_max", "").isdigit()
    how = "the kernel's record" if "oom-kill" in facts.get("kernel", "") else "the engine's OOMKilled"
    words = (
        f"memory: an allocation beyond 32 MiB was {'killed' if killed else 'NOT killed'} (exit {facts['exit']}, {how}); "
        f"cpus: quota {facts.get('cpu_quota') or 'none'}; pids: maximum {facts.get('pids_max') or 'none'}; "
        f"cgroup v{facts.get('cgroup_version', '?')}"
    )
    return Evidence(killed, cpus, pids, words)


class Remembered:
    """Probe results by host, kernel, image and engine. A lost file costs one more probe and nothing else."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @staticmethod
    def key(host: HostInfo, image: str, engine: str) -> str:
        return "|".join((host.identity, host.kernel, host.cgroup_version, image, engine))

    def get(self, key: str) -> Evidence | None:
        try:
            return Evidence(**json.loads(self._path.read_text())[key])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, evidence: Evidence) -> None:
        try:
            known = json.loads(self._path.read_text())
        except (OSError, ValueError):
            known = {}
        known[key] = asdict(evidence)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_suffix(".new")
        scratch.write_text(json.dumps(known, indent=1))
        scratch.replace(self._path)

"""What must not change, whatever is tried in a sandbox: in its outer container, and on this machine."""

import hashlib
import re
import secrets
from pathlib import Path
from typing import Any

import docker

CANARY = "/run/escape-canary"
"""A directory in the outer container: a file with a secret, a socket, an empty file, a list of users, all of which nothing nested may see or touch."""
ABSTRACT = "manyoyo-escape-canary"
"""An abstract socket in the outer container's network namespace, where containerd-shim once had its own."""
SYSCALLS = Path(__file__).with_name("syscall.pl").read_text()
_PREPARE = r"""
mkdir -p {dir} && chmod 755 {dir} && echo {secret} > {dir}/secret && : > {dir}/empty && echo 'escapee:x:4242:4242::/:/bin/sh' > {dir}/passwd && chmod 600 {dir}/secret
cat > {dir}/listen.pl <<'PERL'
fork and exit;
for my $path ("\0{abstract}", "{dir}/socket") {{
    socket(my $s, 1, 1, 0); unlink $path; bind($s, pack("S a*", 1, $path)) or die $!; listen($s, 5); push @kept, $s;
}}
close STDIN; close STDOUT; close STDERR; $0 = "escape-canary"; sleep 1800;
PERL
perl {dir}/listen.pl
cat > {dir}/syscall.pl <<'PERL'
{syscalls}
PERL
key=$(perl {dir}/syscall.pl add_key s:user s:escape-canary s:x 1 -4 | sed 's/.*: //')
perl {dir}/syscall.pl keyctl 15 $key 1800
"""
"""The key lies in the keyring of root's, which the kernel has one of for all that share a user namespace, and goes by itself."""
_LOOK = r"""
echo BEGIN
stat -c '%n %a %u %s %Y' {dir} {dir}/* /usr/bin/crun /usr/sbin/runc /usr/bin/conmon /usr/bin/podman /usr/bin/dockerd /etc/passwd 2>/dev/null
cat {dir}/secret
ls -A / /etc/containers /usr/lib/manyoyo
ls -A /run | grep -vE '^(crun|runc|libpod|netns|lock|containers|docker.*|containerd|firewall|mount|manyoyo-(execs.lock|names.*|secrets)|xtables.lock|buildah.*)$'
hostname
awk '{{ print $5 }}' /proc/1/mountinfo | grep -vE '^(/var/lib/manyoyo|/run/(containers|docker|netns|containerd|user|crun|runc|libpod))'
"""
_SETTINGS = (
    "kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/domainname", "kernel/panic", "kernel/sysrq", "vm/panic_on_oom",
    "vm/drop_caches", "fs/suid_dumpable", "net/ipv4/ip_forward",
)  # fmt: skip
"""Of this machine's kernel. They are read, never written."""


class Canaries:
    """Of one sandbox. `changed` says what is not as it was in the beginning."""

    look = _LOOK

    def __init__(self, outer: docker.models.containers.Container, directory: Path) -> None:
        self.secret = f"canary-{secrets.token_hex(8)}"
        self._outer = outer
        self._file = directory / "canary"
        self._file.write_text(self.secret)
        self.outer(_PREPARE.format(dir=CANARY, secret=self.secret, abstract=ABSTRACT, syscalls=SYSCALLS))
        self._engine = self._engines()
        self._before = self._look()

    def outer(self, script: str, user: str = "root") -> str:
        """A script of ours in the outer container: what somebody could do who got out."""
        return self.outer_container(script, user)

    def outer_container(self, script: str, user: str = "root") -> str:
        """What a script says in the outer container."""
        return str(self._outer.exec_run(["sh", "-c", script], user=user).output.decode(errors="replace"))

    def changed(self) -> str:
        """Asked again before it is believed: a piece of what is looked at may be lost on the way."""
        return self._changed() and self._changed()

    def _changed(self) -> str:
        now = self._look()
        lines = [f"- {line}" for line in self._before if line not in now]
        lines += [f"+ {line}" for line in now if line not in self._before]
        if gone := self._engine - self._engines():
            lines.append(f"- processes of the outer container: {gone}")
        return "\n".join(lines)

    def _look(self) -> list[str]:
        self._outer.reload()
        state = self._outer.attrs["State"]
        for _ in range(5):  # an old engine loses the first piece of an exec's output now and then
            lines = self.outer(self.look.format(dir=CANARY)).splitlines()
            if "BEGIN" in lines:
                break
        lines += [f"{each} {_read(Path('/proc/sys') / each)}" for each in _SETTINGS]
        lines.append(f"started {state['StartedAt']} with pid {state['Pid']}")
        lines += self.around()
        lines.append(f"file of the host's {hashlib.sha256(self._file.read_bytes()).hexdigest()}")
        lines += [f"beside it {each.name}" for each in sorted(self._file.parent.iterdir())]
        return lines

    def around(self) -> list[str]:
        """What else there is, a line each."""
        return []

    def holds(self, cgroup: str, words: str) -> bool:
        """Whether a process, by its cgroups and command line, is one that holds the sandbox up."""
        return self._outer.id in cgroup and bool(
            re.search(r"podman .*system service|dockerd |^containerd --log|/entrypoint", words)
        )

    def _engines(self) -> set[tuple[int, str]]:
        """The processes that hold a sandbox up, by pid and time of start."""
        found = set()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                cgroup = (entry / "cgroup").read_text()
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                began = (entry / "stat").read_text().rpartition(") ")[2].split()[19]
            except OSError:
                continue
            if self.holds(cgroup, words):
                found.add((int(entry.name), began))
        return found


def _read(path: Path) -> Any:
    try:
        return path.read_text().strip()
    except OSError as error:
        return error.strerror

"""Whose fault was it, and what was it? Told apart by evidence: the engine's state, the kernel's record, the output's end."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from manyoyo_mcp.engines.base import Ended, OutputFile
from manyoyo_mcp.engines.complaints import last_complaint
from manyoyo_mcp.errors import (
    DiskFull,
    EngineFailed,
    InvalidArgument,
    ManyoyoError,
    NameConflict,
    NotFound,
    NotRunning,
    NotSupported,
    Reason,
)

SIGKILLED = 137
UNTOLD = (SIGKILLED, 2)
"""Exit codes of which the kernel's record may know more: killed; and how a runtime ends that is a Go program, as gVisor, and gets no
thread."""
_LAST_SIGNAL = 64
_OF_ITS_OWN = 125
"""The largest exit code that means nothing to a shell."""
_CONTAINERS_CAPS = (
    "Caps are the container's: start it anew with more (nested_run, detach=true), or make the command use less."
)
_ENGINES_CLIENTS = {"docker", "docker-compose", "podman", "podman-compose", "buildah", "nerdctl"}
REFUSED = re.compile("permission denied|not permitted|format error", re.IGNORECASE)
"""What runtimes say of a program that is there and may not, or can't, be executed."""
NO_SPACE = re.compile(r"[:\])(] ?(?:no space left on device|disk quota exceeded)", re.IGNORECASE)
_NO_DATABASE = re.compile("unable to open database file|database or disk is full")
"""What SQLite says on a full disk, for podman."""
_NOTHING_SAID = re.compile(r"\(no logs from conmon\): conmon bytes|error found in #0 byte of \.\.\.\|\|")
"""What podman says where it reads nothing from a container's monitor, which ends without a word where it can't write."""
MAKE_ROOM = (
    "Make room: nested_stop with action=remove takes containers away; or grow it: start_sandbox with its sandbox_id and a "
    "larger disk; or go on in a new sandbox."
)
"""What to do where a sandbox's disk is full."""
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - not used, told of
SHARED_MEMORY_FULL = "It holds 64 MiB only: write to another directory, which lies on the sandbox's disk."
"""What to do where /dev/shm is full."""
_NO_SPACE_TRAILER = re.compile(r"^(?:tar|cp|npm|E|dpkg|make|error)\b|^Errors were encountered|^compilation terminated")
_NO_FORK = re.compile(
    rb"resource temporarily unavailable|can't fork|cannot fork|fork: retry|unable to create.{0,20}thread", re.IGNORECASE
)
_SAYS_KILLED = re.compile(rb"\bkilled\b|sigkill|signal 9\b", re.IGNORECASE)
_OOM_MEMCG = re.compile(r"oom_memcg=([^,]*)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reason with its evidence."""

    reason: Reason
    explanation: str
    hint: str
    evidence: str


def verdict(
    exit_code: int, *, oom_flag: bool, record: str, cgroup: str, output_end: bytes, cap: str, stays: bool = False
) -> Verdict:
    """The reason for a non-zero exit. `stays`: the command's container was there before it, or is there after it.

    `oom_flag` is the engine's own OOMKilled, `record` the kernel's lines about `cgroup` (a part of its path), `output_end` the last
    output, `cap` the memory cap in words. The kernel's record names the cgroup whose limit was hit: ours, or one above it.
    """
    ooms = [line for line in record.splitlines() if "oom-kill" in line]
    if exit_code == SIGKILLED or oom_flag or ooms:
        hit = _OOM_MEMCG.search(ooms[-1])[1] if ooms and _OOM_MEMCG.search(ooms[-1]) else ""  # type: ignore[index]
        if hit and cgroup not in hit:
            return Verdict(
                Reason.SANDBOX_OOM,
                "The whole sandbox ran out of memory, and the kernel chose this command to kill.",
                "Grow the sandbox: start_sandbox with its sandbox_id and a larger memory; or stop what else runs in it "
                "(nested_list).",
                f"kernel: oom_memcg={_short(hit)}",
            )
        if hit or oom_flag:
            return Verdict(
                Reason.OOM_KILLED,
                f"The command used more memory than its cap of {cap} and was killed by the kernel.",
                _CONTAINERS_CAPS if stays else "Ask for more with memory=…, or make the command use less.",
                f"kernel: oom_memcg={_short(hit)}" if hit else "engine: OOMKilled=true",
            )
    if "fork rejected by pids controller" in record or (_NO_FORK.search(output_end) and "pids" in record):
        return Verdict(
            Reason.PIDS_LIMIT,
            "The command tried to have more processes and threads than its cap and was refused.",
            _CONTAINERS_CAPS
            if stays
            else "Ask for more with pids_limit=…, or run fewer in parallel (make -j, workers).",
            "kernel: fork rejected by pids controller",
        )
    if complaint := last_complaint(output_end.decode(errors="replace"), NO_SPACE, _NO_SPACE_TRAILER):
        said = (
            complaint.string[: complaint.start()].rpartition("\n")[2]
            + complaint.string[complaint.start() :].partition("\n")[0]
        )
        if _SHARED_MEMORY in said:
            words = f"output: no space left on device, of {_SHARED_MEMORY}"  # not the command's own: nobody fences it
            return Verdict(Reason.DISK_FULL, f"{_SHARED_MEMORY} is full.", SHARED_MEMORY_FULL, words)
        named = "/" in said
        return Verdict(
            Reason.DISK_FULL,
            "A file system that the command wrote to is full.",
            MAKE_ROOM + ("" if named else " (/dev/shm, where it was that, holds 64 MiB only.)"),
            "output: no space left on device",
        )
    hint = _exit_hint(exit_code) if output_end.strip() or exit_code > _OF_ITS_OWN else "It wrote nothing that says why."
    return Verdict(Reason.EXIT_NONZERO, f"The command ended with exit code {exit_code}.", hint, "")


def ended_well(
    told: Verdict, cap: str, seconds: float, outputs: Sequence[OutputFile] = (), container: str = ""
) -> Ended:
    """OK, of a command with exit code 0. Where the kernel killed a process of it, which shells and test runners go on without, that is
    said beside; `told` is its verdict, `cap` the memory cap in words."""
    if told.reason not in (Reason.OOM_KILLED, Reason.SANDBOX_OOM):
        return Ended(0, Reason.OK, seconds, outputs=list(outputs), container=container)
    words = f"It ended well, yet the kernel killed one of its processes for want of memory; its cap is {cap}."
    return Ended(0, Reason.OK, seconds, words, told.hint, told.evidence, list(outputs), container)


def says_killed(output_end: bytes) -> bool:
    """Whether a command that ended well may have lost a process, so that the kernel's record is worth a look."""
    return bool(_SAYS_KILLED.search(output_end[-4096:]))


def suspicious(output_end: bytes) -> bool:
    """Whether the output's end may speak of a limit, so that the kernel's record is worth a look."""
    return bool(re.search(rb"kill|memory|fork|thread|resource temporarily|alloc", output_end[-4096:], re.IGNORECASE))


def _short(cgroup: str) -> str:
    """A cgroup's path with its 64-digit ids cut to Docker's 12."""
    return re.sub(r"([0-9a-f]{12})[0-9a-f]{52}", r"\1", cgroup)


def start_hint(command: Sequence[str], refused: bool) -> str:
    """What to do about a command that could not be started; `refused`: it is there, but may not be executed."""
    program = command[0] if command else ""
    if program in _ENGINES_CLIENTS:
        return (
            "There is no engine in a nested container: nested_build, nested_run and the other tools are that engine's."
        )
    if re.search(r"\s", program):
        return 'command is an argv list: ["ls", "-l"] for `ls -l`; for shell syntax write ["sh", "-c", "…"].'
    if refused:
        return "It needs the x permission and to be built for this machine; a script can be run by its interpreter."
    return (
        "Its first word must be a program in the image: install it in a nested_build, or take an image that has it. What "
        'only a shell knows needs one: ["sh", "-c", "…"].'
    )


def _exit_hint(exit_code: int) -> str:
    if exit_code == 126:
        return "126: the file was found but can't be executed (permissions, or built for another architecture)."
    if exit_code == 127:
        return "127: the command was not found in the image."
    if exit_code == SIGKILLED:
        return "137: something sent it SIGKILL; no memory cap was hit."
    if 128 < exit_code <= 128 + _LAST_SIGNAL:
        return f"{exit_code}: ended by signal {exit_code - 128}."
    return "The output says why."


_Answer = tuple[int | None, re.Pattern[str], type[ManyoyoError], str | None, str]
_ANSWERS: list[_Answer] = [
    (status, re.compile(pattern, re.IGNORECASE), kind, code, hint)
    for status, pattern, kind, code, hint in (
        (None, r"unable to find (user|group)|no matching entries in (passwd|group)", InvalidArgument, None,
         "user is a name in the image's /etc/passwd, or a number."),
        (None, r"network .*not found|unable to find network|no such network", NotFound, "NETWORK_NOT_FOUND",
         'Use "default" or "none".'),
        (None, r"(workdir|working directory|cwd|chdir).*(does not exist|no such file|not a directory|not absolute|needs to be an absolute)",
         InvalidArgument, None, "workdir is an absolute path; it is made where it is missing, but must not be a file."),
        (None, r"(unknown|invalid) capability|capability not supported|capabilit(y|ies).*(unknown|invalid|not found)",
         InvalidArgument, None, 'cap_drop takes names like "NET_RAW", or "ALL".'),
        (None, r"invalid containerport|invalid mount|invalid reference|invalid tag|repository name must be lowercase|"
               r"failed to parse|invalid argument|parsing reference", InvalidArgument, None, "Correct the argument that is named."),
        (None, r"no such container|no container with (name or )?id", NotFound, "CONTAINER_NOT_FOUND",
         "nested_list shows the containers there are."),
        (404, r"image|manifest|reference does not exist", NotFound, "IMAGE_NOT_FOUND", "nested_list shows the images there are."),
        (404, r"", NotFound, "CONTAINER_NOT_FOUND", "nested_list shows the containers there are."),
        (409, r"dead or marked for removal|removal of container .* is already in progress", NotFound, "CONTAINER_NOT_FOUND",
         "It is being removed."),
        (409, r"already in use|conflict", NameConflict, None,
         "Choose another name, or remove the container that has it: nested_stop with action='remove'."),
        (None, r"already in use", NameConflict, None,
         "Choose another name, or remove the container that has it: nested_stop with action='remove'."),
        (None, r"is not running|can only create exec sessions on running|improper state|is paused", NotRunning, None,
         "nested_logs shows what it wrote and how it ended; nested_stop with action='start' starts it again."),
        (501, r"", NotSupported, None, "The other engine may do it: start_sandbox with engine='docker' or 'podman'."),
        (400, r"", InvalidArgument, None, "Correct the argument that is named."),
    )
]  # fmt: skip


def from_answer(engine: str, status: int, text: str) -> ManyoyoError:
    """An engine's error answer as one of ours: the request's fault where the words show it, else the engine's."""
    if status >= 500 and (NO_SPACE.search(text) or _NO_DATABASE.search(text)):
        return DiskFull(f"The sandbox's disk is full. Its {engine} engine answered: {text}", MAKE_ROOM)
    if status >= 500 and _NOTHING_SAID.search(text):
        return DiskFull(
            f"The sandbox's disk is probably full: its {engine} engine could not start a container's monitor. It answered: {text}",
            MAKE_ROOM,
        )
    for wanted, pattern, kind, code, hint in _ANSWERS:
        if wanted in (None, status) and pattern.search(text):
            return kind(text, hint, code=code)
    return EngineFailed(f"The sandbox's {engine} engine answered: {text}", "sandbox_status shows the engine's log.")

"""BuildKit through the gate. A build is no JSON that is read in passing, but calls of gRPC over a connection that was taken over, and a client
of another's making may send any of them: definitions of its own (LLB), rights, other frontends, ways out for what is built.

What a gate lets pass is refused once more behind it, where it can be: some of these are asked straight at the engine too, which says why.
"""

import hashlib
import os
import re
import secrets
import stat
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio.to_thread

from manyoyo_mcp.policy.buildkit_api import MESSAGES
from manyoyo_mcp.policy.protobuf import Field, Schema, texts, write
from tests.escape.grpc import ask
from tests.escape.roads import IMAGE, Answer, BuildKitRoad, Road, tar
from tests.escape.vectors import GATES, ON_HOST, OWN, Out, Outcome, Vector, add, contained, nothing_out, refused, vector
from tests.escape.world import World

_CONTROL, _GATEWAY = "/moby.buildkit.v1.Control", "/moby.buildkit.v1.frontend.LLBBridge"
_SOLVE = f"{_CONTROL}/Solve"
_ENTITLED = "CVE-2024-23653 (entitlements that nobody checked)"


async def _asked(road: Road, path: str, message: bytes) -> Answer:
    assert road.dial is not None, road.name
    return await anyio.to_thread.run_sync(partial(ask, road.dial, path, message))


def _call(
    name: str, source: str, path: str, message: bytes, *, code: str = "POLICY_REFUSED", words: str = "", engine: str | None = None,
    smoke: bool = False,
) -> None:  # fmt: skip
    """A call that is refused. `engine`: what a dockerd's own answer has in it that is asked straight; "" where it does as it is told."""

    async def attempt(world: World, road: Road) -> Outcome:
        outcome = refused(await _asked(road, path, message), code, words)
        if engine is not None and world.engine == "docker" and (name, "asked") not in world.kept:
            answer = await _asked(world.control, path, message)
            assert engine in answer.text if engine else answer.ok, (
                f"the engine itself says otherwise, so this shows nothing: {answer}"
            )
            world.kept[name, "asked"] = True
        return outcome

    add(Vector(name, source, "buildkit", attempt, roads=GATES, smoke=smoke))


# -- definitions of its own

_OP: Schema = {
    1: Field("inputs", "message", many=True, of={1: Field("digest", "text"), 2: Field("index", "int")}),
    2: Field("exec", "message", of={
        1: Field("meta", "message", of={1: Field("args", "text", many=True), 2: Field("env", "text", many=True), 3: Field("cwd", "text"), 10: Field("cgroup", "text")}),
        2: Field("mounts", "message", many=True, of={1: Field("input", "int"), 3: Field("dest", "text"), 4: Field("output", "int")}),
        3: Field("network", "int"), 4: Field("security", "int"),
    }),
    3: Field("source", "message", of={1: Field("identifier", "text"), 2: texts("attrs")}),
}  # fmt: skip
_DEFINITION: Schema = {1: Field("def", "bytes", many=True)}


def _definition(cgroup: str = "", script: str = "true", **execution: int) -> bytes:
    """A step by the attempts' image, in BuildKit's own words (solver/pb/ops.proto)."""
    source = write({"source": {"identifier": f"docker-image://{IMAGE}", "attrs": {"image.resolvemode": "local"}}}, _OP)
    meta = {
        "args": ["/bin/sh", "-c", f"{script} # {secrets.token_hex(8)}"],
        "env": ["PATH=/usr/bin:/bin"],
        "cwd": "/",
        "cgroup": cgroup,
    }
    run = {"meta": meta, "mounts": [{"input": 0, "dest": "/", "output": 0}], **execution}
    step = write({"inputs": [_input(source)], "exec": run}, _OP)
    return write({"def": [source, step, write({"inputs": [_input(step)]}, _OP)]}, _DEFINITION)


def _input(op: bytes) -> dict[str, Any]:
    return {"digest": f"sha256:{hashlib.sha256(op).hexdigest()}", "index": 0}


def _solve(path: str = _SOLVE, **body: Any) -> bytes:
    return write({"Ref": secrets.token_hex(12), **body} if path == _SOLVE else body, MESSAGES[path])


_LARGE = f"/manyoyo-builds/{1 << 40}-50000-65536"
"""The name of a cgroup for a step with a terabyte of memory, as the gate writes those of its builds."""
_call(
    "llb-with-caps-of-its-own", "BuildKit ignores caps (moby/buildkit#593): here a step's lie in a name (decision 11)", _SOLVE,
    _solve(Definition=_definition(_LARGE)), words="LLB", engine="", smoke=True,
)  # fmt: skip
_call(
    "llb-network-host",
    _ENTITLED,
    _SOLVE,
    _solve(Definition=_definition(_LARGE, network=1)),
    words="LLB",
    engine="network.host is not allowed",
)
_call(
    "llb-insecure", _ENTITLED, _SOLVE, _solve(Definition=_definition(_LARGE, security=1)), words="LLB",
    engine="security.insecure is not allowed",
)  # fmt: skip
_call(
    "llb-outside-the-caps", "CIS Docker Benchmark 5.24", _SOLVE, _solve(Definition=_definition("/")), words="LLB",
    engine="exit code: 255",
)  # fmt: skip
_call(
    "llb-by-the-gateway",
    OWN,
    f"{_GATEWAY}/Solve",
    _solve(f"{_GATEWAY}/Solve", Definition=_definition(_LARGE)),
    words="LLB",
)
_INPUTS = {"FrontendInputs": {"context": _definition(_LARGE)}}
_call("llb-as-an-input", OWN, _SOLVE, _solve(Frontend="dockerfile.v0", **_INPUTS), words="no input here")
_call(
    "llb-as-an-input-by-the-gateway",
    OWN,
    f"{_GATEWAY}/Solve",
    _solve(f"{_GATEWAY}/Solve", **_INPUTS),
    words="no input here",
)

# -- rights, frontends, attributes

for _right in ("network.host", "security.insecure", "device=all"):
    _call(
        f"entitlement-{_right.partition('=')[0].replace('.', '-')}", _ENTITLED, _SOLVE, _solve(Frontend="dockerfile.v0", Entitlements=[_right]),
        words="may not be allowed", engine=f"{_right} is not allowed" if "." in _right else None,
    )  # fmt: skip
_call(
    "frontend-gateway",
    "CVE-2024-23653's kin: a frontend of one's own",
    _SOLVE,
    _solve(Frontend="gateway.v0", FrontendAttrs={"source": IMAGE}),
)
for _name, _attrs, _source in (
    ("attribute-syntax", {"build-arg:BUILDKIT_SYNTAX": IMAGE}, "CVE-2024-23653's kin: a frontend of one's own"),
    ("attribute-cmdline", {"cmdline": IMAGE}, "CVE-2024-23653's kin: a frontend of one's own"),
    ("attribute-source", {"source": IMAGE}, "CVE-2024-23653's kin: a frontend of one's own"),
    ("attribute-cgroup-parent", {"cgroup-parent": "/"}, "CIS Docker Benchmark 5.24"),
    ("attribute-network-host", {"force-network-mode": "host"}, "CIS Docker Benchmark 5.9"),
    ("attribute-devices", {"device": "/dev/mem"}, "CIS Docker Benchmark 5.17"),
    ("attribute-add-hosts", {"add-hosts": "mirror=169.254.169.254"}, OWN),
    ("attribute-ulimit", {"ulimit": "nofile=1000000:1000000"}, "CIS Docker Benchmark 5.18"),
    ("attribute-shm-size", {"shm-size": str(1 << 40)}, "CIS Docker Benchmark 5"),
    ("context-from-a-url", {"context": "http://169.254.169.254/latest/"}, "CVE-2014-9356's kin, SSRF"),
    ("context-from-git", {"context": "https://example.invalid/x.git"}, "CVE-2019-13139 (a command in a git context)"),
    ("context-named-from-a-url", {"context:x": "https://example.invalid/x.tar"}, "CVE-2014-9356's kin, SSRF"),
    ("context-named-oci-layout", {"context:x": "oci-layout://x@sha256:" + "0" * 64}, OWN),
    ("context-named-input", {"context:x": "input:x"}, OWN),
):  # fmt: skip
    _call(f"buildkit-{_name}", _source, _SOLVE, _solve(Frontend="dockerfile.v0", FrontendAttrs=_attrs))
    _gate = f"{_GATEWAY}/Solve"
    if _name.startswith("attribute"):
        _call(f"gateway-{_name}", _source, _gate, _solve(_gate, Frontend="dockerfile.v0", FrontendOpt=_attrs))

# -- ways out and in

for _name, _body in (
    ("push", {"Exporters": [{"Type": "moby", "Attrs": {"name": "example.invalid/x", "push": "true"}}]}),
    ("exporter-image", {"ExporterDeprecated": "image", "ExporterAttrsDeprecated": {"name": "x", "push": "true"}}),
    ("exporter-to-a-path", {"Exporters": [{"Type": "local", "Attrs": {"dest": "/run"}}]}),
    ("exporter-oci", {"Exporters": [{"Type": "oci", "Attrs": {"dest": "/run/x"}}]}),
    ("exporter-of-the-session", {"EnableSessionExporter": True}),
    ("cache-to-a-path", {"Cache": {"Exports": [{"Type": "local", "Attrs": {"dest": "/run"}}]}}),
    ("cache-to-a-registry", {"Cache": {"ExportRefDeprecated": "example.invalid/x"}}),
    ("cache-to-a-bucket", {"Cache": {"Exports": [{"Type": "s3", "Attrs": {"endpoint_url": "http://169.254.169.254/", "bucket": "x", "region": "x"}}]}}),
    ("cache-from-a-path", {"Cache": {"Imports": [{"Type": "local", "Attrs": {"src": "/run/escape-canary"}}]}}),
    ("cache-from-a-url", {"Cache": {"Imports": [{"Type": "gha", "Attrs": {"url": "http://169.254.169.254/"}}]}}),
    ("source-policy", {"SourcePolicy": b"\x0a\x00"}),
    ("source-policy-of-a-session", {"SourcePolicySession": "abc"}),
):  # fmt: skip
    _call(f"buildkit-{_name}", "CIS Docker Benchmark 4.5's kin: where images come from and go" if "cache" in _name or "push" in _name else OWN, _SOLVE,
          _solve(**{"Frontend": "dockerfile.v0", **_body}))  # fmt: skip
_call("buildkit-unknown-field", OWN, _SOLVE, _solve() + b"\xfa\x3f\x01x", words="may not have the field")
_call(
    "buildkit-repeated-field", "protocol buffers: the last of two counts", _SOLVE, _solve(Frontend="dockerfile.v0") + _solve(Frontend="gateway.v0"),
    code="INVALID_ARGUMENT", words="comes twice",
)  # fmt: skip

# -- calls that no build needs

for _path, _source in (
    (f"{_CONTROL}/Session", "a second session within a call"),
    (f"{_CONTROL}/UpdateBuildHistory", OWN),
    (f"{_GATEWAY}/NewContainer", _ENTITLED),
    (f"{_GATEWAY}/ExecProcess", _ENTITLED),
    (f"{_GATEWAY}/ReadFile", "CVE-2024-23652's kin: files of another build's"),
    (f"{_GATEWAY}/ReadDir", "CVE-2024-23652's kin: files of another build's"),
    (f"{_GATEWAY}/StatFile", "CVE-2024-23652's kin: files of another build's"),
    (f"{_GATEWAY}/Inputs", OWN),
    (f"{_GATEWAY}/ResolveImageConfig", "SSRF"),
    ("/containerd.services.content.v1.Content/Read", "containerd's own API"),
    ("/moby.filesync.v1.FileSync/DiffCopy", "a session's calls, the other way around"),
):
    _call(
        f"call-{_path.rpartition('.')[2].replace('/', '-').lower()}",
        _source,
        _path,
        b"",
        code="NOT_SUPPORTED",
        words="not among the calls",
    )


@vector("build-buildkit", "BuildKit ignores caps (moby/buildkit#593)")
async def build_buildkit(world: World, road: Road) -> Outcome:
    """The old way to it. A dockerd takes it, and what runs a step refuses it for want of caps."""
    query, context = {"version": "2", "nocache": "1"}, tar({"Dockerfile": f"FROM {IMAGE}\nRUN echo ran-it\n".encode()})
    outcome = refused(await road.request("POST", "/build", road.build_query() | query, data=context), words="BuildKit")
    if world.engine == "docker" and world.tier not in ON_HOST and ("build-buildkit", "asked") not in world.kept:
        answer = await world.control.request("POST", "/build", query, data=context)
        assert answer.ok and "moby.buildkit" in answer.text, (
            f"the engine itself takes it for no build of BuildKit's: {answer}"
        )
        if '"error"' not in answer.text:
            raise Out("a step without caps runs")
        world.kept["build-buildkit", "asked"] = True
    return outcome


@vector("buildkit-past-the-gate", OWN, roads=("tool",))
async def buildkit_past_the_gate(world: World, road: Road) -> Outcome:
    """By the tools' own client, whose connections nobody reads on."""
    words = "not offered in this isolation" if world.tier in ON_HOST else "through a gate alone"
    refused(await road.request("POST", "/session"), words=words)
    return refused(await road.request("POST", "/grpc"), words=words)


# -- what Docker's own client builds


@vector("buildkit-memory", "BuildKit ignores caps (moby/buildkit#593)", roads=("buildkit",))
async def buildkit_memory(world: World, road: Road) -> Outcome:
    """A step that takes all that there is: killed at the cap of a step, which is less than the sandbox's."""
    script = """perl -e '$| = 1; for (1..200) { push @kept, "x" x (16 << 20); print "HAVE ", 16 * $_, "\\n" }'"""
    built, said = await road.build(f"FROM {IMAGE}\nRUN {script}\n")
    most = max((int(each) for each in re.findall(r"^HAVE ([0-9]+)", said, re.MULTILINE)), default=0)
    limits = world.box.sandbox.limits
    assert most and limits.default.memory < limits.largest.memory, said[-500:]
    if built or most << 20 > limits.default.memory:
        raise Out(f"{most} MiB: {said[-500:]}")
    return contained(f"killed at {limits.default.memory >> 20} MiB")


@vector("buildkit-syntax-line", "CVE-2024-23653's kin: # syntax=", roads=("buildkit",))
async def buildkit_syntax_line(world: World, road: Road) -> Outcome:
    """A frontend of one's own, which an engine that is asked straight fetches."""
    name = f"localhost/manyoyo-test/no-such-frontend:{secrets.token_hex(4)}"
    dockerfile = f"# syntax={name}\nFROM {IMAGE}\nRUN echo it-ran | tr a-z A-Z\n"
    built, said = await road.build(dockerfile)
    if not built or "IT-RAN" not in said:
        raise Out(f"it was asked for: {said[-800:]}")
    if ("syntax", "asked") not in world.kept:
        straight = BuildKitRoad(Path(str(world.box.sandbox.outer.socket_dir)) / "engine.sock", world.home)
        built, said = await straight.build(dockerfile)
        assert not built and "resolve image config" in said, f"the engine does not ask for it either: {said[-800:]}"
        world.kept["syntax", "asked"] = True
    return contained("the daemon's own frontend reads it")


_LOOK = r"""for each in /all/n*; do [ -e $each ] || continue
  if ( : < $each ) 2>/dev/null; then echo "OUT $each can be opened"; else echo "$each: no"; fi; done; ls -l /all; echo TRIED"""


@vector(
    "buildkit-context-nodes",
    "device nodes from a client's session (its stat messages say what a file is)",
    roads=("buildkit",),
)
async def buildkit_context_nodes(world: World, road: Road) -> Outcome:
    """A context with nodes of this machine's devices and a pipe, as buildx sends what it finds. dockerd makes them, and copies them."""
    assert isinstance(road, BuildKitRoad)
    with TemporaryDirectory(dir=world.home) as directory:
        context = Path(directory)
        (context / "look.sh").write_text(_LOOK)
        (context / "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY . /all/\nRUN timeout 20 sh /all/look.sh\n")
        for number, (kind, major, minor) in enumerate(
            (("b", 254, 0), ("b", 8, 0), ("c", 1, 1), ("c", 1, 11), ("c", 10, 1))
        ):
            _node(context / f"n{number}", kind, major, minor)
        built, said = await anyio.to_thread.run_sync(road.build_in, context)
    if built:
        nothing_out(said)
    return contained(
        "they are nodes that can't be opened" if built else f"no image comes of it: {said.strip()[-60:]!r}"
    )


def _node(path: Path, kind: str, major: int, minor: int) -> None:
    os.mknod(path, 0o666 | (stat.S_IFBLK if kind == "b" else stat.S_IFCHR), os.makedev(major, minor))

"""Every engine: each known cause of a failed build provoked for real, and builds that fail for another reason.

The cases are built side by side, once an engine, by the `results` fixture; each test looks at one of them.
"""

import struct
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.engines.base import Built
from manyoyo_mcp.engines.causes import KNOWN
from manyoyo_mcp.errors import Reason
from manyoyo_mcp.sessions.manager import open_manager
from tests.integration.bases import ensure_bases
from tests.support import MIB, Box

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("bases_begun"),
    pytest.mark.timeout(900),  # the first test waits for the builds of all
]

PYTHON = "localhost/manyoyo/python"
NODE = "localhost/manyoyo/node"
TOOLS = "localhost/manyoyo-test/tools:latest"
BOTH = ("podman", "docker")
AT_ONCE = 4
"""Builds of one engine under way at the same time: most of them wait for a name or a package index."""

SERVE = b"""
import http.server, ssl, subprocess, sys, threading
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words): pass
class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *words): pass
server = Server(("127.0.0.1", 8443), Quiet)
if sys.argv[1] == "https":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/srv/certificate.pem", "/srv/key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.exit(subprocess.run(sys.argv[2:]).returncode)
"""
"""`python3 /srv/serve.py http|https COMMAND`: serves the working directory on port 8443 while the command runs."""

TOOLS_DOCKERFILE = f"""FROM {PYTHON}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends curl git make wget >/dev/null \\
 && rm -rf /var/lib/apt/lists/*
COPY serve.py /srv/serve.py
RUN openssl req -x509 -newkey rsa:2048 -nodes -keyout /srv/key.pem -out /srv/certificate.pem -days 2 \\
    -subj /CN=localhost -addext subjectAltName=DNS:localhost 2>/dev/null
# A repository of one package, whose file is missing.
COPY Packages /srv/apt/Packages
"""

PACKAGES = f"""Package: wanted
Version: 1.0
Architecture: all
Filename: ./wanted_1.0_all.deb
Size: 10
SHA256: {1:064}

"""

LOCAL_APT = (
    "rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*; cd /srv/apt; "
    "echo 'deb [trusted=yes] http://localhost:8443 ./' > /etc/apt/sources.list; "
    "python3 /srv/serve.py http apt-get update -qq && python3 /srv/serve.py http apt-get install -y "
)


@dataclass(frozen=True)
class Case:
    """A build that fails. `code` is the cause's, empty for a decoy; `says` stands in cause or
    mend; `line` is the failed step's, `memory` its cap in MiB. Engines that are not named build it."""

    name: str
    code: str
    dockerfile: str
    says: tuple[str, ...] = ()
    engines: tuple[str, ...] = BOTH
    files: dict[str, bytes] = field(default_factory=dict)
    memory: int = 512
    network: str = "default"
    target: str | None = None
    exit_code: int | None = None
    line: int | None = 2


def run(name: str, code: str, script: str, *says: str, exit_code: int, image: str = TOOLS, **more: Any) -> Case:
    """A case of one RUN step."""
    return Case(name, code, f"FROM {image}\nRUN {script}\n", says, exit_code=exit_code, **more)


def foreign_program() -> bytes:
    """A program for no machine that this can be: an ELF header with the other byte order's architecture."""
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    s390 = 22
    return header + struct.pack("<HHIQQQIHHHHHH", 2, s390, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0) + bytes(256)


OPEN_URL = "python3 -c 'import urllib.request; urllib.request.urlopen(\"{}\")'"

CASES = [
    # -- the Dockerfile
    Case("mount", "NEEDS_PODMAN", f"FROM {TOOLS}\nRUN --mount=type=cache,target=/c true\n", ("--mount", "podman"),
        ("docker",)),
    Case("run-heredoc", "NEEDS_PODMAN", f"FROM {TOOLS}\nRUN <<EOF\ntest 1 = 1\nEOF\n", ("<<EOF", "podman"),
        ("docker",)),
    Case("copy-heredoc", "NEEDS_PODMAN", f"FROM {TOOLS}\n\nCOPY <<EOF /x\n1\nEOF\n", ("<<EOF",), ("docker",), line=3),
    Case("platform", "NEEDS_PODMAN", f"FROM --platform=$BUILDPLATFORM {TOOLS}\n", ("$BUILDPLATFORM",), ("docker",),
        line=1),
    Case("secret", "BUILD_SECRET_NOT_GIVEN", f"FROM {TOOLS}\nRUN --mount=type=secret,id=x,required=true true\n",
        ("build secret", "context")),
    Case("step-network", "STEP_NETWORK", f"FROM {TOOLS}\nRUN --network=host true\n", ("host", "nested_build")),
    Case("link", "FLAG_NOT_SUPPORTED", f"FROM {TOOLS}\nCOPY --link a /a\n", ("--link",), ("podman",), {"a": b"1"}),
    Case("parents", "FLAG_NOT_SUPPORTED", f"FROM {TOOLS}\nCOPY --parents a /a\n", ("parents",), files={"a": b"1"}),
    Case("unknown", "UNKNOWN_INSTRUCTION", f"FROM {TOOLS}\nRUNN true\n", ("RUNN", "backslash")),
    Case("arg-in-from", "BUILD_ARG_MISSING", f"ARG V\nFROM {TOOLS.split(':')[0]}:$V\n", ("V", "build_args")),
    Case("arg-as-from", "BUILD_ARG_MISSING", "FROM ${BASE}\nRUN true\n", ("BASE", "build_args"), line=1),
    Case("no-from", "NO_FROM", "RUN true\n", ("FROM localhost/manyoyo/debian",), line=None),
    Case("only-arg", "NO_FROM", "ARG A=1\n", line=None),
    Case("target", "TARGET_NOT_FOUND", f"FROM {TOOLS} AS a\n", ("nosuch",), target="nosuch", line=None),
    Case("stage", "STAGE_NOT_FOUND", f"FROM {TOOLS}\nCOPY --from=nosuch /a /b\n", ("nosuch",)),
    Case("upper-case", "IMAGE_NAME_INVALID", "FROM Foo:1\nRUN true\n", ("Foo:1", "lower case"), line=1),
    Case("no-registry", "IMAGE_NOT_FOUND", "FROM registry.invalid/a/b:1\n", ("registry.invalid/a/b:1",
        "manyoyo-mcp image base"), line=1),
    Case("no-such-local", "IMAGE_NOT_FOUND", "FROM localhost/nosuch:1\n", ("localhost/nosuch:1", "refused",
        "nested_list"), line=1),
    Case("syntax", "DOCKERFILE_SYNTAX", f"FROM {TOOLS}\nWORKDIR\n", ("WORKDIR requires exactly one argument",)),
    Case("from-words", "DOCKERFILE_SYNTAX", "FROM a b\n", ("FROM requires",), line=1),
    Case("quote", "DOCKERFILE_SYNTAX", f'FROM {TOOLS}\nENV A="x\n', ("matching double-quote",)),
    # -- COPY, ADD, USER
    Case("outside", "FILE_OUTSIDE_CONTEXT", f"FROM {TOOLS}\nADD ../secret /x\n", ("secret", "context_dir")),
    Case("missing", "FILE_NOT_IN_CONTEXT", f"FROM {TOOLS}\nCOPY a nope.txt /x/\n", ("nope.txt", ".dockerignore"),
        files={"a": b"1"}),
    Case("missing-glob", "FILE_NOT_IN_CONTEXT", f"FROM {TOOLS}\nCOPY *.toml /x/\n", ("*.toml",)),
    Case("ignored", "FILE_NOT_IN_CONTEXT", f"FROM {TOOLS}\nCOPY a.log /x/\n", ("a.log", ".dockerignore"),
         files={"a.log": b"1", ".dockerignore": b"*.log\n"}),
    Case("missing-in-stage", "FILE_NOT_IN_STAGE", f"FROM {TOOLS} AS one\nFROM {TOOLS}\nCOPY --from=one /nope /x\n",
        ("one", "nope"), line=3),
    Case("user", "USER_NOT_FOUND", f"FROM {TOOLS}\nUSER nosuch\nRUN true\n", ("nosuch", "useradd"), line=3),
    Case("chown", "USER_NOT_FOUND", f"FROM {TOOLS}\nCOPY --chown=nosuch a /a\n", ("nosuch",), files={"a": b"1"}),
    # -- what a step begins with
    Case("scratch", "NO_SHELL", "FROM scratch\nRUN echo hi\n", ("/bin/sh", "FROM scratch")),
    run("command", "COMMAND_NOT_FOUND", "nosuchcommand --version", "nosuchcommand", exit_code=127),
    run("command-in-bash", "COMMAND_NOT_FOUND", "bash -c 'set -e; nosuchcommand; echo on'", "nosuchcommand",
        exit_code=127),
    Case("command-exec-form", "COMMAND_NOT_FOUND", f'FROM {TOOLS}\nRUN ["nosuchcommand", "x"]\n', ("nosuchcommand",)),
    run("script", "PROGRAM_NOT_FOUND", "./build.sh", "./build.sh", "WORKDIR", exit_code=127),
    Case("carriage-return", "SCRIPT_LINE_ENDINGS", f"FROM {TOOLS}\nCOPY x /x\nRUN chmod +x /x && /x\n", ("bash", "sed"),
         files={"x": b"#!/usr/bin/env bash\r\ntrue\r\n"}, exit_code=127, line=3),
    run("mode", "NOT_EXECUTABLE", "/etc/passwd", "/etc/passwd", "chmod +x", exit_code=126),
    Case("mode-exec-form", "NOT_EXECUTABLE", f'FROM {TOOLS}\nRUN ["/etc/passwd"]\n', ("/etc/passwd",)),
    Case("architecture", "WRONG_ARCHITECTURE", f"FROM {TOOLS}\nCOPY tool /bin/tool\nRUN chmod +x /bin/tool && tool\n",
        ("tool", "uname -m"),
         files={"tool": foreign_program()}, exit_code=126, line=3),


    Case("architecture-exec-form", "WRONG_ARCHITECTURE",
        f'FROM {TOOLS}\nCOPY tool /bin/tool\nRUN chmod +x /bin/tool\nRUN ["tool"]\n',
         ("/bin/tool",), files={"tool": foreign_program()}, exit_code=1, line=4),
    # -- the network
    run("dns-curl", "NAME_RESOLUTION_FAILED", "curl -fsS https://nosuch.invalid/x", "nosuch.invalid", exit_code=6),
    run("dns-curl-tar", "NAME_RESOLUTION_FAILED", "curl -fsSL https://nosuch.invalid/x.tgz | tar xz",
        "nosuch.invalid", exit_code=2),
    run("dns-wget", "NAME_RESOLUTION_FAILED", "wget https://nosuch.invalid/x", "nosuch.invalid", exit_code=4),
    run("dns-git", "NAME_RESOLUTION_FAILED", "git clone https://nosuch.invalid/x", "nosuch.invalid", exit_code=128),
    run("dns-python", "NAME_RESOLUTION_FAILED", OPEN_URL.format("https://nosuch.invalid/x"), "nosuch.invalid",
        exit_code=1),
    run("dns-pip", "NAME_RESOLUTION_FAILED", "pip install --retries 1 -i https://nosuch.invalid/simple six",
        "nosuch.invalid", exit_code=1),
    run("dns-apt", "NAME_RESOLUTION_FAILED",
        "rm -f /etc/apt/sources.list.d/*; echo 'deb http://nosuch.invalid/debian x main' > "
        "/etc/apt/sources.list; apt-get update && apt-get install -y wanted", "nosuch.invalid", exit_code=100),
    run("tls-curl", "CERTIFICATE_NOT_TRUSTED", "python3 /srv/serve.py https curl -fsS https://localhost:8443/",
        "localhost", "MANYOYO_CA_BUNDLE",
        exit_code=60),
    run("tls-wget", "CERTIFICATE_NOT_TRUSTED", "python3 /srv/serve.py https wget https://localhost:8443/",
        "localhost", exit_code=5),
    run("tls-git", "CERTIFICATE_NOT_TRUSTED", "python3 /srv/serve.py https git clone https://localhost:8443/x",
        "localhost", exit_code=128),
    run("tls-python", "CERTIFICATE_NOT_TRUSTED",
        "python3 /srv/serve.py https " + OPEN_URL.format("https://localhost:8443/"), "localhost", exit_code=1),
    run("tls-pip", "CERTIFICATE_NOT_TRUSTED",
        "python3 /srv/serve.py https pip install --retries 1 -i https://localhost:8443/simple six",
        "localhost", exit_code=1),
    run("proxy-curl", "PROXY_FAILED", "https_proxy=http://proxy.invalid:3128 curl -fsS https://example.invalid/",
        "proxy.invalid", exit_code=5),
    run("proxy-pip", "PROXY_FAILED",
        "pip install --retries 1 --proxy http://127.0.0.1:9 -i https://example.invalid/simple six", "http_proxy",
        exit_code=1),
    run("proxy-apt", "PROXY_FAILED", "echo 'deb http://example.invalid/debian x main' > /etc/apt/sources.list; "
        "http_proxy=http://proxy.invalid:3128 apt-get update && apt-get install -y wanted", "proxy.invalid",
        exit_code=100),
    run("refused-curl", "CONNECTION_FAILED", "curl -fsS http://localhost:9/", "localhost", "same RUN", exit_code=7),
    run("refused-python", "CONNECTION_FAILED", OPEN_URL.format("http://localhost:9/"), "localhost", exit_code=1),
    run("offline-curl", "NETWORK_OFF", "curl -fsS https://example.com/", "example.com", 'network="default"',
        exit_code=6, network="none"),
    run("offline-pip", "NETWORK_OFF", "pip install --retries 1 six", 'network="default"', exit_code=1, network="none"),
    run("404-curl", "DOWNLOAD_REFUSED", "python3 /srv/serve.py http curl -fsSLO http://localhost:8443/x.tgz", "404",
        exit_code=22),
    run("404-python", "DOWNLOAD_REFUSED", "python3 /srv/serve.py http " + OPEN_URL.format("http://localhost:8443/x"),
        "404", exit_code=1),
    # -- package managers
    run("apt-name", "APT_PACKAGE_NOT_FOUND", "apt-get update -qq && apt-get install -y nosuchpackage",
        "nosuchpackage", exit_code=100),
    run("apt-lists", "APT_LISTS_MISSING", "apt-get install -y sl", "sl", "apt-get update && apt-get install -y sl",
        exit_code=100),
    run("apt-version", "APT_VERSION_NOT_FOUND", LOCAL_APT + "wanted=2.0", "2.0", "wanted", exit_code=100),
    run("apt-stale", "APT_LISTS_STALE", LOCAL_APT + "wanted", "wanted_1.0_all.deb", "no_cache", exit_code=100),
    run("apt-repository", "APT_REPOSITORY_UNUSABLE",
        "echo 'deb http://localhost:8443 nosuch main' > /etc/apt/sources.list; "
        "python3 /srv/serve.py http apt-get update", "http://localhost:8443 nosuch", "does not have a Release file",
        exit_code=100),
    run("pip-name", "PIP_PACKAGE_NOT_FOUND", "pip install nosuchpackage-xyzzy-1", "nosuchpackage-xyzzy-1", exit_code=1),
    run("pip-version", "PIP_VERSION_NOT_FOUND", "pip install six==99.1", "six==99.1", "it has 1.", exit_code=1),
    run("pip-in-make", "PIP_PACKAGE_NOT_FOUND",
        "printf 'all:\\n\\tpip install nosuchpackage-xyzzy-1\\n' > Makefile; make", "nosuchpackage-xyzzy-1",
        exit_code=2),
    run("pip-managed", "PIP_EXTERNALLY_MANAGED",
        "touch $(python3 -c 'import sysconfig; print(sysconfig.get_path(\"stdlib\"))')/EXTERNALLY-MANAGED; "
        "pip install six", "venv", exit_code=1),
    run("npm-in-root", "NPM_IN_ROOT", "npm install left-pad", "WORKDIR", exit_code=1, image=NODE),
    run("npm-name", "NPM_PACKAGE_NOT_FOUND", "cd /tmp && npm install nosuchpackage-xyzzy-1", "nosuchpackage-xyzzy-1",
        exit_code=1, image=NODE),
    run("npm-version", "NPM_VERSION_NOT_FOUND", "cd /tmp && npm install left-pad@99.9.9", "left-pad@99.9.9",
        exit_code=1, image=NODE),
    run("npm-lockfile", "NPM_LOCKFILE_MISSING", "mkdir /app && cd /app && echo '{}' > package.json && npm ci",
        "package-lock.json", exit_code=1, image=NODE),
    run("npm-conflict", "NPM_CONFLICT", "cd /tmp && npm install react-dom@18.2.0 react@17.0.2", "react-dom@18.2.0",
        exit_code=1, image=NODE),
    run("dns-npm", "NAME_RESOLUTION_FAILED",
        "cd /tmp && npm install --fetch-retries=0 --registry=https://nosuch.invalid/ left-pad", "nosuch.invalid",
        exit_code=1, image=NODE),
    # -- what a step does
    Case("write", "PERMISSION_DENIED", f"FROM {TOOLS}\nUSER 1234\nRUN mkdir /data\n", ("/data", "USER root"),
        exit_code=1, line=3),
    Case("write-python", "PERMISSION_DENIED", f"FROM {TOOLS}\nUSER 1234\nRUN python3 -c 'open(\"/etc/x\", \"w\")'\n",
        ("/etc/x",), exit_code=1, line=3),
    Case("apt-as-user", "PERMISSION_DENIED", f"FROM {TOOLS}\nUSER 1234\nRUN apt-get update\n",
        ("/var/lib/apt/lists/partial",), exit_code=100, line=3),
    run("requirements", "FILE_NOT_IN_IMAGE", "pip install -r requirements.txt", "requirements.txt", "COPY",
        exit_code=1),
    run("program-text", "FILE_NOT_IN_IMAGE", "python3 app.py", "app.py", exit_code=2),
    run("package-json", "FILE_NOT_IN_IMAGE", "npm run build", "package.json", exit_code=254, image=NODE),
    run("import", "MODULE_NOT_FOUND", "python3 -c 'import flask'", "flask", "pip install", exit_code=1),
    run("require", "MODULE_NOT_FOUND", "node -e 'require(\"express\")'", "express", exit_code=1, image=NODE),
    run("unset-variable", "BUILD_ARG_MISSING", ": \"${VERSION:?must be given}\"", "VERSION", "build_args", exit_code=2),
    run("shell-block", "SHELL_SYNTAX", "if true; then echo 1", "fi", "backslash", exit_code=2),
    run("shell-quote", "SHELL_SYNTAX", "echo 'it", "quote", exit_code=2),
    Case("bash-quote", "SHELL_SYNTAX", f"FROM {TOOLS}\nSHELL [\"/bin/bash\", \"-c\"]\nRUN echo 'it\n", ("looking for",),
        exit_code=2, line=3),
    Case("bash-block", "SHELL_SYNTAX", f"FROM {TOOLS}\nSHELL [\"/bin/bash\", \"-c\"]\nRUN if true; then echo 1\n", ("end of file",),
        exit_code=2, line=3),
    # -- told by the verdict, not by words
    run("memory", "OOM_KILLED", "tail /dev/zero", "64 MiB", "memory=", exit_code=137, memory=64),
    run("memory-exec-form", "OOM_KILLED", "[\"tail\", \"/dev/zero\"]", "64 MiB", exit_code=137, memory=64),
    run("disk", "DISK_FULL", "dd if=/dev/zero of=/dev/shm/x bs=1M count=100", "full", exit_code=1),
    # -- decoys: the words are there, the reason is another
    run("decoy-apt", "", "echo 'E: Unable to locate package curl' >&2; exit 3", exit_code=3),
    run("decoy-curl", "", "curl -sS https://nosuch.invalid/ || echo 'going on without'; exit 4", exit_code=4),
    run("decoy-pip", "", "pip install nosuchpackage-xyzzy-1; python3 -c 'assert 1 == 2, \"totals differ\"'",
        exit_code=1),
    run("decoy-expected", "",
        "python3 -c 'import sys; print(\"OSError: [Errno 28] No space left on device: handled\"); "
        "print(\"1 test failed\"); sys.exit(1)'", exit_code=1),
    run("decoy-not-found", "", "echo '/bin/sh: 1: make: not found'; exit 127", exit_code=127),
    run("decoy-syntax", "", "echo '/bin/sh: 1: Syntax error: end of file unexpected'; exit 2", exit_code=2),
    run("decoy-killed", "", "sh -c 'kill -9 $$' ; exit 3", exit_code=3),
    run("decoy-137", "", "echo Killed; exit 137", exit_code=137),
    run("decoy-certificate", "",
        "echo 'ssl.SSLCertVerificationError: certificate verify failed'; echo 'FAILED test_renewal'; exit 1",
        exit_code=1),
    run("decoy-exit-in-words", "", "echo 'container exited on killed'; echo 'exit status 100' ; exit 5", exit_code=5),
    run("decoy-permission", "", "echo 'touch: cannot touch /x: Permission denied'; false", exit_code=1),
    run("decoy-silent", "", "exit 42", exit_code=42),
]  # fmt: skip

ELSEWHERE = {"APK_PACKAGE_NOT_FOUND", "DNF_PACKAGE_NOT_FOUND"}
"""No image with apk or dnf can be had without a registry: unit tests hold these, with the tools' own words."""


Results = dict[tuple[str, str], Built]
"""By engine and case."""


@pytest.fixture(scope="module")
async def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Every case built on both engines."""
    await ensure_bases(("python", "node"))
    found: Results = {}

    async def build_all(engine: str) -> None:
        sandbox = await manager.start(engine, memory=2048 * MIB)
        box = Box(manager, sandbox)
        tools = await box.build(TOOLS_DOCKERFILE, {"serve.py": SERVE, "Packages": PACKAGES.encode()}, tags=[TOOLS])
        assert tools.reason is Reason.OK, tools
        limiter = anyio.CapacityLimiter(AT_ONCE)
        async with anyio.create_task_group() as group:
            for case in CASES:
                group.start_soon(build, box, case, limiter)

    async def build(box: Box, case: Case, limiter: anyio.CapacityLimiter) -> None:
        async with limiter:
            found[box.sandbox.engine_name, case.name] = await box.build(
                case.dockerfile,
                case.files,
                caps=box.caps(memory=case.memory * MIB),
                network=case.network,
                target=case.target,
            )

    settings = Settings(state_dir=tmp_path_factory.mktemp("state"), runtime_dir=tmp_path_factory.mktemp("run"))
    async with open_manager(settings) as manager, anyio.create_task_group() as group:
        for engine in BOTH:
            group.start_soon(build_all, engine)
    return found


def of(cases: list[Case], *, elsewhere: bool = False) -> pytest.MarkDecorator:
    """Parametrises a test over cases and their engines, or over the others."""
    pairs = [(engine, case) for case in cases for engine in BOTH if (engine in case.engines) != elsewhere]
    return pytest.mark.parametrize(("engine", "case"), pairs, ids=[f"{engine}-{case.name}" for engine, case in pairs])


@of([case for case in CASES if case.code])
async def test_cause(results: Results, engine: str, case: Case) -> None:
    result = results[engine, case.name]
    assert result.cause_code == case.code, result
    assert result.reason == (case.code if case.code in ("OOM_KILLED", "DISK_FULL") else "BUILD_FAILED")
    assert result.cause.endswith(".") and "\n" not in result.cause and "{" not in result.cause + result.mend
    assert result.mend
    for words in case.says:
        assert words in f"{result.cause} {result.mend}", result
    assert result.exit_code == case.exit_code, result
    assert (result.failed_step.line if result.failed_step else None) == case.line, result
    assert result.error


@of([case for case in CASES if not case.code])
async def test_decoy(results: Results, engine: str, case: Case) -> None:
    result = results[engine, case.name]
    assert (result.reason, result.cause_code, result.cause, result.mend) == (Reason.BUILD_FAILED, "", "", ""), result
    assert result.exit_code == case.exit_code
    assert result.failed_step is not None and result.failed_step.line == case.line


@of(CASES, elsewhere=True)
async def test_the_other_engine_builds_it(results: Results, engine: str, case: Case) -> None:
    assert results[engine, case.name].reason is Reason.OK, results[engine, case.name]


def test_every_cause_is_provoked() -> None:
    assert {known.code for known in KNOWN} - {case.code for case in CASES} == ELSEWHERE

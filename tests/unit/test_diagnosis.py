"""Known causes from text: looks that tests/integration/test_build_causes.py does not provoke, order, and what is no evidence."""

import re
import time
from pathlib import Path

import pytest

from manyoyo_mcp.engines.causes import KNOWN
from manyoyo_mcp.engines.diagnosis import diagnose
from manyoyo_mcp.errors import Reason

FAILED = "while running runtime: exit status {}"
PIP_NONE = (
    "ERROR: Could not find a version that satisfies the requirement six (from versions: none)\n"
    "ERROR: No matching distribution found for six\n"
)
RETRY = (
    "WARNING: Retrying (Retry(total={}, connect=None, read=None, redirect=None, status=None)) after connection broken by "
    "'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f>: Failed to establish a new "
    "connection: [Errno -3] Temporary failure in name resolution')': /simple/six/\n"
)
TRACEBACK = 'Traceback (most recent call last):\n  File "/t.py", line 1, in <module>\n    main()\n'


def said(output: str, code: int, instruction: str = "RUN ./build.sh", network: str = "default") -> tuple[str, str]:
    """Code of the cause and its words, for a command that ended with `code`."""
    cause = diagnose(output, FAILED.format(code), instruction, code, network=network)
    return (cause.code, f"{cause.cause} {cause.mend}") if cause else ("", "")


@pytest.mark.parametrize(
    ("code", "output", "exit_code", "words"),
    [
        ("NAME_RESOLUTION_FAILED", "wget: bad address 'x.invalid'\n", 1, "x.invalid"),
        ("NAME_RESOLUTION_FAILED", "Cloning into 'x'...\nssh: Could not resolve hostname x.invalid: Name or service not "
         "known\nfatal: Could not read from remote repository.\n\nPlease make sure you have the correct access rights\n"
         "and the repository exists.\n", 128, "x.invalid"),
        ("NAME_RESOLUTION_FAILED", "Errors during downloading metadata for repository 'r':\n  - Curl error (6): Could not "
         "resolve hostname for https://x.invalid/repodata/repomd.xml [Could not resolve host: x.invalid]\nError: Failed to "
         "download metadata for repo 'r': Cannot download repomd.xml: All mirrors were tried\nIgnoring repositories: r\n"
         "No match for argument: nosuch\nError: Unable to find a match: nosuch\n", 1, "x.invalid"),
        ("NAME_RESOLUTION_FAILED", "fetch https://x.invalid/main/x86_64/APKINDEX.tar.gz\nWARNING: Ignoring "
         "https://x.invalid/main: temporary error (try again later)\nERROR: unable to select packages:\n  bash (no such "
         "package):\n    required by: world[bash]\n", 1, "x.invalid"),
        ("NAME_RESOLUTION_FAILED", 'go: example.invalid/m@v1.0.0: Get "https://x.invalid/m": dial tcp: lookup x.invalid on '
         "10.0.0.2:53: no such host\n", 1, "x.invalid"),
        ("NAME_RESOLUTION_FAILED", "    Updating index\nerror: failed to get `serde`\n\nCaused by:\n  [6] Couldn't resolve "
         "host name (Could not resolve host: x.invalid)\n", 101, "x.invalid"),
        ("NAME_RESOLUTION_FAILED", "node:events:502\n      throw er; // Unhandled 'error' event\n      ^\n\nError: getaddrinfo "
         "ENOTFOUND x.invalid\n    at GetAddrInfoReqWrap.onlookup (node:dns:122:26) {\n  errno: -3008,\n  code: 'ENOTFOUND'\n}\n"
         "\nNode.js v20.19.2\n", 1, "x.invalid"),
        ("PROXY_FAILED", "--2026-01-01 10:00:00--  https://x.invalid/x\nConnecting to 127.0.0.1:1... failed: Connection "
         "refused.\n", 4, "127.0.0.1:1"),
        ("PROXY_FAILED", "--2026-01-01 10:00:00--  https://x.invalid/x\nResolving p.invalid (p.invalid)... failed: Name or "
         "service not known.\nwget: unable to resolve host address 'p.invalid'\n", 4, "p.invalid"),
        ("PROXY_FAILED", "fatal: unable to access 'https://x.invalid/x/': Failed to connect to 127.0.0.1 port 1 after 0 ms: "
         "Could not connect to server\n", 128, "127.0.0.1"),
        ("PROXY_FAILED", "curl: (56) CONNECT tunnel failed, response 403\n", 56, "http_proxy"),
        ("PROXY_FAILED", "npm ERR! code ENOTFOUND\nnpm ERR! network request to https://x.invalid/left-pad failed, reason: "
         "getaddrinfo ENOTFOUND p.invalid\nnpm ERR! network 'proxy' config is set properly.\n", 1, "p.invalid"),
        ("PROXY_FAILED", TRACEBACK + "OSError: Tunnel connection failed: 407 Proxy Authentication Required\n", 1, "proxy"),
        ("CERTIFICATE_NOT_TRUSTED", "W: Failed to fetch https://x.invalid/debian/dists/x/InRelease  SSL connection failed: "
         "error:0A000086:SSL routines::certificate verify failed / Success [IP: 127.0.0.1 8443]\nW: Some index files failed "
         "to download.\nReading package lists...\nE: Unable to locate package y\n", 100, "x.invalid"),
        ("CERTIFICATE_NOT_TRUSTED", "npm error code SELF_SIGNED_CERT_IN_CHAIN\nnpm error errno SELF_SIGNED_CERT_IN_CHAIN\n"
         "npm error request to https://x.invalid/left-pad failed, reason: self-signed certificate\nnpm error A complete log\n",
         1, "x.invalid"),
        ("CERTIFICATE_NOT_TRUSTED", 'go: Get "https://x.invalid/m": tls: failed to verify certificate: x509: certificate signed '
         "by unknown authority\n", 1, "x.invalid"),
        ("CONNECTION_FAILED", "npm ERR! code ECONNREFUSED\nnpm ERR! errno ECONNREFUSED\nnpm ERR! FetchError: request to "
         "https://x.invalid:1/left-pad failed, reason: \nnpm ERR!     at ClientRequest.<anonymous> (/x.js:1:1)\nnpm ERR! }\n",
         1, "x.invalid"),
        ("CONNECTION_FAILED", "Resolving localhost (localhost)... ::1\nConnecting to localhost (localhost)|::1|:1... failed: "
         "Connection refused.\n", 4, "localhost"),
        ("DOWNLOAD_REFUSED", "2026-01-01 10:00:00 ERROR 404: File not found.\n", 8, "404"),
        ("DOWNLOAD_REFUSED", TRACEBACK + "requests.exceptions.HTTPError: 403 Client Error: Forbidden for url: x\n", 1, "403"),
        ("APT_PACKAGE_NOT_FOUND", "E: Package 'python2' has no installation candidate\n", 100, "python2"),
        ("APT_PACKAGE_NOT_FOUND", "Reading package lists...E: Unable to locate package foo\nBuilding dependency tree...\n", 100,
         "foo"),
        ("APT_VERSION_NOT_FOUND", "Error: Release 'nosuch' for 'sl' was not found\n", 100, "apt-cache policy sl"),
        ("APT_REPOSITORY_UNUSABLE", "E: The repository 'http://x.invalid x Release' is not signed.\n", 100, "is not signed"),
        ("APK_PACKAGE_NOT_FOUND", "ERROR: unable to select packages:\n  nosuch (no such package):\n    required by: "
         "world[nosuch]\n", 1, "nosuch"),
        ("APK_PACKAGE_NOT_FOUND", "ERROR: unsatisfiable constraints:\n  nosuch (missing):\n    required by: world[nosuch]\n", 1,
         "nosuch"),
        ("DNF_PACKAGE_NOT_FOUND", "No match for argument: nosuch\nError: Unable to find a match: nosuch\n", 1, "nosuch"),
        ("PIP_VERSION_NOT_FOUND", "ERROR: Could not find a version that satisfies the requirement six==99.1 (from -r "
         "requirements.txt (line 3)) (from versions: 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)\nERROR: No matching distribution found for "
         "six==99.1\n\n[notice] A new release of pip is available\n", 1, "six==99.1 that fits; it has 1.1, 1.2, 1.3, 1.4, 1.5."),
        ("NPM_PACKAGE_NOT_FOUND", "npm error code E404\nnpm error 404 Not Found - GET https://x.invalid/@a%2fb\nnpm error 404\n"
         "npm error 404  The requested resource '@a/b@^1.0.0' could not be found or you do not have permission to access it.\n"
         "npm error A complete log of this run can be found in: /x.log\n", 1, "package @a/b."),
        ("PERMISSION_DENIED", "ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/.local'\n"
         "Check the permissions.\n\n", 1, "/.local"),
        ("PERMISSION_DENIED", "chmod: changing permissions of '/etc/passwd': Operation not permitted\n", 1, "/etc/passwd"),
        ("PERMISSION_DENIED", "npm ERR! code EACCES\nnpm ERR! syscall mkdir\nnpm ERR! path /app\nnpm ERR! errno -13\n", 243,
         "/app"),
        ("FILE_NOT_IN_IMAGE", "/bin/sh: 1: cd: can't cd to nope\n", 2, "nope"),
        ("FILE_NOT_IN_IMAGE", "sh: 0: cannot open run.sh: No such file\n", 2, "run.sh"),
        ("MODULE_NOT_FOUND", "/usr/bin/python3: No module named pytest\n", 1, "pytest"),
        ("WRONG_ARCHITECTURE", TRACEBACK + "OSError: [Errno 8] Exec format error: 'tool'\n", 1, "tool"),
        ("COMMAND_NOT_FOUND", "env: \u2018nosuch\u2019: No such file or directory\n", 127, "nosuch"),
        ("PROGRAM_NOT_FOUND", "bash: line 1: ./run.sh: No such file or directory\n", 127, "./run.sh"),
        ("BUILD_ARG_MISSING", "/bin/sh: 1: VERSION: parameter not set\n", 2, "VERSION"),
        ("BUILD_ARG_MISSING", "bash: line 1: VERSION: unbound variable\n", 1, "VERSION"),
        ("COMMAND_NOT_FOUND", "/bin/sh: 1: gcc: not found\nmake[1]: *** [Makefile:2: a] Error 127\nmake[1]: Leaving directory "
         "'/a'\nmake: *** [Makefile:1: all] Error 2\n", 2, "command gcc"),
        ("COMMAND_NOT_FOUND", "gcc -c a.c\nmake: gcc: No such file or directory\nmake: *** [Makefile:2: a.o] Error 127\n", 2,
         "command gcc"),
    ],
)  # fmt: skip
def test_looks(code: str, output: str, exit_code: int, words: str) -> None:
    found = said(output, exit_code, "RUN apt-get update && ./build.sh")
    assert found[0] == code and words in found[1], found


@pytest.mark.parametrize(
    ("code", "error", "instruction", "words"),
    [
        ("NAME_RESOLUTION_FAILED", 'ADD failed: Get "https://x.invalid/x": dial tcp: lookup x.invalid on 10.0.0.2:53: read udp '
         "10.0.0.3:36659->10.0.0.2:53: i/o timeout", "ADD https://x.invalid/x /x", "x.invalid"),
        ("CONNECTION_FAILED", 'building at STEP "ADD https://localhost:1/x /x": reading "https://localhost:1/x": Get '
         '"https://localhost:1/x": dial tcp 127.0.0.1:1: connect: connection refused', "ADD https://localhost:1/x /x",
         "localhost:1"),
        ("CERTIFICATE_NOT_TRUSTED", 'ADD failed: Get "https://x.invalid/x": tls: failed to verify certificate: x509: certificate '
         "signed by unknown authority", "ADD https://x.invalid/x /x", "x.invalid"),
        ("DOWNLOAD_REFUSED", "ADD failed: failed to GET https://x.invalid/x with status 404 Not Found: ", "ADD https://x /x",
         "404"),
        ("IMAGE_NOT_FOUND", "pull access denied for nosuch, repository does not exist or may require 'docker login'",
         "FROM --platform=linux/arm64 nosuch AS a", "image nosuch is not in the sandbox"),
        ("IMAGE_NOT_FOUND", "creating build container: initializing source docker://x.invalid/y:1: reading manifest 1 in "
         "x.invalid/y: manifest unknown", "FROM x.invalid/y:1", "manifest unknown"),
        ("STAGE_NOT_FOUND", "type=bind,from=nosuch,target=/src from=nosuch: no stage or image found with that name",
         "RUN --mount=type=bind,from=nosuch,target=/src true", "called nosuch"),
        ("BUILD_ARG_MISSING", "invalid from flag value ${X}: invalid reference format: repository name (library/${X}) must be "
         "lowercase", "COPY --from=${X} /a /b", "X has no value"),
        ("USER_NOT_FOUND", "unable to find user nosuch: no matching entries in passwd file", "RUN true", "nosuch"),
        ("DOCKERFILE_SYNTAX", "invalid signal: nope", "STOPSIGNAL nope", "invalid signal"),
        ("DOWNLOAD_REFUSED", 'building at STEP "ADD http://x/y /z": reading "http://x/y": invalid response status 404',
         "ADD http://x/y /z", "404"),
        ("DOCKERFILE_SYNTAX", "parsing main Dockerfile: /x/Dockerfile: EOF: unterminated heredoc", "", "unterminated heredoc"),
    ],
)  # fmt: skip
def test_looks_of_the_engines_own_message(code: str, error: str, instruction: str, words: str) -> None:
    cause = diagnose("", error, instruction)
    assert cause is not None and cause.code == code and words in f"{cause.cause} {cause.mend}", cause


@pytest.mark.parametrize(
    ("output", "exit_code"),
    [
        ("curl: (6) Could not resolve host: x.invalid\n", 22),  # another code than the tool gives
        ("curl: (6) Could not resolve host: x.invalid\nmain.c:3: error: 'y' undeclared\n", 1),  # a later complaint
        ("Could not resolve host: x.invalid\n", 6),  # not as the tool writes it
        ("E: Unable to locate package curl\n", 1),
        ("ERROR: No matching distribution found for six\n", 1),
        ("gaierror: [Errno -2] Name or service not known\n", 1),  # no traceback
        ("/bin/sh: 1: make: not found\n", 2),
        (PIP_NONE + "AssertionError: totals differ\n", 1),
        (PIP_NONE + "\n".join(f"line {number}" for number in range(60)), 1),  # long ago
        ("", 1),
        ("npm warn deprecated x@1\n", 1),
    ],
)
def test_no_evidence(output: str, exit_code: int) -> None:
    assert said(output, exit_code) == ("", "")


def test_what_the_instruction_prints_is_no_evidence() -> None:
    words = "curl: (6) Could not resolve host: x.invalid"
    assert said(f"{words}\n", 6)[0] == "NAME_RESOLUTION_FAILED"
    assert said(f"{words}\n", 6, f"RUN echo '{words}'; exit 6") == ("", "")


def test_the_engines_message_counts_only_where_no_command_ran() -> None:
    assert diagnose("", 'The target "x" was not found', "") is not None
    assert said('The target "x" was not found\n', 1) == ("", "")
    error = "The command '/bin/sh -c echo unknown instruction: x' returned a non-zero code: 3"
    assert diagnose("", error, "RUN x", 3) is None


def test_why_pip_found_nothing() -> None:
    assert said(PIP_NONE, 1)[0] == "PIP_PACKAGE_NOT_FOUND"
    assert said(RETRY.format(0) + PIP_NONE, 1)[0] == "NAME_RESOLUTION_FAILED"
    assert said(RETRY.format(4) + PIP_NONE, 1)[0] == "PIP_PACKAGE_NOT_FOUND"  # it got through after that


def test_why_apt_found_nothing() -> None:
    output = "E: Unable to locate package curl\n"
    assert said(output, 100, "RUN apt-get install -y curl")[0] == "APT_LISTS_MISSING"
    assert said(output, 100, "RUN apt-get -qq update && apt-get install -y curl")[0] == "APT_PACKAGE_NOT_FOUND"
    assert said(output, 100, "RUN apt update; apt -y install curl")[0] == "APT_PACKAGE_NOT_FOUND"
    assert said(output, 100, "RUN ./build.sh")[0] == "APT_PACKAGE_NOT_FOUND"
    fetch = (
        "W: Failed to fetch http://x.invalid/d/InRelease  Could not resolve 'x.invalid'\nW: Some index files failed.\n"
    )
    assert said(fetch + output, 100, "RUN apt-get update && apt-get install -y curl")[0] == "NAME_RESOLUTION_FAILED"


def test_no_network_explains_what_did_not_reach_it() -> None:
    output = "curl: (6) Could not resolve host: x.invalid\n"
    assert said(output, 6, network="none")[0] == "NETWORK_OFF"
    assert said("curl: (60) SSL certificate problem: self-signed\n", 60, network="none")[0] == "CERTIFICATE_NOT_TRUSTED"
    add = 'ADD failed: Get "http://x.invalid/": dial tcp: lookup x.invalid: no such host'
    cause = diagnose("", add, "ADD http://x.invalid/ /x", network="none")  # the engine fetches it, and has a network
    assert cause is not None and cause.code == "NAME_RESOLUTION_FAILED"


def test_a_host_that_the_tool_does_not_name() -> None:
    output = TRACEBACK + "urllib.error.URLError: <urlopen error [Errno -2] Name or service not known>\n"
    assert "x.invalid" in said(output, 1, "RUN python3 -c 'urlopen(\"https://x.invalid/y\")'")[1]
    assert "the host that it wanted" in said(output, 1)[1]
    assert "the host that it wanted" in said(output, 1, "RUN x https://a.invalid https://b.invalid")[1]


def test_names_are_short_and_on_one_line() -> None:
    cause = diagnose("", f'copier: stat: "/{"x" * 5000}": no such file or directory', "COPY x /x")
    assert cause is not None and len(cause.cause) < 300 and "\n" not in cause.cause


def test_long_hostile_output_is_read_quickly() -> None:
    begun = time.monotonic()
    for output in (
        RETRY.format(0) * 2000,
        "--x--  http://a\n" * 20000,
        "    x\n" * 50000,
        "make: *** [a] Error 1\n" * 9000 + "x",
        "npm ERR! code E404\n" * 9000,
        "'" * 99999,
    ):
        said(output, 1)
        said(output, 4)
        said(output, 100)
    assert time.monotonic() - begun < 15


def test_every_word_in_braces_can_be_told() -> None:
    for known in KNOWN:
        wanted = set(re.findall(r"\{(\w+)\}", known.cause + known.mend)) - set(known.default)
        for sign in known.signs:
            groups = set(sign.pattern.groupindex) | set(sign.instruction.groupindex if sign.instruction else {})
            assert wanted <= groups, (known.code, sign.pattern.pattern)


def test_codes_are_distinct_and_documented() -> None:
    codes = [known.code for known in KNOWN]
    assert len(set(codes)) == len(codes)
    page = Path(__file__).parents[2].joinpath("docs", "build-failures.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE)
    verdicts = {Reason.OOM_KILLED, Reason.SANDBOX_OOM, Reason.PIDS_LIMIT, Reason.DISK_FULL}
    assert sorted(rows) == sorted({*codes, "NETWORK_OFF", *map(str, verdicts)})

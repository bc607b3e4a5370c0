"""Known causes of failed builds: what each looks like, why that is, and how to mend it.

Only evidence counts. Where the engine itself refused, its message is what is read. Where a RUN step's command failed,
its exit code must be one that the tool gives for this cause, and the tool's own words must be the last complaint in the
step's output: what merely prints such words, or complains of something else after them, failed for another reason.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Cause:
    """A known cause. `code` is stable; `mend` is the next thing to do."""

    code: str
    cause: str
    mend: str


@dataclass(frozen=True, slots=True)
class _Sign:
    """One look of a cause. Named groups of `pattern` and `instruction` go into the cause's words.

    `exits` None: the engine refused, and `pattern` is sought in its message. Else: the command ended with one of these codes,
    `pattern` is in its output, and no line after it complains but such as `trailer` matches, which the same tool adds.
    """

    pattern: re.Pattern[str]
    exits: Collection[int] | None = None
    trailer: re.Pattern[str] | None = None
    instruction: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    code: str
    cause: str
    mend: str
    signs: tuple[_Sign, ...]
    default: dict[str, str] = field(default_factory=dict)
    """Words for names that a sign does not tell."""
    network: bool = False
    """Whether no network at all would look the same."""


def _engine(pattern: str, instruction: str = "") -> _Sign:
    return _Sign(re.compile(pattern, re.MULTILINE), None, None, _compile(instruction))


def _said(exits: Collection[int], pattern: str, trailer: str = "", instruction: str = "") -> _Sign:
    return _Sign(re.compile(pattern, re.MULTILINE), exits, _compile(trailer), _compile(instruction))


def _compile(pattern: str) -> re.Pattern[str] | None:
    return re.compile(pattern) if pattern else None


# What tools write after the complaint that counts, and how they begin lines.
_PIPED = r"^(?:gzip|tar|unzip|xz|bzip2|zstd|gpg|cpio): "
_APT = r"^(?:[EW]: |Err:|Ign:|  \S)"
_PIP = r"^(?:ERROR: (?:Could not find a version|No matching distribution)|WARNING: |\[notice\])"
_NPM = r"^npm (?:ERR!|error|WARN|warn|notice)(?: |$)"
_NODE = r"^(?:\s|\}|Node\.js v|- |Error: |node:)"
_APK = r"^(?:ERROR: |WARNING: |\s+.*(?:no such package|missing|required by))"
_DNF = r"^(?:Errors? |Error: |Ignoring |No match|  - )"
_NPM_ERROR = r"^npm (?:ERR!|error)"

_FETCH = r"^[EW]: Failed to fetch \w+://(?P<url>[^/\s:]+)\S*\s+"
_NO_NAME = r"(?:Name or service not known|Temporary failure in name resolution|No address associated with hostname)"
_NO_WAY = r"(?:Connection refused|No route to host|Network is unreachable|Connection timed out)"
_NPM_REQUEST = r" request to \w+://(?P<url>[^/:\s]+)\S* failed, reason: "
_NODE_CERTIFICATE = (
    r"(?:SELF_SIGNED_CERT_IN_CHAIN|DEPTH_ZERO_SELF_SIGNED_CERT|UNABLE_TO_VERIFY_LEAF_SIGNATURE|"
    r"UNABLE_TO_GET_ISSUER_CERT(?:_LOCALLY)?|CERT_HAS_EXPIRED|CERT_UNTRUSTED)"
)
_TRACED = r"^ +\S.*\n(?:\w+\.)*"  # the last line of a traceback, as Python writes it
_PYTHON_ERROR = _TRACED + r"\w*(?:Error|Exception|gaierror)\w*: .*"
_SHELL = r"^(?:/\S+|\w*sh): (?:line )?(?:\d+: )?"
_FROM = r"^FROM (?:--\S+ )*(?P<image>\S+)"

_OTHER_ENGINE = (
    'dockerd\'s classic builder does not know it; podman\'s does: start_sandbox with engine="podman" and build there. '
    "Or write the step without it."
)

_KNOWN: tuple[_Known, ...] = (
    # -- the Dockerfile, before anything runs
    _Known(
        "NEEDS_PODMAN",
        "The Dockerfile uses {feature}, which dockerd's classic builder does not know.",
        _OTHER_ENGINE,
        (
            _engine(r"the (?P<feature>(?:--)?\w+) (?:option )?requires BuildKit"),
            _engine(r"failed to parse platform : \"\" is an invalid", r"(?P<feature>\$\{?(?:BUILD|TARGET)\w+)"),
        ),
    ),
    _Known(
        "FLAG_NOT_SUPPORTED",
        "The builder does not know the flag {flag} of {keyword}.",
        "Leave the flag out: --link changes only how layers are cached; instead of --parents name the directory to copy to; "
        "--security has no use here, a RUN step may already do what a nested container may.",
        (
            _engine(r"(?P<keyword>COPY|ADD|RUN) (?P<flag>--\w+) is not supported"),
            _engine(r"parse error on line \d+: unknown flag: (?P<flag>\S+)", r"^(?P<keyword>\w+)"),
            _engine(r"(?P<keyword>COPY|ADD|RUN) only supports the ", r"^\w+ .*?(?P<flag>--\w+)"),
        ),
    ),
    _Known(
        "UNKNOWN_INSTRUCTION",
        "{word} is not a Dockerfile instruction.",
        "Correct the word; if the line goes on with the one above, end that one with a backslash.",
        (
            _engine(r"parse error on line \d+: unknown instruction: (?P<word>\S+)"),
            _engine(r"Unknown instruction: \"(?P<word>[^\"]+)\""),
        ),
    ),
    _Known(
        "BUILD_ARG_MISSING",
        "{name} has no value, or none that can stand here.",
        "Give it one with build_args, or a default (ARG NAME=value). An ARG before the first FROM is known in FROM lines "
        "only: declare it again (ARG NAME) in the stage that uses it.",
        (
            _engine(r"base name \((?P<name>[^)]*)\) should not be blank"),
            _engine(r"^determining starting point for build: no FROM statement found", r"(?P<name>\$\{?\w+)"),
            _engine(r"invalid reference format$", r"^FROM .*(?P<name>\$\{?\w+)"),
            _engine(r"invalid from flag value |--from=: no stage or image", r"--from=(?P<name>\$\{?\w+)"),
            _said({1, 2, 127}, _SHELL + r"(?P<name>[A-Za-z_]\w*): (?:parameter (?:not set|null or not set)|unbound variable)"),
            _said({1, 2, 127}, _SHELL + r"(?P<name>[A-Za-z_]\w*): .*", instruction=r"\$\{\w+:?\?"),
        ),
        {"name": "A variable that FROM uses"},
    ),
    _Known(
        "NO_FROM",
        "The Dockerfile has no FROM, so no image to begin with.",
        "Begin with FROM and a base image, e.g. FROM localhost/manyoyo/debian; only ARG may come before it.",
        (_engine(r"^(?:building: )?(?:no FROM statement found|no stages to build)|no build stage in current context"),),
    ),
    _Known(
        "TARGET_NOT_FOUND",
        "The Dockerfile has no stage called {stage}.",
        "Name a stage that a FROM line gives a name (FROM image AS name) with target, or leave target out.",
        (
            _engine(r"target stage \"(?P<stage>[^\"]*)\" could not be found"),
            _engine(r"The target \"(?P<stage>[^\"]*)\" was not found"),
        ),
    ),
    _Known(
        "STAGE_NOT_FOUND",
        "There is neither a stage nor an image called {stage} to copy from.",
        "Name a stage that an earlier FROM line gives a name (FROM image AS name), or an image that the sandbox has.",
        (
            _engine(r"from=(?P<stage>[^\s:]+): no stage or image found"),
            _engine(r"invalid from flag value (?P<stage>\S+): "),
        ),
    ),
    _Known(
        "IMAGE_NAME_INVALID",
        "{image} can't be the name of an image.",
        "Image names are lower case: [registry/]name[:tag].",
        (
            _engine(r"parsing reference \"(?P<image>[^\"]*)\": (?:invalid|repository)"),
            _engine(r"invalid reference format", _FROM),
        ),
    ),
    _Known(
        "IMAGE_NOT_FOUND",
        "The base image {image} is not in the sandbox (or not for the platform asked for) and could not be pulled: {why}.",
        "Build on an image that is there: nested_list shows them. Where no registry is reachable, base images are made from "
        "packages: `manyoyo-mcp image base debian` (python, node, busybox), then FROM localhost/manyoyo/debian.",
        (
            _engine(r"initializing source docker://.*: (?P<why>[^:]+)$", _FROM),
            _engine(r"^Get \"[^\"]+/v2/.*: (?P<why>[^:]+)$", _FROM),
            _engine(r"(?P<why>pull access denied|manifest unknown|manifest for \S+ not found|unauthorized|no such image)", _FROM),
        ),
    ),
    _Known(
        "DOCKERFILE_SYNTAX",
        "The Dockerfile can't be parsed: {what}.",
        "Correct that instruction; the failed step names it and its line where the engine says which.",
        (
            _engine(r"dockerfile parse error on line \d+: (?P<what>.+)"),
            _engine(r"failed to parse Dockerfile: (?P<what>.+)"),
            _engine(r"^parsing main Dockerfile: [^:]*: (?:EOF: )?(?P<what>.+)"),
            _engine(r"(?P<what>\b[A-Z]+ requires (?:at least|exactly|either) .+)"),
            _engine(r"(?P<what>(?:Unknown type|Unknown flag|unexpected end of statement|Syntax error).*)"),
        ),
    ),
    # -- COPY, ADD, USER
    _Known(
        "FILE_OUTSIDE_CONTEXT",
        "{file} lies outside the build context, where COPY and ADD can't reach.",
        "Choose a context_dir above it and write the path from there, or give the file with files.",
        (
            _engine(r"forbidden path outside the build context: (?P<file>\S+)"),
            _engine(r"possible escaping context directory error: copier: stat: \"/?(?P<file>[^\"]+)\""),
        ),
    ),
    _Known(
        "FILE_NOT_IN_STAGE",
        "The stage or image {stage} has no {file}.",
        "Write the path at which that stage made it; paths after --from are absolute there, WORKDIR does not count.",
        (
            _engine(r"copier: stat: \[?\"(?P<file>[^\"]+)\"\]?: no such file", r"--from=(?P<stage>\S+)"),
            _engine(r"failed: stat (?P<file>.+): file does not exist", r"--from=(?P<stage>\S+)"),
        ),
    ),
    _Known(
        "FILE_NOT_IN_CONTEXT",
        "{file} is not in the build context, or .dockerignore leaves it out.",
        "Paths count from context_dir, not from the Dockerfile: correct the path, take the pattern out of .dockerignore, or give "
        "the file with files.",
        (
            _engine(r"not found in build context or excluded by \.dockerignore: stat (?P<file>.+?): file does not exist"),
            _engine(r"copier: stat: \[?\"/?(?P<file>[^\"]+)\"\]?: no such file"),
            _engine(r"no items matching glob \".*/build/(?P<file>[^\"]+)\" copied \(\d+ filtered out"),
            _engine(r"no source files were specified", r"^(?:COPY|ADD) (?:--\S+ )*(?P<file>.+) \S+$"),
        ),
    ),
    _Known(
        "USER_NOT_FOUND",
        "The image has no user or group called {user}.",
        "Make it before (RUN useradd NAME), or use a number.",
        (
            _engine(r"(?:unknown user|looking up).* (?:user|group) \"(?P<user>[^\"]+)\""),
            _engine(r"unable to find (?:user|group) (?P<user>[^:\s]+): no matching entries"),
            _engine(r"can't find [ug]id for (?:user|group) (?P<user>[^:\s]+)"),
        ),
    ),
    # -- what a RUN step begins with
    _Known(
        "NO_SHELL",
        "The image has no {command}, which RUN needs to run a line of shell.",
        'Write RUN ["program", "argument"], or build FROM an image with a shell; FROM scratch is empty.',
        (
            _engine(r"executable file `(?P<command>/\S*sh)` not found"),
            _engine(r"exec: \"(?P<command>/\S*sh)\": stat \S+ no such file"),
        ),
    ),
    _Known(
        "COMMAND_NOT_FOUND",
        "The image has no command {command}.",
        "Install the package that has it, in this step or an earlier one, or choose a base image that does.",
        (
            _engine(r"executable file `(?P<command>[^`/]+)` not found"),
            _engine(r"exec: \"(?P<command>[^\"/]+)\": executable file not found"),
            _said({127}, _SHELL + r"(?P<command>[^\s:/]+): (?:command )?not found"),
            _said({127}, r"^env: ['‘](?P<command>[^'’/\\]+)['’]: No such file"),
        ),
    ),
    _Known(
        "SCRIPT_LINE_ENDINGS",
        "A script that the step runs has Windows line endings: its first line names an interpreter {command} with a carriage return.",
        "Save the script with Unix line endings (\\n), or RUN sed -i 's/\\r$//' on it before.",
        (_said({126, 127}, r"^env: ['‘](?P<command>[^'’\\]+)\\r['’]: No such file", r"^env: use"),),
    ),
    _Known(
        "PROGRAM_NOT_FOUND",
        "There is no {file} in the image, or what its first line (#!) names is missing.",
        "COPY it before this step and mind WORKDIR; if it is there, install its interpreter, and save it with Unix line endings.",
        (
            _engine(r"executable file `(?P<file>[^`]*/[^`]*)` not found"),
            _engine(r"exec: \"(?P<file>[^\"]*/[^\"]*)\": stat \S+ no such file"),
            _said({127}, _SHELL + r"(?P<file>[^\s:]*/[^\s:]*): (?:not found|No such file or directory)"),
            _said({127}, r"^env: ['‘](?P<file>[^'’\\]*/[^'’\\]*)['’]: No such file"),
        ),
    ),
    _Known(
        "NOT_EXECUTABLE",
        "{file} may not be executed: it lacks the x permission.",
        "RUN chmod +x on it before, or run it by its interpreter (RUN sh script.sh).",
        (
            _engine(r"the path `(?P<file>[^`]+)` exists but it is not executable"),
            _engine(r"exec: \"(?P<file>[^\"]+)\": permission denied"),
            _said({126}, _SHELL + r"(?P<file>[^\s:]+): Permission denied"),
        ),
    ),
    _Known(
        "WRONG_ARCHITECTURE",
        "{file} can't run here: it is built for another architecture, or is a script without a first line #!.",
        "Take the build of it for this machine (uname -m), or an image of its platform; a script needs #!/bin/sh as its first line.",
        (
            _said({1, 255}, r"^exec container process `(?P<file>[^`]+)`: Exec format error"),
            _said({1, 255}, r"^exec (?P<file>/\S+): exec format error"),
            _said({126}, _SHELL + r"(?P<file>[^\s:]+): (?:cannot execute binary file: )?Exec format error"),
            _said({1}, _TRACED + r"OSError: \[Errno 8\] Exec format error: '(?P<file>[^']+)'"),
        ),
    ),
    # -- the network; before what package managers make of it
    _Known(
        "PROXY_FAILED",
        "The proxy {host} could not be used.",
        "http_proxy and https_proxy come from ENV or ARG in the Dockerfile, from build_args, or from the server's own environment, which "
        "reaches builds: correct or unset them there. 127.0.0.1 is the step itself, not the host.",
        (
            _said({1, 2, 5}, r"^curl: \(5\) Could not resolve proxy: (?P<host>\S+)", _PIPED),
            _said({1, 2, 7, 56, 97}, r"^curl: \(\d+\) (?:CONNECT tunnel failed|Received HTTP code \d+ from proxy|Proxy CONNECT)", _PIPED),
            _said({1, 128}, r"^fatal: unable to access '.*': Could not resolve proxy: (?P<host>\S+)"),
            _said({1, 128}, r"^fatal: unable to access '.*': (?:CONNECT tunnel failed|Received HTTP code \d+ from proxy)"),
            _said(
                {1, 128},
                r"^fatal: unable to access '\w+://(?P<url>[^/:']+)[^']*': Failed to connect to (?!(?P=url) )(?P<host>\S+) port",
            ),
            _said(
                {100},
                _FETCH + r"(?:Could not resolve|Temporary failure resolving|Unable to connect to) '?(?!(?P=url)\b)(?P<host>[\w.-]+)",
                _APT,
            ),
            _said({100}, _FETCH + r"(?:Invalid response from proxy|.*Proxy Authentication Required)", _APT),
            _said({1}, r"^WARNING: Retrying \(Retry\(total=0,.* connection broken by 'ProxyError\(", _PIP),
            _said({1}, r"ProxyError\('(?:Cannot|Unable to) connect to proxy", _PIP),
            _said({1}, _PYTHON_ERROR + r"Tunnel connection failed: \d+"),
            _said({4}, r"^--.*--  \w+://(?P<url>[^/\s:]+).*\nConnecting to (?!(?P=url)\b)(?P<host>[\w.-]+:\d+)\.\.\. failed: "),
            _said(
                {4},
                r"^--.*--  \w+://(?P<url>[^/\s:]+).*\n(?:.*\n){0,4}?"
                r"wget: unable to resolve host address ['‘](?!(?P=url)['’])(?P<host>[^'’]+)",
            ),
            _said({1}, _NPM_ERROR + r".*" + _NPM_REQUEST + r"getaddrinfo \w+ (?!(?P=url)$)(?P<host>\S+)", _NPM),
            _said({1}, _NPM_ERROR + r".*tunneling socket could not be established", _NPM),
            _said({1}, r"proxyconnect tcp: dial tcp:? (?:lookup )?(?P<host>[\w.:-]+)"),
        ),
        {"host": "that is set"},
        network=True,
    ),
    _Known(
        "NAME_RESOLUTION_FAILED",
        "The name of {host} could not be resolved.",
        "Correct the host's name if it is wrong. If right names fail too, the sandbox has no working name server: the host's /etc/resolv.conf and "
        "its network are where to look.",
        (
            _said({1, 2, 6}, r"^curl: \(6\) Could not resolve host: (?P<host>\S+)", _PIPED),
            _said({1, 128}, r"^fatal: unable to access '.*': Could not resolve host: (?P<host>\S+)"),
            _said({1, 128, 255}, r"^ssh: Could not resolve hostname (?P<host>[^\s:]+)", r"^fatal: Could not read from remote|^Please make sure"),
            _said({1, 4}, r"^wget: (?:unable to resolve host address|bad address) ['‘](?P<host>[^'’]+)['’]"),
            _said({100}, _FETCH + r"(?:Could not resolve|Temporary failure resolving) '(?P<host>[^']+)'", _APT),
            _said({1}, r"^WARNING: Retrying \(Retry\(total=0,.*(?:Failed to resolve '(?P<host>[^']+)'|" + _NO_NAME + ")", _PIP),
            _said({1}, r"^ERROR: .*HTTPS?ConnectionPool\(host='(?P<host>[^']+)'.*" + _NO_NAME, _PIP),
            _said({1}, _PYTHON_ERROR + r"host='(?P<host>[^']+)'.*" + _NO_NAME),
            _said({1}, _PYTHON_ERROR + _NO_NAME),
            _said({1}, _NPM_ERROR + r".*" + _NPM_REQUEST + r"getaddrinfo \w+ (?P<host>\S+)", _NPM),
            _said({1}, r"\bgetaddrinfo (?:ENOTFOUND|EAI_AGAIN) (?P<host>[\w.-]+)", _NODE),
            _said({1}, r"dial tcp: lookup (?P<host>[\w.-]+)(?: on \S+)?: (?:no such host|.*timeout|.*server misbehaving)"),
            _said({101}, r"Could not resolve host: (?P<host>[\w.-]+)", r"^\s|^Caused by|^error: "),
            _said({1}, r"Curl error \(6\): .*\[Could not resolve host: (?P<host>[\w.-]+)\]", _DNF),
            _said(
                range(1, 100),
                r"^(?:WARNING|ERROR): .*\w+://(?P<host>[^/\s:]+).*: (?:temporary error \(try again later\)|DNS.*error)",
                _APK,
            ),
            _engine(r"Get \"\w+://(?P<host>[^/\":]+)[^\"]*\": dial tcp: lookup (?P=host)\b", r"^ADD "),
        ),
        {"host": "the host that it wanted"},
        network=True,
    ),
    _Known(
        "CERTIFICATE_NOT_TRUSTED",
        "The certificate of {host} is not signed by an authority that the build trusts.",
        "If it is a company's own authority, install its certificate on the host (the host's extra certificates reach builds by "
        "themselves) or name a bundle with MANYOYO_CA_BUNDLE, and start a new sandbox; a program with a store of its own "
        "(Java) needs it there: COPY and import it.",
        (
            _said({1, 2, 60}, r"^curl: \(60\) ", _PIPED + r"|^curl failed|^establish|^More details|^how to fix"),
            _said({5}, r"^ERROR: (?:The certificate of|cannot verify) ['‘]?(?P<host>[\w.-]+)", r"^ERROR: |^\s+|^To connect to"),
            _said(
                {1, 128},
                r"^fatal: unable to access '\w+://(?P<host>[^/:']+)[^']*': (?:server (?:certificate )?verification failed|SSL certificate problem)",
            ),
            _said({100}, _FETCH + r"(?:SSL connection failed: .*certificate verify failed|Certificate verification failed)", _APT),
            _said({1}, r"confirming the ssl certificate: HTTPSConnectionPool\(host='(?P<host>[^']+)'", _PIP + r"|^Could not fetch URL"),
            _said({1}, _PYTHON_ERROR + r"CERTIFICATE_VERIFY_FAILED"),
            _said(
                {1},
                _NPM_ERROR + rf" code {_NODE_CERTIFICATE}(?:\n.*){{0,3}}? request to \w+://(?P<host>[^/:\s]+)",
                _NPM,
            ),
            _said({1}, rf"code: '{_NODE_CERTIFICATE}'", _NODE),
            _said({1}, r"\"\w+://(?P<host>[^/\":]+)[^\"]*\": (?:tls: .*)?x509: "),
            _engine(r"Get \"\w+://(?P<host>[^/\":]+)[^\"]*\": (?:tls: .*)?x509: ", r"^ADD "),
        ),
        {"host": "the server"},
    ),
    _Known(
        "CONNECTION_FAILED",
        "No connection to {host} could be made: nothing listens there, or nothing leads there.",
        "Check host and port. During a build localhost is the step itself: start what it talks to in the same RUN, or do this after the build, in "
        "nested_run or nested_exec.",
        (
            _said({1, 2, 7, 28}, r"^curl: \((?:7|28)\) Failed to connect to (?P<host>\S+) port", _PIPED),
            _said({1, 2, 28}, r"^curl: \(28\) (?:Connection|Operation|Resolving) timed out", _PIPED),
            _said({1, 128}, r"^fatal: unable to access '.*': Failed to connect to (?P<host>\S+) port"),
            _said({4}, r"^Connecting to (?P<host>[\w.:-]+).*\.\.\. failed: " + _NO_WAY),
            _said({1}, r"^wget: can't connect to remote host \((?P<host>[^)]+)\): " + _NO_WAY),
            _said({100}, _FETCH + r"Unable to connect to (?P<host>[\w.-]+)", _APT),
            _said({1}, r"^WARNING: Retrying \(Retry\(total=0,.*" + _NO_WAY, _PIP),
            _said({1}, _PYTHON_ERROR + _NO_WAY),
            _said({1}, _NPM_ERROR + r" code (?:ECONNREFUSED|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH)(?:\n.*){0,4}?" + _NPM_REQUEST, _NPM),
            _said({1}, r"\bconnect (?:ECONNREFUSED|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH) (?P<host>[\w.:]+)", _NODE),
            _said({1}, r"dial tcp (?P<host>\S+): connect: (?:connection refused|no route to host|network is unreachable)"),
            _engine(r"Get \"\w+://(?P<host>[^/\"]+)[^\"]*\": dial tcp \S+: connect: ", r"^ADD "),
        ),
        {"host": "the address that it wanted"},
        network=True,
    ),
    _Known(
        "DOWNLOAD_REFUSED",
        "The server answered a download with HTTP status {status}.",
        "404: correct the URL, the version in it or the architecture; 401 and 403: it wants a login; 429 and 5xx: try again later.",
        (
            _said({1, 2, 22, 56}, r"^curl: \((?:22|56)\) The requested URL returned error: (?P<status>\d+)", _PIPED),
            _said({8}, r"^\S+ \S+ ERROR (?P<status>\d+): "),
            _said({1}, r"^wget: server returned error: HTTP/\S+ (?P<status>\d+)"),
            _said({1, 128}, r"^fatal: unable to access '.*': The requested URL returned error: (?P<status>\d+)"),
            _said({1}, _TRACED + r"HTTPError: (?:HTTP Error )?(?P<status>\d+)"),
            _engine(r"failed to GET \S+ with status (?P<status>\d+)", r"^ADD "),
            _engine(r"invalid response status (?P<status>\d+)", r"^ADD "),
        ),
    ),
    # -- package managers
    _Known(
        "APT_REPOSITORY_UNUSABLE",
        "apt can't use the repository {repository}: it {why}.",
        "Check its address and suite in sources.list; a foreign one needs its key: signed-by=/etc/apt/keyrings/NAME.",
        (
            _said({100}, r"^E: The repository '(?P<repository>[^']+?)(?: (?:In)?Release)?' (?P<why>does not have a Release file|is not signed)", _APT),
            _said({100}, r"^E: The repository '(?P<repository>[^']+?)(?: (?:In)?Release)?' (?P<why>no longer has a Release file)", _APT),
        ),
    ),
    _Known(
        "APT_LISTS_STALE",
        "apt's lists name a file that the mirror no longer has: {file}.",
        "The lists come from a cached apt-get update: write RUN apt-get update && apt-get install in one step, and build once with no_cache.",
        (_said({100}, r"^E: Failed to fetch \w+://\S*/(?P<file>[^/\s]+)\s+404 ", _APT),),
    ),
    _Known(
        "APT_VERSION_NOT_FOUND",
        "apt has no version {version} of {package}.",
        "`apt-cache policy {package}` shows those there are; mirrors keep the newest only, so leave the version out or take that one.",
        (_said({100}, r"^(?:E:|Error:) (?:Version|Release) '(?P<version>[^']+)' for '(?P<package>[^']+)' was not found", _APT),),
    ),
    _Known(
        "APT_LISTS_MISSING",
        "apt knows no package {package}, and this step does not fetch its lists before.",
        "Write RUN apt-get update && apt-get install -y {package} in one step: base images come without lists. If it fails still, the name is wrong.",
        (
            _said(
                {100},
                r"^E: (?:Unable to locate package (?P<package>\S+)|Package '(?P<package2>[^']+)' has no installation candidate)",
                _APT,
                r"^(?!.*\b(?:apt|apt-get|aptitude)\b[^&|;]* update\b).*\b(?:apt|apt-get|aptitude)\b[^&|;]* install\b",
            ),
        ),
    ),
    _Known(
        "APT_PACKAGE_NOT_FOUND",
        "apt knows no package {package}.",
        "Correct the name (`apt-cache search WORD` in this image finds it); names differ between releases, and some packages need another repository.",
        (
            _said({100}, r"^E: Unable to locate package (?P<package>\S+)", _APT),
            _said({100}, r"^E: Package '(?P<package>[^']+)' has no installation candidate", _APT),
            _said({100}, r"^E: Couldn't find any package by (?:glob|regex) '(?P<package>[^']+)'", _APT),
        ),
    ),
    _Known(
        "APK_PACKAGE_NOT_FOUND",
        "apk knows no package {package}.",
        "Correct the name (`apk search WORD`); names differ from Debian's (build-base for build-essential, py3-pip for python3-pip).",
        (_said(range(1, 100), r"^ERROR: (?:unable to select packages|unsatisfiable constraints):\n\s+(?P<package>\S+) \((?:no such package|missing)\)", _APK),),
    ),
    _Known(
        "DNF_PACKAGE_NOT_FOUND",
        "dnf knows no package {package}.",
        "Correct the name (`dnf search WORD`); names differ from Debian's (-devel for -dev), and some need another repository (EPEL).",
        (
            _said({1}, r"^(?:Error: Unable to find a match|No match for argument): (?P<package>\S+)", _DNF),
            _said({1}, r"^No package (?P<package>\S+) available", _DNF),
        ),
    ),
    _Known(
        "PIP_EXTERNALLY_MANAGED",
        "This Python belongs to the distribution, which does not let pip install beside its packages.",
        "Use a virtual environment (RUN python3 -m venv /venv, ENV PATH=/venv/bin:$PATH), FROM localhost/manyoyo/python, or --break-system-packages.",
        (_said({1}, r"^error: externally-managed-environment$", r"."),),
    ),
    _Known(
        "PIP_VERSION_NOT_FOUND",
        "The package index has no {package}{version} that fits; it has: {versions}.",
        "Take one of those; one that is missing there may want another version of Python.",
        (
            _said(
                {1},
                r"^ERROR: Could not find a version that satisfies the requirement (?P<package>[\w.\[\]-]+)(?P<version>[^\s(]*)(?: \(from .*\))? "
                r"\(from versions: (?!none\))(?:.*, )?(?P<versions>[^,)]+(?:, [^,)]+){0,4})\)\nERROR: No matching distribution found",
                _PIP,
            ),
        ),
    ),
    _Known(
        "PIP_PACKAGE_NOT_FOUND",
        "The package index has no package {package}, or none that this Python and platform can use.",
        "Correct the name: what is imported and what is installed may be called differently (cv2 is opencv-python). A private package needs its index: "
        "--index-url.",
        (
            _said(
                {1},
                r"^ERROR: Could not find a version that satisfies the requirement (?P<package>[\w.\[\]-]+)\S*(?: \(from .*\))? "
                r"\(from versions: none\)\nERROR: No matching distribution found",
                _PIP,
            ),
        ),
    ),
    _Known(
        "NPM_VERSION_NOT_FOUND",
        "The npm registry has no version {package}.",
        "`npm view NAME versions` shows those there are.",
        (_said({1}, _NPM_ERROR + r" notarget No matching version found for (?P<package>\S+?)\.?$", _NPM),),
    ),
    _Known(
        "NPM_PACKAGE_NOT_FOUND",
        "The npm registry has no package {package}.",
        "Correct the name in package.json or the command; a private package needs its registry and login in .npmrc.",
        (
            _said(
                {1},
                _NPM_ERROR + r" 404\s+(?:The requested resource )?'(?P<package>@?[^@']+)(?:@[^']*)?' (?:is not in|could not be found)",
                _NPM,
            ),
        ),
    ),
    _Known(
        "NPM_LOCKFILE_MISSING",
        "npm ci found no package-lock.json.",
        "COPY package-lock.json beside package.json before this step, or use npm install.",
        (_said({1}, _NPM_ERROR + r" The `npm ci` command can only install with an existing package-lock", _NPM),),
    ),
    _Known(
        "NPM_CONFLICT",
        "npm can't find versions that fit together: {package} wants another one of what it depends on.",
        "Change the versions in package.json so that they fit (the output names them); --legacy-peer-deps installs them all the same.",
        (_said({1}, _NPM_ERROR + r" code ERESOLVE(?:\n.*)*?\n" + _NPM_ERROR[1:] + r" While resolving: (?P<package>\S+)", _NPM),),
        {"package": "a package"},
    ),
    # -- what a step does
    _Known(
        "PERMISSION_DENIED",
        "The step's user may not write or change {file}.",
        "Do it as root: put the step before USER, or write USER root before and USER NAME after; or give the directory to that user first "
        "(COPY --chown, RUN chown).",
        (
            _said({100}, r"^E: Could not open lock file (?P<file>\S+) - open \(13: Permission denied\)", _APT),
            _said({1}, _TRACED + r"PermissionError: \[Errno 13\] Permission denied: '(?P<file>[^']+)'"),
            _said({1}, r"^ERROR: Could not install .*\[Errno 13\] Permission denied: '(?P<file>[^']+)'", r"^Check the permissions|^Consider using"),
            _said({1, 243}, _NPM_ERROR + r" code EACCES(?:\n.*){0,3}?\n" + _NPM_ERROR[1:] + r" path (?P<file>\S+)", _NPM),
            _said({1, 2}, r"^[\w./+-]+:.*?['‘ ](?P<file>[^\s'’:]+)['’]?: (?:Permission denied|Operation not permitted)$", r"^tar: "),
        ),
    ),
    _Known(
        "FILE_NOT_IN_IMAGE",
        "The step wants {file}, which is not in the image.",
        "COPY it before this step, and mind WORKDIR: a RUN step sees what earlier COPY lines brought, not the context.",
        (
            _said({1}, r"^ERROR: Could not open requirements file: .*'(?P<file>[^']+)'", _PIP),
            _said({2}, r"^\S*python\S*: can't open file '(?P<file>[^']+)': \[Errno 2\]"),
            _said(range(1, 256), _NPM_ERROR + r" (?:enoent )?.*ENOENT.*open '(?P<file>[^']+)'", _NPM),
            _said({1}, r"^Error: Cannot find module '(?P<file>/[^']+)'", _NODE),
            _said({2, 127}, _SHELL + r"(?:cannot open |can't open ')?(?P<file>[^\s:']+)'?: No such file"),
            _said({1, 2}, _SHELL + r"cd: (?:can't cd to )?(?P<file>[^\s:]+)(?:: No such file or directory)?$"),
            _said({2}, r"^make: \*\*\* No targets specified and no (?P<file>makefile) found"),
        ),
    ),
    _Known(
        "MODULE_NOT_FOUND",
        "The program wants the module {module}, which is not installed.",
        "Install it in an earlier step (pip install, npm install), and into the Python or node_modules that this step runs with.",
        (
            _said({1}, _TRACED + r"(?:ModuleNotFoundError|ImportError): No module named '?(?P<module>[\w.]+)"),
            _said({1}, r"^\S*python\S*: No module named (?P<module>\S+)"),
            _said({1}, r"^(?:Uncaught )?Error(?: \[\w+\])?: Cannot find (?:module|package) '(?P<module>[^./'][^']*)'", _NODE),
        ),
    ),
)

_NETWORK_OFF = (
    "NETWORK_OFF",
    "The step wanted {host}, but this build has no network.",
    'Build with network="default"; or COPY what it downloads into the context before.',
)

_STEP_PREFIX = re.compile(r"\Abuilding at STEP \".*?\": ", re.DOTALL)
_COMMAND_FAILED = re.compile(r"(?:while running runtime: exit status|returned a non-zero code:) \d+\s*\Z")
_MAKE = re.compile(r"(?:^make(?:\[\d+\])?: \*\*\* .* Error (\d+)\s*)+\Z", re.MULTILINE)
_COMPLAINT = re.compile(
    r"\b(?:errors?|exception|fatal|fail(?:s|ed|ure|ures|ing)?|panic|abort(?:ed)?|assert\w*|traceback|not found|no such|cannot|can't|"
    r"could(?: not|n't)|unable|denied|refused|undefined|invalid|missing|unexpected|killed)\b|(?:Error|Exception)\b",
    re.IGNORECASE,
)
_URL_HOST = re.compile(r"\b(?:https?|ftp|ssh|git)://(?:[^/\s@]*@)?([\w.-]+)")

_END = 16 << 10
"""How much of the output's end is read, in characters."""
_AFTER = 40
"""How many lines may come after the words that tell."""
_LONGEST_NAME = 120


def diagnose(
    output: str, error: str, instruction: str = "", exit_code: int | None = None, *, network: str = "default"
) -> Cause | None:
    """The known cause of a failed build; None where none is known.

    `output` is what the failed step wrote (its end will do), `error` the engine's message, `instruction` the failed one as far as
    known, `exit_code` that of its command, None where none ran, `network` what the build was given. All text without control
    characters.
    """
    if exit_code is None and _COMMAND_FAILED.search(error):
        return None
    error = _STEP_PREFIX.sub("", error.strip())
    output = output[-_END:].rstrip()
    if exit_code is not None and (made := _MAKE.search(output)) is not None:
        exit_code, output = int(made[1]), output[: made.start()].rstrip()
    for known in _KNOWN:
        for sign in known.signs:
            names = _names(sign, output, error, instruction, exit_code)
            if names is not None:
                return _cause(known, names, instruction, network)
    return None


def _names(sign: _Sign, output: str, error: str, instruction: str, exit_code: int | None) -> dict[str, str] | None:
    """The names that the sign tells, where it is there."""
    place = sign.instruction.search(instruction) if sign.instruction is not None else None
    if sign.instruction is not None and place is None:
        return None
    if sign.exits is None:
        match = sign.pattern.search(error) if exit_code is None else None
    else:
        match = _last_complaint(sign, output) if exit_code in sign.exits else None
    if match is None:
        return None
    found = (place.groupdict() if place is not None else {}) | {k: v for k, v in match.groupdict().items() if v}
    return {key.rstrip("2"): value for key, value in found.items() if value}


def _last_complaint(sign: _Sign, output: str) -> re.Match[str] | None:
    matches = list(sign.pattern.finditer(output))
    if not matches:
        return None
    after = output[matches[-1].end() :].split("\n")[1:]
    if len(after) > _AFTER:
        return None
    for line in after:
        if _COMPLAINT.search(line) and not (sign.trailer is not None and sign.trailer.search(line)):
            return None
    return matches[-1]


def _cause(known: _Known, names: dict[str, str], instruction: str, network: str) -> Cause:
    hosts = {names["url"]} if "url" in names else set(_URL_HOST.findall(instruction))
    told = {"host": hosts.pop()} if len(hosts) == 1 and known.code != "PROXY_FAILED" else {}
    words = known.default | told | names
    words = {key: " ".join(value.split())[:_LONGEST_NAME].rstrip(" .") for key, value in words.items()}
    code, cause, mend = known.code, known.cause, known.mend
    if known.network and network == "none":
        code, cause, mend = _NETWORK_OFF
    return Cause(code, cause.format_map(words), mend.format_map(words))

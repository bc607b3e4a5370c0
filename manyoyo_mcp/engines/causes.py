"""The table of known causes of failed builds: what each looks like, why that is, and how to mend it.

Order matters: the first cause whose sign is there is the one, so the most specific stand first. docs/build-failures.md
lists the codes; tests/integration/test_build_causes.py provokes them.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sign:
    """One look of a cause. Named groups of `pattern` and `instruction` go into the cause's words.

    `exits` None: the engine refused, and `pattern` is sought in its message. Else the command ended with one of these
    codes, `pattern` is its last complaint, and `trailer` what the same tool writes after that. `instruction` is sought
    in the failed instruction.
    """

    pattern: re.Pattern[str]
    exits: Collection[int] | None = None
    trailer: re.Pattern[str] | None = None
    instruction: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """A cause. `default` has words for names that a sign does not tell; `network` says whether a build without any
    network would look the same."""

    code: str
    cause: str
    mend: str
    signs: tuple[Sign, ...] = ()
    default: dict[str, str] = field(default_factory=dict)
    network: bool = False


def _engine(pattern: str, instruction: str = "") -> Sign:
    return Sign(re.compile(pattern, re.MULTILINE), None, None, _compile(instruction))


def _said(exits: Collection[int], pattern: str, trailer: str = "", instruction: str = "") -> Sign:
    return Sign(re.compile(pattern, re.MULTILINE), exits, _compile(trailer), _compile(instruction))


def _compile(pattern: str) -> re.Pattern[str] | None:
    return re.compile(pattern) if pattern else None


# How tools begin the lines that come after the complaint that counts.
_PIPED = r"^(?:gzip|tar|unzip|xz|bzip2|zstd|gpg|cpio): "
_APT = r"(?:^|\.\.\.)[EW]:|^(?:Err:|Ign:| |This may mean|Package \S+ is not available)"
_PIP = r"^(?:ERROR: (?:Could not find a version|No matching distribution)|Could not fetch URL|WARNING: |\[notice\]|Looking in)"
_NPM = r"^npm (?:ERR!|error|WARN|warn|notice)(?: |$)"
_NODE = r"^(?:\s|\}|Node\.js v|- |Error: |node:)"
_APK = r"^(?:ERROR: |WARNING: |\s+.*(?:no such package|missing|required by))"
_DNF = r"^(?:Errors? |Error: |Ignoring |No match|  - )"
_CURL = rf"{_PIPED}|^curl failed"
_SSH = r"^fatal: Could not read from remote|^Please make sure"
_CARGO = r"^\s|^Caused by|^error: "

# What they write. A stream of errors may run into one of output in the middle of a line, as apt's does.
_Q = "['\u2018\u2019]"
_SHELL = r"^(?:/\S+|\w*sh): (?:line )?(?:\d+: )?"
_E = r"(?:^|\.\.\.)(?:E:)? ?"
_FETCH = r"(?:^|\.\.\.)(?:[EW]:)? ?Failed to fetch \w+://(?P<url>[^/\s:]++)\S*\s+"
_GIT = r"^fatal: unable to access '\w+://(?P<url>[^/':]++)[^']*': "
_PIP_GAVE_UP = r"^WARNING: Retrying \(Retry\(total=0,.*"
_PIP_NONE = r"^ERROR: Could not find a version that satisfies the requirement (?P<package>[\w.\[\]-]+)"
_PIP_SINCE = r"(?: \(from .*\))? \(from versions: "
_PIP_THEN = r"\)\nERROR: No matching distribution found"
_NPM_ERROR = r"^npm (?:ERR!|error)"
_NPM_SINCE = r"(?:\n.*){0,9}?\nnpm (?:ERR!|error)"
_NPM_REQUEST = r".* request to \w+://(?P<url>[^/:\s]++)\S* failed, reason: "
_TRACED = r"^ +\S.*\n(?:\w+\.)*"  # the line before the last of a traceback, and the exception's module
_PYTHON = _TRACED + r"\w*(?:Error|Exception|gaierror)\w*: .*"
_WGET = r"^--.*--  \w+://(?P<url>[^/\s:]++).*\n"

_NO_NAME = r"(?:Name or service not known|Temporary failure in name resolution|No address associated with hostname)"
_NO_WAY = r"(?:Connection refused|No route to host|Network is unreachable|Connection timed out)"
_NODE_NO_NAME = r"getaddrinfo (?:ENOTFOUND|EAI_AGAIN) "
_NODE_NO_WAY = r"(?:ECONNREFUSED|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH)"
_NODE_NO_TRUST = (
    r"(?:SELF_SIGNED_CERT_IN_CHAIN|DEPTH_ZERO_SELF_SIGNED_CERT|UNABLE_TO_VERIFY_LEAF_SIGNATURE|"
    r"UNABLE_TO_GET_ISSUER_CERT(?:_LOCALLY)?|CERT_HAS_EXPIRED|CERT_UNTRUSTED)"
)
_NO_TRUST = r"(?:server (?:certificate )?verification failed|SSL certificate problem)"
_NOT_RESOLVED = r"(?:Could not resolve|Temporary failure resolving) "

# The Dockerfile's side.
_FROM = r"^FROM (?:--\S+ )*(?P<image>\S+)"
_FROM_STAGE = r"--from=(?P<stage>\S+)"
_VARIABLE = r"\$\{?(?P<name>\w+)"
_APT_WITHOUT_UPDATE = r"^(?!.*\bapt(?:-get|itude)?\b[^&|;]* update\b).*\bapt(?:-get|itude)?\b[^&|;]* install\b"

KNOWN: tuple[Known, ...] = (
    # -- the Dockerfile, before anything runs
    Known(
        "NEEDS_PODMAN",
        "The Dockerfile uses {feature}, which dockerd's classic builder does not know.",
        'podman\'s builder does: start_sandbox with engine="podman" and build there. Or write the step without it.',
        (
            _engine(r"the (?P<feature>--\w+) option requires BuildKit"),
            _engine(r"the (?P<feature>heredoc <<\S+) requires BuildKit"),
            _engine(r"failed to parse platform : \"\" is an invalid", r"(?P<feature>\$\{?(?:BUILD|TARGET)\w+\}?)"),
        ),
    ),
    Known(
        "FLAG_NOT_SUPPORTED",
        "The builder does not know the flag {flag} of {keyword}.",
        "Leave it out: --link changes only how layers are cached; instead of --parents name the directory to copy to; "
        "a RUN step may do what any nested container may, whatever --security says.",
        (
            _engine(r"(?P<keyword>COPY|ADD|RUN) (?P<flag>--\w+) is not supported"),
            _engine(r"parse error on line \d+: unknown flag: (?P<flag>\S+)", r"^(?P<keyword>\w+)"),
            _engine(r"(?P<keyword>COPY|ADD|RUN) only supports the ", r"^\w+ .*?(?P<flag>--\w+)"),
        ),
    ),
    Known(
        "UNKNOWN_INSTRUCTION",
        "{word} is not a Dockerfile instruction.",
        "Correct the word; if the line goes on with the one above, end that one with a backslash.",
        (
            _engine(r"parse error on line \d+: unknown instruction: (?P<word>\S+)"),
            _engine(r"Unknown instruction: \"(?P<word>[^\"]+)\""),
        ),
    ),
    Known(
        "BUILD_ARG_MISSING",
        "The variable {name} has no value, or none that can stand here.",
        "Give it one with build_args, or a default (ARG NAME=value). An ARG before the first FROM is known in FROM lines "
        "only: declare it again (ARG NAME) in the stage that uses it.",
        (
            _engine(r"base name \(.*\) should not be blank", _VARIABLE),
            _engine(r"^determining starting point for build: no FROM statement found", _VARIABLE),
            _engine(r"invalid reference format$", r"^FROM .*" + _VARIABLE),
            _engine(r"invalid from flag value |--from=: no stage or image", r"--from=" + _VARIABLE),
            _said({1, 2, 127}, _SHELL + r"(?P<name>[A-Za-z_]\w*): (?:parameter (?:not set|null)|unbound variable)"),
            _said({1, 2, 127}, _SHELL + r"(?P<name>[A-Za-z_]\w*): .*", instruction=r"\$\{\w+:?\?"),
        ),
    ),
    Known(
        "NO_FROM",
        "The Dockerfile has no FROM, so no image to begin with.",
        "Begin with FROM and a base image, e.g. FROM localhost/manyoyo/debian; only ARG may come before it.",
        (_engine(r"^(?:building: )?no (?:FROM statement found|stages to build)|no build stage in current context"),),
    ),
    Known(
        "TARGET_NOT_FOUND",
        "The Dockerfile has no stage called {stage}.",
        "Name a stage that a FROM line gives a name (FROM image AS name) with target, or leave target out.",
        (
            _engine(r"target stage \"(?P<stage>[^\"]*)\" could not be found"),
            _engine(r"The target \"(?P<stage>[^\"]*)\" was not found"),
        ),
    ),
    Known(
        "STAGE_NOT_FOUND",
        "There is neither a stage nor an image called {stage} to copy from.",
        "Name a stage that an earlier FROM line gives a name (FROM image AS name), or an image that the sandbox has.",
        (
            _engine(r"from=(?P<stage>[^\s:]+): no stage or image found"),
            _engine(r"invalid from flag value (?P<stage>\S+): "),
        ),
    ),
    Known(
        "IMAGE_NAME_INVALID",
        "{image} can't be the name of an image.",
        "Image names are lower case: [registry/]name[:tag].",
        (_engine(r"(?:parsing|invalid) reference .*(?:invalid|must be lowercase|format)", _FROM),),
    ),
    Known(
        "IMAGE_NOT_FOUND",
        "The base image {image} is not in the sandbox (or not for the platform asked for), and could not be pulled: "
        "{why}.",
        "Build on an image that is there: nested_list shows them. Where no registry is reachable, base images are made "
        "from packages: `manyoyo-mcp image base debian` (python, node, busybox), then FROM localhost/manyoyo/debian.",
        (
            _engine(r"(?P<why>pull access denied|manifest unknown|unauthorized|no such image)", _FROM),
            _engine(r"initializing source docker://.*: (?P<why>[^:]+)$", _FROM),
            _engine(r"^Get \"[^\"]+/v2/.*: (?P<why>[^:]+)$", _FROM),
            _engine(r"manifest for \S+ (?P<why>not found)", _FROM),
        ),
    ),
    Known(
        "DOCKERFILE_SYNTAX",
        "The Dockerfile is not valid: {what}.",
        "Correct that instruction; the failed step names it and its line where the engine says which.",
        (
            _engine(r"dockerfile parse error on line \d+: (?P<what>.+)"),
            _engine(r"failed to parse Dockerfile: (?P<what>.+)"),
            _engine(r"^parsing main Dockerfile: [^:]*: (?:EOF: )?(?P<what>.+)"),
            _engine(r"(?P<what>\b[A-Z]+ requires (?:at least|exactly|either) .+)"),
            _engine(
                r"(?P<what>(?:Unknown type|Unknown flag|unexpected end of statement|Syntax error|[Ii]nvalid (?:signal|containerPort)).*)"
            ),
        ),
    ),
    # -- COPY, ADD, USER
    Known(
        "FILE_OUTSIDE_CONTEXT",
        "{file} lies outside the build context, where COPY and ADD can't reach.",
        "Choose a context_dir above it and write the path from there, or give the file with files.",
        (
            _engine(r"forbidden path outside the build context: (?P<file>\S+)"),
            _engine(r"possible escaping context directory error: copier: stat: \"/?(?P<file>[^\"]+)\""),
        ),
    ),
    Known(
        "FILE_NOT_IN_STAGE",
        "The stage or image {stage} has no {file}.",
        "Write the whole path at which that stage made it; its WORKDIR does not count after --from.",
        (
            _engine(r"copier: stat: \[?\"(?P<file>[^\"]+)\"\]?: no such file", _FROM_STAGE),
            _engine(r"failed: stat (?P<file>.+): file does not exist", _FROM_STAGE),
        ),
    ),
    Known(
        "FILE_NOT_IN_CONTEXT",
        "{file} is not in the build context, or .dockerignore leaves it out.",
        "Paths count from context_dir, not from the Dockerfile: correct the path, take the pattern out of .dockerignore, "
        "or give the file with files.",
        (
            _engine(r"not found in build context or excluded by \S+: stat (?P<file>.+?): file does not exist"),
            _engine(r"copier: stat: \[?\"/?(?P<file>[^\"]+)\"\]?: no such file"),
            _engine(r"no items matching glob \".*/build/(?P<file>[^\"]+)\" copied \(\d+ filtered out"),
            _engine(r"no source files were specified", r"^(?:COPY|ADD) (?:--\S+ )*(?P<file>.+) \S+$"),
        ),
    ),
    Known(
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
    Known(
        "NO_SHELL",
        "The image has no {command}, which RUN needs to run a line of shell.",
        'Write RUN ["program", "argument"], or build FROM an image with a shell; FROM scratch is empty.',
        (
            _engine(r"executable file `(?P<command>/\S*sh)` not found"),
            _engine(r"exec: \"(?P<command>/\S*sh)\": stat \S+ no such file"),
        ),
    ),
    Known(
        "COMMAND_NOT_FOUND",
        "The image has no command {command}.",
        "Install the package that has it, in this step or an earlier one, or choose a base image that does.",
        (
            _engine(r"executable file `(?P<command>[^`/]+)` not found"),
            _engine(r"exec: \"(?P<command>[^\"/]+)\": executable file not found"),
            _said({127}, _SHELL + r"(?P<command>[^\s:/]+): (?:command )?not found"),
            _said({127}, rf"^env: {_Q}(?P<command>[^'\u2019/\\]+){_Q}: No such file"),
            _said({127}, r"^make(?:\[\d+\])?: (?P<command>[^\s:/]+): (?:Command not found|No such file or directory)"),
        ),
    ),
    Known(
        "SCRIPT_LINE_ENDINGS",
        "A script has Windows line endings: its first line names the interpreter {command} with a carriage return.",
        "Save the script with Unix line endings (\\n), or RUN sed -i 's/\\r$//' on it before.",
        (_said({126, 127}, rf"^env: {_Q}(?P<command>[^'\u2019\\]+)\\r{_Q}: No such file"),),
    ),
    Known(
        "PROGRAM_NOT_FOUND",
        "There is no {file} in the image, or what its first line (#!) names is missing.",
        "COPY it before this step and mind WORKDIR; if it is there, install its interpreter, and save it with Unix line "
        "endings.",
        (
            _engine(r"executable file `(?P<file>[^`]*/[^`]*)` not found"),
            _engine(r"exec: \"(?P<file>[^\"]*/[^\"]*)\": stat \S+ no such file"),
            _said({127}, _SHELL + r"(?P<file>[^\s:]*/[^\s:]*): (?:not found|No such file or directory)"),
            _said({127}, rf"^env: {_Q}(?P<file>[^'\u2019\\]*/[^'\u2019\\]*){_Q}: No such file"),
        ),
    ),
    Known(
        "NOT_EXECUTABLE",
        "{file} may not be executed: it lacks the x permission.",
        "RUN chmod +x on it before, or run it by its interpreter (RUN sh script.sh).",
        (
            _engine(r"the path `(?P<file>[^`]+)` exists but it is not executable"),
            _engine(r"exec: \"(?P<file>[^\"]+)\": permission denied"),
            _said({126}, _SHELL + r"(?P<file>[^\s:]+): Permission denied"),
        ),
    ),
    Known(
        "WRONG_ARCHITECTURE",
        "{file} can't run here: it is built for another architecture, or is a script without a first line #!.",
        "Take the build of it for this machine (uname -m), or an image of its platform; a script needs #!/bin/sh as its "
        "first line.",
        (
            _said({1, 255}, r"^exec container process `(?P<file>[^`]+)`: Exec format error"),
            _said({1, 255}, r"^exec (?P<file>/\S+): exec format error"),
            _said({126}, _SHELL + r"(?P<file>[^\s:]+): (?:cannot execute binary file: )?Exec format error"),
            _said({1}, _TRACED + r"OSError: \[Errno 8\] Exec format error: '(?P<file>[^']+)'"),
        ),
    ),
    # -- the network, before what package managers make of it
    Known(
        "PROXY_FAILED",
        "The proxy {host} could not be used.",
        "http_proxy and https_proxy come from ENV or ARG in the Dockerfile, from build_args, or from the server's own "
        "environment, which reaches builds: correct or unset them there. 127.0.0.1 is the step itself, not the host.",
        (
            _said({1, 2, 5}, r"^curl: \(5\) Could not resolve proxy: (?P<host>\S+)", _CURL),
            _said({1, 2, 7, 56, 97}, r"^curl: \(\d+\) (?:CONNECT tunnel|Received HTTP code \d+ from p|Proxy )", _CURL),
            _said({1, 128}, _GIT + r"Could not resolve proxy: (?P<host>\S+)"),
            _said({1, 128}, _GIT + r"(?:CONNECT tunnel|Received HTTP code \d+ from proxy|Proxy )"),
            _said({1, 128}, _GIT + r"Failed to connect to (?!(?P=url) )(?P<host>\S+) port"),
            _said({100}, _FETCH + rf"{_NOT_RESOLVED}'(?!(?P=url)')(?P<host>[\w.-]+)'", _APT),
            _said({100}, _FETCH + r"Unable to connect to (?!(?P=url):)(?P<host>[\w.-]+):", _APT),
            _said({100}, _FETCH + r"(?:Invalid response from proxy|.*Proxy Authentication Required)", _APT),
            _said({1}, _PIP_GAVE_UP + r"'ProxyError\(", _PIP),
            _said({1}, _PYTHON + r"(?:Tunnel connection failed: \d+|(?:Cannot|Unable to) connect to proxy)"),
            _said({4}, _WGET + r"Connecting to (?!(?P=url)\b)(?P<host>[\w.-]+:\d+)\.\.\. failed: "),
            _said({4}, _WGET + rf"(?:.*\n){{0,4}}?wget: unable to resolve .* {_Q}(?!(?P=url){_Q})(?P<host>[\w.-]+)"),
            _said({1}, _NPM_ERROR + _NPM_REQUEST + _NODE_NO_NAME + r"(?!(?P=url)$)(?P<host>\S+)", _NPM),
            _said({1}, _NPM_ERROR + r".*tunneling socket could not be established", _NPM),
            _said({1}, r"proxyconnect tcp: dial tcp:? (?:lookup )?(?P<host>[\w.:-]+)"),
        ),
        default={"host": "that is set"},
        network=True,
    ),
    Known(
        "NAME_RESOLUTION_FAILED",
        "The name of {host} could not be resolved.",
        "Correct the host's name if it is wrong. If right names fail too, the sandbox has no working name server: look at "
        "the host's /etc/resolv.conf and its network.",
        (
            _said({1, 2, 6}, r"^curl: \(6\) Could not resolve host: (?P<host>\S+)", _CURL),
            _said({1, 128}, _GIT + r"Could not resolve host: (?P<host>\S+)"),
            _said({1, 128, 255}, r"^ssh: Could not resolve hostname (?P<host>[^\s:]+)", _SSH),
            _said({1, 4}, rf"^wget: (?:unable to resolve host address|bad address) {_Q}(?P<host>[\w.-]+)"),
            _said({100}, _FETCH + rf"{_NOT_RESOLVED}'(?P<host>[^']+)'", _APT),
            _said({1}, _PIP_GAVE_UP + rf"(?:Failed to resolve '(?P<host>[^']+)'|{_NO_NAME})", _PIP),
            _said({1}, rf"^ERROR: .*HTTPS?ConnectionPool\(host='(?P<host>[^']+)'.*{_NO_NAME}", _PIP),
            _said({1}, _PYTHON + rf"host='(?P<host>[^']+)'.*{_NO_NAME}"),
            _said({1}, _PYTHON + _NO_NAME),
            _said({1}, _NPM_ERROR + _NPM_REQUEST + _NODE_NO_NAME + r"(?P<host>\S+)", _NPM),
            _said({1}, rf"\b{_NODE_NO_NAME}(?P<host>[\w.-]+)", _NODE),
            _said({1}, r"dial tcp: lookup (?P<host>[\w.-]+)(?: on \S+)?: (?:no such host|.*timeout|server misb)"),
            _said({101}, r"Could not resolve host: (?P<host>[\w.-]+)", _CARGO),
            _said({1}, r"Curl error \(6\): .*\[Could not resolve host: (?P<host>[\w.-]+)\]", _DNF),
            _said(range(1, 100), r"^[WE]\w+: .*\w+://(?P<host>[^/\s:]+).*: (?:temporary error|DNS.*error)", _APK),
            _engine(r"Get \"\w+://(?P<host>[^/\":]++)[^\"]*\": dial tcp: lookup ", r"^ADD "),
        ),
        default={"host": "the host that it wanted"},
        network=True,
    ),
    Known(
        "CERTIFICATE_NOT_TRUSTED",
        "The certificate of {host} is not signed by an authority that the build trusts.",
        "If it is a company's own authority, install its certificate on the host (the host's extra certificates reach "
        "builds by themselves) or name a bundle with MANYOYO_CA_BUNDLE, and start a new sandbox; a program with a store "
        "of its own (Java) needs it there: COPY and import it.",
        (
            _said({1, 2, 60}, r"^curl: \(60\) ", _CURL),
            _said({5}, rf"^ERROR: (?:The certificate of|cannot verify) {_Q}?(?P<host>[\w.-]+)", r"^ERROR: |^ |^To "),
            _said({1, 128}, _GIT + _NO_TRUST),
            _said({100}, _FETCH + r".*[Cc]ertificate verif(?:y|ication) failed", _APT),
            _said({1}, r"confirming the ssl certificate: HTTPSConnectionPool\(host='(?P<host>[^']+)'", _PIP),
            _said({1}, _PYTHON + r"CERTIFICATE_VERIFY_FAILED"),
            _said({1}, _NPM_ERROR + rf" code {_NODE_NO_TRUST}{_NPM_SINCE} request to \w+://(?P<host>[^/:\s]+)", _NPM),
            _said({1}, rf"code: '{_NODE_NO_TRUST}'", _NODE),
            _said({1}, r"\"\w+://(?P<host>[^/\":]+)[^\"]*\": (?:tls: .*)?x509: "),
            _engine(r"Get \"\w+://(?P<host>[^/\":]+)[^\"]*\": (?:tls: .*)?x509: ", r"^ADD "),
        ),
        default={"host": "the server"},
    ),
    Known(
        "CONNECTION_FAILED",
        "No connection to {host} could be made: nothing listens there, or nothing leads there.",
        "Check host and port. During a build localhost is the step itself: start what it talks to in the same RUN, or do "
        "this after the build, in nested_run or nested_exec.",
        (
            _said({1, 2, 7, 28}, r"^curl: \((?:7|28)\) Failed to connect to (?P<host>\S+) port", _CURL),
            _said({1, 2, 28}, r"^curl: \(28\) (?:Connection|Operation|Resolving) timed out", _CURL),
            _said({1, 128}, _GIT + r"Failed to connect to (?P<host>\S+) port"),
            _said({4}, rf"^Connecting to (?P<host>[\w.:-]+).*\.\.\. failed: {_NO_WAY}"),
            _said({1}, rf"^wget: can't connect to remote host \((?P<host>[^)]+)\): {_NO_WAY}"),
            _said({100}, _FETCH + r"Unable to connect to (?P<host>[\w.-]+)", _APT),
            _said({1}, _PIP_GAVE_UP + _NO_WAY, _PIP),
            _said({1}, _PYTHON + _NO_WAY),
            _said({1}, _NPM_ERROR + rf" code {_NODE_NO_WAY}{_NPM_SINCE}{_NPM_REQUEST}", _NPM),
            _said({1}, rf"\bconnect {_NODE_NO_WAY} (?P<host>[\w.:]+)", _NODE),
            _said({1}, r"dial tcp (?P<host>\S+): connect: (?:connection refused|no route|network is unreachable)"),
            _engine(r"Get \"\w+://(?P<host>[^/\"]+)[^\"]*\": dial tcp \S+: connect: ", r"^ADD "),
        ),
        default={"host": "the address that it wanted"},
        network=True,
    ),
    Known(
        "DOWNLOAD_REFUSED",
        "The server answered a download with HTTP status {status}.",
        "404: correct the URL, or the version or architecture in it; 401 and 403: it wants a login; 429 and 5xx: try "
        "again later.",
        (
            _said({1, 2, 22, 56}, r"^curl: \((?:22|56)\) The requested URL returned error: (?P<status>\d+)", _CURL),
            _said({8}, r"^\S+ \S+ ERROR (?P<status>\d+): "),
            _said({1}, r"^wget: server returned error: HTTP/\S+ (?P<status>\d+)"),
            _said({1, 128}, _GIT + r"The requested URL returned error: (?P<status>\d+)"),
            _said({1}, _TRACED + r"HTTPError: (?:HTTP Error )?(?P<status>\d+)"),
            _engine(r"failed to GET \S+ with status (?P<status>\d+)", r"^ADD "),
            _engine(r"invalid response status (?P<status>\d+)", r"^ADD "),
        ),
    ),
    # -- package managers
    Known(
        "APT_REPOSITORY_UNUSABLE",
        "apt can't use the repository {repository}: it {why}.",
        "Check its address and suite in sources.list; a foreign one needs its key: signed-by=/etc/apt/keyrings/NAME.",
        (
            _said(
                {100},
                _E + r"The repository '(?P<repository>[^']+?)(?: (?:In)?Release)?' "
                r"(?P<why>does not have a Release file|no longer has a Release file|is not signed)",
                _APT,
            ),
        ),
    ),
    Known(
        "APT_LISTS_STALE",
        "apt's lists name a file that the mirror no longer has: {file}.",
        "The lists come from a cached apt-get update: write RUN apt-get update && apt-get install in one step, and build "
        "once with no_cache.",
        (_said({100}, _E + r"Failed to fetch \w+://\S*/(?P<file>[^/\s]+)\s+404 ", _APT),),
    ),
    Known(
        "APT_VERSION_NOT_FOUND",
        "apt has no version {version} of {package}.",
        "`apt-cache policy {package}` shows those there are; mirrors keep the newest only, so leave the version out or "
        "take that one.",
        (
            _said(
                {100},
                _E + r"(?:Error: )?(?:Version|Release) '(?P<version>[^']+)' for '(?P<package>[^']+)' was not found",
                _APT,
            ),
        ),
    ),
    Known(
        "APT_LISTS_MISSING",
        "apt knows no package {package}, and this step does not fetch apt's lists first.",
        "Write RUN apt-get update && apt-get install -y {package} in one step: base images come without lists. If that "
        "fails too, the name is wrong.",
        (
            _said({100}, _E + r"Unable to locate package (?P<package>\S+)", _APT, _APT_WITHOUT_UPDATE),
            _said({100}, _E + r"Package '(?P<package>\S+)' has no installation candidate", _APT, _APT_WITHOUT_UPDATE),
        ),
    ),
    Known(
        "APT_PACKAGE_NOT_FOUND",
        "apt knows no package {package}.",
        "Correct the name (`apt-cache search WORD` in this image finds it); names differ between releases, and some "
        "packages need another repository.",
        (
            _said({100}, _E + r"Unable to locate package (?P<package>\S+)", _APT),
            _said({100}, _E + r"Package '(?P<package>[^']+)' has no installation candidate", _APT),
            _said({100}, _E + r"Couldn't find any package by (?:glob|regex) '(?P<package>[^']+)'", _APT),
        ),
    ),
    Known(
        "APK_PACKAGE_NOT_FOUND",
        "apk knows no package {package}.",
        "Correct the name (`apk search WORD`); names differ from Debian's: build-base is build-essential, py3-pip is "
        "python3-pip.",
        (
            _said(
                range(1, 100),
                r"^ERROR: (?:unable to select packages|unsatisfiable constraints):\n\s+"
                r"(?P<package>\S+) \((?:no such package|missing)\)",
                _APK,
            ),
        ),
    ),
    Known(
        "DNF_PACKAGE_NOT_FOUND",
        "dnf knows no package {package}.",
        "Correct the name (`dnf search WORD`); names differ from Debian's (-devel for -dev), and some need another "
        "repository (EPEL).",
        (
            _said({1}, r"^(?:Error: Unable to find a match|No match for argument): (?P<package>\S+)", _DNF),
            _said({1}, r"^No package (?P<package>\S+) available", _DNF),
        ),
    ),
    Known(
        "PIP_EXTERNALLY_MANAGED",
        "This Python belongs to the distribution, which does not let pip install beside its packages.",
        "Use a virtual environment (RUN python3 -m venv /venv, ENV PATH=/venv/bin:$PATH), build FROM "
        "localhost/manyoyo/python, or pass --break-system-packages.",
        (_said({1}, r"^error: externally-managed-environment$", r"."),),
    ),
    Known(
        "PIP_VERSION_NOT_FOUND",
        "The package index has no {package}{version} that fits; it has {versions}.",
        "Take one of those; what is missing there may want another version of Python.",
        (
            _said(
                {1},
                _PIP_NONE + r"(?P<version>[^\s(]*)" + _PIP_SINCE + r"(?!none\))(?:.*?, )??"
                r"(?P<versions>(?:[^,)]+, ){0,4}[^,)]+)" + _PIP_THEN,
                _PIP,
            ),
        ),
    ),
    Known(
        "PIP_PACKAGE_NOT_FOUND",
        "The package index has no package {package}, or none that this Python and platform can use.",
        "Correct the name: what is imported may be installed under another (cv2 is opencv-python). A private package "
        "needs its index: --index-url.",
        (_said({1}, _PIP_NONE + r"\S*" + _PIP_SINCE + "none" + _PIP_THEN, _PIP),),
    ),
    Known(
        "NPM_IN_ROOT",
        "npm install ran in /, where it can't work.",
        "Write WORKDIR /app (any directory but /) before it.",
        (_said({1}, _NPM_ERROR + r" Tracker \"idealTree\" already exists", _NPM),),
    ),
    Known(
        "NPM_VERSION_NOT_FOUND",
        "The npm registry has no version {package}.",
        "`npm view NAME versions` shows those there are.",
        (_said({1}, _NPM_ERROR + r" notarget No matching version found for (?P<package>\S+)", _NPM),),
    ),
    Known(
        "NPM_PACKAGE_NOT_FOUND",
        "The npm registry has no package {package}.",
        "Correct the name in package.json or in the command; a private package needs its registry and login in .npmrc.",
        (
            _said(
                {1},
                _NPM_ERROR + r" 404\s+(?:The requested resource )?'(?P<package>@?[^@']+)(?:@[^']*)?' "
                r"(?:is not in|could not be found)",
                _NPM,
            ),
        ),
    ),
    Known(
        "NPM_LOCKFILE_MISSING",
        "npm ci found no package-lock.json.",
        "COPY package-lock.json beside package.json before this step, or use npm install.",
        (_said({1}, _NPM_ERROR + r" The `npm ci` command can only install with an existing package-lock", _NPM),),
    ),
    Known(
        "NPM_CONFLICT",
        "npm can't find versions that fit together: {package} wants another one of what it depends on.",
        "Change the versions in package.json so that they fit (the output names them); --legacy-peer-deps installs them "
        "all the same.",
        (_said({1}, _NPM_ERROR + rf" code ERESOLVE(?:{_NPM_SINCE} .*from (?P<package>\S+@\S+))?", _NPM),),
        default={"package": "a package"},
    ),
    # -- what a step does
    Known(
        "PERMISSION_DENIED",
        "The step's user may not write or change {file}.",
        "Do it as root: put the step before USER, or write USER root before and USER NAME after; or give the directory to "
        "that user first (COPY --chown, RUN chown).",
        (
            _said({100}, r"(?:^|\.\.\.)E: .*?(?P<file>/\S+) .*\(13: Permission denied\)", _APT),
            _said({1}, _TRACED + r"PermissionError: \[Errno 13\] Permission denied: '(?P<file>[^']+)'"),
            _said({1}, r"^ERROR: .*\[Errno 13\] Permission denied: '(?P<file>[^']+)'", r"^Check the perm|^Consider"),
            _said({1, 243}, _NPM_ERROR + rf" code EACCES{_NPM_SINCE} path (?P<file>\S+)", _NPM),
            _said(
                {1, 2},
                r"^[\w./+-]+:.*?['\u2018 ](?P<file>[^\s'\u2019:]+)['\u2019]?: "
                r"(?:Permission denied|Operation not permitted)$",
                r"^tar: ",
            ),
        ),
    ),
    Known(
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
    Known(
        "MODULE_NOT_FOUND",
        "The program wants the module {module}, which is not installed.",
        "Install it in an earlier step (pip install, npm install), and into the Python or node_modules that this step "
        "runs with.",
        (
            _said({1}, _TRACED + r"(?:ModuleNotFoundError|ImportError): No module named '?(?P<module>[\w.]+)"),
            _said({1}, r"^\S*python\S*: No module named (?P<module>\S+)"),
            _said({1}, r"Error(?: \[\w+\])?: Cannot find (?:module|package) '(?P<module>[^./'][^']*)'", _NODE),
        ),
    ),
)

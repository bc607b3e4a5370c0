"""What the programs of a RUN step say when they fail: the network, package managers, the rest."""

from manyoyo_mcp.engines.causes.signs import SHELL, TRACED, Known, Q, engine, said

# How tools begin the lines that come after the complaint that counts, and what they write. A stream of errors may run into
# one of output in the middle of a line, as apt's does.
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
_PYTHON = TRACED + r"\w*(?:Error|Exception|gaierror)\w*: .*"
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
_APT_WITHOUT_UPDATE = r"^(?!.*\bapt(?:-get|itude)?\b[^&|;]* update\b).*\bapt(?:-get|itude)?\b[^&|;]* install\b"

STEPS: tuple[Known, ...] = (
    # -- the network, before what package managers make of it
    Known(
        "PROXY_FAILED",
        "The proxy {host} could not be used.",
        "http_proxy and https_proxy come from ENV or ARG in the Dockerfile, from build_args, or from the server's own "
        "environment, which reaches builds: correct or unset them there. 127.0.0.1 is the step itself, not the host.",
        (
            said({1, 2, 5}, r"^curl: \(5\) Could not resolve proxy: (?P<host>\S+)", _CURL),
            said({1, 2, 7, 56, 97}, r"^curl: \(\d+\) (?:CONNECT tunnel|Received HTTP code \d+ from p|Proxy )", _CURL),
            said({1, 128}, _GIT + r"Could not resolve proxy: (?P<host>\S+)"),
            said({1, 128}, _GIT + r"(?:CONNECT tunnel|Received HTTP code \d+ from proxy|Proxy )"),
            said({1, 128}, _GIT + r"Failed to connect to (?!(?P=url) )(?P<host>\S+) port"),
            said({100}, _FETCH + rf"{_NOT_RESOLVED}'(?!(?P=url)')(?P<host>[\w.-]+)'", _APT),
            said({100}, _FETCH + r"Unable to connect to (?!(?P=url):)(?P<host>[\w.-]+):", _APT),
            said({100}, _FETCH + r"(?:Invalid response from proxy|.*Proxy Authentication Required)", _APT),
            said({1}, _PIP_GAVE_UP + r"'ProxyError\(", _PIP),
            said({1}, _PYTHON + r"(?:Tunnel connection failed: \d+|(?:Cannot|Unable to) connect to proxy)"),
            said({4}, _WGET + r"Connecting to (?!(?P=url)\b)(?P<host>[\w.-]+:\d+)\.\.\. failed: "),
            said({4}, _WGET + rf"(?:.*\n){{0,4}}?wget: unable to resolve .* {Q}(?!(?P=url){Q})(?P<host>[\w.-]+)"),
            said({1}, _NPM_ERROR + _NPM_REQUEST + _NODE_NO_NAME + r"(?!(?P=url)$)(?P<host>\S+)", _NPM),
            said({1}, _NPM_ERROR + r".*tunneling socket could not be established", _NPM),
            said({1}, r"proxyconnect tcp: dial tcp:? (?:lookup )?(?P<host>[\w.:-]+)"),
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
            said({1, 2, 6}, r"^curl: \(6\) Could not resolve host: (?P<host>\S+)", _CURL),
            said({1, 128}, _GIT + r"Could not resolve host: (?P<host>\S+)"),
            said({1, 128, 255}, r"^ssh: Could not resolve hostname (?P<host>[^\s:]+)", _SSH),
            said({1, 4}, rf"^wget: (?:unable to resolve host address|bad address) {Q}(?P<host>[\w.-]+)"),
            said({100}, _FETCH + rf"{_NOT_RESOLVED}'(?P<host>[^']+)'", _APT),
            said({1}, _PIP_GAVE_UP + rf"(?:Failed to resolve '(?P<host>[^']+)'|{_NO_NAME})", _PIP),
            said({1}, rf"^ERROR: .*HTTPS?ConnectionPool\(host='(?P<host>[^']+)'.*{_NO_NAME}", _PIP),
            said({1}, _PYTHON + rf"host='(?P<host>[^']+)'.*{_NO_NAME}"),
            said({1}, _PYTHON + _NO_NAME),
            said({1}, _NPM_ERROR + _NPM_REQUEST + _NODE_NO_NAME + r"(?P<host>\S+)", _NPM),
            said({1}, rf"\b{_NODE_NO_NAME}(?P<host>[\w.-]+)", _NODE),
            said({1}, r"dial tcp: lookup (?P<host>[\w.-]+)(?: on \S+)?: (?:no such host|.*timeout|server misb)"),
            said({101}, r"Could not resolve host: (?P<host>[\w.-]+)", _CARGO),
            said({1}, r"Curl error \(6\): .*\[Could not resolve host: (?P<host>[\w.-]+)\]", _DNF),
            said(range(1, 100), r"^[WE]\w+: .*\w+://(?P<host>[^/\s:]+).*: (?:temporary error|DNS.*error)", _APK),
            engine(r"Get \"\w+://(?P<host>[^/\":]++)[^\"]*\": dial tcp: lookup ", r"^ADD "),
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
            said({1, 2, 60}, r"^curl: \(60\) ", _CURL),
            said({5}, rf"^ERROR: (?:The certificate of|cannot verify) {Q}?(?P<host>[\w.-]+)", r"^ERROR: |^ |^To "),
            said({1, 128}, _GIT + _NO_TRUST),
            said({100}, _FETCH + r".*[Cc]ertificate verif(?:y|ication) failed", _APT),
            said({1}, r"confirming the ssl certificate: HTTPSConnectionPool\(host='(?P<host>[^']+)'", _PIP),
            said({1}, _PYTHON + r"CERTIFICATE_VERIFY_FAILED"),
            said({1}, _NPM_ERROR + rf" code {_NODE_NO_TRUST}{_NPM_SINCE} request to \w+://(?P<host>[^/:\s]+)", _NPM),
            said({1}, rf"code: '{_NODE_NO_TRUST}'", _NODE),
            said({1}, r"\"\w+://(?P<host>[^/\":]+)[^\"]*\": (?:tls: .*)?x509: "),
            engine(r"Get \"\w+://(?P<host>[^/\":]+)[^\"]*\": (?:tls: .*)?x509: ", r"^ADD "),
        ),
        default={"host": "the server"},
    ),
    Known(
        "CONNECTION_FAILED",
        "No connection to {host} could be made: nothing listens there, or nothing leads there.",
        "Check host and port. During a build localhost is the step itself: start what it talks to in the same RUN, or do "
        "this after the build, in nested_run or nested_exec.",
        (
            said({1, 2, 7, 28}, r"^curl: \((?:7|28)\) Failed to connect to (?P<host>\S+) port", _CURL),
            said({1, 2, 28}, r"^curl: \(28\) (?:Connection|Operation|Resolving) timed out", _CURL),
            said({1, 128}, _GIT + r"Failed to connect to (?P<host>\S+) port"),
            said({4}, rf"^Connecting to (?P<host>[\w.:-]+).*\.\.\. failed: {_NO_WAY}"),
            said({1}, rf"^wget: can't connect to remote host \((?P<host>[^)]+)\): {_NO_WAY}"),
            said({100}, _FETCH + r"Unable to connect to (?P<host>[\w.-]+)", _APT),
            said({1}, _PIP_GAVE_UP + _NO_WAY, _PIP),
            said({1}, _PYTHON + _NO_WAY),
            said({1}, _NPM_ERROR + rf" code {_NODE_NO_WAY}{_NPM_SINCE}{_NPM_REQUEST}", _NPM),
            said({1}, rf"\bconnect {_NODE_NO_WAY} (?P<host>[\w.:]+)", _NODE),
            said({1}, r"dial tcp (?P<host>\S+): connect: (?:connection refused|no route|network is unreachable)"),
            engine(r"Get \"\w+://(?P<host>[^/\"]+)[^\"]*\": dial tcp \S+: connect: ", r"^ADD "),
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
            said({1, 2, 22, 56}, r"^curl: \((?:22|56)\) The requested URL returned error: (?P<status>\d+)", _CURL),
            said({8}, r"^\S+ \S+ ERROR (?P<status>\d+): "),
            said({1}, r"^wget: server returned error: HTTP/\S+ (?P<status>\d+)"),
            said({1, 128}, _GIT + r"The requested URL returned error: (?P<status>\d+)"),
            said({1}, TRACED + r"HTTPError: (?:HTTP Error )?(?P<status>\d+)"),
            engine(r"failed to GET \S+ with status (?P<status>\d+)", r"^ADD "),
            engine(r"invalid response status (?P<status>\d+)", r"^ADD "),
        ),
    ),
    # -- package managers
    Known(
        "APT_REPOSITORY_UNUSABLE",
        "apt can't use the repository {repository}: it {why}.",
        "Check its address and suite in sources.list; a foreign one needs its key: signed-by=/etc/apt/keyrings/NAME.",
        (
            said(
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
        (said({100}, _E + r"Failed to fetch \w+://\S*/(?P<file>[^/\s]+)\s+404 ", _APT),),
    ),
    Known(
        "APT_VERSION_NOT_FOUND",
        "apt has no version {version} of {package}.",
        "`apt-cache policy {package}` shows those there are; mirrors keep the newest only, so leave the version out or "
        "take that one.",
        (
            said(
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
            said({100}, _E + r"Unable to locate package (?P<package>\S+)", _APT, _APT_WITHOUT_UPDATE),
            said({100}, _E + r"Package '(?P<package>\S+)' has no installation candidate", _APT, _APT_WITHOUT_UPDATE),
        ),
    ),
    Known(
        "APT_PACKAGE_NOT_FOUND",
        "apt knows no package {package}.",
        "Correct the name (`apt-cache search WORD` in this image finds it); names differ between releases, and some "
        "packages need another repository.",
        (
            said({100}, _E + r"Unable to locate package (?P<package>\S+)", _APT),
            said({100}, _E + r"Package '(?P<package>[^']+)' has no installation candidate", _APT),
            said({100}, _E + r"Couldn't find any package by (?:glob|regex) '(?P<package>[^']+)'", _APT),
        ),
    ),
    Known(
        "APK_PACKAGE_NOT_FOUND",
        "apk knows no package {package}.",
        "Correct the name (`apk search WORD`); names differ from Debian's: build-base is build-essential, py3-pip is "
        "python3-pip.",
        (
            said(
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
            said({1}, r"^(?:Error: Unable to find a match|No match for argument): (?P<package>\S+)", _DNF),
            said({1}, r"^No package (?P<package>\S+) available", _DNF),
        ),
    ),
    Known(
        "PIP_EXTERNALLY_MANAGED",
        "This Python belongs to the distribution, which does not let pip install beside its packages.",
        "Use a virtual environment (RUN python3 -m venv /venv, ENV PATH=/venv/bin:$PATH), build FROM "
        "localhost/manyoyo/python, or pass --break-system-packages.",
        (said({1}, r"^error: externally-managed-environment$", r"."),),
    ),
    Known(
        "PIP_VERSION_NOT_FOUND",
        "The package index has no {package}{version} that fits; it has {versions}.",
        "Take one of those; what is missing there may want another version of Python.",
        (
            said(
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
        (said({1}, _PIP_NONE + r"\S*" + _PIP_SINCE + "none" + _PIP_THEN, _PIP),),
    ),
    Known(
        "NPM_IN_ROOT",
        "npm install ran in /, where it can't work.",
        "Write WORKDIR /app (any directory but /) before it.",
        (said({1}, _NPM_ERROR + r" Tracker \"idealTree\" already exists", _NPM),),
    ),
    Known(
        "NPM_VERSION_NOT_FOUND",
        "The npm registry has no version {package}.",
        "`npm view NAME versions` shows those there are.",
        (said({1}, _NPM_ERROR + r" notarget No matching version found for (?P<package>\S+)", _NPM),),
    ),
    Known(
        "NPM_PACKAGE_NOT_FOUND",
        "The npm registry has no package {package}.",
        "Correct the name in package.json or in the command; a private package needs its registry and login in .npmrc.",
        (
            said(
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
        (said({1}, _NPM_ERROR + r" The `npm ci` command can only install with an existing package-lock", _NPM),),
    ),
    Known(
        "NPM_CONFLICT",
        "npm can't find versions that fit together: {package} wants another one of what it depends on.",
        "Change the versions in package.json so that they fit (the output names them); --legacy-peer-deps installs them "
        "all the same.",
        (said({1}, _NPM_ERROR + rf" code ERESOLVE(?:{_NPM_SINCE} .*from (?P<package>\S+@\S+))?", _NPM),),
        default={"package": "a package"},
    ),
    # -- what a step does
    Known(
        "SHELL_SYNTAX",
        "The shell can't read the command: {what}.",
        "Correct quotes and blocks (if … fi). A command that goes on over lines needs a backslash at each line's end; or "
        "put it into a script and COPY that.",
        (
            said(
                {2},
                SHELL + r"(?:-c: (?:line \d+: )?)?(?:eval: )?[Ss]yntax error:? (?P<what>.+)",
                r"^\S+: -c: (?:line|`)",
            ),
            said(
                {1, 2},
                r"^\S*sh: (?:-c: )?line \d+: (?P<what>unexpected EOF while looking for .+)",
                r"^\S+: -c: (?:line|`)",
            ),
        ),
    ),
    Known(
        "PERMISSION_DENIED",
        "The step's user may not write or change {file}.",
        "Do it as root: put the step before USER, or write USER root before and USER NAME after; or give the directory to "
        "that user first (COPY --chown, RUN chown).",
        (
            said({100}, r"(?:^|\.\.\.)E: .*?(?P<file>/\S+) .*\(13: Permission denied\)", _APT),
            said({1}, TRACED + r"PermissionError: \[Errno 13\] Permission denied: '(?P<file>[^']+)'"),
            said({1}, r"^ERROR: .*\[Errno 13\] Permission denied: '(?P<file>[^']+)'", r"^Check the perm|^Consider"),
            said({1, 243}, _NPM_ERROR + rf" code EACCES{_NPM_SINCE} path (?P<file>\S+)", _NPM),
            said(
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
            said({1}, r"^ERROR: Could not open requirements file: .*'(?P<file>[^']+)'", _PIP),
            said({2}, r"^\S*python\S*: can't open file '(?P<file>[^']+)': \[Errno 2\]"),
            said(range(1, 256), _NPM_ERROR + r" (?:enoent )?.*ENOENT.*open '(?P<file>[^']+)'", _NPM),
            said({1}, r"^Error: Cannot find module '(?P<file>/[^']+)'", _NODE),
            said({2, 127}, SHELL + r"(?:cannot open |can't open ')?(?P<file>[^\s:']+)'?: No such file"),
            said({1, 2}, SHELL + r"cd: (?:can't cd to )?(?P<file>[^\s:]+)(?:: No such file or directory)?$"),
            said({2}, r"^make: \*\*\* No targets specified and no (?P<file>makefile) found"),
        ),
    ),
    Known(
        "MODULE_NOT_FOUND",
        "The program wants the module {module}, which is not installed.",
        "Install it in an earlier step (pip install, npm install), and into the Python or node_modules that this step "
        "runs with.",
        (
            said({1}, TRACED + r"(?:ModuleNotFoundError|ImportError): No module named '?(?P<module>[\w.]+)"),
            said({1}, r"^\S*python\S*: No module named (?P<module>\S+)"),
            said({1}, r"Error(?: \[\w+\])?: Cannot find (?:module|package) '(?P<module>[^./'][^']*)'", _NODE),
        ),
    ),
)

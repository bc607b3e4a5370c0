"""The host's extra certificates and proxies, handed to nested runs and builds by the sandbox's OCI runtime."""

import os
from pathlib import Path

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument

_EXTRA = (
    ("/usr/local/share/ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),  # Debian, Ubuntu, Alpine
    ("/etc/pki/ca-trust/source/anchors", "/etc/pki/tls/certs/ca-bundle.crt"),  # Fedora, RHEL
    ("/etc/pki/trust/anchors", "/etc/ssl/ca-bundle.pem"),  # openSUSE
)
NESTED_CA = "/dev/manyoyo-ca.crt"
"""Where nested containers find the bundle: in /dev, which is no part of an image."""

# The variables by which programs are told of a bundle: OpenSSL (Python's ssl, curl), requests, pip, curl, git, Node.js, cargo, AWS.
_CA_VARIABLES = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS",
    "CARGO_HTTP_CAINFO", "AWS_CA_BUNDLE",
)  # fmt: skip
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


def files(settings: Settings) -> dict[str, bytes]:
    """The files (path in the outer container → content) that hand them on; none where the host has neither."""
    env: list[str] = []
    found: dict[str, bytes] = {}
    bundle = _bundle(settings)
    if bundle is not None:
        found["/etc/manyoyo/ca-certificates.crt"] = bundle
        env += [f"{name}={NESTED_CA}" for name in _CA_VARIABLES]
    proxies = [
        f"{name}={value}"
        for variable in _PROXY_VARIABLES
        if (value := os.environ.get(variable) or os.environ.get(variable.upper())) and "\n" not in value
        for name in (variable, variable.upper())
    ]
    if proxies:
        quoted = "".join(f"{line.split('=', 1)[0]}='{_quote(line.split('=', 1)[1])}'\n" for line in proxies)
        found["/etc/manyoyo/proxy-env"] = quoted.encode()
    if env or proxies:
        found["/etc/manyoyo/nested-env"] = "".join(f"{line}\n" for line in env + proxies).encode()
    return found


def _quote(value: str) -> str:
    return value.replace("'", "'\\''")


def _bundle(settings: Settings) -> bytes | None:
    if settings.ca_bundle == "off":
        return None
    if isinstance(settings.ca_bundle, Path):
        try:
            return settings.ca_bundle.expanduser().read_bytes()
        except OSError as error:
            raise InvalidArgument(f"ca_bundle can't be read: {error}", "Correct MANYOYO_CA_BUNDLE.") from error
    for extras, bundle in _EXTRA:
        if any(path.suffix in (".crt", ".pem") for path in _listdir(Path(extras))):
            try:
                return Path(bundle).read_bytes()
            except OSError:
                continue
    return None


def _listdir(path: Path) -> list[Path]:
    try:
        return list(path.rglob("*"))
    except OSError:
        return []

"""Checks of this machine and this user: what the server needs before it asks a host for anything."""

import grp
import ipaddress
import os
import pwd
import shutil
import stat
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from manyoyo_mcp.cli.doctor.check import Check, fail, ok, warn
from manyoyo_mcp.config import CONFIG_FILE, Settings, unknown_variables
from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.references import Reference
from manyoyo_mcp.sessions import trust

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def python(found: tuple[int, int, int] = sys.version_info[:3]) -> Check:
    words = ".".join(map(str, found))
    if found < (3, 11):
        return fail("python", words, "manyoyo-mcp needs Python 3.11 or newer: install it with one.")
    return ok("python", f"{words} ({sys.executable})")


def mcp() -> Check:
    try:
        found = version("mcp")
    except PackageNotFoundError:
        return fail("mcp", "not installed", "Install manyoyo-mcp anew: `pip install --force-reinstall manyoyo-mcp`.")
    return mcp_version(found)


def mcp_version(found: str) -> Check:
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in (*found.split("."), "0")[:2])
    if (major, minor) < (2, 3) or major > 2:
        return fail("mcp", f"SDK {found}; it takes 2.3 or a later 2.x", "pip install 'mcp>=2.3,<3'")
    return ok("mcp", f"SDK {found}")


def configuration(settings: Settings, environ: Mapping[str, str]) -> Check:
    """The settings themselves were read before; here is what was changed, and where, and what is none."""
    unknown = unknown_variables(environ)
    if unknown:
        meant = "; ".join(f"{name}: did you mean {close}?" for name, close in unknown.items() if close)
        return warn(
            "configuration",
            f"no setting has the name {', '.join(unknown)}",
            meant or f"Unset it. Settings are: {', '.join(sorted(Settings.model_fields))} (MANYOYO_… in capitals).",
        )
    changed = sorted(settings.model_fields_set)
    where = f" ({CONFIG_FILE})" if CONFIG_FILE.exists() else ""
    return ok("configuration", f"set: {', '.join(changed)}{where}" if changed else f"all defaults{where}")


def access(endpoint: str) -> Check | None:
    """Whether this user may use the host's socket; None where that is not the question (a network, no socket yet)."""
    path = Path(urlsplit(endpoint).path)
    if not endpoint.startswith("unix://") or not path.exists():
        return None
    user = pwd.getpwuid(os.getuid()).pw_name
    status = path.stat()
    group = grp.getgrgid(status.st_gid).gr_name
    if os.access(path, os.R_OK | os.W_OK):
        how = "root" if os.getuid() == 0 else f"group {group}" if status.st_gid in os.getgroups() else "its owner"
        return ok("access", f"{user} may use {path} (as {how})")
    if not status.st_mode & stat.S_IWGRP:
        return fail(
            "access", f"{user} may not use {path}; only its owner may", "Run an engine of your own, or set DOCKER_HOST."
        )
    return fail(
        "access",
        f"{user} may not use {path}, which is for the group {group}",
        f"sudo usermod -aG {group} {user}, then log out and in. (Whoever is in that group is as good as root.)",
    )


def runtime_directory(path: Path) -> Check:
    """Whether sandboxes' sockets can lie there."""
    existing = next(each for each in (path, *path.parents) if each.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return fail(
            "runtime directory", f"{existing} is not writable", "Set MANYOYO_RUNTIME_DIR to a directory of yours."
        )
    return ok("runtime directory", str(path))


def certificates(settings: Settings) -> Check:
    """Certificates beyond a distribution's own, which nested runs and builds are given."""
    try:
        bundle = trust.files(settings).get("/etc/manyoyo/ca-certificates.crt")
    except InvalidArgument as error:
        return fail("certificates", error.message, error.hint)
    if bundle is None:
        off = "switched off" if settings.ca_bundle == "off" else "none beyond the system's own"
        return ok("certificates", f"{off}; nothing to hand to nested containers")
    count = bundle.count(b"BEGIN CERTIFICATE")
    return ok("certificates", f"this machine has its own; a bundle of {count} is handed to nested runs and builds")


def secrets(settings: Settings, environ: Mapping[str, str]) -> Check | None:
    """Whether what is declared as a secret is there; commands are not run. None where nothing is."""
    if not settings.secrets:
        return None
    absent = sorted(name for name, reference in settings.secrets.items() if not _there(reference, environ))
    if absent:
        return warn(
            "secrets",
            f"not to be had: {', '.join(absent)}",
            "Name a variable, file or program that is there in MANYOYO_SECRETS; clients hand on few variables to servers that they start.",
        )
    return ok("secrets", f"declared: {', '.join(sorted(settings.secrets))} (commands were not run)")


def _there(reference: Reference, environ: Mapping[str, str]) -> bool:
    word = reference.words[0]
    match reference.kind:
        case "env":
            return word in environ
        case "file":
            return os.access(Path(word).expanduser(), os.R_OK)
        case "command":
            return shutil.which(word) is not None


def proxy(environ: Mapping[str, str]) -> Check:
    """A proxy at this machine's own localhost is none to a nested container."""
    found = {}
    for name in _PROXIES:
        value = environ.get(name) or environ.get(name.upper())
        if value:
            found[name] = urlsplit(value if "://" in value else f"http://{value}").hostname or ""
    local = [name for name, host in found.items() if _is_loopback(host)]
    if local:
        return warn(
            "proxy",
            f"{', '.join(local)} names this machine's own localhost, which nested containers can't reach",
            "Let the proxy listen on the engine's bridge too (`docker network inspect bridge`), and name that address.",
        )
    if not found:
        return ok("proxy", "none set")
    return ok("proxy", f"{', '.join(sorted(found))}: handed to nested runs and builds")


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

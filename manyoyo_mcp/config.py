"""Every setting: flags over `MANYOYO_*` environment variables over the configuration file over the defaults here."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import PlatformDirs
from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from manyoyo_mcp import references
from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.references import Reference
from manyoyo_mcp.values import parse_memory

DIRS = PlatformDirs("manyoyo-mcp", appauthor=False)
ENGINE_SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "engine"
"""Brings up an engine; there in a checkout, not in an installed package."""
CONFIG_FILE = Path(os.environ.get("MANYOYO_CONFIG", DIRS.user_config_path / "config.toml"))


def _runtime_dir() -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # no XDG_RUNTIME_DIR (root, containers): a directory of this user's in /tmp does
        path = Path(DIRS.user_runtime_path)
    for each in (path.parent, path) if hasattr(os, "getuid") else ():
        with contextlib.suppress(FileNotFoundError):
            if each.lstat().st_uid not in (os.getuid(), 0):  # whoever owns it could put files into sandboxes
                raise InvalidArgument(
                    f"{each} belongs to another user.", "Set MANYOYO_RUNTIME_DIR to a directory of yours."
                )
    return path


EngineName = Literal["podman", "docker"]
ISOLATIONS = r"^(privileged|hardened|userns|rootless|gvisor|common|sock|runtime:[\w.-]+)$"
Isolation = Annotated[str, Field(pattern=ISOLATIONS)]
NetworkMode = Literal["none", "allowlist", "log", "open"]
ApprovalKind = Literal["endpoint", "isolation", "network", "port", "sock"]
ApprovalHow = Literal["ask", "allow", "deny"]
_APPROVALS: dict[ApprovalKind, ApprovalHow] = {
    "endpoint": "allow",
    "isolation": "ask",
    "network": "ask",
    "port": "ask",
    "sock": "ask",
}
"""How what reaches outside is decided on where the settings say nothing: what they allow is not asked for, what they refuse is."""


def _memory(value: str | int) -> int:
    try:
        return parse_memory(value)
    except InvalidArgument as error:  # as pydantic wants it, which then names the setting
        raise ValueError(f"{str(value)[:40]!r} is no size from 6m. {error.hint.rstrip('.')}") from error


Memory = Annotated[int, BeforeValidator(_memory)]


class Settings(BaseSettings):
    """The settings of one server process. Memory is written as docker writes it (`2g`) and kept in bytes."""

    model_config = SettingsConfigDict(
        env_prefix="MANYOYO_", toml_file=CONFIG_FILE, extra="forbid", hide_input_in_errors=True
    )

    docker_host: str | None = Field(
        None, description="The host engine's endpoint; default: DOCKER_HOST, else the current docker context."
    )
    host_runtime: str | None = Field(
        None,
        description="OCI runtime of the outer containers, with the rights of their tier. It is no wall: for that set MANYOYO_ISOLATION=runtime:NAME, which names its own.",
    )
    engine: EngineName = Field(
        "podman",
        description="The nested engine where start_sandbox names none; without this setting the isolation's own, where it can't have podman.",
    )
    isolation: Isolation = Field(
        "privileged",
        description="The wall around a sandbox where start_sandbox names none.",
    )
    sock: bool = Field(
        False,
        description="Offer isolation sock, runs and builds by the host's own engine, once the person has said yes in each session.",
    )
    host_images: Annotated[list[str], NoDecode] = Field(
        default_factory=lambda: ["localhost/manyoyo/*"],
        description="With isolation common or sock: which images of the host's engine may be run, and pulled to it, as NAME:TAG with *, with commas between; default: localhost/manyoyo/*.",
    )
    network_policy: NetworkMode = Field(
        "open", description="What sandboxes may reach at most; start_sandbox can ask for less."
    )
    network_allow: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="With allowlist the most that sandboxes may reach; else what of the private addresses is open to them. "
        "Names, *.names, addresses and CIDRs, with :PORT for one port, with commas between.",
    )
    transport: Literal["auto", "socket", "relay"] = Field("auto", description="How the nested engine is reached.")
    outer_image: str | None = Field(None, description="Image of the outer container; default: built by this version.")

    sandbox_cpus: float | None = Field(None, gt=0, description="Default: half the host's, at most 4.")
    sandbox_memory: Memory | None = Field(None, description="Default: half the host's, at most 8 GiB.")
    sandbox_pids: int = Field(4096, ge=64, description="Processes and threads in a whole sandbox.")
    max_sandbox_cpus: float | None = Field(None, gt=0, description="Most that may be asked for; default: the host's.")
    max_sandbox_memory: Memory | None = Field(None, description="Most that may be asked for; default: the host's.")
    storage: Literal["auto", "pool", "plain"] = Field(
        "auto", description="Where sandboxes keep what they hold; auto: in a pool where the host can have one."
    )
    pool_size: Memory | None = Field(None, description="Of a new pool; default: four fifths of the host's free disk.")
    sandbox_disk: Memory = Field(
        20 << 30, description="Disk of a sandbox that asks for none, where disks can be capped."
    )
    host_sandboxes: int | None = Field(None, ge=1, description="All running on the host; default: by its memory.")
    host_cpus: float | None = Field(None, gt=0, description="All sandboxes' together; default: 64 times the host's.")
    host_memory: Memory | None = Field(None, description="All sandboxes' together; default: 16 times the host's.")
    host_disk: Memory | None = Field(
        None, description="All sandboxes' and checkpoints' together; default: 64 times the pool's size."
    )
    owner_sandboxes: int | None = Field(None, ge=1, description="One user's; default: the host's.")
    owner_cpus: float | None = Field(None, gt=0, description="One user's sandboxes together; default: the host's.")
    owner_memory: Memory | None = Field(None, description="One user's sandboxes together; default: the host's.")
    owner_disk: Memory | None = Field(
        None, description="One user's sandboxes and checkpoints together; default: the host's."
    )
    warm: int = Field(0, ge=0, le=20, description="Sandboxes kept ready, with the default engine and caps.")
    idle_s: int = Field(
        3600, ge=1, description="Seconds after which a sandbox ends that nobody and nothing in it uses."
    )
    max_age_s: int | None = Field(
        None, ge=1, description="Seconds after which a sandbox ends in any case; default: never."
    )
    lease_s: int = Field(120, ge=2, description="Seconds after which a sandbox ends itself that no server renews.")
    nested_cpus: float | None = Field(None, gt=0, description="A run or build; default: the sandbox's.")
    nested_memory: Memory | None = Field(None, description="A run or build; default: half the sandbox's.")
    nested_pids: int = Field(1024, ge=16, description="Processes and threads in a run or build.")
    allow_unenforced_caps: bool = Field(False, description="Start sandboxes on a host where the cap probe fails.")

    roots: Annotated[list[Path], NoDecode] = Field(
        default_factory=list,
        description="Directories under which context_dir may lie, as in PATH; default: the server's working directory; none where that is / or the home directory.",
    )
    context_max_bytes: Memory = Field(2 << 30, description="Largest build context.")
    ca_bundle: Literal["auto", "off"] | Path = Field(
        "auto", description="Certificates handed to nested runs and builds; auto: the host's extra ones, if any."
    )

    secrets: Annotated[dict[str, Reference], NoDecode] = Field(
        default_factory=dict,
        description="Secrets that an agent may name: NAME=env:VARIABLE, file:/PATH or command:PROGRAM ARGUMENTS, with commas between.",
    )
    registry_logins: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Registries from which sandboxes pull with this user's own login (`docker login`), host[:port], with commas between.",
    )
    mirrors: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="Mirrors to pull through, REGISTRY=URL, with commas between."
    )
    insecure_registries: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Registries without TLS that sandboxes may use, host[:port], with commas between.",
    )
    http_tokens: Path = Field(
        default_factory=lambda: CONFIG_FILE.with_name("tokens.json"),
        description="Bearer tokens of `serve --http`, hashed; where the file is, they are asked for. Default: tokens.json beside config.toml.",
    )
    http_hosts: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Host headers that are served, NAME, NAME:PORT or NAME:*, with commas between.",
    )
    http_origins: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="Origins of web pages that may call, with commas between; default: none."
    )
    http_certificate: Path | None = Field(None, description="TLS certificate chain (PEM) of `serve --http`.")
    http_key: Path | None = Field(None, description="Its key (PEM).")
    http_tls: Literal["require", "off"] = Field(
        "require", description="off: another address than loopback without TLS, behind a proxy that ends it."
    )
    http_rate: float = Field(100, gt=0, description="Tool calls a second of one principal; twice that at once.")
    http_calls: int = Field(64, ge=1, description="Tool calls of one principal that go on at a time.")
    http_connections: int = Field(2000, ge=8, description="Connections in all; a quarter of them for one principal.")
    http_principals: int = Field(100, ge=1, description="Principals that have something going on at a time.")
    http_body_bytes: Memory = Field(8 << 20, description="Largest request.")
    oauth_issuer: str | None = Field(
        None, description="The authorization server whose access tokens `serve --http` takes: its issuer."
    )
    oauth_resource: str | None = Field(
        None, description="This server's own URL as clients write it, for which the tokens must be."
    )
    oauth_audience: str | None = Field(None, description="What their aud must have; default: MANYOYO_OAUTH_RESOURCE.")
    oauth_jwks: str | None = Field(
        None, description="Where the keys are that they are signed with; default: where the issuer's metadata say."
    )
    oauth_introspection: str | None = Field(
        None, description="Where it is asked what a token is worth, in place of keys (RFC 7662)."
    )
    oauth_client: str | None = Field(None, description="Who asks there: a client of the authorization server.")
    oauth_client_secret: Path | None = Field(None, description="File with that client's secret.")
    oauth_scope_prefix: str = Field("", description="What the scopes are called there before read, run, build, admin.")
    wait_s: float = Field(40, gt=0, description="Seconds after which a build or run becomes a job.")
    result_tokens: int = Field(2000, ge=200, description="Longest result, in tokens.")
    log_max_bytes: Memory = Field(256 << 20, description="Longest log kept on disk for one job.")
    approve: Annotated[dict[ApprovalKind, ApprovalHow], NoDecode] = Field(
        default_factory=dict,
        description="Who decides on what reaches further than is configured: KIND=ask, allow or deny, with commas between.",
    )
    audit: Literal["required", "optional", "off"] = Field(
        "required", description="The audit log; required: what can't be put on record is refused."
    )
    audit_max_bytes: Memory = Field(16 << 20, description="Largest file of the audit log; then a new one is begun.")
    audit_files: int = Field(8, ge=1, le=9999, description="Older files of the audit log that are kept.")
    state_dir: Path = Field(
        default_factory=lambda: DIRS.user_state_path,
        description="Logs, the audit log, and the probe's memory; default: the user's, ~/.local/state/manyoyo-mcp.",
    )
    runtime_dir: Path = Field(
        default_factory=lambda: _runtime_dir(),
        description="Sockets of the sandboxes' engines; default: manyoyo-mcp in the user's runtime directory, /run/user/ID.",
    )

    @property
    def lock_dir(self) -> Path:
        """Where the locks of this owner's named things lie."""
        return self.runtime_dir / "locks"

    def approval(self, kind: ApprovalKind) -> ApprovalHow:
        """Who decides on such a thing."""
        return self.approve.get(kind, _APPROVALS[kind])

    @field_validator("approve", mode="before")
    @classmethod
    def _paired(cls, given: Any) -> Any:
        if isinstance(given, str):
            parts = [each.partition("=") for each in given.split(",") if each.strip()]
            return {kind.strip(): how.strip() for kind, _, how in parts}
        return given

    @field_validator("secrets", mode="before")
    @classmethod
    def _referred(cls, given: Any) -> Any:
        return references.parse(given)

    @field_validator("roots", mode="before")
    @classmethod
    def _listed(cls, roots: Any) -> Any:
        if isinstance(roots, str):
            return json.loads(roots) if roots.startswith("[") else [each for each in roots.split(os.pathsep) if each]
        return roots

    @field_validator(
        "host_images",
        "registry_logins",
        "mirrors",
        "insecure_registries",
        "network_allow",
        "http_hosts",
        "http_origins",
        mode="before",
    )
    @classmethod
    def _separated(cls, given: Any) -> Any:
        if isinstance(given, str):
            return [each.strip() for each in given.split(",") if each.strip()]
        return given

    @field_validator("roots")
    @classmethod
    def _absolute(cls, roots: list[Path]) -> list[Path]:
        return [root.expanduser().resolve() for root in roots]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


_OTHER_VARIABLES = frozenset(
    {
        "CONFIG", "TRACEBACK", "CACHE", "ENGINE_DIR", "IMAGE_TARS", "QEMU_ACCEL", "APT_UPDATED", "BENCH_NOTES", "TEST_ALONE", "TEST_BESIDE", "TEST_LANE",
        "TEST_ENGINE_DIR", "TEST_SLACK", "ESCAPE", "ESCAPE_REPORT", "ESCAPE_ENGINE_DIR", "FUZZ_ENGINE_DIR", "MUTATION_ENGINE_DIR",
    }
)  # fmt: skip
"""MANYOYO_… that are no settings, yet read: by the command line, scripts, tests."""


def unknown_variables(names: Iterable[str]) -> dict[str, str]:
    """The MANYOYO_… among `names` that nobody reads, each with the one that may be meant, or ""."""
    known = {field.upper() for field in Settings.model_fields} | _OTHER_VARIABLES
    words = {name: name.upper().removeprefix("MANYOYO_") for name in names if name.upper().startswith("MANYOYO_")}
    close = {name: get_close_matches(word, known, 1) for name, word in words.items() if word not in known}
    return {name: f"MANYOYO_{found[0]}" if found else "" for name, found in close.items()}

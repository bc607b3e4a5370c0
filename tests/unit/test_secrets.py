"""Secrets: how they are declared, where they are had from, and what of them goes to an engine."""

import io
import json
import os
import sys
import tarfile
import tomllib
from pathlib import Path

import anyio
import pytest
from pydantic import ValidationError

from manyoyo_mcp import references
from manyoyo_mcp.audit.redacted import arguments
from manyoyo_mcp.config import Settings
from manyoyo_mcp.engines.base import Secret
from manyoyo_mcp.engines.giving import for_run, placeholders
from manyoyo_mcp.errors import InvalidArgument, NotFound, NotSupported, PolicyRefused, RequestError
from manyoyo_mcp.policy.base import Limits, Request
from manyoyo_mcp.policy.rules import decide
from manyoyo_mcp.references import Reference, parse
from manyoyo_mcp.sessions.vault import AT_ONCE, LARGEST, Vault
from manyoyo_mcp.tools.build import BuildInput
from manyoyo_mcp.tools.run import ExecInput, RunInput
from manyoyo_mcp.values import Caps

VALUE = "hunter2-canary"


def test_as_one_line() -> None:
    assert parse("npm_token=env:NPM_TOKEN, db=file:/run/db,reg=command:pass show x,") == {
        "npm_token": Reference("env", ("NPM_TOKEN",)),
        "db": Reference("file", ("/run/db",)),
        "reg": Reference("command", ("pass", "show", "x")),
    }
    assert parse("") == {}


def test_commas_and_quotes_are_a_commands_own() -> None:
    found = parse("a=command:sh -c 'echo x,y=2' --k=v,b=1, b=file:/a,b c")
    assert found["a"].words == ("sh", "-c", "echo x,y=2", "--k=v,b=1")
    assert found["b"].words == ("/a,b c",)


@pytest.mark.parametrize(
    "table", ['{"a": "env:A", "b": ["pass", "show", "x y"]}', {"a": "env:A", "b": ["pass", "show", "x y"]}]
)
def test_as_json_and_as_a_table(table: object) -> None:
    assert parse(table) == {"a": Reference("env", ("A",)), "b": Reference("command", ("pass", "show", "x y"))}


def test_in_the_settings_file() -> None:
    given = tomllib.loads('[secrets]\nnpm_token = "env:NPM_TOKEN"\nreg = ["pass", "show", "x"]\n')
    assert Settings(**given).secrets["reg"].kind == "command"


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (f"a={VALUE}", "env:VARIABLE, file:/PATH or command:"),
        (f"a=vault:{VALUE}", "env:VARIABLE"),
        (VALUE, "no NAME="),
        (f"a=file:/x,b={VALUE}", "what follows a is no reference"),
        (f"a=env:{VALUE}", "name of a variable"),
        (f"a=file:{VALUE}", "absolute path"),
        (f"a=command:x '{VALUE}", "no closing quotation"),
        ("a=env:", "no reference"),
        ("../a=env:A", "letters, digits"),
        ("a=env:A,a=env:B", "declared twice"),
        (f'{{"a": "{VALUE}"', "it begins as JSON"),
        (f'{{"a": "env:A", "a": "{VALUE}"}}', "declared twice"),
        (f'{{"a": {{"b": "{VALUE}"}}}}', "a is no reference"),
        (f'{{"a": ["{VALUE}", 1]}}', "a is no reference"),
    ],
)
def test_what_is_wrong_is_said_without_the_value(written: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYOYO_SECRETS", written)
    with pytest.raises(ValidationError, match=says) as raised:
        Settings()
    assert VALUE not in str(raised.value)


def test_each_principal_has_its_own() -> None:
    declared = parse("mine=env:A,alice/hers=env:B,bob/his=env:C")
    assert list(references.of(declared, "")) == ["mine"]
    assert references.of(declared, "alice") == {"hers": Reference("env", ("B",))}
    assert references.of(declared, "carol") == {}


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vault:
    monkeypatch.setenv("HA_TOKEN", VALUE)
    monkeypatch.setenv("HA_SHORT", " abcde\n")
    (tmp_path / "key").write_text(f"-----BEGIN\n{VALUE}-in-a-file\n")
    (tmp_path / "large").write_bytes(b"x" * (LARGEST + 1))
    (tmp_path / "empty").touch()
    print_it = f"import sys; print({VALUE!r} + '-printed\\n'); print('about {VALUE}', file=sys.stderr)"
    declared = {
        "env": "env:HA_TOKEN", "unset": "env:HA_NOT_THERE", "short": "env:HA_SHORT", "file": f"file:{tmp_path}/key",
        "missing": f"file:{tmp_path}/nothing", "directory": f"file:{tmp_path}", "large": f"file:{tmp_path}/large",
        "empty": f"file:{tmp_path}/empty", "command": [sys.executable, "-c", print_it],
        "fails": [sys.executable, "-c", f"print({VALUE!r}); raise SystemExit(3)"], "absent": "command:/no/such/program",
        "slow": ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"], "endless": ["yes", VALUE],
    }  # fmt: skip
    return Vault(parse(declared), patience=1.0)


@pytest.mark.anyio
async def test_nobody_has_a_value_that_is_not_redacted_yet(tmp_path: Path) -> None:
    """However long it takes to look for it, and whoever else asks meanwhile."""
    (tmp_path / "long").write_text("\n".join(f"line-{number:06}-of-a-file" for number in range(1500)))
    (tmp_path / "short").write_text(VALUE)
    vault = Vault(parse(f"long=file:{tmp_path}/long,short=file:{tmp_path}/short"))

    async def one(name: str, seen: str) -> None:
        await vault.values([name])
        assert seen not in vault.redactor.text(f"it is {seen}.")

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(one, "long", "line-000700-of-a-file")
            group.start_soon(one, "short", VALUE)
    assert vault.redactor.text(f"{VALUE} line-001499-of-a-file") == "[secret short] [secret long]"


@pytest.mark.anyio
async def test_where_they_are_had_from(vault: Vault) -> None:
    assert await vault.values(["env", "file", "command"]) == {
        "env": VALUE.encode(),
        "file": f"-----BEGIN\n{VALUE}-in-a-file\n".encode(),
        "command": f"{VALUE}-printed".encode(),
    }
    assert (
        vault.redactor.text(f"{VALUE} {VALUE}-printed {VALUE}-in-a-file")
        == "[secret env] [secret command] [secret file]"
    )


@pytest.mark.anyio
async def test_each_time_anew(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    await vault.values(["env"])
    monkeypatch.setenv("HA_TOKEN", "another-value")
    assert (await vault.values(["env"]))["env"] == b"another-value"
    assert vault.redactor.text(f"{VALUE} another-value") == "[secret env] [secret env]"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("unset", "HA_NOT_THERE"), ("short", "fewer than 6"), ("missing", "not there"), ("directory", "no file"), ("large", "64 KiB"),
        ("empty", "fewer than 6"), ("fails", "exit code 3"), ("absent", "can't be started"), ("slow", "not ended after 1 s"),
        ("endless", "64 KiB"),
    ],
)  # fmt: skip
async def test_what_can_not_be_had(vault: Vault, name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=says) as raised:
        await vault.values([name])
    assert raised.value.instance_code == "SECRET_UNAVAILABLE" and VALUE not in str(raised.value)
    if name == "slow":
        with anyio.fail_after(5):
            while Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists():
                await anyio.sleep(0.02)


@pytest.mark.anyio
async def test_so_many_commands_at_a_time(tmp_path: Path) -> None:
    script = f"touch {tmp_path}/$$; ls {tmp_path} | wc -l; sleep 0.3; rm {tmp_path}/$$; echo {VALUE}"
    vault = Vault(parse({f"s{number}": ["sh", "-c", script] for number in range(3 * AT_ONCE)}))
    seen: list[int] = []

    async def one(name: str) -> None:
        seen.append(int((await vault.values([name]))[name].split()[0]))

    async with anyio.create_task_group() as group:
        for name in vault.names:
            group.start_soon(one, name)
    assert len(seen) == 3 * AT_ONCE and max(seen) <= AT_ONCE


@pytest.mark.anyio
async def test_names_that_nobody_declared(vault: Vault) -> None:
    with pytest.raises(NotFound) as raised:
        await vault.values(["env", VALUE])
    assert VALUE not in str(raised.value)
    assert (
        raised.value.instance_code == "SECRET_NOT_FOUND"
        and "command, directory, empty, endless, env" in raised.value.hint
    )
    with pytest.raises(NotFound, match="MANYOYO_SECRETS"):
        Vault({}).check(["x"])


def test_what_a_container_is_given() -> None:
    given = [
        Secret("a", path='/x/"y'),
        Secret("b", variable="B"),
        Secret("c", path="/c"),
    ]
    values = {"a": b"value-a\n", "b": b'va"lue\n\n', "c": b"\xff"}
    with tarfile.open(fileobj=io.BytesIO(for_run("f" * 64, given, values))) as archive:
        files = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
    assert files["files/0"] == b"value-a\n" and files["files/2"] == b"\xff" and len(files) == 4
    assert json.loads(b"[" + files["env.json"] + b"]") == ['B=va"lue\n']
    mounts = json.loads(b"[" + files["mounts.json"] + b"]")
    assert [each["destination"] for each in mounts] == ['/x/"y', "/c"]
    assert mounts[1]["source"] == f"/run/manyoyo-secrets/{'f' * 64}/files/2" and "ro" in mounts[1]["options"]
    with pytest.raises(NotSupported, match="no text"):
        for_run("f" * 64, [Secret("c", variable="C")], values)


def test_what_a_builder_is_told() -> None:
    parameter, beginning = placeholders("0123456789abcdef", ["a", "b.c"])
    with tarfile.open(fileobj=io.BytesIO(beginning + bytes(1024))) as archive:
        files = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
    assert list(files.values()) == [b"manyoyo-secret:a", b"manyoyo-secret:b.c"]
    assert [f"id={name},src={file}" for name, file in zip(["a", "b.c"], files, strict=True)] == json.loads(parameter)
    assert _build(parameter, ours=True)


LIMITS = Limits(default=Caps(1, 512 << 20, 100), largest=Caps(2, 1 << 30, 200))


def _build(secrets: str, *, ours: bool, path: str = "/build") -> bool:
    query = {"secrets": secrets, "cgroupparent": "/manyoyo-builds/0123456789abcdef"}
    decide(Request("POST", path, query, ours=ours), LIMITS)
    return True


@pytest.mark.parametrize("path", ["/build", "/libpod/build"])
@pytest.mark.parametrize(
    "secrets",
    [
        '["id=a,src=/etc/shadow"]', '["id=a,src=../../etc/shadow"]', '["id=a,env=HOME"]', '["id=a,type=env,src=HOME"]', '["id=a"]',
        '["id=a,src=.manyoyo-secret-0123456789abcdef-0,src=x"]', '["id=a,src=.manyoyo-secret-0123456789abcdef-0", 1]', '"x"', "x",
    ],
)  # fmt: skip
def test_a_builder_reads_no_other_file(secrets: str, path: str) -> None:
    for ours in (True, False):
        with pytest.raises(PolicyRefused, match="secrets"):
            _build(secrets, ours=ours, path=path)


def test_other_clients_bring_none() -> None:
    with pytest.raises(PolicyRefused, match="secrets"):
        _build('["id=a,src=.manyoyo-secret-0123456789abcdef-0"]', ours=False)


@pytest.mark.parametrize("place", ["", "/run/secrets/x", "/root/.npmrc", "NPM_TOKEN", "_x1"])
def test_places(place: str) -> None:
    assert RunInput(image="x", secrets={"a": place}).secrets == {"a": place}


@pytest.mark.parametrize(
    "place",
    [
        "x/y",
        "/",
        "/x/",
        "/a/../b",
        "/proc/1/x",
        "//sys/x",
        "/./proc/x",
        "/.",
        "/dev/shm/x",
        "9x",
        f"{VALUE}",
        "/x\ny",
        "/x\0",
    ],
)
def test_no_places(place: str) -> None:
    with pytest.raises(ValidationError) as raised:
        RunInput(image="x", secrets={"a": place})
    words = raised.value.errors(include_url=False, include_input=False)[0]["msg"]
    assert "/run/secrets/NAME" in words and VALUE not in words


def test_one_place_for_one_secret() -> None:
    with pytest.raises(ValidationError, match="one place"):
        RunInput(image="x", secrets={"a": "X", "b": "X"})
    assert BuildInput(secrets=["a"]).secrets == ["a"]


def test_an_exec_has_variables_alone() -> None:
    assert ExecInput(container="x", command=["x"], secrets={"a": "A"}).secrets == {"a": "A"}
    for place in ("", "/x", "a b"):
        with pytest.raises(ValidationError, match="given no files"):
            ExecInput(container="x", command=["x"], secrets={"a": place})


def test_on_record_are_names_and_places() -> None:
    kept, secrets = arguments(
        {
            "secrets": {"npm": "NPM_TOKEN", "key": "/k", "db": ""},
            "command": ["echo", "NPM_TOKEN"],
            "env": {"A": "value-a"},
        }
    )
    assert kept["secrets"] == {"npm": "(a variable)", "key": "/k", "db": ""} and kept["command"] == [
        "echo",
        "NPM_TOKEN",
    ]
    assert secrets == ["value-a"]


def test_a_secret_of_a_setting_is_no_value() -> None:
    os.environ.pop("MANYOYO_SECRETS", None)
    with pytest.raises(InvalidArgument, match="secrets"):
        from manyoyo_mcp.cli.connect import load_settings

        load_settings(secrets=f"a={VALUE}")

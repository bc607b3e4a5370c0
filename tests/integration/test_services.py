"""Services through a client: what is told of one that runs, of one that ended, and how others reach it."""

import anyio
import pytest

from tests.integration.test_bad_input import Caller, caller
from tests.support import BUSYBOX

__all__ = ["caller"]

pytestmark = pytest.mark.anyio


async def _remove(caller: Caller, container: str) -> None:
    await caller.ok("nested_stop", container=container, action="remove")


async def test_a_service_that_ends_at_once_is_no_success(caller: Caller) -> None:
    ended = await caller.run("sh", "-c", "echo no configuration; exit 3", detach=True, name="hasty")
    assert (ended["state"], ended["reason"], ended["exit_code"]) == ("finished", "EXIT_NONZERO", 3), ended
    assert "no configuration" in ended["output"] and "nested_stop" in ended["next"]
    await _remove(caller, "hasty")


async def test_a_service_without_memory_says_so_wherever_one_looks(caller: Caller) -> None:
    """A database that takes its time to grow: nothing is wrong when it starts."""
    script = "echo serving; sleep 1; exec tail /dev/zero"
    started = await caller.run("sh", "-c", script, detach=True, name="greedy", memory="32m")
    assert started["state"] == "started", started
    with anyio.fail_after(20):
        while "reason" not in (logs := await caller.ok("nested_logs", container="greedy")):
            await anyio.sleep(0.2)
    assert (logs["reason"], logs["exit_code"]) == ("OOM_KILLED", 137)
    assert "32 MiB" in logs["explanation"] and "detach=true" in logs["hint"] and "serving" in logs["output"]
    row = next(row for row in (await caller.ok("nested_list"))["containers"] if row["name"] == "greedy")
    assert row["reason"] == "OOM_KILLED" and "32 MiB" in row["explanation"]
    error = await caller.refused("nested_exec", container="greedy", command=["true"])
    assert error["code"] == "CONTAINER_NOT_RUNNING" and "nested_logs" in error["hint"]
    await _remove(caller, "greedy")


async def test_a_service_is_reached_at_its_address(caller: Caller) -> None:
    serve = "while :; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\nhello' | nc -l -p 8000 >/dev/null; done"
    started = await caller.run("sh", "-c", serve, detach=True, name="web")
    row = next(row for row in (await caller.ok("nested_list"))["containers"] if row["name"] == "web")
    assert row["address"] == started["address"]
    asked = await caller.run(
        "sh", "-c", f"for i in 1 2 3 4 5; do wget -qO- http://{started['address']}:8000/ && exit; sleep 0.3; done"
    )
    assert "hello" in asked["output"], asked
    await _remove(caller, "web")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["docker", "compose", "up"], "nested_build"),
        (["no-such-program", "-x"], "install it"),
        (["echo hi"], '["ls", "-l"]'),
        (["/etc/passwd"], "x permission"),
    ],
)
async def test_a_command_that_can_not_be_started_says_what_it_takes(
    caller: Caller, command: list[str], says: str
) -> None:
    result = await caller.run(*command)
    assert result["reason"] == "COMMAND_NOT_FOUND" and says in result["hint"], result
    assert result["exit_code"] == (126 if command == ["/etc/passwd"] else 127)
    await caller.run("sleep", "600", detach=True, name="here")
    inside = await caller.ok("nested_exec", container="here", command=command)
    assert inside["reason"] == "COMMAND_NOT_FOUND" and says in inside["hint"], inside
    await _remove(caller, "here")


async def test_images_of_no_registry_are_not_looked_for_in_one(caller: Caller) -> None:
    error = await caller.refused("nested_run", image="localhost/manyoyo/nosuch:1", command=["true"])
    assert (
        error["code"] == "IMAGE_NOT_FOUND" and "image base NAME" in error["hint"] and "refused" not in error["message"]
    )


async def test_a_name_that_is_nearly_one_is_told(caller: Caller) -> None:
    error = await caller.refused("nested_run", image=BUSYBOX.replace("busybox", "busibox"), command=["true"])
    assert f"Did you mean {BUSYBOX.removesuffix(':latest')}?" in error["hint"], error


async def test_jobs_say_why_they_ended(caller: Caller) -> None:
    failed = await caller.run("false")
    rows = {row["job_id"]: row for row in (await caller.ok("job_status"))["jobs"]}
    assert rows[failed["job_id"]]["reason"] == "EXIT_NONZERO"


async def test_a_sandbox_that_is_none_is_named_by_cleanup(caller: Caller) -> None:
    cleaned = await caller.ok("cleanup", sandbox_id="sb-0000")
    assert cleaned["removed"] == [] and "'sb-0000'" in cleaned["note"]


async def test_what_a_virtual_environment_does_to_a_context(caller: Caller) -> None:
    project = caller.directory / "with-venv"
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (project / ".venv" / "bin" / "python").symlink_to("/usr/bin/python3")
    error = await caller.refused("nested_build", context_dir="with-venv")
    assert error["code"] == "INVALID_ARGUMENT" and "no Dockerfile" in error["message"]
    (project / "Dockerfile").write_text(f"FROM {BUSYBOX}\nCOPY . /app\n")
    error = await caller.refused("nested_build", context_dir="with-venv")
    assert error["code"] == "CONTEXT_REFUSED" and "add .venv to .dockerignore" in error["hint"]
    (project / ".dockerignore").write_text(".venv\n")
    assert (await caller.ok("nested_build", context_dir="with-venv"))["reason"] == "OK"
    error = await caller.refused("nested_build", context_dir="with-venv", dockerfile=f"FROM {BUSYBOX}\nRUN true\n")
    assert "files=" in error["hint"]


@pytest.mark.parametrize(
    ("written", "meant"), [("cmd", "command"), ("timeout", "timeout_s"), ("enviroment", None), ("workdr", "workdir")]
)
async def test_a_misspelt_argument_is_guessed(caller: Caller, written: str, meant: str | None) -> None:
    error = await caller.refused("nested_run", image=BUSYBOX, **{written: "x"})
    assert f"Did you mean {meant}?" in error["hint"] if meant else "It takes:" in error["hint"]


async def test_logs_survive_a_tidied_state_directory(caller: Caller) -> None:
    for path in (caller.directory / ".state" / "sessions").glob("*/logs/*"):
        path.unlink()
    for path in (caller.directory / ".state" / "sessions").glob("*/logs"):
        path.rmdir()
    assert "again" in (await caller.run("echo", "again"))["output"]

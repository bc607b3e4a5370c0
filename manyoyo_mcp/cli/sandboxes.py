"""ps, logs, exec, rm, gc: a look at this owner's sandboxes, and into one."""

import json
import sys
import time
from typing import Any, BinaryIO

import anyio.to_thread

from manyoyo_mcp.cli.connect import find_sandbox, load_settings, open_sandbox, own_sandboxes
from manyoyo_mcp.cli.exits import code_of, complain, hint_of
from manyoyo_mcp.cli.recorded import on_record
from manyoyo_mcp.cli.screen import Screen, age, print_table
from manyoyo_mcp.cli.wording import in_options
from manyoyo_mcp.config import Settings
from manyoyo_mcp.engines.base import Ended, ExecSpec, Sink
from manyoyo_mcp.errors import Reason, SandboxAmbiguous
from manyoyo_mcp.hosts.base import Host, Outer, Store
from manyoyo_mcp.hosts.docker import open_host
from manyoyo_mcp.sessions import sweep
from manyoyo_mcp.sessions.identity import answers_for, owner
from manyoyo_mcp.sessions.keeping import Keeping
from manyoyo_mcp.sessions.names import is_checkpoint, is_named
from manyoyo_mcp.text import sanitise
from manyoyo_mcp.values import format_bytes


async def ps(*, as_json: bool) -> None:
    """Print this owner's sandboxes."""
    async with open_host(load_settings()) as host:
        there = await own_sandboxes(host)
        running = {outer.sandbox_id for outer in there}
        kept = [store for store in await _kept(host) if store.labels.get("sandbox") not in running]
        rows = [describe(outer) for outer in there] + [describe_kept(store) for store in kept]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        Screen().say("No sandbox of yours on this host.")
    else:
        print_table(
            ("SANDBOX", "NAME", "ENGINE", "STATE", "AGE", "CAPS", "SESSION"),
            [
                (
                    row["sandbox_id"] or "(checkpoint)",
                    row["name"] or "",
                    row["engine"],
                    row["state"],
                    age(row["age_seconds"]),
                    f"{row['caps']['cpus']:g} CPUs, {format_bytes(row['caps']['memory_bytes'])}, "
                    f"{row['caps']['pids_limit']} pids",
                    f"{row['session']} (pid {row['server_pid']})"
                    if row["session"] == "alive"
                    else "kept (rm removes it)"
                    if row["name"]
                    else "orphan (gc removes it)",
                )
                for row in rows
            ],
        )


def describe(outer: Outer) -> dict[str, Any]:
    """A sandbox as `ps --json` shows it."""
    return {
        "kind": "sandbox",
        "sandbox_id": outer.sandbox_id,
        "name": outer.labels.get("name"),
        "engine": outer.labels.get("engine", ""),
        "state": "running" if outer.running else "stopped",
        "created": round(outer.created, 3),
        "age_seconds": round(time.time() - outer.created, 1),
        "caps": {"cpus": outer.caps.cpus, "memory_bytes": outer.caps.memory, "pids_limit": outer.caps.pids},
        "session": "alive" if answers_for(outer.labels) else "orphan",
        "server_pid": int(outer.labels.get("server-pid") or 0),
    }


def describe_kept(store: Store) -> dict[str, Any]:
    """A named sandbox that does not run, or a checkpoint, as `ps --json` shows it."""
    labels = store.labels
    return {
        "kind": labels["kind"],
        "sandbox_id": labels.get("sandbox", ""),
        "name": labels.get("checkpoint") or labels.get("name"),
        "engine": labels.get("engine", ""),
        "state": "stopped" if labels["kind"] == "sandbox" else "kept",
        "created": round(store.created, 3),
        "age_seconds": round(time.time() - store.created, 1),
        "caps": {
            "cpus": float(labels.get("cpus", 0)),
            "memory_bytes": int(labels.get("memory", 0)),
            "pids_limit": int(labels.get("pids", 0)),
        },
        "session": "kept",
        "server_pid": 0,
        "own_bytes": store.size,
    }


async def _kept(host: Host) -> list[Store]:
    """This owner's named sandboxes, running or not, and checkpoints."""
    found = await host.stores({"owner": owner()})
    return await host.sized(each for each in found if is_named(each) or is_checkpoint(each))


async def ps_nested(name: str, *, as_json: bool) -> None:
    """Print the containers in one sandbox."""
    async with open_sandbox(load_settings(), name) as (manager, sandbox):
        found = await manager.work.ask(sandbox, sandbox.engine.containers)
    if as_json:
        rows = [
            {
                "id": each.container_id,
                "name": each.name,
                "image": each.image,
                "state": each.state,
                "created": each.created,
                "command": each.command,
                "exit_code": each.exit_code,
            }
            for each in found
        ]
        print(json.dumps(rows, indent=2))
    elif not found:
        Screen().say(f"No container in {sandbox.sandbox_id}.")
    else:
        print_table(
            ("CONTAINER", "NAME", "IMAGE", "STATE", "AGE", "COMMAND"),
            [
                (
                    each.container_id[:12],
                    each.name,
                    each.image,
                    each.state,
                    age(time.time() - each.created),
                    each.command[:60],
                )
                for each in found
            ],
        )


async def logs(name: str, container: str | None, tail: int | None) -> None:
    """Print what a nested container wrote; without one, what the sandbox's entrypoint and its engine wrote."""
    settings = load_settings()
    if container is None:
        async with open_host(settings) as host:
            found = await find_sandbox(host, name)
            raw = (await host.last_words(found, tail or 1000)).encode()
        raw += b"\n" if raw else b""
    else:
        async with open_sandbox(settings, name) as (manager, sandbox):
            raw = await manager.work.ask(sandbox, lambda: sandbox.engine.logs(container, tail, None))
    if sys.stdout.isatty():
        print(sanitise(raw), end="")  # what ran inside shall not steer this terminal
    else:
        writer(sys.stdout.buffer)(raw)


async def execute(name: str, spec: ExecSpec) -> int:
    """Run a command in a nested container, its output on stdout as it comes; the exit code."""
    async with open_sandbox(load_settings(), name) as (manager, sandbox):
        ended = await manager.work.ask(sandbox, lambda: sandbox.engine.exec(spec, writer(sys.stdout.buffer)))
    return finish(ended, capped_here=False)


async def read_stdin(wanted: bool) -> bytes | None:
    """All of stdin, where it is wanted."""
    return await anyio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True) if wanted else None


def writer(stream: BinaryIO) -> Sink:
    """A sink that passes on at once."""

    def write(data: bytes) -> None:
        stream.write(data)
        stream.flush()

    return write


def finish(ended: Ended, *, capped_here: bool = True) -> int:
    """The exit code of a command that ended; on stderr, why it ended so where its own exit code would not say it."""
    if ended.reason not in (Reason.OK, Reason.EXIT_NONZERO):
        complain(
            f"{ended.reason}: {in_options(ended.explanation)}",
            hint_of(ended.reason, ended.hint, capped_here=capped_here),
        )
    return code_of(ended.reason, ended.exit_code)


async def rm(names: list[str], *, as_json: bool, screen: Screen) -> None:
    """Remove these sandboxes and checkpoints; none where one of the names means none or several. `sandbox:` or `checkpoint:`
    before a name tells which is meant."""
    settings = load_settings()
    with on_record(settings, "rm", names=names) as result:
        found, stores = await _rm(settings, names, result, as_json=as_json, screen=screen)
    if as_json:
        rows = [describe(each) for each in found] + [describe_kept(each) for each in stores]
        print(json.dumps({"sandboxes": rows}, indent=2))


async def _rm(
    settings: Settings, names: list[str], result: dict[str, Any], *, as_json: bool, screen: Screen
) -> tuple[list[Outer], list[Store]]:
    removed: list[str] = []
    result["removed"] = removed
    async with open_host(settings) as host:
        kept = {(store.labels["kind"], str(describe_kept(store)["name"])): store for store in await _kept(host)}
        live = {("sandbox", outer.labels.get("name")) for outer in await own_sandboxes(host)}
        stores: dict[tuple[str, str], Store] = {}
        others = []
        for word in names:
            kind, _, name = word.rpartition(":")
            meant = [key for key in kept if key[1] == name and kind in ("", key[0])]
            if len(meant) > 1:
                raise SandboxAmbiguous(
                    f"A sandbox and a checkpoint are called {name!r}.",
                    f"Say which: sandbox:{name} or checkpoint:{name}.",
                )
            if meant and meant[0] not in live:
                stores[meant[0]] = kept[meant[0]]
            else:
                others.append(name if kind in ("", "sandbox") else word)  # no checkpoint's name removes a sandbox
        found = {outer.sandbox_id: outer for outer in [await find_sandbox(host, name) for name in others]}
        keeping = Keeping(settings, host, owner())
        for (kind, name), store in stores.items():
            with screen.working(f"removing {name}") as say:
                if kind == "sandbox":
                    await keeping.remove_sandbox(store.labels["sandbox"], progress=say)
                else:
                    await keeping.remove_checkpoint(name, say)
            removed.append(f"{kind} {name}")
            if not as_json:
                print(f"removed the {kind} {name}", flush=True)
        for outer in found.values():
            with screen.working(f"removing {outer.sandbox_id}") as say:
                await keeping.remove_sandbox(outer.sandbox_id, progress=say)
            removed.append(outer.sandbox_id)
            if not as_json:
                held = "; the server that held it runs on" if answers_for(outer.labels) else ""
                print(f"removed {outer.sandbox_id} ({age(time.time() - outer.created)} old{held})", flush=True)
    return list(found.values()), list(stores.values())


async def gc(*, dry_run: bool, as_json: bool, screen: Screen) -> None:
    """Remove what servers that ended left behind."""
    settings = load_settings()
    async with open_host(settings) as host:
        with screen.working("looking for sandboxes whose server has ended"):
            if dry_run:
                swept = await sweep.sweep(host, settings, dry_run=True)
            else:
                with on_record(settings, "gc") as result:
                    swept = await sweep.sweep(host, settings)
                    result["removed"] = [outer.sandbox_id for outer in swept.sandboxes]
                    if swept.failed is not None:
                        result["failed"] = swept.failed.instance_code
    if as_json:
        print(json.dumps({"dry_run": dry_run, "sandboxes": [describe(each) for each in swept.sandboxes]}, indent=2))
    else:
        verb = "would remove" if dry_run else "removed"
        for outer in swept.sandboxes:
            print(f"{verb} {outer.sandbox_id} ({age(time.time() - outer.created)} old)", flush=True)
    if swept.failed is not None:
        raise swept.failed
    if not swept.sandboxes and not as_json:
        screen.say("Nothing to remove.")

"""What a daemonless build begins with, is told, and says."""

import json
import tarfile
from io import BytesIO

from manyoyo_mcp.engines.base import Given, Secret
from manyoyo_mcp.engines.buildlog import BuildLog
from manyoyo_mcp.engines.daemonless import Lines
from manyoyo_mcp.engines.giving import for_run


def test_what_buildah_says_is_a_builds_log() -> None:
    seen: list[bytes] = []
    log = BuildLog("FROM a\nRUN exit 7\n", lambda step: None)
    lines = Lines(log, seen.append)
    for piece in (
        b"STEP 1/3: FR", b'OM a\nSTEP 2/3: ENV "B"="c" "MANYOYO_ALONE"="1"\nSTEP 3/3: RUN exit 7\nwor', b"ds\n",
        b"subprocess exited with status 7\nsubprocess exited with status 7\n", b'Error: building at STEP "RUN exit 7": exit ',
        b"status 7",
    ):  # fmt: skip
        lines(piece)
    lines.end()
    assert [step.line for step in log.steps] == [1, 2] and log.output == "words\n"
    assert log.exit_code == 7 and log.error.startswith("building at STEP") and b"".join(seen).count(b"words") == 1


def test_what_is_given_comes_with_namespaces_and_secrets_do_not() -> None:
    def names(archive: bytes) -> dict[str, bytes]:
        with tarfile.open(fileobj=BytesIO(archive)) as file:
            return {each.name: (file.extractfile(each) or BytesIO()).read() for each in file}

    given = names(for_run("c1", (), {}, [Given("/a", "/from"), Given("/b", "/made", writable=True)]))
    assert "namespaces" in given
    first, second = json.loads(f"[{given['mounts.json'].decode()}]")
    assert (first["source"], first["destination"], first["options"]) == (
        "/a",
        "/from",
        ["bind", "ro", "nosuid", "nodev"],
    )
    assert "rw" in second["options"] and "nodev" in second["options"]
    assert "namespaces" not in names(for_run("c1", [Secret("key", path="/run/secrets/key")], {"key": b"x"}))

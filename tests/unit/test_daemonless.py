"""What a daemonless build begins with, is told, and says."""

import json
import tarfile
from io import BytesIO

import pytest

from manyoyo_mcp.engines.base import Given, Secret
from manyoyo_mcp.engines.buildlog import BuildLog
from manyoyo_mcp.engines.daemonless import Lines, images
from manyoyo_mcp.engines.giving import for_run


@pytest.mark.parametrize(
    ("dockerfile", "expected"),
    [
        ("FROM localhost/a\nRUN true\n", ["localhost/a"]),
        ("FROM --platform=linux/amd64 localhost/a:1 AS one\nFROM One\nCOPY --from=one /x /x\n", ["localhost/a:1"]),
        ("FROM scratch\nCOPY --from=localhost/b /x /x\n", ["localhost/b"]),
        ("FROM a\nRUN --mount=type=bind,from=localhost/c,target=/c true\n", ["a", "localhost/c"]),
        ("FROM a\nFROM b\nCOPY --from=0 /x /x\n", ["a", "b"]),
        ("ARG BASE=localhost/a\nARG TAG\nFROM ${BASE}:${TAG:-2}\nFROM $BASE\n", ["localhost/a:2", "localhost/a"]),
        ('ARG ONE=a TWO="b"\nFROM $ONE\nFROM $TWO\n', ["a", "b"]),
        ("FROM a AS one\nFROM b AS two\nFROM c AS three\n", ["a", "b"]),
        (
            "FROM a\nRUN echo from=b --from=c\n",
            ["a", "b", "c"],
        ),  # one more is no harm where it is there, and else an error
        ("FROM $UNKNOWN\n", []),
    ],
)
def test_the_images_that_a_dockerfile_begins_with(dockerfile: str, expected: list[str]) -> None:
    assert images(dockerfile, {}, "two" if "three" in dockerfile else None) == expected


def test_a_build_argument_is_more_than_its_default() -> None:
    assert images("ARG BASE=a\nFROM $BASE\nFROM ${OTHER}\n", {"BASE": "b", "OTHER": "c"}) == ["b"]


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

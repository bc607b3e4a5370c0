"""Archives that engines read to the end mark and no further."""

import io
import tarfile

from manyoyo_mcp.archive import tar


def test_it_ends_with_its_end_mark() -> None:
    raw = tar({"/a": b"x" * 700, "b/c": b"#!/bin/sh\n"})
    assert len(raw) == 512 + 1024 + 512 + 512 + 1024 and raw[-1024:] == bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        assert [(each.name, each.size, each.mode) for each in archive] == [("a", 700, 0o644), ("b/c", 10, 0o755)]

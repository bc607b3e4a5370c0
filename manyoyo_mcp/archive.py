"""Small tar archives in memory, as engines take files by."""

import io
import tarfile
from collections.abc import Mapping


def tar(files: Mapping[str, bytes], modified: float = 0) -> bytes:
    """An archive of `files` (path → content), all `modified` at that Unix time. What begins with `#!` is executable."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mtime = len(content), int(modified)
            entry.mode = 0o755 if content.startswith(b"#!") else 0o644
            archive.addfile(entry, io.BytesIO(content))
        end = archive.offset + 2 * tarfile.BLOCKSIZE
    # Without the padding to a whole record: who has read the end mark hangs up, and podman fails where more is to come.
    return buffer.getvalue()[:end]

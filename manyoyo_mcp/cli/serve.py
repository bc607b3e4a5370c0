"""`manyoyo-mcp serve`, which loads nothing of the command line."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def serve(warm: int | None = None, http: str | None = None) -> None:
    """Serve MCP over stdio until the client closes it, or over HTTP at that address; `warm` sandboxes are kept ready, as the
    settings say by default."""
    with _loading():
        from manyoyo_mcp.cli.connect import load_settings
        from manyoyo_mcp.config import unknown_variables

        settings = load_settings(
            **({"warm": warm} if warm is not None else {})
        )  # said in two lines where one is wrong, before the server is loaded
        if http is not None:
            from manyoyo_mcp.http.serving import serve as run_http
        else:
            if sys.stdin is not None and sys.stdin.isatty():
                print(
                    "manyoyo-mcp: serving MCP on this terminal, which is for clients: they start it themselves. `manyoyo-mcp --help` lists the commands; "
                    "Ctrl-C ends this.",
                    file=sys.stderr,
                )
            from manyoyo_mcp.server import serve as run
    for name, meant in unknown_variables(os.environ).items():
        print(
            f"manyoyo-mcp: no setting has the name {name}{f': did you mean {meant}?' if meant else '.'}",
            file=sys.stderr,
        )
    if http is not None:
        run_http(settings, http)
    else:
        run(settings)


@contextmanager
def _loading() -> Iterator[None]:
    """What modules make stays: that the collector looks through it again and again takes a tenth of the time of loading them."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

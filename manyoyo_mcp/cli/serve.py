"""`manyoyo-mcp serve`, which loads nothing of the command line."""

import sys


def serve(warm: int | None = None, http: str | None = None) -> None:
    """Serve MCP over stdio until the client closes it, or over HTTP at that address; `warm` sandboxes are kept ready, as the
    settings say by default."""
    from manyoyo_mcp.cli.connect import load_settings

    settings = load_settings(
        **({"warm": warm} if warm is not None else {})
    )  # said in two lines where one is wrong, before the server is loaded
    if http is not None:
        from manyoyo_mcp.http.serving import serve as run_http

        run_http(settings, http)
        return
    if sys.stdin is not None and sys.stdin.isatty():
        print(
            "manyoyo-mcp: serving MCP on this terminal, which is for clients: they start it themselves. `manyoyo-mcp --help` lists the commands; "
            "Ctrl-C ends this.",
            file=sys.stderr,
        )
    from manyoyo_mcp.server import serve as run

    run(settings)

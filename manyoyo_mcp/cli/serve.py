"""`manyoyo-mcp serve`, which loads nothing of the command line."""


def serve() -> None:
    """Serve MCP over stdio until the client closes it."""
    from manyoyo_mcp.cli.connect import load_settings

    settings = load_settings()  # said in two lines where one is wrong, before the server is loaded
    from manyoyo_mcp.server import serve as run

    run(settings)

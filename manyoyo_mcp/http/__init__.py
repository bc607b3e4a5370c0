"""MCP over HTTP, for several principals. Nothing of it is loaded where stdio is served."""

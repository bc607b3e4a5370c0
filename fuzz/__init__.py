"""Generated tool calls and gate requests against live sandboxes (`scripts/fuzz`)."""

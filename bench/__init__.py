"""How fast it is, beside the host's own Docker: `scripts/bench`."""

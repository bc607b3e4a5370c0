"""Who asked for what, what was decided and what came of it: an append-only log, each record of which holds the hash of the one before
(docs/audit.md)."""

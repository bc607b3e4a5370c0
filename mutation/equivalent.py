"""Rules without which nothing else passes, each with the reason: another rule says the same, or the engine is told no more."""

_LOOKED_AT = "`_mount` takes this table only for what has just that type and source"
EQUIVALENT: dict[str, str] = {
    "containers check _SOCKET_MOUNT: 'Type': one_of('bind')": _LOOKED_AT,
    "containers check _SOCKET_MOUNT: 'Source': one_of(*sorted(fields.SOCKETS))": _LOOKED_AT,
    "libpod check _SOCKET_MOUNT: 'type': one_of('bind')": _LOOKED_AT,
    "libpod check _SOCKET_MOUNT: 'source': one_of(*sorted(fields.SOCKETS))": _LOOKED_AT,
    "libpod check _namespace: 'value': text": "a container's name has a pattern, and any other value is refused whatever it is",
    "rules reason endpoint: '%' in path": "no row's path has a % in it; it is there for the row that will",
}

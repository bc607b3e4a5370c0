"""What of a request goes on record: enough to say later what was asked for, nothing that was secret, nothing long.

Of mappings (environments, files, build arguments) the names and sizes stand there, never the values; where such a value occurs elsewhere in
the same request it is taken out too. What looks like a secret in a text is, as far as that can be told.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST = 200
"""Characters of one text."""
_MOST = 40
"""Items of a list or mapping."""
_TOTAL = 4000
"""Characters of all arguments together."""
_GONE = "[redacted]"
PLACES = "secrets"
"""The argument that names secrets, and where each goes: of variables not even the name is kept, for a caller may take that for the value."""
_LEAST = 4
"""Characters from which on a value of a variable is looked for elsewhere: shorter ones are 1, yes, dev."""
_TELLING = r"[\w-]{0,40}(?:passw(?:or)?d|passwd|passphrase|secret|token|api-?_?key|private-?_?key|access-?_?key|credential)s?[\w-]{0,40}"
_NAMED = re.compile(rf"(?i)\b({_TELLING})([\"']?\s*[=:]\s*|\s+)(\"[^\"]*\"|'[^']*'|[^\s\"',;&]+)")
_HEADER = re.compile(
    r"(?i)\b(authorization\s*[:=]\s*|bearer\s+|basic\s+)(?:(?:bearer|basic)\s+)?[A-Za-z0-9+/=._~-]{6,}"
)
_VARIABLE = re.compile(r"\b([A-Z_][A-Z0-9_]{0,60}=)(\"[^\"]*\"|'[^']*'|[^\s\"']+)")
_ASSIGNED = re.compile(r"(=)(?![0-9.,]+[a-zA-Z]?\b)(\"[^\"]*\"|'[^']*'|[^\s\"']+)")
_IN_URL = re.compile(r"(://)[^/\s@]+@")
_ANY = re.compile(r"(?i)[=@]|pass|secret|token|key|credential|authorization|bearer|basic")
"""Without one of these there is nothing of all that in a text."""
_OPTION = re.compile(rf"(?i)--?{_TELLING}")


def scrubbed(text: str, secrets: Iterable[str] = (), *, strict: bool = False, longest: int = LONGEST) -> str:
    """A text without what looks like a secret, and without `secrets`. `strict`: whatever but a number is assigned to anything does."""
    text = text[: longest * 4 + 4000]
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, _GONE)
    if _ANY.search(text) is not None:
        text = _guessed(text, strict)
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"


def _guessed(text: str, strict: bool) -> str:
    text = _IN_URL.sub(rf"\1{_GONE}@", text)
    text = _HEADER.sub(rf"\1{_GONE}", text)
    text = _NAMED.sub(rf"\1\2{_GONE}", text)
    return (_ASSIGNED if strict else _VARIABLE).sub(rf"\1{_GONE}", text)


def secrets_of(arguments: Mapping[str, Any]) -> list[str]:
    """Values of variables, the longest first. What stdin brings is looked for by its lines."""
    found = set()
    for name, value in arguments.items():
        if isinstance(value, Mapping) and name != PLACES:
            found |= {each for each in value.values() if isinstance(each, str)}
    if isinstance(stdin := arguments.get("stdin"), str):
        found |= set(stdin[:10_000].splitlines())
    return sorted((each for each in found if _LEAST <= len(each.strip()) <= 4000), key=len, reverse=True)[:200]


def arguments(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A call's arguments for the record, and what must not stand in anything else of it."""
    secrets = secrets_of(given)
    kept: dict[str, Any] = {}
    left = _TOTAL
    for name, value in given.items():
        shown = _size(value) if name == "stdin" and isinstance(value, str) else _value(value, secrets)
        if name == PLACES and isinstance(value, Mapping):
            shown = {str(key)[:64]: _place(each, secrets) for key, each in list(value.items())[:_MOST]}
        left -= len(str(shown))
        kept[name[:60]] = shown if left > 0 else f"(left out: {len(str(value)):,} characters)"
        if len(kept) >= _MOST:
            break
    return kept, secrets


def _place(place: Any, secrets: list[str]) -> str:
    return scrubbed(place, secrets, longest=100) if not place or str(place).startswith("/") else "(a variable)"


def _size(value: Any) -> str:
    """How large a text is, or what is given in base64."""
    if isinstance(value, str):
        return f"{len(value.encode('utf-8', 'replace')):,} bytes"
    encoded = getattr(value, "base64", "")
    return f"{len(encoded) * 3 // 4:,} bytes"


def _value(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        return scrubbed(value, secrets)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, Mapping):
        sizes = {scrubbed(str(name), secrets, longest=100): _size(each) for name, each in list(value.items())[:_MOST]}
        return sizes if len(value) <= _MOST else sizes | {"…": f"{len(value) - _MOST} more"}
    if isinstance(value, list | tuple):
        return _words(value, secrets)
    return f"{type(value).__name__}"


def _words(value: list[Any] | tuple[Any, ...], secrets: list[str]) -> list[Any]:
    """A list, often a command: what follows an option that is called as a secret is one."""
    kept: list[Any] = []
    hidden = False
    for each in value[:_MOST]:
        kept.append(_GONE if hidden else _value(each, secrets))
        hidden = isinstance(each, str) and _OPTION.fullmatch(each) is not None
    return kept if len(value) <= _MOST else [*kept, f"… {len(value) - _MOST} more"]

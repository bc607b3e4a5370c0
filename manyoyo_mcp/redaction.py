"""Secrets taken out of what goes back to a caller: out of texts, and out of streams in whatever pieces they come.

A value is found as it is, as base64 (at each of the three places in a group of three bytes at which it may begin, in both alphabets),
as a URL and as JSON write it; line ends within it count for nothing, so that wrapped base64 and the lines of a key are found too. What a
program does to a value beside that nobody can find again: this is against accidents.
"""

import base64
import json
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

LEAST = 6
"""Bytes of a value, at least: a shorter one would be found everywhere, in words and numbers that have nothing to do with it."""
_LINE = 8
"""Bytes of one line of a value with several, from which on it is looked for by itself."""
_HEAD = 8
_SOME = 64
"""Bytes of a place that are looked at first: seldom does more than that look like a value."""
_NEWLINES = b"\r\n"
_MOST_HELD = 1 << 14
"""Bytes beside the longest value that a stream holds back at most: of what has a line end after each character."""


def flat(data: bytes) -> bytes:
    """What of a value counts: all but line ends."""
    return data.translate(None, _NEWLINES)


def _forms(value: bytes) -> Iterator[bytes]:
    """What a value may look like. A line of many a key says only what it is."""
    yield value
    lines = value.splitlines()
    if len(lines) > 1:
        yield from (line for each in lines if len(line := each.strip()) >= _LINE and not line.startswith(b"-----"))
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + value)
        # Characters that its own bits alone make up: not those that hold some of its neighbours'.
        yield encoded[-(-8 * before // 6) : 8 * (before + len(value)) // 6]
    yield quote(value, safe="").encode()
    yield quote_plus(value).encode()
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return
    for ascii_only in (True, False):
        yield json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode()


def _masks(secrets: Iterable[tuple[str, bytes]]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for name, value in secrets:
        mask = f"[secret {name}]".encode()
        for form in _forms(value.strip()):
            for each in (form, form.translate(bytes.maketrans(b"+/", b"-_"))) if form != value.strip() else (form,):
                if len(bare := flat(each)) >= LEAST:
                    found.setdefault(bare, mask)
    return found


def _any_of(patterns: list[bytes], depth: int) -> bytes:
    """An expression for the first of these that is there, branching by their first bytes: else each of thousands is tried at every place of
    a text. Each is longer than `depth` bytes."""
    if depth == 0 or len(patterns) == 1:
        return b"|".join(map(re.escape, patterns))
    branches: dict[bytes, list[bytes]] = {}
    for pattern in patterns:
        branches.setdefault(pattern[:1], []).append(pattern[1:])
    return b"|".join(re.escape(head) + b"(?:" + _any_of(rest, depth - 1) + b")" for head, rest in branches.items())


class Redactor:
    """Takes `secrets`, pairs of name and value, out of what it is given; in their place stands `[secret NAME]`. True where there are any."""

    def __init__(self, secrets: Iterable[tuple[str, bytes]] = ()) -> None:
        self._masks = _masks(secrets)
        patterns = sorted(self._masks, key=len, reverse=True)
        self._sorted = sorted(patterns)
        self._finder = re.compile(_any_of(patterns, 4) if patterns else b"(?!)")
        heads = sorted({pattern[:_HEAD] for pattern in patterns})
        self._head = re.compile(_any_of(heads, 4) if heads else b"(?!)")
        self.longest = len(patterns[0]) if patterns else 0

    def __bool__(self) -> bool:
        return bool(self._masks)

    def split(self, raw: bytes, *, whole: bool) -> tuple[bytes, bytes]:
        """What of `raw` can be told by now, redacted, and the rest, which may be the beginning of a value. `whole`: nothing more comes."""
        text = flat(raw)
        found: list[tuple[int, int, bytes]] = []
        end = 0
        hold = len(text) if whole else self._begun(text, 0)
        while (match := self._finder.search(text, end)) is not None and match.start() < hold:
            end = match.end()
            found.append((match.start(), end, self._masks[match[0]]))
            if end > hold:
                hold = len(text) if whole else self._begun(text, end)
        if not found and hold == len(text):
            return raw, b""
        place = _Places(raw, len(text))
        told, last = bytearray(), 0
        for start, stop, mask in found:
            told += raw[last : place.of(start)] + mask
            last = place.of(stop - 1) + 1
        cut = place.of(hold)
        return bytes(told + raw[last:cut]), raw[cut:]

    def _begun(self, text: bytes, start: int) -> int:
        """Where the first value begins that may be cut off by the end of `text`; that end where none does."""
        size = len(text)
        at = max(start, size - self.longest + 1)
        while (match := self._head.search(text, at)) is not None and (at := match.start()) <= size - _HEAD:
            if self.begun_by(text[at : at + _SOME]) and self.begun_by(text[at:]):
                return at
            at += 1
        for at in range(max(start, size - _HEAD + 1), size):  # too short for a head
            if self.begun_by(text[at:]):
                return at
        return size

    def begun_by(self, text: bytes) -> bytes:
        """A value, in one of its forms, that begins with all of this text and goes on; nothing where none does."""
        place = bisect_right(self._sorted, text)
        found = self._sorted[place] if place < len(self._sorted) else b""
        return found if found.startswith(text) else b""

    def clean(self, data: bytes) -> bytes:
        """The same without the secrets."""
        return self.split(data, whole=True)[0] if self else data

    def text(self, text: str) -> str:
        if not self:
            return text
        raw = text.encode("utf-8", "surrogatepass")
        cleaned = self.clean(raw)
        return text if cleaned is raw else cleaned.decode("utf-8", "replace")

    def anything(self, value: Any) -> Any:
        """All texts in what JSON can hold; keys stay."""
        if not self:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.anything(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.anything(each) for each in value]
        return value


_NOTHING = Redactor()
"""Of no secrets."""


class _Places:
    """Where in a text its characters lie that are no line ends; asked for in rising order."""

    def __init__(self, raw: bytes, count: int) -> None:
        self._gaps = re.finditer(rb"[\r\n]+", raw) if count < len(raw) else iter(())
        self._size, self._count = len(raw), count
        self._shift = 0
        self._gap = next(self._gaps, None)

    def of(self, index: int) -> int:
        """The place of the character `index`; beyond the last the end of all."""
        if index >= self._count:
            return self._size
        while self._gap is not None and self._gap.start() <= index + self._shift:
            self._shift += self._gap.end() - self._gap.start()
            self._gap = next(self._gaps, None)
        return index + self._shift


class Redacted:
    """A sink that passes on what it is given without the secrets. `current` is asked for at each piece: what there is to be kept secret may
    grow meanwhile. Safe to be called from several threads."""

    def __init__(self, sink: Callable[[bytes], object], current: Callable[[], Redactor]) -> None:
        self._sink = sink
        self._current = current
        self._held: list[bytes] = []
        self._size = 0
        self._by = _NOTHING
        self._value = b""
        """One that what is held back begins, and how much of it that is: what goes on with it tells nothing new."""
        self._known = 0
        self._lock = threading.Lock()

    def __call__(self, data: bytes) -> None:
        self._pass(data, whole=False)

    def end(self) -> None:
        """Nothing more comes: what was held back is told."""
        self._pass(b"", whole=True)

    def _pass(self, data: bytes, *, whole: bool) -> None:
        with self._lock:
            redactor = self._current()
            whole = whole or self._size > redactor.longest + _MOST_HELD
            bare = flat(data)
            if not whole and redactor is self._by and self._goes_on(bare):
                self._held.append(data)
                self._size += len(data)
                self._known += len(bare)
                return
            raw = b"".join([*self._held, data])
            told, held = redactor.split(raw, whole=whole) if redactor else (raw, b"")
            bare = flat(held)
            self._held, self._size, self._by = [held], len(held), redactor
            self._value, self._known = (redactor.begun_by(bare), len(bare)) if bare else (b"", 0)
            if told:
                self._sink(told)

    def _goes_on(self, bare: bytes) -> bool:
        """Whether what is held back and this are the beginning of a value still."""
        return self._known + len(bare) < len(self._value) and self._value.startswith(bare, self._known)

"""Text that came from inside a sandbox: made harmless, made short, and marked as not ours."""

import re
import secrets

_ANSI = re.compile(
    r"""\x1b (?: \[ [0-?]* [ -/]* [@-~]          # CSI: colours, cursor
             | [PX^_\]] [^\x07\x1b]{0,4096} (?: \x07 | \x1b\\ )  # OSC, DCS, APC …: titles, hyperlinks
             | [ -/]* [0-~] )                    # the two-byte escapes
      | \x9b [0-?]* [ -/]* [@-~]""",
    re.VERBOSE | re.DOTALL,
)
# C0 and C1 controls but tab and newline; bidirectional overrides and isolates; invisible tag characters.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")

# What a byte-pair tokenizer makes of text, from above: words split at about four letters, what is no word (mixed case,
# many consonants in a row: encoded data, identifiers) at two or fewer, digits in threes, punctuation nearly one by one,
# everything else up to three tokens a character.
_PIECES = re.compile(r"[A-Za-z]+|[0-9]+|[ \t]+|\n+|[!-/:-@\[-`{-~]+|[^\x00-\x7f]")
_NO_WORD = re.compile(
    r"[a-z][A-Z]|[A-Z]{2}[a-z]|[bcdfghjklmnpqrstvwxzBCDFGHJKLMNPQRSTVWXZ]{4}|^[bcdfghjklmnpqrstvwxz]{3}"
)


def sanitise(raw: bytes | str) -> str:
    """Text without terminal sequences and control characters; invalid UTF-8 becomes U+FFFD.

    A line that overwrote itself with carriage returns (progress bars) keeps what it showed last.
    """
    # A string may hold halves of surrogate pairs, as names of files do that are no UTF-8; no answer could carry them.
    text = (raw if isinstance(raw, bytes) else raw.encode("utf-8", "replace")).decode("utf-8", "replace")
    text = _ANSI.sub("", text).replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    return _CONTROL.sub("", text)


def estimate_tokens(text: str) -> int:
    """How many tokens a model's tokenizer makes of `text` at most (held against a real one by a test)."""
    total = 0
    for piece in _PIECES.findall(text):
        first, length = piece[0], len(piece)
        if first.isascii() and first.isalpha():
            total += 1 + (length * 5 // 8 if _NO_WORD.search(piece) else (length - 1) // 4)
        elif first.isdigit() and first.isascii():
            total += 1 + (length - 1) // 3
        elif first in " \t\n":
            total += 1 if length > 1 or first == "\n" else 0
        else:
            total += length if first.isascii() else 3
    return total


def shorten(text: str, tokens: int) -> tuple[str, int]:
    """`text` within a budget: the first 20 % and the last 80 % of it, cut at line ends where there are any.

    Returns the text and how many bytes of it were left out; the place of the cut names that number.
    """
    if len(text) <= tokens or estimate_tokens(text) <= tokens:
        return text, 0
    head = _fit(text, tokens // 5, from_end=False)
    tail = _fit(text[len(head) :], tokens - tokens // 5, from_end=True)
    omitted = len(text[len(head) : len(text) - len(tail)].encode())
    return f"{head}\n[… {omitted:,} bytes left out …]\n{tail}", omitted


def _fit(text: str, tokens: int, *, from_end: bool) -> str:
    low, high = 0, min(len(text), tokens * 8)  # no text has more than eight characters a token for long
    while low < high:
        middle = (low + high + 1) // 2
        piece = text[len(text) - middle :] if from_end else text[:middle]
        if estimate_tokens(piece) <= tokens:
            low = middle
        else:
            high = middle - 1
    if low == 0:
        return ""
    piece = text[len(text) - low :] if from_end else text[:low]
    cut = piece.find("\n") if from_end else piece.rfind("\n")
    if from_end and 0 <= cut < len(piece) // 2:
        return piece[cut + 1 :]
    if not from_end and cut > len(piece) // 2:
        return piece[:cut]
    return piece


def fence(text: str, source: str) -> str:
    """`text` between marks that it can't forge (they carry a number it did not know), said to be data.

    Returns the empty string for empty text: nothing to mark.
    """
    if not text.strip():
        return ""
    nonce = secrets.token_hex(3)
    return f"<untrusted-{nonce} from={source!r}>\n{text.rstrip()}\n</untrusted-{nonce}>"

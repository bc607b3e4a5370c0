"""What a command complained of last. Output may speak of any error and mean none: what counts is the last complaint."""

import re

_COMPLAINT = re.compile(
    r"(?<![\w./-])(?:errors?|exception|fatal|fail(?:s|ed|ure|ures|ing)?|panic|abort(?:ed)?|assert\w*|traceback|"
    r"not found|no such|cannot|can't|could(?: not|n't)|unable|denied|refused|undefined|invalid|missing|unexpected|"
    r"killed)(?![\w/-])|(?:Error|Exception)\b",
    re.IGNORECASE,
)
_END = 16 << 10
"""How much of the output's end is read, in characters."""
_AFTER = 40
"""How many lines may come after the words that tell."""


def unechoed(output: str, instruction: str) -> str:
    """The output without lines that stand in the instruction itself: what a command prints on request is no evidence."""
    return "\n".join(line for line in output.split("\n") if not line.strip() or line.strip() not in instruction)


def last_complaint(
    output: str, pattern: re.Pattern[str], trailer: re.Pattern[str] | None = None
) -> re.Match[str] | None:
    """Where `pattern` is found in the output's end for the last time, unless a later line complains of something else.

    `trailer` matches the lines that the same tool adds after its complaint.
    """
    end = output[-_END:].rstrip()
    found = None
    for found in pattern.finditer(end):  # noqa: B007 - the last one
        pass
    if found is None:
        return None
    after = end[found.end() :].split("\n")[1:]
    complaints = (line for line in after if _COMPLAINT.search(line))
    if len(after) > _AFTER or any(trailer is None or not trailer.search(line) for line in complaints):
        return None
    return found

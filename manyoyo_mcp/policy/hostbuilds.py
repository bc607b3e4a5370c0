"""What a build by the host's own engine may do: as `labelled`, it takes nothing that is somebody else's, and what it makes has the sandbox's name."""

import re
from collections.abc import Sequence
from dataclasses import replace

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.base import Allowed, Within
from manyoyo_mcp.policy.fields import OURS
from manyoyo_mcp.policy.labelled import matches

OF = f"{OURS}of"
"""Of which sandbox an image is."""
_FROM = re.compile(r"FROM(?: --platform=[\w/.-]+)? ([^\s$\\'\"]+)(?: AS ([A-Za-z][\w.-]*))?", re.IGNORECASE | re.ASCII)
_PLAIN = re.compile(r"--from=([A-Za-z0-9][\w./:@-]*)", re.ASCII)


class Judge:
    """Of the instructions of one Dockerfile, in their order."""

    def __init__(self, within: Within) -> None:
        self._within = within
        self._stages: list[str] = []

    def check(self, instruction: str) -> None:
        """Raises PolicyRefused for one that would read an image that the sandbox may not have, or what the host's engine reaches."""
        keyword, _, rest = instruction.partition(" ")
        match keyword.upper():
            case "FROM":
                found = _FROM.fullmatch(instruction)
                if found is None:
                    raise _refused(instruction, "FROM names an image or a stage, without variables, in this isolation.")
                self._check_image(found[1])
                self._stages.append((found[2] or "").lower())
            case "COPY":
                for flag in _flags(rest):
                    if flag.lower().startswith("--from"):
                        plain = _PLAIN.fullmatch(flag)
                        if plain is None:
                            raise _refused(instruction, "COPY --from names a stage or an image, without variables.")
                        if not plain[1].isdigit():
                            self._check_image(plain[1])
            case "ADD":
                if re.search(r"://|[$\\]", rest):
                    raise _refused(instruction, "the host's engine would fetch it, from where the host is.")
            case "ONBUILD":
                raise _refused(instruction, "what it says would be done in other builds.")

    def _check_image(self, name: str) -> None:
        if name.lower() not in (*filter(None, self._stages), "scratch") and not matches(self._within, name):
            raise _refused(name, f"it is not among the images that may be used here: {', '.join(self._within.images)}.")


def check(within: Within, instructions: Sequence[str]) -> None:
    """Raises PolicyRefused as `Judge.check` does."""
    judge = Judge(within)
    for each in instructions:
        judge.check(each)


def labelled(within: Within, text: str, after: Sequence[int]) -> str:
    """A Dockerfile with a label after its FROMs, which are at these lines (from 1): so all that is made of it is found again, also of a build that fails.
    Raises PolicyRefused for a FROM that goes on in the next line."""
    lines = text.split("\n")
    for line in reversed(after):
        if lines[line - 1].rstrip().endswith(("\\", "`")):
            raise _refused(lines[line - 1].strip(), "a FROM is one line in this isolation.")
        lines.insert(line, f'LABEL {OF}="{within.sandbox}"')
    return "\n".join(lines)


def _flags(rest: str) -> list[str]:
    words = rest.split()
    return words[: next((index for index, word in enumerate(words) if not word.startswith("--")), len(words))]


def _refused(what: str, why: str) -> PolicyRefused:
    return PolicyRefused(
        f"{what[:100]} may not stand in a Dockerfile in this isolation: {why}",
        "Build in a sandbox with an engine of its own: start_sandbox with another isolation.",
    )


def check_tags(within: Within, tags: Sequence[str]) -> None:
    """Raises PolicyRefused for a name that is not the sandbox's to give."""
    for tag in tags:
        if not tag.startswith(within.images_prefix):
            raise PolicyRefused(
                f"{tag[:100]}: the names of images are everybody's on the host's engine.",
                f"Begin it with {within.images_prefix}, which is this sandbox's: {within.images_prefix}{tag.rpartition('/')[2]}.",
            )


def built(allowed: Allowed, within: Within) -> Allowed:
    """A build, under the sandbox's cgroup: what it makes has the sandbox's names, and nothing comes from what others have built."""
    query = allowed.query
    check_tags(within, [given] if isinstance(given := query.get("t", []), str) else given)
    told = {
        "networkmode": "none",  # its steps may send raw packets, and whose network it is the keeper can't say of them
        "nocache": "1",  # of the cache whatever fits is taken, whoever made it
        "pull": "0",
        "cgroupparent": f"/manyoyo/{within.sandbox}{query['cgroupparent']}",
    }
    return replace(allowed, query={**query, **told})

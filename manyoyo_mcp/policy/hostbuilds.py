"""What a build by the host's own engine may do: as `labelled`, it takes nothing that is somebody else's, and what it makes has the sandbox's name.

Its commands (RUN) are not the builder's, who would give them what no container of the sandbox's has, devices to make first of all: they are run as
containers of the sandbox's, and become images (`committed`)."""

import re
from collections.abc import Sequence
from dataclasses import replace

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.base import Allowed, Within
from manyoyo_mcp.policy.fields import OURS
from manyoyo_mcp.policy.labelled import OF, matches

_INSTRUCTION = re.compile(r"([A-Za-z]+)(?:[\t\v\f\r ]+(.*))?", re.DOTALL)
_OTHERS = frozenset(
    [
        "ARG",
        "CMD",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "HEALTHCHECK",
        "MAINTAINER",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    ]
)
"""Instructions that read nothing but the image that they are in."""
_NAME = r"[A-Za-z0-9][\w./:@-]*"
_FROM = re.compile(rf"({_NAME})(?:[\t ]+AS[\t ]+([A-Za-z][\w.-]*))?[\t ]*", re.IGNORECASE | re.ASCII)
_FLAGS = re.compile(r"\A(?:--(?:from|chown|chmod)=[\w./:@-]+[\t ]+)*", re.ASCII)
"""Of a COPY. No possessive quantifiers: those of Python before 3.11.5 match more than they say (cpython#106052)."""
COPIED = re.compile(r"--from=(\S+)", re.ASCII)
"""Of the flags of a COPY, what it copies from."""
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""White space, for one, that ends a word for the engine and is none here."""
KEY = r"[A-Za-z_][A-Za-z0-9_.-]*"
VALUE = r"""(?:[^\s"'\\`]|"[^"\\`]*"|'[^'\\`]*')*"""
PAIRS = re.compile(rf"(?:{KEY}={VALUE}(?:\s+|\Z))+")
"""NAME=value of an ENV or a LABEL, written in no way that the engine could read differently."""
_LONGEST = 128 << 10
"""Letters of an instruction: what a command can be given as one word (execve(2), MAX_ARG_STRLEN)."""
_QUOTES = str.maketrans("", "", "\"'`")
"""What the engine takes away from the words of ADD before it asks whether they are a URL."""


class Judge:
    """Of the instructions of one Dockerfile, in their order, each as it is written. It takes what it knows and refuses the rest, quotes and variables
    first: the engine reads them in its own way. `images`: those that are none of its stages."""

    def __init__(self, within: Within) -> None:
        self._within = within
        self._stages: list[str] = []
        self._stage = ""  # whose name means a stage once the next has begun, an image before
        self.images: list[str] = []

    def check(self, instruction: str) -> None:
        """Raises PolicyRefused for one that would read an image that the sandbox may not have, or what the host's engine reaches."""
        if len(instruction) > _LONGEST:
            raise refused(instruction, f"it is longer than {_LONGEST >> 10} KiB.")
        keyword, rest = parts(instruction)
        if keyword != "RUN" and _CONTROL.search(instruction):
            raise refused(instruction, "it has control characters.")
        if keyword in ("ADD", "COPY", "VOLUME") and "\\" in rest and re.search(r"(?:\A|\s)\[", rest):
            raise refused(
                instruction, "a list in JSON has no escapes in this isolation."
            )  # which could write a variable
        match keyword:
            case "FROM":
                named = _FROM.fullmatch(rest)
                if named is None:
                    raise refused(
                        instruction, "FROM names an image or a stage in this isolation, without flags and variables."
                    )
                self._stages.append(self._stage)
                self._stage = (named[2] or "").lower()
                if named[1].lower() != "scratch":
                    self._check_image(named[1])
            case "COPY":
                self._check_copy(instruction, rest)
            case "ADD":
                if re.search(r"//|[$\\]", rest.translate(_QUOTES)) or "--from" in rest.lower():
                    raise refused(instruction, "the host's engine would fetch it, from where the host is.")
                self._check_copy(instruction, rest)
            case "LABEL":
                self._check_labels(instruction, rest)
            case "RUN":
                if rest.startswith("--"):
                    raise refused(instruction, "RUN has no flags in this isolation.")
            case "ONBUILD":
                raise refused(instruction, "what it says would be done in other builds.")
            case _ if keyword not in _OTHERS:
                raise refused(instruction, "it is no instruction that is known here.")

    def _check_copy(self, instruction: str, rest: str) -> None:
        after = _FLAGS.sub("", rest)
        if after.lstrip().startswith("--"):
            raise refused(instruction, "of flags COPY has --from, --chown and --chmod here, written plainly.")
        for each in COPIED.findall(rest.removesuffix(after)):
            if not each.isdigit():
                self._check_image(each)
            elif each not in map(str, range(len(self._stages) - 1)):  # which the engine would take for an image's name
                raise refused(instruction, f"there is no stage {each[:20]} before it.")

    def _check_image(self, name: str) -> None:
        if name.lower() in filter(None, self._stages):
            return
        if not matches(self._within, name):
            raise refused(name, f"it is not among the images that may be used here: {', '.join(self._within.images)}.")
        self.images.append(name)

    def _check_labels(self, instruction: str, rest: str) -> None:
        if instruction == ours(self._within):
            return
        plain = rest.translate(_QUOTES).replace("\\", "")
        named = re.match(r"[^\s=]*\$", plain) or "$" in plain.rpartition("=")[0]
        if OURS.rstrip(".") in plain.lower() or (named and not PAIRS.fullmatch(rest)):
            raise refused(instruction, f"labels of {OURS}* are not to be given, nor such whose name is a variable.")


def parts(instruction: str) -> tuple[str, str]:
    """An instruction's keyword, in capitals, and the rest; nothing where it is none."""
    found = _INSTRUCTION.fullmatch(instruction)
    return (found[1].upper(), (found[2] or "").lstrip()) if found is not None else ("", "")


def ours(within: Within) -> str:
    """The instruction that says whose an image is."""
    return f'LABEL {OF}="{within.sandbox}"'


def check(within: Within, instructions: Sequence[str]) -> list[str]:
    """The images that are named. Raises PolicyRefused as `Judge.check` does."""
    judge = Judge(within)
    for each in instructions:
        judge.check(each)
    return judge.images


def committed(allowed: Allowed, container: str) -> Allowed:
    """A container of the sandbox's as an image that has no name yet."""
    query = {"container": container, "pause": "0", "author": allowed.query.get("author", "")}
    return replace(allowed, query={name: value for name, value in query.items() if value})


def refused(what: str, why: str) -> PolicyRefused:
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
    """A build that runs nothing: what it makes has the sandbox's names, and nothing comes from what others have built."""
    query = allowed.query
    check_tags(within, [given] if isinstance(given := query.get("t", []), str) else given)
    if query.get("platform"):
        raise refused(
            "A platform", "where it is not that of the image which is there, the engine fetches another by its name."
        )
    told = {
        "networkmode": "none",
        "nocache": "1",  # of the cache whatever fits is taken, whoever made it
        "pull": "0",
        "cgroupparent": "",  # a name of ours is none where systemd has the cgroups
    }
    return replace(allowed, query={**query, **told})

"""A Dockerfile taken apart for a builder that runs no commands."""

import io
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from manyoyo_mcp.engines.buildlog import Instruction, instructions
from manyoyo_mcp.engines.stepwise import ARGUMENT, Recipe, Stage, archives, command, unpacked
from manyoyo_mcp.errors import InvalidArgument, PolicyRefused

MARK = "LABEL whose=ours"
TEXT = r"""# of two stages
ARG VERSION=1
FROM python:3.13 AS one
ARG VERSION
ENV A="a  b" \
    B=2
RUN echo "$A  $B" \
  > /made
# a comment
COPY --chown=1 data /data
ENTRYPOINT ["x"]
FROM one
CMD y
run true
RUN ["a", "b c"]
COPY --from=one --chown=2 /made /
COPY --from=0 /made /
ENTRYPOINT ["z"]
"""


def batches(text: str, target: str | None = None, **given: str) -> Iterator[tuple[Stage, Any, Instruction | None]]:
    """Each batch and the RUN after it, as if all were built: images are numbered."""
    made = 0
    for stage in Recipe(text, given, MARK).stages(target):
        for batch, run in stage.parts():
            built = stage.batch(batch) if batch else None
            for done in (built, run):
                made += done is not None
                stage.image = f"sha256:{made}"
            yield stage, built, run[1] if run else None


def test_a_dockerfile_is_taken_apart() -> None:
    found = [(built.lines if built else None, built.numbers if built else None, run.raw if run else None)
             for _, built, run in batches(TEXT)]  # fmt: skip
    assert found == [
        (
            ["ARG VERSION=1", "FROM python:3.13", MARK, "ARG VERSION", 'ENV A="a  b"     B=2'],
            [1, 2, None, 3, 4],
            'RUN echo "$A  $B"   > /made',
        ),
        (
            ["ARG VERSION=1", "FROM sha256:2", "ARG VERSION", "COPY --chown=1 data /data", 'ENTRYPOINT ["x"]'],
            [None, None, None, 6, 7],
            None,
        ),
        (["ARG VERSION=1", "FROM sha256:3", MARK, "CMD y"], [None, 8, None, 9], "run true"),
        (None, None, 'RUN ["a", "b c"]'),
        (
            [
                "ARG VERSION=1",
                "FROM sha256:6",
                "CMD y",
                "COPY --from=sha256:3 --chown=2 /made /",
                "COPY --from=sha256:3 /made /",
                'ENTRYPOINT ["z"]',
            ],
            [None, None, None, 12, 13, 14],
            None,
        ),
    ]


def test_what_is_built_and_no_more() -> None:
    assert len(list(batches(TEXT, "one"))) == 2 and len(list(batches(TEXT, "0"))) == 2
    assert len(list(batches(TEXT, "1"))) == 5
    with pytest.raises(InvalidArgument, match="target two"):
        list(batches(TEXT, "two"))


@pytest.mark.parametrize(
    "text", ["RUN true\nFROM x\n", "FROM x\nENV A=b \\", "# escape=`\nFROM x\nENV A=b `", "COPY a b\nFROM x\n"]
)
def test_what_could_be_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="line"):
        list(batches(text))


def test_a_backtick_stays_what_it_is() -> None:
    ((_, built, _),) = batches("# escape=`\nFROM x\nENV A=`\n  C:\\\n")
    assert built.text == f"# escape=`\nFROM x\n{MARK}\nENV A=  C:\\\n"


def test_whose_context_is_read() -> None:
    for line, reads in (("COPY a b", True), ("ADD a b", True), ("COPY --from=0 a b", False), ("ENV COPY=a", False)):
        assert [built.reads_context for _, built, _ in batches(f"FROM x AS y\n{line}\n")] == [reads], line


def test_what_the_builder_says_is_told_by_the_dockerfile_that_was_given() -> None:
    built = list(batches(TEXT))[1][1]
    said = [
        {"stream": "Step 1/5 : ARG VERSION=1"},
        {"stream": "\n"},
        {"stream": "Step 2/5 : FROM sha256:2"},
        {"stream": "\n"},
        {"stream": " ---> 2\n"},
        {"stream": "Step 3/5 : ARG VERSION"},
        {"stream": "Step 4/5 : COPY --chown=1 data /data"},
        {"stream": "\n"},
        {"stream": " ---> 3\n"},
        {"aux": {"ID": "sha256:3"}},
        {"stream": "Successfully built 3\n"},
    ]
    assert list(built.told(iter(said))) == [
        {"stream": "Step 6/14 : COPY --chown=1 data /data"},
        {"stream": "\n"},
        {"stream": " ---> 3\n"},
        {"aux": {"ID": "sha256:3"}},
    ]
    for step in ("Step 4/5 : RUN true", "Step 6/5 : COPY a b"):
        with pytest.raises(PolicyRefused, match="reads"):
            list(built.told(iter([{"stream": step}])))


def arguments(text: str, **given: str) -> list[dict[str, str | None]]:
    return [stage.arguments() for stage, _, run in batches(text, **given) if run]


def test_the_arguments_that_a_run_has() -> None:
    assert arguments(TEXT, VERSION="2", HTTP_PROXY="p", OTHER="x") == [
        {"HTTP_PROXY": "p", "VERSION": "2"},
        {"HTTP_PROXY": "p"},
        {"HTTP_PROXY": "p"},
    ]
    assert arguments(TEXT) == [{"VERSION": "1"}, {}, {}]
    text = 'FROM x\nARG A\nARG B=\nARG C=c D="d e" E=$C\nRUN one\nARG A=a\nRUN two\n'
    assert arguments(text)[0] == {"B": "", "C": "c", "D": None, "E": None}
    assert arguments(text)[1]["A"] == "a" and arguments(text, A="given")[0]["A"] == "given"
    assert Recipe(TEXT, {"VERSION": "2", "no_proxy": "x", "OTHER": "x"}, MARK).unused() == ["OTHER"]
    stage = next(batches(text))[0]
    assert stage.asking(["D", "E"]).lines[-2:] == [f'LABEL {ARGUMENT}D="${{D}}"', f'LABEL {ARGUMENT}E="${{E}}"']


def test_the_command_of_a_run() -> None:
    (shell,) = instructions("RUN echo  'a  b'")
    (words,) = instructions('RUN ["a", "b c"]')
    assert command(shell, ["/bin/sh", "-c"], {}) == ["/bin/sh", "-c", "echo  'a  b'"]
    assert command(words, ["/bin/sh", "-c"], {}) == ["a", "b c"]
    given = {"A": "it's", "B": ""}
    exported = "export A='it'\"'\"'s'; export B=''; "
    assert command(shell, ["/bin/bash", "-ec"], given) == ["/bin/bash", "-ec", f"{exported}echo  'a  b'"]
    assert command(words, ["/bin/sh", "-c"], given) == ["/bin/sh", "-c", f'{exported}exec "$@"', "sh", "a", "b c"]
    assert command(shell, ["/usr/bin/python3", "-c"], {})[0] == "/usr/bin/python3"
    with pytest.raises(PolicyRefused, match="python3"):
        command(shell, ["/usr/bin/python3", "-c"], given)


def packed(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_what_an_add_would_unpack() -> None:
    magic = [b"\x1f\x8b\x08x", b"BZh9", b"\xfd7zXZ\0x", b"\x28\xb5\x2f\xfdx", b"\x50\x2a\x4d\x18x", packed(x=b"y")]
    context = packed(plain=b"text" * 400, nothing=b"", **{f"a{at}_tar": content for at, content in enumerate(magic)})
    found = archives(iter([context[:700], context[700:]]))
    assert found == {f"a{at}.tar" for at in range(len(magic))}
    for line, archive in (
        ("ADD a1.tar plain /", "a1.tar"), ("ADD ./a1.tar /", "a1.tar"), ("add --chown=1 *.tar /", "a0.tar"), ('ADD ["/a2.tar", "/"]', "a2.tar"),
        ("ADD 'a1.tar' /", "a1.tar"), ("ADD plain /a1.tar", None), ("ADD . /", None), ("ADD it's /", None),
    ):  # fmt: skip
        (add,) = instructions(line)
        assert unpacked(add, found) == archive, line

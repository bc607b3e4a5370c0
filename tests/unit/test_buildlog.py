"""The event streams of both engines, as they wrote them, become steps with their lines, exit codes and output."""

import pytest

from manyoyo_mcp.engines.base import Step
from manyoyo_mcp.engines.buildlog import BuildLog, images, instructions

STAGES = r"""# escape=\
ARG BASE=localhost/base:latest
FROM ${BASE} AS one
# a comment
ENV A=1 \
    # comment in a continuation
    B=2

ONBUILD RUN echo onbuild-$A
RUN echo hello && \
    # and this

    echo world
FROM scratch AS unused
COPY --from=one /etc/hostname /x
FROM one AS two
LABEL x="a  b"
RUN ["/bin/echo",   "exec form"]
RUN exit 7
"""

PODMAN = r"""[1/3] STEP 1/4: FROM localhost/base:latest AS one
[1/3] STEP 2/4: ENV A=1     B=2
--> Using cache 26f97ee52658f5f182c1256a0d2440a552e936056dad4ed6fc1849d84f64b830
--> 26f97ee52658
[1/3] STEP 3/4: ONBUILD RUN echo onbuild-$A
--> 6e7271701881
[1/3] STEP 4/4: RUN echo hello &&     echo world
hello
world
--> c4bc4b337b0a
[3/3] STEP 1/4: FROM c4bc4b337b0ad3e0d4e8efa56e4b41083337b8b4e645a599dfd41e6341121680 AS two
[3/3] STEP 2/5: RUN echo onbuild-$A
onbuild-1
--> c372f804c754
[3/3] STEP 3/5: LABEL x="a  b"
--> 7cb88c080166
[3/3] STEP 4/5: RUN ["/bin/echo",   "exec form"]
exec form
--> 564d195090c1
[3/3] STEP 5/5: RUN exit 7
"""

DOCKER = r"""Step 1/11 : ARG BASE=localhost/base:latest
Step 2/11 : FROM ${BASE} AS one
 ---> 8e3674b868a7
Step 3/11 : ENV A=1     B=2
 ---> Using cache
 ---> 836b1d9ca8e0
Step 4/11 : ONBUILD RUN echo onbuild-$A
 ---> Running in 641efdefaca0
 ---> Removed intermediate container 641efdefaca0
 ---> 4ebaefdbf5d5
Step 5/11 : RUN echo hello &&     echo world
 ---> Running in 96dcdec4430c
hello
world
 ---> Removed intermediate container 96dcdec4430c
 ---> 61587b67fff6
Step 6/11 : FROM scratch AS unused
 --->
Step 7/11 : COPY --from=one /etc/hostname /x
 ---> 6783ea1eed5c
Step 8/11 : FROM one AS two
# Executing 1 build trigger
 ---> Running in 28f926e684d3
onbuild-1
 ---> Removed intermediate container 28f926e684d3
 ---> e2eb8061a3fa
Step 9/11 : LABEL x="a  b"
 ---> Running in c2345fc2930a
 ---> 86d97ad3fed0
Step 10/11 : RUN ["/bin/echo",   "exec form"]
 ---> Running in 94110eedd2fd
exec form
 ---> Removed intermediate container 94110eedd2fd
 ---> c5a9be2d82d2
Step 11/11 : RUN exit 7
 ---> Running in fa5d9f03e5df
 ---> Removed intermediate container fa5d9f03e5df
"""


def read(dockerfile: str, stream: str, error: str = "", code: int | None = None) -> BuildLog:
    seen: list[Step] = []
    log = BuildLog(dockerfile, seen.append)
    for line in stream.splitlines(keepends=True):
        log.feed({"stream": line})
    if error:
        log.feed({"errorDetail": {"message": error} | ({"code": code} if code is not None else {}), "error": error})
    log.end_step()
    assert seen == log.steps
    return log


def test_a_step_is_named_by_the_dockerfile() -> None:
    dockerfile = "FROM a\nRUN print-what-it-likes\nRUN true\n"
    log = read(dockerfile, "STEP 1/3: FROM a\nSTEP 2/3: RUN print-what-it-likes\nSTEP 3/3: RUN something else\n")
    assert [step.instruction for step in log.steps] == ["FROM a", "RUN print-what-it-likes", "RUN true"]


def test_podman_counts_in_stages() -> None:
    log = read(STAGES, PODMAN, 'building at STEP "RUN exit 7": while running runtime: exit status 7\n')
    assert [(step.stage, step.number, step.total, step.line) for step in log.steps] == [
        (1, 1, 4, 3), (1, 2, 4, 5), (1, 3, 4, 9), (1, 4, 4, 10),
        (3, 1, 4, 16), (3, 2, 5, 16), (3, 3, 5, 17), (3, 4, 5, 18), (3, 5, 5, 19),
    ]  # fmt: skip
    assert log.steps[3].instruction == "RUN echo hello && echo world"
    assert log.steps[4].instruction == "FROM one AS two"
    assert [step.cached for step in log.steps] == [False, True] + [False] * 7
    assert log.exit_code == 7
    assert log.failed_step is log.steps[-1]


def test_dockerd_counts_through() -> None:
    log = read(STAGES, DOCKER, "The command '/bin/sh -c exit 7' returned a non-zero code: 7", 7)
    assert [step.number for step in log.steps] == list(range(1, 12))
    assert [step.line for step in log.steps] == [2, 3, 5, 9, 10, 14, 15, 16, 17, 18, 19]
    assert [step.number for step in log.steps if step.cached] == [3]
    assert log.exit_code == 7
    assert log.output.strip() == ""


def test_heredocs_have_their_lines_and_programs_announce_no_steps() -> None:
    dockerfile = (
        "# syntax=docker/dockerfile:1\nFROM --platform=$BUILDPLATFORM base AS a\n"
        "COPY <<EOF <<'FOO' /tmp/\nhello\nEOF\n# not a comment\nRUN nothing\nFOO\n"
        "RUN python3 - <<-PY\n\tprint(1)\n\tPY\nRUN exit 9\n"
    )
    stream = (
        "STEP 1/4: FROM --platform=linux/amd64 base AS a\n"
        "STEP 2/4: COPY <<EOF <<'FOO' /tmp/ (hello) (# not a comment)\n--> 59a5ac93604a\n"
        "STEP 3/4: RUN python3 - <<-PY (print(1))\n1\n"
        "STEP 4/5: RUN one of a build in a build\nSTEP 1/4: FROM base\nSTEP 4/4: COPY a b\nStep 4/4 : RUN exit 9\n"
        "--> Using cache 4259399d2ab8\n"
        "STEP 4/4: RUN exit 9\n"
    )
    log = read(dockerfile, stream, 'building at STEP "RUN exit 9": while running runtime: exit status 9\n')
    assert [step.line for step in log.steps] == [2, 3, 9, 12]
    assert not any(step.cached for step in log.steps)


def test_output_is_that_of_the_last_step() -> None:
    log = read("FROM base\nRUN one\nRUN two\n", "STEP 1/3: FROM base\nSTEP 2/3: RUN one\nno\nSTEP 3/3: RUN two\nyes\n")
    assert log.output == "yes\n"


@pytest.mark.parametrize(
    ("output", "error", "code", "said"),
    [
        # the exit code stands at the message's end, whatever the instruction says
        ("", 'building at STEP "RUN echo exit status 5; exit 3": while running runtime: exit status 3\n', 3, "exit"),
        ("container exited on killed\n", 'building at STEP "RUN x": while running runtime: exit status 1\n', 137, "x"),
        ("container exited on segmentation fault\n", "while running runtime: exit status 1\n", 139, "runtime"),
        ("container exited on killed\n", "while running runtime: exit status 4\n", 4, "runtime"),
        ("container exited on killed\nso it says\n", "while running runtime: exit status 1\n", 1, "runtime"),
        (
            "error running container: from /usr/bin/crun creating container for [nosuch x]: executable file `nosuch` "
            "not found in $PATH: No such file or directory\n: exit status 1\n",
            'building at STEP "RUN nosuch x": while running runtime: exit status 1\n',
            None,
            "the container could not be started: [nosuch x]: executable file `nosuch` not found",
        ),
        ("", 'building at STEP "COPY a /a": checking on sources under "/x": copier: stat: "/a": no such', None, "/a"),
    ],
)
def test_exit_codes_of_podman(output: str, error: str, code: int | None, said: str) -> None:
    log = read("FROM base\nRUN x\n", "STEP 1/2: FROM base\nSTEP 2/2: RUN x\n" + output, error)
    assert log.exit_code == code
    assert said in log.error


def test_dockerd_prints_no_signals() -> None:
    stream = "Step 1/2 : FROM base\nStep 2/2 : RUN x\n ---> Running in fa5d9f03e5df\ncontainer exited on killed\n"
    assert read("FROM base\nRUN x\n", stream, "The command 'x' returned a non-zero code: 1", 1).exit_code == 1


@pytest.mark.parametrize(
    ("dockerfile", "stream", "error", "line", "instruction"),
    [
        ("FROM a\n\nRUNN x\n", "", "dockerfile parse error on line 3: unknown instruction: RUNN", 3, "RUNN x"),
        ("FROM a\nRUN x \\\n y z\n", "", "dockerfile parse error on line 3: unknown flag: x", 2, "RUN x y z"),
        ("ARG A\nFROM a b\n", "", "FROM requires either one argument, or three", 2, "FROM a b"),
        ("FROM a\nFROM b\n", "", "FROM requires either one argument, or three", None, ""),
        ("FROM a\nENV x\n", "", "parsing main Dockerfile: /x/Dockerfile: ENV must have two arguments", 2, "ENV x"),
        ("FROM ${X}\n", "", "determining starting point for build: no FROM statement found", 1, "FROM ${X}"),
        (
            "FROM a\nENV A=\"x\n", "STEP 1/2: FROM a\n",
            'resolving step {Value:env Original:ENV A="x Flags:[] StartLine:2 EndLine:2}: unexpected end', 2, 'ENV A="x',
        ),
        (
            "ARG V\nFROM a:$V\n", "STEP 1/1: FROM a:\n",
            'creating build container: parsing reference "a:": invalid reference format', 2, "FROM a:$V",
        ),
        ("FROM a\n", "", 'The target "x" was not found in the provided Dockerfile', None, ""),
        ("FROM a\nRUN x\nRUN y\n", "STEP 1/3: FROM a\nSTEP 2/3: RUN x\n",
         'building at STEP "RUN x": error on line 3', 2, "RUN x"),
    ],
)  # fmt: skip
def test_the_step_that_was_refused(
    dockerfile: str, stream: str, error: str, line: int | None, instruction: str
) -> None:
    step = read(dockerfile, stream, error).failed_step
    assert (step.line, step.instruction) == (line, instruction) if step is not None else line is None


@pytest.mark.parametrize(
    ("dockerfile", "expected"),
    [
        ("# escape=`\nFROM a\nRUN dir C:\\\nCOPY x `\n y\n", [(2, "FROM a"), (3, "RUN dir C:\\"), (4, "COPY x y")]),
        ("\n# escape=`\nFROM a \\\n AS b\n", [(3, "FROM a AS b")]),
        ("FROM a\nRUN x \\  \n# c\n\n  y\\\nz \\\\\nRUN w\n", [(1, "FROM a"), (2, "RUN x yz \\\\"), (7, "RUN w")]),
        ("from a\r\nrun b \\\r\n c\r\n", [(1, "from a"), (2, "run b c")]),
        ("\ufeffFROM a\n", [(1, "FROM a")]),
        ("FROM a\nRUN cat <<EOF > /x && \\\n true\nRUN no\nEOF\nRUN y\n", [
            (1, "FROM a"), (2, "RUN cat <<EOF > /x && true"), (6, "RUN y")]),
        ("FROM a\nRUN <<\"A\" cat <<-B\n\tA\nA\n\tB\nCMD z\n", [(1, "FROM a"), (2, 'RUN <<"A" cat <<-B'), (6, "CMD z")]),
        ("FROM a\nONBUILD RUN <<E\nx\nE\nENV x=<<E\nRUN echo '<<E' \"<<E\" a<<E\n", [
            (1, "FROM a"), (2, "ONBUILD RUN <<E"), (5, "ENV x=<<E"), (6, "RUN echo '<<E' \"<<E\" a<<E")]),
        ("FROM a\nRUN x \\\n", [(1, "FROM a"), (2, "RUN x")]),
    ],
)  # fmt: skip
def test_instructions(dockerfile: str, expected: list[tuple[int, str]]) -> None:
    assert [(each.line, each.text) for each in instructions(dockerfile)] == expected


def test_instructions_know_stage_and_heredoc() -> None:
    found = instructions("ARG A\nFROM a\nRUN <<EOF\nFROM c\nEOF\nfrom b\nCMD x\n")
    assert [(each.stage, each.keyword, each.heredoc) for each in found] == [
        (0, "ARG", ""), (1, "FROM", ""), (1, "RUN", "EOF"), (2, "FROM", ""), (2, "CMD", ""),
    ]  # fmt: skip


def test_a_pull_is_shown_without_its_progress() -> None:
    log = BuildLog("FROM a\n", lambda step: None)
    assert log.feed({"status": "Pulling fs layer", "id": "0123"}) == "0123: Pulling fs layer\n"
    assert log.feed({"status": "Downloading", "id": "0123", "progress": "[=> ]"}) == ""
    log.feed({"aux": {"ID": "sha256:45"}})
    assert log.image_id == "sha256:45"


@pytest.mark.parametrize(
    ("dockerfile", "expected"),
    [
        ("FROM localhost/a\nRUN true\n", ["localhost/a"]),
        ("FROM --platform=linux/amd64 localhost/a:1 AS one\nFROM One\nCOPY --from=one /x /x\n", ["localhost/a:1"]),
        ("FROM scratch\nCOPY --from=localhost/b /x /x\n", ["localhost/b"]),
        ("FROM a\nRUN --mount=type=bind,from=localhost/c,target=/c true\n", ["a", "localhost/c"]),
        ("FROM a\nFROM b\nCOPY --from=0 /x /x\n", ["a", "b"]),
        ("ARG BASE=localhost/a\nARG TAG\nFROM ${BASE}:${TAG:-2}\nFROM $BASE\n", ["localhost/a:2", "localhost/a"]),
        ('ARG ONE=a TWO="b"\nFROM $ONE\nFROM $TWO\n', ["a", "b"]),
        ("FROM a AS one\nFROM b AS two\nFROM c AS three\n", ["a", "b"]),
        (
            "FROM a\nRUN echo from=b --from=c\n",
            ["a", "b", "c"],
        ),  # one more is no harm where it is there, and else an error
        ("FROM $UNKNOWN\n", []),
    ],
)
def test_the_images_that_a_dockerfile_begins_with(dockerfile: str, expected: list[str]) -> None:
    assert images(dockerfile, {}, "two" if "three" in dockerfile else None) == expected


def test_a_build_argument_is_more_than_its_default() -> None:
    assert images("ARG BASE=a\nFROM $BASE\nFROM ${OTHER}\n", {"BASE": "b", "OTHER": "c"}) == ["b"]

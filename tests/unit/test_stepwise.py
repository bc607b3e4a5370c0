"""A Dockerfile taken apart for a builder that runs no commands."""

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from manyoyo_mcp.engines import archives
from manyoyo_mcp.engines.archives import Contents, look
from manyoyo_mcp.engines.buildlog import Instruction, instructions
from manyoyo_mcp.engines.dockerfile import by_owners, command, exported, owner_of, sources, unpacked
from manyoyo_mcp.engines.hostbuilding import _Work
from manyoyo_mcp.engines.stepwise import ARGUMENT, Batch, Recipe, Stage
from manyoyo_mcp.errors import EngineFailed, InvalidArgument, PolicyRefused

MARK = "LABEL whose=ours"
IMAGES = {"python:3.13": "python:3.13", "x": "x"}
"""By name; the ids are names here."""
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
    """Each batch and the RUN after it, as if all were built: images are numbered, and what is not plain has the value asked."""
    made = 0
    for stage in Recipe(text, given, MARK, IMAGES).stages(target):
        for batch, run in stage.parts():
            built = stage.batch(batch, ["of", "the image"]) if batch else None
            if built and run:
                stage.values = {name: "asked" if value is None else value for name, value in stage.arguments().items()}
            for done in (built, run):
                made += done is not None
                stage.image = f"sha256:{made}"
            yield stage, built, run[1] if run else None


def numbers(built: Any) -> list[int | None]:
    return [each and each[0] for each in built.meant]


def test_a_dockerfile_is_taken_apart() -> None:
    found = [
        (built.lines if built else [], numbers(built) if built else [], run.raw if run else None)
        for _, built, run in batches(TEXT)
    ]
    assert found == [
        (
            ["ARG VERSION=1", "FROM python:3.13", MARK, "ARG VERSION", 'ENV A="a  b"     B=2'],
            [1, 2, None, 3, 4],
            'RUN echo "$A  $B"   > /made',
        ),
        (
            ["ARG VERSION=1", "FROM sha256:2", 'ARG VERSION="1"', "COPY --chown=1 data /data", 'ENTRYPOINT ["x"]'],
            [None, None, None, 6, 7],
            None,
        ),
        (["ARG VERSION=1", "FROM sha256:3", MARK, "CMD y"], [None, 8, None, 9], "run true"),
        ([], [], 'RUN ["a", "b c"]'),
        (
            [
                "ARG VERSION=1",
                "FROM sha256:6",
                'CMD ["of", "the image"]',
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


def test_an_escape_stays_what_it_is() -> None:
    ((_, built, _),) = batches("# escape=`\nFROM x\nENV A=`\n  C:\\\n")
    assert built.text == f"# escape=`\nFROM x\n{MARK}\nENV A=  C:\\\n"
    ((_, built, _),) = batches("FROM x\nENV A=C:\\\\")
    assert built.text == f"FROM x\n{MARK}\nENV A=C:\\\\\n"


def test_whose_context_is_read() -> None:
    for line, reads in (("COPY a b", True), ("ADD a b", True), ("COPY --from=x a b", False), ("ENV COPY=a", False)):
        assert [built.reads_context for _, built, _ in batches(f"FROM x AS y\n{line}\n")] == [reads], line


def test_what_the_builder_says_is_told_by_the_dockerfile_that_was_given() -> None:
    built = list(batches(TEXT.replace("COPY --chown=1", "ADD --chown=1")))[1][1]
    said = [
        {"stream": "Step 1/5 : ARG VERSION=1"}, {"stream": "\n"}, {"stream": "Step 2/5 : FROM sha256:2"}, {"stream": "\n"}, {"stream": " ---> 2\n"},
        {"stream": 'Step 3/5 : ARG VERSION="1"'}, {"stream": "Step 4/5 : COPY --chown=1 data /data"}, {"stream": "\n"}, {"stream": " ---> 3\n"},
        {"aux": {"ID": "sha256:3"}}, {"stream": "[Warning] One or more build-args [A] were not consumed\n"}, {"stream": "Successfully built 3\n"},
    ]  # fmt: skip
    assert list(built.told(iter(said))) == [
        {"stream": "Step 6/14 : ADD --chown=1 data /data"},
        {"stream": "\n"},
        {"stream": " ---> 3\n"},
        {"aux": {"ID": "sha256:3"}},
    ]
    for step in ("Step 4/5 : RUN true", "Step 6/5 : COPY a b"):
        with pytest.raises(PolicyRefused, match="reads"):
            list(built.told(iter([{"stream": step}])))
    assert built.complaint("dockerfile parse error line 5: x") == "dockerfile error on line 11: x"
    assert built.complaint("error on line 1: x") == "error on line 1: x"
    assert built.complaint("failed to parse f: ADD must have x") == "error on line 10: ADD must have x"
    assert built.complaint("failed to parse f: ENV must have x") == "failed to parse f: ENV must have x"


def arguments(text: str, **given: str) -> list[dict[str, str]]:
    return [dict(stage.values) for stage, _, run in batches(text, **given) if run]


def test_the_arguments_that_a_run_has() -> None:
    proxy = {"HTTP_PROXY": "p"}
    assert arguments(TEXT, VERSION="2", OTHER="x", **proxy) == [proxy | {"VERSION": "2"}, proxy, proxy]
    assert arguments(TEXT) == [{"VERSION": "1"}, {}, {}]
    text = 'ARG V=1\nFROM x\nARG A\nARG B=\nARG V C=c D="d e" E=$C\nRUN one\nARG A=a\nRUN two\nARG A\nRUN three\n'
    one = {"B": "", "V": "1", "C": "c", "D": "asked", "E": "asked"}
    assert arguments(text) == [one, one | {"A": "a"}, one]
    assert arguments(text, A="given")[2]["A"] == "given"
    assert Recipe(TEXT, {"VERSION": "2", "no_proxy": "x", "OTHER": "x"}, MARK, {}).unused() == ["OTHER"]


def test_what_is_asked_of_arguments_is_asked_where_they_are_declared() -> None:
    text = "FROM x\nENV P=/a\nARG Q=$P\nCOPY a b\nENV P=/b\nRUN one\nARG R=${Q}\nRUN two\nENV Z=z\n"
    asked, later = [stage.asking().lines for stage, _, run in batches(text) if run]
    assert asked == ["FROM x", MARK, "ENV P=/a", "ARG Q=$P", f'LABEL {ARGUMENT}Q="${{Q}}"', "ENV P=/b"]
    assert later == ["FROM sha256:2", 'ARG Q="asked"', "ARG R=${Q}", f'LABEL {ARGUMENT}R="${{R}}"']
    given = [built.lines for _, built, _ in batches("FROM x\nARG T\nARG U=$T\nRUN one\nENV Z=z\n", T="s3cret")][1]
    assert given == ["FROM sha256:2", 'ARG T U="asked"', "ENV Z=z"], "what was given is in no image's history"
    *_, last = [built.lines for _, built, _ in batches(text)]
    assert last == ["FROM sha256:4", 'ARG Q="asked" R="asked"', "ENV Z=z"]
    stage = next(batches(text))[0]
    assert stage._quoted('a "$b" \\ `') == '"a \\"\\$b\\" \\\\ `"'


def test_what_a_name_means() -> None:
    text = "FROM x AS python\nFROM python:3.13 AS other\nCOPY --from=Python --chown=0 /a /\nCOPY --from=python:3.13 /a /\nFROM OTHER\nCOPY --from=1 /a /\n"
    found = [line for stage in Recipe(text, {}, MARK, {"x": "sha256:a", "python:3.13": "sha256:b"}).stages(None)
             for batch, _ in stage.parts() for line in stage.batch(batch).lines if line != MARK and not setattr(stage, "image", "sha256:c")]  # fmt: skip
    assert found == [
        "FROM sha256:a", "FROM sha256:b", "COPY --from=sha256:c --chown=0 /a /", "COPY --from=sha256:b /a /", "FROM sha256:c", "COPY --from=sha256:c /a /",
    ]  # fmt: skip
    for unknown in (
        "FROM y\n",
        "FROM x\nCOPY --from=y / /\n",
        "FROM x\nCOPY --from=0 / /\n",
        "FROM x AS one\nCOPY --from=one / /\n",
    ):
        with pytest.raises(PolicyRefused, match="none of the stages"):
            list(batches(unknown))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("COPY a b", None),
        ("ENV COPY --from=x", None),
        ("COPY --from=sha256:a a /b c/", ("sha256:a", ["/a", "//b"])),
        ('COPY --chown=0 --from=a ["/a b", "c"]', ("a", ["//a b"])),
        ("COPY --from=a /p\u00a0q \u2003 c", ("a", ["/", "/"])),
        ('COPY --from=a ["\\\\ud800", "c"]', ("a", ["/"])),
        ("COPY --from=a /lib/*.so $X c", ("a", ["/", "/"])),
        ("COPY --from=a 'a b' c", ("a", ["/", "/"])),
        ("COPY --from=a /l/../a b/.. c", ("a", ["/", "/"])),
        ("COPY --from=a a\\b a?c [x] d", ("a", ["/", "/", "/"])),
    ],
)
def test_what_is_copied_from_images(line: str, expected: object) -> None:
    assert sources(line) == expected


def saved(*layers: list[tuple[str, bytes, str]], packed_: bool = False, same: bool = False) -> bytes:
    """An image as it is saved, of these layers: paths, types, aims."""
    files: dict[str, bytes] = {"0123.json": b"{}"}
    for at, entries in enumerate(layers):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as layer:
            for name, kind, aim in entries:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, aim
                layer.addfile(info)
        files[f"{at}/layer.tar"] = gzip.compress(buffer.getvalue()) if packed_ else buffer.getvalue()
    order = [*files][:0:-1][::-1]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in reversed(files.items()):  # in no order that matters
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if same:
            link = tarfile.TarInfo("again/layer.tar")
            link.type, link.linkname = tarfile.SYMTYPE, "../0/layer.tar"
            archive.addfile(link)
            order.append("again/layer.tar")
        manifest = json.dumps([{"Layers": order}]).encode()
        info = tarfile.TarInfo("manifest.json")
        info.size = len(manifest)
        archive.addfile(info, io.BytesIO(manifest))
    return out.getvalue()


_DIR, _FILE, _LINK, _HARD = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
_DEVICE, _PIPE = tarfile.CHRTYPE, tarfile.FIFOTYPE


@pytest.mark.parametrize(
    ("layers", "odd", "plain"),
    [
        ([[("dev/", _DIR, ""), ("dev/console", _DEVICE, ""), ("app", _FILE, "")]], ["/", "/dev", "/dev/console", "/app/../dev/", "//dev//"], ["/app", "/de", "/dev/con"]),
        ([[("d/p", _PIPE, ""), ("l", _LINK, "d"), ("m", _LINK, "/l"), ("d/up", _LINK, "../m/p")]], ["/l/p", "/m", "/d/up", "/l/../d"], ["/none", "/l/x"]),
        ([[("a", _LINK, "safe")], [("a", _DIR, ""), ("a/p", _PIPE, "")]], ["/a/p"], ["/safe"]),
        ([[("d", _DEVICE, "")], [("h", _HARD, "d")]], ["/h"], ["/x"]),
        ([[("l", _LINK, "/dev"), ("dev/n", _DEVICE, "")], [(".wh.l", _FILE, ""), ("l/x", _FILE, "")]], ["/dev"], ["/l/n"]),
        ([[("d/p", _PIPE, ""), ("l", _LINK, "d"), ("e/h", _HARD, "l"), ("h", _HARD, "l")]], ["/h/p", "/h"], ["/e/h/p"]),
        ([[("loop", _LINK, "loop")]], [], ["/loop", "/"]),
        ([[("a", _FILE, "")], []], [], ["/"]),
    ],
)  # fmt: skip
def test_what_of_an_image_is_not_copied(
    layers: list[list[tuple[str, bytes, str]]], odd: list[str], plain: list[str]
) -> None:
    for archive in (saved(*layers), saved(*layers, packed_=True), saved(*layers, same=len(layers) == 1)):
        contents = Contents(iter([archive[:1000], archive[1000:]]))
        assert all(contents.odd(each) for each in odd), odd
        assert not any(contents.odd(each) for each in plain), plain


def test_an_image_that_cant_be_read_is_not_copied_from() -> None:
    good, manifest = saved([("a", _FILE, "")]), b'[{"Layers": ["0/layer.tar"]}]'
    files = io.BytesIO()
    with tarfile.open(fileobj=files, mode="w") as archive:
        for name, content in (("0/layer.tar", b"zstd, of a newer engine" * 100), ("manifest.json", manifest)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    for broken in (
        b"",
        b"x" * 600,
        good[:1536],
        good[: good.index(b"manifest.json")],
        files.getvalue(),
        good.replace(b'["0/', b'["1/'),
    ):
        with pytest.raises(EngineFailed):
            Contents(iter([broken])).odd("/")


@pytest.mark.parametrize(("limit", "most"), [("_MOST_ENTRIES", 3), ("_MOST_LETTERS", 100)])
def test_what_is_kept_in_mind_of_files_is_bounded(limit: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    links = [(f"{'x' * 30}{at}", _LINK, "y") for at in range(4)]
    few, many = saved(links[:2]), saved(links[:2], links[2:])
    archives_ = {f"{'a' * 30}{at}_tar": b"BZh9" for at in range(4)}
    assert Contents(iter([many])) and look(iter([packed(**archives_)])).archives
    monkeypatch.setattr(archives, limit, most)
    assert Contents(iter([few]))
    with pytest.raises(InvalidArgument, match="links"):
        Contents(iter([many]))
    with pytest.raises(InvalidArgument, match="links"):
        look(iter([packed(**archives_)]))
    with pytest.raises(InvalidArgument, match="dockerignore"):
        look(iter([packed(_dockerignore=b"x" * (513 << 10))]))


def test_the_command_of_a_run() -> None:
    (shell,) = instructions("RUN echo  'a  b'")
    (words,) = instructions('RUN ["a", "b c"]')
    (deep,) = instructions("RUN " + "[" * 100_000)
    assert command(deep, ["sh"], {})[1].startswith("[[")
    assert command(shell, ["/bin/sh", "-c"], {}) == ["/bin/sh", "-c", "echo  'a  b'"]
    assert command(words, ["/bin/sh", "-c"], {}) == ["a", "b c"]
    given = {"A": "it's", "B": "", "UID": "5"}
    assert exported(given) == b"A=it's\nB=\nUID=5\n" and exported({}) == b""
    for bad in ({"A": "a\nb"}, {"A B": "x"}, {"A;B": "x"}):
        with pytest.raises(InvalidArgument):
            exported(bad)
    with pytest.raises(PolicyRefused, match="python3"):
        command(shell, ["/usr/bin/python3", "-c"], given)
    assert command(shell, ["/usr/bin/python3", "-c"], {})[0] == "/usr/bin/python3"
    traced = subprocess.run(command(shell, ["/bin/bash", "-exc"], given), input=exported(given), capture_output=True)
    assert b"it's" not in traced.stderr and b"+ echo" in traced.stderr, traced
    (printed,) = instructions('RUN echo "$A|$B|${ARGUMENT-none}"')
    (passed,) = instructions('RUN ["sh", "-c", "echo \\"$A|$0\\"", "b  c"]')
    for run, argv in ((printed, ["/bin/bash", "-ec"]), (printed, ["/bin/sh", "-c"]), (passed, ["/bin/sh", "-c"])):
        done = subprocess.run(command(run, argv, given), input=exported(given), capture_output=True)
        assert done.stdout == (b"it's||none\n" if run is printed else b"it's|b  c\n"), done


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
    seen = look(iter([context[:700], context[700:]]))
    assert seen.ignored is None and look(iter([packed(_dockerignore=b"x")])).ignored == b"x"
    assert seen.archives == {f"a{at}.tar" for at in range(len(magic))}
    for line, archive in (
        ("ADD a1.tar plain /", "a1.tar"), ("ADD ./a1.tar /", "a1.tar"), ("add --chown=1 *.tar /", "a0.tar"), ('ADD ["/a2.tar", "/"]', "a2.tar"),
        ("ADD 'a1.tar' /", "a1.tar"), ("ADD plain /a1.tar", None), ("ADD . /", None), ("ADD it's /", None),
    ):  # fmt: skip
        (add,) = instructions(line)
        assert unpacked(add, seen.archives) == archive, line


def test_who_is_looked_up_by_name() -> None:
    for copy in (
        "COPY --chown=a b /",
        "copy --from=0 --chown=1:a b /",
        "ADD --chown=$U b /",
        "COPY --chown=a:1 --chmod=1 b /",
    ):
        assert owner_of(copy)
    for copy in (
        "COPY --chown=1:2 b /",
        "COPY --chown=1 b /",
        "COPY b --chown=a",
        "RUN --chown=a b",
        "COPYX --chown=a b /",
        "COPY b /",
    ):
        assert not owner_of(copy)
    found = list(
        enumerate(instructions("COPY a /\nCOPY --chown=x b /\nENV A=1\nADD --chown=y c /\nCOPY --chown=1 d /\n"))
    )
    assert [[number for number, _ in part] for part in by_owners(found)] == [[0], [1, 2], [3, 4]]
    assert [[number for number, _ in part] for part in by_owners(found[1:2])] == [[1]]
    assert list(by_owners([])) == [[]]


def test_how_many_patterns_a_dockerignore_may_have() -> None:
    def given(lines: int) -> Iterator[bytes]:
        raw = b"?a\n" * lines
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as made:
            entry = tarfile.TarInfo(".dockerignore")
            entry.size = len(raw)
            made.addfile(entry, io.BytesIO(raw))
        yield out.getvalue()

    assert look(given(2000)).ignored
    with pytest.raises(InvalidArgument, match="2000 lines"):
        look(given(2001))


@pytest.mark.parametrize(
    ("lines", "times"),
    [
        (["ENV A=1"], 1001),
        (["ARG A=" + "<" * 9000], 10),  # six bytes each, as the engine writes them
        (["ARG A=" + "x" * 1000] * 100, 3),  # in the description of all that comes after
    ],
)
def test_what_is_said_again_is_counted(lines: list[str], times: int) -> None:
    given: Any = None
    work = _Work(given, given, given, given)
    for _ in range(times - 1):
        work.count(Batch(lines, [None] * len(lines)))
    with pytest.raises(PolicyRefused, match="Join RUN steps"):
        work.count(Batch(lines, [None] * len(lines)))

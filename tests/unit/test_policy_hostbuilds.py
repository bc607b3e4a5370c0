"""What a build by the host's own engine may take and name."""

import json
import time
from typing import Any

import pytest

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy import hostbuilds, hostlengths
from manyoyo_mcp.policy.base import Limits, Request, Within
from manyoyo_mcp.policy.rules import decide
from manyoyo_mcp.values import Caps

SANDBOX = "sb-0123456789abcdef"
WITHIN = Within(SANDBOX, "keeper", ("python:3.*", f"localhost/{SANDBOX}/*"), builds=True)
LIMITS = Limits(default=Caps(1, 512 << 20, 100), largest=Caps(2, 1 << 30, 200))


@pytest.mark.parametrize(
    "instructions",
    [
        ["FROM python:3.13"],
        ["FROM docker.io/library/python:3.13 AS base", "FROM base", "FROM BASE AS again"],
        [
            "FROM python:3.13",
            "LABEL a=b",
            "LABEL version=$VERSION",
            'LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision="$REVISION of x"',
            'LABEL org.manyoyo.of="sb-0123456789abcdef"',
            "ADD --chown=1 a /b",
        ],
        ["FROM python:3.13", *(f"{each} x" for each in sorted(hostbuilds._OTHERS)), "run\ttrue", "COPY a --from=b"],
        ["FROM scratch", f"COPY --from=localhost/{SANDBOX}/app /x /x", "COPY a b", "ADD a.tar /"],
        ["FROM python:3.13 AS one", "FROM scratch", "COPY --from=one /x /x", "COPY --chown=1:1 --from=0 /x /x"],
        ["FROM scratch", "RUN echo COPY --from=private/app", "CMD FROM private/app"],
    ],
)
def test_what_may_be_built(instructions: list[str]) -> None:
    hostbuilds.check(WITHIN, instructions)


@pytest.mark.parametrize(
    "instruction",
    [
        "FROM private/app", "from private/app", "FROM private/python:3.13", "FROM python", "FROM $X", "FROM ${X:-python:3.13}",
        "FROM python:3.13 AS", "FROM python:3.13 private/app", "FROM --platform=$X python:3.13", "FROM", "FROM one", "FROM 0123456789ab",
        "FROM sha256:0123", "FROM python:3.13\u00a0AS x", "FROM localhost/sb-0000000000000000/app", 'FROM "python:3.13"', "FROM 0",
        "COPY --from=private/app /x /x", "COPY --chown=0 --from=private/app /x /x", "copy --from=private/app / /", "COPY --from=$X /x /x",
        "COPY --FROM=private/app / /", "COPY --from='private/app' / /", "COPY --from=one /x /x", "COPY --from= /x /x", "COPY --from /x /x",
        "ADD http://127.0.0.1/ /", "ADD --chown=0 https://x/ /", "ADD $X /", 'ADD ["http:\\/\\/x", "/"]', "ADD git://x /",
        "ONBUILD COPY --from=private/app / /", "ONBUILD RUN true", "ONBU\u0130LD COPY --from=private/app / /", "", "X y", "FROM2 x", "\u00a0COPY a b",
        'COPY --"from"=private/app / /', "COPY --fr\\om=private/app / /", 'COPY --chown="${X:+a b}0" --from=private/app / /',
        "COPY --chown 0 --from=private/app / /", "COPY --chown=0\u00a0--from=private/app / /", "COPY \u00a0--from=private/app / /",
        "COPY --link --from=private/app / /", "COPY\v--from=private/app / /", "COPY --from=here / /", "COPY --chown=`0 --from=private/app / /",
        "COPY --chown=0 \v--from=private/app / /", "COPY --chown=0 \r--from=private/app / /", "COPY --chown=0 \f--from=0123456789ab / /",
        "ENV A=b\vc", "COPY --from=1 / /", "COPY --from=00 / /", "COPY --from=99999999999999999999 / /", "LABEL a=b c=\\x$D e=f", "LABEL $A=b", "COPY --from=0 / /",
        "ADD --chown=1 --from=private/app / /", "ADD --checksum=x a /", 'ADD http:"//"127.0.0.1/ /', """ADD ["http:'//'127.0.0.1/", "/"]""", "ADD http:`//127.0.0.1/ /", "ADD --from=private/app / /",
        "FROM --platform=linux/arm64 python:3.13", "FROM python:3.13@sha256:0123", "RUN --mount=from=private/app true", "RUN --network=host true",
        "LABEL org.manyoyo.of=x", 'LABEL "org.man"yoyo.grants=1', "LABEL org.many\\oyo.within=x", "LABEL a=b $X=c", "LABEL $X c", "LABEL a=$B $C=d", "LABEL a=$B org.manyoyo.of=d", 'LABEL a=$B "org.manyoyo.of"=d',
        "LABEL ORG.MANYOYO.x=y", 'LABEL org.manyoyo.of="sb-0000000000000000"', 'LABEL  org.manyoyo.of="sb-0123456789abcdef"',
    ],
)  # fmt: skip
def test_what_may_not(instruction: str) -> None:
    with pytest.raises(PolicyRefused) as refused:
        hostbuilds.check(WITHIN, ["FROM scratch AS here", instruction])
    assert refused.value.hint


def test_which_images_it_begins_with() -> None:
    named = ["FROM python:3.13 AS one", "FROM one", "COPY --from=0 / /", "COPY --from=python:3.12 / /", "FROM scratch"]
    assert hostbuilds.check(WITHIN, named) == ["python:3.13", "python:3.12"]
    with pytest.raises(PolicyRefused):  # a stage's name is an image's until the next begins
        hostbuilds.check(WITHIN, ["FROM python:3.13 AS private", "COPY --from=private / /"])
    hostbuilds.check(WITHIN, ["FROM python:3.13 AS private", "FROM scratch", "COPY --from=private / /"])
    with pytest.raises(PolicyRefused):  # which ADD has not
        hostbuilds.check(WITHIN, ["FROM python:3.13 AS one", "FROM scratch", "ADD --from=one / /"])


def ask(**query: str | list[str]) -> dict[str, object]:
    own = {"cgroupparent": "/manyoyo-builds/0123456789abcdef"}
    return dict(hostbuilds.built(decide(Request("POST", "/build", own | query, ours=True), LIMITS), WITHIN).query)


def test_what_is_built_is_the_sandboxs() -> None:
    with pytest.raises(PolicyRefused):
        ask(platform="linux/arm64")
    passed = ask(t=f"localhost/{SANDBOX}/app:1", networkmode="default", pull="1", labels=json.dumps({"a": "b"}))
    assert passed["cgroupparent"] == ""
    assert passed["networkmode"] == "none" and passed["nocache"] == "1" and passed["pull"] == "0"
    for tags in (
        "app",
        "python:3.13",
        f"localhost/{SANDBOX}x/app",
        f"docker.io/localhost/{SANDBOX}/app",
        [f"localhost/{SANDBOX}/a", "b"],
    ):
        with pytest.raises(PolicyRefused) as refused:
            ask(t=tags)
        assert f"localhost/{SANDBOX}/" in refused.value.hint


def test_what_is_committed_is_a_container_without_a_name() -> None:
    asked = Request(
        "POST",
        "/commit",
        {"container": "one", "repo": "python", "tag": "3.13", "changes": ["CMD x"]},
        body={"Cmd": ["y"]},
        ours=True,
    )
    allowed = hostbuilds.committed(decide(asked, LIMITS), "0123")
    assert allowed.query == {"container": "0123", "pause": "0"} and allowed.body == {"Cmd": ["y"]}


def test_a_label_of_many_variables_is_read_in_no_time() -> None:
    begun = time.process_time()
    hostbuilds.check(WITHIN, ["FROM python:3.13", "LABEL a=b " + "$" * 130_000])
    assert time.process_time() - begun < 2


_LONG = "x" * 60_000


@pytest.mark.parametrize(
    "instructions",
    [
        [f"ENV A={_LONG}", "ENV B=" + "$A" * 3],
        [f"ENV A={_LONG}", "LABEL b=" + "${A}" * 3],
        [f"ENV A={_LONG}", "ARG B=" + "${X:-$A}" * 3],
        [f"ENV A {_LONG}", "WORKDIR /$A/$A/$A"],
        [f'ENV "A"={_LONG}', "COPY $A$A$A /"],
        [f"ENV A\\B={_LONG}", "ENV C=$AB$AB$AB"],
        ["ARG N=A", f"ENV $N={_LONG}"],
        ["ARG N=A", f"ENV $N {_LONG}"],
        ['ARG N="A"', f'ENV "$N${{E:+ }}"={_LONG}'],
        [f"ENV 1={_LONG}", "ENV B=" + "$1a" * 3],
        [f"ENV A={_LONG}", "ENV B=$A\u00b2"],
        [f"ENV \u00c9={_LONG}", "ENV B=$\u00c9"],
        [f"ENV A={_LONG}", "ENV B=${A//x/y}"],
        ["ENV @=0123456789", "ENV @=" + "$@" * 14_000],
        ["ENV A=${@}"],
        ["ENV A=${}"],
        ["ENV A=${:-x}"],
        ["ENV A=$BASE$BASE$BASE"],
        ["ENV A=$1$1$1"],  # an image's, by whoever made it
        ["ARG GIVEN", "ENV A=$GIVEN$GIVEN$GIVEN"],
        ["ENV A=0123456789", *["ENV A=$A$A"] * 14],
        ["ENV A=0123456789", *["env A=$A$A"] * 14],
        ['ENV A="$X" B=\\"$X'],
        [f"ENV A={_LONG}", *["LABEL b=$A"] * 4],
        [f'SHELL ["{_LONG}"]', *["ENV A=1"] * 4],
        ["ENV A=1"] * 501,
        ["EXPOSE 1-65535/tcp"],
        ["EXPOSE 80", "EXPOSE 100-600 1000-1600/udp"],
        ["ENV P=1-65535", "EXPOSE $P"],
        ["EXPOSE " + "9-0000000000065535 " * 100],
        ['EXPOSE 1-"65535"'],
        ["EXPOSE 90-80"],
        ["EXPOSE 80/icmp"],
        ["EXPOSE 1-1001"],
        [f"MAINTAINER {_LONG}", *["ENV A=1"] * 4],
        [f"WORKDIR /{'x' * 4000}", *["WORKDIR ."] * 100],
        [f"WORKDIR {'x' * 2000}", *["WORKDIR y"] * 100, *["ENV A=1"] * 40],
        ["ENV A=" + "<" * 30_000],
        ["ENV A=" + "&" * 20_000, "ENV B=$A$A"],
        ["ENV A=" + '\\"' * 50_000],
        ["ENV A=" + "\u4e2d" * 50_000],
        [f"ENV A={_LONG}", *["ENV B=1"] * 300],
        ["LABEL a=" + "${X:-" * 3 + "}" * 3],
        ["LABEL a=${X:-${X}}"],
        ["LABEL a=" + "${A:-'}'" * 3 + "$X" + "}" * 3],
        ["LABEL a=" + '${A:-"}"' * 3 + "$X" + "}" * 3],
        ["LABEL a=" + "${A:-`}" * 3 + "$X" + "}" * 3],
        ["COPY a b a /d/"],
        ["COPY *" + "x" * 4096 + " /d/"],
        ["LABEL a=${X:-\\}}"],
        ["LABEL a=${X:-"],
        ["LABEL a=${X:#*}"],
        ["LABEL a=${X:%*}"],
        ["COPY " + " ".join(f"*{each}" for each in range(21)) + " /d/"],
        ["COPY " + " ".join(f"$A{each}" for each in range(21)) + " /d/"],
        ["COPY " + " ".join(f"a{each}" for each in range(100)) + " /d/"],
        ["COPY [" + "".join(f'"a{each}",' for each in range(100)) + '"/d/"]'],
        ["ADD " + " ".join(f"a{each}" for each in range(100)) + " /d/"],
        ["VOLUME " + " ".join(f"/{each}" for each in range(51))],
        ["VOLUME [" + ",".join(f'"/{each}"' for each in range(51)) + "]"],
        [f"VOLUME /{each}" for each in range(51)],
        ["ENV " + " ".join(f"A{each}=1" for each in range(1001))],
        *[[f"{keyword} " + " ".join(f"A{each}=1" for each in range(100))] * 11 for keyword in ("ENV", "LABEL", "ARG")],
        ["ARG " + " ".join(f"A{each}" for each in range(1001))],
    ],
)
def test_what_describes_an_image_does_not_grow_without_end(instructions: list[str]) -> None:
    with pytest.raises(PolicyRefused, match="may not stand"):
        hostlengths.check(instructions, {"GIVEN": _LONG}, [{"Config": {"Env": [f"BASE={_LONG}", f"1={_LONG}"]}}], 0)


def test_what_describes_an_image_may_grow_a_little() -> None:
    parts = ("CPATH", "LD_LIBRARY_PATH", "LIBRARY_PATH", "PATH")
    instructions = [
        *(f"ENV PATH=$PATH:/opt/{each}/bin:$HOME/bin" for each in range(20)),
        *("ENV " + " ".join(f"{name}=/opt/{each}/lib:${name}" for name in parts) for each in range(20)),
        'ENV A="$PATH" B=${A:-x} C=\'it "is"\' D="it\'s $B"  E=',
        "ENV WORDS a b $A",
        'ENV QUOTED=\\"x\\" PS1=\\$',
        "ARG ONE TWO=2 THREE=$ONE",
        "LABEL a=$A b=$B",
        """LABEL c=${A:-"d e"} d=${B:+'x'}""",
        "COPY app app",
        "COPY " + " ".join(f"a{each}" for each in range(99)) + " /d/",
        "COPY " + " ".join(f"*{each}" for each in range(20)) + " /d/",
        "RUN echo " + "$PATH" * 10_000,
        "EXPOSE 80 443/tcp 3000-3010",
        f"ENV A={_LONG}",
        "ENV B=$A",
        *["ENV A=1"] * 40,
    ]
    base = {"Config": {"Env": ["PATH=/usr/bin", "ODD"], "Shell": None}, "Author": "somebody"}
    hostlengths.check(instructions, {"X": "1"}, [base, {"Config": {}}], 20_000)
    with pytest.raises(PolicyRefused):
        hostlengths.check(instructions, {}, [base], 200_000)
    hostlengths.check(["ENV A=1"] * 400, {}, [base], 20_000)


@pytest.mark.parametrize(
    "base",
    [
        {"Config": {"Shell": ["/bin/sh", "x" * 6000]}},
        {"Config": {"Shell": None}, "Author": "x" * 6000},
        {"Config": {"WorkingDir": "/" + "x" * 4000}, "Author": "x" * 2000},
    ],
)
def test_what_a_base_says_stands_in_all_that_is_made_of_it(base: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"Config": {}}
    instructions = ["ENV A=1"] * 50
    hostlengths.check(instructions, {}, [plain], 0)
    with pytest.raises(PolicyRefused, match="too long"):
        hostlengths.check(instructions, {}, [plain, base], 0)


@pytest.mark.parametrize(
    ("config", "instruction"),
    [
        ({"Volumes": {f"/{each}": {} for each in range(50)}}, "VOLUME /x"),
        ({"ExposedPorts": {f"{each}/tcp": {} for each in range(1000)}}, "EXPOSE 2000"),
        (
            {"Env": [f"A{each}=1" for each in range(500)], "Labels": {f"a{each}": "1" for each in range(499)}},
            "ENV B=1 C=2",
        ),
        ({"Env": [f"A{each}=1" for each in range(1000)]}, "ENV B c"),
    ],
)
def test_what_a_base_declares_counts_too(config: dict[str, Any], instruction: str) -> None:
    hostlengths.check(["CMD x"], {}, [{"Config": config}], 0)
    with pytest.raises(PolicyRefused, match="there may be"):
        hostlengths.check([instruction], {}, [{"Config": config}], 0)


def test_what_is_written_is_counted_as_go_writes_it() -> None:
    assert hostlengths.written("a<&>") == 1 + 3 * 6
    assert hostlengths.written('"\\') == 4
    assert hostlengths.written("\u4e2d") == 3
    described = hostlengths.described({"Config": {}, "Author": "me"}, [{"CreatedBy": "x"}] * 3)
    assert described >= 3 * len("CreatedByxme")


@pytest.mark.parametrize(
    "instruction",
    [
        'VOLUME ["\\u0024A"]',
        'COPY ["a", "/\\u0024A"]',
        'COPY --chown=1 ["a", "/\\u0024A"]',
        'ADD ["\\u0024A", "/"]',
        "COPY " + "x" * (1 << 17) + " /",
        "RUN " + "x" * (1 << 17),
    ],
)
def test_what_is_not_as_it_reads(instruction: str) -> None:
    hostbuilds.check(WITHIN, ["FROM python:3.13", 'VOLUME ["/a"]', "COPY a\\ b /", 'COPY --chown=1 ["a", "/"]'])
    with pytest.raises(PolicyRefused, match="may not stand"):
        hostbuilds.check(WITHIN, ["FROM python:3.13", instruction])


def test_flags_far_apart_are_read_in_no_time() -> None:
    begun = time.process_time()
    with pytest.raises(PolicyRefused):
        hostbuilds.check(WITHIN, ["FROM python:3.13", "COPY --chown=a" + " " * 100_000 + "--x b"])
    assert time.process_time() - begun < 1

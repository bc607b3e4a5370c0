"""Secrets are taken out of texts and streams, however they are cut and written."""

import base64
import json
import random
import re
import time
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manyoyo_mcp.redaction import LEAST, Redacted, Redactor, flat

TOKEN = b'tok-7f3K/9+x=Qz"\\ secret'
PEM = b"-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\nAbCdEfGhIjKlMnOpQrStUvWx==\n-----END KEY-----\n"
REDACTOR = Redactor([("token", TOKEN), ("key", PEM), ("pin", b"123456")])


def streamed(redactor: Redactor, pieces: list[bytes]) -> bytes:
    out: list[bytes] = []
    sink = Redacted(out.append, lambda: redactor)
    for piece in pieces:
        sink(piece)
    sink.end()
    return b"".join(out)


def test_what_it_was_is_told() -> None:
    assert REDACTOR.clean(b"a " + TOKEN + b" b 123456.") == b"a [secret token] b [secret pin]."
    assert REDACTOR.text("no secret ünïcode \ud800") == "no secret ünïcode \ud800"
    assert REDACTOR.text(f"ü {TOKEN.decode()}") == "ü [secret token]"


@pytest.mark.parametrize("before", range(9))
@pytest.mark.parametrize("wrapped", [0, 19, 76])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_wherever_it_begins(before: int, wrapped: int, encode: object) -> None:
    for value in (TOKEN, PEM, b"\xff\xfe\xfb" * 9, b"123456"):
        redactor = Redactor([("x", value)])
        encoded = encode(b"p" * before + value + b"suffix")  # type: ignore[operator]
        if wrapped:
            encoded = b"\r\n".join(encoded[at : at + wrapped] for at in range(0, len(encoded), wrapped))
        cleaned = redactor.clean(encoded)
        assert b"[secret x]" in cleaned
        left = b"".join(cleaned.replace(b"[secret x]", b"|").split())
        assert len(encoded.replace(b"\r\n", b"")) - len(left) >= len(value) * 8 // 6 - 3, cleaned


@pytest.mark.parametrize("write", [lambda value: json.dumps(value.decode()), lambda value: quote(value, safe="")])
def test_other_ways_to_write_it(write: object) -> None:
    for value in (TOKEN, "pässwörd & more".encode()):
        written = write(value)  # type: ignore[operator]
        assert Redactor([("x", value)]).text(f"<{written}>").strip('<">') == "[secret x]"


def test_lines_of_a_key_each() -> None:
    cleaned = REDACTOR.clean(b"  " + PEM.replace(b"\n", b"\r\n  "))
    assert b"MIIE" not in cleaned and b"AbCd" not in cleaned
    assert REDACTOR.clean(PEM) == b"[secret key]\n"
    assert REDACTOR.clean(b"AbCdEfGhIjKlMnOpQrStUvWx==") == b"[secret key]"
    assert b"-----" in REDACTOR.clean(b"-----BEGIN KEY-----\nanother\n")


def test_a_line_end_within() -> None:
    assert REDACTOR.clean(b"x\n123\n4\r\n56\ny\n") == b"x\n[secret pin]\ny\n"


def test_of_two_the_longer() -> None:
    redactor = Redactor([("a", b"abcdefgh"), ("b", b"abcdefghij")])
    assert streamed(redactor, [b"abcdefgh", b"ij abcdefgh", b"!"]) == b"[secret b] [secret a]!"
    assert streamed(redactor, [b"abcdefgh"]) == b"[secret a]"


def test_output_waits_for_nothing_but_what_may_be_a_secret() -> None:
    out: list[bytes] = []
    sink = Redacted(out.append, lambda: REDACTOR)
    sink(b"Password: ")
    assert out == [b"Password: "]
    sink(b"\nvalue 1234")
    assert b"".join(out) == b"Password: \nvalue "
    sink(b". ")
    assert b"".join(out) == b"Password: \nvalue 1234. "
    sink(b"12345")
    sink.end()
    assert b"".join(out) == b"Password: \nvalue 1234. 12345"


def test_a_secret_that_comes_to_be_known_meanwhile() -> None:
    out: list[bytes] = []
    known = Redactor()
    sink = Redacted(out.append, lambda: known)
    sink(b"123456 ")
    known = REDACTOR
    sink(b"123456 ")
    sink.end()
    assert b"".join(out) == b"123456 [secret pin] "


def test_texts_within_what_json_holds() -> None:
    given = {"a": ["123456", 123456, None, {"b": "x123456"}], "123456": True}
    assert REDACTOR.anything(given) == {"a": ["[secret pin]", 123456, None, {"b": "x[secret pin]"}], "123456": True}
    assert Redactor().anything(given) is given


def test_what_is_held_back_has_an_end() -> None:
    out: list[bytes] = []
    sink = Redacted(out.append, lambda: REDACTOR)
    for _ in range(40):
        sink(b"1" + b"\n" * (1 << 16))
    assert sum(map(len, out)) > 1 << 20


def test_long_secrets_cost_little() -> None:
    long = base64.b64encode(bytes(range(256)) * 180)
    redactor = Redactor([("long", long), *[(f"n{number}", b"value-%06d" % number) for number in range(30)]])
    text = b"an ordinary line of a build, number 12345\n" * 25_000
    begun = time.process_time()
    cleaned = streamed(redactor, [text[at : at + 4096] for at in range(0, len(text), 4096)] + [long])
    assert cleaned == text + b"[secret long]"
    assert time.process_time() - begun < 5, "a megabyte"


def test_a_secret_of_many_lines_costs_little() -> None:
    lines = [base64.b64encode(random.Random(number).randbytes(9)) for number in range(3000)]
    redactor = Redactor([("env", b"\n".join(lines))])
    text = b"".join(base64.b64encode(random.Random(9000 + number).randbytes(30)) + b"\n" for number in range(6000))
    begun = time.process_time()
    assert redactor.clean(text + lines[1700]) == text + b"[secret env]"
    assert time.process_time() - begun < 5, "a quarter of a megabyte"


def test_a_secret_of_many_lines_costs_little_in_small_pieces() -> None:
    lines = [base64.b64encode(random.Random(number).randbytes(9)) for number in range(3000)]
    redactor = Redactor([("env", b"\n".join(lines))])
    text = (b"an ordinary line " + lines[7][:9] + b"\n") * 400
    begun = time.process_time()
    assert streamed(redactor, [bytes([each]) for each in text]) == text
    assert time.process_time() - begun < 5, "eleven thousand pieces"


def test_what_is_held_back_costs_little_in_small_pieces() -> None:
    """All of a long secret but its end, and line ends without end."""
    long = base64.b64encode(random.Random(1).randbytes(30_000))
    redactor = Redactor([("long", long)])
    begun = time.process_time()
    assert streamed(redactor, [bytes([each]) for each in long]) == b"[secret long]"
    assert streamed(redactor, [bytes([each]) for each in long[:-1] + b"!"]) == long[:-1] + b"!"
    lines = [b"1" + b"\n" * 12_000, *[b"\n"] * 4000]
    assert streamed(REDACTOR, lines) == b"".join(lines)
    assert time.process_time() - begun < 5, "eighty thousand pieces"


VALUES = st.one_of(
    st.binary(min_size=LEAST, max_size=40),
    st.lists(st.sampled_from([b"a", b"b", b"\n"]), min_size=LEAST, max_size=12).map(b"".join),
).filter(lambda value: len(flat(value.strip())) >= LEAST)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """Secrets, and a text in pieces that is full of them and of their beginnings."""
    values = draw(st.lists(VALUES, min_size=1, max_size=4))
    pieces = []
    for _ in range(draw(st.integers(0, 12))):
        value = draw(st.sampled_from(values))
        form = draw(st.sampled_from([value, base64.b64encode(value), base64.b64encode(b"x" + value), value + value]))
        cut = draw(st.integers(0, len(form)))
        pieces.append(draw(st.sampled_from([form, form[:cut], form[cut:], b"a", b"\n", b"\r\n", b" "])))
    text = b"".join(pieces)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=10)))
    return values, [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@settings(max_examples=400, deadline=None)
@given(worlds())
@example(([b"aaaaaab"], [b"aaaaaaa", b"aab"]))
@example(([b"abcdef", b"abcdefgh", b"zabcdefghi"], [b"zabcde", b"f"]))
def test_chunks_make_no_difference(world: tuple[list[bytes], list[bytes]]) -> None:
    values, pieces = world
    redactor = Redactor([(str(number), value) for number, value in enumerate(values)])
    whole = redactor.clean(b"".join(pieces))
    assert streamed(redactor, pieces) == whole
    assert streamed(redactor, [bytes([byte]) for byte in b"".join(pieces)]) == whole
    parts = [flat(part) for part in re.split(rb"\[secret [0-9]\]", whole)]
    assert not any(flat(value.strip()) in part for value in values for part in parts)

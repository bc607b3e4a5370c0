"""A line to a program in a container: kept for the next question, and never the only way to ask."""

import threading
import time
from collections.abc import Iterator

import docker
import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.hosts.base import LABEL
from manyoyo_mcp.hosts.line import Line
from manyoyo_mcp.image import outer

PROGRAM = """#!/bin/sh
[ "$1" = serve ] || { sleep "${2:-0}"; echo "exec $1"; exit 4; }
echo $$ > /tmp/served
echo 0 0
while read -r words; do said="line $words"; printf '%d %d\\n%s' 7 ${#said} "$said"; done
"""
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def client() -> Iterator[docker.APIClient]:
    with docker.APIClient(**docker.utils.kwargs_from_env(), version="auto") as client:
        yield client


@pytest.fixture(scope="module")
def container(client: docker.APIClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    image = outer.reference(Settings(state_dir=tmp_path_factory.mktemp("state")))
    made = client.create_container(
        image,
        entrypoint=["sh", "-c", 'printf %s "$1" > /program; chmod 755 /program; exec sleep 1000', "sh", PROGRAM],
        labels={f"{LABEL}kind": "test"},
        host_config=client.create_host_config(network_mode="none", init=True, auto_remove=True),
    )["Id"]
    try:
        client.start(made)
        yield made
    finally:
        client.remove_container(made, force=True)


def serving(client: docker.APIClient, container: str) -> int:
    return sum("/program serve" in " ".join(row) for row in client.top(container)["Processes"])


def test_it_is_kept_and_ends_with_whoever_asks(client: docker.APIClient, container: str) -> None:
    line = Line(container, "/program")
    for word in ("one", "two"):
        said = line.ask(client, [word, "more"], keep=True)
        assert (said.exit_code, said.output) == (7, f"line {word} more")
    assert serving(client, container) == 1
    line.close()
    for _ in range(100):
        if not serving(client, container):
            break
        time.sleep(0.05)
    assert serving(client, container) == 0
    assert line.ask(client, ["late"], keep=True).output == "exec late\n"


def test_a_broken_one_is_begun_again(client: docker.APIClient, container: str) -> None:
    line = Line(container, "/program")
    assert line.ask(client, ["one"], keep=True).exit_code == 7
    exec_id = client.exec_create(container, ["sh", "-c", "kill -9 $(cat /tmp/served)"])["Id"]
    client.exec_start(exec_id)
    said = line.ask(client, ["two"], keep=True)
    assert (said.exit_code, said.output) == (4, "exec two\n")
    assert line.ask(client, ["three"], keep=True).output == "line three"
    line.close()


def test_what_knows_no_serve_is_asked_without(client: docker.APIClient, container: str) -> None:
    line = Line(container, "/bin/echo")
    for word in ("one", "two"):
        assert line.ask(client, [word], keep=True).output == f"{word}\n"


@pytest.mark.parametrize("word", ["one\ntwo", "one two", "*", "", "$x"])
def test_what_is_not_one_word_for_sure_is_asked_without(client: docker.APIClient, container: str, word: str) -> None:
    line = Line(container, "/program")
    assert line.ask(client, [word], keep=True).output == f"exec {word}\n"
    assert serving(client, container) == 0


def test_who_finds_it_taken_does_not_wait(client: docker.APIClient, container: str) -> None:
    line = Line(container, "/program")
    assert line.ask(client, ["one"], keep=False).output == "exec one\n"
    with line._taken:
        others: list[str] = []
        thread = threading.Thread(target=lambda: others.append(line.ask(client, ["two"], keep=True).output))
        thread.start()
        thread.join(30)
    assert others == ["exec two\n"]

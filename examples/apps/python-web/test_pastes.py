import time

import pastes
import pytest
from flask.testing import FlaskClient


@pytest.fixture
def client(tmp_path) -> FlaskClient:
    return pastes.create_app(str(tmp_path / "pastes.sqlite")).test_client()


def test_a_paste_comes_back_as_it_went_in(client: FlaskClient) -> None:
    made = client.post("/pastes", data="häagen <b>dazs</b>\n".encode())
    assert made.status_code == 201
    read = client.get(made.json["url"])
    assert read.text == "häagen <b>dazs</b>\n"
    assert read.mimetype == "text/plain"


def test_names_differ(client: FlaskClient) -> None:
    assert len({client.post("/pastes", data="x").json["name"] for _ in range(20)}) == 20


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_paste_is_refused(client: FlaskClient, text: str) -> None:
    assert client.post("/pastes", data=text).status_code == 400


def test_a_large_paste_is_refused(client: FlaskClient) -> None:
    assert client.post("/pastes", data="x" * (pastes.MAX_BYTES + 1)).status_code == 413


def test_an_unknown_paste_is_not_found(client: FlaskClient) -> None:
    assert client.get("/pastes/nothing").status_code == 404


def test_an_expired_paste_is_not_found(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    url = client.post("/pastes", data="soon gone").json["url"]
    later = time.time() + pastes.KEEP_SECONDS + 1
    monkeypatch.setattr(pastes.time, "time", lambda: later)
    assert client.get(url).status_code == 404

"""The files for an operator say what the program understands. That they run, under systemd and compose, was tried by hand: docs/http.md."""

import re
import shlex
from pathlib import Path

import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.http.serving import address_of
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples" / "http"


def _unit() -> tuple[dict[str, str], str]:
    lines = (EXAMPLES / "manyoyo-mcp.service").read_text().splitlines()
    words = [word for line in lines if line.startswith("Environment=") for word in shlex.split(line.partition("=")[2])]
    (command,) = [line.partition("=")[2] for line in lines if line.startswith("ExecStart=")]
    return dict(word.split("=", 1) for word in words), command


def _compose() -> tuple[dict[str, str], str]:
    text = (EXAMPLES / "compose.yaml").read_text()
    found = re.findall(r"^ +(MANYOYO_\w+): \"?([^\"#\n]*?)\"?\s*(?:#.*)?$", text, re.MULTILINE)
    (command,) = re.findall(r"command: \[(.*)\]", text)
    return dict(found), command.replace('"', "").replace(",", "")


@pytest.mark.parametrize("read", [_unit, _compose], ids=["systemd", "compose"])
def test_settings_and_command(read: object, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, command = read()  # type: ignore[operator]
    assert len(environment) >= 6
    for name, value in environment.items():
        assert name.removeprefix("MANYOYO_").lower() in Settings.model_fields, name
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.http_hosts and settings.http_tokens == Path(environment["MANYOYO_HTTP_TOKENS"])
    assert (settings.http_certificate is not None) != (settings.http_tls == "off")
    words = command.split()
    assert words[-3:-1] == ["serve", "--http"] and address_of(words[-1]) == ("0.0.0.0", 8765)

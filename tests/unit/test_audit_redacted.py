"""What of a call goes on record: no values of variables, no contents, nothing that looks like a secret, nothing long."""

import json
import time
from typing import Any

import pytest

from manyoyo_mcp.audit.redacted import arguments, scrubbed
from manyoyo_mcp.sessions.witness import GateWitness
from manyoyo_mcp.tools import TOOLS
from manyoyo_mcp.tools.build import BuildInput
from manyoyo_mcp.tools.run import RunInput

CANARY = "cAnArY-73b1"


def recorded(**given: Any) -> str:
    return json.dumps(arguments(given)[0])


@pytest.mark.parametrize(
    "text",
    [
        f"curl -H 'Authorization: Bearer {CANARY}' x", f"curl https://user:{CANARY}@example.org/", f"export API_TOKEN={CANARY}",
        f"PGPASSWORD='{CANARY} and more' psql", f"mysql --password={CANARY}", f"mysql --password {CANARY}", f"FOO={CANARY} make",
        f'{{"client_secret": "{CANARY}"}}', f"aws_secret_access_key = {CANARY}", f"docker login --password {CANARY} x",
    ],
    ids=range(10),
)  # fmt: skip
def test_what_looks_like_a_secret_is_taken_out(text: str) -> None:
    assert CANARY not in scrubbed(text) and CANARY not in recorded(command=["sh", "-c", text])


def test_what_is_no_secret_stays() -> None:
    for text in ("pytest -q tests/test_tokens.py", "ls -la /etc", "make -j4 all", "pip install monkey", "x=1; echo $x"):
        assert scrubbed(text) == text
    assert scrubbed("memory=900g is more than 24105m", strict=True) == "memory=900g is more than 24105m"
    assert CANARY not in scrubbed(f"'name={CANARY}' is no variable", strict=True)


def test_values_of_mappings_never_stand_there_nor_anywhere_else() -> None:
    text = recorded(
        env={"NAME": CANARY}, build_args={"OTHER": CANARY * 2}, files={"/a": f"content {CANARY}"}, stdin=f"x\n{CANARY} y\n",
        command=["sh", "-c", f"echo {CANARY}"], entrypoint=[CANARY], workdir=f"/{CANARY}",
    )  # fmt: skip
    assert CANARY not in text and '"NAME": "11 bytes"' in text and "/a" in text, text


def test_what_json_does_not_know_is_a_text() -> None:
    assert json.loads(recorded(wait_s=float("nan"), cpus=float("inf"), name="\ud800")) == {
        "wait_s": "nan",
        "cpus": "inf",
        "name": "\ud800",
    }


def test_what_follows_an_option_that_is_called_so_is_one() -> None:
    assert CANARY not in recorded(command=["tool", "--api-key", CANARY, "run"])
    assert "run" in recorded(command=["tool", "--api-key", CANARY, "run"])


def test_it_is_short_whatever_is_given() -> None:
    text = recorded(
        command=["x" * 100_000] * 1000, env={f"V{number}": "y" * 50 for number in range(1000)}, image="z" * 5000,
        tags=["t" * 300] * 10,
    )  # fmt: skip
    assert len(text) < 12_000
    begun = time.monotonic()
    for hard in ("a-" * 50_000, "://" * 50_000, "A_" * 50_000, "token" * 50_000, "bearer " * 50_000, "=" * 100_000):
        scrubbed(hard)
        scrubbed(hard, strict=True)
    assert time.monotonic() - begun < 30, "no expression takes long for what is made to take long"


PLAIN = {
    "action", "builder", "cap_drop", "checkpoint", "command", "container", "context_dir", "dockerfile", "engine", "entrypoint", "from_checkpoint",
    "grep", "image", "isolation", "job_id", "name", "network", "network_allow", "network_policy", "outputs", "platform", "pull",
    "sandbox_id", "scope", "secrets", "tags", "target", "user", "what", "workdir",
}  # fmt: skip
"""Arguments whose text goes on record, scrubbed."""


def test_every_argument_that_is_a_text_was_decided_on() -> None:
    """Of mappings names and sizes, of stdin the size: whatever else comes to hold a text is to be looked at."""
    found = set()
    for tool in TOOLS:
        for name, field in tool.parameters["properties"].items():
            kinds = json.dumps(field)
            if '"string"' in kinds and '"additionalProperties"' not in kinds and name not in ("memory", "disk"):
                found.add(name)
    assert found - {"stdin"} == PLAIN


def test_models_are_told_by_size() -> None:
    built = BuildInput.model_validate({"files": {"a": {"base64": "Y0FuQXJZLTczYjE="}}})
    text = recorded(files=built.files)
    assert "Y0Fu" not in text and "12 bytes" in text
    run = RunInput.model_validate({"image": "x", "env": {"A": CANARY}})
    assert CANARY not in recorded(env=run.env)


class Kept:
    """A journal's place, which keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def after_now(self, record: dict[str, Any]) -> None:
        self.told.append(record)

    before_now = after_now


def test_a_flood_of_refusals_is_counted_not_written() -> None:
    kept = Kept()
    one = GateWitness(kept, "sb-1", "nested")  # type: ignore[arg-type]
    for _ in range(5000):
        one.refused("POST", "/containers/create", "POLICY_REFUSED", f"name={CANARY} may not be")
    one.close()
    assert len(kept.told) < 1000 and len(kept.told) >= 100
    assert sum(1 for each in kept.told if "path" in each) + sum(each.get("more", 0) for each in kept.told) == 5000
    assert CANARY not in json.dumps(kept.told)


def test_of_a_gates_request_the_path_stands_there_and_what_names_things() -> None:
    kept = Kept()
    query = {"t": "app:1", "buildargs": json.dumps({"A": CANARY}), "dockerfile": "Dockerfile"}
    ended = GateWitness(kept, "sb-1", "user").asked("POST", "/build", query, True)  # type: ignore[arg-type]
    ended(200)
    asked, told = kept.told
    assert (asked["phase"], asked["path"], asked["query"], asked["decision"]) == (
        "asked",
        "/build",
        {"t": "app:1"},
        "narrowed",
    )
    assert (told["phase"], told["status"], told["call"]) == ("ended", 200, asked["call"])
    assert CANARY not in json.dumps(kept.told)

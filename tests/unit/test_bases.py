"""Recipes of base images, what a manifest says, and what apt's configuration says of mirrors."""

from dataclasses import replace
from pathlib import Path

import pytest

from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.image import bases, debian


def test_a_base_comes_after_the_one_it_stands_on() -> None:
    assert bases.with_parents(["node", "busybox", "python"]) == ["debian", "node", "busybox", "python"]
    assert bases.with_parents([]) == []
    with pytest.raises(InvalidArgument, match="ruby"):
        bases.with_parents(["debian", "ruby"])


def test_a_recipe_changes_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: recipe.digest() for name, recipe in bases.RECIPES.items()}
    assert len(set(before.values())) == len(before)
    changed = bases.RECIPES | {"debian": replace(bases.RECIPES["debian"], packages=("ca-certificates", "file"))}
    monkeypatch.setattr(bases, "RECIPES", changed)
    after = {name: recipe.digest() for name, recipe in changed.items()}
    assert {name for name in before if before[name] != after[name]} == {"debian", "python", "node", "postgres"}


def test_a_recipe_changes_with_the_machines_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: recipe.digest() for name, recipe in bases.RECIPES.items()}
    monkeypatch.setattr(debian, "sources", lambda: ["deb http://elsewhere.example/debian trixie main"])
    assert all(recipe.digest() != before[name] for name, recipe in bases.RECIPES.items())


def test_every_recipe_stands_on_packages_or_on_a_recipe() -> None:
    for recipe in bases.RECIPES.values():
        text = recipe.context()["Containerfile"].decode()
        if recipe.parent is None:
            assert recipe.packages and "ADD root.tar /" in text
        else:
            assert recipe.parent in bases.RECIPES and f"FROM {bases.PREFIX}{recipe.parent}\n" in text


def test_a_manifest_names_what_there_is() -> None:
    raw = b"""[
        {"Id": "1", "Names": ["localhost/manyoyo/node:latest", "localhost/manyoyo/node:20"], "Size": 7, "Created": 5,
         "Labels": {"org.manyoyo.recipe": "abc"}},
        {"Id": "2", "Names": null, "Size": 1, "Created": 1, "Labels": null},
        {"Id": "3", "Names": ["localhost/else/where:1"], "Size": 1, "Created": 1}
    ]"""
    [base] = bases.parse_manifest(raw)
    assert (base.name, base.image_id, base.size, base.created, base.recipe) == ("node", "1", 7, 5.0, "abc")
    assert base.tags == ["localhost/manyoyo/node:20", "localhost/manyoyo/node:latest"]
    assert not base.current
    assert replace(base, recipe=bases.RECIPES["node"].digest()).current
    assert not replace(base, name="ruby").current
    assert bases.parse_manifest(None) == []


def test_mirrors_are_read_in_both_of_apts_notations(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(
        "# deb http://commented.example/debian trixie main\n"
        "deb [signed-by=/k.gpg arch=amd64] http://one.example/debian bookworm main contrib\n"
        "deb-src http://source.example/debian bookworm main\n"
        "deb https://other.example/apt stable nonfree\n"
    )
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "debian.sources").write_text(
        "Types: deb\n# URIs: http://commented.example/debian\nURIs: https://two.example/debian-security\nSuites: x\n"
    )
    (parts / "debian.sources.save").write_text("URIs: http://saved.example/debian\n")
    assert debian.uris(tmp_path) == ["http://one.example/debian", "https://two.example/debian-security"]
    assert debian.uris(tmp_path / "none") == []


def test_sources_are_the_release_its_updates_and_security(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_uris", lambda: ["http://m.example/debian", "http://s.example/debian-security/"])
    assert debian.sources() == [
        "deb http://m.example/debian trixie main",
        "deb http://m.example/debian trixie-updates main",
        "deb http://s.example/debian-security/ trixie-security main",
    ]
    monkeypatch.setattr(debian, "_uris", lambda: ["http://s.example/debian-security"])
    assert debian.sources() == []

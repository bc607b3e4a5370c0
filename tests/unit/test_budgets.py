"""What budgets hold, and what dead processes leave of their places."""

from pathlib import Path

from manyoyo_mcp.config import Settings
from manyoyo_mcp.sessions.budgets import Amount, forget_dead


def test_what_is_over_is_said() -> None:
    budget = Amount(2, 4.0, 1 << 30, 0)
    assert Amount(2, 4.0, 1 << 30, 1 << 40).over(budget) is None, "no disk budget without a pool"
    assert "3 sandboxes, of 2" in str(Amount(3).over(budget))
    assert "5 CPUs" in str(Amount(1, 5.0).over(budget))
    assert "2 GiB" in str(Amount(1, 1.0, 2 << 30).over(budget))


def test_places_of_the_dead_are_forgotten(tmp_path: Path) -> None:
    settings = Settings(runtime_dir=tmp_path, state_dir=tmp_path)
    for name in ("queue", "reserved"):
        directory = settings.lock_dir / name
        directory.mkdir(parents=True)
        (directory / "00000000000000000001-0123abcd").write_text("{}")
    forget_dead(settings)
    assert not [path for path in settings.lock_dir.rglob("*-*") if path.suffix != ".lock"]

"""What budgets hold, and what dead processes leave of their places."""

from pathlib import Path

from manyoyo_mcp.config import Settings
from manyoyo_mcp.sessions.budgets import Amount, Budgets, forget_dead


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


def test_growth_counts_once_until_it_is_forgotten(tmp_path: Path) -> None:
    settings = Settings(runtime_dir=tmp_path, state_dir=tmp_path)
    mine, others = Budgets(settings, None, "me"), Budgets(settings, None, "me")  # type: ignore[arg-type]  # no question asked
    mine.count("sb-1", Amount(0, 1.0, 5, 7))
    others.count("sb-1", Amount(0, 1.0, 5, 7))
    mine.count("sb-2", Amount(0, 0.5, 2, 0))
    assert mine.coming("sb-3", Amount(1, 1.0, 1, 1)) == Amount(1, 2.5, 8, 8)
    assert mine.coming("sb-1", Amount(1, 2.0, 6, 8)) == Amount(1, 2.5, 8, 8), "it is asked for anew"
    mine.forget("sb-1")
    mine.count("sb-2", Amount())
    assert mine.coming("sb-3", Amount()) == Amount(0, 1.0, 5, 7)
    others.forget("sb-1")
    assert mine.coming("sb-3", Amount()) == Amount()

"""Thresholds through the audit command: stored with --fit, and then used for flags."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from audit_world import add_film, audited_world, make_audit, make_run, summary, two_runs

from classify.audit.flags import Thresholds
from classify.audit.rows import read_audit

__all__ = ["audited_world", "two_runs"]  # fixtures


def test_thresholds_are_stored_and_then_flag(audited_world: SimpleNamespace) -> None:
    for n in range(15):
        add_film(f"nih/t{n}.png", 0.2 + n / 40, seed=n)
    make_run("films")
    assert make_audit("films", "--fit", "--tail", "0.2", "--out", "o") == 0
    stored = Thresholds.load("weights/ensemble_films/audit.json")
    assert (stored.films, stored.tail) == (21, 0.2)
    assert any("taken from these very films" in s for s in summary("o")["cautions"])
    assert summary("o")["thresholds"]["taken from"]["films"] == 21
    assert {r.flags for r in read_audit("o/audit.csv")} == {()}
    assert make_audit("films", "--out", "p") == 0
    flagged = [r.member for r in read_audit("p/audit.csv") if "looks outside" in r.flags]
    # of 21 films the 20 % quantile is the fifth smallest lift, and four lie below it
    assert sorted(flagged) == ["bacterial"] * 4 + ["viral"] * 4
    assert "looks outside" in Path("p/report.html").read_text()

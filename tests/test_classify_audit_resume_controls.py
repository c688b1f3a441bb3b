"""Controls of an audit that is called again: kept, added, done anew."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from audit_world import add_film, audited_world, make_audit, make_run, summary, two_runs

from classify.audit import __main__ as audit
from classify.audit.rows import read_audit
from classify.audit.sight import iter_sights

__all__ = ["audited_world", "two_runs"]  # fixtures


def test_a_finished_audit_is_not_done_again(audited_world: SimpleNamespace) -> None:
    assert make_audit("crops", "--controls", "masked,road") == 0
    seen = len(audited_world.field.seen)
    assert make_audit("crops", "--controls", "masked,road") == 0
    assert make_audit() == 0  # without the flag its results stay
    assert len(audited_world.field.seen) == seen
    assert summary()["controls"]["masked"] and summary()["controls"]["road"]


def test_controls_asked_for_later_are_added(audited_world: SimpleNamespace) -> None:
    assert make_audit("crops", "--controls", "masked") == 0
    assert make_audit("crops", "--controls", "randomised") == 0
    found = summary()["controls"]
    assert found["masked"] and found["randomisation"] and not found["road"]


def test_controls_with_other_options_are_done_again(audited_world: SimpleNamespace) -> None:
    assert make_audit("crops", "--controls", "road") == 0
    n = max(p["n"] for p in summary()["controls"]["road"])
    assert make_audit("crops", "--controls", "road", "--control_films", "1") == 0
    assert n == 2 and max((p["n"] for p in summary()["controls"]["road"]), default=0) <= 1


def test_controls_of_other_films_are_not_shown(audited_world: SimpleNamespace) -> None:
    make_run("crops", "--crops")
    assert make_audit("crops", "--controls", "masked") == 0
    add_film("nih/new.png", seed=30)
    make_run("crops", "--crops")
    assert make_audit() == 0
    assert summary()["controls"]["masked"] == []
    assert len(read_audit("crops/audit/audit.csv")) == 14


def test_restart_forgets_the_controls_too(audited_world: SimpleNamespace) -> None:
    assert make_audit("crops", "--controls", "masked") == 0
    assert make_audit("crops", "--restart") == 0
    assert summary()["controls"]["masked"] == [] and len(read_audit("crops/audit/audit.csv")) == 12


def test_ctrl_c_while_the_controls_run_keeps_the_rows(
    audited_world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def stop_at_second(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return iter_sights(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(audit, "iter_sights", stop_at_second)
    assert make_audit("crops", "--controls", "masked") == 130
    assert len(read_audit("crops/audit/audit.csv")) == 12
    assert make_audit("crops", "--controls", "masked") == 0
    assert summary()["controls"]["masked"]

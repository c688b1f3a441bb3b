"""Controls of an audit that is called again: kept, added, done anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from audit_world import add_film, audited_world, make_audit, make_run, summary, two_runs

from classify.audit import films
from classify.audit.controls import Masked
from classify.audit.rows import read_audit
from cxr.stream import read_ahead

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
    def stop(control: Masked) -> dict:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Masked, "results", stop)
        assert make_audit("crops", "--controls", "masked") == 130
    assert len(read_audit("crops/audit/audit.csv")) == 12
    assert make_audit("crops", "--controls", "masked") == 0
    assert summary()["controls"]["masked"]


@pytest.mark.parametrize("run", ["crops", "films"])
def test_each_film_is_read_and_segmented_once_for_all_controls(
    audited_world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    read: list[Path] = []

    def counting(paths: Sequence[Path], jobs: int) -> Iterator:
        read.extend(paths)
        return read_ahead(paths, jobs)

    monkeypatch.setattr(films, "read_ahead", counting)
    assert make_audit(run, "--controls", "all") == 0
    assert len(read) == len(set(read)) == 6
    assert len(audited_world.field.seen) == 5  # the sixth has a human mask
    assert audited_world.detector.seen == (6 if run == "films" else 0)


def test_films_of_a_sample_alone_are_not_segmented(
    audited_world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_audit() == 0
    before = len(audited_world.field.seen)
    assert make_audit("crops", "--controls", "randomised,road") == 0
    assert len(audited_world.field.seen) == before
    assert summary()["controls"]["randomisation"] and summary()["controls"]["road"]

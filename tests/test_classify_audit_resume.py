"""An audit that was stopped or killed goes on; one with other settings is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from audit_world import (
    FakeField,
    add_film,
    audited_world,
    films_of,
    make_audit,
    make_run,
    said,
    summary,
    two_runs,
)

from classify.audit import films
from classify.audit.controls import Masked
from classify.audit.rows import ControlResults, check_resumable, read_audit
from cxr.stream import read_ahead
from cxr.workdir import Workdir

__all__ = ["audited_world", "two_runs"]  # fixtures


def test_a_stopped_audit_goes_on_and_gives_the_same(audited_world: SimpleNamespace) -> None:
    Path("data/images/nih/torn.png").write_bytes(b"torn")
    make_run("crops", "--crops")
    assert make_audit("crops", "--out", "whole", "--batch", "2") == 0
    audited_world.field = FakeField()
    audited_world.field.stop_after = 3  # the first batch sees one film less: it has a human mask
    assert make_audit("crops", "--out", "two", "--batch", "2") == 130
    kept = len(read_audit("two/audit.csv"))
    assert kept == 1 + 2 * 4 and not Path("two/report.html").exists()
    audited_world.field.stop_after = None
    assert make_audit("crops", "--out", "two", "--batch", "2") == 0
    assert len(audited_world.field.seen) == 5  # no film twice
    assert Path("two/audit.csv").read_bytes() == Path("whole/audit.csv").read_bytes()
    assert films_of("two") == 7
    first, second = summary("whole"), summary("two")
    assert first["metrics"] == second["metrics"] and first["answer"] == second["answer"]


def test_a_killed_audit_goes_on_from_torn_files(audited_world: SimpleNamespace) -> None:
    assert make_audit("crops", "--batch", "1") == 0
    whole = Path("crops/audit/audit.csv").read_bytes()
    for name in ("audit.csv", "films.jsonl"):
        raw = Path("crops/audit", name).read_bytes()
        Path("crops/audit", name).write_bytes(raw[: -len(raw.splitlines()[-1]) // 2])
    Path("crops/audit/report.html").unlink()
    assert make_audit("crops", "--batch", "1") == 0
    assert Path("crops/audit/audit.csv").read_bytes() == whole
    assert films_of() == 6


def test_a_lost_record_is_made_again_and_its_rows_stay(audited_world: SimpleNamespace) -> None:
    assert make_audit() == 0
    whole = Path("crops/audit/audit.csv").read_bytes()
    Path("crops/audit/films.jsonl").unlink()
    assert make_audit() == 0
    assert Path("crops/audit/audit.csv").read_bytes() == whole
    assert films_of() == 6


def test_films_that_the_run_no_longer_holds_leave_the_page(audited_world: SimpleNamespace) -> None:
    assert make_audit("films") == 0
    Path("data/images/nih/x.png").unlink()
    make_run("films", "--restart")
    assert make_audit("films") == 0
    assert films_of("films/audit") == 5
    assert summary("films/audit")["settings"]["films"] == 5


@pytest.mark.parametrize(
    ("more", "differs"),
    [(("--method", "layercam"), "method"), (("--human_masks", "false"), "human_masks")],
)
def test_other_settings_in_the_same_folder_are_refused(
    audited_world: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    differs: str,
) -> None:
    assert make_audit() == 0
    before = Path("crops/audit/audit.csv").read_bytes()
    assert make_audit("crops", *more) == 2
    assert f"other settings ({differs}). Give another --out, or --restart" in said(capsys)
    assert Path("crops/audit/audit.csv").read_bytes() == before
    assert make_audit("crops", *more, "--restart") == 0


def test_another_run_in_the_same_folder_is_refused(
    audited_world: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_audit("films", "--out", "o") == 0
    assert make_audit("crops", "--out", "o") == 2
    assert "other settings (detector, run)" in said(capsys)


def began(path: Path, rows: str, settings: dict | None) -> Workdir:
    """A folder with the rows and the record of an audit."""
    workdir = Workdir(path)
    (workdir / "audit.csv").write_text(rows)
    (workdir / "films.jsonl").write_text("{}\n")
    workdir.update(**({} if settings is None else {"settings": settings}))
    return workdir


def test_an_audit_killed_before_its_first_film_may_be_begun_otherwise(tmp_path: Path) -> None:
    workdir = began(tmp_path, "film,status\n", None)
    check_resumable(workdir, {"method": "cam"}, restart=False)
    assert not (workdir / "films.jsonl").exists()


def test_rows_without_recorded_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"other settings \(method\)"):
        check_resumable(began(tmp_path, "film\na.png\n", None), {"method": "cam"}, restart=False)


def test_what_an_older_audit_did_not_record_is_not_held_against_it(tmp_path: Path) -> None:
    workdir = began(tmp_path, "film\na.png\n", {"method": "cam"})
    check_resumable(workdir, {"method": "cam", "new": 1}, restart=False)
    assert (workdir / "films.jsonl").exists()


def test_a_control_is_done_once_for_the_same_films_and_options(tmp_path: Path) -> None:
    path, films = tmp_path / "controls.json", ["a.png", "b.png"]
    ControlResults(path, films, {"draws": 5}).add("road", {"road": [1], "areas": [2]})
    again = ControlResults(path, films[::-1], {"draws": 5})
    assert again.found == {"road": [1], "areas": [2]}
    assert again.missing(["masked", "road"]) == ["masked"]
    assert ControlResults(path, films, {"draws": 6}).missing(["road"]) == ["road"]
    other = ControlResults(path, ["a.png"], {"draws": 5})
    assert other.found == {} and other.missing(["road"]) == ["road"]


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"made_with": {"road": {}}, "road": [1]}'])
def test_controls_of_a_damaged_file_are_done_again(tmp_path: Path, content: str) -> None:
    (tmp_path / "controls.json").write_text(content)
    store = ControlResults(tmp_path / "controls.json", ["a.png"], {"draws": 5})
    assert store.found == {} and store.missing(["road"]) == ["road"]
    store.add("road", {"road": [2]})
    again = ControlResults(tmp_path / "controls.json", ["a.png"], {"draws": 5})
    assert again.found == {"road": [2]}


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": 3}'])
def test_rows_beside_a_damaged_record_are_refused(tmp_path: Path, content: str) -> None:
    workdir = began(tmp_path, "film\na.png\n", {"method": "cam"})
    (workdir / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"other settings \(method\)"):
        check_resumable(workdir, {"method": "cam"}, restart=False)


# --- controls of an audit that is called again


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

    def counting(paths: Sequence[Path], jobs: int, **how: bool) -> Iterator:
        read.extend(paths)
        return read_ahead(paths, jobs, **how)

    monkeypatch.setattr(films, "read_ahead", counting)
    assert make_audit(run, "--controls", "all") == 0
    assert len(read) == len(set(read)) == 6
    assert len(audited_world.field.seen) == 5  # the sixth has a human mask
    assert audited_world.detector.seen == (6 if run == "films" else 0)


def test_films_of_a_sample_are_segmented_only_where_lungs_are_taken_away(
    audited_world: SimpleNamespace,
) -> None:
    assert make_audit() == 0
    before = len(audited_world.field.seen)
    assert make_audit("crops", "--controls", "randomised") == 0
    assert len(audited_world.field.seen) == before
    assert make_audit("crops", "--controls", "randomised,road") == 0
    assert len(audited_world.field.seen) > before
    assert summary()["controls"]["randomisation"] and summary()["controls"]["road"]
    areas = [f for f in summary()["metrics"] if f["name"] == "road_lungs"]
    assert areas and all(f["value"] != 0 for f in areas)

"""The audit command from end to end with stand-ins: tables, page, exit codes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from audit_world import (
    QUICK,
    add_film,
    audited_world,
    films_of,
    make_audit,
    make_run,
    said,
    summary,
    tiny_ensemble,
    two_runs,
    write_split,
)

from classify.audit import __main__ as audit
from classify.audit.rows import Thresholds, read_audit

__all__ = ["audited_world", "two_runs"]  # fixtures

HOSTILE = "<img src=x onerror=alert(1)>.png"


def test_the_whole_audit_of_crops_against_films(audited_world: SimpleNamespace) -> None:
    assert make_audit("films") == 0
    assert make_audit("crops", "--controls", "all", "--against", "films/audit") == 0
    rows, found = read_audit("crops/audit/audit.csv"), summary("crops/audit")
    page = Path("crops/audit/report.html").read_text()
    assert len(rows) == 12 and all(r.member for r in rows)
    assert films_of() == 6 and found["answer"]["sentence"] in page
    lifts = [r.value("lift") for r in rows if r.member == "viral" and r.source == "kermany"]
    figures = {(f["member"], f["source"], f["name"]): f for f in found["metrics"]}
    figure = figures["viral", "kermany", "lift"]
    assert figure["value"] == pytest.approx(sum(lifts) / 5) and figure["n"] == 5
    assert {r["control"] for r in found["controls"]["masked"]} == {
        "as is",
        "outside only",
        "lungs only",
        "shape only",
        "swapped",
    }
    assert {r["source"] for r in found["controls"]["masked"]} == {"", "kermany", "nih"}
    assert found["controls"]["randomisation"] and found["controls"]["road"]
    assert {"road_area", "road_over_random", "road_lungs"} <= {f["name"] for f in found["metrics"]}
    one = next(r for r in found["compare"] if (r["source"], r["metric"]) == ("", "lift"))
    assert one["n"] == 6 and one["difference"] == pytest.approx(one["crop"] - one["film"])
    assert "| lift |" in Path("crops/audit/compare.md").read_text()
    assert found["settings"]["shown"] == "crops" and found["settings"]["films"] == 6
    assert json.loads(Path("crops/audit/run.json").read_text())["settings"]["run"] == "crops"


def test_rows_know_labels_masks_and_findings(audited_world: SimpleNamespace) -> None:
    assert make_audit("films") == 0
    rows = {(Path(r.film).name, r.member): r for r in read_audit("films/audit/audit.csv")}
    assert rows["n0.png", "viral"].lung_by == "human"
    assert rows["n1.png", "viral"].lung_by == "lungfield"
    assert rows["b0.png", "bacterial"].truth == 1 and rows["b0.png", "viral"].truth == 2
    assert rows["x.png", "viral"].value("finding_share") is not None
    assert rows["n1.png", "viral"].value("finding_share") is None
    assert rows["b1.png", "viral"].patient == "p4"
    assert rows["n1.png", "viral"].field_disagreement == pytest.approx(0, abs=0.05)


def test_without_data_films_are_audited_too(audited_world: SimpleNamespace) -> None:
    assert audit.main(["crops", *QUICK, "--controls", "masked"]) == 0
    rows = read_audit("crops/audit/audit.csv")
    assert len(rows) == 12 and {r.truth for r in rows} == {-1} and {r.source for r in rows} == {""}
    assert all(r["auc"] is None for r in summary()["controls"]["masked"])


def test_a_part_has_a_folder_of_its_own(audited_world: SimpleNamespace) -> None:
    assert make_audit("crops", "--part", "train") == 0
    assert {Path(r.film).name for r in read_audit("crops/audit_train/audit.csv")} == {"b1.png"}
    assert make_audit("crops", "--part", "test") == 0
    names = {Path(r.film).name for r in read_audit("crops/audit_test/audit.csv")}
    assert names == {"n0.png", "b0.png", "n1.png", "v0.png", "x.png"}


def test_bad_films_get_rows_with_their_reasons(audited_world: SimpleNamespace) -> None:
    Path("data/images/nih/torn.png").write_bytes(b"torn")
    add_film("nih/leg.png", size=(100, 200))
    add_film("nih/gone.png", seed=20)
    make_run("crops", "--crops")
    Path("data/images/nih/gone.png").unlink()
    add_film("kermany/v0.png", 0.9)  # another film in its place
    assert make_audit("crops", "--controls", "all") == 0
    rows = {Path(r.film).name: r for r in read_audit("crops/audit/audit.csv") if not r.member}
    assert sorted(rows) == ["gone.png", "leg.png", "torn.png", "v0.png"]
    assert rows["torn.png"].reason.startswith("not_an_image")
    assert (rows["leg.png"].status, rows["gone.png"].status) == ("no_thorax", "unreadable")
    assert rows["gone.png"].reason.startswith("not_found")
    assert "changed since the run" in rows["v0.png"].reason
    page = Path("crops/audit/report.html").read_text()
    assert films_of() == 9 and "changed since the run" in page


def test_a_film_without_lungs_does_not_end_the_audit(audited_world: SimpleNamespace) -> None:
    add_film("nih/hand.png", size=(130, 100))
    make_run("crops", "--crops")
    assert make_audit("crops", "--controls", "masked") == 0
    rows = [r for r in read_audit("crops/audit/audit.csv") if Path(r.film).name == "hand.png"]
    assert [r.value("lift") for r in rows] == [None, None]
    assert rows[0].field_disagreement == 1.0
    assert any(
        "without a lung field, left out of the masking control: 1." in s
        for s in summary()["cautions"]
    )


def test_no_film_left_ends_with_2(
    audited_world: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split({**{f"p{n}": "val" for n in range(5)}, "q0": "train"})
    assert make_audit("crops", "--part", "train") == 2
    assert "no film of crops is left to audit in part train" in said(capsys)


def test_nothing_judged_ends_with_1(audited_world: SimpleNamespace) -> None:
    shutil.rmtree("data/images")
    assert make_audit("crops", "--controls", "all") == 1
    assert {r.member for r in read_audit("crops/audit/audit.csv")} == {""}
    assert "nothing can be said" in Path("crops/audit/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none"], "RUN must be a folder of classify.run"),
        (["crops", "--data", "nowhere"], "data must be a folder with films.csv"),
        (["crops", "--data", "data", "--part", "tset"], "test, train. Got 'tset'"),
        (["films", "--against", "films/audit"], "--against must be the audit of a run on"),
        (["crops", "--thresholds", "none.json"], "There is no such file"),
        (["crops", "--data", "data", "--part", "train", "--fit"], "at least 20 films"),
    ],
)
def test_what_does_not_fit_ends_with_2(
    audited_world: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    assert audit.main([*arguments, *QUICK]) == 2
    assert says in said(capsys)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "RUN must name one folder"),
        (["crops", "--controls", "mask"], "masked, randomised, road, or all. Got 'mask'"),
        (["crops", "--method", "lime"], "must be one of grad_cam"),
        (["crops", "--part", "test"], "--part test needs --data"),
        (["crops", "--tail", "0.9"], "--tail must lie between"),
    ],
)
def test_wrong_arguments_explain_themselves(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        audit.main(arguments)
    assert stop.value.code == 2 and says in said(capsys)


def test_help_tells_of_the_controls(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        audit.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for name in ("masked (lungs", "randomised (weights", "road (pixels", "--restart"):
        assert name in text


def test_members_that_were_trained_anew_are_refused(
    audited_world: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    audited_world.ensemble = tiny_ensemble()
    audited_world.ensemble.weights["viral"] = "0" * 64
    assert make_audit() == 2
    assert "made by other members than weights/ensemble_crops holds (viral)" in said(capsys)


def test_hostile_names_are_escaped_on_the_page(audited_world: SimpleNamespace) -> None:
    add_film(f"nih/{HOSTILE}", 0.4)
    make_run("crops", "--crops")
    assert make_audit() == 0
    page = Path("crops/audit/report.html").read_text()
    assert films_of() == 7 and HOSTILE not in page and "<img src=x" not in page
    with Path("crops/audit/audit.csv").open(newline="") as file:
        assert any(HOSTILE in r["film"] for r in csv.DictReader(file))


# --- thresholds


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

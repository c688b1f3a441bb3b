"""Flags: thresholds by hand-worked quantiles, kept as JSON, and a reason for each flag."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from classify.audit.rows import (
    BORDER,
    DISAGREE,
    EMPTY,
    OUTSIDE,
    TEXT,
    AuditRow,
    Thresholds,
    fit_thresholds,
    flag_row,
    read_thresholds,
)

BOUNDS = {"bacterial": {"lift": 0.8, "border_share": 0.3, "text_share": 0.1}}


def row(
    film: str = "a.png", member: str = "bacterial", patient: str = "", **values: object
) -> AuditRow:
    """A row of a film under a member; `values` are metrics, or disagreement or empty."""
    other = {k: values.pop(k) for k in ("field_disagreement", "empty") if k in values}
    method = str(values.pop("method", "grad_cam"))
    return AuditRow(
        film, patient=patient or film, member=member, method=method, metrics=values, **other
    )  # type: ignore[arg-type]


def made(**changes: object) -> Thresholds:
    kept = {
        "method": "grad_cam",
        "by_member": BOUNDS,
        "field_disagreement": 0.4,
        "tail": 0.05,
        "films": 100,
        "patients": 90,
        "members": {"bacterial": "ab"},
    }
    return Thresholds(**{**kept, **changes})  # type: ignore[arg-type]


def twenty_one(**more: object) -> list[AuditRow]:
    """Films 0 … 20 with lift n / 10, border n / 100 and disagreement n / 50."""
    return [
        row(f"{n}.png", lift=n / 10, border_share=n / 100, field_disagreement=n / 50, **more)
        for n in range(21)
    ]


def test_thresholds_are_the_quantiles_on_the_worse_side() -> None:
    found = fit_thresholds(twenty_one(), tail=0.05)
    # of 21 even steps the 5 % quantile is the second smallest, the 95 % the second largest
    assert found.by_member["bacterial"]["lift"] == pytest.approx(0.1)
    assert found.by_member["bacterial"]["border_share"] == pytest.approx(0.19)
    assert found.field_disagreement == pytest.approx(0.38)
    assert (found.tail, found.films, found.patients, found.method) == (0.05, 21, 21, "grad_cam")


def test_another_tail_moves_them() -> None:
    found = fit_thresholds(twenty_one(), tail=0.5)
    assert found.by_member["bacterial"]["lift"] == pytest.approx(1.0)
    assert found.by_member["bacterial"]["border_share"] == pytest.approx(0.10)


def test_members_have_thresholds_of_their_own() -> None:
    rows = twenty_one() + [row(f"{n}.png", "viral", lift=2 + n / 10) for n in range(21)]
    found = fit_thresholds(rows, 0.05, {"bacterial": "ab", "viral": "cd"})
    assert found.by_member["bacterial"]["lift"] == pytest.approx(0.1)
    assert found.by_member["viral"]["lift"] == pytest.approx(2.1)
    assert found.films == 21 and found.members == {"bacterial": "ab", "viral": "cd"}


def test_patients_are_counted_once() -> None:
    rows = [row(f"{n}.png", patient=f"p{n // 3}", lift=1.0) for n in range(21)]
    assert fit_thresholds(rows).patients == 7


def test_a_metric_of_too_few_films_has_no_threshold() -> None:
    rows = [row(f"{n}.png", lift=1.0, text_share=0.1 if n < 19 else None) for n in range(40)]
    found = fit_thresholds(rows).by_member["bacterial"]
    assert found["text_share"] is None and found["border_share"] is None and found["lift"] == 1.0


def test_twenty_values_are_enough() -> None:
    rows = [row(f"{n}.png", text_share=0.1 if n < 20 else None) for n in range(40)]
    assert fit_thresholds(rows).by_member["bacterial"]["text_share"] == pytest.approx(0.1)


def test_too_few_films_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 20 films.*19 films"):
        fit_thresholds([row(f"{n}.png", lift=1.0) for n in range(19)])


def test_films_that_no_member_saw_do_not_count() -> None:
    unseen = [AuditRow(f"bad{n}.png", status="unreadable") for n in range(30)]
    with pytest.raises(ValueError, match="Got 0 films, method none"):
        fit_thresholds(unseen)


def test_rows_of_two_methods_are_refused() -> None:
    rows = [*twenty_one(), row("z.png", lift=1.0, method="layercam")]
    with pytest.raises(ValueError, match=r"one method.*grad_cam, layercam"):
        fit_thresholds(rows)


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    assert Thresholds.load(made().save(tmp_path / "audit.json")) == made()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "must be JSON"),
        ("[1]", "must hold thresholds of an audit"),
        ('{"schema": "other"}', "--fit"),
        ('{"schema": "lungfirst.audit_thresholds", "version": 2}', "version 1. Got 2"),
        ('{"schema": "lungfirst.audit_thresholds", "version": 1}', "all parts"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ValueError, match=says):
        Thresholds.load(tmp_path / "t.json")


@pytest.mark.parametrize(
    "changes",
    [{"by_member": [1]}, {"by_member": {"bacterial": {"lift": "low"}}}, {"tail": None}, {"x": 1}],
)
def test_parts_of_another_kind_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    path = made().save(tmp_path / "t.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match="all parts of the thresholds"):
        Thresholds.load(path)


def test_a_missing_file_that_was_asked_for_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="audit RUN --fit"):
        read_thresholds(tmp_path / "none.json", True, "grad_cam")


def test_without_a_file_there_are_no_thresholds(tmp_path: Path) -> None:
    assert read_thresholds(tmp_path / "none.json", False, "grad_cam") is None


def test_thresholds_of_another_method_are_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = made().save(tmp_path / "audit.json")
    monkeypatch.setattr(logging.getLogger("lungfirst"), "propagate", True)
    assert read_thresholds(path, False, "layercam") is None
    assert "maps of grad_cam and says nothing of layercam" in caplog.text


def test_thresholds_of_another_training_are_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = made().save(tmp_path / "audit.json")
    monkeypatch.setattr(logging.getLogger("lungfirst"), "propagate", True)
    assert read_thresholds(path, False, "grad_cam", {"bacterial": "other"}) is None
    assert "another training of bacterial" in caplog.text


def test_thresholds_that_fit_are_taken(tmp_path: Path) -> None:
    path = made().save(tmp_path / "audit.json")
    assert read_thresholds(path, True, "grad_cam", {"bacterial": "ab"}) == made()


def test_little_lift_looks_outside() -> None:
    flags, reasons = flag_row(row(lift=0.712), made())
    assert flags == (OUTSIDE,)
    assert reasons == ("bacterial: lift 0.712 is below 0.8, as on 5 % of training films",)


@pytest.mark.parametrize(
    ("metric", "value", "flag", "bound"),
    [("border_share", 0.55, BORDER, "above 0.3"), ("text_share", 0.25, TEXT, "above 0.1")],
)
def test_much_energy_at_the_border_or_on_text_is_flagged(
    metric: str, value: float, flag: str, bound: str
) -> None:
    flags, reasons = flag_row(row(**{metric: value}), made())
    assert flags == (flag,) and f"{value} is {bound}" in reasons[0]


def test_the_threshold_itself_is_not_flagged() -> None:
    usual = row(lift=0.8, border_share=0.3, text_share=0.1, field_disagreement=0.4)
    assert flag_row(usual, made()) == ((), ())


def test_missing_values_give_no_flag() -> None:
    assert flag_row(row(lift=None), made()) == ((), ())


def test_a_missing_threshold_gives_no_flag() -> None:
    thresholds = made(by_member={"bacterial": {"lift": None}}, field_disagreement=None)
    assert flag_row(row(lift=0.01, field_disagreement=1.0), thresholds) == ((), ())


def test_a_member_without_thresholds_is_not_flagged() -> None:
    assert flag_row(row(member="viral", lift=0.01), made()) == ((), ())


def test_an_empty_map_is_flagged_without_thresholds() -> None:
    flags, reasons = flag_row(row(empty=True), None)
    assert flags == (EMPTY,) and "0 everywhere" in reasons[0]


def test_without_thresholds_nothing_else_is_flagged() -> None:
    assert flag_row(row(lift=0.0, field_disagreement=1.0), None) == ((), ())


def test_a_field_that_disagrees_with_the_box_is_flagged() -> None:
    flags, reasons = flag_row(row(field_disagreement=0.75), made())
    assert flags == (DISAGREE,) and "overlap by 0.25 (IoU), less than 0.60" in reasons[0]


def test_several_flags_have_a_reason_each() -> None:
    flags, reasons = flag_row(row(lift=0.1, border_share=0.9, field_disagreement=1.0), made())
    assert flags == (OUTSIDE, BORDER, DISAGREE) and len(reasons) == 3

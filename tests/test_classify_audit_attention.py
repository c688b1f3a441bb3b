"""One look: maps of known shape give metrics worked out by hand, rows, flags and a record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from audit_world import TARGETS, tiny_ensemble, tiny_net
from saliency_nets import HeadNet, films, pooled
from torch import nn

from classify.audit.auditor import measure_films, refused
from classify.audit.films import AuditFilm, Prepared, RunFilm, Truth
from classify.audit.metrics import baseline_lifts
from classify.audit.rows import EMPTY, OUTSIDE, UNKNOWN, AuditRow, Thresholds
from classify.ensemble import member_maps
from classify.predictions import PredictionRow
from classify.saliency.maps import saliency_maps
from cxr.boxes import Frame
from cxr.film import Film
from cxr.films_table import FilmRow
from cxr.stats import softmax

BOX = (20.0, 20.0, 80.0, 100.0)


class PlaneNet(nn.Module):
    """Looks at the same plane (h, w) whatever it is shown; logit 1 is its mean."""

    def __init__(self, plane: np.ndarray) -> None:
        super().__init__()
        self.neck = nn.Conv2d(1, 1, 1, bias=False)
        self.fc = nn.Linear(1, 3, bias=False)
        with torch.no_grad():
            self.neck.weight.fill_(1)
            self.fc.weight.copy_(torch.tensor([[0.0], [1.0], [0.0]]))
        self.register_buffer("plane", torch.from_numpy(plane).float()[None, None])

    @property
    def saliency_layer(self) -> nn.Module:
        return self.neck

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.neck(self.plane.expand(len(x), -1, -1, -1) + 0 * x.mean())
        return self.fc(maps.mean((2, 3)))


EVEN, NOTHING = PlaneNet(np.ones((8, 8))), PlaneNet(np.zeros((8, 8)))


def audit_film(
    size_hw: tuple[int, int] = (120, 100),
    crop: Frame | None = None,
    name: str = "nih/a.png",
    status: str = "ok",
    findings: tuple = (),
    known: bool = True,
    **changes: object,
) -> AuditFilm:
    """A grey film with lungs in its left half and the thorax box BOX."""
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0.3, 0.5, size_hw).astype(np.float32)
    lung = np.zeros(size_hw, bool)
    lung[:, : size_hw[1] // 2] = True
    row = FilmRow(f"images/{name}", "", "nih", "p1", "pneumonia", "bacterial", "CC BY 4.0")
    prediction = PredictionRow(name, status, "", np.zeros((2, 3)), 0.2, "read")
    values: dict = {
        "film": Film(pixels, name, "0" * 64),
        "pixels": crop.apply(pixels) if crop else pixels,
        "lung": lung,
        "lung_by": "lungfield",
        "box_xyxy": BOX,
        **changes,
    }
    truth = Truth(row if known else None, None, findings)
    return AuditFilm(RunFilm(prediction, Path(name), crop), truth, **values)


def look(
    *shown: AuditFilm,
    nets: tuple[nn.Module, ...] = (EVEN, EVEN),
    thresholds: Thresholds | None = None,
) -> list[tuple[list[AuditRow], dict]]:
    members = tiny_ensemble(*nets)
    return measure_films(shown, Prepared.of(shown, members), members, "grad_cam", thresholds)


def test_an_even_map_has_lift_one_on_a_film() -> None:
    row = look(audit_film())[0][0][0]
    assert row.value("inside_share") == pytest.approx(0.5, abs=1e-6)
    assert row.value("area_share") == 0.5
    assert row.value("lift") == pytest.approx(1, abs=1e-5)
    # the box holds 60 × 80 of 100 × 120 px
    assert row.value("outside_box_share") == pytest.approx(0.6, abs=1e-5)
    assert row.value("border_share") == pytest.approx(1 - 90 * 110 / 12000, abs=1e-5)


def test_an_even_map_has_lift_one_on_a_crop_and_lies_in_the_crop_alone() -> None:
    row = look(audit_film(crop=Frame.cut((30, 20, 80, 100))))[0][0][0]
    # lung is the film's left half, x < 50: 20 of the crop's 50 columns
    assert row.value("area_share") == pytest.approx(0.4)
    assert row.value("lift") == pytest.approx(1, abs=1e-5)
    assert row.value("outside_box_share") == pytest.approx(0, abs=1e-5)


def test_a_crop_beyond_the_film_counts_what_lies_on_the_film() -> None:
    row = look(audit_film(crop=Frame.cut((-20, 0, 60, 120))))[0][0][0]
    assert row.value("area_share") == pytest.approx(50 / 60)
    assert row.value("lift") == pytest.approx(1, abs=1e-5)


def test_a_map_on_the_left_lies_on_the_left_lung() -> None:
    plane = np.zeros((8, 8))
    plane[:, :2] = 1
    row = look(audit_film(), nets=(PlaneNet(plane), EVEN))[0][0][0]
    assert row.value("inside_share") == pytest.approx(1) and row.value("lift") == pytest.approx(2)
    assert row.metrics["pointing_hit"] is True


def test_energy_in_the_padding_counts_for_nothing() -> None:
    film = audit_film((120, 60), box_xyxy=None)
    frame = tiny_ensemble().prepare([film.pixels])[1][0]
    plane = np.full((32, 32), 50.0)  # of a film of 2 : 1 half the square input is padding
    assert frame.content_hw == (32, 16)
    plane[:, frame.pad_x : frame.pad_x + 16] = 1
    row = look(film, nets=(PlaneNet(plane), EVEN))[0][0][0]
    assert row.value("lift") == pytest.approx(1, abs=1e-5)


def test_baselines_are_as_coarse_as_the_map_over_what_was_seen() -> None:
    found = audit_film((120, 60), box_xyxy=None)
    row = look(found)[0][0][0]
    assert found.lung is not None
    wanted = baseline_lifts(found.lung, "nih/a.png", (8, 4))
    assert row.value("random_lift") == wanted["random_lift"]


def test_rows_say_who_answered_what() -> None:
    ensemble = tiny_ensemble()
    film = audit_film()
    prepared = Prepared.of([film], ensemble)
    ((rows, _),) = measure_films([film], prepared, ensemble, "grad_cam", None)
    assert [r.member for r in rows] == list(TARGETS)
    logits = ensemble.predict([film.pixels])[0]
    for row, own in zip(rows, logits, strict=True):
        assert row.probabilities == pytest.approx(tuple(softmax(own)), abs=1e-5)
    first = rows[0]
    assert (first.film, first.source, first.patient) == ("nih/a.png", "nih", "p1")
    assert (first.method, first.lung_by) == ("grad_cam", "lungfield")
    assert first.cut_edges == ("left", "top", "bottom")  # the lungs are the left half
    assert (first.label, first.sublabel) == ("pneumonia", "bacterial")
    # the field's box 50 × 120 and the thorax box 60 × 80 share 30 × 80 px
    assert first.field_disagreement == pytest.approx(1 - 2400 / (6000 + 4800 - 2400))
    assert [r.truth for r in rows] == [1, 2]  # bacterial is the one's target and not the other's


def test_a_film_that_no_table_lists_is_known_by_its_hashed_patient_or_name() -> None:
    film = audit_film(known=False)
    row = look(film)[0][0][0]
    assert (row.patient, row.source, row.truth) == ("nih/a.png", "", UNKNOWN)
    hashed = Film(film.film.pixels, "x", "0" * 64, patient="h4sh")  # type: ignore[union-attr]
    assert look(audit_film(known=False, film=hashed))[0][0][0].patient == "h4sh"


def test_films_that_cannot_be_judged_keep_their_place() -> None:
    bad = AuditFilm(audit_film().listed, Truth(), reason="not_found: There is no such file.")
    found = look(audit_film(name="n/1.png"), bad, audit_film(name="n/2.png"))
    assert [len(rows) for rows, _ in found] == [2, 1, 2]
    assert [rows[0].film for rows, _ in found] == ["n/1.png", "nih/a.png", "n/2.png"]
    row, record = found[1][0][0], found[1][1]
    assert (row.member, row.status) == ("", "unreadable") and "no such file" in row.reason
    assert record["members"] == [] and record["reason"] == row.reason


def test_nothing_but_refused_films_needs_no_member() -> None:
    assert len(look(AuditFilm(audit_film().listed, Truth(), reason="gone"))) == 1


def test_a_refused_film_keeps_the_runs_own_reason() -> None:
    prediction = PredictionRow(
        "a.png", "no_thorax", "no thorax found: score 0.10", decision="not_read_by_model"
    )
    (row,), record = refused(AuditFilm(RunFilm(prediction, Path("a.png")), Truth()))
    assert (row.status, row.reason) == ("no_thorax", "no thorax found: score 0.10")
    assert record["decision"] == "not_read_by_model"


def test_a_film_that_cannot_be_measured_says_why_and_the_others_go_on() -> None:
    (small, _), (rows, _) = look(audit_film((12, 14), name="n/s.png", box_xyxy=None), audit_film())
    assert small[0].status == "unreadable"
    assert small[0].reason.startswith("it cannot be measured: pixels of find_text must")
    assert len(rows) == 2


def test_an_empty_map_is_flagged_and_has_no_metrics() -> None:
    rows, record = look(audit_film(), nets=(NOTHING, EVEN))[0]
    assert rows[0].empty and rows[0].flags == (EMPTY,) and rows[0].value("lift") is None
    assert "the map is 0 everywhere" in rows[0].reason and rows[1].flags == ()
    assert record["flags"] == [EMPTY]
    assert [m["flags"] for m in record["members"]] == [[EMPTY], []]


def test_without_a_lung_field_there_is_no_lift_but_the_rest() -> None:
    row = look(audit_film(lung=np.zeros((120, 100), bool)))[0][0][0]
    assert row.value("lift") is None and row.value("border_share") is not None
    assert "no lung field" in row.reason


def test_thresholds_flag_the_member_they_are_of() -> None:
    bounds = {"bacterial": {"lift": 1.5}, "viral": {"lift": 0.5}}
    thresholds = Thresholds("grad_cam", bounds, 0.05, 0.05, 99, 99)
    rows, record = look(audit_film(), thresholds=thresholds)[0]
    assert rows[0].flags == (OUTSIDE, "field and box disagree")
    assert rows[1].flags == ("field and box disagree",)
    assert record["flags"] == [OUTSIDE, "field and box disagree"]
    assert len(record["reasons"]) == 3  # the film's own reason stands there once
    assert (
        record["reasons"][-1] == "the film cuts off the lungs at its left and top and bottom edge"
    )


def test_the_record_is_plain_and_in_fractions_of_the_film() -> None:
    crop = Frame.cut((30, 60, 80, 120))
    record = look(audit_film(crop=crop, findings=((50, 60, 70, 90),)))[0][1]
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["box"] == [0.2, pytest.approx(1 / 6), 0.8, pytest.approx(5 / 6)]
    assert record["seen"] == [0.3, 0.5, 0.8, 1.0]
    assert record["findings"] == [[0.5, 0.5, 0.7, 0.75]]
    assert record["size"] == [120, 100] and record["label"] == "pneumonia: bacterial"
    assert record["crop"].startswith("data:image/jpeg") and len(record["field"]) == 1
    assert record["members"][0]["map"].startswith("data:image/png")
    assert record["members"][0]["lift"] == pytest.approx(1, abs=1e-5)


def test_of_a_whole_film_without_a_box_the_record_has_neither_crop_nor_box() -> None:
    record = look(audit_film(box_xyxy=None))[0][1]
    assert record["crop"] is None and record["box"] is None and record["findings"] == []


def test_the_notes_of_a_film_stand_in_its_record() -> None:
    film = audit_film()
    assert film.film is not None
    film.film = replace(film.film, notes=("padding: Pixel padding was set to black.",))
    assert look(film)[0][1]["notes"] == ["Pixel padding was set to black."]
    unread = RunFilm(PredictionRow("a.png", "no_thorax", notes=("padding",)), Path("a.png"))
    assert refused(AuditFilm(unread, Truth()))[1]["notes"] == ["padding"]


def test_findings_are_measured() -> None:
    row = look(audit_film(findings=((0, 0, 50, 30),)))[0][0][0]
    assert row.value("finding_area_share") == pytest.approx(50 * 30 / 12000)
    assert row.value("finding_lift") == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("method", ["grad_cam", "grad_cam_pp", "eigen_cam"])
def test_maps_come_with_the_logits_of_the_same_films(method: str) -> None:
    net, batch = tiny_net(3), films(3)
    ((logits, planes),) = member_maps([net], batch, method)
    np.testing.assert_allclose(logits, net(batch).detach(), atol=1e-5)
    np.testing.assert_allclose(planes, saliency_maps(net, batch, [1, 1, 1], method), atol=1e-5)


def test_a_head_without_a_closed_form_gives_maps_too() -> None:
    torch.manual_seed(0)
    net, batch = HeadNet(pooled(nn.Linear(8, 3)), after=torch.relu).eval(), films(2)
    ((logits, planes),) = member_maps([net], batch, "grad_cam")
    np.testing.assert_allclose(logits, net(batch).detach(), atol=1e-5)
    wanted = saliency_maps(net, batch, [1, 1], "grad_cam", closed_form=False)
    np.testing.assert_allclose(planes, wanted, atol=1e-5)

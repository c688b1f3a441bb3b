"""An audit's figures, worked out by hand, and the sentence that they make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from classify.audit.figures import (
    answer,
    cautions,
    control_rows,
    distributions,
    figure_rows,
    figure_table,
    pooled,
    threshold_table,
    unknown_labels,
)
from classify.audit.rows import AuditRow, Thresholds

BOUNDS = Thresholds(
    "grad_cam", {"m": {"lift": 0.81234, "border_share": None, "text_share": 0.2}}, 0.4, 0.05, 50, 40
)


def row(
    film: str,
    lift: float | None = 1.0,
    member: str = "m",
    source: str = "nih",
    patient: str = "",
    flags: tuple[str, ...] = (),
    lung_by: str = "lungfield",
    empty: bool = False,
    **more: object,
) -> AuditRow:
    metrics = {"lift": lift, "gaussian_lift": 1.2, "inside_share": 0.5, "area_share": 0.4, **more}
    return AuditRow(
        film,
        source=source,
        patient=patient or film,
        member=member,
        method="grad_cam",
        metrics=metrics,
        flags=flags,
        flag_reasons=("why",) * len(flags),
        lung_by=lung_by,
        empty=empty,
        truth=0,
    )


def many(lift: float, blob: float = 1.2, spread: float = 0.01) -> list[AuditRow]:
    """Forty films of forty patients round a lift."""
    steps = np.linspace(-spread, spread, 40)
    return [row(f"{n}.png", lift + s, gaussian_lift=blob) for n, s in enumerate(steps)]


def figures(rows: list[AuditRow], draws: int = 50) -> dict[tuple[str, str, str], dict]:
    found = figure_rows(rows, draws, 0)
    return {(f["member"], f["source"], f["name"]): f for f in found}


def test_figures_are_means_over_the_films_that_have_a_value() -> None:
    found = figures([row("a", 1.0), row("b", 2.0), row("c", None)])
    assert found["m", "", "lift"]["value"] == 1.5 and found["m", "", "lift"]["n"] == 2


def test_hits_and_flags_are_shares() -> None:
    rows = [
        row("a", 0.9, pointing_hit=True, flags=("border",)),
        row("b", 1.1, pointing_hit=False),
        row("c", None, empty=True),
        row("d", 0.5, pointing_hit=True),
    ]
    found = figures(rows)
    assert found["m", "", "pointing_hit"]["value"] == pytest.approx(2 / 3)
    assert found["m", "", "below_chance"]["value"] == pytest.approx(2 / 3)
    assert found["m", "", "flagged"]["value"] == 0.25
    assert found["m", "", "empty"]["value"] == 0.25


def test_a_metric_that_no_film_has_is_left_out() -> None:
    assert ("m", "", "finding_lift") not in figures([row("a")])


def test_sources_stand_alone_and_all_together_first() -> None:
    rows = [
        row("a", 1.0, source="nih"),
        row("b", 2.0, source="kermany"),
        row("c", 3.0, source="kermany"),
    ]
    found = figures(rows)
    lifts = {source: f["value"] for (_, source, name), f in found.items() if name == "lift"}
    assert lifts == {"": 2.0, "kermany": 2.5, "nih": 1.0}
    assert next(iter(lifts)) == ""


def test_one_source_does_not_stand_beside_all() -> None:
    assert {source for _, source, _ in figures([row("a"), row("b")])} == {""}


def test_members_have_figures_of_their_own_and_refused_films_none() -> None:
    rows = [row("a", 1.0), row("a", 3.0, member="k"), AuditRow("x", status="unreadable")]
    found = figures(rows)
    assert found["m", "", "lift"]["value"] == 1.0 and found["k", "", "lift"]["value"] == 3.0
    assert {m for m, _, _ in found} == {"m", "k"}


def test_films_of_one_patient_have_no_interval() -> None:
    found = figures([row("a", 1.0, patient="p"), row("b", 2.0, patient="p")])["m", "", "lift"]
    assert (found["value"], found["low"], found["high"]) == (1.5, None, None)


def test_the_interval_draws_patients() -> None:
    # two patients: a draw takes one twice or both, so the means are 1, 1.5 and 2
    rows = [
        row(f"{p}{n}", lift, patient=p) for p, lift in (("p", 1.0), ("q", 2.0)) for n in range(5)
    ]
    found = figures(rows, 500)["m", "", "lift"]
    assert (found["low"], found["value"], found["high"]) == (1.0, 1.5, 2.0)


def test_lift_z_counts_the_deviations_from_random_maps() -> None:
    assert row("a", 1.5, random_lift=0.9, random_sd=0.2).value("lift_z") == pytest.approx(3)
    assert row("a", None, random_lift=0.9, random_sd=0.2).value("lift_z") is None
    assert row("a", 1.5, random_lift=0.9, random_sd=0.0).value("lift_z") is None


def test_histograms_count_every_film_with_a_value() -> None:
    rows = [
        row("a", -0.0, border_share=0.0),
        row("b", 0.06, border_share=0.95),
        row("c", 7.0, border_share=0.8),
        row("d", None),
    ]
    found = {d["metric"]: d for d in distributions(rows)}
    lift, border = found["lift"]["counts"]["films"], found["border_share"]["counts"]["films"]
    assert sum(lift) == sum(border) == 3
    assert (lift[0], lift[1], lift[-1]) == (1, 1, 1)  # steps of 0.05; the last holds all beyond
    assert (border[0], border[-1]) == (1, 2)
    assert len(found["lift"]["bins"]) == len(lift) + 1


def test_histograms_have_the_means_of_blind_maps_beside_them() -> None:
    rows = [
        row("a", gaussian_lift=1.0, random_lift=0.9),
        row("b", gaussian_lift=2.0),
        row("c", border_share=0.1, border_area_share=0.19),
    ]
    found = {d["metric"]: d["baseline"] for d in distributions(rows)}
    assert found["lift"] == {"random": 0.9, "gaussian": pytest.approx(1.4)}
    assert found["border_share"] == {"even": 0.19}


def test_histograms_are_of_all_sources_and_of_each_member() -> None:
    rows = [row("a", source="x"), row("b", source="y"), row("b", member="k", source="y")]
    found = [(d["member"], d["metric"], sum(d["counts"]["films"])) for d in distributions(rows)]
    assert found == [("m", "lift", 2), ("k", "lift", 1)]


@pytest.mark.parametrize(
    ("lift", "blob", "spread", "says"),
    [
        (0.7, 1.2, 0.01, "No: "),
        (1.0, 1.2, 0.1, "No more than chance: "),
        (1.4, 1.2, 0.01, "Yes, more than chance and more than a blind blob in the middle: "),
        (1.1, 1.2, 0.01, "More than chance, but less than a blind blob in the middle: "),
        (1.2, 1.2, 0.1, "More than chance, but no more than a blind blob in the middle: "),
    ],
)
def test_the_verdict_is_what_the_interval_allows(
    lift: float, blob: float, spread: float, says: str
) -> None:
    found = answer(many(lift, blob, spread), 200, 0)
    assert found["sentence"].startswith(says)
    assert found["low"] < found["value"] < found["high"]


def test_the_sentence_holds_its_figures() -> None:
    found = answer(many(1.4), 200, 0)
    assert "lung gets 1.40 times the attention" in found["sentence"]
    assert f"95 % interval {found['low']:.2f} to {found['high']:.2f}" in found["sentence"]
    assert "50 % of the attention falls on lung, which is 40 %" in found["sentence"]
    assert "would reach 1.20" in found["sentence"]


def test_one_patient_is_too_few_to_tell() -> None:
    found = answer([row("a", 3.0), row("b", 3.1, patient="a")], 200, 0)
    assert found["sentence"].startswith("Too few patients to tell: ")
    assert "interval" not in found["sentence"]
    assert (found["value"], found["low"], found["high"]) == (pytest.approx(3.05), None, None)


def test_a_film_counts_once_with_the_mean_of_its_members() -> None:
    rows = [row("a", 1.0), row("a", 3.0, member="k"), row("b", 4.0), row("b", None, member="k")]
    assert answer(rows, 50, 0)["value"] == pytest.approx((2 + 4) / 2)


def test_without_any_lift_nothing_is_said() -> None:
    found = answer([row("a", None), AuditRow("x")], 50, 0)
    assert found["value"] is None and "nothing can be said" in found["sentence"]


def test_cautions_say_who_drew_the_lungs() -> None:
    rows = [
        row("a", lung_by="human"),
        row("a", member="k", lung_by="human"),
        row("b"),
        row("c"),
        AuditRow("x"),
    ]
    assert "by people on 1 of 3 films" in cautions(rows, False, BOUNDS, {})[0]


def test_cautions_are_said_where_they_hold() -> None:
    plain = cautions([row("a")], False, BOUNDS, {})
    assert len(plain) == 2
    every = " ".join(cautions([row("a"), row("b", source="x")], True, None, {"blind": 7}))
    assert "Compare lifts." in every and "--fit" in every
    assert "left out of the masking control: 7." in every and "Sources differ" in every


def test_of_the_thresholds_own_films_it_is_said() -> None:
    said = cautions([row("a")], False, BOUNDS, {}, fitted=True)
    assert any("taken from these very films" in s for s in said)


def test_thresholds_are_listed_in_words() -> None:
    table = threshold_table(BOUNDS)
    assert table["m"] == {"lift below": 0.812, "text above": 0.2}
    assert list(table["every member"].values()) == [0.4]
    assert table["taken from"] == {"films": 50, "patients": 40, "share beyond each": 0.05}
    assert threshold_table(None) == {}


def test_controls_have_the_names_of_the_page() -> None:
    trials = {
        "masked": [{"source": "all", "auc": 0.9, "n": 9}, {"source": "nih", "n": 4}],
        "randomised": [{"stage": "fc"}],
        "road": [{"percentile": 20}],
    }
    found = control_rows(trials)
    assert [r["source"] for r in found["masked"]] == ["", "nih"]
    assert found["randomisation"] == [{"stage": "fc"}] and found["road"] == [{"percentile": 20}]
    assert control_rows({}) == {"masked": [], "randomisation": [], "road": []}
    assert pooled({"source": "all", "n": 1}) == {"source": "", "n": 1}


@pytest.mark.parametrize(("low", "warned"), [(-0.1, True), (0.02, False), (None, False)])
def test_maps_that_the_answer_does_not_hang_on_are_named(low: float | None, warned: bool) -> None:
    area = {"member": "b", "name": "road_area", "value": 0.05, "low": low, "high": 0.2}
    said = " ".join(cautions([row("a")], False, BOUNDS, {"areas": [area]}))
    assert ("Do not read the maps of b" in said) == warned


def test_a_question_of_one_source_is_not_said_twice() -> None:
    asked = {"member": "normal / pneumonia", "control": "as is", "n": 4}
    found = control_rows({"masked": [{**asked, "source": "nih"}, {**asked, "source": "all"}]})
    assert [r["source"] for r in found["masked"]] == ["nih"]


def test_the_terminals_table_has_a_row_a_member_and_source() -> None:
    rows = [row("a", 1.0, source="x"), row("b", 2.0, source="y")]
    table = figure_table(figure_rows(rows, 50, 0))
    assert list(table.columns[1].cells) == ["all", "x", "y"]
    lifts = list(table.columns[2].cells)
    assert lifts[0].startswith("1.500 [") and lifts[1] == "1.000"  # one patient: no interval


def test_films_whose_label_says_nothing_are_counted_and_listed() -> None:
    known = replace(row("a"), label="normal")
    unknown = [replace(row(name), label="unknown", truth=-1) for name in ("b", "c")]
    empty = replace(row("f"), truth=-1)
    unlisted, refused = replace(empty, film="d", source=""), AuditRow("e", label="unknown")
    rows = [known, *unknown, empty, unlisted, refused]
    assert unknown_labels(rows) == {"b": "unknown", "c": "unknown", "f": "(empty)"}
    said = " ".join(cautions(rows, False, BOUNDS, {}))
    assert "nothing, left out of all figures that need it: 3 ((empty), unknown)." in said
    assert "label" not in " ".join(cautions([known, unlisted], False, BOUNDS, {}))

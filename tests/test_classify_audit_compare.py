"""Film against crop with every difference, interval and p worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from classify.audit.compare import compare, compare_markdown, pair_rows
from classify.audit.rows import AuditRow, Row
from cxr.stats import BOOTSTRAP_TEST, SWAP_TEST

NORMAL, TARGET, OTHERS = 0, 1, 2


def row_of(film: str, p_target: float = 0.9, truth: int = TARGET, **given: Any) -> AuditRow:
    """A film of patient p<film>, rest of the probability on NORMAL; metrics by name."""
    names = ("source", "patient", "member", "status", "empty", "method")
    own = {k: given.pop(k) for k in names if k in given}
    return AuditRow(
        film,
        probabilities=(1 - p_target, p_target, 0.0),
        truth=truth,
        metrics=given,
        **{"source": "k", "patient": f"p{film}", "member": "viral", **own},
    )


def pick(rows: list[Row], metric: str, **wanted: str) -> Row:
    found = [r for r in rows if r["metric"] == metric and all(r[k] == v for k, v in wanted.items())]
    assert len(found) == 1
    return found[0]


def arms(film: list[dict[str, Any]], crop: list[dict[str, Any]]) -> list[Row]:
    """Films "0", "1", …, each a patient of its own, with these values in either arm."""
    films, crops = (
        [row_of(str(i), **values) for i, values in enumerate(arm)] for arm in (film, crop)
    )
    return compare(films, crops, draws=300)


def test_accuracy_by_hand() -> None:
    # film: right, wrong, wrong; crop: right, right, right
    rows = arms([{"p_target": p} for p in (0.9, 0.2, 0.3)], [{"p_target": 0.8}] * 3)
    row = pick(rows, "accuracy")
    assert row["film"] == pytest.approx(1 / 3) and row["crop"] == 1.0
    assert row["difference"] == pytest.approx(2 / 3) and (row["n"], row["patients"]) == (3, 3)
    # gains 0, 1, 1: of 8 patterns of signs + + and - - reach 2, either way for the 0
    assert row["p"] == pytest.approx(4 / 8) and row["test"] == SWAP_TEST


def test_auc_by_hand() -> None:
    truths = [TARGET, TARGET, NORMAL, OTHERS]
    film = [{"p_target": p, "truth": t} for p, t in zip((0.9, 0.3, 0.5, 0.1), truths, strict=True)]
    crop = [{"p_target": p, "truth": t} for p, t in zip((0.9, 0.8, 0.5, 0.1), truths, strict=True)]
    row = pick(arms(film, crop), "auc")
    assert (row["film"], row["crop"], row["difference"]) == (0.75, 1.0, 0.25)
    assert row["test"] == BOOTSTRAP_TEST and row["n"] == 4


def test_lift_and_what_is_made_of_it_by_hand() -> None:
    film = {"lift": 1.0, "random_lift": 0.8, "random_sd": 0.4, "gaussian_lift": 1.3}
    crop = {"lift": 1.2, "random_lift": 0.9, "random_sd": 0.2, "gaussian_lift": 1.1}
    rows = arms([film, film], [crop, crop])
    assert pick(rows, "lift")["difference"] == pytest.approx(0.2)
    z = pick(rows, "lift_z")
    assert (z["film"], z["crop"], z["difference"]) == pytest.approx((0.5, 1.5, 1.0))
    gain = pick(rows, "lift_over_gaussian")
    assert (gain["film"], gain["crop"], gain["difference"]) == pytest.approx((-0.3, 0.1, 0.4))


@pytest.mark.parametrize("metric", ["inside_share", "border_share", "outside_box_share"])
def test_shares_by_hand(metric: str) -> None:
    row = pick(arms([{metric: 0.2}, {metric: 0.4}], [{metric: 0.5}, {metric: 0.5}]), metric)
    assert (row["film"], row["crop"], row["difference"]) == pytest.approx((0.3, 0.5, 0.2))
    # draws of two patients: gains 0.3 and 0.3, 0.3 and 0.1, 0.1 and 0.1
    assert (row["low"], row["high"]) == pytest.approx((0.1, 0.3))


def test_hits_are_compared_as_shares() -> None:
    rows = arms([{"pointing_hit": True}, {"pointing_hit": False}], [{"pointing_hit": True}] * 2)
    assert pick(rows, "pointing_hit")["difference"] == 0.5


def test_a_metric_that_no_film_has_gets_no_row() -> None:
    rows = arms([{"lift": 1.0}], [{"lift": 1.0}])
    assert [r["metric"] for r in rows] == ["accuracy", "auc", "lift"]


def test_films_without_the_metric_are_left_out_and_counted() -> None:
    film = [{"lift": 1.0}, {"lift": 9.0}, {"lift": 9.0}, {"finding_lift": 2.0}]
    crop: list[dict[str, Any]] = [{"lift": 2.0}, {"empty": True}, {}, {"finding_lift": 3.0}]
    rows = arms(film, crop)
    row = pick(rows, "lift")
    assert (row["difference"], row["n"]) == (1.0, 1)
    assert row["left_out"] == {
        "map empty on the crop": 1,
        "not defined on the crop": 1,
        "not defined on the film": 1,
    }
    assert pick(rows, "finding_lift")["difference"] == 1.0


def test_unknown_truths_are_left_out_of_accuracy_and_auc_only() -> None:
    values: list[dict[str, Any]] = [{"lift": 1.0, "truth": t} for t in (TARGET, NORMAL, -1)]
    rows = arms(values, values)
    assert (
        pick(rows, "accuracy")["n"] == pick(rows, "auc")["n"] == 2 and pick(rows, "lift")["n"] == 3
    )
    assert (
        pick(rows, "accuracy")["left_out"] == pick(rows, "auc")["left_out"] == {"truth unknown": 1}
    )


def test_films_are_matched_by_name_and_member_not_by_place() -> None:
    film = [row_of("a", lift=1.0), row_of("b", lift=2.0), row_of("b", lift=9.0, member="x")]
    crop = [row_of("b", lift=3.0), row_of("a", lift=1.0)]
    row = pick(compare(film, crop, draws=50), "lift")
    assert (row["film"], row["crop"], row["member"]) == (1.5, 2.0, "viral")


def test_films_of_one_arm_are_left_out_with_the_reason() -> None:
    film = [row_of("a"), row_of("b"), row_of("c"), AuditRow("d", "unreadable", "no film")]
    crop = [row_of("a"), AuditRow("b", "no thorax", "no box"), row_of("d")]
    pairs, left_out = pair_rows(film, crop)
    assert [(f.film, c.film) for f, c in pairs] == [("a", "a")]
    assert left_out == {
        ("k", "viral", "not judged as a crop: no thorax"): 1,
        ("k", "viral", "no row as a crop"): 1,
        ("k", "viral", "not judged as a film: unreadable"): 1,
    }
    row = pick(compare(film, crop, draws=50), "accuracy")
    assert row["n"] == 1 and sum(row["left_out"].values()) == 3


def test_sources_stand_alone_and_all_comes_last() -> None:
    film = [row_of("a", lift=1.0, source="k"), row_of("b", lift=1.0, source="n")]
    crop = [row_of("a", lift=2.0, source="k"), row_of("b", lift=4.0, source="n")]
    lifts = [r for r in compare(film, crop, draws=50) if r["metric"] == "lift"]
    assert [(r["source"], r["difference"]) for r in lifts] == [("k", 1.0), ("n", 3.0), ("all", 2.0)]


def test_one_source_is_not_pooled() -> None:
    rows = arms([{"source": ""}] * 2, [{"source": ""}] * 2)
    assert {r["source"] for r in rows} == {"unknown"}


def test_a_source_of_one_class_has_no_auc() -> None:
    row = pick(arms([{}, {}], [{}, {}]), "auc")
    assert (row["film"], row["difference"], row["p"], row["p_holm"], row["test"]) == (
        None,
        None,
        None,
        None,
        "",
    )


def test_one_patient_has_no_interval_and_no_test() -> None:
    film = [row_of(f, lift=1.0, patient="p") for f in "ab"]
    row = pick(compare(film, [replace(r, metrics={"lift": 2.0}) for r in film]), "lift")
    assert row["difference"] == 1.0 and row["patients"] == 1 and row["n"] == 2
    assert (row["low"], row["high"], row["p"], row["test"]) == (None, None, None, "")


def test_holm_counts_the_tests_inside_one_source() -> None:
    films = [str(i) for i in range(6)]
    film = [row_of(f, lift=1.0, inside_share=0.5) for f in films]
    crop = [row_of(f, lift=2.0, inside_share=0.5) for f in films]
    rows = compare(film, crop, draws=64)
    # accuracy, lift, inside_share are tests (an AUC of one class is none); 2 of 64 patterns
    assert pick(rows, "lift")["p"] == pytest.approx(2 / 64)
    assert pick(rows, "lift")["p_holm"] == pytest.approx(3 * 2 / 64)
    assert pick(rows, "inside_share")["p_holm"] == 1.0
    both = compare(
        [*film, *(replace(r, member="x") for r in film)],
        [*crop, *(replace(r, member="x") for r in crop)],
        draws=64,
    )
    assert pick(both, "lift", member="viral")["p_holm"] == pytest.approx(6 * 2 / 64)


def test_both_arms_draw_the_same_patients() -> None:
    rng = np.random.default_rng(0)
    film = [
        row_of(
            str(i),
            float(rng.random()),
            int(rng.integers(0, 2)),
            lift=float(rng.random()),
            patient=f"p{i // 2}",
        )
        for i in range(40)
    ]
    crop = [replace(r, metrics={"lift": r.metrics["lift"] + 0.25}) for r in film]
    rows = compare(film, crop, draws=200)
    lift, auc = pick(rows, "lift"), pick(rows, "auc")
    # a constant gain has no spread when paired, however much the films differ
    assert (lift["low"], lift["high"]) == pytest.approx((0.25, 0.25)) and lift["patients"] == 20
    assert (auc["difference"], auc["low"], auc["high"], auc["p"]) == (0.0, 0.0, 0.0, 1.0)


def test_the_same_seed_gives_the_same_rows() -> None:
    rng = np.random.default_rng(1)
    film = [row_of(str(i), float(rng.random()), i % 2, lift=float(rng.random())) for i in range(30)]
    crop = [replace(r, metrics={"lift": float(rng.random())}) for r in film]
    assert compare(film, crop, 4, 200) == compare(film, crop, 4, 200)
    assert compare(film, crop, 4, 200) != compare(film, crop, 5, 200)


def test_rows_become_plain_values_for_the_page() -> None:
    plain = pick(arms([{"lift": 1.0}] * 2, [{"lift": 2.0}] * 2), "lift")
    wanted = {"source", "metric", "film", "crop", "difference", "low", "high", "p", "n"}
    assert wanted <= set(plain) and plain["left_out"] == {}


def test_the_table_as_markdown() -> None:
    text = compare_markdown(arms([{"lift": 1.0}] * 2, [{"lift": 2.0}, {"lift": 2.5}])).splitlines()
    assert text[4].startswith("| k | viral | lift | 1.000 | 2.250 | +1.250 [+1.000, +1.500] |")
    assert text[3].startswith("| k | viral | auc | – | – | – | – | – | 2 | 2 | – |")
    assert len({line.count("|") for line in text[:5]}) == 1
    assert text[-1] == f"Tests: {SWAP_TEST} (means)."


def test_nothing_to_compare_gives_no_rows() -> None:
    assert compare([], []) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"truth": NORMAL}, "agree in truth"),
        ({"patient": "q"}, "agree in patient"),
        ({"source": "n"}, "agree in source"),
        ({"method": "cam"}, "agree in method"),
    ],
)
def test_the_film_must_be_the_same_in_both_arms(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare([row_of("a")], [replace(row_of("a"), **changed)])

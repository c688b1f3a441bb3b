"""The parts of tools/explore.py, each figure against a value worked out by hand."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from explore_world import entries_of

from classify.evaluate import SHORTCUTS
from cxr.manifest import CropRow, ManifestWriter
from exploring import (
    ASPECT,
    SIDE,
    Box,
    FilmClass,
    Moments,
    age_band,
    age_table,
    choose_for_grid,
    count_groups,
    crop_boxes,
    film_features,
    gather,
    letterboxed,
    ordered_classes,
)
from exploring.page import (
    MOST_DOTS,
    _most,
    class_pictures,
    differences,
    fit_slope,
    size_scatter,
    to_colours,
)


@pytest.mark.parametrize(
    ("age", "band"),
    [
        ("0", "under 18"),
        ("17.9", "under 18"),
        ("18", "18–39"),
        ("39", "18–39"),
        ("40.0", "40–59"),
        ("60", "60–79"),
        ("79", "60–79"),
        ("80", "80 and over"),
        ("058Y", "40–59"),
        ("45 years", "40–59"),
        ("008M", "under 18"),
        ("paediatric 1-5 y", "under 18"),
        ("", "not stated"),
        ("-3", "not stated"),
        ("<b>", "not stated"),
        ("1e9", "not stated"),
    ],
)
def test_ages_fall_into_their_band(age: str, band: str) -> None:
    assert age_band(age) == band


def test_sexes(tmp_path: Path) -> None:
    entries = entries_of(tmp_path, [{"sex": s} for s in ("M", "female", " f", "", "X")])
    assert [e.sex for e in entries] == ["M", "F", "F", "not stated", "not stated"]


def test_groups_count_films_and_patients(tmp_path: Path) -> None:
    rows = [
        {"age": "20", "sex": "F", "patient_id": "a"},
        {"age": "20", "sex": "F", "patient_id": "a"},
        {"age": "50", "sex": "M", "patient_id": "b", "view": "AP", "licence": "CC0"},
        {"age": "50", "label": "covid", "patient_id": "c"},
    ]
    entries = entries_of(tmp_path, rows)
    first = count_groups(entries)[0]
    assert first == {
        "source": "here",
        "label": "normal",
        "age": "18–39",
        "films": 2,
        "patients": 1,
        "licences": {"CC BY 4.0": 2},
        "views": {"PA": 2},
        "sexes": {"F": 2},
    }
    assert age_table(entries).rows == [
        ("here", "normal", "3 (2)", "2 (1)", "1 (1)"),
        ("here", "covid", "1 (1)", "–", "1 (1)"),
        ("all", "", "4 (3)", "2 (1)", "2 (2)"),
    ]


def test_a_label_is_parted_where_two_parts_are_large(tmp_path: Path) -> None:
    rows = [
        *({"label": "pneumonia", "sublabel": s} for s in ["viral/SARS", "viral", "bacterial"] * 2),
        {"label": "pneumonia", "sublabel": "fungal"},
        {"label": "normal", "sublabel": "No Finding"},
        *({"label": "other", "sublabel": "A|B"} for _ in range(3)),
    ]
    found = dict(ordered_classes(entries_of(tmp_path, rows, smallest=2)))
    assert found == {
        FilmClass("here", "normal"): 1,
        FilmClass("here", "pneumonia", "viral"): 4,
        FilmClass("here", "pneumonia", "bacterial"): 2,
        FilmClass("here", "pneumonia"): 1,
        FilmClass("here", "other"): 3,
    }
    assert next(iter(found)).label == "normal"
    assert dict(ordered_classes(entries_of(tmp_path, rows, smallest=3))) == {
        FilmClass("here", "normal"): 1,
        FilmClass("here", "pneumonia"): 7,
        FilmClass("here", "other"): 3,
    }  # viral alone parts nothing


def test_slopes_by_hand() -> None:
    fit = fit_slope(np.array([[1, 2], [2, 4], [3, 9]]))
    assert fit.n == 3 and fit.slope == pytest.approx(3.5) and fit.intercept == pytest.approx(-2)
    assert fit.ratio == 2
    assert fit_slope(np.array([[5, 5], [5, 9]])).slope is None
    assert fit_slope(np.zeros((0, 2))).n == 0


def test_a_scatter_draws_at_most_so_many_dots_and_escapes_names() -> None:
    sizes = np.random.default_rng(0).integers(100, 900, (2 * MOST_DOTS, 2))
    chart = size_scatter({"<b>": sizes, "few": sizes[:3]}, "<about>")
    spots = [
        e.attrib["d"]
        for e in ElementTree.fromstring(chart).iter()
        if e.attrib.get("class", "").startswith("spots")
    ]
    assert sorted(d.count("M") for d in spots) == [1, 1, 3, MOST_DOTS]
    assert "<b>" not in chart and "&lt;b&gt;: slope" in chart


def test_moments_by_hand() -> None:
    moments = Moments()
    for value in (0.2, 0.6):
        moments += Moments.of(np.full((SIDE, SIDE), value))
    assert moments.mean == pytest.approx(0.4) and moments.variance == pytest.approx(0.04)
    twice = moments + moments
    assert twice.n == 4 and twice.variance == pytest.approx(0.04)
    assert not Moments().mean.any() and not Moments().variance.any()


def test_differences_put_the_parts_of_a_label_together() -> None:
    def flat(value: float, n: int) -> Moments:
        moments = Moments()
        for _ in range(n):
            moments += Moments.of(np.full((SIDE, SIDE), value))
        return moments

    moments = {
        FilmClass("a", "normal"): flat(0.5, 2),
        FilmClass("a", "pneumonia", "viral"): flat(0.1, 3),
        FilmClass("a", "pneumonia", "bacterial"): flat(0.3, 1),
        FilmClass("b", "normal"): flat(1, 1),
    }
    found, top = differences(moments)
    assert [(d.source, d.first, d.second, d.n) for d in found] == [
        ("a", "normal", "pneumonia", (2, 4)),
        ("a", "viral", "bacterial", (3, 1)),
    ]  # never between sources
    assert [d.most for d in found] == pytest.approx([0.35, 0.2]) and top == pytest.approx(0.35)
    pictures, most = class_pictures(moments)
    assert all("% across" in p["most"] for p in pictures)
    assert [p["n"] for p in pictures] == [2, 3, 1, 1] and most == pytest.approx(0, abs=1e-12)


def test_signed_colours() -> None:
    found = to_colours(np.array([[-1.0, 0.0, 1.0, 9.0]]), 1.0)
    assert found.tolist() == [[[213, 94, 0], [255, 255, 255], [0, 114, 178], [0, 114, 178]]]
    assert (to_colours(np.zeros((1, 1)), 0.0) == 255).all()


def test_features_are_those_of_the_shortcuts() -> None:
    film = np.zeros((8, 16), np.float32)
    film[2:6, 4:12] = 0.5
    film[0] = 1
    found = film_features(film, np.array([4.0, 2, 12, 6]))
    assert set(found) == {*SHORTCUTS, ASPECT}
    assert found[ASPECT].tolist() == [0.5]
    assert found["four numbers of the box"].tolist() == [0.25, 0.25, 0.75, 0.75, 0.5]
    assert found["thumbnail of the crop"] == pytest.approx(0.5)
    outside = found["outside the thorax box"][:64].reshape(8, 8)
    assert outside[0] == pytest.approx(1) and not outside[1:].any()
    assert set(film_features(film, None)) == {"thumbnail of the film", ASPECT}


def test_a_letterboxed_film_lies_in_the_middle() -> None:
    found = letterboxed(np.ones((10, 20), np.float32))
    assert found.shape == (SIDE, SIDE)
    rows = np.flatnonzero(found.any(1))
    assert (rows[0], rows[-1]) == (SIDE // 4, SIDE * 3 // 4 - 1) and found.any(0).all()


def test_a_grid_has_one_film_of_a_patient_by_seed(tmp_path: Path) -> None:
    rows = [{"patient_id": f"p{n % 40}"} for n in range(120)] + [{"label": "covid"}] * 3
    entries = entries_of(tmp_path, rows)
    normal = FilmClass("here", "normal")
    chosen = choose_for_grid(entries, [normal], 0)
    patients = [entries[i].row.patient_id for i in chosen]
    assert len(patients) == len(set(patients)) == 30 and set(chosen.values()) == {normal}
    both = choose_for_grid(entries, [normal, FilmClass("here", "covid")], 0)
    assert [i for i, c in both.items() if c == normal] == list(chosen)  # another class changes none
    assert chosen != choose_for_grid(entries, [normal], 1)


def test_a_film_that_cannot_be_read_gives_its_place_in_the_grid_away(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    entries = entries_of(tmp_path, [{"orig_width": "720", "orig_height": "960"} for _ in range(40)])
    first = next(iter(choose_for_grid(entries, [FilmClass("here", "normal")], 0)))
    for number in range(40):
        if number != first:
            film = np.random.default_rng(number).integers(0, 255, (96, 72), np.uint8)
            cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), film)
    boxes = {"images/0.png": Box((0, 0, 3, 4), (8, 6)), "images/1.png": Box((0, 0, 3, 4), (6, 8))}
    assert first not in (0, 1)
    found = gather(entries, tmp_path, boxes, jobs=0)
    shown = [i for i, _ in found.grids[FilmClass("here", "normal")]]
    assert len(shown) == 24 and first not in shown
    assert [u[:2] for u in found.unread] == [(f"images/{first}.png", "not_found")]
    assert not found.seen[first] and found.seen.sum() == 39
    assert found.sizes_wh[(first + 1) % 40].tolist() == [720, 960]
    assert found.moments[FilmClass("here", "normal")].n == 39
    assert sum(found.box_faults.values()) == 38  # one box fits
    assert found.features["four numbers of the box"][0].tolist() == pytest.approx(
        [0, 0, 0.5, 0.5, 8 / 6]
    )


def test_boxes_follow_a_scaled_copy_and_no_other() -> None:
    box = Box((10, 20, 30, 40), (100, 50))
    found = box.on((200, 100))
    assert found is not None and found.tolist() == [20, 40, 60, 80]
    assert box.on((100, 100)) is None
    assert Box((60, 0, 70, 10), (100, 50)).on((100, 50)) is None  # beside the film


def test_boxes_of_crops_are_found_by_folder_and_name(tmp_path: Path) -> None:
    def row(film: str) -> CropRow:
        return CropRow(film, "0", "no_thorax", "why", size_hw=(9, 9), thorax_xyxy=(1, 2, 3, 4))

    with ManifestWriter(tmp_path / "manifest.jsonl", {}) as writer:
        for film in ("x/a/1.png", "y/b/1.png", "y/c/2.png", "z/c/2.png"):
            writer.add(row(film))
        writer.add(CropRow("x/a/3.png", "0", "no_thorax", "a leg"))
    images = ["images/a/1.png", "images/c/2.png", "images/a/3.png", "images/d/1.png"]
    assert list(crop_boxes(tmp_path, images)) == ["images/a/1.png"]


def test_the_largest_variance_is_told_with_its_place() -> None:
    plane = np.zeros((4, 10))
    plane[3, 2] = 0.124  # the middle of the third of ten columns and of the last of four rows
    assert _most(plane) == "0.124 at 25 % across, 88 % down"

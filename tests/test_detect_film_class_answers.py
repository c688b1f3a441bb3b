"""From boxes to the film's class, and the figures of those classes, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from cxr.coco import CocoFilm
from cxr.film import Film
from detect.film_class_answers import (
    AnsweredFilm,
    ClassedFilm,
    choose_shown,
    class_scores,
    classify_film,
    compare_film,
    confusion,
    film_truth,
    measure,
    measure_boxes,
)
from detect.predict import Detections, ThoraxDetector
from detect.settings import DetectorConfig

CLASSES = ["normal", "pneumonia"]
POINT = {"reject_score": 0.3, "ok_score": 0.5, "aspect_range": [0.5, 2.0], "min_area_share": 0.1}
FILM = Film(np.zeros((100, 80), np.float32), "a.png", "0")
BOX = np.array([[10.0, 10, 70, 90]])


def said_of(
    boxes: np.ndarray,
    scores: list[float],
    labels: list[int],
    min_score: float | None = None,
    film: Film = FILM,
) -> ClassedFilm:
    config = DetectorConfig(classes=CLASSES)
    detector = ThoraxDetector(nn.Identity(), config, POINT, device="cpu")
    found = Detections(boxes.reshape(-1, 4), np.array(scores), np.array(labels, dtype=np.int64))
    return classify_film(detector, found, film, min_score)


def answered(truth: str, answer: str, score: float, name: str = "a.png") -> AnsweredFilm:
    entry = CocoFilm(name, (100, 80), BOX, (CLASSES.index(truth),), {"label": truth})
    said = ClassedFilm(name, "ok", "", answer, (0.5, 0.5, 0.0), None, 0.5, (100, 80))
    return AnsweredFilm(entry, truth, said, score, None, None)


def test_the_best_score_of_each_class_is_normalised() -> None:
    scores = class_scores(np.array([0.6, 0.2, 0.1]), np.array([1, 0, 1]), 2)
    assert scores == pytest.approx([0.25, 0.75])


def test_without_a_box_no_class_has_a_score() -> None:
    assert class_scores(np.zeros(0), np.zeros(0, np.int64), 2).tolist() == [0.0, 0.0]


def test_the_class_of_the_best_box_is_the_films() -> None:
    said = said_of(np.repeat(BOX, 2, axis=0), [0.6, 0.2], [1, 0])
    assert (said.answer, said.status, said.xyxy) == ("pneumonia", "ok", (10, 10, 70, 90))
    assert said.scores == pytest.approx((0.25, 0.75, 0.0))


def test_box_of_a_film_without_square_pixels_is_in_the_stored_ones() -> None:
    said = said_of(BOX, [0.9], [1], film=replace(FILM, stored_hw=(50, 80)))
    assert (said.size_hw, said.xyxy) == ((50, 80), (10, 5, 70, 45))
    drawn = CocoFilm("a.png", (50, 80), np.array([[10.0, 5, 70, 45]]), (1,), {})
    assert compare_film(drawn, "pneumonia", said, CLASSES).iou == pytest.approx(1)


@pytest.mark.parametrize(
    ("scores", "box", "reason"),
    [
        ([], BOX[:0], "no box at all"),
        ([0.2], BOX, "below 0.30"),
        ([0.9], np.array([[0.0, 0, 5, 90]]), "shape"),
    ],
)
def test_a_film_whose_box_is_refused_has_no_box(
    scores: list[float], box: np.ndarray, reason: str
) -> None:
    said = said_of(box, scores, [1] * len(scores))
    assert said.answer == "no box" and said.scores == (0.0, 0.0, 1.0) and said.xyxy is None
    assert reason in said.reason


def test_a_chest_is_held_to_its_own_score_alone() -> None:
    kept, low = said_of(BOX, [0.2], [1], min_score=0.2), said_of(BOX, [0.2], [1], min_score=0.21)
    assert (kept.answer, kept.status, kept.xyxy) == ("pneumonia", "no_thorax", (10, 10, 70, 90))
    assert low.answer == "no box" and low.scores == (0.0, 0.0, 1.0)
    assert said_of(BOX[:0], [], [], min_score=0.0).answer == "no box"


def test_an_unsure_box_keeps_its_place_and_says_so() -> None:
    said = said_of(BOX, [0.4], [0])
    assert (said.status, said.answer, said.xyxy) == ("fallback", "normal", (10, 10, 70, 90))


def test_the_figures_by_hand() -> None:
    # normal: 3 of 4 found, one called pneumonia; pneumonia: 4 of 6, one called normal, one no box
    truths = ["normal"] * 4 + ["pneumonia"] * 6
    answers = ["normal"] * 3 + ["pneumonia"] + ["pneumonia"] * 4 + ["normal", "no box"]
    counts = confusion(truths, answers, CLASSES)
    assert counts.tolist() == [[3, 1, 0], [1, 4, 1]]
    figures = measure(counts, CLASSES)
    assert figures["accuracy"] == pytest.approx(0.7) and figures["no_box"] == 1
    assert figures["f1"]["normal"] == pytest.approx(2 * 3 / (4 + 4))
    assert figures["f1"]["pneumonia"] == pytest.approx(2 * 4 / (6 + 5))
    assert figures["f1_macro"] == pytest.approx((0.75 + 8 / 11) / 2)


def test_a_class_that_nobody_has_or_names_has_no_f1() -> None:
    figures = measure(confusion(["normal"] * 2, ["normal", "no box"], CLASSES), CLASSES)
    assert figures["f1"] == {"normal": pytest.approx(2 / 3), "pneumonia": None}
    assert figures["f1_macro"] == pytest.approx(2 / 3)


def test_the_box_is_compared_in_the_pixels_of_the_film() -> None:
    entry = CocoFilm("a.png", (200, 160), np.array([[20.0, 20, 140, 100]]), (1,))
    said = ClassedFilm(
        "a.png", "ok", "", "pneumonia", (0.2, 0.8, 0), (10, 10, 70, 90), 0.8, (100, 80)
    )
    film = compare_film(entry, "pneumonia", said, CLASSES)
    assert film.truth_xyxy == (10, 10, 70, 50) and film.iou == pytest.approx(0.5)
    assert film.true_score == 0.8 and film.right


def test_a_film_without_a_box_has_the_iou_0() -> None:
    entry = CocoFilm("a.png", (100, 80), BOX, (0,))
    said = ClassedFilm("a.png", "no_thorax", "", "no box", (0, 0, 1), None, 0.1, (100, 80))
    film = compare_film(entry, "normal", said, CLASSES)
    assert film.iou == 0.0
    assert measure_boxes([film, answered("normal", "normal", 1)]) == {
        "films": 1,
        "mean_iou": 0.0,
        "share_iou_09": 0.0,
    }


def test_a_film_that_nobody_boxed_has_no_iou() -> None:
    entry = CocoFilm("a.png", (100, 80), np.zeros((0, 4)), (), {"label": "normal"})
    said = ClassedFilm("a.png", "ok", "", "normal", (1, 0, 0), (10, 10, 70, 90), 0.8, (100, 80))
    assert compare_film(entry, "normal", said, CLASSES).iou is None


def test_the_truth_comes_from_its_key_or_from_the_boxes() -> None:
    film = CocoFilm("a.png", (100, 80), BOX, (1,), {"label": "normal", "kind": "covid"})
    assert film_truth(film, "label", CLASSES) == "normal"
    assert film_truth(film, "kind", CLASSES) == ""
    assert film_truth(film, "", CLASSES) == "pneumonia"


def test_the_sheet_shows_the_worst_first_and_both_kinds() -> None:
    wrong = [answered("normal", "pneumonia", s, f"w{s}") for s in (0.4, 0.1, 0.3)]
    right = [answered("normal", "normal", s, f"r{s}") for s in (0.9, 0.6, 0.7, 0.8)]
    shown = [f.true_score for f in choose_shown([*right, *wrong], 4)]
    assert shown == [0.1, 0.3, 0.6, 0.9]

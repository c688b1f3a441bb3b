"""The table's shortcut probe: leaks that it must tell, films that it must leave out, its cache."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from classify.films import Case
from cxr.boxes import Frame
from cxr.coco import CocoFilm, CocoSet, write_coco
from cxr.films_table import read_films_table
from cxr.ledger import write_answers
from cxr.manifest import CropRow
from reproducing import probe
from reproducing.probe import probe_of
from reproducing.runners import SplitOf

SIZE, BOX = (80, 64), (16.0, 20.0, 48.0, 60.0)  # rows, columns; the thorax, xyxy
OUTSIDE = "outside the thorax box"
TWO, THREE = ("normal", "pneumonia"), ("normal", "bacterial", "viral")
TRAIN, TEST = range(0, 60), range(60, 90)


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes takes longer than reading these films."""
    monkeypatch.setattr(probe, "default_jobs", lambda films: 0)


def write_films(folder: Path, labels: list[int], place: str, boxes: bool = True) -> None:
    """Films of noise; `place` (border, thorax or none) is brighter by 0.2 for each step of the
    label. With `boxes` a thorax.json beside them."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    films, rows = [], []
    x0, y0, x1, y1 = (int(v) for v in BOX)
    for number, label in enumerate(labels):
        pixels = rng.uniform(0.2, 0.4, SIZE)
        if place == "border":
            pixels[:8] += 0.2 * label
        elif place == "thorax":
            pixels[y0:y1, x0:x1] += 0.2 * label
        name = f"images/f{number}.png"
        cv2.imwrite(str(folder / name), (pixels * 255).astype(np.uint8))
        films.append(CocoFilm(name, SIZE, np.array([BOX]), (0,)))
        rows.append(
            {
                "image": name,
                "mask": "",
                "source": "toy",
                "patient_id": f"p{number}",
                "label": "",
                "sublabel": "",
                "licence": "CC BY 4.0",
            }
        )
    with (folder / "films.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if boxes:
        write_coco(folder / "thorax.json", CocoSet(films, ("thorax",)))


def cases_of(folder: Path) -> list[Case]:
    return [Case(row, folder / row.image) for row in read_films_table(folder / "films.csv")]


def asked(
    cases: Sequence[Case],
    labels: Sequence[int],
    classes: tuple[str, ...],
    folds: Sequence[tuple[Sequence[int], Sequence[int]]],
    *where: Any,
) -> probe.Probe:
    """The probe on films that are named by their number."""
    images = [case.row.image for case in cases]
    truths = {image: classes[k] for image, k in zip(images, labels, strict=True)}
    named = [([images[i] for i in train], [images[i] for i in test]) for train, test in folds]
    return probe_of(cases, SplitOf(classes, truths, named, {}), *where)


def share_right(found: probe.Probe, name: str, classes: tuple[str, ...] = TWO) -> float:
    answers = found.answers[name]
    return float(np.mean([classes[int(np.argmax(a.scores))] == a.truth for a in answers]))


def test_a_leak_at_the_border_is_told_and_what_is_in_the_thorax_is_not(tmp_path: Path) -> None:
    labels = [n % 2 for n in range(90)]
    right = {}
    for place in ("border", "thorax", "none"):
        write_films(tmp_path / place, labels, place)
        found = asked(
            cases_of(tmp_path / place),
            labels,
            TWO,
            [(TRAIN, TEST)],
            tmp_path / place,
            tmp_path / "cache",
        )
        right[place] = share_right(found, OUTSIDE)
        assert not found.left_out and len(found.answers[OUTSIDE]) == 30
    assert right["border"] == 1
    assert right["thorax"] < 0.8 and right["none"] < 0.8
    assert share_right(found, "four numbers of the box") == 0.5  # the same for all films


def test_three_classes_are_answered_and_the_scores_sum_to_one(tmp_path: Path) -> None:
    labels = [n % 3 for n in range(90)]
    write_films(tmp_path, labels, "border")
    found = asked(cases_of(tmp_path), labels, THREE, [(TRAIN, TEST)], tmp_path, tmp_path / "c")
    assert share_right(found, OUTSIDE, THREE) > 0.9
    answers = found.answers[OUTSIDE]
    assert answers[0].truth == THREE[labels[60]]
    assert (answers[0].film, answers[0].patient, answers[0].source) == (
        "images/f60.png",
        "p60",
        "toy",
    )
    assert np.allclose([sum(a.scores) for a in answers], 1)
    write_answers(tmp_path / "answers.csv", THREE, answers)  # as any system's


def test_folds_are_pooled_and_each_film_is_answered_once(tmp_path: Path) -> None:
    labels = [n % 2 for n in range(90)]
    write_films(tmp_path, labels, "border")
    thirds = [[n for n in range(90) if n % 3 == k] for k in range(3)]
    folds = [([n for n in range(90) if n % 3 != k], thirds[k]) for k in range(3)]
    found = asked(cases_of(tmp_path), labels, TWO, folds, tmp_path, tmp_path / "c")
    films = [a.film for a in found.answers[OUTSIDE]]
    assert sorted(films) == sorted(f"images/f{n}.png" for n in range(90))


def test_a_class_that_no_training_film_has_scores_nothing(tmp_path: Path) -> None:
    labels = [n % 2 for n in range(60)] + [2] * 30
    write_films(tmp_path, labels, "border")
    found = asked(cases_of(tmp_path), labels, THREE, [(TRAIN, TEST)], tmp_path, tmp_path / "c")
    assert {a.scores[2] for a in found.answers[OUTSIDE]} == {0.0}


def test_the_crops_box_is_taken_and_films_without_one_are_counted(tmp_path: Path) -> None:
    labels = [n % 2 for n in range(90)]
    write_films(tmp_path, labels, "border", boxes=False)
    cases = []
    for n, case in enumerate(cases_of(tmp_path)):
        found = {
            "status": "ok",
            "size_hw": SIZE,
            "thorax_xyxy": BOX,
            "crop": "c.png",
            "frame": Frame.cut(BOX).to_dict(),
        }
        row = (
            CropRow(case.row.image, "", **found)
            if n
            else CropRow(case.row.image, "", "no_thorax", "no thorax found")
        )
        cases.append(Case(case.row, case.film, None, row))
    (tmp_path / "images/f5.png").write_bytes(b"no film")
    result = asked(cases, labels, TWO, [(TRAIN, TEST)], tmp_path, tmp_path / "c")
    assert result.left_out.pop("no thorax box") == 1
    ((why, number),) = result.left_out.items()
    assert why.startswith("cannot be read: ") and number == 1
    assert share_right(result, OUTSIDE) == 1


def test_no_box_at_all_and_one_class_alone_are_refused(tmp_path: Path) -> None:
    labels = [n % 2 for n in range(6)]
    write_films(tmp_path / "a", labels, "none", boxes=False)
    with pytest.raises(ValueError, match="needs thorax boxes"):
        asked(cases_of(tmp_path / "a"), labels, TWO, [([0, 1], [2])], tmp_path / "a", tmp_path)
    write_films(tmp_path / "b", labels, "none")
    with pytest.raises(ValueError, match="fold 0 must have two classes"):
        asked(cases_of(tmp_path / "b"), labels, TWO, [([0, 2], [1])], tmp_path / "b", tmp_path)


def test_films_are_read_once_for_all_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [n % 2 for n in range(8)]
    write_films(tmp_path, labels, "border")
    read: list[str] = []
    real = probe.read_ahead

    def counting(paths, jobs):
        for path, film in real(paths, jobs):
            read.append(path.name)
            yield path, film

    monkeypatch.setattr(probe, "read_ahead", counting)
    cases = cases_of(tmp_path)
    first = asked(cases, labels, TWO, [(range(4), [4])], tmp_path, tmp_path / "c")
    assert len(read) == 5
    more = asked(cases, labels, TWO, [(range(4), [4, 5])], tmp_path, tmp_path / "c")
    assert len(read) == 6 and read[-1] == "f5.png"
    assert more.answers[OUTSIDE][0] == first.answers[OUTSIDE][0]
    next((tmp_path / "c").glob("*.npz")).write_bytes(b"torn")
    asked(cases, labels, TWO, [(range(4), [4])], tmp_path, tmp_path / "c")
    assert len(read) == 11

"""detect.evaluate: the detector beside its baselines, on schematic chests."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import detect.finder
from cxr.coco import CocoFilm, CocoSet, read_coco, write_coco
from cxr.data_folders import DataFolders
from cxr.draw import BLUE, ORANGE, RED, WHITE
from cxr.film import read_film
from cxr.split import Split
from cxr.workdir import Workdir
from detect.data import read_annotations
from detect.evaluate import (
    EvaluateConfig,
    draw_worst,
    evaluate,
    films_csv,
    find_masks,
    lungs_of,
    main,
    select_films,
    table_rows,
    write_evaluation,
)
from detect.finder import FieldBox, Look, ThoraxFinder
from detect.metrics import Evaluation, constant_box
from detect.predict import DEFAULT_WEIGHTS, Detections, ThoraxBox


class Oracle:
    """Answers with the boxes it was given, in the order of the films; None is a film it refuses."""

    config = SimpleNamespace(classes=["thorax"], side=32)

    def __init__(self, answers: Sequence[list | None], second: Sequence[float] = ()) -> None:
        self.answers = list(answers)
        self.second = list(second) or [0.0] * len(self.answers)
        self.weights: dict[str, str] = {}
        self.meta: dict = {}
        self.batches: list[int] = []

    def detect_prepared(self, films: Sequence) -> list[Detections]:
        self.batches.append(len(films))
        out = []
        for _ in films:
            box, second = self.answers.pop(0), self.second.pop(0)
            boxes = [box or [0, 0, 1, 1], [0, 0, 9, 9]]
            out.append(
                Detections(
                    np.array(boxes, float),
                    np.array([0.9 if box else 0.05, second]),
                    np.zeros(2, int),
                )
            )
        return out

    def decide(self, found: Detections, size_hw: tuple[int, int]) -> ThoraxBox:
        if found.scores[0] < 0.1:
            return ThoraxBox(None, 0.05, "no_thorax", "score too low")
        best = tuple(found.boxes_xyxy[0])
        return ThoraxBox(best, 0.9, "ok", "", seen_xyxy=best)


class Pair(ThoraxFinder):
    """An oracle beside a lung field that is given too; None is a film without one."""

    def __init__(self, detector: Oracle, fields: Sequence[list | None] = ()) -> None:
        box = "both" if fields else "detector"
        super().__init__(detector, SimpleNamespace(weights={}) if fields else None, box=box)
        self.fields = [FieldBox(tuple(f), 0.1) if f else None for f in fields]

    def look(self, films: Sequence[np.ndarray]) -> list[Look]:
        found = self.detector.detect_prepared(films) if films else []
        return [Look(f, self.fields.pop(0) if self.fields else None) for f in found]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four films of 100 × 80 px, three patients and two sources; the last has no thorax."""
    (tmp_path / "images").mkdir()
    ramp = np.tile(np.arange(80, dtype=np.uint8) * 3, (100, 1))
    films = []
    for number, (patient, source, box) in enumerate(
        [
            ("p0", "here", [[10, 10, 70, 90]]),
            ("p1", "there", [[10, 10, 70, 90]]),
            ("p1", "there", [[20, 10, 60, 90]]),
            ("p2", "here", []),
        ]
    ):
        name = f"images/{number}.png"
        cv2.imwrite(str(tmp_path / name), ramp)
        extra = {"patient_id": patient, "source": source, "label": "normal"}
        boxes = np.array(box, float).reshape(-1, 4)
        films.append(CocoFilm(name, (100, 80), boxes, (0,) * len(boxes), extra))
    write_coco(tmp_path / "thorax.json", CocoSet(films, ("thorax",)))
    return tmp_path


TRUE = [[10, 10, 70, 90], [10, 10, 70, 90], [20, 10, 60, 90], None]


def measure(
    data: Path, detector: Oracle, fields: Sequence[list | None] = (), **options
) -> Evaluation:
    config = EvaluateConfig(data=str(data), part="all", **options)
    films, constant = select_films(config)
    return evaluate(Pair(detector, fields), films, constant, config)


def test_perfect_boxes_score_one_and_beat_both_baselines(data: Path) -> None:
    block = measure(data, Oracle(TRUE)).blocks["all"]
    best, constant, whole = (block[m] for m in ("detector", "constant box", "whole film"))
    assert best.summary.mean_iou.value == 1 and best.precision.ap == pytest.approx(1)
    # the median box is the first two films'; on the third it holds 40 of its 60 columns
    assert constant.summary.mean_iou.value == pytest.approx((1 + 1 + 40 / 60) / 3)
    assert whole.summary.mean_iou.value == pytest.approx((0.6 + 0.6 + 0.4) / 3)
    assert whole.summary.coverage.value == 1
    assert (best.summary.films, best.summary.patients, best.summary.negatives) == (3, 2, 1)
    assert (best.summary.false_boxes, whole.summary.false_boxes) == (0, 1)


def test_both_opinions_are_measured_and_their_box(data: Path, tmp_path: Path) -> None:
    wide, narrow = ([[x0 - d, 10, x1, 90] for x0, _, x1, _ in TRUE[:3]] for d in (5, -5))
    evaluation = measure(data, Oracle([*wide, None]), [*narrow[:2], None, None])
    block = evaluation.blocks["all"]
    assert list(block) == ["both", "detector", "lung field", "constant box", "whole film"]
    iou = {method: line.summary.mean_iou.value for method, line in block.items()}
    assert iou["both"] == pytest.approx(2 / 3)  # the mean of the edges; no field is no thorax
    assert iou["detector"] == pytest.approx((60 / 65 * 2 + 40 / 45) / 3)
    assert iou["lung field"] == pytest.approx(55 / 60 * 2 / 3)
    assert [block[m].summary.misses for m in block] == [1, 0, 1, 0, 0]
    rows = list(csv.DictReader(films_csv(evaluation.results).splitlines()))
    assert (rows[0]["iou"], rows[0]["iou_detector"]) == ("1.0000", "0.9231")
    assert float(rows[0]["apart"]) == pytest.approx(10 / 65, abs=1e-4)
    assert (rows[2]["reason"], rows[2]["iou_lung_field"]) == (
        "no thorax found: no lung field",
        "0.0000",
    )
    draw_worst(evaluation, DataFolders(data), tmp_path / "worst.png")
    sheet = cv2.imread(str(tmp_path / "worst.png"))[..., ::-1].reshape(-1, 3).astype(int)
    assert all((abs(sheet - c).max(axis=1) < 30).any() for c in (ORANGE, RED, WHITE, BLUE))


def test_quality_is_held_against_the_iou(data: Path, tmp_path: Path) -> None:
    """Two films promise 1 and have it, one promises 0.7 and has 40 / 50."""
    detector = Oracle(TRUE)
    detector.meta = {
        "pair": {"ok_apart": 0, "lone_apart": 1, "quality": [[0.1, 1.0], [0.1 + 1 / 3, 0.7]]}
    }
    evaluation = measure(data, detector, [*TRUE[:2], [0, 10, 60, 90], None])
    write_evaluation(evaluation, Workdir(tmp_path / "out"))
    found = json.loads((tmp_path / "out/metrics.json").read_text())["quality"]
    assert evaluation.results[2].status == "fallback"  # and its box is measured all the same
    assert (found["films"], found["lowest_fifth"]["value"]) == (3, pytest.approx(0.8))
    assert found["rest"]["value"] == 1 and found["spearman"] == pytest.approx(1)
    assert found["error"]["value"] == pytest.approx(0.1 / 3, abs=1e-3)
    assert cv2.imread(str(tmp_path / "out/quality.png")) is not None


def test_each_source_is_a_block(data: Path) -> None:
    blocks = measure(data, Oracle(TRUE)).blocks
    assert list(blocks) == ["all", "here", "there"]
    assert blocks["here"]["detector"].summary.films == 1
    assert blocks["there"]["detector"].summary.films == 2


def test_refused_film_is_a_miss_with_its_reason(data: Path, tmp_path: Path) -> None:
    evaluation = measure(data, Oracle([None, *TRUE[1:]]))
    line = evaluation.blocks["all"]["detector"]
    assert line.summary.misses == 1
    assert line.summary.mean_iou.value == pytest.approx(2 / 3)
    assert evaluation.results[0].status == "no_thorax"
    assert "score too low" in films_csv(evaluation.results)


def test_fallback_is_a_miss_although_the_whole_film_goes_on(data: Path) -> None:
    class Unsure(Oracle):
        def decide(self, found: Detections, size_hw: tuple[int, int]) -> ThoraxBox:
            return ThoraxBox((0.0, 0.0, 80.0, 100.0), 0.3, "fallback", "whole film used")

    line = measure(data, Unsure(TRUE)).blocks["all"]["detector"]
    assert line.summary.misses == 3 and line.summary.mean_iou.value == 0


def test_second_confident_box_is_a_double(data: Path) -> None:
    evaluation = measure(data, Oracle(TRUE, second=[0.6, 0.4, 0.5, 0.0]))
    assert [r.scores["detector"].doubled for r in evaluation.results] == [True, False, True, False]


def test_two_boxes_for_two_lungs_are_no_double(data: Path) -> None:
    coco = read_coco(data / "thorax.json")
    lungs = np.array([[10.0, 10, 35, 90], [45, 10, 70, 90]])
    first = CocoFilm("images/0.png", (100, 80), lungs, (0, 0), coco.films[0].extra)
    write_coco(data / "thorax.json", CocoSet([first], ("thorax",)))
    evaluation = measure(data, Oracle([[10, 10, 70, 90]], second=[0.9]))
    assert not evaluation.results[0].scores["detector"].doubled
    assert evaluation.results[0].scores["detector"].iou == 1


def test_unreadable_and_wrongly_sized_films_are_misses(data: Path) -> None:
    (data / "images/0.png").write_bytes(b"nothing")
    cv2.imwrite(str(data / "images/1.png"), np.tile(np.arange(90, dtype=np.uint8), (100, 1)))
    detector = Oracle(TRUE[2:])
    results = measure(data, detector).results
    assert [r.status for r in results[:3]] == ["unreadable", "unreadable", "ok"]
    assert results[0].reason.startswith("not_an_image: ")
    assert results[1].reason.startswith("size_differs: the film has 90 x 100 px")
    assert results[0].scores["whole film"].missed
    assert detector.batches == [2]


def test_scaled_copies_in_other_folders_are_measured_in_their_own_pixels(data: Path) -> None:
    ramp = np.tile(np.arange(160, dtype=np.uint8), (200, 1))
    (data / "copies/p0").mkdir(parents=True)
    for number in range(4):
        cv2.imwrite(str(data / f"copies/p0/{number}.png"), ramp)
    doubles = [[v * 2 for v in box] if box else None for box in TRUE]
    detector = Oracle(doubles)
    config = EvaluateConfig(
        data=str(data / "copies"), annotations=str(data / "thorax.json"), part="all"
    )
    films, constant = select_films(config)
    evaluation = evaluate(Pair(detector), films, constant, config)
    assert evaluation.blocks["all"]["detector"].summary.mean_iou.value == 1
    assert evaluation.results[0].film.file_name == "p0/0.png"
    assert evaluation.results[0].film.size_hw == (200, 160)


def test_lung_coverage_comes_from_the_masks_of_films_csv(phantom_folder: Path) -> None:
    coco = read_coco(phantom_folder / "thorax.json")
    halves = []
    for film in coco.films:  # the upper half of each box: the mask fills the box
        x0, y0, x1, y1 = film.boxes_xyxy[0]
        halves.append([x0, y0, x1, (y0 + y1) / 2])
    line = measure(phantom_folder, Oracle(halves)).blocks["all"]["detector"]
    assert line.summary.lung_coverage.value == pytest.approx(0.5, abs=0.01)
    assert line.summary.patients == 12


def test_films_of_two_folders_are_measured_together(
    phantom_folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = read_annotations(phantom_folders, "thorax.json")
    fake = SimpleNamespace(load=lambda *_, **__: Oracle([f.boxes_xyxy[0].tolist() for f in films]))
    monkeypatch.setattr(detect.finder, "ThoraxDetector", fake)
    folders = [word for folder in phantom_folders for word in ("--data", folder)]
    assert main([*folders, "--part", "all", "--box", "detector", "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "metrics.json").read_text())["blocks"]["all"]["detector"]
    summary = figures["summary"]
    assert (summary["films"], summary["patients"]) == (48, 24)
    assert summary["mean_iou"]["value"] == summary["lung_coverage"]["value"] == 1


def test_mask_of_another_size_is_left_out(phantom_folder: Path) -> None:
    name = read_coco(phantom_folder / "thorax.json").films[0].file_name
    path, film = find_masks(phantom_folder)[name], read_film(phantom_folder / name)
    assert lungs_of(path, film) is not None
    assert lungs_of(path, replace(film, pixels=film.pixels[:9, :9])) is None
    assert lungs_of(None, film) is None
    wide = np.repeat(film.pixels, 2, axis=1)  # the mask is as stored, the film with square pixels
    square = replace(film, pixels=wide, stored_hw=film.pixels.shape)
    assert lungs_of(path, square).shape == wide.shape


def test_constant_box_comes_from_the_training_part(data: Path) -> None:
    Split(0, {"p0": "train", "p1": "test", "p2": "test"}).save(data / "split.json")
    config = EvaluateConfig(data=str(data), split=str(data / "split.json"))
    films, constant = select_films(config)
    assert [f.patient_id for f in films] == ["p1", "p1", "p2"]
    assert constant == pytest.approx(constant_box([[[10, 10, 70, 90]]], [(100, 80)]))


def test_only_wanted_sources_are_taken(data: Path) -> None:
    films, _ = select_films(EvaluateConfig(data=str(data), part="all", sources=["there"]))
    assert [f.extra["source"] for f in films] == ["there", "there"]
    with pytest.raises(ValueError, match="Got none for part 'all' and sources x"):
        select_films(EvaluateConfig(data=str(data), part="all", sources=["x"]))


def test_class_of_the_box_is_judged_when_there_are_several(data: Path) -> None:
    coco = read_coco(data / "thorax.json")
    for film, label in zip(coco.films, ("normal", "pneumonia", "normal", "normal"), strict=True):
        film.extra["label"] = label
    write_coco(data / "thorax.json", coco)
    config = EvaluateConfig(data=str(data), part="all", class_from="label")
    films, constant = select_films(config, ("normal", "pneumonia"))
    assert [f.labels for f in films] == [(0,), (1,), (0,), ()]
    line = evaluate(Pair(Oracle(TRUE)), films, constant, config, classes=2).blocks["all"][
        "detector"
    ]
    assert line.class_accuracy == pytest.approx(2 / 3)  # the oracle calls everything normal
    assert line.precision.ap_of_class[1] == 0


def test_class_that_the_detector_has_not_is_refused(data: Path) -> None:
    config = EvaluateConfig(data=str(data), part="all", class_from="source")
    with pytest.raises(ValueError, match=r"its source must be one of model\.classes"):
        select_films(config, ("normal", "pneumonia"))


def test_table_has_a_column_in_mm_only_where_spacing_is_known(data: Path) -> None:
    head, rows = table_rows(measure(data, Oracle(TRUE)))
    assert "edge px" in head and "edge mm" not in head and "false boxes" in head
    assert all(len(row) == len(head) for row in rows)
    assert [row[1] for row in rows[:3]] == ["detector", "constant box", "whole film"]


def test_command_writes_its_files(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [None, *TRUE[1:]]
    monkeypatch.setattr(
        detect.finder, "ThoraxDetector", SimpleNamespace(load=lambda *_, **__: Oracle(answers))
    )
    out = data / "out"
    argv = ["--data", str(data), "--part", "all", "--out", str(out), "--batch", "3"]
    assert main([*argv, "--box", "detector"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["statuses"] == {"no_thorax": 2, "ok": 2}
    assert metrics["misses"] == ["images/0.png: no_thorax, score too low"]
    assert metrics["blocks"]["here"]["detector"]["summary"]["mean_iou"]["low"] is None
    rows = list(csv.DictReader((out / "films.csv").open()))
    assert [r["film"] for r in rows] == [f"images/{i}.png" for i in range(4)]
    assert (rows[0]["iou"], rows[1]["iou"], rows[3]["iou"]) == ("0.0000", "1.0000", "")
    assert "| all | detector | 3 | 2 | 0.667" in (out / "table.md").read_text()
    assert cv2.imread(str(out / "worst.png")) is not None
    assert json.loads((out / "run.json").read_text())["config"]["part"] == "all"


@pytest.mark.parametrize(
    "extra",
    [["--split", "none.json"], ["--annotations", "none.json"], ["--weights", "none.safetensors"]],
)
def test_missing_files_are_code_2(
    data: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    if extra[0] != "--weights":
        fake = SimpleNamespace(load=lambda *_, **__: Oracle(TRUE))
        monkeypatch.setattr(detect.finder, "ThoraxDetector", fake)
    assert main(["--data", str(data), "--box", "detector", "--out", str(data / "o"), *extra]) == 2


@pytest.mark.skipif(not DEFAULT_WEIGHTS.exists(), reason="the shipped weights are missing")
def test_shipped_detector_beats_the_baselines_on_real_films(
    shared_data: Path, root: Path, tmp_path: Path
) -> None:
    split = str(root / "configs/split_seed0.json")
    argv = ["--data", str(shared_data), "--split", split, "--max_films", "12"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    block = json.loads((tmp_path / "metrics.json").read_text())["blocks"]["all"]
    iou = {method: line["summary"]["mean_iou"]["value"] for method, line in block.items()}
    assert min(iou["both"], iou["detector"], iou["lung field"]) > 0.85
    assert 0.85 > iou["constant box"] > iou["whole film"]

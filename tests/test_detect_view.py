"""The view: rules and API on stand-ins, views that are made, training on schematic chests."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import draw_phantom

from cxr.film import read_film
from cxr.films_table import FilmRow
from cxr.split import Split
from cxr.workdir import read_json
from detect.lungfield.field import LungField
from detect.predict import ThoraxBox, prepare_film
from detect.view import CLASSES, DEFAULT_WEIGHTS, View, ViewNet
from detect.view.__main__ import main
from detect.view.head import SURE, choose_point, outcome, outcome_of
from detect.view.pictures import ViewMaker, class_of_negative, read_films

SHARED = {"frontal": 0.7, "mirrored": 0.9}


def shares(name: str, share: float) -> np.ndarray:
    rest = np.full(len(CLASSES), (1 - share) / (len(CLASSES) - 1))
    rest[CLASSES.index(name)] = share
    return rest


@pytest.fixture
def net() -> ViewNet:
    return ViewNet(SimpleNamespace(eval=lambda: None), SHARED, {})  # type: ignore[arg-type]


def test_a_frontal_film_has_no_reason_and_a_mirrored_one_is_flagged(net: ViewNet) -> None:
    assert net.decide(shares("frontal", 0.7), 0.1) == View("frontal", 0, False, 0.7, "")
    assert net.decide(shares("frontal", 0.9), 0.95).mirrored


def test_a_turned_film_says_how_it_is_set_upright(net: ViewNet) -> None:
    found = net.decide(shares("turned 270", 0.8), 0.99)
    assert (found.kind, found.turned, found.mirrored) == ("turned", 270, False)
    assert found.reason == "a frontal film turned by 270°"


def test_below_the_threshold_the_next_kind_is_named(net: ViewNet) -> None:
    found = net.decide(shares("frontal", 0.69) + shares("lateral", 0.05) * 0.01, 0.0)
    assert found.kind != "frontal" and found.reason


def test_thresholds_lose_at_most_the_share_and_ask_for_no_more_than_sure() -> None:
    frontal, mirrored = np.linspace(0.2, 1, 1000), np.linspace(0, 0.99, 1000)
    point = choose_point(frontal, mirrored, 0.003)
    assert (frontal < point["frontal"]).sum() == 3 and (mirrored >= point["mirrored"]).sum() <= 3
    assert choose_point(np.ones(9), np.zeros(9), 0.003) == {"frontal": SURE, "mirrored": 0.5}


def test_what_becomes_of_a_picture() -> None:
    kinds = {"frontal": "ok", "turned": "turned", "many": "fallback", "lateral": "refused"}
    assert all(outcome(View(k, 0, False, 1, "")) == said for k, said in kinds.items())
    box = ThoraxBox((0, 0, 1, 1), 1.0, "ok")
    assert [outcome_of(b) for b in (box, replace(box, turned=90))] == ["ok", "turned"]
    assert outcome_of(replace(box, status="fallback", turned=90)) == "fallback"
    assert outcome_of(replace(box, xyxy=None, status="no_thorax")) == "refused"


@pytest.mark.parametrize(
    ("kind", "note", "wanted"),
    [
        ("rotated90", "No Finding", "turned 270"),
        ("spine", "whole-spine AP, squeezed", "many"),
        ("other", "paediatric lateral / cross-table", "lateral"),
        ("limb", "xr - plain film|lateral", "other"),
    ],
)
def test_kinds_of_the_table_become_classes(kind: str, note: str, wanted: str) -> None:
    assert class_of_negative(FilmRow("a", "", "s", "p", kind, note, "")) == wanted


def write_negatives(folder: Path, number: int = 12) -> Path:
    """Bright bars as limbs, dark ovals as laterals."""
    rng, rows = np.random.default_rng(0), []
    for i in range(number):
        picture = np.full((120, 90), 30, np.uint8)
        if i % 2:
            cv2.ellipse(picture, (45, 60), (18, 50), 0, 0, 360, int(rng.integers(80, 120)), -1)
        else:
            cv2.line(picture, (int(rng.integers(90)), 0), (45, 120), 240, 12)
        cv2.imwrite(str(folder / f"n{i}.png"), picture)
        rows.append([f"n{i}.png", ("limb", "lateral")[i % 2], "drawn", f"n{i}", "CC BY 4.0", ""])
    path = folder / "negatives.csv"
    with path.open("w", newline="") as file:
        head = ["image", "kind", "source", "patient_id", "licence", "note"]
        csv.writer(file).writerows([head, *rows])
    return path


@pytest.fixture(scope="module")
def trained(phantom_folder: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with a split, a run of a few steps, and the words of its command."""
    folder = tmp_path_factory.mktemp("view")
    patients = sorted({r.patient_id for r in read_films(str(phantom_folder))})
    parts = ("train", "train", "val", "test") * 3
    Split(0, dict(zip(patients, parts, strict=True))).save(folder / "split.json")
    words = ["train", "--data", str(phantom_folder), "--negatives", str(write_negatives(folder))]
    words += ["--split", str(folder / "split.json"), "--out", str(folder / "run"), "--views", "64"]
    words += ["--field", str(root / "weights/lungfield.safetensors"), "--epochs", "2"]
    words += ["--batch", "16", "--folds", "2"]
    assert main(words) == 0
    return folder, words


def test_training_leaves_a_bundle_and_the_answers_of_its_folds(trained: Any) -> None:
    folder, _ = trained
    assert len(read_json(folder / "run/folds.json")) == 12
    assert not (folder / "run/features").exists()


def test_evaluation_measures_each_kind(trained: Any, phantom_folder: Path) -> None:
    folder, words = trained
    run = folder / "run"
    rest = ["--weights", str(run / "view.safetensors"), "--folds", str(run / "folds.json")]
    assert main(["evaluate", *words[1:5], *words[11:13], *rest, "--out", str(folder / "e")]) == 0
    lines = {row["pictures"]: row for row in read_json(folder / "e/metrics.json")}
    assert {"frontal, phantom", "limb, folds", "lateral, folds"} <= set(lines)
    assert (folder / "e/mistakes.png").exists()


def test_another_lung_field_is_refused_by_name(trained: Any) -> None:
    other = SimpleNamespace(weights={"mine.safetensors": "0" * 64}, exported=None)
    with pytest.raises(ValueError, match=r"mine\.safetensors .*train it anew"):
        ViewNet.load(other, trained[0] / "run/view.safetensors")  # type: ignore[arg-type]


def test_a_view_is_the_same_for_the_same_seed(phantom_folder: Path) -> None:
    films = read_films(str(phantom_folder))
    first, second = (ViewMaker(films, [], 0, 3).make(11) for _ in range(2))
    assert first[1] == second[1] and np.array_equal(first[0], second[0])


def test_a_look_gives_the_field_that_forward_gives(root: Path) -> None:
    field = LungField.load(root / "weights/lungfield.safetensors", "cpu")
    canvas, _ = prepare_film(draw_phantom(100, 90)[0], field.side)
    maps, features = field.look([canvas, canvas])
    assert features.shape[:1] + features.shape[2:] == (2, 8, 8)
    np.testing.assert_allclose(maps, field.forward([canvas, canvas]), atol=1e-6)


def test_the_shipped_view_sets_a_real_film_upright(shared_data: Path, root: Path) -> None:
    field = LungField.load(root / "weights/lungfield.safetensors", "cpu")
    net = ViewNet.load(field, root / DEFAULT_WEIGHTS)
    row = next(r for r in read_films(str(shared_data)) if r.source == "kermany")
    film = read_film(row.image).pixels
    views = [np.ascontiguousarray(np.rot90(film, -k)) for k in range(4)]
    found = net.judge(field.look([prepare_film(v, field.side)[0] for v in views])[1])
    assert [v.turned for v in found] == [0, 90, 180, 270] and found[0].kind == "frontal"
    assert net.judge(np.zeros((0, 153, 8, 8), np.float32)) == []

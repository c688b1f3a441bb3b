"""Several ensembles together: each film is judged by the one that it is like, and says so."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import draw_phantom
from dicom_films import a_dicom
from test_classify_ensemble import write_member
from test_classify_judge import clearing, small

from classify import run
from classify.audit.films import read_run
from classify.ensemble import Ensemble
from classify.guard import Guard, hash_members
from classify.judge import Judge, Panel, find_ensembles, is_for_children
from classify.predictions import Item, read_predictions
from classify.preprocess import PreprocessConfig
from classify.screener import CLEARED, NOT_READ, READ
from cxr.bundle import save_bundle
from cxr.dicom import read_dicom

CALM = draw_phantom(100, 90, seed=3)[0].astype(np.float32)
BRIGHT = np.clip(CALM + 0.4, 0, 1)
DARK = CALM**3  # not only darker: what is scaled looks the same to members


def knowing(ensemble: Ensemble, pixels: np.ndarray, *others: np.ndarray) -> Guard:
    """A guard that knows one film, and allows half the way to the nearest other one."""
    features = ensemble.predict_pooled(ensemble.prepare([pixels, *others])[0])[1]
    guard = Guard(features[0], np.eye(len(features[0])), np.ones(len(features[0])), 1.0)
    return replace(guard, threshold=float(guard.distance(features[1:]).min()) / 2)


@pytest.fixture
def world() -> SimpleNamespace:
    """A children's ensemble that knows the bright film, and one of adults that knows the dark."""
    settings = PreprocessConfig(side=64, clip=False)
    judges = []
    for name, targets, film, other in (
        ("adults", ("tuberculosis",), DARK, BRIGHT),
        ("children", ("bacterial", "viral"), BRIGHT, DARK),
    ):
        nets = list(small().members.values())
        ensemble = Ensemble(dict(zip(targets, nets, strict=False)), settings)
        guard = knowing(ensemble, film, CALM, other)
        judges.append(clearing(ensemble, guard=guard, saliency=False, name=name))
    return SimpleNamespace(panel=Panel(judges, ["children"]), judges=judges)


def item(pixels: np.ndarray | None, **known: object) -> Item:
    return Item("film", "ok" if pixels is not None else "unreadable", pixels=pixels, **known)  # type: ignore[arg-type]


def test_a_film_without_an_age_is_judged_by_the_ensemble_that_it_is_like(
    world: SimpleNamespace,
) -> None:
    dark, bright = world.panel.judge([item(DARK), item(BRIGHT)])
    assert [(i.ensemble, i.decision) for i in (dark, bright)] == [
        ("adults", CLEARED),
        ("children", CLEARED),
    ]
    assert dark.facts == ("judged by adults, which it is nearest to",)


def test_a_film_like_those_of_no_ensemble_is_read_with_that_reason(world: SimpleNamespace) -> None:
    (film,) = world.panel.judge([item(CALM)])
    far = [j.judge([item(CALM)])[0].far for j in world.judges]
    assert film.decision == READ and film.far == pytest.approx(min(far)) and min(far) > 1
    told = f"adults {far[0]:.3f}, children {far[1]:.3f}, 1 is allowed"
    assert film.doubt == f"the film is like those of no ensemble: distances {told}"


@pytest.mark.parametrize(("child", "name"), [(True, "children"), (False, "adults")])
def test_the_age_goes_before_the_guard(world: SimpleNamespace, child: bool, name: str) -> None:
    like_the_other = DARK if child else BRIGHT
    (film,) = world.panel.judge([item(like_the_other, child=child)])
    assert (film.ensemble, film.decision) == (name, READ)
    assert film.doubt.startswith("the film is unlike those of the calibration")
    assert film.facts == (f"judged by {name}, by the patient's age",)


def test_an_age_that_no_ensemble_is_for_leaves_it_to_the_guards(world: SimpleNamespace) -> None:
    (film,) = Panel(world.judges).judge([item(BRIGHT, child=True)])
    assert (film.ensemble, film.decision) == ("children", CLEARED)


def test_members_that_were_not_asked_have_no_logits(world: SimpleNamespace) -> None:
    assert world.panel.targets == ("tuberculosis", "bacterial", "viral")
    dark, bright, unread = world.panel.judge([item(DARK), item(BRIGHT), item(None)])
    assert np.isnan(dark.logits).all(axis=1).tolist() == [False, True, True]
    assert np.isnan(bright.logits).all(axis=1).tolist() == [True, False, False]
    expected = world.judges[1].judge([item(BRIGHT)])[0].logits
    np.testing.assert_allclose(bright.logits[1:], expected, atol=1e-6)
    assert (unread.decision, unread.logits, unread.ensemble) == (NOT_READ, None, "")


def test_an_ensemble_that_no_film_asks_is_not_run(world: SimpleNamespace) -> None:
    for net in world.judges[0].members.networks:
        net.broken = True
    (film,) = world.panel.judge([item(BRIGHT, child=True)])
    assert film.ensemble == "children"


def test_ensembles_with_a_target_in_common_do_not_judge_together(world: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="name one of them with --ensemble"):
        Panel([world.judges[0], world.judges[0]])


def test_an_ensemble_without_a_guard_does_not_judge_with_others(world: SimpleNamespace) -> None:
    bare = Judge(world.judges[0].members, None, {}, cropped=True)
    with pytest.raises(ValueError, match="must each have a guard"):
        Panel([bare, world.judges[1]])


# --- folders, ages and the run


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("004Y", 4.0),
        ("018M", 1.5),
        ("000Y", None),  # an age that was taken out
        ("999Y", None),
        ("4 years", None),
        ("", None),
    ],
)
def test_the_age_of_a_dicom_file(text: str, years: float | None) -> None:
    assert read_dicom(age_bytes(CALM, text)).age_years == years


def age_bytes(pixels: np.ndarray, age: str) -> bytes:
    return a_dicom(np.rint(pixels * 4095).astype(np.uint16), PatientAge=age)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """weights/ with two ensembles of whole films that have guards, films/ with three films."""
    monkeypatch.chdir(tmp_path)
    for name, targets, film, other in (
        ("ensemble_adults", ("tuberculosis",), DARK, BRIGHT),
        ("ensemble_films", ("bacterial", "viral"), BRIGHT, DARK),
    ):
        folder = Path("weights") / name
        folder.mkdir(parents=True)
        for order, target in enumerate(targets):
            write_member(folder, target, order, trained_on="films")
        guard = knowing(Ensemble.load(folder, "cpu"), film, CALM, other)
        meta = {"trained_on": "films"}
        replace(guard, members=hash_members(folder), meta=meta).save(folder)
    Path("weights/ensemble_films/about.json").write_text('{"patients": "children"}')
    Path("films").mkdir()
    for name, film in (("dark", DARK), ("bright", BRIGHT)):
        cv2.imwrite(f"films/{name}.png", np.rint(film * 255).astype(np.uint8))
    Path("films/child.dcm").write_bytes(age_bytes(DARK, "004Y"))
    return tmp_path


def test_ensembles_with_guards_are_found_by_what_they_see(folders: Path) -> None:
    found = find_ensembles(Path("weights"), "films")
    assert [folder.name for folder in found] == ["ensemble_adults", "ensemble_films"]
    assert find_ensembles(Path("weights"), "crops") == []
    assert [is_for_children(folder) for folder in found] == [False, True]


@pytest.mark.parametrize("meta", [{"children": True}, {"patients": "children"}])
def test_a_bundle_may_say_that_it_is_for_children(tmp_path: Path, meta: dict[str, object]) -> None:
    assert not is_for_children_with(tmp_path / "a", {"patients": "adults"})
    assert is_for_children_with(tmp_path / "b", meta)


def is_for_children_with(folder: Path, meta: dict[str, object]) -> bool:
    save_bundle(folder / "viral.safetensors", "member", {}, **meta)
    return is_for_children(folder)


def test_a_run_without_an_ensemble_asks_all_that_have_a_guard(folders: Path) -> None:
    assert run.main(["films", "--out", "r", "--saliency", "false", "--device", "cpu"]) == 0
    with Path("r/predictions.csv").open(newline="") as file:
        rows = {Path(row["film"]).stem: row for row in csv.DictReader(file)}
    judged = {name: row["ensemble"] for name, row in rows.items()}
    assert judged == {
        "dark": "ensemble_adults",
        "bright": "ensemble_films",
        "child": "ensemble_films",
    }
    assert rows["dark"]["viral.target"] == "" != rows["dark"]["tuberculosis.target"]
    assert rows["bright"]["tuberculosis.target"] == "" != rows["bright"]["viral.target"]
    assert rows["child"]["doubt"].startswith("the film is unlike those of the calibration")
    assert rows["bright"]["doubt"] == ""
    page = Path("r/report.html").read_text()
    assert "judged by ensemble_films, by the patient&#39;s age" in page
    assert "ensemble_adults: Films unlike those of the calibration are never cleared" in page
    record = json.loads(Path("r/run.json").read_text())
    assert record["settings"]["ensembles"] == ["ensemble_adults", "ensemble_films"]
    assert record["settings"]["children"] == ["ensemble_films"]
    assert record["folders"]["ensemble ensemble_adults"] == "weights/ensemble_adults"
    assert not all(row.complete for row in read_predictions("r/predictions.csv")[1])
    assert run.main(["films", "--out", "r", "--saliency", "false", "--device", "cpu"]) == 0
    with pytest.raises(ValueError, match="must be judged by one ensemble"):
        read_run("r")


def test_an_ensemble_that_is_named_judges_alone(folders: Path) -> None:
    words = ["--ensemble", "weights/ensemble_films", "--saliency", "false", "--device", "cpu"]
    assert run.main(["films", "--out", "r", *words]) == 0
    targets, rows = read_predictions("r/predictions.csv")
    assert targets == ("bacterial", "viral")
    assert {row.ensemble for row in rows} == {"ensemble_films"}


def test_a_crops_age_is_kept_beside_it(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from classify.predictions import crops_on_disk
    from cxr.manifest import read_manifest
    from detect.crop import main as crop

    boxes = {"images": [{"id": 1, "file_name": "films/child.dcm", "width": 90, "height": 100}]}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [9, 10, 70, 80], "area": 5600}
    boxes |= {"annotations": [box], "categories": [{"id": 1, "name": "thorax"}]}  # type: ignore[dict-item]
    Path("boxes.json").write_text(json.dumps(boxes))
    assert crop(["films/child.dcm", "--boxes", "boxes.json", "--out", "c"]) == 0
    rows = read_manifest("c")[1]
    for _ in range(2):  # the second time the film need not be there
        assert [i.child for i in crops_on_disk(rows, Path("c"))] == [True]
        Path("films/child.dcm").unlink(missing_ok=True)

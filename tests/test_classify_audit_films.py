"""From a run's films to what the members saw: crops, changed films, masks, boxes, odd names."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from audit_world import (
    FakeDetector,
    FakeField,
    add_film,
    add_mask,
    lungs_of,
    make_world,
    write_table,
)

from classify import run
from classify.audit.films import AuditFilm, Run, Truths, read_films, read_run
from cxr.film import read_film


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    return make_world(monkeypatch, tmp_path)


def make_run(out: str, *more: str) -> None:
    arguments = ["data/images", "--out", out, "--saliency", "false", "--jobs", "0", *more]
    assert run.main(arguments) == 0


def films_of(
    found: Run,
    truths: Truths | None = None,
    field: FakeField | None = None,
    detector: FakeDetector | None = None,
    batch: int = 8,
) -> dict[str, AuditFilm]:
    """Films by the file's name."""
    films = [f for f in found.films if f.prediction.logits is not None]
    groups = read_films(
        films, truths or Truths(), field or FakeField(), detector, jobs=0, batch=batch
    )
    return {Path(s.listed.path).name: s for group in groups for s in group}


def test_crops_made_in_the_run_are_found(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r", "--crops")
    found = read_run("r")
    assert found.cropped and found.targets == ("bacterial", "viral")
    (film,) = found.films
    assert film.boxed is not None and film.crop is not None
    assert film.crop.source_xyxy == film.boxed.crop_xyxy
    assert found.ensemble == Path("weights/ensemble_crops")
    assert found.members == world.ensemble.weights


def test_crops_elsewhere_are_found(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r", "--crops", "c")
    assert read_run("r").films[0].crop is not None


def test_crops_made_before_the_run_are_found(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r", "--crops", "runs/crops")
    assert run.main(["--crops", "--out", "s", "--saliency", "false"]) == 0
    assert read_run("s").films[0].crop is not None


def test_folders_are_those_that_the_run_recorded_and_else_the_defaults(
    world: SimpleNamespace,
) -> None:
    add_film("nih/a.png")
    make_run("r", "--crops", "runs/crops")
    assert run.main(["--crops", "--out", "s", "--saliency", "false"]) == 0
    shutil.move("runs", "elsewhere")
    record = json.loads(Path("s/run.json").read_text())
    record["folders"] = {"crops": "elsewhere/crops", "ensemble": "my/members"}
    Path("s/run.json").write_text(json.dumps(record))
    found = read_run("s")
    assert found.films[0].crop is not None and found.ensemble == Path("my/members")
    del record["folders"]  # as runs did before
    Path("s/run.json").write_text(json.dumps(record))
    shutil.move("elsewhere", "runs")
    old = read_run("s")
    assert old.films[0].crop is not None and old.ensemble == Path("weights/ensemble_crops")


def test_a_run_that_was_moved_finds_its_own_crops(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r", "--crops")
    shutil.move("r", "moved")
    assert read_run("moved").films[0].crop is not None


def test_other_crops_than_those_of_the_run_are_refused(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r", "--crops", "c")
    add_film("nih/b.png")
    make_run("r", "--crops", "c")
    manifest = Path("c/manifest.jsonl")
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"nih/b.png is not among them: give the right --crops"):
        read_run("r")


def test_whole_films_have_no_crop_and_no_box(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r")
    found = read_run("r")
    assert not found.cropped and found.ensemble == Path("weights/ensemble_films")
    assert found.films[0].crop is None and found.films[0].boxed is None


def test_whole_films_take_their_boxes_from_crops_that_are_given(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r")
    make_run("s", "--crops", "c")
    (film,) = read_run("r", "c").films
    assert film.crop is None and film.boxed is not None
    film = films_of(read_run("r", "c"))["a.png"]
    assert film.box_xyxy == (20.0, 24.0, 80.0, 96.0)


def test_crops_of_none_of_the_films_are_refused(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r")
    shutil.copytree("data/images", "copy")
    assert run.main(["copy", "--crops", "c", "--out", "s", "--saliency", "false"]) == 0
    with pytest.raises(ValueError, match=r"c holds none of them, such as data/images/nih/a.png"):
        read_run("r", "c")


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_folder_of_another_kind_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match="make"):
        read_run(tmp_path)


def test_refused_films_keep_their_place_without_a_crop(world: SimpleNamespace) -> None:
    add_film("nih/leg.png", size=(100, 200))
    add_film("nih/a.png")
    make_run("r", "--crops")
    films = {Path(f.path).name: f for f in read_run("r").films}
    assert films["leg.png"].crop is None and films["leg.png"].prediction.status == "no_thorax"
    assert films["a.png"].crop is not None


def test_a_film_that_changed_since_is_refused(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r", "--crops")
    add_film("nih/a.png", level=0.6)
    film = films_of(read_run("r"))["a.png"]
    assert film.film is None and film.reason == "the film has changed since the run was made"


def test_a_film_that_became_unreadable_is_refused(world: SimpleNamespace) -> None:
    Path(add_film("nih/a.png"))
    add_film("nih/b.png")
    make_run("r")
    Path("data/images/nih/a.png").write_bytes(b"torn")
    found = films_of(read_run("r"))
    assert found["a.png"].film is None and found["a.png"].reason.startswith("not_an_image")
    assert found["b.png"].film is not None


def test_films_of_a_folder_that_is_gone_are_refused_one_by_one(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r")
    shutil.rmtree("data")
    assert films_of(read_run("r"))["a.png"].reason.startswith("not_found")


def test_what_was_seen_is_the_crop_in_its_place_on_the_film(world: SimpleNamespace) -> None:
    path = add_film("nih/a.png")
    make_run("r", "--crops")
    film = films_of(read_run("r"))["a.png"]
    x0, y0, x1, y1 = (int(v) for v in film.seen_xyxy)
    assert film.pixels is not None and film.size_hw == (120, 100)
    np.testing.assert_array_equal(film.pixels, read_film(path).pixels[y0:y1, x0:x1])


def test_a_film_that_lay_turned_is_judged_upright(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add_film("nih/a.png", size=(100, 120))
    plain = world.detector.predict
    monkeypatch.setattr(
        world.detector, "predict", lambda films: [replace(b, turned=90) for b in plain(films)]
    )
    mask = np.zeros((100, 120), bool)
    mask[10:50, 10:40] = True
    make_run("r", "--crops")
    write_table([{"image": "images/nih/a.png", "mask": add_mask("a.png", mask)}])
    field, upright = FakeField(), np.rot90(read_film(path).pixels)
    by_net, by_hand = (
        films_of(read_run("r"), t, field)["a.png"] for t in (None, Truths.load("data"))
    )
    assert by_net.size_hw == (120, 100) and field.seen == [(120, 100)]
    assert by_net.box_xyxy == (20.0, 24.0, 80.0, 96.0)
    x0, y0, x1, y1 = (int(v) for v in by_net.seen_xyxy)
    np.testing.assert_array_equal(by_net.pixels, upright[y0:y1, x0:x1])
    np.testing.assert_array_equal(by_hand.lung, np.rot90(mask))
    truth = replace(by_hand.truth, findings_xyxy=((10.0, 20.0, 30.0, 60.0),))
    assert truth.findings_on((120, 100)).tolist() == [[20, 90, 60, 110]]  # (y, 120 − x)


def test_of_a_whole_film_all_was_seen(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r")
    film = films_of(read_run("r"))["a.png"]
    assert film.seen_xyxy == (0, 0, 100, 120)
    assert film.pixels is not None and film.pixels.shape == (120, 100)


def test_a_human_mask_takes_the_networks_place(world: SimpleNamespace) -> None:
    for name in ("a", "b", "c"):
        add_film(f"nih/{name}.png")
    mask = np.zeros((120, 100), bool)
    mask[10:50, 10:40] = True
    write_table([{"image": "images/nih/b.png", "mask": add_mask("b.png", mask)}])
    make_run("r")
    field = FakeField()
    found = films_of(read_run("r"), Truths.load("data"), field)
    assert {n: s.lung_by for n, s in found.items()} == {
        "a.png": "lungfield",
        "b.png": "human",
        "c.png": "lungfield",
    }
    assert len(field.seen) == 2  # the network sees only the rest
    np.testing.assert_array_equal(found["b.png"].lung, mask)
    np.testing.assert_array_equal(found["c.png"].lung, lungs_of(120, 100))


def test_the_lung_field_is_that_of_the_film_and_not_of_the_crop(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r", "--crops")
    field = FakeField()
    films_of(read_run("r"), field=field)
    assert field.seen == [(120, 100)]


def test_an_uncertain_box_is_none(world: SimpleNamespace) -> None:
    add_film("nih/tall.png", size=(200, 100))
    make_run("r", "--crops")
    film = films_of(read_run("r"))["tall.png"]
    assert film.listed.prediction.status == "fallback" and film.box_xyxy is None
    assert film.pixels is not None


def test_the_detector_boxes_whole_films_and_is_not_sure_of_each(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    add_film("nih/leg.png", size=(100, 200))
    add_film("nih/tall.png", size=(200, 100))
    make_run("r")
    detector = FakeDetector()
    found = films_of(read_run("r"), detector=detector)
    assert detector.seen == 3
    assert found["a.png"].box_xyxy == (20.0, 24.0, 80.0, 96.0)
    assert found["leg.png"].box_xyxy is None and found["tall.png"].box_xyxy is None


def test_without_a_detector_whole_films_have_no_box(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r")
    assert films_of(read_run("r"))["a.png"].box_xyxy is None


def test_boxes_of_the_run_are_not_sought_again(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r", "--crops")
    detector = FakeDetector()
    assert films_of(read_run("r"), detector=detector)["a.png"].box_xyxy is not None
    assert detector.seen == 0


@pytest.mark.parametrize("more", [(), ("--crops",)])
def test_odd_file_names_lead_back_to_their_films(world: SimpleNamespace, more: tuple) -> None:
    names = ["a\nb.png", "<i>[red]x.png", "=1+1.png", "ü\u202e.png"]
    for name in names:
        add_film(f"nih/{name}", seed=len(name))
    bad_bytes = b"bad\xff.png".decode(errors="surrogateescape")
    shutil.copy(Path("data/images/nih") / names[0], Path("data/images/nih") / bad_bytes)
    make_run("r", *more)
    found = films_of(read_run("r"))
    assert sorted(found) == sorted([*names, bad_bytes])
    assert all(s.film is not None for s in found.values())


def test_films_keep_their_order_over_batches(world: SimpleNamespace) -> None:
    for n in range(5):
        add_film(f"nih/{n}.png", size=(120 + n, 100))
    make_run("r")
    Path("data/images/nih/2.png").unlink()
    films = read_run("r").films
    groups = list(read_films(films, Truths(), FakeField(), None, jobs=0, batch=2))
    assert [len(g) for g in groups] == [2, 2, 1]
    read = [s for g in groups for s in g]
    assert [s.listed.name for s in read] == [f.name for f in films]
    assert [s.film and s.size_hw[0] for s in read] == [120, 121, None, 123, 124]


def test_a_patient_is_known_by_table_then_file_then_film(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    add_film("nih/b.png")
    write_table([{"image": "images/nih/a.png", "patient_id": "p1"}])
    make_run("r")
    found = films_of(read_run("r"), Truths.load("data"))
    assert found["a.png"].patient == "p1"
    assert found["b.png"].patient == "data/images/nih/b.png"


def test_a_patient_of_no_table_is_the_hashed_one_of_the_file(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r")
    film = films_of(read_run("r"))["a.png"]
    assert film.film is not None
    assert replace(film, film=replace(film.film, patient="hashed")).patient == "hashed"


def test_lungs_and_boxes_are_sought_where_they_are_wanted(world: SimpleNamespace) -> None:
    for name in ("a", "b", "c"):
        add_film(f"nih/{name}.png")
    make_run("r")
    field, detector, films = FakeField(), FakeDetector(), read_run("r").films
    a, b = (film.name for film in films[:2])
    (read,) = read_films(films, Truths(), field, detector, {a, b}, {b}, jobs=0)
    assert [film.lung is not None for film in read] == [True, True, False]
    assert [film.box_xyxy is not None for film in read] == [False, True, False]
    assert len(field.seen) == 2 and detector.seen == 1
    assert all(film.pixels is not None for film in read)


def test_a_pixel_is_lung_above_the_threshold_of_the_bundle(world: SimpleNamespace) -> None:
    add_film("nih/a.png")
    make_run("r")
    field = FakeField()
    field.threshold = 0.95  # above the 0.9 of its lungs
    lung = films_of(read_run("r"), field=field)["a.png"].lung
    assert lung is not None and not lung.any()


def test_films_of_sixteen_bits_are_read_as_the_members_saw_them(world: SimpleNamespace) -> None:
    path = Path("data/images/nih/deep.png")
    path.parent.mkdir(parents=True)
    ramp = np.linspace(0, 65535, 120 * 100).reshape(120, 100).astype(np.uint16)
    cv2.imwrite(str(path), ramp)
    make_run("r", "--crops")
    film = films_of(read_run("r"))["deep.png"]
    assert film.pixels is not None
    crop = read_film(next(Path("r/crops").glob("*.png"))).pixels
    np.testing.assert_allclose(film.pixels, crop, atol=1 / 65535)

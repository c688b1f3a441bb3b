"""detect.crop: cutting, and the command that streams films into crops and a manifest."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, ClassVar

import cv2
import numpy as np
import pytest
from dicom_films import RAW, a_dicom, ramp

import cxr.ledger
import detect.crop
from cxr.boxes import mask_box_xyxy
from cxr.coco import CocoFilm, CocoSet, write_coco
from cxr.film import Film, read_film
from cxr.manifest import read_manifest
from cxr.notes import code_of, note
from detect.crop import CropConfig, HumanBoxes, crop_film, crop_name, iter_crops, main
from detect.predict import DEFAULT_WEIGHTS, ThoraxBox


def film_of(height: int, width: int) -> Film:
    pixels = np.random.default_rng(0).random((height, width), np.float32)
    return Film(pixels, "film.png", "0" * 64)


def box_at(*xyxy: float) -> ThoraxBox:
    return ThoraxBox(xyxy, 0.9, "ok", "")


class FakeDetector:
    """The middle of each film; a film narrower than 100 px has no thorax, one above 200 px wide is
    uncertain."""

    weights: ClassVar[dict[str, str]] = {"fake.safetensors": "1" * 64}
    loads = 0

    @classmethod
    def load(cls, *_: object) -> FakeDetector:
        cls.loads += 1
        return cls()

    def predict(self, films: Sequence[np.ndarray]) -> list[ThoraxBox]:
        out = []
        for film in films:
            h, w = film.shape
            whole = (0.0, 0.0, float(w), float(h))
            if w < 100:
                out.append(ThoraxBox(None, 0.1, "no_thorax", "no thorax found"))
            elif w > 200:
                out.append(ThoraxBox(whole, 0.4, "fallback", "score 0.4; whole film used"))
            else:
                out.append(box_at(w * 0.25, h * 0.25, w * 0.75, h * 0.75))
        return out


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect.crop, "ThoraxFinder", FakeDetector)


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good film of 8 bits and one of 16 by the same name, one without a thorax,
    an uncertain one and a broken one; the working folder is its parent."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "films"
    for place, width, kind in (
        ("a", 120, np.uint8),
        ("b", 120, np.uint16),
        ("legs", 90, np.uint8),
        ("odd", 240, np.uint8),
    ):
        (folder / place).mkdir(parents=True)
        pixels = rng.integers(0, np.iinfo(kind).max, (100, width), kind, endpoint=True)
        cv2.imwrite(str(folder / place / "film.png"), pixels)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    monkeypatch.chdir(tmp_path)
    return folder


def run(*args: str) -> int:
    return main(["films", "--out", "crops", "--jobs", "0", *args])


# cutting ------------------------------------------------------------------------------------------


def test_crop_without_margin_is_the_box() -> None:
    film = film_of(100, 80)
    crop = crop_film(film, box_at(10, 20, 50, 90), margin=0)
    assert crop.frame.source_xyxy == (10, 20, 50, 90)
    assert np.array_equal(crop.pixels, film.pixels[20:90, 10:50])


def test_margin_is_a_fraction_of_each_side() -> None:
    crop = crop_film(film_of(200, 200), box_at(50, 60, 90, 160), margin=0.1)
    assert crop.frame.source_xyxy == (46, 50, 94, 170)


def test_crop_ends_at_the_edge_of_the_film() -> None:
    crop = crop_film(film_of(100, 80), box_at(-3, 5, 79, 100), margin=0.05)
    assert crop.frame.source_xyxy == (0, 0, 80, 100)


@pytest.mark.parametrize("xyxy", [(10, 20, 50, 91), (10.4, 20.6, 51.2, 90.5), (0, 0, 80, 100)])
def test_square_crop_is_square(xyxy: tuple[float, ...]) -> None:
    crop = crop_film(film_of(100, 80), box_at(*xyxy), square=True)
    assert crop.pixels.shape[0] == crop.pixels.shape[1]


def test_square_crop_is_zero_beyond_the_film_only() -> None:
    film = replace(film_of(100, 40), pixels=np.ones((100, 40), np.float32))
    crop = crop_film(film, box_at(0, 0, 40, 100), margin=0, square=True)
    assert crop.frame.source_xyxy == (-30, 0, 70, 100)
    assert crop.pixels[:, 30:70].all() and crop.pixels.sum() == 4000


def test_fallback_takes_the_whole_film() -> None:
    film = film_of(100, 80)
    crop = crop_film(film, ThoraxBox((0, 0, 80, 100), 0.4, "fallback", "why"), margin=0.2)
    assert crop.frame.source_xyxy == (0, 0, 80, 100)
    assert np.array_equal(crop.pixels, film.pixels)


@pytest.mark.parametrize("square", [False, True])
def test_frame_leads_back_to_the_film(square: bool) -> None:
    film = film_of(100, 80)
    crop = crop_film(film, box_at(30, 10, 70, 95), square=square)
    back = crop.frame.restore(crop.pixels, (100, 80))
    inside = back[10:95, 30:70]
    assert np.array_equal(inside, film.pixels[10:95, 30:70])
    in_crop = crop.frame.to_model_xyxy((30, 10, 70, 95))
    assert crop.frame.to_original_xyxy(in_crop)[0].tolist() == [30, 10, 70, 95]


def test_film_without_a_thorax_cannot_be_cropped() -> None:
    with pytest.raises(ValueError, match="no_thorax: a leg"):
        crop_film(film_of(80, 80), ThoraxBox(None, 0, "no_thorax", "a leg"))


def test_box_beside_the_film_is_refused() -> None:
    with pytest.raises(ValueError, match="must touch the film of 80 x 100 px"):
        crop_film(film_of(100, 80), box_at(90, 10, 120, 50))


def test_crop_name_differs_by_folder_and_by_content_and_hides_the_file() -> None:
    names = {crop_name(p, s) for p in ("a/Doe_Jane.dcm", "b/Doe_Jane.dcm") for s in ("0", "1")}
    assert len(names) == 4
    assert all(len(n) == 16 and int(n, 16) >= 0 for n in names)
    assert crop_name("a/x.dcm", "0") == crop_name("./a/x.dcm", "0")


# streaming ----------------------------------------------------------------------------------------


def test_each_film_gets_its_row_in_order(films: Path) -> None:
    paths = sorted(films.rglob("*.png"))
    rows = list(
        iter_crops(paths, FakeDetector(), CropConfig(out=str(films.parent / "out"), batch=2))
    )
    assert [row.film for row, _, _ in rows] == [p.as_posix() for p in paths]
    assert [row.status for row, _, _ in rows] == ["ok", "ok", "unreadable", "no_thorax", "fallback"]
    assert [film is None for _, film, _ in rows] == [False, False, True, False, False]
    assert [crop is None for _, _, crop in rows] == [False, False, True, True, False]


def test_crop_is_on_disk_before_its_row_is_given(films: Path) -> None:
    settings = CropConfig(out=str(films.parent / "out"), margin=0)
    for row, film, crop in iter_crops([films / "a/film.png"], FakeDetector(), settings):
        saved = cv2.imread(str(Path(settings.out) / row.crop), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(saved, np.rint(crop.pixels * 255))
        assert row.crop_xyxy == (30, 25, 90, 75) and row.thorax_xyxy == (30, 25, 90, 75)
        assert np.array_equal(row.to_frame().apply(film.pixels), crop.pixels)


def test_all_sixteen_bits_are_kept(films: Path) -> None:
    settings = CropConfig(out=str(films.parent / "out"), margin=0)
    ((row, _, crop),) = iter_crops([films / "b/film.png"], FakeDetector(), settings)
    saved = cv2.imread(str(Path(settings.out) / row.crop), cv2.IMREAD_UNCHANGED)
    assert saved.dtype == np.uint16
    assert np.array_equal(saved, np.rint(crop.pixels.astype(np.float64) * 65535))
    assert len(np.unique(saved)) > 256


def test_detector_sees_no_more_than_a_batch(films: Path) -> None:
    sizes = []

    class Counting(FakeDetector):
        def predict(self, films: Sequence[np.ndarray]) -> list[ThoraxBox]:
            sizes.append(len(films))
            return super().predict(films)

    paths = [films / "a/film.png"] * 5
    assert (
        len(list(iter_crops(paths, Counting(), CropConfig(out=str(films.parent / "o"), batch=2))))
        == 5
    )
    assert sizes == [2, 2, 1]


# the command --------------------------------------------------------------------------------------


def test_command_writes_crops_manifest_and_provenance(films: Path, fake: None) -> None:
    assert run() == 0
    header, rows = read_manifest("crops")
    assert header["settings"] == {
        "margin": 0.05,
        "square": False,
        "boxes_from": FakeDetector.weights,
        "box": "both",
        "turned": "mend",
    }
    by_film = {row.film: row for row in rows}
    assert set(by_film) == {
        f"films/{n}"
        for n in ("a/film.png", "b/film.png", "legs/film.png", "odd/film.png", "broken.png")
    }
    assert by_film["films/broken.png"].reason.split(": ")[0] in ("truncated", "not_an_image")
    assert by_film["films/legs/film.png"].crop is None
    crops = {row.crop for row in rows if row.crop}
    assert len(crops) == 3 and crops == {p.name for p in Path("crops").glob("*.png")}
    assert json.loads(Path("crops/run.json").read_text())["weights"] == FakeDetector.weights


def test_second_run_does_nothing_anew(films: Path, fake: None) -> None:
    run()
    before = {p: p.stat().st_mtime_ns for p in Path("crops").glob("*.png")}
    text = Path("crops/manifest.jsonl").read_text()
    assert run() == 0
    assert Path("crops/manifest.jsonl").read_text() == text
    assert before == {p: p.stat().st_mtime_ns for p in Path("crops").glob("*.png")}


def test_changed_film_and_lost_crop_are_done_again(films: Path, fake: None) -> None:
    run()
    old = {row.film: row for row in read_manifest("crops")[1]}
    (Path("crops") / old["films/b/film.png"].crop).unlink()
    cv2.imwrite(
        "films/legs/film.png", np.random.default_rng(1).integers(0, 255, (100, 130), np.uint8)
    )
    assert run() == 0
    new = {row.film: row for row in read_manifest("crops")[1]}
    assert (Path("crops") / new["films/b/film.png"].crop).is_file()
    assert new["films/legs/film.png"].status == "ok"
    assert new["films/a/film.png"] == old["films/a/film.png"]
    assert len(new) == len(old)


def test_a_film_that_is_gone_for_a_while_is_read_by_the_next_run(films: Path, fake: None) -> None:
    path, away = Path("films/a/film.png"), Path("away.png")
    path.rename(away)
    args = [str(path), "films/b/film.png", "--out", "crops", "--jobs", "0"]
    assert main(args) == 0
    assert "not_found" in read_manifest("crops")[1][0].reason
    away.rename(path)
    assert main(args) == 0
    rows = {row.film: row for row in read_manifest("crops")[1]}
    assert rows[str(path)].status == "ok" and len(rows) == 2


def test_killed_run_goes_on(films: Path, fake: None) -> None:
    run()
    path = Path("crops/manifest.jsonl")
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:3]) + whole[3][:25])
    assert run() == 0
    assert len(read_manifest("crops")[1]) == 5


def test_full_disk_ends_in_words_and_the_run_goes_on(
    films: Path, fake: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, rows = cxr.ledger.append_line, []

    def fill(file: IO[bytes], line: bytes) -> None:
        if len(rows) == 3:
            file.write(line[:20])
            file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")
        rows.append(line)
        real(file, line)

    monkeypatch.setattr(cxr.ledger, "append_line", fill)
    assert run() == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "No space left on device" in said and "free some space" in said
    monkeypatch.undo()
    monkeypatch.chdir(films.parent)
    monkeypatch.setattr(detect.crop, "ThoraxFinder", FakeDetector)
    assert run() == 0
    assert len(read_manifest("crops")[1]) == 5


def test_other_settings_in_the_same_folder_are_refused(films: Path, fake: None) -> None:
    run()
    assert run("--margin", "0.1") == 2
    assert run("--box", "field") == run("--turned", "refuse") == 2
    assert run("--margin", "0.1", "--restart") == 0
    assert read_manifest("crops")[0]["settings"]["margin"] == 0.1


def test_nothing_readable_is_code_1(films: Path, fake: None) -> None:
    assert main(["films/broken.png", "--out", "crops"]) == 1
    assert read_manifest("crops")[1][0].status == "unreadable"


def test_only_refused_films_are_code_0(films: Path, fake: None) -> None:
    assert main(["films/legs", "--out", "crops"]) == 0


@pytest.mark.parametrize("argv", [[], ["nowhere"], ["films", "--boxes", "none.json"]])
def test_wrong_arguments_are_code_2(films: Path, fake: None, argv: list[str]) -> None:
    assert main([*argv, "--out", "crops"]) == 2


@pytest.mark.parametrize(
    "flag",
    ["--batch=0", "--margin=-1", "--jobs=x", "--wights=w", "--turned=sideways", "--box=mine"],
)
def test_wrong_flags_exit_with_2(films: Path, flag: str) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["films", "--out", "crops", flag])
    assert leaving.value.code == 2


# what the header says of a film ---------------------------------------------------------------


class Bright(FakeDetector):
    """Boxes what is above half."""

    def predict(self, films: Sequence[np.ndarray]) -> list[ThoraxBox]:
        return [box_at(*mask_box_xyxy(film > 0.5)) for film in films]


def oblong(folder: Path) -> Path:
    """A DICOM film whose rows lie twice as far apart as its columns, bright in the stored pixels
    (20, 30)-(140, 70)."""
    stored = np.full((100, 180), 100, np.uint16)
    stored[30:70, 20:140] = 4000
    header = {"PixelSpacing": [0.4, 0.2], "WindowCenter": 2048, "WindowWidth": 4096}
    path = folder / "oblong.dcm"
    path.write_bytes(a_dicom(stored, **header))
    return path


TRUE = np.array([20.0, 30, 140, 70])


def test_boxes_of_a_film_without_square_pixels_are_in_the_stored_ones(tmp_path: Path) -> None:
    path = oblong(tmp_path)
    [(row, read, crop)] = iter_crops([path], Bright(), CropConfig(out=str(tmp_path), margin=0.0))
    assert read.pixels.shape[0] / read.pixels.shape[1] == pytest.approx(200 / 180, abs=0.02)
    assert row.size_hw == (100, 180)
    assert np.abs(np.array(row.thorax_xyxy) - TRUE).max() < 1
    assert np.abs(np.array(row.crop_xyxy) - TRUE).max() < 1
    h, w = crop.pixels.shape
    assert h / w == pytest.approx(80 / 120, abs=0.03)  # cut from the square film
    assert np.median(crop.pixels) > 0.9
    back = row.to_frame()
    assert np.abs(back.to_original_xyxy([0, 0, w, h])[0] - row.crop_xyxy).max() < 1e-6
    assert np.allclose(back.to_model_xyxy(back.to_original_xyxy([3, 4, 9, 8])), [3, 4, 9, 8])
    on_film = row.on_film(row.thorax_xyxy, read.pixels.shape)
    assert np.abs(on_film - mask_box_xyxy(read.pixels > 0.5)).max() < 1e-6


@pytest.mark.parametrize("size_hw", [(100, 180), (50, 90), (200, 180)])
def test_boxes_by_hand_fit_a_film_without_square_pixels(
    tmp_path: Path, size_hw: tuple[int, int]
) -> None:
    box = TRUE * np.tile([size_hw[1] / 180, size_hw[0] / 100], 2)
    entry = CocoFilm("oblong.dcm", size_hw, box[None], (0,))
    write_coco(tmp_path / "boxes.json", CocoSet([entry], ("thorax",)))
    human = HumanBoxes(tmp_path / "boxes.json")
    [(row, _, _)] = iter_crops([oblong(tmp_path)], human, CropConfig(out=str(tmp_path), margin=0.0))
    assert row.status == "ok" and np.abs(np.array(row.thorax_xyxy) - TRUE).max() < 1


def test_a_film_that_lay_turned_is_cropped_upright(tmp_path: Path) -> None:
    class Lying(Bright):
        def predict(self, films: Sequence[np.ndarray]) -> list[ThoraxBox]:
            known = {"turned": 90, "apart": 0.1, "quality": 0.9}
            notes = (note("lay_turned", value=90),)
            return [replace(box, notes=notes, **known) for box in super().predict(films)]

    path, settings = oblong(tmp_path), CropConfig(out=str(tmp_path), margin=0.0)
    [(plain, read, lying)] = iter_crops([path], Bright(), settings)
    [(row, _, crop)] = iter_crops([path], Lying(), settings)
    assert np.array_equal(crop.pixels, np.rot90(lying.pixels))
    assert (row.thorax_xyxy, row.crop_xyxy) == (plain.thorax_xyxy, plain.crop_xyxy)  # as stored
    frame, (h, w) = row.to_frame(), crop.pixels.shape
    assert np.abs(frame.to_original_xyxy([0, 0, w, h])[0] - row.crop_xyxy).max() < 1e-6
    back = frame.restore(crop.pixels, read.pixels.shape)
    assert np.array_equal(back, plain.to_frame().restore(lying.pixels, read.pixels.shape))
    assert "lay_turned" in map(code_of, row.notes) and (row.apart, row.quality) == (0.1, 0.9)
    square = crop_film(read, replace(box_at(*mask_box_xyxy(read.pixels > 0.5)), turned=90), 0, True)
    assert square.pixels.shape == (max(h, w), max(h, w))


def test_notes_stand_in_the_manifest_and_are_counted(
    films: Path, fake: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        (films / f"{name}.dcm").write_bytes(
            a_dicom(ramp(), PhotometricInterpretation="MONOCHROME1")
        )
    assert run() == 0
    rows = {Path(row.film).name: row for row in read_manifest("crops")[1]}
    assert {"monochrome1", "no_window"} <= set(map(code_of, rows["one.dcm"].notes))
    assert all(note.endswith(".") for note in rows["one.dcm"].notes)
    said = " ".join(capsys.readouterr().err.split())
    assert "noted: monochrome1 │ 2" in said


def test_raw_detector_data_are_let_in_on_demand(films: Path, fake: None) -> None:
    raw = a_dicom(ramp(), **RAW)
    (films / "raw.dcm").write_bytes(raw)
    assert run() == 0
    refused = {Path(row.film).name: row for row in read_manifest("crops")[1]}["raw.dcm"]
    assert refused.status == "unreadable" and "FOR PROCESSING" in refused.reason
    assert run("--for_processing", "true") == 2  # other films: begin anew, or elsewhere
    assert run("--for_processing", "--restart") == 0
    row = {Path(row.film).name: row for row in read_manifest("crops")[1]}["raw.dcm"]
    assert "for_processing" in map(code_of, row.notes)


# boxes by hand ------------------------------------------------------------------------------------


@pytest.fixture
def by_hand(films: Path) -> Path:
    """Boxes for a/film.png (two lungs), none for b/film.png, a wrong shape for odd/film.png."""
    lungs = np.array([[20.0, 10, 50, 80], [70, 15, 110, 90]])
    entries = [
        CocoFilm("a/film.png", (100, 120), lungs, (0, 0)),
        CocoFilm("b/film.png", (100, 120), np.zeros((0, 4)), ()),
        CocoFilm("odd/film.png", (50, 110), np.array([[1.0, 1, 20, 20]]), (0,)),
    ]
    write_coco(films / "boxes.json", CocoSet(entries, ("thorax",)))
    return films / "boxes.json"


def test_boxes_by_hand_take_the_detectors_place(by_hand: Path, fake: None) -> None:
    loads = FakeDetector.loads
    assert run("--boxes", str(by_hand), "--margin", "0") == 0
    assert FakeDetector.loads == loads
    rows = {row.film: row for row in read_manifest("crops")[1]}
    good = rows["films/a/film.png"]
    assert (good.status, good.score, good.thorax_xyxy) == ("ok", 1.0, (20, 10, 110, 90))
    assert "no box" in rows["films/b/film.png"].reason
    assert (
        "240 x 100 px, in the boxes' file it has 110 x 50 px" in rows["films/odd/film.png"].reason
    )
    assert "does not list" in rows["films/legs/film.png"].reason
    assert [rows[f"films/{n}/film.png"].status for n in ("b", "odd", "legs")] == ["no_thorax"] * 3


def test_boxes_of_a_film_fit_its_scaled_copy(films: Path, fake: None) -> None:
    entry = CocoFilm("a/film.png", (200, 240), np.array([[40.0, 20, 220, 180]]), (0,))
    write_coco(films / "large.json", CocoSet([entry], ("thorax",)))
    box = HumanBoxes(films / "large.json").box_film(read_film("films/a/film.png"))
    assert (box.status, box.xyxy) == ("ok", (20, 10, 110, 90))


def test_box_marked_not_to_count_is_not_cut_along(films: Path, fake: None) -> None:
    boxes = np.array([[20.0, 10, 50, 80], [0, 0, 120, 100]])
    one = CocoFilm("a/film.png", (100, 120), boxes, (0, 0), notes=({}, {"iscrowd": 1}))
    none = CocoFilm("b/film.png", (100, 120), boxes[1:], (0,), notes=({"ignore": 1},))
    write_coco(films / "marked.json", CocoSet([one, none], ("thorax",)))
    human = HumanBoxes(films / "marked.json")
    assert human.box_film(read_film("films/a/film.png")).xyxy == (20, 10, 50, 80)
    refused = human.box_film(read_film("films/b/film.png"))
    assert refused.status == "no_thorax" and "as not to count" in refused.reason


def test_boxes_by_hand_tell_folders_apart(by_hand: Path) -> None:
    boxes = HumanBoxes(by_hand)
    assert boxes.box_film(read_film("films/a/film.png")).status == "ok"
    assert boxes.box_film(read_film("films/legs/film.png")).status == "no_thorax"


# the real thing -----------------------------------------------------------------------------------


@pytest.mark.skipif(not DEFAULT_WEIGHTS.exists(), reason="the shipped weights are missing")
def test_real_chests_are_cropped_and_a_hip_is_refused(shared_data: Path, tmp_path: Path) -> None:
    assert main([str(shared_data / "dicom"), "--out", str(tmp_path), "--jobs", "0"]) == 0
    rows = {Path(row.film).name: row for row in read_manifest(tmp_path)[1]}
    assert rows.pop("nema_rg2_cr_hip_negative.dcm").status == "no_thorax"
    assert {row.status for row in rows.values()} == {"ok"}
    # shown as its own negative by a wrong header, one film is boxed otherwise by each network
    apart = {name: row.apart for name, row in rows.items()}
    assert max(apart, key=apart.__getitem__) == "siim_cr_pa_fake_monochrome1.dcm"
    deep = rows["barre_cr_mono1_10bit_chest.dcm"]
    assert cv2.imread(str(tmp_path / deep.crop), cv2.IMREAD_UNCHANGED).dtype == np.uint16

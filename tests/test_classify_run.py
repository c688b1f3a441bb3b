"""The main job with stand-ins for the trained nets: table, page, crops, resume, exit codes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import draw_phantom
from dicom_films import RAW, a_dicom, ramp
from torch import nn

from classify import predictions, run
from classify.ensemble import Ensemble
from classify.guard import Guard
from classify.judge import Judge, strongest_member
from classify.predictions import read_predictions
from classify.preprocess import PreprocessConfig
from classify.run import ReportBook
from classify.screener import Screener
from classify.screening.guarantee import OperatingPoint
from cxr.bundle import save_bundle
from cxr.workdir import sha256_file
from detect.finder import ThoraxFinder
from detect.predict import ThoraxBox

SCOPE = {"scope": "Children."}
POINT = OperatingPoint(0.5, 0.99, 0.95, True, 0.99, 300, 0, 299, 0.4)


class BrightMember(nn.Module):
    """Says target on bright films: the logit is the mean of what its layer saw."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.neck = nn.Conv2d(3, 2, 1)
        self.gain = gain

    @property
    def saliency_layer(self) -> nn.Module:
        return self.neck

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = x.mean((1, 2, 3)) + 0.0 * self.neck(x).mean((1, 2, 3))
        return torch.stack([-self.gain * level, self.gain * level, level * 0 - 1], dim=1)


class LevelModel:
    """A fitted SVM's stand-in: abnormal when the first member's target logit is positive."""

    def predict_proba(self, logits: np.ndarray) -> np.ndarray:
        abnormal = 1 / (1 + np.exp(-logits[:, 1]))
        return np.stack([1 - abnormal, abnormal], axis=1)


class FixedDetector:
    """Boxes the middle of each film; a wide film is a leg, and a tall one is uncertain."""

    def __init__(self) -> None:
        self.weights = {"thorax.safetensors": "0" * 64}
        self.seen = 0

    def predict(self, films: Sequence[np.ndarray]) -> list[ThoraxBox]:
        boxes = []
        for film in films:
            self.seen += 1
            h, w = film.shape
            if w > 1.5 * h:
                boxes.append(ThoraxBox(None, 0.1, "no_thorax", "no thorax found: score 0.10"))
            elif h > 1.5 * w:
                whole = (0.0, 0.0, float(w), float(h))
                boxes.append(ThoraxBox(whole, 0.4, "fallback", "uncertain box: whole film used"))
            else:
                boxes.append(ThoraxBox((w * 0.1, h * 0.1, w * 0.9, h * 0.9), 0.99, "ok"))
        return boxes


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Tiny members, a screener and a detector in the place of the shipped ones; an empty folder."""
    torch.manual_seed(0)
    settings = PreprocessConfig(side=32, clip=False)
    members = {"bacterial": BrightMember(8.0), "viral": BrightMember(4.0)}
    ensemble = Ensemble(members, settings, weights={"bacterial": "a", "viral": "b"})
    screener = Screener(
        LevelModel(), ("bacterial", "viral"), POINT, {"scope": "Children."}, "f" * 64
    )
    detector = FixedDetector()
    made = SimpleNamespace(ensemble=ensemble, screener=screener, detector=detector, path=tmp_path)
    monkeypatch.setattr(Ensemble, "load", lambda *_: ensemble)
    monkeypatch.setattr(Screener, "load", lambda folder: made.screener)
    monkeypatch.setattr(ThoraxFinder, "load", lambda *_, **__: detector)
    (tmp_path / "weights/ensemble_crops").mkdir(parents=True)
    (tmp_path / "weights/ensemble_films").mkdir(parents=True)
    for kind in ("crops", "films"):
        (tmp_path / f"weights/ensemble_{kind}/screener.json").write_text("{}")
        (tmp_path / f"weights/ensemble_{kind}/viral.safetensors").touch()
    (tmp_path / "films").mkdir()
    monkeypatch.chdir(tmp_path)
    yield made


def add_film(name: str, level: float = 0.3, size: tuple[int, int] = (120, 100)) -> str:
    """A phantom, darker or brighter; returns its path."""
    pixels, _ = draw_phantom(*size, seed=len(name))
    path = Path("films") / name
    cv2.imwrite(str(path), np.clip(pixels * 0.2 + level, 0, 1) * 255)
    return str(path)


def rows_of(folder: str = "runs/classify_crops") -> dict[str, dict[str, str]]:
    with Path(folder, "predictions.csv").open(newline="") as file:
        return {Path(row["film"]).name: row for row in csv.DictReader(file)}


def test_notes_of_films_stand_in_the_table_on_the_page_and_in_the_summary(
    world: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    add_film("calm.png", 0.1)
    stored = np.rint(draw_phantom(120, 100)[0] * 4095).astype(np.uint16)
    Path("films/scan.dcm").write_bytes(a_dicom(stored, PixelSpacing=[0.4, 0.2]))
    assert run.main(["films", "--crops", "--out", "r"]) == 0
    noted = rows_of("r")["scan.dcm"]["notes"].split("; ")
    assert {"no_window", "not_square"} <= set(noted) and rows_of("r")["calm.png"]["notes"] == ""
    page = Path("r/report.html").read_text()
    assert "<li>The header has no window: the film&#39;s own range is shown.</li>" in page
    assert "<li>120 × 100 px, 12 bits" in page  # as stored
    assert "no_window 1" in " ".join(capsys.readouterr().err.split())
    assert run.main(["--crops", "r/crops", "--out", "again"]) == 0
    assert rows_of("again")["scan.dcm"]["notes"].split("; ") == noted


def test_the_page_says_how_far_a_box_is_to_be_trusted(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_film("calm.png")
    add_film("tall.png", size=(200, 100))
    known = iter([{"apart": 0.123, "quality": 0.871}, {"apart": 0.4}])
    plain = world.detector.predict
    monkeypatch.setattr(
        world.detector, "predict", lambda films: [replace(b, **next(known)) for b in plain(films)]
    )
    assert run.main(["films", "--crops", "--out", "r"]) == 0
    page = Path("r/report.html").read_text()
    told = "<li>box: its two opinions differ by"
    assert f"{told} 0.12 (1 − IoU); IoU with a person&#39;s box likely 0.87</li>" in page
    assert f"{told} 0.40 (1 − IoU)</li>" in page


def test_raw_detector_data_are_let_in_on_demand(world: SimpleNamespace) -> None:
    raw = a_dicom(ramp(), **RAW)
    Path("films/raw.dcm").write_bytes(raw)
    for flags, out in (([], "whole"), (["--crops"], "cut")):
        assert run.main(["films", *flags, "--out", out]) == 1
        assert rows_of(out)["raw.dcm"]["status"] == "unreadable"
        assert run.main(["films", *flags, "--out", f"{out}2", "--for_processing", "true"]) == 0
        row = rows_of(f"{out}2")["raw.dcm"]
        assert row["status"] != "unreadable" and "for_processing" in row["notes"]


def test_films_become_crops_rows_and_a_page(world: SimpleNamespace) -> None:
    add_film("calm.png", 0.1)
    add_film("sick.png", 0.7)
    add_film("leg.png", 0.5, (100, 200))
    Path("films/bad.dcm").write_bytes(b"no film at all")
    assert run.main(["films", "--crops", "--out", "r"]) == 0
    rows = rows_of("r")
    decisions = {name: row["decision"] for name, row in rows.items()}
    assert decisions == {
        "bad.dcm": "not_read_by_model",
        "calm.png": "definitely_normal",
        "leg.png": "not_read_by_model",
        "sick.png": "read",
    }
    assert rows["leg.png"]["status"] == "no_thorax" and rows["leg.png"]["bacterial.target"] == ""
    assert rows["bad.dcm"]["reason"].startswith("not_an_image")
    assert rows["sick.png"]["threshold_id"] == "ffffffff@0.5"
    assert len(list(Path("r/crops").glob("*.png"))) == 2
    page = Path("r/report.html").read_text()
    assert "4 films: 1 to be read, 1 cleared as definitely normal, 2 not judged." in page
    assert "Children." in page and "Grad-CAM, bacterial" in page
    record = json.loads(Path("r/run.json").read_text())
    assert record["complete"] and record["decisions"]["read"] == 1
    assert record["weights"]["bacterial.safetensors"] == "a"
    assert "thorax.safetensors" in record["weights"]


def test_a_film_with_an_uncertain_box_is_never_cleared(world: SimpleNamespace) -> None:
    add_film("calm_tall.png", 0.1, (200, 100))
    assert run.main(["films", "--crops"]) == 0
    row = rows_of()["calm_tall.png"]
    assert float(row["abnormal_score"]) < 0.5
    assert (row["status"], row["decision"]) == ("fallback", "read")


def test_tiers_come_from_the_configuration(world: SimpleNamespace) -> None:
    add_film("sick.png", 0.8)
    add_film("calm.png", 0.1)
    Path("t.yaml").write_text("tiers: {critical: [viral], urgent: [bacterial]}")
    assert run.main(["films", "--crops", "--tiers", "t.yaml"]) == 0
    assert [rows_of()[n]["tier"] for n in ("sick.png", "calm.png")] == ["critical", ""]


def test_whole_films_are_classified_without_a_box(world: SimpleNamespace) -> None:
    add_film("sick.png", 0.8)
    assert run.main(["films"]) == 0
    assert world.detector.seen == 0
    assert rows_of("runs/classify_films")["sick.png"]["decision"] == "read"
    assert (
        "nothing has checked that a film shows a chest"
        in Path("runs/classify_films/report.html").read_text()
    )


def test_crops_made_earlier_are_taken_from_their_folder(world: SimpleNamespace) -> None:
    add_film("calm.png", 0.1)
    add_film("leg.png", 0.5, (100, 200))
    assert run.main(["films", "--crops", "runs/crops", "--out", "first"]) == 0
    seen = world.detector.seen
    assert run.main(["--crops", "--out", "second"]) == 0  # runs/crops, as detect.crop makes it
    assert run.main(["--crops", "runs/crops", "--out", "third"]) == 0
    assert world.detector.seen == seen
    first, second = rows_of("first"), rows_of("second")
    assert first.keys() == second.keys() == rows_of("third").keys()
    assert first["calm.png"]["decision"] == second["calm.png"]["decision"]
    assert first["leg.png"]["reason"] == second["leg.png"]["reason"]


def test_crops_are_enough_when_the_films_are_gone(world: SimpleNamespace) -> None:
    add_film("calm.png", 0.1)
    assert run.main(["films", "--crops", "c", "--out", "first"]) == 0
    shutil.rmtree("films")
    assert run.main(["--crops", "c", "--out", "second"]) == 0
    assert rows_of("second")["calm.png"]["decision"] == "definitely_normal"
    assert "no longer where it was" in Path("second/report.html").read_text()


def test_thumbnails_are_kept_beside_the_crops_and_films_not_decoded_again(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_film("calm.png", 0.1)
    add_film("leg.png", 0.5, (100, 200))
    read: list[str] = []
    real = predictions.read_ahead

    def note(paths: Sequence[Path], jobs: int, **options: bool) -> object:
        read.extend(Path(p).name for p in paths)
        return real(paths, jobs, **options)

    monkeypatch.setattr(predictions, "read_ahead", note)
    assert run.main(["films", "--crops", "c", "--out", "first"]) == 0
    assert len(list(Path("c/thumbnails").glob("*.jpg"))) == 2 and not read
    assert run.main(["--crops", "c", "--out", "second"]) == 0
    (crop,) = Path("c").glob("*.png")
    assert read == [crop.name]  # the crop alone
    shutil.rmtree("c/thumbnails")  # as detect.crop leaves its folder
    assert run.main(["--crops", "c", "--out", "third"]) == 0
    assert read[1:] == [crop.name, "calm.png", "leg.png"]
    assert run.main(["--crops", "c", "--out", "fourth"]) == 0
    assert read[4:] == [crop.name]
    cards = [list(ReportBook(f"{out}/report.jsonl", ()).cards()) for out in ("first", "second")]
    assert cards[0] == cards[1] and cards[0][1]["picture"]["thorax"] is not None
    for out in ("third", "fourth"):
        assert list(ReportBook(f"{out}/report.jsonl", ()).cards()) == cards[0]


def test_run_json_names_the_folders_that_were_worked_with(world: SimpleNamespace) -> None:
    add_film("calm.png", 0.1)
    assert run.main(["films", "--crops", "--out", "r"]) == 0
    assert json.loads(Path("r/run.json").read_text())["folders"] == {
        "crops": "r/crops",
        "detector": "weights/thorax_lite0.safetensors",
        "ensemble": "weights/ensemble_crops",
        "tiers": "configs/classify/tiers.yaml",
    }
    assert run.main(["--crops", "r/crops", "--out", "s"]) == 0
    assert json.loads(Path("s/run.json").read_text())["folders"]["crops"] == "r/crops"
    assert run.main(["films", "--out", "t"]) == 0
    assert "crops" not in json.loads(Path("t/run.json").read_text())["folders"]


def test_a_finished_run_is_not_done_again(world: SimpleNamespace) -> None:
    add_film("one.png")
    assert run.main(["films", "--crops"]) == 0
    before = Path("runs/classify_crops/predictions.csv").read_bytes()
    add_film("two.png")
    seen = world.detector.seen
    assert run.main(["films", "--crops"]) == 0
    after = Path("runs/classify_crops/predictions.csv").read_bytes()
    assert after.startswith(before) and world.detector.seen == seen + 1
    assert "2 films:" in Path("runs/classify_crops/report.html").read_text()


def test_ctrl_c_keeps_what_is_done_and_the_run_goes_on(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(6):
        add_film(f"film{n}.png")
    real, calls = Judge.judge, []

    def stop_at_third(self: Judge, items: list) -> list:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, items)

    monkeypatch.setattr(Judge, "judge", stop_at_third)
    arguments = ["films", "--crops", "--batch", "2"]
    assert run.main(arguments) == 130
    assert len(rows_of()) == 4
    page = Path("runs/classify_crops/report.html").read_text()
    assert "4 films:" in page and "stopped before its end" in page
    monkeypatch.setattr(Judge, "judge", real)
    assert run.main(arguments) == 0
    assert sorted(rows_of()) == [f"film{n}.png" for n in range(6)]
    page = Path("runs/classify_crops/report.html").read_text()
    assert "6 films:" in page and "stopped before its end" not in page


def test_a_killed_run_goes_on_from_torn_files(world: SimpleNamespace) -> None:
    for n in range(4):
        add_film(f"film{n}.png")
    assert run.main(["films", "--crops"]) == 0
    folder = Path("runs/classify_crops")
    whole = rows_of()
    for name in ("predictions.csv", "report.jsonl", "crops/manifest.jsonl"):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: -len(raw.splitlines()[-1]) // 2])
    (folder / "report.html").unlink()
    assert run.main(["films", "--crops"]) == 0
    assert rows_of() == whole
    assert "4 films:" in (folder / "report.html").read_text()


def test_other_settings_in_the_same_folder_are_refused(
    world: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    add_film("one.png")
    assert run.main(["films", "--out", "r"]) == 0
    assert run.main(["films", "--crops", "--out", "r"]) == 2
    assert "other settings (crops, input)" in " ".join(capsys.readouterr().err.split())
    assert run.main(["films", "--crops", "--out", "r", "--restart"]) == 0


def test_hostile_names_and_twins_get_their_rows(world: SimpleNamespace) -> None:
    names = ["a\nb.png", "<b>[red]x.png", "=1+1.png", "ü\u202e.png"]
    for name in names:
        add_film("plain.png", 0.8)
        Path("films/plain.png").rename(Path("films") / name)
    bad_bytes = Path("films") / b"bad\xff.png".decode(errors="surrogateescape")
    shutil.copy(Path("films") / names[0], bad_bytes)  # the same bytes as the first
    for _ in range(2):  # the second time all are found again
        assert run.main(["films", "--crops"]) == 0
        _, rows = read_predictions("runs/classify_crops/predictions.csv")
        assert len(rows) == 5 and {r.decision for r in rows} == {"read"}
    page = Path("runs/classify_crops/report.html").read_text()
    assert "<b>[red]" not in page and "the same file as" in page


def guard_for(world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str) -> Guard:
    """A guard that knows one film, by the crop of the middle that `FixedDetector` asks for."""
    film = cv2.imread(name, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
    height, width = film.shape
    crop = film[int(height * 0.06) : int(height * 0.94), int(width * 0.06) : int(width * 0.94)]
    known = world.ensemble.predict_pooled(world.ensemble.prepare([crop])[0])[1][0]
    meta = {"calibration_films_by_source": {"kermany": 92}}
    guard = Guard(known, np.eye(4), np.ones(4), 1.0, 0.1, 0.95, {}, meta, "9" * 64)
    monkeypatch.setattr(Guard, "load", lambda folder: guard)
    Path("weights/ensemble_crops/guard.safetensors").touch()
    return guard


def test_a_film_unlike_those_of_the_calibration_is_read_and_the_page_says_why(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard_for(world, monkeypatch, add_film("calm.png", 0.1))
    add_film("dark.png", -0.1)
    assert run.main(["films", "--crops", "--out", "r"]) == 0
    rows = rows_of("r")
    assert [rows[n]["decision"] for n in ("calm.png", "dark.png")] == ["definitely_normal", "read"]
    assert float(rows["dark.png"]["abnormal_score"]) < 0.5  # it would have been cleared
    assert rows["calm.png"]["doubt"] == ""
    assert rows["dark.png"]["doubt"].startswith("the film is unlike those of the calibration")
    assert rows["dark.png"]["ensemble"] == "ensemble_crops"
    page = Path("r/report.html").read_text()
    assert "Films unlike those of the calibration (92 kermany) are never cleared: those" in page
    assert f"<strong>Never cleared:</strong> {rows['dark.png']['doubt']}." in page
    record = json.loads(Path("r/run.json").read_text())
    assert record["settings"]["guard"] == record["weights"]["guard.safetensors"] == "9" * 64
    assert record["guard"].startswith("Films unlike those")


def test_a_run_goes_on_with_the_guard_that_it_was_begun_with(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    film = add_film("calm.png", 0.1)
    assert run.main(["films", "--crops", "--out", "r"]) == 0
    assert "This ensemble has no guard" in Path("r/report.html").read_text()
    guard_for(world, monkeypatch, film)
    assert run.main(["films", "--crops", "--out", "r"]) == 2
    assert "other settings (guard)" in " ".join(capsys.readouterr().err.split())
    assert run.main(["films", "--crops", "--out", "r", "--restart"]) == 0


def test_opinions_on_a_box_may_differ_as_far_as_its_detectors_rule_says(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_film("calm.png", 0.1)
    plain = world.detector.predict
    apart = [replace(b, apart=0.27) for b in plain([np.zeros((120, 100))])]
    monkeypatch.setattr(world.detector, "predict", lambda films: apart)
    bundle = save_bundle("d.safetensors", "thorax", {}, pair={"lone_apart": 0.28})
    for digest, decision in (("0" * 64, "read"), (sha256_file(bundle), "definitely_normal")):
        world.detector.weights = {"thorax.safetensors": digest}
        out = decision
        assert run.main(["films", "--crops", "--out", out, "--detector", str(bundle)]) == 0
        assert rows_of(out)["calm.png"]["decision"] == decision
        again = ["--crops", f"{out}/crops", "--out", f"{out}2", "--detector", str(bundle)]
        assert run.main(again) == 0  # from the manifest
        assert rows_of(f"{out}2")["calm.png"]["decision"] == decision
    assert "differ by 0.27 (1 − IoU), more than 0.25" in rows_of("read")["calm.png"]["doubt"]


def test_without_a_screener_every_film_is_to_be_read(world: SimpleNamespace) -> None:
    Path("weights/ensemble_crops/screener.json").unlink()
    add_film("calm.png", 0.1)
    assert run.main(["films", "--crops"]) == 0
    row = rows_of()["calm.png"]
    assert (row["decision"], row["abnormal_score"], row["threshold_id"]) == ("read", "", "")
    assert "has no screener" in Path("runs/classify_crops/report.html").read_text()


def test_saliency_can_be_left_out(world: SimpleNamespace) -> None:
    add_film("sick.png", 0.8)
    assert run.main(["films", "--crops", "--saliency", "false"]) == 0
    assert "Grad-CAM, bacterial" not in Path("runs/classify_crops/report.html").read_text()


def test_nothing_to_work_on_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main([])
    assert stop.value.code == 2
    assert "python -m classify.run FILMS --crops" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "--crops"], "Got 'nowhere' instead"),
        (["--crops"], "python -m detect.crop FILMS --out runs/crops"),
        (["--crops", "films"], "python -m classify.run films --crops"),
    ],
)
def test_wrong_arguments_end_with_2(
    world: SimpleNamespace, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert run.main(arguments) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_missing_weights_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "f.png"), np.full((80, 80), 90, np.uint8))
    assert run.main([str(tmp_path), "--ensemble", str(tmp_path / "none")]) == 2
    assert "must hold members' bundles" in " ".join(capsys.readouterr().err.split())


def test_nothing_readable_ends_with_1(world: SimpleNamespace) -> None:
    Path("films/notes.txt").write_text("no film")
    assert run.main(["films", "--crops"]) == 1  # no film in the folder at all
    Path("films/bad.png").write_bytes(b"torn")
    assert run.main(["films", "--crops"]) == 1
    assert rows_of()["bad.png"]["decision"] == "not_read_by_model"


def test_a_screener_of_other_members_is_refused(world: SimpleNamespace) -> None:
    world.screener = Screener(LevelModel(), ("viral", "bacterial"), POINT)
    add_film("one.png")
    assert run.main(["films", "--crops"]) == 2


def test_the_strongest_member_has_the_highest_target_logit() -> None:
    assert strongest_member(np.array([[9.0, 1.0, 0.0], [0.0, 2.0, 9.0]])) == 1

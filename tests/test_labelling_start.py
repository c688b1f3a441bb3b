"""annotate.py start without labelme: choosing, preparing, pre-labels, order, going on."""

from __future__ import annotations

import json
from pathlib import Path

import annotate
import cv2
import numpy as np
import pytest
from dicom_films import film, written

from detect.finder import ThoraxFinder
from detect.predict import ThoraxBox
from labelling import Session, SessionFilm
from labelling.start import (
    find_candidates,
    find_prelabels,
    make_view,
    parse_sample,
    prelabel_class,
    renew_prelabels,
    sample_films,
)


class FixedFinder:
    """Sees a box that depends on the film's mean grey; the darker, the less sure."""

    def __init__(self, box: tuple[float, float, float, float] = (10, 20, 90, 80)) -> None:
        self.box = box
        self.seen = 0

    def predict(self, films: list[np.ndarray]) -> list[ThoraxBox]:
        self.seen += len(films)
        return [self.decide(round(float(f.mean()), 4)) for f in films]

    def decide(self, score: float) -> ThoraxBox:
        if score < 0.2:
            return ThoraxBox(None, score, "no_thorax", "no thorax", seen_xyxy=self.box)
        status = "ok" if score > 0.3 else "fallback"
        return ThoraxBox(self.box, score, status, seen_xyxy=self.box, apart=0.1)


def write_films(folder: Path, greys: dict[str, int]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, grey in greys.items():
        pixels = np.full((100, 120), grey, np.uint8)
        pixels[:50, :60] += 5  # not flat: a flat film is refused as empty
        cv2.imwrite(str(folder / name), pixels)
    return folder


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> FixedFinder:
    fixed = FixedFinder()
    monkeypatch.setattr(ThoraxFinder, "load", lambda path: fixed)
    return fixed


def prepare(tmp_path: Path, *more: str) -> Session:
    words = ["start", str(tmp_path / "films"), "--session", str(tmp_path / "s"), "--open=false"]
    assert annotate.main([*words, "--annotator", "mk", *more]) == 0
    return Session.open(tmp_path / "s")


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"any")
    return str(path)


def test_a_view_keeps_the_films_shape_and_leads_back(phantom: tuple) -> None:
    assert make_view(phantom[0])[0].shape == phantom[0].shape  # a small film is not blown up
    view, frame = make_view(cv2.resize(phantom[0], (2100, 2400)))
    assert (view.shape, view.dtype) == ((1600, 1400), np.uint8)
    there = frame.to_model_xyxy([210, 240, 1050, 1200])[0]
    assert there == pytest.approx([140, 160, 700, 800])
    assert frame.to_original_xyxy(there)[0] == pytest.approx([210, 240, 1050, 1200])


def test_a_12_bit_dicom_fills_the_views_greys(tmp_path: Path) -> None:
    stored = np.tile(np.linspace(900, 1100, 120).astype(np.uint16), (160, 1))
    (tmp_path / "films").mkdir()
    (tmp_path / "films/a.dcm").write_bytes(written(film(stored, bits=12, PatientID="4711")))
    session = prepare(tmp_path)
    view = cv2.imread(str(session.view_path(session.films[0])), cv2.IMREAD_GRAYSCALE)
    assert int(view.max()) - int(view.min()) > 200
    assert session.films[0].size_hw == (160, 120)
    assert "4711" not in (session.path / "films.jsonl").read_text()  # hashed


@pytest.mark.parametrize(
    ("grey", "box", "doubt"),
    [(0.9, (10, 20, 90, 80), 0.2), (0.25, (10, 20, 90, 80), 1.85), (0.1, None, 3.9)],
)
def test_the_doubt_of_a_prelabel(grey: float, box: tuple | None, doubt: float) -> None:
    # 1 − score, and 0.1 between both opinions; 1 more for a fallback, 2 without a thorax
    found = find_prelabels(FixedFinder(), [np.full((100, 120), grey, np.float32)])[0]  # type: ignore[arg-type]
    assert found["prelabel_xyxy"] == box
    assert found["uncertainty"] == pytest.approx(doubt, abs=1e-3)


def test_the_most_doubtful_film_is_asked_first_and_none_is_prepared_twice(
    tmp_path: Path, detector: FixedFinder, weights: str
) -> None:
    write_films(tmp_path / "films", {"bright.png": 240, "dark.png": 20, "grey.png": 120})
    session = prepare(tmp_path, "--prelabel", weights)
    assert [f.film for f in session.films] == ["dark.png", "grey.png", "bright.png"]
    assert session.films[0].prelabel_xyxy is None  # no thorax seen: nothing is drawn
    assert not session.label_path(session.films[0]).exists()
    assert session.answer(session.films[1]).boxes[0].prelabelled
    seen = detector.seen
    assert len(prepare(tmp_path, "--prelabel", weights).films) == 3
    assert detector.seen == seen


def test_new_films_come_after_the_old_ones(tmp_path: Path) -> None:
    write_films(tmp_path / "films", {"b.png": 200})
    prepare(tmp_path)
    write_films(tmp_path / "films", {"a.png": 210})
    assert [(f.number, f.film) for f in prepare(tmp_path).films] == [(1, "b.png"), (2, "a.png")]


def test_a_human_box_outlives_another_detector(
    tmp_path: Path, detector: FixedFinder, weights: str
) -> None:
    write_films(tmp_path / "films", {"a.png": 200, "b.png": 210})
    session = prepare(tmp_path, "--prelabel", weights)
    session.set_answer(session.films[0], xyxy=(5, 5, 115, 95))
    Path(weights).write_bytes(b"other weights")
    detector.box = (0, 0, 120, 100)
    after = prepare(tmp_path, "--prelabel", weights)
    assert after.answer(after.films[0]).box.xyxy == pytest.approx((5, 5, 115, 95), abs=0.01)
    assert after.films[1].prelabel_xyxy == (0, 0, 120, 100)


def test_a_deleted_prelabel_is_not_drawn_again(
    tmp_path: Path, detector: FixedFinder, weights: str
) -> None:
    write_films(tmp_path / "films", {"a.png": 200})
    session = prepare(tmp_path, "--prelabel", weights)
    session.write_shapes(session.films[0], [])  # as labelme leaves it after Delete
    assert renew_prelabels(session, FixedFinder((0, 0, 9, 9))) == 0  # type: ignore[arg-type]


def test_a_killed_preparation_goes_on(
    tmp_path: Path, detector: FixedFinder, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_films(tmp_path / "films", {f"{n}.png": 100 + n for n in range(8)})
    real = detector.predict
    monkeypatch.setattr(detector, "predict", lambda f: 1 / 0 if detector.seen >= 4 else real(f))
    words = ["start", str(tmp_path / "films"), "--session", str(tmp_path / "s"), "--open=false"]
    with pytest.raises(ZeroDivisionError):
        annotate.main([*words, "--annotator", "mk", "--prelabel", weights])
    monkeypatch.setattr(detector, "predict", real)
    assert len(prepare(tmp_path, "--prelabel", weights).films) == 8
    assert detector.seen == 8  # each film once


def test_bad_films_and_twins_keep_their_rows_and_reasons(tmp_path: Path) -> None:
    write_films(tmp_path / "films", {"a.png": 200, "b.png": 200})
    (tmp_path / "films/bad.dcm").write_bytes(b"no film")
    session = prepare(tmp_path)
    assert [f.film for f in session.films] == ["a.png", "b.png", "bad.dcm"]
    assert [a.state for _, a in session.answers()] == ["todo", "unreadable", "unreadable"]
    assert session.films[1].reason == "the same film as a.png"
    assert session.films[2].reason


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--annotator", "other"], "annotator of 's' is mk and stays so"),
        (["--classes", "normal,pneumonia"], "classes of 's' is thorax and stays so"),
        (["--film", "7"], "readable film of the session, 1 to 1. Got 7"),
        (["films", "--session", "films", "--annotator", "mk"], "holds other files"),
        (["films", "--session", "new"], "annotator must be the name of who draws"),
        (["--session", "new", "--annotator", "mk"], "films must be given to make the session"),
        (["films", "--source", "nih"], "at least one film of the source 'nih'"),
    ],
)
def test_what_start_refuses(
    tmp_path: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_films(tmp_path / "films", {"a.png": 200})
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    session = [] if "--session" in words else ["--session", "s"]
    assert annotate.main(["start", *words, *session]) == 1
    assert said in capsys.readouterr().err


def test_a_sample_takes_each_patient_before_a_second_film() -> None:
    films = [
        SessionFilm(0, f"{p}{n}.png", patient_id=p, label="normal") for p in "abc" for n in range(5)
    ]
    patients = [c.patient_id for c in sample_films(films, {"normal": 4}, seed=1)]
    assert sorted(set(patients)) == ["a", "b", "c"]
    assert sample_films(films, {"normal": 4}, 1) == sample_films(films[::-1], {"normal": 4}, 1)
    with pytest.raises(ValueError, match="asks for 2 films of 'viral', there are 0"):
        sample_films(films, {"viral": 2}, 0)


@pytest.mark.parametrize("text", ["normal", "normal=", "normal=x", "=3", "normal=0"])
def test_a_sample_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"normal=200,pneumonia=200"):
        parse_sample(text)


def test_a_table_gives_labels_and_original_sizes(tmp_path: Path) -> None:
    write_films(tmp_path / "films", {"a.png": 200, "b.png": 210})
    table = tmp_path / "table.csv"
    table.write_text(
        "image,patient_id,label,orig_width,orig_height\n"
        "films/a.png,p1,normal,1200,1000\n"
        "films/b.png,p2,pneumonia,,\n"
    )
    words = ["start", str(table), "--session", str(tmp_path / "s"), "--annotator", "mk"]
    assert annotate.main([*words, "--sample", "normal=1", "--open=false"]) == 0
    (only,) = Session.open(tmp_path / "s").films
    assert (only.film, only.label, only.original_hw) == ("films/a.png", "normal", (1000, 1200))
    table.write_bytes("image,label\nfilms/a.png,Lungenentzündung\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"table\.csv must be UTF-8"):
        find_candidates([str(table)])


@pytest.mark.parametrize(
    ("classes", "label", "expected"),
    [
        (("thorax",), "normal", "thorax"),
        (("normal", "pneumonia"), "pneumonia", "pneumonia"),
        (("normal", "pneumonia"), "covid", ""),
    ],
)
def test_a_prelabels_class(classes: tuple, label: str, expected: str) -> None:
    assert prelabel_class(classes, SessionFilm(1, "a", label=label)) == expected


def test_the_log_of_a_session_names_what_made_it(tmp_path: Path) -> None:
    write_films(tmp_path / "films", {"a.png": 200})
    meta = json.loads((prepare(tmp_path).path / "session.json").read_text())
    assert (meta["annotator"], meta["classes"], len(meta["session_id"])) == ("mk", ["thorax"], 16)

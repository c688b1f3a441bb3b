"""The ensemble beside shortcuts, on the same films."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from classify.evaluate import (
    QUESTIONS,
    Question,
    as_radiologists_say,
    ensemble_score,
    film_shortcuts,
    main,
    markdown,
    may_answer,
    questions_of,
    shortcut_scores,
)
from classify.films import Case
from cxr.boxes import Frame
from cxr.films_table import FilmRow, has_disease


def test_abnormal_score_by_hand() -> None:
    # softmax of (0, 0, 0) is a third each; of (ln 2, 0, 0) half normal
    logits = np.array([[[0.0, 0, 0], [np.log(2), 0, 0]]])
    score = ensemble_score(logits, ["bacterial", "viral"], Question("", "", "pneumonia", "normal"))
    assert score == pytest.approx([1 - (1 / 3 + 1 / 2) / 2])


def test_target_against_target_by_hand() -> None:
    logits = np.array([[[9.0, 3, 1], [9.0, 2, 5]]])  # leans: bacterial 2, viral -3
    question = Question("", "", "bacterial", "viral")
    assert ensemble_score(logits, ["bacterial", "viral"], question) == pytest.approx([5.0])
    assert ensemble_score(logits, ["viral", "bacterial"], question) == pytest.approx([-5.0])


def case(label: str, sublabel: str = "", view: str = "PA", source: str = "nih") -> Case:
    row = FilmRow("a.png", "", source, "p", label, sublabel, "", view)
    return Case(row, Path("a.png"))


def test_a_finding_is_asked_against_all_other_films() -> None:
    (question,) = [q for q in questions_of(["mass", "viral", "mass"]) if q.positive == "mass"]
    films = (case("other", "Edema|Mass"), case("other", "Edema"), case("normal"), case("unknown"))
    assert [question.truth(film) for film in films] == [True, False, False, None]
    assert question.truth(case("other", "Mass", source="jsrt")) is None
    # softmax of (0, ln 2, 0) gives a half, of (0, 0, ln 6) an eighth
    logits = np.array([[[0.0, 0, np.log(6)], [0, np.log(2), 0]]])
    assert ensemble_score(logits, ["edema", "mass"], question) == pytest.approx([0.5])
    assert may_answer(question, ["mass"]) and not may_answer(question, ["edema"])


def test_any_finding_is_asked_within_a_view() -> None:
    (question,) = [q for q in QUESTIONS if q.view == "AP"]
    films = [case("other", "Mass", v) for v in ("AP", "PA")] + [case("normal", "", "AP")]
    assert [question.truth(film) for film in films] == [True, None, False]
    assert may_answer(question, ["bacterial"])


def test_what_radiologists_saw_takes_the_place_of_the_label(tmp_path: Path) -> None:
    rows = [FilmRow(f"images/nih/{n}.jpg", "", "nih", f"p{n}", "normal", "", "") for n in range(5)]
    table = tmp_path / "said.csv"
    table.write_text(
        "image,rsna_class,google_pneumothorax,google_nodule_mass\n"
        "images/nih/0.jpg,Normal,NO,NO\nimages/nih/1.jpg,Lung Opacity,,\n"
        "images/nih/2.jpg,No Lung Opacity / Not Normal,,\nimages/nih/3.jpg,,YES,YES\n"
    )
    found = as_radiologists_say(rows, str(table))
    assert [(r.label, r.sublabel) for r in found] == [
        ("normal", ""),
        ("abnormal", "lung opacity"),
        ("abnormal", ""),
        ("abnormal", "pneumothorax|nodule/mass"),
    ]
    assert has_disease(found[3], ["nodule_or_mass"]) and has_disease(found[3], ["pneumothorax"])
    with pytest.raises(ValueError, match="has none of them"):
        as_radiologists_say([replace(rows[0], image="images/other/x.jpg")], str(table))


def test_outside_shows_nothing_of_the_thorax() -> None:
    film = np.full((80, 160), 0.5, np.float32)
    box = (40.0, 20.0, 120.0, 60.0)
    changed = film.copy()
    changed[20:60, 40:120] = 1.0
    one, two = film_shortcuts(film, box), film_shortcuts(changed, box)
    np.testing.assert_array_equal(one[1], two[1])  # outside
    assert not np.allclose(one[3], two[3])  # crop
    np.testing.assert_allclose(one[2], [0.25, 0.25, 0.75, 0.75, 0.5])  # box and aspect


def test_a_shortcut_that_tells_all_is_found() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(60) > 0.5
    features = {"box": positive[:, None] + rng.normal(0, 0.1, (60, 1))}
    scores = shortcut_scores(features, positive, features)["box"]
    assert scores[positive].min() > scores[~positive].max()
    with pytest.raises(ValueError, match="both classes"):
        shortcut_scores(features, np.ones(60, bool), features)


@pytest.fixture
def kermany_like(phantom_folder: Path, tmp_path: Path) -> Path:
    """The synthetic films under the name of a source that is asked about, with crops and a run."""
    from classify.predictions import PredictionRow, PredictionWriter
    from cxr.coco import read_coco
    from cxr.manifest import CropRow, ManifestWriter
    from cxr.split import Split

    text = (phantom_folder / "films.csv").read_text().replace("phantom", "kermany")
    (tmp_path / "films.csv").write_text(text)
    (tmp_path / "images").symlink_to(phantom_folder / "images")
    films = read_coco(phantom_folder / "thorax.json").films
    part_of, rows = {}, []
    with ManifestWriter(tmp_path / "crops/manifest.jsonl", {"settings": {}}) as book:
        for number, film in enumerate(films):
            part_of[film.patient_id] = "train" if number % 12 < 6 else "test"
            x0, y0, x1, y1 = film.boxes_xyxy[0]
            frame = Frame.cut(film.boxes_xyxy[0])
            pixels = cv2.imread(str(phantom_folder / film.file_name), cv2.IMREAD_GRAYSCALE)
            cv2.imwrite(str(tmp_path / f"crops/{number}.png"), frame.apply(pixels))
            book.add(
                CropRow(
                    film.file_name,
                    "0" * 64,
                    "ok",
                    size_hw=film.size_hw,
                    score=1.0,
                    thorax_xyxy=(x0, y0, x1, y1),
                    crop_xyxy=frame.source_xyxy,
                    frame=frame.to_dict(),
                    crop=f"{number}.png",
                )
            )
            logits = np.zeros((2, 3), np.float32)
            logits[:, 0] = 3.0 if film.extra["label"] == "normal" else -3.0
            rows.append(PredictionRow(film.file_name, "ok", "", logits, 0.5, "read", "", "t"))
    Split(0, part_of).save(tmp_path / "split.json")
    with PredictionWriter(tmp_path / "run/predictions.csv", ["bacterial", "viral"]) as table:
        for row in rows:
            table.add(row)
    return tmp_path


def test_the_command_end_to_end(kermany_like: Path) -> None:
    folder = kermany_like
    args = [
        str(folder / "run"),
        "--data",
        str(folder),
        "--crops",
        str(folder / "crops"),
        "--split",
        str(folder / "split.json"),
        "--out",
        str(folder / "out"),
        "--draws",
        "50",
    ]
    assert main(args) == 0
    text = (folder / "out/table.md").read_text()
    assert "normal / pneumonia, kermany | ensemble: run | 1.000" in text
    assert "four numbers of the box" in text and "nih" not in text


def test_no_run_is_a_wrong_argument() -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2


def test_markdown_has_a_line_a_row() -> None:
    row = {"question": "q", "what": "w", "auc": "0.5 [0.4, 0.6]", "films": 3, "patients": 2}
    assert markdown([row]).splitlines()[2] == "| q | w | 0.5 [0.4, 0.6] | 3 | 2 |"


def test_labels_spelt_otherwise_give_the_same_figures(
    kermany_like: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = kermany_like, kermany_like / "films.csv"
    flags = {"data": folder, "crops": folder / "crops", "split": folder / "split.json"}
    flags |= {"out": folder / "out", "draws": 50}
    args = [str(folder / "run"), *(str(p) for k, v in flags.items() for p in (f"--{k}", v))]
    found = []
    text = table.read_text()
    other = text.replace(",normal,", ", No_Finding ,").replace(",pneumonia,bact", ",PNEUMONIA,Bact")
    for written in (text, other, other.replace(", No_Finding ,", ",,", 1)):
        table.write_text(written)
        assert main(args) == 0
        found.append(json.loads((folder / "out/evaluation.json").read_text()))
    assert found[0] == found[1] != found[2]
    assert "(empty) (1 film of kermany" in " ".join(capsys.readouterr().err.split())

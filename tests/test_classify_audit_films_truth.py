"""What people know of a film: parts of a split, lung masks, findings and labels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from audit_world import write_table

from classify.audit.films import Truth, Truths
from classify.audit.rows import UNKNOWN
from classify.members import NORMAL, OTHERS, TARGET
from cxr.films_table import FilmRow
from cxr.split import Split
from cxr.workdir import set_up_logging


def film_row(image: str, source: str = "kermany", patient: str = "p", **more: str) -> FilmRow:
    known = {"label": "normal", "sublabel": "", "mask": "", "licence": "CC BY 4.0", **more}
    return FilmRow(image=image, source=source, patient_id=patient, **known)


def truths(*rows: FilmRow) -> Truths:
    return Truths({"/".join(r.image.split("/")[-2:]): Truth(r) for r in rows})


SPLIT = Split(0, {"k1": "train", "k2": "test", "k3": "val", "n1": "train", "n2": "test"})
KNOWN = truths(
    film_row("i/kermany/1.png", patient="k1"),
    film_row("i/kermany/2.png", patient="k2"),
    film_row("i/kermany/3.png", patient="k3"),
    film_row("i/kermany/4.png", patient="new"),
    film_row("i/nih/1.png", "nih", "n1"),
    film_row("i/nih/2.png", "nih", "n2"),
)
FILMS = [
    f"elsewhere/{tail}"
    for tail in (
        "nih/1.png",
        "kermany/2.png",
        "kermany/1.png",
        "nih/2.png",
        "kermany/3.png",
        "kermany/4.png",
        "kermany/unlisted.png",
    )
]


def chosen(part: str, trained_on: tuple[str, ...] = ("kermany",)) -> list[str]:
    found = KNOWN.select(FILMS, SPLIT, part, trained_on)
    return [film.removeprefix("elsewhere/") for film in found]


def test_a_part_cuts_trained_sources_and_takes_all_of_the_others() -> None:
    assert chosen("test") == ["nih/1.png", "kermany/2.png", "nih/2.png"]
    assert chosen("val") == ["nih/1.png", "nih/2.png", "kermany/3.png"]


def test_training_films_are_only_of_trained_sources() -> None:
    assert chosen("train") == ["kermany/1.png"]


def test_with_both_sources_trained_on_the_part_cuts_both() -> None:
    assert chosen("test", ("kermany", "nih")) == ["kermany/2.png", "nih/2.png"]


def test_a_part_that_the_split_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"test, train, val. Got 'tset'"):
        chosen("tset")


def mask_truth(path: Path, mask: np.ndarray) -> Truth:
    cv2.imwrite(str(path), mask.astype(np.uint8) * 255)
    return Truth(mask=path)


def left_half(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    return mask


def test_a_mask_of_the_films_size_is_taken_as_it_is(tmp_path: Path) -> None:
    mask = left_half(30, 40)
    found = mask_truth(tmp_path / "m.png", mask).read_lungs((30, 40))
    assert found is not None and found.dtype == bool and (found == mask).all()


def test_a_mask_of_another_size_is_resized(tmp_path: Path) -> None:
    found = mask_truth(tmp_path / "m.png", left_half(30, 40)).read_lungs((60, 80))
    assert found is not None and found.shape == (60, 80)
    assert (found == left_half(60, 80)).mean() > 0.98


def test_a_mask_of_another_aspect_is_left_out(tmp_path: Path) -> None:
    assert mask_truth(tmp_path / "m.png", left_half(30, 40)).read_lungs((30, 41)) is None


def test_a_mask_that_is_one_percent_off_by_rounding_is_taken(tmp_path: Path) -> None:
    assert mask_truth(tmp_path / "m.png", left_half(256, 213)).read_lungs((1201, 1000)) is not None


def test_a_blank_mask_is_left_out(tmp_path: Path) -> None:
    assert mask_truth(tmp_path / "m.png", np.zeros((30, 40), bool)).read_lungs((30, 40)) is None


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_mask_that_cannot_be_read_is_left_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.png").write_bytes(content)
    assert Truth(mask=tmp_path / "m.png").read_lungs((30, 40)) is None


def test_a_missing_mask_is_none(tmp_path: Path) -> None:
    assert Truth(mask=tmp_path / "none.png").read_lungs((30, 40)) is None
    assert Truth().read_lungs((30, 40)) is None


def test_findings_are_clipped_to_the_film() -> None:
    found = Truth(findings_xyxy=((-5, 10, 20, 50),)).findings_on((40, 30))
    assert found.tolist() == [[0, 10, 20, 40]]


def test_findings_that_hold_no_pixel_of_the_film_are_dropped() -> None:
    truth = Truth(
        findings_xyxy=(
            (50, 0, 60, 10),
            (5, 5, 5.2, 20),
            (9, 9, 3, 12),
            (float("nan"), 0, 4, 4),
            (1.5, 1, 2.5, 9),
            (2, 2, 8, 8),
        )
    )
    assert truth.findings_on((40, 30)).tolist() == [[2, 2, 8, 8]]


def test_a_film_without_findings_has_none() -> None:
    assert Truth().findings_on((40, 30)).shape == (0, 4)


def test_tables_are_read_with_masks_and_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(
        [{"image": "images/nih/a.png", "mask": "masks/a.png"}, {"image": "images/kermany/b.png"}]
    )
    Path("data/finding_boxes.csv").write_text("image,x,y,w,h\nimages/nih/a.png,1,2,3,4\n")
    known = Truths.load("data")
    one = known.of("/any/where/nih/a.png")
    assert one.mask == Path("data/masks/a.png") and one.findings_xyxy == ((1, 2, 4, 6),)
    other = known.of("kermany/b.png")
    assert other.row is not None and other.mask is None and other.findings_xyxy == ()
    assert known.of("nih/none.png") == Truth()
    assert Truths.load("data", human_masks=False).of("nih/a.png").mask is None
    Path("data").rename("more")
    write_table([{"image": "images/nih/c.png"}])
    both = Truths.load(["data", "more"])
    assert both.of("nih/a.png").findings_xyxy == one.findings_xyxy and both.of("nih/c.png").row


def test_odd_names_are_found_as_the_run_spells_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table([{"image": "images/nih/a\u202eb.png", "patient_id": "p7"}])
    row = Truths.load("data").of("x/nih/a\\u202eb.png").row
    assert row is not None and row.patient_id == "p7"


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data must be a folder with films.csv"):
        Truths.load(tmp_path)


@pytest.mark.parametrize("table", ["image,x,y,w,h\na,1,2,3,wide\n", "image,x,y\na,1,2\n"])
def test_wrong_finding_boxes_are_refused_with_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table([{"image": "images/nih/a.png"}])
    Path("data/finding_boxes.csv").write_text(table)
    with pytest.raises(ValueError, match=r"finding_boxes.csv line 2 must have image, x, y, w, h"):
        Truths.load("data")


@pytest.mark.parametrize(
    ("label", "sublabel", "expected"),
    [
        ("normal", "", NORMAL),
        ("pneumonia", "bacterial", TARGET),
        ("pneumonia", "bacterial/Klebsiella", TARGET),
        ("pneumonia", "viral", OTHERS),
        ("unknown", "", UNKNOWN),
    ],
)
def test_labels_are_those_of_the_member(label: str, sublabel: str, expected: int) -> None:
    truth = Truth(film_row("a/b.png", label=label, sublabel=sublabel))
    assert truth.label_for("bacterial") == expected


def test_a_film_that_no_table_lists_has_an_unknown_label() -> None:
    assert Truth().label_for("bacterial") == UNKNOWN


def test_labels_spelt_otherwise_are_the_same_truth_and_unknown_ones_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = {"a": "No_Finding ", "b": "PNEUMONIA", "c": "nromal", "d": "", "e": "Dusty"}
    write_table(
        [{"image": f"images/nih/{n}.png", "label": labels[n], "sublabel": "x"} for n in labels]
    )
    set_up_logging()
    truths = Truths.load("data", known=("dusty", "bacterial"))
    found = [truths.of(f"nih/{n}.png").label_for("bacterial") for n in labels]
    assert found == [NORMAL, OTHERS, UNKNOWN, UNKNOWN, OTHERS]
    assert truths.of("nih/e.png").label_for("dusty") == TARGET
    said = " ".join(capsys.readouterr().err.split())
    assert "nromal (1 film of nih, such as images/nih/c.png)" in said and "(empty) (1" in said
    assert "dusty" not in said

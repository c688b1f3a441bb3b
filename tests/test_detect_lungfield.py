"""The lung field: masks in film pixels, boxes and edges of a field, films of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch import Tensor, nn

from cxr.film import Film
from cxr.ledger import RowLedger, read_rows
from cxr.split import Split
from detect.data import masked_rows, read_mask
from detect.lungfield.__main__ import main
from detect.lungfield.field import (
    DEFAULT_WEIGHTS,
    LungField,
    cut_edges,
    disagreement,
    field_box_xyxy,
    overlap,
)
from detect.lungfield.predict import SCHEMA, VERSION, FieldRow, to_row


class Dark(nn.Module):
    """A stand-in for the network: the field is what is dark, but not the black padding."""

    def forward(self, x: Tensor) -> Tensor:
        return ((x[:, :1] < 0.4) & (x[:, :1] > 0.05)).float() * 20 - 10


def film_with_field(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright film with one dark rectangle off its middle, and the rectangle's mask."""
    film = np.full((height, width), 0.9, np.float32)
    mask = np.zeros((height, width), bool)
    mask[height // 5 : height // 2, width // 6 : width * 3 // 5] = True
    film[mask] = 0.2
    film[:2] = 0.0  # so that the stretch leaves the rectangle above black
    film[-2:] = 1.0
    return film, mask


# --- agreement of two masks


def test_dice_and_iou_are_those_worked_out_by_hand() -> None:
    found, truth = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    found[0, :4] = True  # 4 px
    truth[0, 1:4] = truth[1, :3] = True  # 6 px, 3 of them found
    agreed = overlap(found, truth)
    assert agreed.dice == pytest.approx(2 * 3 / (4 + 6))
    assert agreed.iou == pytest.approx(3 / 7)
    assert agreed.coverage == pytest.approx(3 / 6) and agreed.precision == pytest.approx(3 / 4)


def test_two_empty_masks_agree() -> None:
    empty = np.zeros((3, 3), bool)
    assert overlap(empty, empty).dice == 1.0
    assert overlap(empty, ~empty).dice == 0.0


def test_masks_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        overlap(np.zeros((2, 3), bool), np.zeros((3, 2), bool))


# --- the network's field in film pixels


@pytest.mark.parametrize("size_hw", [(400, 300), (250, 500), (321, 320), (90, 61)])
def test_fields_come_back_in_film_pixels(size_hw: tuple[int, int]) -> None:
    film, mask = film_with_field(*size_hw)
    field = LungField(Dark(), 320, "cpu").segment([film])[0]
    assert field.shape == size_hw and field.dtype == np.float32
    assert overlap(field > 0.5, mask).dice > 0.97


def test_films_of_many_sizes_go_through_together() -> None:
    films = [film_with_field(100 + 7 * i, 130 - 6 * i)[0] for i in range(11)]
    fields = LungField(Dark(), 64, "cpu").segment(films)
    assert [f.shape for f in fields] == [f.shape for f in films]
    assert LungField(Dark(), 64, "cpu").segment([]) == []


def test_pixels_outside_0_1_are_refused() -> None:
    with pytest.raises(ValueError, match="float32 in \\[0, 1\\]"):
        LungField(Dark(), 64, "cpu").segment([np.full((9, 9), 200, np.float32)])


# --- geometry of a field


def two_lungs() -> np.ndarray:
    mask = np.zeros((100, 80), bool)
    mask[20:70, 10:30] = mask[25:75, 45:65] = True
    return mask


def test_the_box_is_the_union_of_the_lungs() -> None:
    assert field_box_xyxy(two_lungs()) == (10, 20, 65, 75)


def test_specks_below_2_percent_do_not_stretch_the_box() -> None:
    mask = two_lungs()
    mask[90:100, 70:80] = True  # 100 of 8,000 px
    assert field_box_xyxy(mask) == (10, 20, 65, 75)
    mask[84:100, 69:80] = True  # 176 px
    assert field_box_xyxy(mask) == (10, 20, 80, 100)


def test_an_empty_field_has_no_box() -> None:
    assert field_box_xyxy(np.zeros((5, 6), bool)) is None


def test_a_mask_that_is_no_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="must be \\(H, W\\) bool"):
        field_box_xyxy(np.zeros((5, 6), np.float32))


@pytest.mark.parametrize(
    ("rows", "columns", "edges"),
    [
        ((30, 60), (20, 50), ()),
        ((0, 60), (20, 50), ("top",)),
        ((30, 100), (20, 80), ("right", "bottom")),
        ((0, 100), (0, 80), ("left", "top", "right", "bottom")),
    ],
)
def test_edges_that_cut_the_field_are_named(
    rows: tuple[int, int], columns: tuple[int, int], edges: tuple[str, ...]
) -> None:
    mask = np.zeros((100, 80), bool)
    mask[slice(*rows), slice(*columns)] = True
    assert cut_edges(mask) == edges


def test_a_corner_that_grazes_the_edge_does_not_count() -> None:
    mask = np.zeros((100, 100), bool)
    mask[40:42, 0:50] = True  # 2 % of the left edge
    assert cut_edges(mask) == ()
    mask[42] = mask[41]
    assert cut_edges(mask) == ("left",)


def test_disagreement_is_one_less_the_iou_of_the_boxes() -> None:
    mask = two_lungs()
    assert disagreement(mask, (10, 20, 65, 75)) == pytest.approx(0.0)
    # 55 × 55 px against the same box moved by 11 px: overlap 44 × 55 of 66 × 55
    assert disagreement(mask, (21, 20, 76, 75)) == pytest.approx(1 - 44 / 66)
    assert disagreement(np.zeros((9, 9), bool), (0, 0, 5, 5)) == 1.0


# --- the command predict


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Two films of different sizes, one of them without a field, and a file that is cut short."""
    folder = tmp_path / "films"
    folder.mkdir()
    film, _ = film_with_field(120, 90)
    cv2.imwrite(str(folder / "chest.png"), (film * 255).astype(np.uint8))
    plain = np.full((70, 110), 220, np.uint8)
    plain[:9], plain[-9:] = 0, 255
    cv2.imwrite(str(folder / "plain.png"), plain)
    (folder / "torn.png").write_bytes((folder / "chest.png").read_bytes()[:60])
    return folder


@pytest.fixture
def dark(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in in the bundle's place."""
    found = LungField(Dark(), 128, "cpu", {"dark.safetensors": "0" * 64})
    monkeypatch.setattr("detect.lungfield.predict.LungField.load", lambda *_: found)


def test_predict_gives_each_film_a_row(films: Path, dark: None, tmp_path: Path) -> None:
    out = tmp_path / "fields"
    assert main(["predict", str(films), "--out", str(out)]) == 0
    header, rows = read_rows(out / "manifest.jsonl", FieldRow, SCHEMA, VERSION)
    assert header["settings"]["weights"] == {"dark.safetensors": "0" * 64}
    found = {Path(film).name: row for film, row in rows.items()}
    assert {name: r.status for name, r in found.items()} == {
        "chest.png": "ok",
        "plain.png": "no_field",
        "torn.png": "unreadable",
    }
    chest = found["chest.png"]
    mask = cv2.imread(str(out / str(chest.mask)), cv2.IMREAD_GRAYSCALE)
    assert mask.shape == (120, 90) == chest.size_hw and set(np.unique(mask)) == {0, 255}
    assert overlap(mask, film_with_field(120, 90)[1]).dice > 0.97
    assert chest.field_share == pytest.approx((mask > 0).mean(), abs=1e-4)
    assert found["plain.png"].reason.startswith("no lung field found")
    assert found["torn.png"].reason.startswith("truncated") and found["torn.png"].mask is None
    assert (out / "sheet.png").exists()


def test_predict_goes_on_where_it_was_stopped(films: Path, dark: None, tmp_path: Path) -> None:
    out = tmp_path / "fields"
    assert main(["predict", str(films), "--out", str(out)]) == 0
    path = out / "manifest.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:20])  # killed while it wrote the second row
    (films / "chest.png").touch()
    assert main(["predict", str(films), "--out", str(out)]) == 0
    assert path.read_text().splitlines()[1] == lines[1].rstrip("\n")
    assert len(read_rows(path, FieldRow, SCHEMA, VERSION)[1]) == 3


def test_a_row_without_its_mask_is_made_anew(tmp_path: Path) -> None:
    film = tmp_path / "film.png"
    film.write_bytes(b"x")
    header = {"settings": {}}
    path = tmp_path / "manifest.jsonl"
    with RowLedger(path, FieldRow, SCHEMA, VERSION, header):
        pass
    row = {"film": film.as_posix(), "sha256": "0", "status": "unreadable", "reason": "why"}
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with RowLedger(path, FieldRow, SCHEMA, VERSION, header) as book:
        assert book.pending([film], "mask") == [film]  # it has other bytes by now
        assert book.done == {}
    with pytest.raises(ValueError, match="other settings"):
        RowLedger(path, FieldRow, SCHEMA, VERSION, {"settings": {"weights": {"other": "1"}}})


def test_row_of_a_film_without_square_pixels_is_in_the_stored_ones() -> None:
    film = Film(np.zeros((100, 80), np.float32), "a.dcm", "0", stored_hw=(50, 80))
    mask = np.zeros((100, 80), bool)
    mask[20:60, 10:50] = True
    row = to_row(Path("a.dcm"), film, mask, "m.png")
    assert (row.size_hw, row.field_xyxy) == ((50, 80), (10, 10, 50, 30))


def test_a_row_needs_a_mask_or_a_reason() -> None:
    with pytest.raises(ValueError, match="needs a mask"):
        FieldRow("film.png", "0", "ok")
    with pytest.raises(ValueError, match="status must be one of"):
        FieldRow("film.png", "0", "fallback", "why")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict"], "FILMS must name a file"),
        (["evaluate", "--weights", "none.safetensors"], "no such weights"),
        (["train", "--data.data", "nowhere"], "films.csv does not exist"),
    ],
)
def test_wrong_arguments_are_exit_code_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


# --- weights


def test_a_bundle_of_another_kind_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="of kind 'lungfield'"):
        LungField.load(root / "weights/thorax_lite0.safetensors")


def test_the_shipped_network_marks_lungs_on_real_films(shared_data: Path, root: Path) -> None:
    if not (root / DEFAULT_WEIGHTS).exists():
        pytest.skip("no shipped weights")
    net = LungField.load(root / DEFAULT_WEIGHTS, "cpu")
    assert net.meta["trained_on"]["publishable_only"] is True
    from cxr.film import read_film

    rows = masked_rows(shared_data)
    split = Split.load(root / "configs/split_seed0.json")
    test = [rows[i] for i in split.select([r.patient_id for r in rows], "test")][::20]
    films = [read_film(shared_data / row.image) for row in test]
    fields = net.segment([film.pixels for film in films])
    truths = [read_mask(shared_data / r.mask, film) for r, film in zip(test, films, strict=True)]
    dice = [overlap(f > 0.5, t).dice for f, t in zip(fields, truths, strict=True)]
    assert np.mean(dice) > 0.93 and min(dice) > 0.8
    hip = read_film(shared_data / "dicom/nema_rg2_cr_hip_negative.dcm").pixels
    assert (net.segment([hip])[0] > 0.5).mean() < 0.05

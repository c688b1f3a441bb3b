"""Films and boxes as the detector trains on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from dicom_films import a_dicom

from cxr.boxes import iou_xyxy, mask_box_xyxy
from cxr.coco import CocoFilm, read_coco, read_coco_json, write_coco, write_coco_json
from cxr.data_folders import DataFolders
from detect.data import DataConfig, find_films, read_annotations, select_films
from detect.dataset import PRESETS, ThoraxDataset, build_augmentation, make_negative
from detect.predict import prepare_film


def chosen(
    config: DataConfig, seed: int = 0, classes: Sequence[str] = ("thorax",)
) -> tuple[list[CocoFilm], list[CocoFilm]]:
    """Films to train and to validate on."""
    parts = select_films(config, seed, classes).films
    return parts["train"], parts["val"]


@pytest.fixture
def films(phantom_folder: Path) -> list[CocoFilm]:
    return read_coco(phantom_folder / "thorax.json").films


def test_the_target_is_the_box_in_letterbox_pixels(
    films: list[CocoFilm], phantom_folder: Path
) -> None:
    image, target = ThoraxDataset(films[:1], phantom_folder, 320)[0]
    assert image.shape == (3, 320, 320) and image.dtype == torch.float32
    # films are 160 × 140 px, so the letterbox doubles them
    np.testing.assert_allclose(target["boxes"].numpy(), films[0].boxes_xyxy * 2, atol=1e-4)
    assert target["labels"].tolist() == [1]


def test_a_film_without_a_thorax_has_boxes_of_shape_0_4(
    films: list[CocoFilm], phantom_folder: Path
) -> None:
    empty = replace(films[0], boxes_xyxy=np.zeros((0, 4)), labels=())
    for augment in (None, build_augmentation("strong")):
        _, target = ThoraxDataset([empty], phantom_folder, 64, augment)[0]
        assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)


def test_an_unreadable_film_is_left_out(films: list[CocoFilm], phantom_folder: Path) -> None:
    gone = replace(films[0], file_name="images/none.png")
    assert len(ThoraxDataset([gone, films[1]], phantom_folder, 64)) == 1
    with pytest.raises(ValueError, match="none readable"):
        ThoraxDataset([gone], phantom_folder, 64)


def test_a_scaled_copy_of_a_film_has_its_boxes_scaled(
    films: list[CocoFilm], phantom_folder: Path, tmp_path: Path
) -> None:
    pixels = cv2.imread(str(phantom_folder / films[0].file_name), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "half.png"), cv2.resize(pixels, (70, 80)))
    half = replace(films[0], file_name="half.png")
    _, target = ThoraxDataset([half], tmp_path, 160)[0]
    # 160 × 140 px are listed, so the letterbox of the copy is the listed film at scale 1
    np.testing.assert_allclose(target["boxes"].numpy(), films[0].boxes_xyxy, atol=1e-4)


def test_boxes_marked_not_to_count_neither_train_nor_measure(
    films: list[CocoFilm], phantom_folder: Path, tmp_path: Path
) -> None:
    data = read_coco_json(phantom_folder / "thorax.json")
    data["annotations"][0]["iscrowd"] = 1  # this film's only box
    beside = {**data["annotations"][1], "id": 999, "bbox": [0, 0, 9, 9], "ignore": 1}
    write_coco_json(
        tmp_path / "boxes.json", {**data, "annotations": [*data["annotations"], beside]}
    )
    left = read_annotations(phantom_folder, str(tmp_path / "boxes.json"))
    assert len(left) == len(films) - 1 and all(len(film.boxes_xyxy) == 1 for film in left)


def test_boxes_and_masks_of_stored_pixels_fit_a_film_without_square_ones(tmp_path: Path) -> None:
    stored = np.full((100, 180), 100, np.uint16)
    stored[30:70, 20:140] = 4000
    (tmp_path / "a.dcm").write_bytes(a_dicom(stored, PixelSpacing=[0.4, 0.2]))
    cv2.imwrite(str(tmp_path / "mask.png"), (stored > 1000).astype(np.uint8) * 255)
    film = CocoFilm("a.dcm", (100, 180), np.array([[20.0, 30, 140, 70]]), (0,))
    data = ThoraxDataset(
        [film], tmp_path, 160, build_augmentation("rotate"), masks={"a.dcm": "mask.png"}
    )
    picture, boxes, _, mask = data.items[0]
    seen = mask_box_xyxy(picture > 128)
    assert np.abs(boxes[0] - seen).max() < 2 and np.abs(mask_box_xyxy(mask) - seen).max() < 2


def test_a_film_of_another_aspect_than_its_annotation_is_refused(
    films: list[CocoFilm], phantom_folder: Path
) -> None:
    turned = replace(films[0], size_hw=(140, 160))
    with pytest.raises(ValueError, match=r"film00\.png must have .* 160 × 140 px, or be a scaled"):
        ThoraxDataset([turned], phantom_folder, 64)


@pytest.mark.parametrize("preset", [p for p in PRESETS if p != "none"])
def test_augmented_boxes_stay_on_the_film(
    preset: str, films: list[CocoFilm], phantom_folder: Path
) -> None:
    torch.manual_seed(0)
    data = ThoraxDataset(films, phantom_folder, 96, build_augmentation(preset))
    for index in range(len(data)):
        boxes = data[index][1]["boxes"].numpy()
        assert (boxes >= 0).all() and (boxes <= 96).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_augmentation_none_changes_nothing(films: list[CocoFilm], phantom_folder: Path) -> None:
    assert build_augmentation("none") is None
    data = ThoraxDataset(films[:1], phantom_folder, 64)
    assert torch.equal(data[0][0], data[0][0])


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ValueError, match="none, affine, rotate, strong"):
        build_augmentation("wild")


def test_with_masks_a_turned_box_is_exact(films: list[CocoFilm], phantom_folder: Path) -> None:
    masks = {f.file_name: f.file_name.replace("images", "masks") for f in films}
    torch.manual_seed(0)
    data = ThoraxDataset(films, phantom_folder, 160, build_augmentation("rotate"), masks=masks)
    _, boxes, _, mask = data.items[0]
    assert mask is not None
    exact = mask_box_xyxy(mask)
    assert exact is not None and iou_xyxy(exact, boxes)[0, 0] > 0.97


def test_negatives_replace_that_share(films: list[CocoFilm], phantom_folder: Path) -> None:
    torch.manual_seed(0)
    augment = build_augmentation("rotate")
    data = ThoraxDataset(films, phantom_folder, 64, augment, negatives=0.5)
    empty = sum(len(data[i % len(data)][1]["boxes"]) == 0 for i in range(120))
    assert 35 < empty < 85


def test_negatives_are_seeded_pictures() -> None:
    film = np.full((120, 100), 128, np.uint8)
    box = np.array([30.0, 30, 70, 90])
    for seed in range(20):
        one = make_negative(film, box, np.random.default_rng(seed))
        two = make_negative(film, box, np.random.default_rng(seed))
        assert one.dtype == np.uint8 and one.ndim == 2 and min(one.shape) >= 24
        np.testing.assert_array_equal(one, two)


def test_preparation_stretches_contrast_and_leaves_the_film_alone() -> None:
    film = np.linspace(0.4, 0.6, 40 * 20, dtype=np.float32).reshape(40, 20)
    before = film.copy()
    canvas, frame = prepare_film(film, 40)
    np.testing.assert_array_equal(film, before)
    assert canvas.shape == (40, 40) and frame.content_hw == (40, 20)
    assert canvas[:, :20].min() == 0 and canvas[:, :20].max() == 255
    assert not canvas[:, 20:].any()  # padding is air


def test_split_parts_never_share_a_patient(phantom_folder: Path) -> None:
    train, val = chosen(DataConfig(data=str(phantom_folder)), seed=3)
    assert not {f.patient_id for f in train} & {f.patient_id for f in val}
    assert len(train) + len(val) == 24


def test_two_folders_train_together(phantom_folders: list[str]) -> None:
    config = DataConfig(data=phantom_folders, masks=True)
    parts = select_films(config, 0)
    films = [film for part in parts.films.values() for film in part]
    assert len({f.file_name for f in films}) == 48 == len(parts.masks)
    assert len({f.patient_id for f in films}) == 24
    shown = ThoraxDataset(films, phantom_folders, 96, build_augmentation("rotate"), 0, parts.masks)
    assert len(shown) == 48 and all(mask is not None for *_, mask in shown.items)
    one = DataFolders(phantom_folders[1])
    for path in (phantom_folders[1] + "/thorax.json", "thorax.json"):  # its own; one folder's alone
        assert len(read_annotations(phantom_folders if path[0] == "/" else one, path)) == 24


def test_per_label_takes_that_many(phantom_folder: Path) -> None:
    config = DataConfig(data=str(phantom_folder), per_label={"normal": 4, "pneumonia": 6})
    train, val = chosen(config, seed=0)
    labels = [f.extra["label"] for f in train + val]
    assert labels.count("normal") == 4 and labels.count("pneumonia") == 6
    with pytest.raises(ValueError, match="Got 8"):
        select_films(replace(config, per_label={"normal": 9}), seed=0)


def test_what_per_label_leaves_over_may_be_a_part_of_its_own(phantom_folder: Path) -> None:
    config = DataConfig(data=str(phantom_folder), per_label={"Normal": 4, "pneumonia": 4})
    parts = select_films(replace(config, rest="test"), seed=0).films
    kept = select_films(config, seed=0).films
    for part in ("train", "val"):
        assert [f.file_name for f in parts[part]] == [f.file_name for f in kept[part]]
    patients = [{f.patient_id for f in parts[part]} for part in ("train", "val", "test")]
    assert parts["test"] and not patients[2] & (patients[0] | patients[1])
    assert {f.label for f in parts["test"]} <= {"normal", "pneumonia"}
    for wrong in ({"rest": "val"}, {"rest": "test", "per_label": {}}):
        with pytest.raises(ValueError, match=r"data\.rest must name"):
            replace(config, **wrong)


def test_detect_and_classify_takes_the_class_from_the_label(phantom_folder: Path) -> None:
    config = DataConfig(data=str(phantom_folder), class_from="label")
    train, _ = chosen(config, 0, classes=["normal", "pneumonia"])
    assert {f.labels[0] for f in train if f.extra["label"] == "pneumonia"} == {1}
    spelt = replace(config, per_label={"No Finding": 4, "PNEUMONIA": 4})
    parts = select_films(spelt, 0, ["Normal ", "Pneumonia"]).films
    films = [film for part in parts.values() for film in part]
    assert Counter((f.extra["label"], f.labels[0]) for f in films) == Counter(
        {("normal", 0): 4, ("pneumonia", 1): 4}
    )
    with pytest.raises(ValueError, match=r"must be one of model\.classes"):
        select_films(config, 0, classes=["normal", "covid"])


def test_licences_that_forbid_publishing_are_left_out(phantom_folder: Path, tmp_path: Path) -> None:
    for name in ("thorax.json", "films.csv"):
        (tmp_path / name).write_text(
            (phantom_folder / name).read_text().replace("CC BY 4.0", "CC BY-NC-SA 4.0", 6)
        )
    train, val = chosen(DataConfig(data=str(tmp_path), publishable_only=True), 0)
    assert len(train) + len(val) == 18


def test_missing_annotations_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.json"):
        select_films(DataConfig(data=str(tmp_path), annotations="nothing.json"), 0)


@pytest.fixture
def public_set(phantom_folder: Path, tmp_path: Path) -> Path:
    """Films in other folders than annotated, one of them twice; boxes.json with base names."""
    coco = read_coco(phantom_folder / "thorax.json")
    base = [replace(f, file_name=Path(f.file_name).name) for f in coco.films]
    write_coco(tmp_path / "boxes.json", replace(coco, films=base))
    for number, film in enumerate(base):
        for part in ("test", "train") if number == 3 else ("train",):
            file = tmp_path / "chest_xray" / part / film.extra["label"] / film.file_name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes((phantom_folder / "images" / film.file_name).read_bytes())
    return tmp_path


def test_films_are_found_by_base_name_in_any_folder(public_set: Path) -> None:
    data = public_set / "chest_xray"
    config = DataConfig(data=str(data), annotations=str(public_set / "boxes.json"))
    train, val = chosen(config, seed=0)
    names = {f.file_name for f in train + val}
    assert {"train/normal/film00.png", "train/pneumonia/film01.png"} < names and len(names) == 24
    assert all((data / name).exists() for name in names)
    assert "test/normal/film03.png" in names  # the same bytes twice are one film


def test_a_copy_of_another_suffix_is_its_film_where_one_alone_has_that_stem(
    public_set: Path, phantom_folder: Path
) -> None:
    films = read_coco(public_set / "boxes.json").films[:2]
    other = [replace(f, file_name=f.file_name.replace(".png", ".jpeg")) for f in films]
    found = find_films(other, phantom_folder)  # the mask of the same name is no film
    assert [f.file_name for f in found] == ["images/film00.png", "images/film01.png"]
    (public_set / "chest_xray/film00.jpg").write_bytes(b"which of them?")
    found = find_films(other, public_set / "chest_xray")
    assert [f.file_name for f in found] == ["film00.jpeg", "train/pneumonia/film01.png"]


def test_several_annotations_train_together_and_the_first_counts(
    phantom_folders: list[str], public_set: Path
) -> None:
    coco = read_coco(public_set / "boxes.json")
    write_coco(
        public_set / "own.json",
        replace(coco, films=[replace(f, boxes_xyxy=f.boxes_xyxy - 1) for f in coco.films[:3]]),
    )
    names = [str(public_set / "own.json"), "thorax.json"]
    films = read_annotations(phantom_folders, names)
    assert len(films) == len({f.file_name for f in films}) == 48
    np.testing.assert_allclose(films[0].boxes_xyxy, coco.films[0].boxes_xyxy - 1, atol=1e-3)
    parts = select_films(DataConfig(data=phantom_folders, annotations=names[::-1]), 0).films
    first = next(f for p in parts.values() for f in p if f.file_name == "images/film00.png")
    np.testing.assert_allclose(first.boxes_xyxy, coco.films[0].boxes_xyxy, atol=1e-3)


def test_without_a_films_csv_the_options_that_need_it_are_named(public_set: Path) -> None:
    config = DataConfig(
        data=str(public_set / "chest_xray"), annotations=str(public_set / "boxes.json"), masks=True
    )
    with pytest.raises(ValueError, match=r"publishable_only and data\.masks need .*films\.csv"):
        select_films(config, seed=0)


def test_two_films_of_one_base_name_are_named(public_set: Path) -> None:
    data = public_set / "chest_xray"
    (data / "test/normal/film03.png").write_bytes(b"another film")
    with pytest.raises(
        ValueError,
        match=r"film03\.png must be one film .*test/normal/film03\.png "
        r"and train/normal/film03\.png, which differ",
    ):
        read_annotations(data, str(public_set / "boxes.json"))


def test_a_film_that_is_nowhere_keeps_its_name_and_takes_no_others(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/1.png").write_bytes(b"b's own")
    films = [CocoFilm(n, (9, 9), np.zeros((0, 4)), ()) for n in ("a/1.png", "b/1.png", "2.png")]
    assert [f.file_name for f in find_films(films, tmp_path)] == ["a/1.png", "b/1.png", "2.png"]
    windows = [replace(f, file_name=n) for f, n in zip(films, ("a\\1.png", "b\\1"), strict=False)]
    assert [f.file_name for f in find_films(windows, tmp_path)] == ["a/1.png", "b/1.png"]
    with pytest.raises(ValueError, match=r"b/1\.png may be a/1\.png or c/1\.png"):
        find_films([films[0], replace(films[0], file_name="c/1.png")], tmp_path)


def test_real_boxes_agree_with_their_masks(shared_data: Path) -> None:
    parts = select_films(DataConfig(data=str(shared_data), masks=True), 0)
    for film in parts.films["val"][::40]:
        mask = cv2.imread(str(shared_data / parts.masks[film.file_name]), cv2.IMREAD_GRAYSCALE)
        exact = mask_box_xyxy(mask > 127)
        assert exact is not None and iou_xyxy(exact, film.boxes_xyxy)[0, 0] > 0.97

"""classify/films.py and classify/dataset.py: truth, regions, cache."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from classify.dataset import FilmDataset, PixelCache, RegionFinder, build_cache, class_weights
from classify.films import Case, RegionConfig, select_cases, share_cases
from classify.members import label_of
from classify.preprocess import PreprocessConfig
from cxr.boxes import Frame
from cxr.data_folders import DataFolders
from cxr.films_table import FilmRow, read_films_table
from cxr.manifest import CropRow, ManifestWriter
from cxr.split import make_split

CONFIG = PreprocessConfig(side=64, work_side=0)


def film_row(label: str, sublabel: str = "", **other: str) -> FilmRow:
    known = {
        "image": "images/a.png",
        "mask": "",
        "source": "s",
        "patient_id": "p",
        "licence": "CC BY 4.0",
    } | other
    return FilmRow(label=label, sublabel=sublabel, **known)


def phantom_cases(folder: Path, crops: Path | None = None) -> list[Case]:
    return select_cases(read_films_table(folder / "films.csv"), folder, crops=crops)[0]


@pytest.fixture
def crops(phantom_folder: Path, tmp_path: Path) -> Path:
    """Crops of the first four phantoms as detect.crop leaves them; the fourth was refused."""
    with ManifestWriter(tmp_path / "manifest.jsonl", {"settings": {}}) as manifest:
        for number in range(3):
            film = phantom_folder / f"images/film{number:02d}.png"
            frame = Frame.cut((20, 30, 120, 130))
            pixels = cv2.imread(str(film), cv2.IMREAD_GRAYSCALE)
            cv2.imwrite(str(tmp_path / f"{number}.png"), frame.apply(pixels))
            manifest.add(
                CropRow(
                    film=f"elsewhere/{film.parent.name}/{film.name}",
                    sha256="",
                    status="ok",
                    size_hw=(160, 140),
                    thorax_xyxy=(20.0, 30.0, 120.0, 130.0),
                    score=0.9,
                    crop_xyxy=frame.source_xyxy,
                    frame=frame.to_dict(),
                    crop=f"{number}.png",
                )
            )
        manifest.add(CropRow("elsewhere/images/film03.png", "", "no_thorax", "low score"))
    return tmp_path


@pytest.mark.parametrize(
    ("row", "target", "label"),
    [
        (film_row("normal", "No Finding"), "viral", 0),
        (film_row("pneumonia", "viral"), "viral", 1),
        (film_row("pneumonia", "bacterial"), "viral", 2),
        (film_row("pneumonia", "bacterial/Klebsiella"), "bacterial", 1),
        (film_row("pneumonia", "Edema|Effusion|Pneumonia"), "effusion", 1),
        (film_row("other", "Pleural effusion"), "pleural_effusion", 1),
        (film_row("covid", "COVID-19"), "covid", 1),
        (film_row("unknown", "viral"), "viral", None),
    ],
)
def test_label_is_normal_target_or_others(row: FilmRow, target: str, label: int | None) -> None:
    assert label_of(row, target) == label


def test_films_left_out_are_counted_by_reason() -> None:
    rows = [
        film_row("normal"),
        film_row("unknown"),
        film_row("normal", source="t"),
        film_row("normal", licence="research only"),
        film_row("normal", licence="not stated"),
    ]
    cases, out = select_cases(rows, Path("data"), sources=["s"])
    assert len(cases) == 1
    assert out == {"truth unknown": 1, "another source": 1, "licence": 2}
    assert len(select_cases(rows, Path("data"), publishable_only=False)[0]) == 4


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(ValueError, match="another source"):
        select_cases([film_row("normal")], Path("data"), sources=["nowhere"])


def test_crops_are_matched_by_the_end_of_their_path(phantom_folder: Path, crops: Path) -> None:
    rows = read_films_table(phantom_folder / "films.csv")
    cases, out = select_cases(rows, phantom_folder, crops=crops)
    assert [c.crop.name for c in cases] == ["0.png", "1.png", "2.png"]
    assert out == {"no crop: no_thorax": 1, "no row in the manifest": 20}


def test_films_and_crops_may_lie_in_several_folders(
    phantom_folders: list[str], crops: Path
) -> None:
    rows = DataFolders(phantom_folders).rows()
    cases, _ = select_cases(rows, phantom_folders)
    assert len(cases) == 48 and all(case.film.is_file() for case in cases)
    assert RegionFinder(RegionConfig(), "").mask_of(cases[-1]).any()
    text = (crops / "manifest.jsonl").read_text()
    (crops / "more").mkdir()
    (crops / "more/manifest.jsonl").write_text(text.replace("film0", "film3"))
    cases, _ = select_cases(rows, phantom_folders, crops=[crops, crops / "more"])
    assert [(c.row.image[-6:-4], c.crop.parent) for c in cases] == [
        *((number, crops) for number in ("00", "01", "02")),
        *((number, crops / "more") for number in ("30", "31", "32")),
    ]


def test_parts_share_no_patient(phantom_folder: Path) -> None:
    cases = phantom_cases(phantom_folder)
    patients = [c.patient for c in cases]
    split = make_split(patients, [c.row.sublabel for c in cases], {"train": 0.5, "val": 0.5})
    kept, parts = share_cases(cases, split, ("train", "val"), 0, 0)
    sides = [{kept[i].patient for i in parts[part]} for part in ("train", "val")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    few, parts = share_cases(cases, split, ("train", "val"), 6, 0)
    assert {len(films) for films in parts.values()} == {6} and len(few) == 12
    assert [case.row.label for case in few].count("normal") == 4  # a third, as of all films


def test_region_of_a_crop_is_cut_like_the_crop(
    phantom_folder: Path, crops: Path, tmp_path: Path
) -> None:
    cases = phantom_cases(phantom_folder, crops)
    cache = build_cache(cases, CONFIG, RegionConfig(), tmp_path / "cache", 100)
    for number, case in enumerate(cases):
        mask = cv2.imread(str(phantom_folder / case.row.mask), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(cache.regions[number], mask[30:130, 20:120])


def test_box_jitter_shows_what_lies_beside_the_crop(
    phantom_folder: Path, crops: Path, tmp_path: Path
) -> None:
    cases = phantom_cases(phantom_folder, crops)
    raw = PreprocessConfig(side=64, work_side=0, clip=False)
    wide = build_cache(cases, raw, RegionConfig(), tmp_path / "cache", 120, box_jitter=0.1)
    film = cv2.imread(str(cases[0].film), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(wide.images[0], film[20:140, 10:130])


def test_films_are_decoded_once(phantom_folder: Path, tmp_path: Path, monkeypatch) -> None:
    import classify.dataset

    cases = phantom_cases(phantom_folder)[:3]
    first = build_cache(cases, CONFIG, RegionConfig(), tmp_path, 64)
    monkeypatch.setattr(classify.dataset, "read_film", lambda _: pytest.fail("decoded again"))
    again = build_cache(cases, CONFIG, RegionConfig(), tmp_path, 64)
    assert np.array_equal(first.images, again.images)
    with pytest.raises(pytest.fail.Exception, match="decoded again"):
        build_cache(cases, PreprocessConfig(side=64, clip=False), RegionConfig(), tmp_path, 64)


def small_cache() -> PixelCache:
    """Three films of 32 px at grey 200; the first two have a region of 4 x 4 px."""
    regions = np.zeros((2, 32, 32), np.uint8)
    regions[:, 10:14, 20:24] = 255
    return PixelCache(np.full((3, 32, 32), 200, np.uint8), regions, np.array([[0], [1], [-1]]))


def test_only_the_dilated_region_of_a_present_target_is_restored() -> None:
    films = FilmDataset(small_cache(), [1, 0, 1], [0, 1, 2], side=32, goal="film", dilation=3)
    present, absent, undrawn = (films[i] for i in range(3))
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[10:14, 20:24] = True
    inside[9, 20:24] = inside[14, 20:24] = True
    inside[10:14, 19] = inside[10:14, 24] = True
    assert torch.equal(present["goal"][0] > 0, inside)
    assert present["goal"].max() == pytest.approx(200 / 255)
    assert not absent["goal"].any() and absent["known"] == 1
    assert not undrawn["goal"].any() and undrawn["known"] == 0


def test_a_segmenting_decoder_is_asked_for_the_region_itself() -> None:
    films = FilmDataset(small_cache(), [1, 0, 1], [0, 1], side=32, goal="mask")
    assert films[0]["goal"].sum() == 16  # 4 x 4 px of 1, whatever the film's grey
    assert films[0]["goal"][0, 10:14, 20:24].all()
    assert not films[1]["goal"].any()


def test_augmentation_moves_goal_and_film_alike() -> None:
    def shifted(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.roll(image, 3, 1), np.roll(mask, 3, 1)

    films = FilmDataset(small_cache(), [1, 0, 1], [0], side=32, augment=shifted, goal="film")
    columns = (films[0]["goal"][0] > 0).any(0).nonzero().flatten()
    assert columns.tolist() == [23, 24, 25, 26]


def test_finding_boxes_of_the_target_become_its_region(phantom_folder: Path, tmp_path) -> None:
    table = tmp_path / "boxes.csv"
    table.write_text(
        "image,finding,x,y,w,h\nimages/film00.png,Viral,10,20,5,6\n"
        "images/film00.png,Mass,50,60,5,6\n"
    )
    finder = RegionFinder(RegionConfig("finding_boxes", str(table)), "viral")
    cases = phantom_cases(phantom_folder)
    mask = finder.mask_of(cases[0])
    assert mask[20:26, 10:15].all() and mask.sum() == 30 * 255
    assert finder.mask_of(cases[1]) is None


def test_lesion_masks_come_from_the_targets_folder(phantom_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "viral").mkdir()
    lesion = np.zeros((160, 140), np.uint8)
    lesion[5:9] = 255
    cv2.imwrite(str(tmp_path / "viral" / "film00.png"), lesion)
    config = RegionConfig("lesion_masks", str(tmp_path))
    cases = phantom_cases(phantom_folder)
    assert np.array_equal(RegionFinder(config, "viral").mask_of(cases[0]), lesion)
    assert RegionFinder(config, "bacterial").mask_of(cases[0]) is None


def test_a_region_without_its_path_is_refused() -> None:
    with pytest.raises(ValueError, match="path"):
        RegionConfig("lesion_masks")
    with pytest.raises(ValueError, match="kind"):
        RegionConfig("heart")


def test_class_weights_are_balanced_over_the_classes_present() -> None:
    # 6 films: 3, 2, 1 of a class -> 6 / (3 * n); without the third: 5 / (2 * n)
    assert class_weights([0, 0, 0, 1, 1, 2]).tolist() == pytest.approx([2 / 3, 1.0, 2.0])
    assert class_weights([0, 0, 0, 1, 1]).tolist() == pytest.approx([5 / 6, 5 / 4, 0.0])

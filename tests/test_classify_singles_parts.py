"""classify/films.py: which films train, choose and test."""

from __future__ import annotations

from pathlib import Path

import pytest

from classify.films import PARTS, ProtocolConfig, part_in_path, share_films
from cxr.films_table import FilmRow
from cxr.split import Split

HALVES = {"train": 0.5, "val": 0.25, "test": 0.25}


def build_rows(count: int = 48, published: bool = False) -> tuple[list[FilmRow], list[int]]:
    """Films of two classes, two of each patient; published, patients 0 to 3 stand in test."""
    rows = []
    for i in range(count):
        patient = i // 2
        part = "test" if patient < 4 else ("val" if patient < 6 else "train")
        image = f"images/set/{part}/{i}.png" if published else f"images/set/{i}.png"
        rows.append(FilmRow(image, "", "set", f"p{patient}", "normal", "", "CC BY 4.0"))
    return rows, [(i // 2) % 2 for i in range(count)]


def patients_of(rows: list[FilmRow], indices: list[int]) -> set[str]:
    return {rows[i].patient_id for i in indices}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["pooled", "folds", "official"])
def test_no_patient_stands_on_two_sides(kind: str, seed: int) -> None:
    rows, labels = build_rows(published=True)
    for shares in share_films(rows, labels, ProtocolConfig(kind, seed=seed, folds=4)):
        sides = [patients_of(rows, shares.parts[name]) for name in PARTS]
        assert not sides[0] & sides[1]
        assert not sides[0] & sides[2]
        assert not sides[1] & sides[2]
        assert sum(len(v) for v in shares.parts.values()) == len(rows)


def test_pooled_parts_have_their_shares() -> None:
    rows, labels = build_rows()
    (shares,) = share_films(rows, labels, ProtocolConfig(parts=HALVES))
    assert {name: len(films) for name, films in shares.parts.items()} == {
        "train": 24,
        "val": 12,
        "test": 12,
    }
    assert sum(labels[i] for i in shares.parts["test"]) == 6


def test_each_film_is_tested_in_one_fold() -> None:
    rows, labels = build_rows()
    every = share_films(rows, labels, ProtocolConfig("folds", folds=4))
    assert len(every) == 4
    tested = [i for shares in every for i in shares.parts["test"]]
    assert sorted(tested) == list(range(len(rows)))


def test_the_published_test_films_are_tested_and_no_others() -> None:
    rows, labels = build_rows(published=True)
    (shares,) = share_films(rows, labels, ProtocolConfig("official"))
    assert shares.parts["test"] == list(range(8))
    assert shares.dropped == {}
    assert len(shares.parts["val"]) == pytest.approx(40 / 9, abs=2)  # 0.1 beside 0.8


def test_training_films_of_a_tested_patient_are_dropped_and_counted() -> None:
    rows, labels = build_rows(published=True)
    rows += [FilmRow("images/set/train/x.png", "", "set", "p1", "normal", "", "CC BY 4.0")]
    (shares,) = share_films(rows, [*labels, 0], ProtocolConfig("official"))
    assert not any(48 in films for films in shares.parts.values())
    assert shares.dropped == {"patient is in the published test part, too": 1}


def test_official_needs_published_folders() -> None:
    rows, labels = build_rows()
    with pytest.raises(ValueError, match=r"images/set/0\.png is in none"):
        share_films(rows, labels, ProtocolConfig("official"))


@pytest.mark.parametrize(
    ("image", "part"),
    [
        ("kermany/chest_xray/train/NORMAL/a.png", "train"),
        ("a/Test/b.png", "test"),
        ("images/test.png", ""),
        ("train/b/val/c.png", "val"),
        ("trainers/b.png", ""),
    ],
)
def test_a_films_part_is_a_folder_of_its_path(image: str, part: str) -> None:
    assert part_in_path(image) == part


def test_a_split_of_a_file_is_taken_and_its_other_parts_are_counted(tmp_path: Path) -> None:
    rows, labels = build_rows(16)
    names = ("train", "train", "val", "val", "test", "test", "calibration", "train")
    Split(0, {f"p{i}": name for i, name in enumerate(names)}).save(tmp_path / "split.json")
    protocol = ProtocolConfig("file", split=str(tmp_path / "split.json"))
    (shares,) = share_films(rows, labels, protocol)
    assert shares.parts == {
        "train": [0, 1, 2, 3, 14, 15],
        "val": [4, 5, 6, 7],
        "test": [8, 9, 10, 11],
    }
    assert shares.dropped == {"part calibration of the split": 2}


def test_a_missing_split_is_named() -> None:
    rows, labels = build_rows(8)
    with pytest.raises(ValueError, match=r"nowhere\.json does not exist"):
        share_films(rows, labels, ProtocolConfig("file", split="nowhere.json"))


def test_an_empty_part_is_refused() -> None:
    rows, labels = build_rows(4)
    with pytest.raises(ValueError, match="the part val must have films"):
        share_films(rows, labels, ProtocolConfig())


def test_a_class_that_is_only_tested_is_refused() -> None:
    rows, labels = build_rows(published=True)
    with pytest.raises(ValueError, match=r"train must have films of every class.* number 2"):
        share_films(rows, [2, 2, *labels[2:]], ProtocolConfig("official"))


def test_fewer_patients_are_learnt_from_and_all_are_tested() -> None:
    rows, labels = build_rows()
    found = {}
    for learn in (0.25, 0.5, 1.0):
        (found[learn],) = share_films(rows, labels, ProtocolConfig(parts=HALVES, learn=learn))
    assert [len(found[k].parts["train"]) for k in (0.25, 0.5, 1.0)] == [8, 12, 24]
    assert all(found[k].parts["test"] == found[1.0].parts["test"] for k in found)
    small, large = (patients_of(rows, found[k].parts["train"]) for k in (0.25, 0.5))
    assert small < large  # the curve adds patients, it does not draw others
    assert found[0.25].dropped == {"not learnt from": 16}
    assert {labels[i] for i in found[0.25].parts["train"]} == {0, 1}


@pytest.mark.parametrize("learn", [0.0, -0.1, 1.5])
def test_a_share_of_nobody_is_refused(learn: float) -> None:
    with pytest.raises(ValueError, match=r"protocol\.learn must lie in"):
        ProtocolConfig(learn=learn)

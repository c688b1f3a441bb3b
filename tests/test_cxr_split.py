"""cxr.split: no patient on two sides, strata alike, folds that test each patient once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cxr.films_table import read_films_table
from cxr.split import DEFAULT_PARTS, Split, make_folds, make_split


@pytest.fixture
def cohort() -> tuple[list[str], list[str]]:
    """600 films of 300 patients with 1 to 5 films each, labels 2 : 1, one label a patient."""
    rng = np.random.default_rng(0)
    patients: list[str] = []
    strata: list[str] = []
    for number in range(300):
        films = int(rng.integers(1, 4)) if number else 6
        patients += [f"p{number}"] * films
        strata += ["normal" if number % 3 else "pneumonia"] * films
    return patients, strata


def test_no_patient_is_on_two_sides_and_none_is_lost(cohort) -> None:
    patients, strata = cohort
    split = make_split(patients, strata)
    chosen = [split.select(patients, part) for part in DEFAULT_PARTS]
    assert sorted(i for part in chosen for i in part) == list(range(len(patients)))
    sides = [{patients[i] for i in part} for part in chosen]
    assert sum(map(len, sides)) == len(set(patients))


def test_shares_of_films_are_met_in_each_stratum(cohort) -> None:
    patients, strata = cohort
    split = make_split(patients, strata)
    total = Counter(strata)
    for part, share in DEFAULT_PARTS.items():
        counts = Counter(strata[i] for i in split.select(patients, part))
        for stratum, n in total.items():
            assert counts[stratum] / n == pytest.approx(share, abs=0.02)


def test_same_seed_same_split_and_another_seed_another(cohort) -> None:
    assert make_split(*cohort, seed=1) == make_split(*cohort, seed=1)
    assert make_split(*cohort, seed=1).part_of != make_split(*cohort, seed=2).part_of


def test_order_of_the_films_does_not_matter(cohort) -> None:
    patients, strata = cohort
    order = np.random.default_rng(3).permutation(len(patients))
    shuffled = [patients[i] for i in order], [strata[i] for i in order]
    assert make_split(*shuffled).part_of == make_split(*cohort).part_of


def test_part_of_share_zero_stays_empty(cohort) -> None:
    split = make_split(*cohort, parts={"train": 1.0, "test": 0.0})
    assert split.select(cohort[0], "test") == []


def test_folds_test_and_validate_each_patient_once(cohort) -> None:
    folds = make_folds(*cohort, folds=5)
    for part, times in (("test", 1), ("val", 1), ("train", 3)):
        counts = Counter(p for fold in folds for p, q in fold.part_of.items() if q == part)
        assert set(counts.values()) == {times} and len(counts) == 300
    sizes = [len(fold.select(cohort[0], "test")) for fold in folds]
    assert max(sizes) - min(sizes) <= 6


def test_saved_split_reads_back(cohort, tmp_path: Path) -> None:
    split = make_split(*cohort, seed=4)
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"schema": "lungfirst.crops"}'])
def test_another_file_is_no_split(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="must be a split saved by lungfirst"):
        Split.load(tmp_path / "a.json")


def test_unknown_patient_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 unknown ones instead, such as 'p9'"):
        Split(0, {"p1": "train"}).select(["p1", "p9"], "train")


@pytest.mark.parametrize(
    ("patients", "strata", "parts", "rule"),
    [
        (["a", "b"], ["x"], {"train": 1.0}, "one length"),
        (["a", ""], ["x", "x"], {"train": 1.0}, "must all be named"),
        (["a"], ["x"], {"train": 0.5}, "sum to 1"),
        (["a"], ["x"], {"train": 1.5, "test": -0.5}, "sum to 1"),
    ],
)
def test_wrong_arguments_are_refused(patients, strata, parts, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        make_split(patients, strata, parts)


def test_two_folds_are_too_few() -> None:
    with pytest.raises(ValueError, match="folds must be at least 3"):
        make_folds(["a"], ["x"], folds=2)


def test_shipped_split_knows_every_real_patient(shared_data: Path, root: Path) -> None:
    rows = read_films_table(shared_data / "films.csv")
    split = Split.load(root / "configs/split_seed0.json")
    parts = Counter(split.part_of[row.patient_id] for row in rows)
    for part, share in DEFAULT_PARTS.items():
        assert parts[part] / len(rows) == pytest.approx(share, abs=0.02)


def test_shipped_split_holds_no_more_than_ids_and_parts(root: Path) -> None:
    data = json.loads((root / "configs/split_seed0.json").read_text())
    assert set(data) == {"schema", "version", "seed", "part_of"}
    assert set(data["part_of"].values()) == set(DEFAULT_PARTS)


def test_folds_are_written_one_file_each(phantom_folder: Path, tmp_path: Path) -> None:
    from cxr.split import main

    args = ["--films", str(phantom_folder / "films.csv"), "--out", str(tmp_path / "s.json")]
    assert main([*args, "--folds", "3"]) == 0
    folds = [Split.load(tmp_path / f"s_fold{i}.json") for i in range(3)]
    tested = [p for f in folds for p, part in f.part_of.items() if part == "test"]
    assert sorted(tested) == sorted(folds[0].part_of)  # each patient is tested once


def test_a_split_does_not_hang_on_how_the_table_was_written(
    phantom_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from cxr.split import main

    text = (phantom_folder / "films.csv").read_text()
    other = text.replace(",normal,No Finding", ", NORMAL ,no_finding").replace("\n", " \r\n")
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "b.csv").write_text(other, encoding="utf-8-sig")
    for name in "ab":
        assert main(["--films", str(tmp_path / f"{name}.csv"), "--out", str(tmp_path / name)]) == 0
    assert Split.load(tmp_path / "a") == Split.load(tmp_path / "b")


def test_a_split_names_the_labels_that_it_does_not_know(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cxr.split import main

    text = (phantom_folder / "films.csv").read_text().replace(",normal,", ",nromal,", 2)
    (tmp_path / "a.csv").write_text(text)
    assert main(["--films", str(tmp_path / "a.csv"), "--out", str(tmp_path / "s.json")]) == 0
    assert "nromal (2 films of phantom" in " ".join(capsys.readouterr().err.split())
    assert len(Split.load(tmp_path / "s.json").part_of) == 12  # each patient still has a part


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_split_saved_by_another_program_is_read(tmp_path: Path, mark: bytes) -> None:
    Split(1, {"p1": "train"}).save(tmp_path / "s.json")
    data = (tmp_path / "s.json").read_bytes().replace(b"\n", b"\r\n").replace(b'"p1"', b'"p1 "')
    (tmp_path / "s.json").write_bytes(mark + data)
    assert Split.load(tmp_path / "s.json") == Split(1, {"p1": "train"})


@pytest.mark.parametrize("broken", ['"seed": "x"', '"part_of": ["p1"]', '"part_of": {"p": 1}'])
def test_a_split_of_other_content_is_refused(tmp_path: Path, broken: str) -> None:
    head = '{"schema": "lungfirst.split", "seed": 0, "part_of": {}, '
    (tmp_path / "s.json").write_text(head + broken + "}")
    with pytest.raises(ValueError, match="must be a split saved by lungfirst"):
        Split.load(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("", "must have the columns image, mask"),
        (
            "image,mask,source,patient_id,label,sublabel,licence\na.png,,s,,normal,,x\n",
            "patient_id",
        ),
        (None, "No such file"),
    ],
)
def test_a_table_that_cannot_be_split_ends_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str | None, says: str
) -> None:
    from cxr.split import main

    if table is not None:
        (tmp_path / "films.csv").write_text(table)
    args = ["--films", str(tmp_path / "films.csv"), "--out", str(tmp_path / "s.json")]
    assert main(args) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "s.json").exists()

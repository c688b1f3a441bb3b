"""films.csv: tables as spreadsheets leave them, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cxr.films_table import (
    FilmNames,
    FilmRow,
    class_of,
    has_disease,
    is_abnormal,
    is_among,
    read_films_table,
    read_finding_boxes,
    take_films,
    tell_unknown,
    why_unknown,
)
from cxr.workdir import log

HEAD = "image,mask,source,patient_id,label,sublabel,licence\n"


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "films.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_a_spreadsheets_mark_before_the_table_is_no_part_of_it(tmp_path: Path) -> None:
    path = table(tmp_path, HEAD + "a.png,,s,p,normal,,CC BY\n", "utf-8-sig")
    assert [row.image for row in read_films_table(path)] == ["a.png"]


def test_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    path = table(tmp_path, HEAD + "a.png,,é,p,normal,,CC BY\n", "latin-1")
    with pytest.raises(ValueError, match=r"films\.csv must be UTF-8"):
        read_films_table(path)


def test_a_line_that_ends_early_is_refused_with_its_number(tmp_path: Path) -> None:
    path = table(tmp_path, HEAD + "a.png,,s,p,normal,,CC BY\nb.png,,s,p\n")
    with pytest.raises(ValueError, match=r"films\.csv line 3 .*must have a cell for each column"):
        read_films_table(path)


@pytest.mark.parametrize(
    ("source", "licence", "may"),
    [
        ("nih", "NIH Clinical Center: free use with attribution", True),
        ("nih", "not restated; NIH Clinical Center: free use with attribution (CC0)", True),
        ("other", "NIH Clinical Center: free use with attribution", False),
        ("nih", "not stated", False),
        ("any", "CC BY 4.0", True),
        ("any", "CC BY-NC 4.0", False),
    ],
)
def test_a_licence_says_whether_a_model_may_be_published(
    source: str, licence: str, may: bool
) -> None:
    assert FilmRow("a.png", "", source, "p", "normal", "", licence).publishable is may


def test_max_films_never_takes_more_and_keeps_the_shares() -> None:
    patients = [f"p{i // 2}" for i in range(40)]
    strata = ["a"] * 30 + ["b"] * 10
    for most in (7, 12, 20):
        chosen = take_films(patients, strata, most)
        taken = Counter(strata[i] for i in chosen)
        assert most - 2 <= len(chosen) <= most
        assert taken["a"] == pytest.approx(0.75 * most, abs=2)
        assert set(Counter(patients[i] for i in chosen).values()) == {2}
    assert take_films(patients, strata, 0) == take_films(patients, strata, 99) == list(range(40))
    assert take_films(patients, strata, 12, seed=1) != take_films(patients, strata, 12, seed=2)


# --- which name is which film

CHEXPERT = [f"/set/train/patient0000{n}/study1/view1_frontal.jpg" for n in (1, 2)]


def test_folder_and_file_are_enough() -> None:
    names = FilmNames(["images/nih/1.png", "images/kermany/1.png"])
    assert names.find("../films/nih/1.png") == "images/nih/1.png"
    assert names.find("nih/1.png") == "images/nih/1.png"
    assert names.find("..\\films\\kermany\\1.png") == "images/kermany/1.png"


def test_another_folder_or_file_is_another_film() -> None:
    names = FilmNames(["images/nih/1.png"])
    assert names.find("images/tbx/1.png") is None
    assert names.find("images/nih/2.png") is None
    assert names.find("1.png") is None


def test_names_that_end_alike_need_more_parts() -> None:
    names = FilmNames(CHEXPERT)
    assert names.find("elsewhere/patient00002/study1/view1_frontal.jpg") == CHEXPERT[1]
    assert names.find("study1/view1_frontal.jpg") is None
    assert names.find("x/patient00009/study1/view1_frontal.jpg") is None


def test_a_lone_name_is_not_taken_for_the_other_films_that_end_like_it() -> None:
    asked = [f"films/{path}" for path in CHEXPERT]
    names = FilmNames(CHEXPERT[:1], asked)
    assert [names.find(path) for path in asked] == [CHEXPERT[0], None]


def test_a_name_that_is_the_end_of_another_is_found_by_the_whole() -> None:
    names = FilmNames(["b/1.png", "a/b/1.png"])
    assert names.find("a/b/1.png") == "a/b/1.png"
    assert names.find("b/1.png") == "b/1.png"


def test_a_name_without_a_folder_is_found_by_itself() -> None:
    names = FilmNames(["1.png"])
    assert names.find("anywhere/1.png") == "1.png"
    assert names.find("1.png") == "1.png"


# --- labels: one vocabulary


def labelled(folder: Path, *labels: str, sublabel: str = "") -> list[FilmRow]:
    lines = [f"{n}.png,,s,p{n},{label},{sublabel},CC BY\n" for n, label in enumerate(labels)]
    return read_films_table(table(folder, HEAD + "".join(lines)))


@pytest.mark.parametrize(
    "word",
    ["normal", "Normal", "NORMAL", " normal ", "normal\u00a0", "\u2007Normal", "No Finding"],
)
def test_words_for_normal_are_one(tmp_path: Path, word: str) -> None:
    row, other = labelled(tmp_path, word, "pneumonia")
    assert row.label == "normal" and is_abnormal(row) is False and is_abnormal(other) is True
    assert class_of(row, ("NORMAL", "pneumonia")) == 0 and not has_disease(row, ["pneumonia"])


@pytest.mark.parametrize(
    "word", ["no_finding", "No  finding", "no-finding", "Healthy", "No Findings."]
)
def test_other_words_for_normal_are_it_too(tmp_path: Path, word: str) -> None:
    (row,) = labelled(tmp_path, word)
    assert row.label == "normal" and class_of(row, (word, "pneumonia")) == 0


@pytest.mark.parametrize("word", ["Pneumonia", " PNEUMONIA", "pneumonia ", "Pneumonia|Edema"])
def test_words_for_a_disease_are_one(tmp_path: Path, word: str) -> None:
    (row,) = labelled(tmp_path, word)
    assert is_abnormal(row) is True and has_disease(row, ["pneumonia"])


@pytest.mark.parametrize(
    ("label", "disease"),
    [
        ("COVID-19", "covid"),
        ("covid19", "COVID_19"),
        ("TB", "tuberculosis"),
        ("Others", "other"),
        ("Pleural_Effusion", "pleural effusion"),
        ("Active tuberculosis", "active_tuberculosis"),
    ],
)
def test_a_disease_has_one_name(tmp_path: Path, label: str, disease: str) -> None:
    (row,) = labelled(tmp_path, label)
    assert has_disease(row, [disease]) and class_of(row, ("normal", disease)) == 1
    assert is_abnormal(row) is True


@pytest.mark.parametrize(
    ("asked", "sublabel"),
    [
        ("interstitial_opacity", "Fibrosis"),
        ("interstitial_opacity", "Effusion|Infiltration"),
        ("nodule_or_mass", "Mass"),
        ("pleural_effusion", "Effusion"),
    ],
)
def test_a_task_may_ask_for_several_findings_under_one_name(
    tmp_path: Path, asked: str, sublabel: str
) -> None:
    (row,) = labelled(tmp_path, "other", sublabel=sublabel)
    assert has_disease(row, [asked]) and not has_disease(row, ["cardiomegaly"])
    (heart,) = labelled(tmp_path, "other", sublabel="Cardiomegaly")
    assert not has_disease(heart, [asked])


@pytest.mark.parametrize("word", ["", " ", "nan", "N/A", "none", "?", "unknown", "UNKNOWN", "-1"])
@pytest.mark.parametrize("sublabel", ["", "bacterial"])
def test_words_that_say_nothing_are_unknown(tmp_path: Path, word: str, sublabel: str) -> None:
    row = labelled(tmp_path, word, "normal", sublabel=sublabel)[0]
    assert is_abnormal(row) is None and why_unknown(row)
    assert class_of(row, ("normal", "bacterial")) is None and not has_disease(row, ["bacterial"])


@pytest.mark.parametrize(
    "word", ["nromal", "pneumonia?", "no pneumonia", "normal|edema", "2", "negative", "positive"]
)
def test_a_word_that_nobody_knows_is_neither(tmp_path: Path, word: str) -> None:
    (row,) = labelled(tmp_path, word)
    assert is_abnormal(row) is None and word in why_unknown(row)


def test_a_word_of_the_task_is_known(tmp_path: Path) -> None:
    clean, dusty = labelled(tmp_path, "Clean lung", "Miner's_lung")
    assert is_abnormal(dusty) is None
    assert is_abnormal(dusty, ["miner's lung"]) is True
    assert is_abnormal(clean, normal="clean_lung") is False
    classes = ("clean lung", "Miner's lung")
    assert [class_of(row, classes) for row in (clean, dusty)] == [0, 1]


@pytest.mark.parametrize("zero_one", [("0", "1"), ("0.0", "1.0"), ("False", "True"), ("no", "yes")])
def test_a_column_of_zero_and_one_is_normal_and_abnormal(tmp_path: Path, zero_one) -> None:
    rows = labelled(tmp_path, *zero_one, "", "-1")
    assert [is_abnormal(row) for row in rows] == [False, True, None, None]
    assert [class_of(row, zero_one) for row in rows] == [0, 1, None, None]
    assert [has_disease(row, zero_one[1:]) for row in rows] == [False, True, False, False]
    assert [is_abnormal(row, normal=zero_one[1]) for row in rows] == [True, False, None, None]
    assert [class_of(row, ("normal", "abnormal")) for row in rows] == [0, 1, None, None]


def test_a_number_among_words_is_unknown(tmp_path: Path) -> None:
    rows = labelled(tmp_path, "0", "1", "normal")
    assert [is_abnormal(row) for row in rows] == [None, None, False]
    assert [class_of(row, ("0", "1")) for row in rows[:2]] == [0, 1]


def test_unknown_words_are_told_with_their_films(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "propagate", True)
    rows = labelled(tmp_path, "Nromal", "nromal", "", "normal", "unknown")
    tell_unknown(rows, "films.csv")
    (said,) = set(caplog.messages)
    assert "films.csv" in said and "nromal (2 films of s, such as 0.png)" in said
    assert "(empty) (1 film of s, such as 2.png)" in said and "unknown (" not in said
    caplog.clear()
    tell_unknown(rows[3:], "films.csv")
    assert not caplog.messages


def test_a_source_is_one_however_it_is_spelt(tmp_path: Path) -> None:
    rows = "".join(f"{n}.png,,{s},p{n},normal,,x\n" for n, s in enumerate(["Kermany ", "kermany"]))
    found = read_films_table(table(tmp_path, HEAD + rows))
    assert {row.source for row in found} == {"Kermany"}
    assert is_among("Kermany", ["nih", "kermany "]) and not is_among("Kermany", ["nih"])
    terms = "NIH Clinical Center: free use with attribution"
    assert FilmRow("a.png", "", "NIH", "p", "normal", "", terms).publishable
    unnamed = "not stated by carrier; NIH ChestX-ray14 films with their names lost"
    assert FilmRow("a.png", "", "nih_unnamed", "p", "normal", "", unnamed).publishable
    assert not FilmRow("a.png", "", "other", "p", "normal", "", unnamed).publishable


# --- text as other programs leave it


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_a_table_reads_alike_however_it_was_saved(
    tmp_path: Path, encoding: str, end: str, between: str
) -> None:
    text = "Image, MASK ,source,patient_id,label,sublabel,licence,view\n"
    text += "a.png ,,s ,\u00e9 1 , normal,,CC BY 4.0 ,AP \n,,,,,,,\n\n"
    path = tmp_path / "films.csv"
    path.write_bytes(text.replace(",", between).replace("\n", end).encode(encoding))
    (row,) = read_films_table(path)
    assert row == FilmRow("a.png", "", "s", "\u00e9 1", "normal", "", "CC BY 4.0", "AP")


def test_names_of_other_programs_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "images/nih").mkdir(parents=True)
    for name in ("1.png", "2.png", "2.jpg", "1.2.840.dcm", "IM0001"):
        (tmp_path / "images/nih" / name).touch()
    names = ["images\\nih\\1.png", "images/nih/1", "images/nih/2", "images/nih/1.2.840"]
    names += ["images\\nih\\IM0001", "gone\\x"]
    lines = "".join(f"{name},{name},s,p{n},normal,,CC BY\n" for n, name in enumerate(names))
    rows = read_films_table(table(tmp_path, HEAD + lines))
    found = ["images/nih/1.png", "images/nih/1.png", "images/nih/2", "images/nih/1.2.840.dcm"]
    assert [r.image for r in rows] == [*found, "images/nih/IM0001", "gone/x"]
    assert [r.mask for r in rows] == [r.image for r in rows]


def test_a_name_without_suffix_is_found_where_only_one_has_it() -> None:
    names = FilmNames(["images/nih/1.png", "images/nih/2.png", "images/nih/2.jpg", "images/nih/3"])
    assert names.find("D:\\x\\nih\\1") == "images/nih/1.png"
    assert names.find("nih/2") is None and names.find("nih/2.jpg") == "images/nih/2.jpg"
    assert names.find("nih/3.dcm") == "images/nih/3" and names.find("nih/1.jpg") is None


def test_a_line_that_is_no_csv_is_refused_with_its_number(tmp_path: Path) -> None:
    path = table(tmp_path, HEAD + f"{'x' * 200_000},,s,p,normal,,CC BY\n")
    with pytest.raises(ValueError, match=r"films\.csv line 2 must be a line of CSV"):
        read_films_table(path)


def test_finding_boxes_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "finding_boxes.csv"
    path.write_bytes(b"\xef\xbb\xbfImage;Finding;x;y;w;h\r\nimages\\a.png; Mass ;1;2;3;4 \r\n")
    assert read_finding_boxes(path) == [("images/a.png", "Mass", (1, 2, 3, 4))]

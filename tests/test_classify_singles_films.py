"""cxr/films_table.py and classify/dataset.py: a film's class, and which films are taken."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from classify.dataset import load_films
from classify.members import label_of
from classify.models.settings import BackboneConfig
from classify.tasks.member import load_cases
from classify.tasks.settings import SingleConfig, TrainConfig
from cxr.films_table import FilmRow, class_of, read_films_table
from cxr.split import make_split
from cxr.workdir import set_up_logging

TWO, THREE = ("normal", "pneumonia"), ("normal", "bacterial", "viral")


@pytest.fixture
def config(phantom_folder: Path) -> SingleConfig:
    return SingleConfig(
        classes=THREE,
        data=str(phantom_folder),
        sources=(),
        backbone=BackboneConfig("baseline_cnn", weights="none"),
    )


@pytest.mark.parametrize(
    ("label", "sublabel", "classes", "found"),
    [
        ("normal", "No Finding", TWO, 0),
        ("pneumonia", "bacterial", TWO, 1),
        ("pneumonia", "bacterial", THREE, 1),
        ("pneumonia", "viral/SARS", THREE, 2),
        ("pneumonia", "Viral|Effusion", THREE, 2),
        ("pneumonia", "Effusion|Pneumonia", TWO, 1),
        ("pneumonia", "fungal/Pneumocystis", THREE, None),
        ("pneumonia", "", THREE, None),
        ("covid", "COVID-19", TWO, None),
        ("pneumonia", "No Finding", TWO, 1),
        ("covid", "COVID-19", ("normal", "covid"), 1),
    ],
)
def test_a_films_class_is_its_sublabel_or_else_its_label(
    label: str, sublabel: str, classes: tuple[str, ...], found: int | None
) -> None:
    assert class_of(FilmRow("a", "", "s", "p", label, sublabel, ""), classes) == found


def test_films_of_no_class_are_left_out_and_counted(config: SingleConfig) -> None:
    films = load_films(replace(config, classes=("normal", "viral")))
    assert Counter(films.labels) == {0: 8, 1: 8}
    assert films.left_out == {"no class: pneumonia": 8}


def test_max_films_keeps_the_classes_and_whole_patients(config: SingleConfig) -> None:
    films = load_films(replace(config, max_films=12))
    assert Counter(films.labels) == {0: 4, 1: 4, 2: 4}
    assert films.left_out == {"over max_films": 12}
    assert set(Counter(case.patient for case in films.cases).values()) == {2}


def test_the_mark_changes_with_the_films(config: SingleConfig) -> None:
    whole = load_films(config)
    assert whole.mark() == load_films(config).mark()
    assert whole.mark() != load_films(replace(config, max_films=12)).mark()
    assert whole.mark() != load_films(replace(config, classes=TWO)).mark()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": "nowhere"}, "nowhere/films.csv does not exist"),
        ({"classes": ("gout", "scurvy")}, "Got gout, scurvy, which no film has"),
        ({"sources": ("nih",)}, "no film is left"),
    ],
)
def test_missing_films_are_named(config: SingleConfig, change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_films(replace(config, **change))


def copy_table(source: Path, folder: Path, *changes: tuple[str, str, int]) -> Path:
    """The folder of films with its table changed: so many times one text for another."""
    text = (source / "films.csv").read_text()
    for old, new, times in changes:
        text = text.replace(old, new, times)
    (folder / "films.csv").write_text(text)
    for name in ("images", "masks"):
        (folder / name).symlink_to(source / name)
    return folder


SPELT = ((",normal,No", ", No_Finding ,No", -1), (",pneumonia,bact", ",PNEUMONIA,Bact", -1))
UNKNOWN = ((",normal,No", ",nromal,No", 2), (",pneumonia,viral", ",,viral", 3))


def test_a_single_network_learns_the_same_classes_however_they_are_spelt(
    config: SingleConfig, tmp_path: Path
) -> None:
    other = replace(config, data=str(copy_table(Path(config.data), tmp_path, *SPELT)))
    assert load_films(other).mark() == load_films(config).mark()
    assert load_films(replace(other, classes=("Normal", "BACTERIAL", "viral "))).left_out == {}


def test_films_of_unknown_labels_are_not_learnt_and_told(
    config: SingleConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging()
    data = str(copy_table(Path(config.data), tmp_path, *UNKNOWN))
    films = load_films(replace(config, data=data))
    assert Counter(films.labels) == {0: 6, 1: 8, 2: 5}
    assert films.left_out == {"label not known: nromal": 2, "label not known: (empty)": 3}
    said = " ".join(capsys.readouterr().err.split())
    assert "nromal (2 films of phantom" in said and "(empty) (3 films" in said


@pytest.mark.parametrize("classes", ["three", "normal", "target"])
def test_members_learn_the_same_however_labels_are_spelt(
    config: SingleConfig, tmp_path: Path, classes: str
) -> None:
    rows = read_films_table(Path(config.data) / "films.csv")
    split = make_split([r.patient_id for r in rows], [r.sublabel for r in rows])
    split.save(tmp_path / "split.json")
    member = TrainConfig(
        targets=("bacterial",),
        data=config.data,
        split=str(tmp_path / "split.json"),
        sources=(),
        classes=classes,
    )
    data = str(copy_table(Path(config.data), tmp_path, *SPELT))
    truths = [
        {c.row.image: label_of(c.row, "Bacterial ", classes) for c in load_cases(one)[0]}
        for one in (member, replace(member, data=data))
    ]
    assert truths[0] == truths[1] and len(truths[0]) == 24
    mine = replace(member, targets=("dusty_lung",), data=data)
    (tmp_path / "films.csv").unlink()
    (tmp_path / "images").unlink()
    (tmp_path / "masks").unlink()
    own = ((",pneumonia,bact", ",Dusty Lung,bact", -1), (",pneumonia,vir", ",dsuty,vir", -1))
    copy_table(Path(config.data), tmp_path, *own)
    found = Counter(label_of(c.row, "dusty_lung", classes) for c in load_cases(mine)[0])
    assert found == ({1: 8, 0: 8})  # a target of one's own is known, a slip of it is not

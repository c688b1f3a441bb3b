"""classify/singles/films.py: a film's class, and which films are taken."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from classify.dataset import load_films
from classify.models.settings import BackboneConfig
from classify.tasks.settings import SingleConfig
from cxr.films_table import FilmRow, class_of

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

"""classify/tasks/settings.py and classify/members.py: what a member is made by."""

from __future__ import annotations

from dataclasses import replace

import pytest

from classify.members import NORMAL, OTHERS, TARGET, label_of
from classify.tasks.settings import PhaseConfig, PretrainConfig, SingleConfig, TrainConfig
from cxr.films_table import FilmRow, has_disease
from cxr.training.recipe import recipe_of


def row(label: str, sublabel: str = "") -> FilmRow:
    return FilmRow("a.png", "", "here", "p", label, sublabel, "CC BY 4.0")


FILMS = (
    row("normal", "No Finding"),
    row("pneumonia", "bacterial/Klebsiella"),
    row("pneumonia", "viral"),
    row("unknown"),
)


@pytest.mark.parametrize(
    ("classes", "answers"),
    [
        ("three", [NORMAL, TARGET, OTHERS, None]),
        ("normal", [0, 1, 1, None]),
        ("target", [0, 1, 0, None]),
    ],
)
def test_a_film_is_one_of_three_or_of_two(classes: str, answers: list[int | None]) -> None:
    assert [label_of(film, "bacterial", classes) for film in FILMS] == answers


def test_a_disease_is_known_by_label_or_sublabel() -> None:
    asked = [has_disease(film, ("viral", "covid")) for film in FILMS]
    assert asked == [False, False, True, False]
    assert has_disease(FILMS[1], ("bacterial",)) and has_disease(FILMS[1], ("pneumonia",))


def test_the_answers_are_named_in_the_order_of_the_logits() -> None:
    names = {c: TrainConfig(classes=c).class_names("covid") for c in ("three", "normal", "target")}
    assert names == {
        "three": ("normal", "covid", "others"),
        "normal": ("normal", "abnormal"),
        "target": ("rest", "covid"),
    }


def test_a_training_begun_before_the_later_settings_goes_on() -> None:
    recipe = TrainConfig().recipe()
    assert recipe["decode"] is True
    assert not {"decoder", "classes", "unseen", "out", "cache"} & set(recipe)
    assert TrainConfig(decoder="none").recipe() == recipe | {"decode": False}


@pytest.mark.parametrize(
    "change", [{"decoder": "segmentation"}, {"classes": "target"}, {"unseen": ("covid",)}]
)
def test_another_decoder_class_or_held_out_disease_is_another_recipe(change: dict) -> None:
    assert replace(TrainConfig(), **change).recipe() != TrainConfig().recipe()


@pytest.mark.parametrize("wrong", [{"name": "soft"}, {"films": "some"}])
def test_an_unknown_phase_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} must be one of"):
        PhaseConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"decoder": "unet"}, "decoder must be one of none, segmentation, reconstruction"),
        ({"classes": "two"}, "classes must be one of three, normal, target"),
        ({"unseen": ("viral",)}, "unseen must not name a target.*viral"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TrainConfig(**wrong)


SHARED = ["batch", "max_films", "precision", "preprocess", "publishable_only", "seed", "sources"]
RECIPES = {  # what recipe.json holds, of trainings begun long ago too
    TrainConfig: "augment balance_classes decode max_epochs member phases region restore_weight "
    "ship_decoder",
    SingleConfig: "augment balance bundle choose classes copies kind network optim protocol "
    "trained_on",
    PretrainConfig: "crops genesis half net optim split",
}


@pytest.mark.parametrize("config", RECIPES)
def test_a_recipe_has_the_keys_it_always_had(config: type) -> None:
    made = config()
    recipe = recipe_of(made) if config is PretrainConfig else made.recipe()
    assert set(recipe) == {*SHARED, *RECIPES[config].split()}

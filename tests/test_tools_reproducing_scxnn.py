"""tools/reproducing/scxnn.py: how an ensemble answers tested films."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from classify.films import Case
from classify.screening.guarantee import ScreeningFilms
from cxr.films_table import FilmRow
from cxr.stats import Figure
from reproducing.scxnn import (
    Group,
    ScxnnConfig,
    _follow,
    _screened,
    draw_goes,
    goes_of,
    joint_scores,
    screen_films,
    truth_of,
)

TWO = ScxnnConfig(targets=("bacterial", "viral"))


def case(label: str, sublabel: str = "", n: int = 0) -> Case:
    row = FilmRow(f"{label}{n}.png", "", "here", f"{label}-{sublabel}-{n}", label, sublabel, "")
    return Case(row, Path(row.image))


def test_a_member_alone_answers_with_its_own_chances() -> None:
    scores = joint_scores(np.log([[[0.2, 0.5, 0.3]]]))
    assert scores == pytest.approx(np.array([[0.2, 0.5, 0.3]]))


def test_several_members_answer_normal_together_and_each_its_target() -> None:
    # mean P(normal) (0.2 + 0.4) / 2 = 0.3, targets 0.5 and 0.1: over their sum 0.9
    logits = np.log([[[0.2, 0.5, 0.3], [0.4, 0.1, 0.5]]])
    assert joint_scores(logits)[0] == pytest.approx([0.3 / 0.9, 0.5 / 0.9, 0.1 / 0.9])


def test_a_film_is_normal_or_its_first_target_or_left_out() -> None:
    films = (case("normal"), case("pneumonia", "viral"), case("pneumonia", "fungal"))
    assert [truth_of(film, TWO) for film in films] == ["normal", "viral", None]
    one = ScxnnConfig(targets=("viral",))
    assert [truth_of(film, one) for film in films] == ["normal", "viral", "others"]
    assert truth_of(films[2], ScxnnConfig(targets=("viral",), classes="normal")) == "abnormal"


def test_the_held_out_disease_is_the_followed_one() -> None:
    assert ScxnnConfig(unseen=("covid",)).followed == ("covid",)
    assert ScxnnConfig(unseen=("covid",), follow=("sars",)).followed == ("sars",)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"tiers": {"soon": ("viral",)}}, "tiers must be among critical.*'soon'"),
        ({"tiers": {"critical": ("viral",), "urgent": ("viral",)}}, "each target once"),
        ({"classes": "normal"}, "three or target for several targets"),
        (
            {"targets": ("viral",), "classes": "normal", "tiers": {"urgent": ("viral",)}},
            "where films are screened",
        ),
        ({"asked": "covid"}, "asked must be one of the targets"),
        ({"tested": ("kermany",), "sources": ("kermany",)}, "train nothing.*'kermany'"),
        ({"tested": ("nih",), "sources": ()}, "train nothing.*'all sources'"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ScxnnConfig(**wrong)


def test_where_films_go_adds_up_and_is_drawn(tmp_path: Path) -> None:
    said = np.array([2, 2, 1, 0, 2])
    shares = goes_of(said, list("abcde"), ("normal", "viral", "others"), draws=50)
    assert [shares[name].value for name in shares] == pytest.approx([0.2, 0.2, 0.6])
    group = Group("covid (held out)", 5, 5, shares)
    drawn = draw_goes([group, Group("normal", 5, 5, shares)], tmp_path / "unseen.png")
    assert drawn.stat().st_size > 10_000


def screened(tmp_path: Path, sure: dict[str, tuple[int, ...]]) -> dict[str, Figure]:
    """Three kinds of films, eight patients each; their logits are `sure` but for some noise."""
    cases = [case("normal" if k == "normal" else "pneumonia", k, n) for n in range(8) for k in sure]
    rng = np.random.default_rng(0)
    logits = np.array([[sure[c.row.sublabel]] for c in cases], float)
    logits += rng.normal(0, 0.3, logits.shape)
    (tmp_path / "viral.safetensors").write_bytes(b"a member")
    parts = ("val", "calibration", "test")
    config = ScxnnConfig(
        targets=("viral",),
        tiers={"critical": ("viral",)},
        out=str(tmp_path),
        draws=20,
        screen_folds=2,
    )
    return screen_films(config, dict.fromkeys(parts, cases), dict.fromkeys(parts, logits), tmp_path)


def test_a_screener_tells_what_is_kept_and_found_by_tier(tmp_path: Path) -> None:
    sure = {"normal": (5, 0, 0), "viral": (0, 5, 0), "bacterial": (0, 0, 5)}
    figures = screened(tmp_path, sure)
    values = {name: figure.value for name, figure in figures.items()}
    assert values == {
        **{"kept.critical": 1, "found.critical": 1, "kept.viral": 1, "found.viral": 1},
        **{"normal.critical": 0, "target.critical": 1, "others.critical": 0},
        **{"cleared.normal": 1, "cleared.abnormal": 0, "kept.normal": 0},
        **{f"screen.{n}": 1 for n in ("accuracy", "auc", "sensitivity", "specificity")},
    }
    assert (figures["found.viral"].n, figures["cleared.abnormal"].n) == (8, 16)
    rows = json.loads((tmp_path / "risk.json").read_text())
    assert [(row["tier"], row["disease"], row["films"]) for row in rows] == [
        ("critical", "", 8),
        ("critical", "viral", 8),
    ]
    assert (tmp_path / "screener.skops").is_file()


def test_members_of_two_classes_are_screened_too_and_know_no_others(tmp_path: Path) -> None:
    sure = {"normal": (5, 0), "viral": (0, 5), "bacterial": (0, 4)}
    figures = screened(tmp_path, sure)
    assert figures["target.critical"].value == 1.0
    assert figures["others.critical"].value == 0.0
    assert figures["cleared.normal"].value == 1.0


def test_what_the_screener_did_is_counted_by_hand() -> None:
    # 4 abnormal, of which 3 kept; 2 normal, of which 1 cleared: (3/4 + 1/2) / 2
    films = ScreeningFilms(
        ("viral",),
        np.zeros((6, 1, 3)),
        np.array([1, 1, 1, 1, 0, 0], bool),
        list("abcdef"),
        ["here"] * 6,
        list("abcdef"),
    )
    kept = np.array([1, 1, 1, 0, 0, 1], bool)
    scores = np.array([0.9, 0.8, 0.7, 0.2, 0.1, 0.75])
    found = _screened(ScxnnConfig(draws=20), films, kept, scores)
    assert found["screen.accuracy"].value == pytest.approx(0.625)
    assert found["screen.sensitivity"].value == 0.75
    assert found["screen.specificity"].value == found["cleared.normal"].value == 0.5
    assert found["cleared.abnormal"].value == 0.25
    # of 8 pairs 6 are in order: 0.1 lies below all four, 0.75 below two
    assert found["screen.auc"].value == pytest.approx(6 / 8)


def test_one_member_of_several_is_asked_where_the_followed_films_go(tmp_path: Path) -> None:
    cases = [case("pneumonia", "fungal", n) for n in range(2)] + [case("normal")]
    viral, bacterial = (0, 9, 0), (0, 0, 9)  # what each member says: its target, others
    logits = np.array([[bacterial, viral]] * 3, float)
    config = ScxnnConfig(
        targets=("bacterial", "viral"), follow=("fungal",), out=str(tmp_path), draws=20
    )
    of = {
        asked: _follow(replace(config, asked=asked), cases, logits)
        for asked in ("bacterial", "viral")
    }
    assert [of["bacterial"][f"goes.{n}"].value for n in ("normal", "target", "others")] == [0, 0, 1]
    assert [of["viral"][f"goes.{n}"].value for n in ("normal", "target", "others")] == [0, 1, 0]

"""tools/reproducing/scxnn.py, goes.py and screening.py: how an ensemble answers tested films."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from classify.films import Case
from cxr.films_table import FilmRow
from reproducing.scxnn import (
    Group,
    ScxnnConfig,
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
        ({"classes": "normal"}, "three for several targets"),
        (
            {"targets": ("viral",), "classes": "target", "tiers": {"urgent": ("viral",)}},
            "three where films are screened",
        ),
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


def test_a_screener_tells_what_is_kept_and_found_by_tier(tmp_path: Path) -> None:
    kinds = ("normal", "viral", "bacterial")
    cases = [
        case("normal" if k == "normal" else "pneumonia", k, n) for n in range(8) for k in kinds
    ]
    sure = {"normal": (5, 0, 0), "viral": (0, 5, 0), "bacterial": (0, 0, 5)}
    noise = np.random.default_rng(0).normal(0, 0.3, (len(cases), 1, 3))
    logits = np.array([[sure[c.row.sublabel]] for c in cases], float) + noise
    (tmp_path / "viral.safetensors").write_bytes(b"a member")
    parts = ("val", "calibration", "test")
    config = ScxnnConfig(
        targets=("viral",),
        tiers={"critical": ("viral",)},
        out=str(tmp_path),
        draws=20,
        screen_folds=2,
    )
    figures = screen_films(config, dict.fromkeys(parts, cases), dict.fromkeys(parts, logits))
    assert set(figures) == {
        "kept.critical",
        "found.critical",
        "kept.viral",
        "found.viral",
        "kept.normal",
    }
    assert figures["kept.critical"].value == figures["found.critical"].value == 1.0
    assert figures["kept.normal"].value == 0.0
    assert figures["found.viral"].n == 8
    rows = json.loads((tmp_path / "risk.json").read_text())
    assert [(row["tier"], row["disease"], row["films"]) for row in rows] == [
        ("critical", "", 8),
        ("critical", "viral", 8),
    ]
    assert (tmp_path / "screener.skops").is_file()

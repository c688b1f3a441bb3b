"""Maps compared by SSIM, pages drawn by seed, and readers' choices counted: by hand throughout."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import compare_explanations
import numpy as np
import pytest
from compare_world import HOSTILE, map_set, write_two
from sklearn.metrics import cohen_kappa_score

from comparing import MapsConfig, compare, load_maps, map_ssim, other_films, save_maps
from comparing.page import (
    FIRST,
    NEITHER,
    SECOND,
    Key,
    PageConfig,
    Reading,
    Trial,
    agreement,
    count,
    draw_trials,
    kappas,
    majority,
    preferences,
    read_choices,
    read_key,
    steadiness,
)
from cxr.stats import exact_share

FILMS = [f"in/film{i}.png" for i in range(8)]


def a_key(lefts: list[int], repeats: list[int] | None = None) -> Key:
    """Trial n asks about film n, or again about that of the trial in `repeats`."""
    again = repeats or [0] * len(lefts)
    trials = [
        Trial(n, f"film{r or n}", left, r)
        for n, (left, r) in enumerate(zip(lefts, again, strict=True), 1)
    ]
    return Key("page1", ("one", "two"), {t.number: t for t in trials})


def choices(path: Path, words: dict[int, str], **changed: Any) -> Path:
    """A file as the page saves it."""
    rows = [{"trial": n, "choice": w, "seconds": 1.5} for n, w in words.items()]
    record = {
        "schema": "lungfirst.choices",
        "version": 1,
        "page": "page1",
        "reader": "mk",
        "choices": rows,
        **changed,
    }
    path.write_text(json.dumps(record))
    return path


def test_maps_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = map_set("near", FILMS)
    read = load_maps(save_maps(tmp_path / "near.safetensors", made))
    assert list(read.films) == FILMS and (read.name, read.target) == ("near", "viral")
    for film in FILMS:
        assert np.array_equal(read.films[film].picture, made.films[film].picture)
        assert np.array_equal(read.films[film].plane, made.films[film].plane)
        assert read.films[film].plane.max() == 1  # whatever the method's unit is
    assert len(read.sha256) == 64


def test_equal_maps_have_ssim_1_and_those_of_other_films_less() -> None:
    found = compare(map_set("a", FILMS), map_set("b", FILMS), draws=50)
    assert found.own.value == pytest.approx(1) and found.films == 8
    assert found.other.value < 0.9
    assert found.own_less_other.value == pytest.approx(1 - found.other.value)


def test_ssim_agrees_with_scikit_images() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a, b = map_set("a", FILMS).films[FILMS[0]], map_set("b", FILMS, 0.2).films[FILMS[0]]
    whole = metrics.structural_similarity(
        a.plane,
        b.plane,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )[1]
    assert map_ssim(a, b) == pytest.approx(whole[5:-5, 5:-5].mean(), abs=1e-4)


def test_films_with_an_empty_map_are_left_out_and_counted() -> None:
    one, two = map_set("a", FILMS), map_set("b", FILMS[:6])
    blank = one.films[FILMS[0]]
    one.films[FILMS[0]] = replace(blank, plane=np.zeros_like(blank.plane))
    found = compare(one, two, draws=20)
    assert found.films == 5 and found.left_out == 3


def test_the_other_film_is_always_another_patients() -> None:
    patients = ["a", "a", "a", "b"]
    assert [patients[j] for j in other_films(patients, 0)] == ["b", "b", "b", "a"]
    assert other_films(["a", "a"], 0) == [-1, -1]


def test_each_method_stands_left_as_often_and_repeats_swap_the_sides() -> None:
    trials = draw_trials(FILMS, 8, 3, seed=0)
    assert [t.number for t in trials] == list(range(1, 12))
    first, again = trials[:8], trials[8:]
    assert sorted(t.film for t in first) == FILMS and sum(t.left for t in first) == 4
    for trial in again:
        earlier = trials[trial.repeats - 1]
        assert earlier.film == trial.film and earlier.left != trial.left
    assert trials == draw_trials(FILMS, 8, 3, seed=0) != draw_trials(FILMS, 8, 3, seed=1)
    assert len(draw_trials(FILMS, 0, 0, 0)) == 8 and len(draw_trials(FILMS, 5, 9, 0)) == 10


def test_the_page_is_whole_and_safe_and_does_not_say_which_is_which(tmp_path: Path) -> None:
    maps = write_two(tmp_path, [HOSTILE, *FILMS], ("secret-one", "secret-two"))
    page = tmp_path / "ask.html"
    question = "<b>Which?</b>\u202e"
    assert (
        compare_explanations.main(["page", *maps, "--out", str(page), "--question", question]) == 0
    )
    text = page.read_text()
    assert "secret" not in text and "film0" not in text and HOSTILE not in text
    assert "<b>Which" not in text and "&lt;b&gt;Which?&lt;/b&gt;\\u202e" in text
    assert text.count("<script") == 2 and " style=" not in text
    assert not re.search(r"\s(?:src|href)=\"(?!data:)", text) and not re.search(r"\son\w+=", text)
    assert re.search(
        r"default-src 'none'; img-src data:; style-src 'sha256-[^;]+; script-src", text
    )
    key = json.loads((tmp_path / "ask.key.json").read_text())
    assert [m["name"] for m in key["methods"]] == ["secret-one", "secret-two"]
    assert len(key["trials"]) == 13 and key["page"] in text


def test_left_and_right_are_turned_into_methods(tmp_path: Path) -> None:
    key = a_key([0, 1, 0, 1, 0])
    words = {1: "left", 2: "left", 3: "right", 4: "right", 5: "neither"}
    found = read_choices(choices(tmp_path / "mk.json", words), key)
    assert found.reader == "mk" and steadiness(key, found).left == exact_share(2, 4)
    assert found.chosen == {1: FIRST, 2: SECOND, 3: SECOND, 4: FIRST, 5: NEITHER}


def test_csv_says_the_same_as_json(tmp_path: Path) -> None:
    key, words = a_key([0, 1, 0]), {1: "left", 3: "neither"}
    path = tmp_path / "mk.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["page", "reader", "trial", "choice", "seconds"])
        writer.writerows(["page1", "mk", n, w, 1.5] for n, w in words.items())
    assert read_choices(path, key) == read_choices(choices(tmp_path / "mk.json", words), key)


@pytest.mark.parametrize(
    ("words", "changed", "message"),
    [
        ({1: "left"}, {"page": "page2"}, "must be of the page page1"),
        ({9: "left"}, {}, "Got 'left' for trial 9"),
        ({1: "up"}, {}, "Got 'up' for trial 1"),
        ({1: "left"}, {"reader": " "}, "must name its reader"),
        ({1: "left"}, {"schema": "other"}, "choices saved by a page"),
        ({1: "left"}, {"choices": [{"trial": "x"}]}, "choices with trial and choice"),
        ({1: "left"}, {"choices": [{"trial": 1, "choice": "left"}] * 2}, "once"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, words: dict[int, str], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_choices(choices(tmp_path / "mk.json", words, **changed), a_key([0, 1]))


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be the key of a page"):
        read_key(choices(tmp_path / "mk.json", {}))


def test_a_share_has_its_exact_interval_and_test() -> None:
    found = count("mk", [FIRST] * 8 + [SECOND] * 2 + [NEITHER] * 3)
    assert (found.films, found.first, found.second, found.neither) == (13, 8, 2, 3)
    assert found.share.value == 0.8
    # Clopper and Pearson of 8 in 10, as in their tables
    assert (found.share.low, found.share.high) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert found.p == pytest.approx(2 * (45 + 10 + 1) / 1024)
    nothing = count("mk", [NEITHER])
    assert nothing.share.value is None and nothing.p is None


def test_most_readers_count_each_film_once() -> None:
    answers = [
        {"a": FIRST, "b": FIRST, "c": NEITHER},
        {"a": FIRST, "b": SECOND, "c": SECOND},
        {"a": SECOND, "b": NEITHER},
    ]
    assert majority(answers) == {"a": FIRST, "b": NEITHER, "c": SECOND}


def test_repeats_are_no_films_of_their_own() -> None:
    key = a_key([0, 1, 1], [0, 0, 1])
    reading = Reading("mk", {1: FIRST, 2: SECOND, 3: SECOND})
    (found,) = preferences(key, [reading])
    assert (found.films, found.first, found.second) == (2, 1, 1)


def test_a_reader_who_always_goes_left_is_seen() -> None:
    key = a_key([0, 1, 0, 1, 0], [0, 0, 0, 1, 2])
    reading = Reading("mk", {1: FIRST, 2: SECOND, 3: NEITHER, 4: SECOND, 5: FIRST})
    found = steadiness(key, reading)
    assert (found.repeated, found.alike) == (2, 0)
    assert found.left.value == 1 and found.left.n == 4


def test_kappa_by_hand_and_as_scikit_learn_has_it() -> None:
    pairs = np.array([[0, 0], [0, 0], [1, 1], [0, 1]])
    # alike ¾; chance ¾ · ½ + ¼ · ½ = ½
    assert kappas(pairs, np.ones((1, 4)))[0] == pytest.approx(0.5)
    many = np.random.default_rng(0).integers(0, 3, (40, 2))
    assert kappas(many, np.ones((1, 40)))[0] == pytest.approx(cohen_kappa_score(*many.T))
    assert np.isnan(kappas(np.zeros((3, 2), int), np.ones((1, 3)))[0])


def test_agreement_is_over_films_that_both_answered() -> None:
    key = a_key([0, 1, 0, 1])
    one = Reading("mk", {1: FIRST, 2: SECOND, 3: FIRST})
    two = Reading("ab", {2: SECOND, 3: NEITHER, 4: FIRST})
    found = agreement(key, one, two, draws=50)
    assert found.films == 2 and found.alike.value == 0.5
    assert agreement(key, one, Reading("cd", {}), draws=50).kappa.value is None


def test_choices_are_read_from_the_command_line(tmp_path: Path) -> None:
    maps, page = write_two(tmp_path, FILMS), tmp_path / "ask.html"
    assert compare_explanations.main(["page", *maps, "--out", str(page), "--repeats", "2"]) == 0
    key = json.loads((tmp_path / "ask.key.json").read_text())
    for name, wanted in (("mk", 0), ("ab", 1)):  # one always takes "near", the other "far"
        words = {t["trial"]: "left" if t["left"] == wanted else "right" for t in key["trials"]}
        choices(tmp_path / f"{name}.json", words, page=key["page"], reader=name)
    files = [str(tmp_path / f"{n}.json") for n in ("mk", "ab")]
    out, beside = tmp_path / "read.json", str(tmp_path / "ask.key.json")
    assert compare_explanations.main(["read", *files, "--key", beside, "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    counts = [
        [p[k] for k in ("reader", "first", "second", "neither")] for p in record["preferences"]
    ]
    assert counts == [["mk", 8, 0, 0], ["ab", 0, 8, 0], ["most readers", 0, 0, 8]]
    assert [(s["repeated"], s["alike"]) for s in record["steadiness"]] == [(2, 2), (2, 2)]
    assert record["agreement"][0]["alike"]["value"] == 0
    twice = compare_explanations.main(["read", files[0], files[0], "--key", beside])
    assert twice == 1


def test_ssim_from_the_command_line(tmp_path: Path) -> None:
    maps, out = write_two(tmp_path, FILMS), tmp_path / "ssim.json"
    assert compare_explanations.main(["ssim", *maps, "--out", str(out), "--draws", "20"]) == 0
    (pair,) = json.loads(out.read_text())["pairs"]
    assert (pair["first"], pair["second"], pair["films"]) == ("near", "far", 8)
    assert compare_explanations.main(["ssim", maps[0], maps[0]]) == 1  # the same name twice
    assert compare_explanations.main(["ssim", str(out), maps[0]]) == 1  # no file of maps


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PageConfig(("a",)), "two files"),
        (lambda: PageConfig(("a", "b"), out="x.txt"), "end in .html"),
        (lambda: MapsConfig(), "either FILMS or --crops"),
        (lambda: MapsConfig(("a",), method="magic"), "--method must be one of"),
        (lambda: MapsConfig(("a",), showing=True), "--showing needs --data"),
    ],
)
def test_a_wrong_setting_is_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()

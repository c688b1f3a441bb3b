"""Scores of several networks on one scale: ranks by hand, and a screener that is fitted by them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from test_classify_screener import TARGETS, arguments, make_data, write_csv

from classify.screener import CLEARED, Screener, main
from classify.screening.guarantee import read_screening_films
from classify.screening.scores import lay_on, rank, rank_by_network
from cxr.split import Split

THIRTY = np.arange(30) / 30


def test_a_rank_is_the_share_of_normal_films_below() -> None:
    found = rank(np.array([0.0, 0.2, 0.25, 0.9]), np.array([0.4, 0.2, 0.1, 0.3]))
    assert found.tolist() == [0.0, 0.25, 0.5, 1.0]


def test_each_network_has_its_own_scale() -> None:
    # the second network's scores are all 10 higher, and it answered one more film, an abnormal one
    scores = np.concatenate([THIRTY, THIRTY + 10, [10.5]])
    networks = ["a"] * 30 + ["b"] * 31
    normal = np.array([True] * 60 + [False])
    found = rank_by_network(scores, networks, normal)
    np.testing.assert_allclose(found, [*THIRTY, *THIRTY, 0.5], atol=1e-12)


@pytest.mark.parametrize(("threshold", "cleared"), [(0.1, 2), (0.5, 14), (1.0, 29), (0.0, 0)])
def test_a_threshold_of_ranks_clears_what_has_a_lower_rank(threshold: float, cleared: int) -> None:
    # by ranks below 0.1 lie 0, 1/30 and 2/30; the film that the threshold lies on is read
    laid = lay_on(threshold, THIRTY * 7)
    assert int((laid > THIRTY * 7).sum()) == cleared


def test_a_scale_of_few_films_is_refused() -> None:
    with pytest.raises(ValueError, match=r"30 at least. Got 29"):
        lay_on(0.5, THIRTY[:29])
    with pytest.raises(ValueError, match="the network b was not trained on"):
        rank_by_network(np.zeros(31), ["a"] * 30 + ["b"], np.ones(31, bool))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of two folds, the second 3 further on the way to abnormal; all films look far more
    normal to the ensemble itself."""
    folder = make_data(tmp_path_factory.mktemp("ranks"), films=640)
    (folder / "e").mkdir()
    for target in TARGETS:
        (folder / "e" / f"{target}.safetensors").write_bytes(target.encode())
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    patients = [f"p{n // 2:03d}" for n in range(len(rows))]
    part_of = {p: "fit" if n % 5 < 2 else "calibration" for n, p in enumerate(patients[::4])}
    part_of |= {p: "fit" if n % 5 < 2 else "calibration" for n, p in enumerate(patients[2::4])}
    Split(0, part_of).save(folder / "crossed.json")
    fold_of = {p: str(n // 2 % 2) for n, p in enumerate(dict.fromkeys(patients))}
    Split(0, fold_of).save(folder / "folds.json")
    write_csv(folder / "own.csv", [moved(row, -6.0) for row in rows])
    write_csv(
        folder / "predictions.csv",
        [moved(r, 3.0 * int(fold_of[p])) for r, p in zip(rows, patients, strict=True)],
    )
    return folder


def moved(row: dict[str, str], by: float) -> dict[str, str]:
    """A film's answers further on the way to abnormal."""
    if not row["bacterial.normal"]:
        return row
    ends = {f"{t}.normal": str(float(row[f"{t}.normal"]) - by) for t in TARGETS}
    return {**row, **ends}


def fit(folder: Path, *more: str) -> int:
    split = ["--split", str(folder / "crossed.json"), "--fit_parts", "[fit]"]
    return main(["fit", *arguments(folder, *split, *more), "--sensitivity", "0.9"])


def by_ranks(folder: Path) -> list[str]:
    own = ["--own", str(folder / "own.csv"), "--own_split", str(folder / "split.json")]
    return ["--networks", str(folder / "folds.json"), *own]


def cleared_of(folder: Path) -> tuple[float, float]:
    """Shares of the normal and of the abnormal films of part test that the ensemble clears."""
    films = read_screening_films([folder / "own.csv"], folder / "films.csv")
    films = films.of_parts(folder / "split.json", ["test"])
    cleared = np.array(Screener.load(folder / "e").decide(films.logits)[1]) == CLEARED
    return float(cleared[~films.abnormal].mean()), float(cleared[films.abnormal].mean())


def test_ranks_carry_a_proof_over_to_an_ensemble_of_another_scale(world: Path) -> None:
    assert fit(world) == 0
    plain = cleared_of(world)
    assert fit(world, *by_ranks(world)) == 0
    ranked = cleared_of(world)
    assert plain[1] > 0.15  # a tenth of the abnormal was to be cleared at most
    assert ranked[0] > 0.8 and ranked[1] <= 0.1


def test_the_page_says_by_what_it_was_proven(world: Path) -> None:
    assert fit(world, *by_ranks(world)) == 0
    screener = Screener.load(world / "e")
    assert "Proven by cross-fitting" in screener.guarantee
    own = json.loads((world / "e/screener.json").read_text())["own"]
    assert 0 < own["rank"] <= 1 and own["parts"] == ["val", "calibration"]
    # a normal film of own_parts lies on the threshold
    films = read_screening_films([world / "own.csv"], world / "films.csv")
    films = films.of_parts(world / "split.json", ["val", "calibration"])
    scores = screener.score(films.logits)[~films.abnormal]
    assert own["normal_films"] == len(scores)
    assert np.abs(scores - screener.point.threshold).min() < 1e-12


def test_ranks_need_the_ensembles_own_answers(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit(world, "--networks", str(world / "folds.json"))
    assert "networks and own must be given together" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        fit(world, *by_ranks(world), "--own_parts", "[test]")
    assert "own_parts must name neither train nor test" in capsys.readouterr().err

"""The screener: fitted by patient, saved without pickle, honest about what it proves."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from classify.screener import CLEARED, READ, Screener, main
from classify.screening.guarantee import (
    OperatingPoint,
    figures_by_source,
    read_screening_films,
    screening_table,
    shares_of,
)
from classify.screening.scores import CalibratedSvm
from cxr.split import Split

TARGETS = ("bacterial", "viral")
PARTS = ("train", "val", "calibration", "test")


def make_data(folder: Path, films: int = 320, seed: int = 0) -> Path:
    """Films of 160 patients, half abnormal: predictions.csv, films.csv and split.json."""
    rng = np.random.default_rng(seed)
    columns = [f"{t}.{c}" for t in TARGETS for c in ("normal", "target", "others")]
    predictions, labels, part_of = [], [], {}
    for n in range(films):
        abnormal = n // 2 % 2 == 1
        patient = f"p{n // 2:03d}"
        part_of[patient] = PARTS[n // 4 % 4]
        shift = 2.5 if abnormal else -2.5
        logits = rng.normal([-shift / 2, shift / 2, shift / 4] * 2, 1.0)
        predictions.append(
            {
                "film": f"/films/images/{n:03d}.png",
                "status": "ok",
                "reason": "",
                **dict(zip(columns, logits, strict=True)),
                "abnormal_score": "",
                "decision": "read",
                "tier": "",
                "threshold_id": "",
            }
        )
        labels.append(
            {
                "image": f"images/{n:03d}.png",
                "mask": "",
                "source": "ab"[n // 16 % 2],
                "patient_id": patient,
                "view": "AP",
                "label": "pneumonia" if abnormal else "normal",
                "sublabel": "",
                "licence": "CC BY 4.0",
            }
        )
    predictions[5].update(status="fallback", reason="uncertain box")
    predictions[6].update(status="no_thorax", reason="a leg", **dict.fromkeys(columns, ""))
    labels[9]["label"] = "unknown"
    write_csv(folder / "predictions.csv", predictions)
    write_csv(folder / "films.csv", labels)
    Split(0, part_of).save(folder / "split.json")
    return folder


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def arguments(folder: Path, *more: str) -> list[str]:
    flags = {"labels": "films.csv", "split": "split.json", "ensemble": "e"}
    own = {flag: name for flag, name in flags.items() if f"--{flag}" not in more}
    pairs = [part for flag, name in own.items() for part in (f"--{flag}", str(folder / name))]
    return [str(folder / "predictions.csv"), *pairs, *more]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a fitted screener in e/, with members' files beside it."""
    folder = make_data(tmp_path_factory.mktemp("screener"))
    (folder / "e").mkdir()
    for target in TARGETS:
        (folder / "e" / f"{target}.safetensors").write_bytes(target.encode())
    assert main(["fit", *arguments(folder)]) == 0
    return folder


def test_without_bundles_the_screener_is_of_what_the_run_says_answered(
    fitted: Path, tmp_path: Path
) -> None:
    for name in ("predictions.csv", "films.csv", "split.json"):
        shutil.copy(fitted / name, tmp_path)
    members = {target: "a" * 64 for target in TARGETS}
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"members": members}}))
    (tmp_path / "e").mkdir()
    assert main(["fit", *arguments(tmp_path)]) == 0
    screener = Screener.load(tmp_path / "e")
    screener.require_members(members)
    with pytest.raises(ValueError, match="fitted on this model's own answers"):
        screener.require_members({**members, TARGETS[0]: "b" * 64})


def test_films_without_a_box_or_a_truth_are_left_out_and_counted(fitted: Path) -> None:
    films = read_screening_films([fitted / "predictions.csv"], fitted / "films.csv")
    assert films.left_out == {"status fallback": 1, "status no_thorax": 1, "truth unknown": 1}
    assert films.logits.shape == (317, 2, 3) and films.targets == TARGETS


def test_a_film_that_is_never_cleared_proves_nothing(fitted: Path, tmp_path: Path) -> None:
    head, *lines = (fitted / "predictions.csv").read_text().splitlines()
    lines = [f"{line},,{'it lay turned' * (n == 0)},e" for n, line in enumerate(lines)]
    path = tmp_path / "predictions.csv"
    path.write_text("\n".join([f"{head},notes,doubt,ensemble", *lines]) + "\n")
    films = read_screening_films([path], fitted / "films.csv")
    assert len(films.films) == 316
    assert films.left_out["never cleared: see column doubt"] == 1


def test_a_film_given_by_two_runs_counts_once(fitted: Path) -> None:
    films = read_screening_films([fitted / "predictions.csv"] * 2, fitted / "films.csv")
    assert len(films.films) == 317 and films.left_out["film given twice"] == 317


def test_labels_may_stand_in_several_tables(fitted: Path, tmp_path: Path) -> None:
    head, *lines = (fitted / "films.csv").read_text().splitlines()
    for name, own in (("a", lines[:100]), ("b", lines[100:])):
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *own]))
    tables = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    films = read_screening_films([fitted / "predictions.csv"], tables)
    assert len(films.films) == 317 and films.left_out["truth unknown"] == 1


def test_it_is_fitted_on_val_and_proven_on_calibration_alone(fitted: Path) -> None:
    record = json.loads((fitted / "e/screener.json").read_text())
    part_of = Split.load(fitted / "split.json").part_of
    films = read_screening_films([fitted / "predictions.csv"], fitted / "films.csv")
    count = {p: sum(part_of[x] == p for x in films.patients) for p in PARTS}
    assert sum(record["fit_films_by_source"].values()) == count["val"]
    assert sum(record["calibration_films_by_source"].values()) == count["calibration"]


def test_the_calibration_part_cannot_be_fitted_on(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments(fitted, "--fit_parts", '["val","calibration"]')])
    assert stop.value.code == 2
    assert "must not be among fit_parts" in capsys.readouterr().err


def test_too_few_calibration_films_are_not_proven(fitted: Path) -> None:
    screener = Screener.load(fitted / "e")
    assert not screener.point.proven
    assert screener.guarantee.startswith("not proven: 299 abnormal films needed, 20 given")
    assert screener.point.proven_sensitivity == pytest.approx(0.05 ** (1 / 20))


def test_no_abnormal_calibration_film_is_cleared(fitted: Path) -> None:
    films = read_screening_films([fitted / "predictions.csv"], fitted / "films.csv")
    calibration = films.of_parts(fitted / "split.json", ["calibration"])
    _, decisions, _ = Screener.load(fitted / "e").decide(calibration.logits)
    cleared = np.array(decisions) == CLEARED
    assert not (cleared & calibration.abnormal).any()
    assert (cleared & ~calibration.abnormal).sum() > 0.8 * (~calibration.abnormal).sum()


def test_a_saved_screener_decides_the_same(fitted: Path, tmp_path: Path) -> None:
    first = Screener.load(fitted / "e")
    logits = np.random.default_rng(1).normal(0, 3, (50, 2, 3))
    scores, decisions, _ = first.decide(logits)
    saved = first.save(tmp_path)
    second = Screener.load(tmp_path)
    assert np.array_equal(second.score(logits), scores)
    assert second.decide(logits)[1] == decisions and set(decisions) == {CLEARED, READ}
    assert second.threshold_id == saved.threshold_id


def test_the_score_is_a_probability_that_grows_with_the_target(fitted: Path) -> None:
    screener = Screener.load(fitted / "e")
    calm, sick = [[1.2, -1.2, -0.6]] * 2, [[-1.2, 1.2, 0.6]] * 2
    low, high = screener.score(np.array([calm, sick]))
    assert 0 <= low < 0.2 and 0.8 < high <= 1


def test_no_film_has_no_score(fitted: Path) -> None:
    assert Screener.load(fitted / "e").decide(np.zeros((0, 2, 3)))[1] == []


def test_logits_of_other_members_are_refused(fitted: Path) -> None:
    with pytest.raises(ValueError, match=r"must be \(N, 2, 3\)"):
        Screener.load(fitted / "e").score(np.zeros((4, 3, 3)))


def copy_of(fitted: Path, folder: Path) -> Path:
    for path in (fitted / "e").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_screener_for_other_members_is_refused(fitted: Path, tmp_path: Path) -> None:
    folder = copy_of(fitted, tmp_path)
    (folder / "viral.safetensors").write_bytes(b"trained anew")
    with pytest.raises(ValueError, match="not the member that the screener"):
        Screener.load(folder)


def test_a_changed_skops_file_is_refused(fitted: Path, tmp_path: Path) -> None:
    folder = copy_of(fitted, tmp_path)
    (folder / "screener.skops").write_bytes(b"PK")
    with pytest.raises(ValueError, match="not the file that"):
        Screener.load(folder)


def test_a_skops_file_with_a_foreign_type_is_refused(fitted: Path, tmp_path: Path) -> None:
    import skops.io

    folder = copy_of(fitted, tmp_path)
    digest = Screener.load(folder).sha256
    skops.io.dump(OperatingPoint(0, 0, 0, True, 0, 0, 0, 0, 0), folder / "screener.skops")
    from cxr.workdir import sha256_file

    side = folder / "screener.json"
    side.write_text(side.read_text().replace(digest, sha256_file(folder / "screener.skops")))
    with pytest.raises(ValueError, match="must hold a calibrated SVM"):
        Screener.load(folder)


def test_the_scores_are_those_of_scikit_learn(fitted: Path, root: Path) -> None:
    import skops.io

    trusted = [f"sklearn.calibration.{n}" for n in ("_CalibratedClassifier", "_SigmoidCalibration")]
    features = np.random.default_rng(1).normal(0, 3, (200, 6))
    for folder in (fitted / "e", root / "weights/ensemble_crops", root / "weights/ensemble_films"):
        path = folder / "screener.skops"
        theirs = skops.io.load(path, trusted=trusted).predict_proba(features)
        ours = CalibratedSvm.read(path.read_bytes(), str(path)).predict_proba(features)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_a_score_that_is_the_threshold_but_for_rounding_is_kept(fitted: Path) -> None:
    screener = Screener.load(fitted / "e")
    logits = np.array([[[1.2, -1.2, -0.6]] * 2])
    score = float(screener.score(logits)[0])
    for factor, decision in ((1 + 1e-13, READ), (1 - 1e-13, READ), (1 + 1e-6, CLEARED)):
        point = replace(screener.point, threshold=score * factor)
        assert replace(screener, point=point).decide(logits)[1] == [decision]


def test_a_missing_screener_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m classify\.screener fit"):
        Screener.load(tmp_path)


def test_evaluate_writes_figures_by_source(fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "test.json"
    assert main(["evaluate", *arguments(fitted, "--out", str(out))]) == 0
    report = json.loads(out.read_text())
    by_source = report["by_source"]
    assert set(by_source) == {"a", "b", "all"}
    for row in ("abnormal_kept", "normal_cleared"):
        whole = by_source["all"]["table"][row]
        assert whole == sum(by_source[s]["table"][row] for s in "ab")
    assert by_source["all"]["auroc"] > 0.9


def test_evaluate_parts_a_source_by_its_views(fitted: Path, tmp_path: Path) -> None:
    with (fitted / "films.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for n, row in enumerate(rows):
        row["view"] = "PA" if row["source"] == "a" and n % 2 else "AP"
    write_csv(tmp_path / "films.csv", rows)
    out = tmp_path / "test.json"
    more = ("--labels", str(tmp_path / "films.csv"), "--out", str(out))
    assert main(["evaluate", *arguments(fitted, *more)]) == 0
    by_source = json.loads(out.read_text())["by_source"]
    assert set(by_source) == {"a", "b", "all", "a AP", "a PA"}
    for count in ("abnormal_kept", "normal_cleared"):
        parts = [by_source[f"a {view}"]["table"][count] for view in ("AP", "PA")]
        assert sum(parts) == by_source["a"]["table"][count] and min(parts) > 0


def test_too_few_patients_to_fit_on_end_with_1(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments(fitted, "--folds", "100")]) == 1
    assert "at least 100 abnormal patients" in " ".join(capsys.readouterr().err.split())


def test_a_command_without_its_word_ends_with_2() -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2


def test_table_in_the_thesis_form_and_its_shares() -> None:
    # the thesis' internal table: 1325 of 1329 abnormal kept, 109 of 162 normals cleared
    sick = np.r_[np.ones(1329, bool), np.zeros(162, bool)]
    cleared = np.r_[np.arange(1329) >= 1325, np.arange(162) < 109]
    table = screening_table(sick, cleared)
    assert list(table.values()) == [1325, 4, 53, 109]
    assert list(table)[1:3] == ["abnormal_cleared", "normal_kept"]
    figures = shares_of(table)
    assert figures["sensitivity"]["value"] == pytest.approx(0.99699, abs=1e-5)
    assert figures["sensitivity"]["low"] == pytest.approx(0.99232, abs=1e-4)
    assert figures["specificity"]["value"] == pytest.approx(0.67284, abs=1e-5)
    assert figures["npv"]["value"] == pytest.approx(109 / 113)
    assert figures["share_cleared"]["value"] == pytest.approx(113 / 1491)


def test_shares_without_films_are_none() -> None:
    figures = shares_of(screening_table(np.ones(3, bool), np.zeros(3, bool)))
    assert figures["specificity"]["value"] is None and figures["npv"]["value"] is None


def test_a_patient_is_missed_by_any_cleared_abnormal_film(fitted: Path) -> None:
    films = read_screening_films([fitted / "predictions.csv"], fitted / "films.csv", sources=["a"])
    cleared = np.zeros(len(films.films), bool)
    both = [i for i, s in enumerate(films.abnormal) if s][:2]  # two films of one patient
    assert films.patients[both[0]] == films.patients[both[1]]
    cleared[both[0]] = True
    figures = figures_by_source(films, np.zeros(len(cleared)), cleared)["a"]
    assert figures["missed_patients"] == 1 and figures["table"]["abnormal_cleared"] == 1


def relabel(folder: Path, out: Path, change: dict[int, str], every: dict[str, str]) -> Path:
    """A copy of films.csv with the label of some films, or of all of one label, changed."""
    with (folder / "films.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["label"] = change.get(number, every.get(row["label"], row["label"]))
    write_csv(out, rows)
    return out


def figures(fitted: Path, labels: Path, *more: str) -> dict:
    out = labels.with_suffix(".json")
    flags = ["--labels", str(labels), "--out", str(out), *more]
    assert main(["evaluate", *arguments(fitted, *flags)]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    "every",
    [
        {"normal": "Normal", "pneumonia": "PNEUMONIA "},
        {"normal": "No Finding", "pneumonia": "Viral"},
        {"normal": "0", "pneumonia": "1", "unknown": ""},
        {"normal": "no_finding", "pneumonia": "other"},
    ],
)
def test_figures_do_not_hang_on_how_the_labels_are_spelt(
    fitted: Path, tmp_path: Path, every: dict[str, str]
) -> None:
    before = figures(fitted, relabel(fitted, tmp_path / "a.csv", {}, {}))
    after = figures(fitted, relabel(fitted, tmp_path / "b.csv", {}, every))
    assert after["by_source"] == before["by_source"]


def test_unknown_labels_are_no_abnormal_films_and_are_told(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    normals = [n for n in range(320) if n // 4 % 4 == 3 and n // 2 % 2 == 0]
    change = dict.fromkeys(normals[:10], "Nromal") | dict.fromkeys(normals[10:15], " ")
    before = figures(fitted, relabel(fitted, tmp_path / "a.csv", {}, {}))
    after = figures(fitted, relabel(fitted, tmp_path / "b.csv", change, {}))
    assert after["by_source"]["all"]["sensitivity"] == before["by_source"]["all"]["sensitivity"]
    films = (r["by_source"]["all"]["share_cleared"]["total"] for r in (before, after))
    assert next(films) - next(films) == 15
    assert after["left_out"]["label not known: nromal"] == 10
    assert after["left_out"]["label not known: (empty)"] == 5
    said = " ".join(capsys.readouterr().err.split())
    assert "nromal (10 films of" in said and "images/012.png" in said
    assert "left out: " in said and "(empty) 5" in said


def test_a_users_own_words_count_where_they_are_named(fitted: Path, tmp_path: Path) -> None:
    before = figures(fitted, relabel(fitted, tmp_path / "a.csv", {}, {}))
    own = relabel(fitted, tmp_path / "b.csv", {}, {"normal": "Clean lung", "pneumonia": "viral"})
    assert figures(fitted, own, "--normal", "clean_lung")["by_source"] == before["by_source"]
    one = figures(fitted, own, "--normal", "clean_lung", "--sources", '["A "]')["by_source"]
    assert one == {"a": before["by_source"]["a"]}


def test_a_screener_is_fitted_alike_on_labels_spelt_otherwise(fitted: Path, tmp_path: Path) -> None:
    labels = relabel(fitted, tmp_path / "b.csv", {3: "whatever"}, {"normal": "NORMAL "})
    flags = ["--labels", str(labels), "--ensemble", str(tmp_path / "e")]
    assert main(["fit", *arguments(fitted, *flags)]) == 0
    record = json.loads((tmp_path / "e/screener.json").read_text())
    assert record["left_out"]["label not known: whatever"] == 1
    point = Screener.load(fitted / "e").point
    assert record["operating_point"]["abnormal_patients"] == point.abnormal_patients


def test_what_the_end_needs_is_seen_before_the_fit(
    fitted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("classify.screener.fit_screener", lambda *_: pytest.fail("fitted"))
    sick = [n for n in range(320) if n // 4 % 4 == 2 and n // 2 % 2]
    labels = relabel(fitted, tmp_path / "l.csv", dict.fromkeys(sick, "normal"), {})
    assert main(["fit", *arguments(fitted, "--labels", str(labels))]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "calibration_part must hold abnormal films" in said and "Got none among 79" in said
    (tmp_path / "file").touch()
    assert main(["fit", *arguments(fitted, "--ensemble", str(tmp_path / "file/e"))]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "--ensemble must be a folder that can be written" in said

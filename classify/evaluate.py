"""python -m classify.evaluate RUN --crops runs/crops_data: members beside shortcuts, per source.

RUN is a folder of classify.run (its predictions.csv). Every row is measured on the same films:
those of the held-out part for sources that were trained on, all films of other sources.

Shortcuts are linear models on almost nothing: how far labels can be told without looking at a lung.
A network is only worth as much as it adds to these. Zech et al. 2018, DeGrave et al. 2021 and
Maguolo & Nanni 2021 show how much of a published accuracy they explain.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.table import Table

from classify.films import Case, select_cases
from classify.predictions import read_predictions
from cxr.boxes import Frame
from cxr.cli import Several, as_command, parse_config, to_plain
from cxr.data_folders import DataFolders
from cxr.film import read_film
from cxr.films_table import (
    FilmNames,
    FilmRow,
    class_of,
    has_disease,
    is_abnormal,
    is_among,
    table_rows,
    tell_unknown,
)
from cxr.rules import refusing
from cxr.split import Split
from cxr.stats import figure_of, in_words, softmax, weighted_auc, with_draws
from cxr.workdir import Workdir, console, log, write_atomic, write_json

SIDE = 8
SHORTCUTS = (
    "thumbnail of the film",
    "outside the thorax box",
    "four numbers of the box",
    "thumbnail of the crop",
)
HEAD = ("question", "what looks", "AUC [95 %]", "films", "patients")


@dataclass(frozen=True)
class EvaluateConfig:
    """Compare an ensemble with linear models that hardly look, source by source.

    Args:
        run: folders of classify.run over films of `data`; each is a row of the table.
        data: folder with films.csv and images, or several of them (the flag again for each).
        crops: folder of detect.crop over the same films, or several: the shortcuts need the thorax
            box.
        split: the split that the members were trained with.
        part: part of the split that is measured.
        trained_on: sources that the members were trained on; of others all films are measured.
        radiologists: CSV with the columns image, rsna_class and google_FINDING, what radiologists
            said of these films: what they saw takes the place of the label, and films that they
            did not see are not asked.
        draws: bootstrap draws of patients for the intervals.
        out: folder for evaluation.json and table.md.
    """

    run: tuple[str, ...] = ()
    data: Several = "../shared/data"
    crops: Several = "runs/crops_data"
    split: str = "configs/split_seed0.json"
    part: str = "test"
    trained_on: tuple[str, ...] = ("kermany",)
    radiologists: str = ""
    draws: int = 2000
    out: str = "runs/evaluate_classify"

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError(
                "RUN must name at least one folder of classify.run. Got none: "
                "python -m classify.run DATA/images/kermany --crops"
            )


ANY, REST = "any finding", "rest"
_CHILDREN = ("bacterial", "viral")  # sought in films of children alone


@dataclass(frozen=True)
class Question:
    """One question to the films of one source, or of one view (PA, AP): which are asked, and which
    are positive. `negative` may be REST, all films that do not show it; `positive` may be ANY."""

    name: str
    source: str
    positive: str  # label or sublabel
    negative: str
    view: str = ""

    def truth(self, case: Case) -> bool | None:
        """True, False, or None when the film is not asked."""
        row = case.row
        if not is_among(row.source, [self.source]) or self.view not in ("", row.view):
            return None
        if self.negative == REST:
            known = is_abnormal(row, [self.positive]) is not None
            return has_disease(row, [self.positive]) if known else None
        if self.positive == ANY:
            return is_abnormal(row)
        number = class_of(row, (self.negative, self.positive))
        return None if number is None else bool(number)


QUESTIONS = (
    Question("normal / pneumonia, kermany", "kermany", "pneumonia", "normal"),
    Question("bacterial / viral, kermany", "kermany", "bacterial", "viral"),
    Question("normal / pneumonia, nih adults", "nih", "pneumonia", "normal"),
    Question("normal / any finding, nih adults", "nih", ANY, "normal"),
    *(Question(f"normal / any finding, nih {v}", "nih", ANY, "normal", v) for v in ("PA", "AP")),
    Question("normal / tuberculosis, shenzhen adults", "shenzhen", "tuberculosis", "normal"),
    Question("normal / nodule, jsrt adults", "jsrt", "nodule", "normal"),
)


def questions_of(targets: Iterable[str]) -> tuple[Question, ...]:
    """QUESTIONS, and each finding that members seek against all other films of adults."""
    sought = [t for t in dict.fromkeys(targets) if t not in _CHILDREN]
    named = [(t, t.replace("_", " ")) for t in sought]
    return (
        *QUESTIONS,
        *(Question(f"{name} / rest, nih adults", "nih", t, REST) for t, name in named),
    )


def ensemble_score(logits: np.ndarray, targets: Sequence[str], question: Question) -> np.ndarray:
    """(N,) score of (N, M, 3) logits: one minus the mean probability of normal; the probability of
    a target against the rest; for a target against another the difference of their members'
    log-odds of target against others."""
    if question.negative == "normal":
        return 1.0 - softmax(logits)[..., 0].mean(axis=1)
    if question.negative == REST:
        return softmax(logits)[:, list(targets).index(question.positive), 1]
    lean = logits[..., 1] - logits[..., 2]
    sign = {question.positive: 1.0, question.negative: -1.0}
    return lean @ np.array([sign.get(t, 0.0) for t in targets])


def may_answer(question: Question, targets: Sequence[str]) -> bool:
    """Do these members seek what is asked for?"""
    wanted = {question.positive, question.negative} - {"normal", ANY, REST, "pneumonia"}
    return question.negative == "normal" or wanted <= set(targets)


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write evaluation.json and table.md."""
    example = "python -m classify.evaluate runs/logits_crops runs/logits_films"
    config = parse_config(EvaluateConfig, argv, example, ("run",))
    workdir = Workdir(config.out)
    with refusing():
        rows = evaluate(config)
    workdir.start(to_plain(config))
    write_json(workdir / "evaluation.json", rows)
    write_atomic(workdir / "table.md", markdown(rows))
    table = Table(*HEAD, highlight=False)
    for cells in _cells(rows):
        table.add_row(*cells)
    console.print(table)
    return 0


def evaluate(config: EvaluateConfig) -> list[dict[str, Any]]:
    """One row a question and a model; raises ValueError or OSError for files that do not fit."""
    data = DataFolders(config.data)
    table = data.rows()
    if config.radiologists:
        table = as_radiologists_say(table, config.radiologists)
    sources = sorted({q.source for q in QUESTIONS})
    tell_unknown((row for row in table if is_among(row.source, sources)), data.named("films.csv"))
    cases, left_out = select_cases(table, data, sources, False, DataFolders(config.crops))
    if left_out:
        log.info("left out: %s", ", ".join(f"{k} {v}" for k, v in left_out.items()))
    split = Split.load(config.split)
    boxed = [c for c in cases if c.crop_row is not None and c.crop_row.thorax_xyxy is not None]
    features = shortcut_features(boxed)
    runs = {Path(r).name: _logits_of(Path(r), boxed) for r in config.run}
    rows: list[dict[str, Any]] = []
    for question in questions_of(t for targets, _ in runs.values() for t in targets):
        truth = [question.truth(case) for case in boxed]
        parts = [split.part_of.get(case.patient, "") for case in boxed]
        own = is_among(question.source, config.trained_on)
        test = [
            i for i, t in enumerate(truth) if t is not None and (parts[i] == config.part or not own)
        ]
        test = [i for i in test if all(i in logits for _, logits in runs.values())]
        if len({truth[i] for i in test}) < 2:
            log.warning("%s: not asked, its films hold only one side", question.name)
            continue
        # a source never trained on is asked of the shortcuts learnt on the first one trained on
        first = next((q for q in QUESTIONS if is_among(q.source, config.trained_on)), QUESTIONS[0])
        learnt = truth if own else [first.truth(c) for c in boxed]
        train = [i for i, t in enumerate(learnt) if t is not None and parts[i] == "train"]
        scores = shortcut_scores(
            {name: values[train] for name, values in features.items()},
            np.array([bool(learnt[i]) for i in train]),
            {name: values[test] for name, values in features.items()},
        )
        for name, (targets, logits) in runs.items():
            if not may_answer(question, targets):
                continue
            stacked = np.stack([logits[i] for i in test])
            scores[f"ensemble: {name}"] = ensemble_score(stacked, targets, question)
        positive = np.array([bool(truth[i]) for i in test])
        patients = [boxed[i].patient for i in test]
        weights = with_draws(patients, config.draws)
        for what, values in scores.items():
            found = figure_of(weighted_auc(values, positive, weights), len(test))
            known: dict[str, Any] = {"question": question.name, "what": what}
            known |= {"auc": in_words(found, missing="not defined"), "value": found.value}
            known |= {"low": found.low, "high": found.high, "films": len(test)}
            rows.append({**known, "patients": len(set(patients))})
    return rows


def as_radiologists_say(rows: Sequence[FilmRow], path: str) -> list[FilmRow]:
    """The films of a table of radiologists' answers, with these as labels: RSNA's «Normal», «Lung
    Opacity» and «No Lung Opacity / Not Normal», and Google's findings (YES). Raises ValueError for
    a table without them, or of other films."""
    said: dict[str, tuple[str, str]] = {}
    for _, cells in table_rows(path, ("image", "rsna_class")):
        found = [
            c.removeprefix("google_").replace("_", "/") for c, v in cells.items() if v == "YES"
        ]
        rsna = cells["rsna_class"].casefold()
        found += ["lung opacity"] if rsna == "lung opacity" else []
        if rsna or found:
            label = "normal" if rsna == "normal" and not found else "abnormal"
            said[cells["image"]] = label, "|".join(found)
    names = FilmNames(said, (row.image for row in rows))
    matched = [(row, names.find(row.image)) for row in rows]
    known = [(row, said[name]) for row, name in matched if name is not None]
    if not known:
        raise ValueError(f"radiologists must be a table of films of data. {path} has none of them.")
    return [replace(row, label=label, sublabel=found) for row, (label, found) in known]


def _logits_of(run: Path, cases: Sequence[Case]) -> tuple[tuple[str, ...], dict[int, np.ndarray]]:
    """Targets, and case number → (M, 3) logits, of a run's predictions.csv."""
    targets, predictions = read_predictions(run / "predictions.csv")
    logits_of = {p.film: p.logits if p.complete else None for p in predictions}
    names = FilmNames(logits_of, (c.row.image for c in cases))
    found = {i: logits_of.get(names.find(c.row.image) or "") for i, c in enumerate(cases)}
    return targets, {i: logits for i, logits in found.items() if logits is not None}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *_cells(rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    names = ("question", "what", "auc", "films", "patients")
    return [[str(row[name]) for name in names] for row in rows]


# --- the shortcuts


def shortcut_features(cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Read each film once and take the four SHORTCUTS, (N, F) float64 each; aspect ratio beside
    each but the crop's. Cases need a thorax box. Raises FilmError, ValueError."""
    rows: list[list[np.ndarray]] = []
    for case in cases:
        if case.crop_row is None or case.crop_row.thorax_xyxy is None:
            raise ValueError(f"{case.row.image} has no thorax box: give crops of detect.crop.")
        pixels = read_film(case.film, for_processing=True).pixels
        box = case.crop_row.on_film(case.crop_row.thorax_xyxy, pixels.shape)
        rows.append(film_shortcuts(pixels, box))
    columns = zip(*rows, strict=True)
    return {name: np.stack(column) for name, column in zip(SHORTCUTS, columns, strict=True)}


def film_shortcuts(pixels: np.ndarray, box_xyxy: Any) -> list[np.ndarray]:
    """The SHORTCUTS of one film (H, W) in [0, 1] with its thorax box (x0, y0, x1, y1)."""
    height, width = pixels.shape
    aspect = np.array([height / width])
    frame = Frame.cut(box_xyxy)
    x0, y0, x1, y1 = (max(0, v) for v in frame.source_xyxy)
    outside = pixels.copy()
    outside[y0:y1, x0:x1] = 0
    box = np.asarray(box_xyxy, dtype=np.float64) / [width, height, width, height]
    return [
        np.concatenate([_thumbnail(pixels), aspect]),
        np.concatenate([_thumbnail(outside), aspect]),
        np.concatenate([box, aspect]),
        _thumbnail(frame.apply(pixels)),
    ]


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return small.astype(np.float64).ravel()


def fit_shortcut(features: np.ndarray, labels: np.ndarray) -> Any:
    """A logistic regression on (N, F) features, fitted to (N,) labels of two classes or more: weak
    evidence must not be fitted by heart. Raises ValueError for one class only."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    return model.fit(features, labels)


def shortcut_scores(
    train: dict[str, np.ndarray], positive: np.ndarray, test: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """(N,) scores on the test films of a logistic regression for each shortcut. `positive` (M,)
    bool is the truth of the training films. Raises ValueError for one class only."""
    if positive.all() or not positive.any():
        raise ValueError("positive must hold both classes to fit a shortcut. Got only one.")
    return {
        name: fit_shortcut(features, positive).decision_function(test[name])
        for name, features in train.items()
    }


if __name__ == "__main__":
    sys.exit(main())

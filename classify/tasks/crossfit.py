"""Logits of every patient from members that never saw the patient: enough patients to calibrate a
screener on, without any that training would miss.

A part kept for calibration alone is lost to training, and a proof of 99 % needs 299 abnormal
patients. So the patients of several parts are shared among folds, and each fold is answered by
members that were trained on the others (cross-fitting; Chernozhukov et al. 2018). What that proves
holds exactly for «train as here on a fold's rest, then screen», whose members learnt from fewer
patients than those that are shipped; for the shipped ones it holds as far as these answer no worse.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from classify.films import Case, read_split
from classify.predictions import PredictionRow, PredictionWriter
from classify.tasks.member import load_cases, member_logits, train_ensemble
from classify.tasks.settings import CrossfitConfig, TrainConfig
from cxr.cli import to_plain
from cxr.films_table import is_among
from cxr.split import Split, make_split, strata_of
from cxr.workdir import Workdir, log

REST = "aside"
FOLDS = "folds.json"  # which patients the members of which fold answered


def crossfit(config: CrossfitConfig) -> Path:
    """Train a fold after the other (or go on); returns `config.out` with predictions.csv,
    split.json and folds.json.

    Raises ValueError or OSError for what a user can mend.
    """
    workdir = Workdir(config.out)
    own = {f.name: getattr(config, f.name) for f in fields(TrainConfig)}
    every = TrainConfig(
        **{**own, "evaluate": ("val",), "cache": config.cache or str(workdir / "cache")}
    )
    cases, parts = load_cases(replace(every, evaluate=()))
    kept = read_split(config.split).part_of
    every_fold = {c.patient for c in cases if is_among(c.row.source, config.always)}
    pooled = [cases[i] for part in config.pooled for i in parts.get(part, [])]
    pooled = [case for case in pooled if case.patient not in every_fold]
    folds = _share(pooled, {str(k): 1 / config.folds for k in range(config.folds)}, config.seed)
    workdir.start(to_plain(config), config.seed)
    answered = ("fit", "calibration")
    shares = dict(zip(answered, (config.fit_share, 1 - config.fit_share), strict=True))
    chosen = _share(pooled, shares, config.seed).part_of
    rest = {p: "test" if part == "test" else REST for p, part in kept.items()}
    Split(config.seed, {**rest, **chosen}).save(workdir / "split.json")
    folds.save(workdir / FOLDS)
    with PredictionWriter(workdir / "predictions.csv", config.targets) as table:
        for fold in range(config.folds):
            film_of = [c for c in pooled if folds.part_of[c.patient] == str(fold)]
            if all(c.row.image in table.done for c in film_of):
                continue
            place = workdir / f"fold{fold}"
            others = [c for c in pooled if folds.part_of[c.patient] != str(fold)]
            parted = _share(others, {"train": 0.85, "val": 0.15}, config.seed).part_of
            held = {c.patient: "held" for c in film_of}
            path = place / "split.json"
            rest_of = {**dict.fromkeys(kept, REST), **dict.fromkeys(every_fold, "train")}
            Split(config.seed, {**rest_of, **parted, **held}).save(path)
            recipe = replace(every, split=str(path), out=str(place))
            log.info("fold %d of %d: %d films held out", fold + 1, config.folds, len(film_of))
            train_ensemble(recipe)
            films, own_parts = load_cases(recipe)
            wanted = own_parts["held"]
            logits = member_logits(recipe, films, own_parts, wanted)
            for i, row in zip(wanted, logits, strict=True):
                if films[i].row.image not in table.done:
                    table.add(_row(films[i], row))
    return Path(config.out)


def _share(cases: list[Case], shares: dict[str, float], seed: int) -> Split:
    return make_split([c.patient for c in cases], strata_of([c.row for c in cases]), shares, seed)


def _row(case: Case, logits: np.ndarray) -> PredictionRow:
    status = case.crop_row.status if case.crop_row else "ok"
    return PredictionRow(case.row.image, status, logits=logits)

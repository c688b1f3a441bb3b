"""The screener: an SVM on the members' logits that clears the definitely normal.

    python -m classify.screener fit runs/crops_all/predictions.csv --labels films.csv \\
        --split split.json --ensemble weights/ensemble_crops
    python -m classify.screener evaluate runs/crops_all/predictions.csv --labels films.csv \\
        --split split.json --ensemble weights/ensemble_crops

Who may be fitted on: the members have learnt the films of `train`, so their logits there are surer
than on any new film, and an SVM fitted there would expect that sureness. It is therefore fitted
on `val`, whose films only chose the members' epoch; C, gamma and the calibration come from
cross-fitting by patient inside it. `calibration` fixes the operating point and nothing else, so
the guarantee holds however the SVM was fitted. `test` is for `evaluate`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.class_weight import compute_sample_weight

from classify.screener_config import EvaluateConfig, FitConfig
from classify.screening.films import ScreeningFilms, read_screening_films
from classify.screening.guarantee import OperatingPoint, choose_operating_point, percent
from classify.screening.table import figures_by_source, to_rich_table
from cxr.cli import Command, parse_command, to_plain
from cxr.workdir import console, provenance, sha256_file, write_atomic, write_json

SCHEMA, VERSION = "lungfirst.screener", 1
CLEARED, READ, NOT_READ = "definitely_normal", "read", "not_read_by_model"
# All that a calibrated SVM needs beyond skops' own list; anything else in the file is refused.
TRUSTED = ["sklearn.calibration._CalibratedClassifier", "sklearn.calibration._SigmoidCalibration"]


@dataclass(frozen=True)
class Screener:
    """A calibrated SVM, its operating point, and the members that it was fitted for."""

    model: CalibratedClassifierCV
    targets: tuple[str, ...]
    point: OperatingPoint
    meta: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def threshold_id(self) -> str:
        """Names the fitted screener and its threshold in predictions.csv."""
        return f"{self.sha256[:8] or 'unsaved'}@{self.point.threshold:.6g}"

    @property
    def guarantee(self) -> str:
        """What the calibration films prove, and of which films, for people to read."""
        films = self.meta.get("calibration_films_by_source") or {}
        scope = ", ".join(f"{n} {source}" for source, n in sorted(films.items()))
        where = f" It holds for films like those of the calibration: {scope}." if scope else ""
        return self.point.sentence() + where

    def score(self, logits: np.ndarray) -> np.ndarray:
        """(N, M, 3) logits, members in the order of `targets`, to (N,) calibrated P(abnormal)."""
        logits = np.asarray(logits, dtype=np.float64)
        if logits.ndim != 3 or logits.shape[1:] != (len(self.targets), 3):
            raise ValueError(
                f"logits of Screener.score must be (N, {len(self.targets)}, 3) for the members "
                f"{', '.join(self.targets)}. Got {logits.shape} instead."
            )
        if not len(logits):
            return np.zeros(0)
        return self.model.predict_proba(logits.reshape(len(logits), -1))[:, 1]

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, list[str], str]:
        """(N, M, 3) logits to abnormal scores (N,), decisions, and the threshold's id."""
        scores = self.score(logits)
        cleared = scores < self.point.threshold
        return scores, [CLEARED if c else READ for c in cleared], self.threshold_id

    def save(self, folder: str | Path) -> Screener:
        """Write screener.skops and screener.json; returns the screener with its file's hash."""
        folder = Path(folder)
        path = write_atomic(folder / "screener.skops", skops.io.dumps(self.model))
        digest = sha256_file(path)
        write_json(
            folder / "screener.json",
            {
                "schema": SCHEMA,
                "version": VERSION,
                "sha256": digest,
                "targets": list(self.targets),
                "operating_point": self.point.to_dict(),
                **self.meta,
            },
        )
        return Screener(self.model, self.targets, self.point, self.meta, digest)

    @classmethod
    def load(cls, folder: str | Path) -> Screener:
        """Read what `save` wrote; raises FileNotFoundError, or ValueError when the files do not
        belong together or the members beside them are others than it was fitted for."""
        folder = Path(folder)
        path, side = folder / "screener.skops", folder / "screener.json"
        if not path.is_file() or not side.is_file():
            raise FileNotFoundError(
                f"{folder} holds no screener (screener.skops and screener.json). "
                "Fit one: python -m classify.screener fit PREDICTIONS --ensemble " + str(folder)
            )
        meta = json.loads(side.read_text())
        if meta.pop("schema", None) != SCHEMA or meta.pop("version", None) != VERSION:
            raise ValueError(f"{side} must be of schema {SCHEMA}, version {VERSION}.")
        if sha256_file(path) != meta.pop("sha256"):
            raise ValueError(f"{path} is not the file that {side.name} was written for. Fit again.")
        _check_members(folder, meta.get("members") or {})
        targets, point = meta.pop("targets"), OperatingPoint(**meta.pop("operating_point"))
        model = skops.io.load(path, trusted=TRUSTED)  # raises for any type not on the list
        return cls(model, tuple(targets), point, meta, sha256_file(path))


def fit_screener(films: ScreeningFilms, config: FitConfig) -> CalibratedClassifierCV:
    """Standardise → RBF SVM with class weights → sigmoid calibration, all by patient.

    Raises ValueError when a class has fewer patients than there are folds.
    """
    logits = films.logits.reshape(len(films.logits), -1)
    for name, rows in (("abnormal", films.abnormal), ("normal", ~films.abnormal)):
        patients = len({p for p, chosen in zip(films.patients, rows, strict=True) if chosen})
        if patients < config.folds:
            raise ValueError(
                f"fit_parts must hold at least {config.folds} {name} patients (one a fold). "
                f"Got {patients} instead: add a part, or give fewer --folds."
            )
    splitter = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed)
    folds = list(splitter.split(logits, films.abnormal, films.patients))
    choices = [
        make_pipeline(
            StandardScaler(), SVC(C=c, gamma=g / logits.shape[1], class_weight="balanced")
        )
        for c in config.c
        for g in config.gamma
    ]
    svm = min(choices, key=lambda choice: _pooled_loss(choice, logits, films.abnormal, folds))
    # The sigmoid is fitted on out-of-fold decision values, then one SVM on all: no ensemble of SVMs
    model = CalibratedClassifierCV(svm, ensemble=False, cv=folds, method="sigmoid")
    model.fit(logits, films.abnormal)
    return model.set_params(cv=None)  # the folds' indices are no part of the model


def _pooled_loss(
    svm: Pipeline, logits: np.ndarray, abnormal: np.ndarray, folds: list[Any]
) -> float:
    """Balanced log loss of the sigmoid on out-of-fold decision values of all folds together.

    AUROC within each fold would not see decision values that shift from fold to fold, as they do
    for a small C; one sigmoid and one threshold for all films need them not to.
    """
    values = cross_val_predict(svm, logits, abnormal, cv=folds, method="decision_function")
    sigmoid = LogisticRegression(C=1e6, class_weight="balanced").fit(values[:, None], abnormal)
    weights = compute_sample_weight("balanced", abnormal)
    return float(log_loss(abnormal, sigmoid.predict_proba(values[:, None]), sample_weight=weights))


def run_fit(config: FitConfig) -> Screener:
    """The `fit` command: fit, choose the operating point, save."""
    films = read_screening_films(config.predictions, config.labels, config.normal, config.sources)
    fit_on = films.of_parts(config.split, config.fit_parts)
    calibration = films.of_parts(config.split, [config.calibration_part])
    model = fit_screener(fit_on, config)
    members = {
        t: sha256_file(p)
        for t in films.targets
        if (p := config.ensemble / f"{t}.safetensors").is_file()
    }
    meta = {
        "members": members,
        "fit_films_by_source": fit_on.count_by_source(),
        "calibration_films_by_source": calibration.count_by_source(),
        "left_out": films.left_out,
        "scope": config.scope,
        "svm": {
            k: float(v)
            for k, v in model.estimator.get_params().items()
            if k in ("svc__C", "svc__gamma")
        },
        "config": to_plain(config),
        "provenance": provenance(members),
    }
    scores = model.predict_proba(calibration.logits.reshape(len(calibration.logits), -1))[:, 1]
    point = choose_operating_point(
        scores, calibration.abnormal, calibration.patients, config.sensitivity, config.confidence
    )
    screener = Screener(model, films.targets, point, meta).save(config.ensemble)
    console.print(
        f"fitted on {len(fit_on.logits)} films, calibrated on {len(calibration.logits)}; "
        f"threshold {point.threshold:.4g} clears {percent(point.share_cleared)} of these"
    )
    console.print(screener.guarantee, highlight=False)
    return screener


def run_evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """The `evaluate` command: print the tables, save them where asked."""
    screener = Screener.load(config.ensemble)
    films = read_screening_films(config.predictions, config.labels, config.normal, config.sources)
    if films.targets != screener.targets:
        raise ValueError(
            f"predictions must hold the members {', '.join(screener.targets)} in this "
            f"order. Got {', '.join(films.targets)} instead."
        )
    chosen = films.of_parts(config.split, [config.part]) if config.split else films
    scores, decisions, _ = screener.decide(chosen.logits)
    cleared = np.array([d == CLEARED for d in decisions], dtype=bool)
    report = figures_by_source(chosen, scores, cleared)
    for name, figures in report.items():
        console.print(to_rich_table(name, figures))
    console.print(screener.guarantee, highlight=False)
    if config.out:
        write_json(
            config.out,
            {
                "part": config.part if config.split else "all",
                "by_source": report,
                "guarantee": screener.guarantee,
                "left_out": chosen.left_out,
                "config": to_plain(config),
                "provenance": provenance(),
            },
        )
    return report


def _check_members(folder: Path, members: dict[str, str]) -> None:
    for name, digest in members.items():
        path = folder / f"{name}.safetensors"
        if path.is_file() and sha256_file(path) != digest:
            raise ValueError(
                f"{path} is not the member that the screener in {folder} was fitted for: its "
                "guarantee would not hold. Fit the screener again."
            )


COMMANDS = {
    "fit": Command(
        FitConfig,
        "python -m classify.screener fit runs/all/predictions.csv --labels films.csv "
        "--split split.json --ensemble weights/ensemble_crops",
        ("predictions",),
    ),
    "evaluate": Command(
        EvaluateConfig,
        "python -m classify.screener evaluate runs/all/predictions.csv --labels films.csv "
        "--split split.json --ensemble weights/ensemble_crops",
        ("predictions",),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 when the films or the labels do not allow it."""
    about = "Screens out the definitely normal, with a sensitivity proven on calibration films."
    config = parse_command(COMMANDS, argv, "python -m classify.screener", about)
    try:
        run_fit(config) if isinstance(config, FitConfig) else run_evaluate(config)
    except (ValueError, FileNotFoundError) as error:
        console.print(f"[red]{type(error).__name__}[/]: {error}", highlight=False, markup=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

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

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from classify.members import bundles_in
from classify.screening.guarantee import (
    OperatingPoint,
    ScreeningFilms,
    check_shares,
    choose_operating_point,
    figures_by_source,
    percent,
    read_screening_films,
    to_rich_table,
)
from classify.screening.scores import CalibratedSvm, lay_on, rank_by_network
from cxr.cli import Command, Several, as_command, as_list, parse_command, to_plain
from cxr.rules import require
from cxr.split import Split
from cxr.training.recipe import require_writable
from cxr.workdir import console, provenance, read_json, sha256_file, write_atomic, write_json

SCHEMA, VERSION = "lungfirst.screener", 1
CLEARED, READ, NOT_READ = "definitely_normal", "read", "not_read_by_model"
_CROSSED = (
    "Proven by cross-fitting: exactly for members trained as these were, on fewer patients; for "
    "these themselves as far as they answer no worse."
)
_ROUNDING = 1e-9  # a score that equals the threshold but for its last digits is not below it


@dataclass(frozen=True)
class FilmsConfig:
    """Films with members' logits and a truth.

    Args:
        predictions: predictions.csv of one or more runs.
        labels: films.csv with label, source and patient of each film, or several of them (the flag
            again for each).
        sources: use films of these sources only; none named: all.
        normal: a word that means normal in films.csv, beside the usual ones. Films whose label is
            unknown are left out and counted.
    """

    predictions: tuple[str, ...] = ()
    labels: Several = "films.csv"
    sources: tuple[str, ...] = ()
    normal: str = "normal"

    def __post_init__(self) -> None:
        rule = "PREDICTIONS must name at least one predictions.csv of a run"
        require(bool(self.predictions), rule, self.predictions)

    def films(self) -> ScreeningFilms:
        """Raises ValueError or OSError for files that do not fit."""
        return read_screening_films(self.predictions, self.labels, self.normal, self.sources)


@dataclass(frozen=True)
class FitConfig(FilmsConfig):
    """Fits the screener on members' logits, chooses its operating point and saves it.

    Args:
        split: the split that the members were trained with (JSON).
        ensemble: folder of the members; screener.skops and screener.json are written there.
        fit_parts: parts of the split to fit on. Not train: the members' logits are too sure there.
        calibration_part: part that fixes the operating point; never among fit_parts.
        networks: folds.json of classify.crossfit, where the predictions are its: the films of each
            of its parts were answered by other members. A score then counts as its rank among the
            normal calibration films that the same members answered.
        own: with networks: predictions.csv of the ensemble itself, or several. Its answers to
            normal films that it was not trained on lay the threshold on its own scale.
        own_split: the split that the ensemble was trained with (JSON).
        own_parts: parts of it that the ensemble was not trained on; never test.
        sensitivity: what the calibration films are to prove.
        confidence: of that proof, one-sided.
        scope: a sentence on whom the members learnt from, shown beside every result.
        c: values of the SVM's C to choose from, by grouped cross-validation.
        gamma: values of gamma to choose from, in units of 1 / number of logits.
        folds: folds by patient for that choice and for the calibration.
        seed: of the folds.
    """

    split: Path = Path("split.json")
    ensemble: Path = Path("weights/ensemble_crops")
    fit_parts: tuple[str, ...] = ("val",)
    calibration_part: str = "calibration"
    networks: Path | None = None
    own: Several = ""
    own_split: Path = Path("configs/split_seed0.json")
    own_parts: tuple[str, ...] = ("val", "calibration")
    sensitivity: float = 0.99
    confidence: float = 0.95
    scope: str = ""
    c: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)
    gamma: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration_part in self.fit_parts:
            raise ValueError(
                "calibration_part must not be among fit_parts: films that were fitted on prove "
                f"nothing. Got {self.calibration_part!r} in both; choose another part."
            )
        rule = "networks and own must be given together: ranks are of both"
        require(bool(self.networks) == bool(self.own), rule, (self.networks, self.own))
        odd = {"train", "test"} & set(self.own_parts)
        require(not odd, "own_parts must name neither train nor test", self.own_parts)
        check_shares(self.sensitivity, self.confidence)


@dataclass(frozen=True)
class EvaluateConfig(FilmsConfig):
    """Measures a fitted screener on films that neither it nor the members have seen.

    Args:
        split: the split that the members were trained with (JSON); with none, all films are used.
        ensemble: folder that holds screener.skops and screener.json.
        part: part of the split to measure on.
        out: JSON file for the figures; with none, they are only printed.
    """

    split: Path | None = None
    ensemble: Path = Path("weights/ensemble_crops")
    part: str = "test"
    out: Path | None = None


@dataclass(frozen=True)
class Screener:
    """A calibrated SVM, its operating point, and the members that it was fitted for; `data` are the
    bytes of its skops file."""

    model: CalibratedSvm
    targets: tuple[str, ...]
    point: OperatingPoint
    meta: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    data: bytes = b""

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
        return self.point.sentence() + where + (f" {_CROSSED}" if self.meta.get("own") else "")

    def require_members(self, members: Mapping[str, str]) -> None:
        """Raises ValueError unless it was fitted on answers of these members (target → SHA-256)."""
        fitted = self.meta.get("members") or {}
        if fitted != dict(members):
            told = ", ".join(f"{k} {v[:8]}" for k, v in fitted.items()) or "none that it knows of"
            raise ValueError(
                "the screener of --ensemble must be fitted on this model's own answers. It was on "
                f"those of {told}: python -m classify.screener fit RUN/predictions.csv --ensemble …"
            )

    def score(self, logits: np.ndarray) -> np.ndarray:
        """(N, M, 3) logits, members in the order of `targets`, to (N,) calibrated P(abnormal)."""
        logits = np.asarray(logits, dtype=np.float64)
        shape = f"(N, {len(self.targets)}, 3) for the members {', '.join(self.targets)}"
        fits = logits.ndim == 3 and logits.shape[1:] == (len(self.targets), 3)
        require(fits, f"logits of Screener.score must be {shape}", logits.shape)
        return _scores(self.model, logits)

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, list[str], str]:
        """(N, M, 3) logits to abnormal scores (N,), decisions, and the threshold's id."""
        scores = self.score(logits)
        cleared = scores < self.point.threshold * (1 - _ROUNDING)
        return scores, [CLEARED if c else READ for c in cleared], self.threshold_id

    def save(self, folder: str | Path) -> Screener:
        """Write screener.skops and screener.json; returns the screener with its file's hash."""
        digest = hashlib.sha256(self.data).hexdigest()
        write_atomic(Path(folder) / "screener.skops", self.data)
        about = {"schema": SCHEMA, "version": VERSION, "sha256": digest}
        known = {"targets": list(self.targets), "operating_point": self.point.to_dict()}
        write_json(Path(folder) / "screener.json", {**about, **known, **self.meta})
        return replace(self, sha256=digest)

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
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest != meta.pop("sha256"):
            raise ValueError(f"{path} is not the file that {side.name} was written for. Fit again.")
        for name, known in (meta.get("members") or {}).items():
            member = folder / f"{name}.safetensors"
            if member.is_file() and sha256_file(member) != known:
                raise ValueError(
                    f"{member} is not the member that the screener in {folder} was fitted for: its "
                    "guarantee would not hold. Fit the screener again."
                )
        targets, point = meta.pop("targets"), OperatingPoint(**meta.pop("operating_point"))
        model = CalibratedSvm.read(data, str(path))
        return cls(model, tuple(targets), point, meta, digest, data)


def fit_screener(films: ScreeningFilms, config: FitConfig) -> Any:
    """A CalibratedClassifierCV: standardise → RBF SVM with class weights → sigmoid, all by patient.
    Raises ValueError when a class has fewer patients than there are folds."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

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
    svms = (
        SVC(C=c, gamma=g / logits.shape[1], class_weight="balanced")
        for c in config.c
        for g in config.gamma
    )
    choices = [make_pipeline(StandardScaler(), svm) for svm in svms]
    svm = min(choices, key=lambda choice: _pooled_loss(choice, logits, films.abnormal, folds))
    # The sigmoid is fitted on out-of-fold decision values, then one SVM on all: no ensemble of SVMs
    model = CalibratedClassifierCV(svm, ensemble=False, cv=folds, method="sigmoid")
    model.fit(logits, films.abnormal)
    return model.set_params(cv=None)  # the folds' indices are no part of the model


def _pooled_loss(svm: Any, logits: np.ndarray, abnormal: np.ndarray, folds: list[Any]) -> float:
    """Balanced log loss of the sigmoid on out-of-fold decision values of all folds together. AUROC
    within each fold would not see decision values that shift from fold to fold, as they do for a
    small C; one sigmoid and one threshold for all films need them not to."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import cross_val_predict
    from sklearn.utils.class_weight import compute_sample_weight

    values = cross_val_predict(svm, logits, abnormal, cv=folds, method="decision_function")
    sigmoid = LogisticRegression(C=1e6, class_weight="balanced").fit(values[:, None], abnormal)
    weights = compute_sample_weight("balanced", abnormal)
    return float(log_loss(abnormal, sigmoid.predict_proba(values[:, None]), sample_weight=weights))


def calibrate(
    model: Any, calibration: ScreeningFilms, config: FitConfig, meta: dict[str, Any]
) -> Screener:
    """The fitted model with the operating point that these films prove, saved among the members;
    `meta` is noted beside it. Raises ValueError for too few films."""
    import skops.io

    data = skops.io.dumps(model)
    svm = CalibratedSvm.read(data, "the fitted screener")
    scores = _scores(svm, calibration.logits)
    if config.networks:
        by = Split.load(config.networks).part_of
        networks = [by[patient] for patient in calibration.patients]
        scores = rank_by_network(scores, networks, ~calibration.abnormal)
    point = choose_operating_point(
        scores, calibration.abnormal, calibration.patients, config.sensitivity, config.confidence
    )
    if config.networks:
        films = replace(config, predictions=tuple(as_list(config.own))).films()
        films = films.of_parts(config.own_split, config.own_parts)
        own = _scores(svm, films.logits)[~films.abnormal]  # of films it was not trained on
        told = {"rank": point.threshold, "normal_films": len(own), "parts": list(config.own_parts)}
        point, meta = replace(point, threshold=lay_on(point.threshold, own)), {**meta, "own": told}
    members = {path.stem: sha256_file(path) for path in bundles_in(config.ensemble)}
    members = members or _members_of_runs(config.predictions)
    meta = {"members": members, **meta, "provenance": provenance(members)}
    return Screener(svm, calibration.targets, point, meta, data=data).save(config.ensemble)


def _members_of_runs(predictions: Sequence[str]) -> dict[str, str]:
    """Target → SHA-256 of what answered in these runs; raises ValueError for other members."""
    found: dict[str, str] = {}
    for path in predictions:
        record = Path(path).parent / "run.json"
        known = read_json(record) if record.is_file() else {}
        own = dict(known.get("settings", {}).get("members", {}))
        rule = "predictions must all come from the same members"
        require(not found or not own or own == found, rule, str(path))
        found = found or own
    return found


def _scores(svm: CalibratedSvm, logits: np.ndarray) -> np.ndarray:
    """(N, M, 3) logits to (N,) P(abnormal)."""
    return svm.predict_proba(logits.reshape(len(logits), 3 * logits.shape[1]))[:, 1]


def run_fit(config: FitConfig) -> Screener:
    """The `fit` command: fit, choose the operating point, save."""
    films = config.films()
    fit_on = films.of_parts(config.split, config.fit_parts)
    calibration = films.of_parts(config.split, [config.calibration_part])
    if not calibration.abnormal.any():
        raise ValueError(
            f"calibration_part must hold abnormal films, or nothing can be proven. Got none among "
            f"{len(calibration.films)} of {config.calibration_part!r}: check split and labels."
        )
    require_writable(config.ensemble, name="--ensemble")
    model = fit_screener(fit_on, config)
    chosen = model.estimator.get_params()
    meta = {
        "fit_films_by_source": fit_on.count_by_source(),
        "calibration_films_by_source": calibration.count_by_source(),
        "left_out": films.left_out,
        "scope": config.scope,
        "svm": {name: float(chosen[name]) for name in ("svc__C", "svc__gamma")},
        "config": to_plain(config),
    }
    screener = calibrate(model, calibration, config, meta)
    point = screener.point
    console.print(
        f"fitted on {len(fit_on.logits)} films, calibrated on {len(calibration.logits)}; "
        f"threshold {point.threshold:.4g} clears {percent(point.share_cleared)} of these"
    )
    console.print(screener.guarantee, highlight=False)
    _tell_left_out(films)
    return screener


def run_evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """The `evaluate` command: print the tables, save them where asked."""
    screener = Screener.load(config.ensemble)
    films = config.films()
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
    _tell_left_out(chosen)
    if config.out:
        found = {
            "part": config.part if config.split else "all",
            "by_source": report,
            "guarantee": screener.guarantee,
            "left_out": chosen.left_out,
            "config": to_plain(config),
            "provenance": provenance(),
        }
        write_json(config.out, found)
    return report


def _tell_left_out(films: ScreeningFilms) -> None:
    if films.left_out:
        reasons = ", ".join(f"{why} {n}" for why, n in sorted(films.left_out.items()))
        console.print(f"left out: {reasons}", highlight=False, markup=False)


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


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 when the films or the labels do not allow it."""
    about = "Screens out the definitely normal, with a sensitivity proven on calibration films."
    config = parse_command(COMMANDS, argv, "python -m classify.screener", about)
    try:
        run_fit(config) if isinstance(config, FitConfig) else run_evaluate(config)
    except (ValueError, FileNotFoundError) as error:
        console.print(f"[red]error[/]: {error}", highlight=False, markup=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

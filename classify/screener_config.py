"""What `python -m classify.screener fit` and `evaluate` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FitConfig:
    """Fits the screener on members' logits, chooses its operating point and saves it.

    Args:
        predictions: predictions.csv of one or more runs.
        labels: films.csv with label, source and patient of each film.
        split: the split that the members were trained with (JSON).
        ensemble: folder of the members; screener.skops and screener.json are written there.
        fit_parts: parts of the split to fit on. Not train: the members' logits are too sure there.
        calibration_part: part that fixes the operating point; never among fit_parts.
        sources: use films of these sources only; none named: all.
        normal: the label in films.csv that means normal. Films labelled unknown are left out.
        sensitivity: what the calibration films are to prove.
        confidence: of that proof, one-sided.
        scope: a sentence on whom the members learnt from, shown beside every result.
        c: values of the SVM's C to choose from, by grouped cross-validation.
        gamma: values of gamma to choose from, in units of 1 / number of logits.
        folds: folds by patient for that choice and for the calibration.
        seed: of the folds.
    """

    predictions: tuple[str, ...] = ()
    labels: Path = Path("films.csv")
    split: Path = Path("split.json")
    ensemble: Path = Path("weights/ensemble_crops")
    fit_parts: tuple[str, ...] = ("val",)
    calibration_part: str = "calibration"
    sources: tuple[str, ...] = ()
    normal: str = "normal"
    sensitivity: float = 0.99
    confidence: float = 0.95
    scope: str = ""
    c: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)
    gamma: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.calibration_part in self.fit_parts:
            raise ValueError(
                "calibration_part must not be among fit_parts: films that were fitted on prove "
                f"nothing. Got {self.calibration_part!r} in both; choose another part."
            )
        for name in ("sensitivity", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must lie between 0 and 1, both excluded. "
                    f"Got {getattr(self, name)} instead."
                )
        if not self.predictions:
            raise ValueError("PREDICTIONS must name at least one predictions.csv of a run.")


@dataclass(frozen=True)
class EvaluateConfig:
    """Measures a fitted screener on films that neither it nor the members have seen.

    Args:
        predictions: predictions.csv of one or more runs.
        labels: films.csv with label, source and patient of each film.
        split: the split that the members were trained with (JSON); with none, all films are used.
        ensemble: folder that holds screener.skops and screener.json.
        part: part of the split to measure on.
        sources: use films of these sources only; none named: all.
        normal: the label in films.csv that means normal.
        out: JSON file for the figures; with none, they are only printed.
    """

    predictions: tuple[str, ...] = ()
    labels: Path = Path("films.csv")
    split: Path | None = None
    ensemble: Path = Path("weights/ensemble_crops")
    part: str = "test"
    sources: tuple[str, ...] = ()
    normal: str = "normal"
    out: Path | None = None

    def __post_init__(self) -> None:
        if not self.predictions:
            raise ValueError("PREDICTIONS must name at least one predictions.csv of a run.")

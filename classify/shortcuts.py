"""Linear models on almost nothing: how far labels can be told without looking at a lung.

A network is only worth as much as it adds to these. Zech et al. 2018, DeGrave et al. 2021 and
Maguolo & Nanni 2021 show how much of a published accuracy they explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cxr.boxes import Frame
from cxr.film import read_film

if TYPE_CHECKING:
    from classify.films import Case  # loads torch, which nothing here needs

SIDE = 8
NAMES = (
    "thumbnail of the film",
    "outside the thorax box",
    "four numbers of the box",
    "thumbnail of the crop",
)


def shortcut_features(cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Read each film once and take the four shortcuts of NAMES, (N, F) float64 each; aspect ratio
    beside each but the crop's. Cases need a thorax box. Raises FilmError, ValueError."""
    rows: list[list[np.ndarray]] = []
    for case in cases:
        if case.crop_row is None or case.crop_row.thorax_xyxy is None:
            raise ValueError(f"{case.row.image} has no thorax box: give crops of detect.crop.")
        pixels = read_film(case.film, for_processing=True).pixels
        box = case.crop_row.on_film(case.crop_row.thorax_xyxy, pixels.shape)
        rows.append(film_shortcuts(pixels, box))
    columns = zip(*rows, strict=True)
    return {name: np.stack(column) for name, column in zip(NAMES, columns, strict=True)}


def film_shortcuts(pixels: np.ndarray, box_xyxy: Any) -> list[np.ndarray]:
    """The shortcuts of NAMES of one film (H, W) in [0, 1] with its thorax box (x0, y0, x1, y1)."""
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
    """(N,) scores on the test films of a logistic regression for each shortcut.

    `positive` (M,) bool is the truth of the training films. Raises ValueError for one class only.
    """
    if positive.all() or not positive.any():
        raise ValueError("positive must hold both classes to fit a shortcut. Got only one.")
    return {
        name: fit_shortcut(features, positive).decision_function(test[name])
        for name, features in train.items()
    }

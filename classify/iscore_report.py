"""What a feature selection leaves: iscore.json, and AUC against the number of kept features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from classify.features.select import ORDERS, Point, Selection
from cxr.plots import LINES, new_figure, write_figure
from cxr.workdir import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOOKS = {"i_score": LINES[0], "single": LINES[1], "random": ("#666666", "^:")}


def write_selection(folder: str | Path, selection: Selection) -> Path:
    """iscore.json and iscore.png."""
    folder = Path(folder)
    write_json(folder / "iscore.json", selection.to_dict())
    draw_selection(selection, folder / "iscore.png")
    return folder


def draw_selection(selection: Selection, path: str | Path) -> Path:
    """Validation AUC, by which the number was chosen, and test AUC with intervals by patient."""
    figure = new_figure(9.5, 3.9)
    axes = figure.subplots(1, 2, sharey=True)
    for name, words in ORDERS.items():
        points = [p for p in selection.points if p.order == name]
        _draw(axes, points, words, *_LOOKS[name])
    for axis, title in zip(
        axes, ("validation films: chooses", "test films: reported"), strict=True
    ):
        axis.axvline(selection.kept, color="black", linewidth=0.8)
        axis.axhline(0.5, color="grey", linestyle="--", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set(title=title, xlabel=f"kept features (chosen: {selection.kept})")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("macro AUC" if len(selection.classes) > 2 else "AUC")
    axes[1].legend(frameon=False, fontsize=8, loc="lower right")
    return write_figure(figure, Path(path))


def _draw(
    axes: Sequence[Axes], points: Sequence[Point], words: str, colour: str, style: str
) -> None:
    kept = [p.kept for p in points]
    validation = [np.nan if p.validation_auc is None else p.validation_auc for p in points]
    intervals = [(p.test_auc.value, p.test_auc.low, p.test_auc.high) for p in points]
    test = np.array([[np.nan if v is None else v for v in one] for one in intervals])
    axes[0].plot(kept, validation, style, color=colour, label=words, markersize=4)
    axes[1].plot(kept, test[:, 0], style, color=colour, label=words, markersize=4)
    if len(points):
        axes[1].fill_between(kept, test[:, 1], test[:, 2], color=colour, alpha=0.12, linewidth=0)

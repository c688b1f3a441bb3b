"""Pictures of a training: curves over epochs, and what the decoder restored."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cxr.workdir import write_atomic


def draw_curves(
    history: Sequence[dict[str, float]], path: Path, title: str, kept: int | None = None
) -> Path:
    """Loss and validation AUC of each epoch; a dashed line where a new phase begins, a dotted one
    at the kept epoch (`kept` counts from 0)."""
    figure = Figure(figsize=(9, 3.7), layout="constrained")
    losses, aucs = figure.subplots(1, 2)
    for key, name in (("train_loss", "training"), ("val_loss", "validation")):
        losses.plot(*_line(history, key), label=name, marker=".")
    for key, name in (("val_auc", "macro AUC"), ("val_accuracy", "accuracy")):
        aucs.plot(*_line(history, key), label=name, marker=".")
    for axis, name in ((losses, "loss"), (aucs, "of the validation films")):
        for i in range(1, len(history)):
            if history[i].get("phase") != history[i - 1].get("phase"):
                axis.axvline(i + 0.5, color="grey", linestyle="--", linewidth=1)
        if kept is not None:
            axis.axvline(kept + 1, color="grey", linestyle=":", linewidth=1, label="kept")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="epoch", ylabel=name)
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    return write_figure(figure, path)


def _line(history: Sequence[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Epochs from 1 on and the values of `key`, with a gap before each new phase."""
    xs: list[float] = []
    ys: list[float] = []
    for i, row in enumerate(history):
        if i and row.get("phase") != history[i - 1].get("phase"):
            xs.append(i + 0.5)
            ys.append(np.nan)
        xs.append(i + 1.0)
        ys.append(row.get(key, np.nan))
    return xs, ys


def draw_panels(
    images: np.ndarray, goals: np.ndarray, restored: np.ndarray, names: Sequence[str], path: Path
) -> Path:
    """Each film in a column: image, target region, restored; all (N, h, w) in [0, 1]."""
    columns = len(images)
    figure = Figure(figsize=(1.9 * columns + 0.6, 6.0), layout="constrained")
    axes = figure.subplots(3, columns, squeeze=False)
    rows = (("image", images), ("target region", goals), ("restored", restored))
    for row, (label, pictures) in enumerate(rows):
        for column in range(columns):
            axis = axes[row, column]
            axis.imshow(pictures[column], cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(names[column], fontsize=9)
        axes[row, 0].set_ylabel(label)
    return write_figure(figure, path)


def write_figure(figure: Figure, path: Path) -> Path:
    """The figure as PNG, atomically."""
    FigureCanvasAgg(figure)  # drawn without pyplot: no global state, no window
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return write_atomic(path, buffer.getvalue())

"""Pictures drawn by matplotlib, which is loaded when the first is drawn; never through pyplot,
which keeps every figure it ever made."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr.workdir import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, each with a mark and a line style: told apart without colour too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = tuple(zip(COLOURS, ("o-", "s--", "^:", "D-.", "v-", "P--"), strict=True))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def write_figure(figure: Figure, path: str | Path, dpi: int = 110) -> Path:
    """The figure as PNG, atomically."""
    return write_atomic(path, to_png(figure, dpi))


def draw_confusion(
    counts: np.ndarray | Sequence[Sequence[int]],
    truths: Sequence[str],
    answers: Sequence[str],
    path: str | Path,
    title: str,
) -> Path:
    """(T, A) films as PNG: true classes in rows, answers in columns.

    The shade is the share of its row, so that a rare class is seen as well as a common one.
    """
    counts = np.asarray(counts)
    if counts.shape != (len(truths), len(answers)):
        raise ValueError(
            f"counts must be ({len(truths)}, {len(answers)}), one row a true class. "
            f"Got {counts.shape} instead."
        )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows, columns = counts.shape
    figure = new_figure(1.8 + 1.3 * columns, 1.6 + 1.0 * rows)
    panel = figure.subplots()
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    panel.set_xticks(range(columns), answers)
    panel.set_yticks(range(rows), truths)
    panel.set(xlabel="answer", ylabel="truth", title=title)
    for row, column in np.ndindex(rows, columns):
        text = f"{counts[row, column]}\n{100 * shares[row, column]:.0f} %"
        colour = "white" if shares[row, column] > 0.5 else "black"
        panel.text(column, row, text, ha="center", va="center", color=colour)
    return write_figure(figure, path, dpi=130)


History = Sequence[Mapping[str, float]]


def draw_curves(history: History, path: Path, title: str, kept: int | None = None) -> Path:
    """Loss and validation AUC of each epoch; a dashed line where a new phase begins, a dotted one
    at the kept epoch (`kept` counts from 0)."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9, 3.7)
    losses, aucs = figure.subplots(1, 2)
    starts = [
        i for i in range(1, len(history)) if history[i].get("phase") != history[i - 1].get("phase")
    ]
    _lines(losses, history, {"train_loss": "training", "val_loss": "validation"}, starts)
    _lines(aucs, history, {"val_auc": "macro AUC", "val_accuracy": "accuracy"}, starts)
    for axis, name in ((losses, "loss"), (aucs, "of the validation films")):
        for i in starts:
            axis.axvline(i + 0.5, color="grey", linestyle="--", linewidth=1)
        if kept is not None:
            axis.axvline(kept + 1, color="grey", linestyle=":", linewidth=1, label="kept")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="epoch", ylabel=name)
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    return write_figure(figure, path)


def draw_restoring(history: History, path: Path) -> Path:
    """The loss of each epoch of a restoration, and as a dashed line that of the distorted films
    themselves."""
    figure = new_figure(5.5, 3.6)
    axis = figure.subplots()
    epochs = [row["epoch"] + 1 for row in history]
    for key, label in (("train_loss", "training"), ("val_loss", "validation")):
        axis.plot(epochs, [row.get(key, np.nan) for row in history], marker=".", label=label)
    untouched = [row["val_untouched"] for row in history]
    axis.plot(epochs, untouched, color="grey", linestyle="--", label="distorted films as they are")
    axis.set(xlabel="epoch", ylabel="1 − SSIM", ylim=(0, None))
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    return write_figure(figure, path)


def draw_history(history: History, names: Sequence[str], path: Path) -> Path:
    """One panel a name over the epochs, as PNG; epochs that have no such value are left out."""
    figure = new_figure(4.5 * len(names), 3.2)
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        points = [(row["epoch"] + 1, row[name]) for row in history if name in row]
        panel.plot(*zip(*points, strict=True), marker=".") if points else None
        panel.set(xlabel="epoch", title=name.replace("_", " "))
        panel.grid(alpha=0.3)
    return write_figure(figure, path)


def _lines(axis: Axes, history: History, names: Mapping[str, str], starts: list[int]) -> None:
    """A line a key of `names` over the epochs from 1 on, with a gap before each start."""
    xs = np.insert(np.arange(len(history)) + 1.0, starts, np.array(starts) + 0.5)
    for key, label in names.items():
        values = np.array([row.get(key, np.nan) for row in history], float)
        axis.plot(xs, np.insert(values, starts, np.nan), label=label, marker=".")


def draw_panels(
    images: np.ndarray, goals: np.ndarray, restored: np.ndarray, names: Sequence[str], path: Path
) -> Path:
    """Each film in a column: image, target region, restored; all (N, h, w) in [0, 1]."""
    columns = len(images)
    figure = new_figure(1.9 * columns + 0.6, 6.0)
    axes: Any = figure.subplots(3, columns, squeeze=False)
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

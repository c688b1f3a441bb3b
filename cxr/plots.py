"""The picture of a confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cxr.workdir import write_atomic


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
    from matplotlib.figure import Figure  # no pyplot: it keeps every figure it ever made

    counts = np.asarray(counts)
    if counts.shape != (len(truths), len(answers)):
        raise ValueError(
            f"counts must be ({len(truths)}, {len(answers)}), one row a true class. "
            f"Got {counts.shape} instead."
        )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows, columns = counts.shape
    figure = Figure(figsize=(1.8 + 1.3 * columns, 1.6 + 1.0 * rows), layout="constrained")
    panel = figure.subplots()
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    panel.set_xticks(range(columns), answers)
    panel.set_yticks(range(rows), truths)
    panel.set(xlabel="answer", ylabel="truth", title=title)
    for row, column in np.ndindex(rows, columns):
        text = f"{counts[row, column]}\n{100 * shares[row, column]:.0f} %"
        colour = "white" if shares[row, column] > 0.5 else "black"
        panel.text(column, row, text, ha="center", va="center", color=colour)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return write_atomic(path, buffer.getvalue())

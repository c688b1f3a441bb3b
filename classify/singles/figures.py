"""Answers of a single network, and the figures that are made from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from classify.films import Case
from classify.preprocess import to_input
from classify.singles.config import SingleConfig
from classify.singles.data import film_loader
from cxr.answers import Answer
from cxr.devices import pick_device
from cxr.plots import draw_confusion
from cxr.stats import Report, classification_report, softmax


def answer_films(
    net: nn.Module,
    config: SingleConfig,
    cases: Sequence[Case],
    labels: Sequence[int],
    images: np.ndarray,
    indices: Sequence[int],
) -> list[Answer]:
    """What a network says to the films `indices`; its mode is evaluation afterwards."""
    device = pick_device(config.device)
    net = net.eval().to(device)
    logits = []
    with torch.inference_mode():
        for batch in film_loader(config, images, labels, indices):
            x = to_input(batch["image"].to(device).float() / 255, config.preprocess)
            logits.append(net(x).float().cpu().numpy())
    scores = softmax(np.concatenate(logits))
    return [
        Answer(
            cases[i].row.image,
            cases[i].patient,
            cases[i].row.source,
            config.classes[labels[i]],
            tuple(float(v) for v in row),
        )
        for i, row in zip(indices, scores, strict=True)
    ]


def report_of(
    classes: Sequence[str], answers: Sequence[Answer], draws: int = 1000, seed: int = 0
) -> Report:
    """Figures of an answers.csv, with intervals by patient; the answer is the highest score."""
    scores = np.array([answer.scores for answer in answers]).reshape(-1, len(classes))
    logits = np.log(np.maximum(scores, np.finfo(float).tiny))
    labels = [list(classes).index(answer.truth) for answer in answers]
    patients = [answer.patient for answer in answers]
    return classification_report(logits, labels, patients, classes, draws, seed)


def draw_report(report: Report, path: Path) -> None:
    """The confusion matrix of a report as a picture."""
    right = "?" if report.accuracy.value is None else f"{report.accuracy.value:.3f}"
    draw_confusion(
        report.confusion,
        report.classes,
        report.classes,
        path,
        f"{report.films} tested films, accuracy {right}",
    )

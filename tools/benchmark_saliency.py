"""The saliency rows of tools/benchmark.py: maps of one member against pytorch-grad-cam as it is."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_grad_cam import GradCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from classify.ensemble import Ensemble
from classify.saliency.hooks import saliency_layer
from classify.saliency.maps import saliency_maps
from classify.saliency.methods import SCORE_BATCH, TOP_K
from classify.saliency.score import rank_correlation

TARGET = 1  # order of a member's logits: NORMAL, TARGET, OTHERS

# a name, what is timed in round n, and how many films that does
CountedTimer = tuple[str, Callable[[int], Any], int]


def prepare_crops(
    crops: list[np.ndarray], ensemble_folder: str | Path, batch: int
) -> tuple[nn.Module, torch.Tensor]:
    """The first member and so many crops as its input, taken over again where there are fewer."""
    ensemble = Ensemble.load(ensemble_folder, "cpu")
    member = ensemble.member(ensemble.targets[0])
    prepared, _ = ensemble.prepare([crops[n % len(crops)] for n in range(batch)])
    return member, prepared


def gradient_timers(member: nn.Module, crops: torch.Tensor) -> list[CountedTimer]:
    """Grad-CAM by the library as its README has it, and by us with and without a backward pass."""
    number = len(crops)
    everyone = [TARGET] * number

    def library(batch: torch.Tensor) -> None:
        with as_a_user_has_it(member):
            cam = GradCAM(model=member, target_layers=[saliency_layer(member)])
            cam(input_tensor=batch, targets=[ClassifierOutputTarget(TARGET)] * len(batch))
            cam.activations_and_grads.release()

    def alone(n: int) -> torch.Tensor:
        return crops[n % number, None]

    def forward(_: int) -> None:
        with torch.inference_mode():
            member(crops)

    return [
        ("pytorch-grad-cam, Grad-CAM film by film", lambda n: library(alone(n)), 1),
        (f"pytorch-grad-cam, Grad-CAM of {number} films", lambda _: library(crops), number),
        (
            f"lungfirst, Grad-CAM of {number} films, backward pass to the layer",
            lambda _: saliency_maps(member, crops, everyone, closed_form=False),
            number,
        ),
        (
            "lungfirst, Grad-CAM film by film, closed form",
            lambda n: saliency_maps(member, alone(n), [TARGET], closed_form=True),
            1,
        ),
        (
            f"lungfirst, Grad-CAM of {number} films, closed form",
            lambda _: saliency_maps(member, crops, everyone, closed_form=True),
            number,
        ),
        (f"the member's forward pass alone, {number} films", forward, number),
    ]


def score_timers(member: nn.Module, crops: torch.Tensor) -> list[CountedTimer]:
    """Score-CAM of one film by the library, by us over all channels, and over the strongest."""
    number = len(crops)

    def library(n: int) -> None:
        # with the same batch size as ours, and its progress bar out of the way
        with contextlib.redirect_stderr(io.StringIO()):
            cam = ScoreCAM(model=member, target_layers=[saliency_layer(member)])
            cam.batch_size = SCORE_BATCH
            with torch.inference_mode():
                cam(input_tensor=crops[n % number, None], targets=[ClassifierOutputTarget(TARGET)])
            cam.activations_and_grads.release()

    def ours(n: int, top_k: int | None) -> None:
        saliency_maps(member, crops[n % number, None], [TARGET], "score_cam", top_k=top_k)

    return [
        ("pytorch-grad-cam, Score-CAM, all channels", library, 1),
        ("lungfirst, Score-CAM, all channels", lambda n: ours(n, None), 1),
        (f"lungfirst, Score-CAM, {TOP_K} channels", lambda n: ours(n, TOP_K), 1),
    ]


def rank_correlations(member: nn.Module, crops: torch.Tensor, films: int) -> list[float]:
    """Of each film's Score-CAM over the strongest channels with that over all."""
    crops = crops[:films]
    return [round(float(r), 4) for r in rank_correlation(member, crops, [TARGET] * len(crops))]


@contextlib.contextmanager
def as_a_user_has_it(member: nn.Module) -> Iterator[None]:
    """Gradients of all parameters wanted, as in a net fresh from its file; gone afterwards."""
    wanted = [(p, p.requires_grad) for p in member.parameters()]
    for parameter, _ in wanted:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
            parameter.grad = None

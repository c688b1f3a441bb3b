"""Maps of one member: ours against pytorch-grad-cam."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benching.timing import Group, Timer, time_in_turns

TARGET = 1  # order of a member's logits: NORMAL, TARGET, OTHERS


def saliency_rows(
    crops: Sequence[np.ndarray], ensemble: Any, batch_size: int, films: int, score_films: int
) -> tuple[list[Group], list[float]]:
    """Rows for Grad-CAM and for Score-CAM of one member against pytorch-grad-cam as it is, and the
    rank correlations of Score-CAM over the strongest channels with that over all."""
    from classify.audit.randomise import rank_correlation
    from classify.saliency import TOP_K
    from classify.saliency.maps import saliency_maps

    member = ensemble.member(ensemble.targets[0])
    # as many crops as a batch needs, taken over again where there are fewer
    batch, _ = ensemble.prepare([crops[n % len(crops)] for n in range(batch_size)])
    # each round of Grad-CAM does several batches: a third of the films is enough
    groups = [time_in_turns(gradient_timers(member, batch), max(1, films // 3))]
    if not score_films:
        return groups, []
    groups.append(time_in_turns(score_timers(member, batch), score_films))
    few = batch[:score_films]
    asked = member, few, [TARGET] * len(few), "score_cam"
    pairs = zip(*(saliency_maps(*asked, top_k=k) for k in (TOP_K, None)), strict=True)
    return groups, [round(rank_correlation(a, b), 4) for a, b in pairs]


def by_library(method: str, member: Any, films: Any, **settings: Any) -> None:
    """Maps of the films by a class of pytorch-grad-cam, as its README has it."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from classify.saliency.hooks import saliency_layer

    cam = getattr(pytorch_grad_cam, method)(model=member, target_layers=[saliency_layer(member)])
    vars(cam).update(settings)
    cam(input_tensor=films, targets=[ClassifierOutputTarget(TARGET)] * len(films))
    cam.activations_and_grads.release()


def gradient_timers(member: Any, crops: Any) -> list[Timer]:
    """Grad-CAM by the library, and by us with and without a backward pass."""
    import torch

    from classify.saliency.maps import saliency_maps

    def library(films: Any) -> None:
        with as_a_user_has_it(member):
            by_library("GradCAM", member, films)

    def ours(films: Any, closed_form: bool) -> None:
        saliency_maps(member, films, [TARGET] * len(films), closed_form=closed_form)

    def alone(n: int) -> Any:
        return crops[n % len(crops), None]

    def forward(_: int) -> None:
        with torch.inference_mode():
            member(crops)

    number, us = len(crops), "lungfirst"
    many = f"Grad-CAM of {number} films"
    return [
        Timer("pytorch-grad-cam, Grad-CAM film by film", lambda n: library(alone(n))),
        Timer(f"pytorch-grad-cam, {many}", lambda _: library(crops), number),
        Timer(f"{us}, {many}, backward pass to the layer", lambda _: ours(crops, False), number),
        Timer(f"{us}, Grad-CAM film by film, closed form", lambda n: ours(alone(n), True)),
        Timer(f"{us}, {many}, closed form", lambda _: ours(crops, True), number),
        Timer(f"the member's forward pass alone, {number} films", forward, number),
    ]


def score_timers(member: Any, crops: Any) -> list[Timer]:
    """Score-CAM of one film by the library, by us over all channels, and over the strongest."""
    import torch

    from classify.saliency import SCORE_BATCH, TOP_K
    from classify.saliency.maps import saliency_maps

    def library(n: int) -> None:
        # with the same batch size as ours, and its progress bar out of the way
        with contextlib.redirect_stderr(io.StringIO()), torch.inference_mode():
            by_library("ScoreCAM", member, crops[n % len(crops), None], batch_size=SCORE_BATCH)

    def ours(n: int, top_k: int | None) -> None:
        saliency_maps(member, crops[n % len(crops), None], [TARGET], "score_cam", top_k=top_k)

    return [
        Timer("pytorch-grad-cam, Score-CAM, all channels", library),
        Timer("lungfirst, Score-CAM, all channels", lambda n: ours(n, None)),
        Timer(f"lungfirst, Score-CAM, {TOP_K} channels", lambda n: ours(n, TOP_K)),
    ]


@contextlib.contextmanager
def as_a_user_has_it(member: Any) -> Iterator[None]:
    """Gradients of all parameters wanted, as in a net fresh from its file; gone afterwards."""
    wanted = [(p, p.requires_grad) for p in member.parameters()]
    member.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
            parameter.grad = None

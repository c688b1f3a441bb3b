"""A sheet of where the members of an ensemble look: for each target a tested film that has it.

The map is Grad-CAM of the target's logit, which for a linear layer on pooled maps is the maps
weighted by that layer's row (Zhou et al. 2016), rectified.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from classify.dataset import FilmDataset, build_cache, cache_of
from classify.ensemble import member_of
from classify.films import Case
from classify.members import TARGET
from classify.models.multitask import SCXNN
from classify.preprocess import to_input
from classify.tasks.settings import TrainConfig
from cxr.bundle import load_bundle
from cxr.draw import draw_contour, fit, overlay_saliency, to_rgb, write_sheet
from cxr.films_table import has_disease
from cxr.stats import softmax

TILE = 320  # px
_TRIED = 24  # films of each target, the surest ones


def draw_members(
    training: TrainConfig, cases: Sequence[Case], logits: np.ndarray, path: Path
) -> None:
    """One PNG with a tile a target: of its tested films the one that its member is surest of, those
    with a drawn region first, with the map over it and the region's outline in blue.

    Args:
        training: of the members, which lie in `training.out`.
        cases: N tested films.
        logits: (N, M, K) of the M members, in the order of the targets.
        path: the file.
    """
    chances, nets = softmax(logits)[..., TARGET], _nets(training)
    tiles, captions = [], []
    for m, target in enumerate(training.targets):
        having = [i for i, case in enumerate(cases) if has_disease(case.row, [target])]
        having = sorted(having, key=lambda i: -chances[i, m])[:_TRIED]
        if not having:
            continue
        side, about = training.preprocess.side, (training.preprocess, training.region)
        own = [cases[i] for i in having]
        cache = build_cache(own, *about, cache_of(training), side, targets=(target,))
        drawn = cache.region_of[:, 0] >= 0
        best = int(drawn.argmax())  # the surest with a region, the surest of all where none has one
        picture = np.asarray(cache.images[best])
        pixels = FilmDataset(cache, [0] * len(having), [best], side)[0]["image"][None]
        net, place = nets[target]
        found = fit(_map_of(net, to_input(pixels, training.preprocess), place), TILE)
        tile = overlay_saliency(fit(to_rgb(picture), TILE), found)
        if drawn[best]:
            region = np.asarray(cache.regions[cache.region_of[best, 0]])
            tile = draw_contour(tile, fit(region, TILE) > 127)
        tiles.append(tile)
        captions.append(f"{target.replace('_', ' ')}: {chances[having[best], m]:.2f}")
    title = "Grad-CAM of each member for its target (blue: the region that a reader drew)"
    write_sheet(path, tiles, captions, TILE, title)


def _nets(training: TrainConfig) -> dict[str, tuple[SCXNN, int]]:
    """Target → its network, and the number of its target logit there."""
    found: dict[str, tuple[SCXNN, int]] = {}
    for name, targets in training.networks.items():
        bundle = load_bundle(Path(training.out) / f"{name}.safetensors", "member")
        net = member_of(bundle).eval()
        found |= {t: (net, m * net.classes + TARGET) for m, t in enumerate(targets)}
    return found


def _map_of(net: SCXNN, film: torch.Tensor, place: int) -> np.ndarray:
    """(h, w) of one normalised film (1, 3, side, side)."""
    with torch.inference_mode():
        maps = net.maps(film)[0]
        found = torch.einsum("c,chw->hw", net.fc.weight[place], maps).clamp(min=0)
    return found.numpy().astype(np.float32)

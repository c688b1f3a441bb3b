"""The detector's operating point, chosen on validation films and stored in its bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from cxr.boxes import Frame
from detect.augment import make_negative
from detect.dataset import ThoraxDataset, to_input

SURE = 0.9


def choose_thresholds(model: nn.Module, val: ThoraxDataset, batch: int = 8) -> dict[str, Any]:
    """`ok_score` and `reject_score`, and the range of boxes that is plausible.

    A film whose best box scores below `reject_score` is refused (no thorax), below `ok_score` it
    falls back to the whole film. Both come from the validation films and from pictures without a
    thorax made of them.
    """
    chests = _best_scores(model, [val[i][0] for i in range(len(val))], batch)
    rng = np.random.default_rng(0)
    empty = []
    for image, boxes, _, _ in val.items:
        if len(boxes):
            picture = make_negative(image, boxes[0], rng)
            frame = Frame.letterbox((picture.shape[0], picture.shape[1]), val.side)
            empty.append(to_input(frame.apply(picture)))
    others = _best_scores(model, empty, batch)
    reject, ok = pick_scores(chests, others)
    boxes = np.concatenate([item[1] for item in val.items if len(item[1])])
    sides = boxes[:, 2:] - boxes[:, :2]
    aspects = sides[:, 1] / sides[:, 0]
    shares = np.concatenate([_area_shares(item) for item in val.items])
    return {
        "reject_score": reject,
        "ok_score": ok,
        # well outside what validation films show: a limb's box is far thinner
        "aspect_range": [round(float(v), 3) for v in (aspects.min() / 1.5, aspects.max() * 1.5)],
        "min_area_share": round(float(shares.min() / 3), 3),
        "chosen_on": {
            "validation_films": len(chests),
            "films_without_thorax": len(others),
            "chests_refused": int((chests < reject).sum()),
            "chests_below_ok": int((chests < ok).sum()),
            "films_without_thorax_accepted": int((others >= reject).sum()),
        },
    }


def pick_scores(chests: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """(reject, ok) scores from best scores of films with a thorax and of pictures without.

    `reject` lies midway between the two groups where they part; where they overlap it is the
    value that gets most films right, each group counting the same, and never above the 2nd
    percentile of the chests: a chest that is refused is worse than a limb that is looked at.
    `ok` is the 2nd percentile of the chests, but at most SURE, because where every chest scores
    above that the percentile parts nothing but rounding; or `reject` if that is higher.
    """
    low = float(np.percentile(chests, 2))
    if not len(others):
        reject = low / 2
    elif others.max() < chests.min():
        reject = float((others.max() + chests.min()) / 2)
    else:
        candidates = np.unique(np.concatenate([chests, others, [low]]))
        candidates = candidates[candidates <= low]
        right = [(chests >= c).mean() + (others < c).mean() for c in candidates]
        reject = float(candidates[int(np.argmax(right))])
    return round(reject, 4), round(max(min(low, SURE), reject), 4)


def _best_scores(model: nn.Module, images: Sequence[torch.Tensor], batch: int) -> np.ndarray:
    model.eval()
    best = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            for found in model(list(images[start : start + batch])):
                best.append(float(found["scores"].max()) if len(found["scores"]) else 0.0)
    return np.asarray(best)


def _area_shares(item: tuple[np.ndarray, np.ndarray, Any, Any]) -> np.ndarray:
    image, boxes = item[0], item[1]
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides.prod(axis=1) / image.size

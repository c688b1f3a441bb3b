"""From a batch of films to their rows in predictions.csv and their cards on the page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from classify.guard import Guard
from classify.inputs import Item
from classify.labels import TARGET
from classify.saliency.methods import content_of
from classify.screener import NOT_READ, READ, Screener
from classify.screening.reading import FINE_APART, doubts_of, film_tiers, of_other_age, unlike
from cxr.boxes import Frame
from cxr.page.pictures import make_picture, make_saliency_picture

Prepared = tuple[Any, Sequence[Frame]]

if TYPE_CHECKING:  # torch is imported where a network needs it
    from classify.ensemble import Ensemble
    from classify.exported import ExportedEnsemble


class Judge:
    """Members, screener, guard, tiers and Grad-CAM, loaded once and used batch by batch.

    Without a screener every film is to be read. A film that `doubts_of` speaks against is never
    cleared (with status `fallback`, the members saw more than a thorax), nor is one that the guard
    calls unlike those of the calibration or whose patient is of another age: the guarantee does
    not hold for them.
    """

    def __init__(
        self,
        members: Ensemble | ExportedEnsemble,
        screener: Screener | None,
        tiers: Mapping[str, str],
        cropped: bool,
        saliency: bool = True,
        tier_threshold: float | None = None,
        guard: Guard | None = None,
        fine_apart: float = FINE_APART,
        name: str = "",
    ) -> None:
        if screener is not None and tuple(screener.targets) != tuple(members.targets):
            raise ValueError(
                f"screener must be fitted for the members {', '.join(members.targets)}. "
                f"Got one for {', '.join(screener.targets)} instead: fit it again."
            )
        self.members: Any = members
        self.screener, self.tiers = screener, tiers
        self.cropped, self.saliency, self.tier_threshold = cropped, saliency, tier_threshold
        self.guard, self.fine_apart, self.name = guard, fine_apart, name

    def judge(self, items: Sequence[Item], prepared: Prepared | None = None) -> list[Item]:
        """The items, in order, with logits, decision and tier, and what a map is drawn of; refused
        ones get their decision without the members. `prepared` is what the members' `prepare` makes
        of the pixels that are there."""
        judged = iter(self._judge_shown([i for i in items if i.pixels is not None], prepared))
        return [
            replace(item, decision=NOT_READ) if item.pixels is None else next(judged)
            for item in items
        ]

    def _judge_shown(self, items: Sequence[Item], prepared: Prepared | None) -> list[Item]:
        if not items:
            return []
        pixels = [item.pixels for item in items if item.pixels is not None]
        batch, frames = prepared or self.members.prepare(pixels)
        maps: Sequence[np.ndarray | None] = [None] * len(items)
        pooled: np.ndarray | None = None
        if self.saliency:
            logits, maps, pooled = self._look(batch)
        elif self.guard is not None:
            logits, pooled = self.members.predict_pooled(batch)
        else:
            logits = self.members.predict_prepared(batch)
        logits = np.asarray(logits, dtype=np.float64)
        if not np.isfinite(logits).all():
            raise ValueError("members must give finite logits. Got NaN or infinity: train anew.")
        far = self._far(pooled, len(items))
        patients = str(self.guard.meta.get("patients", "")) if self.guard else ""
        scores: Sequence[float | None] = [None] * len(items)
        decisions, threshold_id = [READ] * len(items), ""
        if self.screener is not None:
            found, decisions, threshold_id = self.screener.decide(logits)
            scores = found.tolist()
        tiers = film_tiers(logits, self.members.targets, self.tiers, self.tier_threshold)
        out = []
        for n, (item, plane) in enumerate(zip(items, maps, strict=True)):
            doubts = [unlike(far[n]), of_other_age(item.child, patients)]
            doubts += doubts_of(item, self.fine_apart)
            doubt = "; ".join(filter(None, doubts))
            out.append(
                replace(
                    item,
                    logits=logits[n],
                    abnormal_score=scores[n],
                    decision=READ if doubt else decisions[n],
                    tier=tiers[n],
                    threshold_id=threshold_id,
                    seen=None if plane is None else (plane, frames[n]),
                    saliency_of=self.members.targets[strongest_member(logits[n])],
                    doubt=doubt,
                    ensemble=self.name,
                    far=far[n] if self.guard else None,
                )
            )
        return out

    def _far(self, pooled: np.ndarray | None, films: int) -> list[float]:
        """How far off each film is in units of what the guard allows; 0 without a guard."""
        if self.guard is None:
            return [0.0] * films
        assert pooled is not None, "a guard is fitted for networks that pool"
        return [float(value) for value in self.guard.far(pooled)]

    def _look(self, batch: Any) -> tuple[np.ndarray, list[np.ndarray], np.ndarray | None]:
        """Logits (N, M, 3), Grad-CAM (h, w) of each film's strongest member over the members'
        input, and what the networks pool (N, F): from one forward pass of each network, where its
        head allows that."""
        looks, pooled = self.members.look_pooled(batch)
        logits = np.stack([logits for logits, _ in looks], axis=1).astype(np.float64)
        films_of: dict[int, list[int]] = defaultdict(list)
        for n in range(len(batch)):
            films_of[strongest_member(logits[n])].append(n)
        maps: dict[int, np.ndarray] = {}
        for member, films in films_of.items():
            planes = looks[member][1]
            if planes is None:
                found = self.members.slow_maps(self.members.targets[member], batch[films])
            else:
                found = planes[films]
            maps |= dict(zip(films, found, strict=True))
        return logits, [maps[n] for n in range(len(batch))], pooled


def illustrated(item: Item, cropped: bool) -> Item:
    """A judged film with the pictures of its card, and without its pixels."""
    if item.pixels is None:
        return item
    pictures = dict(item.pictures)
    if cropped:
        pictures["crop"] = make_picture(item.pixels)
    if item.seen is not None:
        pictures["saliency"] = make_saliency_picture(content_of(*item.seen))
    return replace(item, pictures=pictures, pixels=None, seen=None)


def strongest_member(logits: np.ndarray) -> int:
    """(M, 3) logits of a film to the member with the highest TARGET logit."""
    return int(logits[:, TARGET].argmax())

"""From a batch of items to their rows in predictions.csv and their cards on the page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from classify.inputs import Item
from classify.predictions import PredictionRow
from classify.report import FilmCard, MemberBar
from classify.saliency.maps import look, saliency_maps, to_pixels
from classify.screener import NOT_READ, READ, Screener
from classify.screening.tiers import film_tiers
from cxr.boxes import Frame
from cxr.page.pictures import make_picture, make_saliency_picture
from cxr.stats import softmax

_TARGET = 1  # order of a member's logits: NORMAL, TARGET, OTHERS


class Members(Protocol):
    """What the judge needs of an Ensemble."""

    @property
    def targets(self) -> tuple[str, ...]:
        """What each member seeks, in the order of their logits."""
        ...

    def prepare(self, pixels: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[Frame]]:
        """N arrays (H, W) to the members' input and the Frames that lead back."""
        ...

    def predict_prepared(self, batch: torch.Tensor) -> np.ndarray:
        """What `prepare` gave to logits (N, M, 3)."""
        ...

    def member(self, target: str) -> torch.nn.Module:
        """One member's network."""
        ...


class Judge:
    """Members, screener, tiers and Grad-CAM, loaded once and used batch by batch.

    Without a screener every film is to be read. A film with status `fallback` is never cleared:
    the members saw more than a thorax, so the guarantee does not hold for it.
    """

    def __init__(
        self,
        members: Members,
        screener: Screener | None,
        tiers: Mapping[str, str],
        cropped: bool,
        saliency: bool = True,
        tier_threshold: float | None = None,
    ) -> None:
        if screener is not None and tuple(screener.targets) != tuple(members.targets):
            raise ValueError(
                f"screener must be fitted for the members {', '.join(members.targets)}. "
                f"Got one for {', '.join(screener.targets)} instead: fit it again."
            )
        self.members, self.screener, self.tiers = members, screener, tiers
        self.cropped, self.saliency, self.tier_threshold = cropped, saliency, tier_threshold
        self.trained_on = str(getattr(members, "trained_on", ""))

    def judge(self, items: Sequence[Item]) -> list[tuple[PredictionRow, FilmCard]]:
        """Row and card of each item, in order; refused items get theirs without the members."""
        shown = [item for item in items if item.pixels is not None]
        results: dict[int, tuple[PredictionRow, FilmCard]] = {}
        if shown:
            pixels = [item.pixels for item in shown if item.pixels is not None]
            batch, frames = self.members.prepare(pixels)
            maps: list[np.ndarray | None] = [None] * len(shown)
            if self.saliency:
                logits, planes = self._look(batch)
                maps = self._maps(batch, frames, [p.shape for p in pixels], logits, planes)
            else:
                logits = np.asarray(self.members.predict_prepared(batch), dtype=np.float64)
            judged = self._judge_shown(shown, logits, maps)
            results = dict(zip(map(id, shown), judged, strict=True))
        return [results[id(i)] if id(i) in results else _refused(i) for i in items]

    def _judge_shown(
        self, items: Sequence[Item], logits: np.ndarray, maps: Sequence[np.ndarray | None]
    ) -> list[tuple[PredictionRow, FilmCard]]:
        scores: list[float | None] = [None] * len(items)
        decisions, threshold_id = [READ] * len(items), ""
        if self.screener is not None:
            found, decisions, threshold_id = self.screener.decide(logits)
            scores = [float(s) for s in found]
        tiers = film_tiers(logits, self.members.targets, self.tiers, self.tier_threshold)
        shares = softmax(logits)
        out = []
        for n, item in enumerate(items):
            pixels = item.pixels
            assert pixels is not None
            decision = decisions[n] if item.status == "ok" else READ
            bars = tuple(
                MemberBar(target, float(p[0]), float(p[1]), float(p[2]))
                for target, p in zip(self.members.targets, shares[n], strict=True)
            )
            plane = maps[n]
            card = FilmCard(
                item.film,
                item.status,
                item.reason,
                decision,
                tiers[n],
                scores[n],
                bars,
                item.facts,
                item.picture,
                crop=make_picture(pixels) if self.cropped else None,
                saliency=None if plane is None else make_saliency_picture(plane),
                saliency_of=self.members.targets[strongest_member(logits[n])],
            )
            row = PredictionRow(
                film=item.film,
                status=item.status,
                reason=item.reason,
                logits=logits[n],
                abnormal_score=scores[n],
                decision=decision,
                tier=tiers[n],
                threshold_id=threshold_id,
            )
            out.append((row, card))
        return out

    def _look(self, batch: torch.Tensor) -> tuple[np.ndarray, list[np.ndarray | None]]:
        """Logits (N, M, 3) and each member's Grad-CAM from one forward pass, where its head allows
        that; None for a member whose maps take a backward pass."""
        nets = [self.members.member(target) for target in self.members.targets]
        looks = look(nets, batch, _TARGET)
        logits = np.stack([logits for logits, _ in looks], axis=1).astype(np.float64)
        return logits, [planes for _, planes in looks]

    def _maps(
        self,
        batch: torch.Tensor,
        frames: Sequence[Frame],
        sizes_hw: Sequence[Any],
        logits: np.ndarray,
        planes: Sequence[np.ndarray | None],
    ) -> list[np.ndarray | None]:
        """Grad-CAM of each film's strongest member, in the pixels that the members saw."""
        films_of: dict[int, list[int]] = defaultdict(list)
        for n in range(len(batch)):
            films_of[strongest_member(logits[n])].append(n)
        out: list[np.ndarray | None] = [None] * len(batch)
        for member, films in films_of.items():
            ready = planes[member]
            if ready is None:
                net = self.members.member(self.members.targets[member])
                wanted = [_TARGET] * len(films)
                maps = saliency_maps(net, batch[films], wanted, closed_form=False)
            else:
                maps = ready[films]
            back = to_pixels(maps, [frames[n] for n in films], [sizes_hw[n] for n in films])
            for n, plane in zip(films, back, strict=True):
                out[n] = plane
        return out


def strongest_member(logits: np.ndarray) -> int:
    """(M, 3) logits of a film to the member with the highest TARGET logit."""
    return int(logits[:, _TARGET].argmax())


def _refused(item: Item) -> tuple[PredictionRow, FilmCard]:
    row = PredictionRow(
        film=item.film,
        status=item.status,
        reason=item.reason,
        logits=None,
        abnormal_score=None,
        decision=NOT_READ,
        tier="",
        threshold_id="",
    )
    card = FilmCard(
        item.film, item.status, item.reason, NOT_READ, facts=item.facts, picture=item.picture
    )
    return row, card

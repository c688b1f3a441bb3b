"""From a batch of films to their rows in predictions.csv and their cards on the page; with several
ensembles for one kind of input each film is judged by the one that it is like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from classify.guard import Guard
from classify.members import GUARD, TARGET, member_files
from classify.predictions import Item
from classify.saliency import content_of
from classify.screener import NOT_READ, READ, Screener
from classify.screening.reading import FINE_APART, doubts_of, film_tiers, of_other_age, unlike
from cxr.boxes import Frame
from cxr.bundle import bundle_meta
from cxr.page.build import make_picture, make_saliency_picture
from cxr.workdir import read_json

CHILDREN = "children"
Prepared = tuple[Any, Sequence[Frame]]


@dataclass(frozen=True, eq=False)
class Judge:
    """Members, screener, guard, tiers and Grad-CAM, loaded once and used batch by batch. Without a
    screener every film is to be read. A film that `doubts_of` speaks against is never cleared (with
    status `fallback`, the members saw more than a thorax), nor is one that the guard calls unlike
    those of the calibration or whose patient is of another age: the guarantee does not hold for
    them."""

    members: Any  # an Ensemble or an ExportedEnsemble: torch is imported where a network needs it
    screener: Screener | None
    tiers: Mapping[str, str]
    cropped: bool
    saliency: bool = True
    tier_threshold: float | None = None
    guard: Guard | None = None
    fine_apart: float = FINE_APART
    name: str = ""

    def __post_init__(self) -> None:
        targets = tuple(self.members.targets)
        if self.screener is not None and tuple(self.screener.targets) != targets:
            raise ValueError(
                f"screener must be fitted for the members {', '.join(targets)}. "
                f"Got one for {', '.join(self.screener.targets)} instead: fit it again."
            )

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
        far, patients = [0.0] * len(items), ""  # in units of what the guard allows
        if self.guard is not None:
            assert pooled is not None, "a guard is fitted for networks that pool"
            far = [float(value) for value in self.guard.far(pooled)]
            patients = str(self.guard.meta.get("patients", ""))
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


# --- several ensembles


class Panel:
    """The judges of a run, each with its ensemble, screener and guard; `children` names those that
    are for children. One judge judges every film. Of several, a film whose age is known goes to
    those for children or to the others; where that leaves more than one, to the one whose guard
    calls it nearest. All answer in one table: `targets` are those of all members. Raises ValueError
    for targets that two ensembles have, and where one of several has no guard."""

    def __init__(self, judges: Sequence[Judge], children: Collection[str] = ()) -> None:
        self.judges = tuple(judges)
        self.children = [j for j in self.judges if j.name in children]
        self.targets = tuple(target for j in self.judges for target in j.members.targets)
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(
                "ensembles that judge together must have different targets. Got "
                f"{', '.join(self.targets)}: name one of them with --ensemble."
            )
        if len(self.judges) > 1 and any(j.guard is None for j in self.judges):
            raise ValueError("ensembles that judge together must each have a guard. One has none.")

    def judge(self, items: Sequence[Item]) -> list[Item]:
        """As `Judge.judge`, with the pictures of each film's card in its pixels' place; each item
        says which ensemble judged it."""
        judged = self._judged(items)
        return [illustrated(item, self.judges[0].cropped) for item in judged]

    def _judged(self, items: Sequence[Item]) -> list[Item]:
        if len(self.judges) == 1:
            return self.judges[0].judge(items)
        asked: list[Sequence[Judge]] = []
        for item in items:  # those whom the film's age leaves; all, where it says or leaves nothing
            fit = [j for j in self.judges if item.child in (None, j in self.children)]
            asked.append((fit or self.judges) if item.pixels is not None else ())
        found: dict[int, list[Item]] = defaultdict(list)
        ready: dict[Any, Any] = {}  # members that prepare films alike share what is prepared
        for judge in self.judges:
            own = [n for n in range(len(items)) if judge in asked[n]]
            if not own:
                continue
            key = type(judge.members), judge.members.settings, tuple(own)
            if key not in ready:
                ready[key] = judge.members.prepare([items[n].pixels for n in own])
            shown = judge.judge([items[n] for n in own], ready[key])
            for n, judged in zip(own, shown, strict=True):
                found[n].append(self._widened(judge, judged))
        return [
            self._nearest(found[n], len(asked[n]) < len(self.judges))
            if found[n]
            else replace(item, decision=NOT_READ)
            for n, item in enumerate(items)
        ]

    def _widened(self, judge: Judge, item: Item) -> Item:
        """With a row for each member of all ensembles, NaN for those that were not asked."""
        logits = np.full((len(self.targets), 3), np.nan)
        first = self.targets.index(judge.members.targets[0])
        logits[first : first + len(judge.members)] = np.asarray(item.logits)
        return replace(item, logits=logits)

    @staticmethod
    def _nearest(judged: Sequence[Item], by_age: bool) -> Item:
        """What the ensemble says that the film is nearest to, and why that one was asked."""
        best = min(judged, key=lambda item: item.far if item.far is not None else np.inf)
        far = best.far if best.far is not None else np.inf
        why = "by the patient's age" if by_age else "which it is nearest to"
        best = replace(best, facts=(*best.facts, f"judged by {best.ensemble}, {why}"))
        if far <= 1 or len(judged) == 1:
            return best
        told = ", ".join(f"{item.ensemble} {item.far:.3f}" for item in judged)
        neither = f"the film is like those of no ensemble: distances {told}, 1 is allowed"
        return replace(best, doubt=best.doubt.replace(unlike(far), neither))

    def told(self, sentence: Callable[[Judge], str]) -> str:
        """What is to be said of each judge, with its name where there are several."""
        if len(self.judges) == 1:
            return sentence(self.judges[0])
        return " ".join(f"{j.name}: {sentence(j)}" for j in self.judges)


def find_ensembles(root: Path, kind: str) -> list[Path]:
    """Folders in `root` of ensembles with a guard that see `kind`: crops or films."""
    guards = sorted(root.glob(f"*/{GUARD}"))
    return [path.parent for path in guards if bundle_meta(path).get("trained_on") == kind]


def is_for_children(folder: Path) -> bool:
    """Whether an ensemble is for children, by about.json of its folder, its guard's metadata
    (`python -m classify.guard fit --patients children`) or a member's."""
    about = folder / "about.json"
    said = [read_json(about)] if about.is_file() else []
    said += [bundle_meta(path) for path in (folder / GUARD, *member_files(folder))]
    return any(
        known.get(CHILDREN) is True or CHILDREN in known.values()
        for known in said
        if isinstance(known, Mapping)
    )

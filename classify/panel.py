"""Several ensembles for one kind of input: each film is judged by the one that it is like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from classify.inputs import GUARD, Item, member_files
from classify.judge import Judge, illustrated
from classify.screener import NOT_READ
from classify.screening.reading import unlike
from cxr.bundle import bundle_meta
from cxr.workdir import read_json

CHILDREN = "children"


class Panel:
    """The judges of a run, each with its ensemble, screener and guard; `children` names those that
    are for children.

    One judge judges every film. Of several, a film whose age is known goes to those for children or
    to the others; where that leaves more than one, to the one whose guard calls it nearest. All
    answer in one table: `targets` are those of all members. Raises ValueError for targets that two
    ensembles have, and where one of several has no guard.
    """

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
        asked = [self._asked(item) if item.pixels is not None else () for item in items]
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

    def _asked(self, item: Item) -> Sequence[Judge]:
        """Those whom the film's age leaves; all, where it says nothing or would leave none."""
        if item.child is None:
            return self.judges
        fit = [j for j in self.judges if (j in self.children) == item.child]
        return fit or self.judges

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
    return any(_says_children(known) for known in said if isinstance(known, Mapping))


def _says_children(known: Mapping[str, Any]) -> bool:
    return known.get(CHILDREN) is True or any(v == CHILDREN for v in known.values())

"""Who drew which box of a film, and which box counts where there are several.

All boxes are x, y, width, height in the pixels of the film as the merged file lists it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

POLICIES = ("refuse", "newest", "mean", "first")
BEFORE = "before"  # session, annotator and action of a box of which nothing is known
SAME_PX = 0.5  # boxes whose edges agree within this are one box

Xywh = tuple[float, float, float, float]


@dataclass(frozen=True)
class Contributor:
    """One box of a film and where it came from; an entry of an annotation's `provenance`.

    Attributes:
        date: ISO time of the last human change, "" where unknown.
        prelabelled: whether the detector's box was shown to the annotator.
        action: accepted, corrected or drawn; "before" for a box of unknown origin.
        session: the session's id; "before" for a box of unknown origin.
        category: name of the box's class.
    """

    annotator: str
    date: str
    prelabelled: bool
    action: str
    session: str
    bbox: Xywh
    category: str

    @property
    def key(self) -> tuple[str, str]:
        """One contributor has one box a film: a copied session under another name is another."""
        return self.session, self.annotator

    @property
    def when(self) -> datetime:
        """The date as a time that can be compared; the beginning of time where it is unknown."""
        if not self.date:
            return datetime.min.replace(tzinfo=UTC)
        time = datetime.fromisoformat(self.date)
        return time if time.tzinfo else time.replace(tzinfo=UTC)

    def is_same(self, other: Contributor) -> bool:
        """Whether both boxes have one class and edges that agree within SAME_PX."""
        return self.category == other.category and is_near(self.bbox, other.bbox)

    def __str__(self) -> str:
        x, y, w, h = self.bbox
        whose = "a box of unknown origin" if self.session == BEFORE else f"{self.annotator}'s box"
        date = f" of {self.date[:16].replace('T', ' ')}" if self.date else ""
        return f"{whose}{date} ({self.category} {x:.1f}, {y:.1f}, {x + w:.1f}, {y + h:.1f})"

    def to_entry(self, category: str) -> dict[str, Any]:
        """For the `provenance` of an annotation of `category`; its own is named if it differs."""
        entry = {
            "annotator": self.annotator,
            "date": self.date,
            "prelabelled": self.prelabelled,
            "action": self.action,
            "session": self.session,
            "bbox": list(self.bbox),
        }
        return entry if category == self.category else {**entry, "category": self.category}

    @classmethod
    def from_entry(cls, entry: Any, category: str) -> Contributor:
        """The inverse of `to_entry`; raises ValueError for what is no entry."""
        try:
            x, y, w, h = (float(v) for v in entry["bbox"])
            found = cls(
                str(entry["annotator"]),
                str(entry["date"]),
                bool(entry["prelabelled"]),
                str(entry["action"]),
                str(entry["session"]),
                (x, y, w, h),
                str(entry.get("category", category)),
            )
            _ = found.when
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(
                "each entry of provenance must have annotator, date, prelabelled, action, session "
                f"and bbox as merge writes them. Got {entry!r} instead."
            ) from error
        return found


@dataclass(frozen=True)
class Choice:
    """The box that counts, its class, and whose it is ("" where nobody knows)."""

    bbox: Xywh
    category: str
    annotator: str


def is_near(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether the edges of two boxes (x, y, width, height) agree within SAME_PX."""
    edges_a, edges_b = ((x, y, x + w, y + h) for x, y, w, h in (a, b))
    return max(abs(p - q) for p, q in zip(edges_a, edges_b, strict=True)) <= SAME_PX + 1e-6


def find_conflicts(
    stored: Sequence[Contributor], new: Sequence[Contributor]
) -> list[tuple[Contributor, Contributor]]:
    """(standing, new) for each new box that is not the first of its film.

    None is found for a contributor's own box as it stands already, nor for one that agrees with
    the only box there, where nobody knows whose that is.
    """
    standing, conflicts = list(stored), []
    for one in new:
        own = next((s for s in standing if s.key == one.key), None)
        if own is not None:
            if not own.is_same(one):
                conflicts.append((own, one))
        elif not standing:
            standing.append(one)
        elif not (
            standing[0].session == BEFORE and len(standing) == 1 and standing[0].is_same(one)
        ):
            conflicts.append((standing[0], one))
    return conflicts


def combine(
    stored: Sequence[Contributor], new: Sequence[Contributor], policy: str
) -> list[Contributor]:
    """All contributors of a film, those stored before the new ones.

    A contributor's own box that was moved since replaces the stored one, but with `first`. With
    `refuse` nothing is added to boxes that stand: there are no conflicts when it comes here.
    """
    if policy == "refuse":
        return list(stored or new[:1])
    out = list(stored)
    for one in new:
        at = next((i for i, own in enumerate(out) if own.key == one.key), None)
        if at is None:
            out.append(one)
        elif policy != "first" and not out[at].is_same(one) and one.when >= out[at].when:
            out[at] = one
    return out


def choose(contributors: Sequence[Contributor], policy: str) -> Choice:
    """The box that counts; raises ValueError where classes differ and cannot be averaged."""
    if policy == "mean" and len(contributors) > 1:
        return _mean(contributors)
    index = 0
    if policy == "newest":  # of two with one date the later in the list
        index = max(range(len(contributors)), key=lambda i: (contributors[i].when, i))
    one = contributors[index]
    return Choice(one.bbox, one.category, "" if one.annotator == BEFORE else one.annotator)


def _mean(contributors: Sequence[Contributor]) -> Choice:
    classes = sorted({c.category for c in contributors})
    if len(classes) > 1:
        raise ValueError(
            f"its boxes have the classes {' and '.join(classes)}, of which there is "
            "no mean; take one with --policy newest or first"
        )
    # the mean of x, y, width and height is the mean of the edges: one follows from the other
    x, y, w, h = (
        round(sum(side) / len(contributors), 3)
        for side in zip(*(c.bbox for c in contributors), strict=True)
    )
    names = dict.fromkeys(c.annotator for c in contributors if c.annotator != BEFORE)
    return Choice((x, y, w, h), classes[0], ", ".join(names))


def is_explained(bbox: Sequence[float], contributors: Sequence[Contributor]) -> bool:
    """Whether an annotation's box is a contributor's or their mean, not one changed by hand."""
    if any(is_near(bbox, c.bbox) for c in contributors):
        return True
    mean = [
        sum(side) / len(contributors) for side in zip(*(c.bbox for c in contributors), strict=True)
    ]
    return is_near(bbox, mean)

"""The COCO file that is merged into: whose box of a film counts, and what stays as it is.

What no new box touches stays key by key. All boxes are x, y, width, height in the pixels of the
film as the file lists it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cxr.coco import marks_in, read_coco_json
from cxr.rules import require
from labelling.session import SessionFilm

POLICIES = ("refuse", "newest", "mean", "first")
BEFORE = "before"  # session, annotator and action of a box of which nothing is known
SAME_PX = 0.5  # boxes whose edges agree within this are one box
_FACTS = ("label", "sublabel", "patient_id", "source")
_INFO = {
    "description": "Thorax boxes, one a film, merged by tools/annotate.py merge; bbox is x, y, "
    "width, height in pixels of the film as listed, bbox_fraction the same in fractions of it"
}

Xywh = tuple[float, float, float, float]
Marked = tuple[str, Xywh, Collection[str]]  # class, box, marks


@dataclass(frozen=True)
class Contributor:
    """One box of a film and where it came from; an entry of an annotation's `provenance`."""

    annotator: str
    date: str  # ISO time of the last human change, "" where unknown
    prelabelled: bool  # whether the detector's box was shown to the annotator
    action: str  # accepted, corrected or drawn; BEFORE for a box of unknown origin
    session: str  # the session's id; BEFORE for a box of unknown origin
    bbox: Xywh
    category: str  # name of the box's class

    @property
    def key(self) -> tuple[str, str]:
        """One contributor has one box a film: a copied session under another name is another."""
        return self.session, self.annotator

    @property
    def when(self) -> datetime:
        """The date as a time that can be compared; the beginning of time where it is unknown."""
        time = datetime.fromisoformat(self.date) if self.date else datetime.min
        return time if time.tzinfo else time.replace(tzinfo=UTC)

    def is_same(self, other: Contributor) -> bool:
        """Whether both boxes have one class and edges that agree within SAME_PX."""
        return self.category == other.category and _is_near(self.bbox, other.bbox)

    def __str__(self) -> str:
        x, y, w, h = self.bbox
        whose = "a box of unknown origin" if self.session == BEFORE else f"{self.annotator}'s box"
        date = f" of {self.date[:16].replace('T', ' ')}" if self.date else ""
        return f"{whose}{date} ({self.category} {x:.1f}, {y:.1f}, {x + w:.1f}, {y + h:.1f})"

    def to_entry(self, category: str) -> dict[str, Any]:
        """For the `provenance` of an annotation of `category`; its own is named if it differs."""
        entry = {**asdict(self), "bbox": list(self.bbox)}
        if category == self.category:
            del entry["category"]
        return entry

    @classmethod
    def from_entry(cls, entry: Any, category: str) -> Contributor:
        """The inverse of `to_entry`; raises ValueError for what is no entry."""
        try:
            x, y, w, h = (float(v) for v in entry["bbox"])
            annotator, date, action, session = (
                str(entry[key]) for key in ("annotator", "date", "action", "session")
            )
            shown, own = bool(entry["prelabelled"]), str(entry.get("category", category))
            found = cls(annotator, date, shown, action, session, (x, y, w, h), own)
            _ = found.when
            return found
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(
                "each entry of provenance must have annotator, date, prelabelled, action, session "
                f"and bbox as merge writes them. Got {entry!r} instead."
            ) from error


def _is_near(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether the edges of two boxes agree within SAME_PX."""
    edges_a, edges_b = ((x, y, x + w, y + h) for x, y, w, h in (a, b))
    return max(abs(p - q) for p, q in zip(edges_a, edges_b, strict=True)) <= SAME_PX + 1e-6


def _mean_box(contributors: Sequence[Contributor]) -> Xywh:
    # the mean of x, y, width and height is the mean of the edges: one follows from the other
    sides = zip(*(c.bbox for c in contributors), strict=True)
    x, y, w, h = (round(sum(side) / len(contributors), 3) for side in sides)
    return x, y, w, h


def combine(
    stored: Sequence[Contributor], new: Sequence[Contributor], policy: str
) -> list[Contributor]:
    """All contributors of a film, those stored before the new ones.

    A contributor's own box that was moved since replaces the stored one, but with `first`. With
    `refuse` nothing is added to boxes that stand: there are no conflicts when it comes here.
    """
    if policy == "refuse":
        return list(stored or new[:1])
    out = {one.key: one for one in stored}
    for one in new:
        own = out.setdefault(one.key, one)
        if policy != "first" and not own.is_same(one) and one.when >= own.when:
            out[one.key] = one
    return list(out.values())


def choose(contributors: Sequence[Contributor], policy: str) -> Contributor:
    """The box that counts, or their mean; its annotator is "" where nobody knows whose it is.
    Raises ValueError where classes differ and cannot be averaged."""
    if policy == "mean" and len(contributors) > 1:
        classes = sorted({c.category for c in contributors})
        if len(classes) > 1:
            what = f"its boxes have the classes {' and '.join(classes)}, of which there is no mean"
            raise ValueError(f"{what}; take one with --policy newest or first")
        names = dict.fromkeys(c.annotator for c in contributors if c.annotator != BEFORE)
        return replace(contributors[0], annotator=", ".join(names), bbox=_mean_box(contributors))
    one = contributors[0]
    if policy == "newest":  # of two with one date the later in the list
        one = max(reversed(contributors), key=lambda c: c.when)
    return replace(one, annotator="") if one.annotator == BEFORE else one


@dataclass
class Place:
    """One film of the merged file, and the boxes that belong to it."""

    image: dict[str, Any]  # its entry, without an id where it is not listed yet
    sha256: str  # of the film's file; "" where nobody says
    note: dict[str, Any] | None = None  # its annotation
    film: SessionFilm | None = None  # as the first session that brought a box for it knows it
    stored: list[Contributor] = field(default_factory=list)
    new: list[Contributor] = field(default_factory=list)
    names: dict[str, None] = field(default_factory=dict)  # that the film came under, in order
    marked: list[Marked] = field(default_factory=list)  # boxes not to be counted that came for it

    @property
    def file_name(self) -> str:
        return str(self.image["file_name"])

    @property
    def size_hw(self) -> tuple[int, int]:
        return int(self.image["height"]), int(self.image["width"])


class Target:
    """The file's object, its films by name and by content, and what is to be put into it. Raises
    ValueError for a file with faults, or whose categories lack one of `classes`."""

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.path = path
        categories = [{"id": i, "name": n} for i, n in enumerate(classes, 1)]
        lists: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        empty = {"info": _INFO, **lists}
        self.data = read_coco_json(path) if path.exists() else empty
        self._id_of = {str(c["name"]): c["id"] for c in self.data["categories"]}
        self._name_of = {c["id"]: str(c["name"]) for c in self.data["categories"]}
        if set(classes) - set(self._id_of):
            raise ValueError(
                f"{path} must have the session's classes as categories. It has "
                f"{', '.join(self._id_of) or 'none'}, the session {', '.join(classes)}: merge into "
                "another file with --into."
            )
        self._notes: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for note in self.data["annotations"]:
            self._notes[note["image_id"]].append(note)
        self._by_name: dict[str, Place] = {}
        self._by_sha: dict[str, Place] = {}
        for image in self.data["images"]:
            self._register(Place(image, str(image.get("sha256") or "")))

    def _register(self, place: Place) -> Place:
        self._by_name[_key(place.file_name)] = place
        if place.sha256:
            self._by_sha.setdefault(place.sha256, place)
        return place

    @property
    def touched(self) -> list[Place]:
        """The films that boxes came for, those listed already in the file's order, new ones by
        name: the order of asking says nothing to a reader of the file."""
        places = [p for p in self._by_name.values() if p.new]
        new = sorted((p for p in places if "id" not in p.image), key=lambda p: p.file_name)
        return [*(p for p in places if "id" in p.image), *new]

    def add(
        self,
        name: str,
        size_hw: tuple[int, int],
        film: SessionFilm,
        box: Contributor,
        marked: Sequence[Marked] = (),
    ) -> None:
        """Take in a box of a film that the file lists as `name` with `size_hw`, and those marked
        not to count; raises ValueError where it cannot belong to what the file lists."""
        height, width = size_hw
        place = self._find(name, film)
        if place is None:
            image = {"file_name": name, "width": width, "height": height}
            place = self._register(Place(image, film.sha256))
        elif film.sha256:
            self._by_sha.setdefault(film.sha256, place)
        if place.film is None and "id" in place.image:
            self._read_boxes(place)
        if place.size_hw != size_hw:
            listed, comes = (f"{w} × {h} px" for h, w in (place.size_hw, size_hw))
            both = f"it is listed with {listed} and comes with {comes}"
            raise ValueError(f"{both}; one file takes one --size")
        place.film, place.sha256 = place.film or film, place.sha256 or film.sha256
        place.new.append(box)
        place.marked += marked
        place.names |= {place.file_name: None, name: None}

    def _find(self, name: str, film: SessionFilm) -> Place | None:
        named, same = self._by_name.get(_key(name)), self._by_sha.get(film.sha256)
        if named and named.sha256 and film.sha256 and named.sha256 != film.sha256:
            other = named.film.film if named.film else f"the one in {self.path}"
            both = f"two different films have this name, {film.film} and {other}"
            raise ValueError(f"{both}: their contents (sha256) differ")
        if named and same and named is not same:
            twice = f"{self.path} lists the same film (sha256) as {same.file_name} too"
            raise ValueError(f"{twice}; take one of them out")
        return named or same

    def _read_boxes(self, place: Place) -> None:
        notes = self._counted(place)
        if len(notes) != 1:
            held = f"{len(notes)} boxes" if notes else "no box, as a film without a thorax"
            listed = f"{self.path} lists it with {held}"
            raise ValueError(f"{listed}, and merge keeps one box a film; take its entry out first")
        place.note = note = notes[0]
        category = self._name_of[note["category_id"]]
        if not note.get("provenance"):
            x, y, w, h = note["bbox"]
            who = str(place.image.get("annotator") or BEFORE)
            place.stored = [Contributor(who, "", False, BEFORE, BEFORE, (x, y, w, h), category)]
            return
        place.stored = _read_provenance(note, category)
        if foreign := sorted({c.category for c in place.stored} - set(self._id_of)):
            named = f"its provenance names the class {foreign[0]!r}"
            raise ValueError(f"{named}, which is none of the file's categories")
        boxes = [c.bbox for c in place.stored]
        if not any(_is_near(note["bbox"], box) for box in (*boxes, _mean_box(place.stored))):
            fix = "take its provenance out to keep the box as one of unknown origin"
            what = f"its box in {self.path} is none of its provenance"
            raise ValueError(f"{what}, so it was changed by hand since; {fix}")

    def stored_for(self, name: str, sha256: str) -> list[Contributor]:
        """Whose boxes of a film the file holds; empty for a film it does not list."""
        place = self._by_name.get(_key(name)) or self._by_sha.get(sha256)
        notes = self._counted(place) if place else []
        return _read_provenance(notes[0], "") if notes else []

    def _counted(self, place: Place) -> list[dict[str, Any]]:
        return [n for n in self._notes[place.image.get("id")] if not marks_in(n)]

    def find_conflicts(self) -> list[str]:
        """A line for each new box that is not the first of its film, and that --policy refuse does
        not take. A contributor's own box as it stands already is none, nor is one that agrees with
        the only box there, where nobody knows whose that is."""
        lines = []
        for place in self.touched:
            standing = place.stored or place.new[:1]
            unknown = len(standing) == 1 and standing[0].session == BEFORE
            for new in place.new:
                own = next((s for s in standing if s.key == new.key), None)
                old = own or standing[0]
                if not (old.is_same(new) and (own or unknown)):
                    both = f"{' = '.join(place.names)}: {old} stands, {new} is new"
                    lines.append(f"{both}: --policy newest|mean|first")
        return lines

    def put(self, place: Place, policy: str) -> bool:
        """Write the film's box and its provenance; whether that changes anything. Raises ValueError
        where the policy has no answer."""
        assert place.film is not None
        if policy == "refuse" and place.stored:
            return self._put_marked(place)
        contributors = combine(place.stored, place.new, policy)
        choice = choose(contributors, policy)
        facts = {k: getattr(place.film, k) for k in _FACTS if not place.image.get(k)}
        facts |= {"annotator": choice.annotator, "sha256": place.sha256}
        first, (height, width), (x, y, w, h) = place.note is None, place.size_hw, choice.bbox
        image = {"id": _next_id(self.data["images"]), **place.image}
        image |= {key: value for key, value in facts.items() if value}
        note = place.note or {
            **{"id": _next_id(self.data["annotations"]), "image_id": image["id"]},
            **{"category_id": 0, "bbox": None, "area": 0.0, "iscrowd": 0},
        }
        area = {} if note["bbox"] == [x, y, w, h] else {"area": round(w * h, 3)}
        note = {
            **note,
            **{"category_id": self._id_of[choice.category], "bbox": [x, y, w, h], **area},
            "bbox_fraction": [round(v, 6) for v in (x / width, y / height, w / width, h / height)],
            "provenance": [c.to_entry(choice.category) for c in contributors],
        }
        changed = image != place.image or note != place.note
        if first:
            self.data["images"].append(image)
            self._append(note)
            place.image, place.note = image, note
        elif place.note is not None:
            place.image |= image
            place.note |= note
        return self._put_marked(place) or changed

    def _append(self, note: dict[str, Any]) -> None:
        self.data["annotations"].append(note)
        self._notes[note["image_id"]].append(note)

    def _put_marked(self, place: Place) -> bool:
        """Add the boxes not to be counted that the file lacks; whether there are any."""
        notes, own = self.data["annotations"], self._notes[place.image["id"]]
        before = len(notes)
        for category, bbox, marks in place.marked:
            kind, there = self._id_of[category], filter(marks_in, own)
            if not any(n["category_id"] == kind and _is_near(n["bbox"], bbox) for n in there):
                head = {"id": _next_id(notes), "image_id": place.image["id"], "category_id": kind}
                box = {"bbox": list(bbox), "area": round(bbox[2] * bbox[3], 3)}
                self._append({**head, **box, "iscrowd": 1, **dict.fromkeys(sorted(marks), 1)})
        return len(notes) > before


def _key(name: str) -> str:
    """What a film is found by: a path of Windows is written with \\."""
    return name.replace("\\", "/")


def _read_provenance(note: dict[str, Any], category: str) -> list[Contributor]:
    entries = note.get("provenance") or []
    require(isinstance(entries, list), "provenance must be a list", entries)
    return [Contributor.from_entry(entry, category) for entry in entries]


def _next_id(entries: Sequence[dict[str, Any]]) -> int:
    """One above the highest whole number among the ids, so that no id ever moves."""
    return max((e["id"] for e in entries if isinstance(e.get("id"), int)), default=0) + 1

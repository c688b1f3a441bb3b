"""The COCO file that is merged into: what no new box touches stays as it is, key by key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cxr.coco import read_coco_json
from labelling.merge_rules import (
    BEFORE,
    Choice,
    Contributor,
    choose,
    combine,
    find_conflicts,
    is_explained,
)

_INFO = {
    "description": "Thorax boxes, one a film, merged by tools/annotate.py merge; bbox is x, y, "
    "width, height in pixels of the film as listed, bbox_fraction the same in fractions of it"
}


@dataclass(frozen=True)
class ListedFilm:
    """A session's film as the merged file lists it, with its box.

    Attributes:
        file_name: after renaming.
        size_hw: (height, width) that the box is in.
        sha256: of the film's file.
        facts: label, sublabel, patient_id, source, where known.
        film: as the session calls it.
    """

    file_name: str
    size_hw: tuple[int, int]
    sha256: str
    facts: dict[str, str]
    film: str
    contributor: Contributor


@dataclass
class Place:
    """One film of the merged file: its entry and annotation, and the boxes that belong to it."""

    film: ListedFilm | None = None  # the first that came; None for a film nothing came for
    image: dict[str, Any] | None = None  # None where the file does not list it yet
    note: dict[str, Any] | None = None
    stored: list[Contributor] = field(default_factory=list)
    new: list[Contributor] = field(default_factory=list)
    names: dict[str, None] = field(default_factory=dict)  # that the film came under, in order

    @property
    def file_name(self) -> str:
        """As the merged file lists it."""
        if self.image is not None:
            return str(self.image["file_name"])
        assert self.film is not None
        return self.film.file_name

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) that the boxes are in."""
        if self.image is not None:
            return int(self.image["height"]), int(self.image["width"])
        assert self.film is not None
        return self.film.size_hw

    @property
    def sha256(self) -> str:
        """Of the film's file; "" where the file does not say."""
        own = self.image.get("sha256") if self.image is not None else None
        return str(own or (self.film.sha256 if self.film else ""))


class Target:
    """The file's object, its films by name and by content, and what is to be put into it.

    Raises ValueError for a file with faults, or whose categories lack one of `classes`.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.path = path
        self.data: dict[str, Any] = (
            read_coco_json(path)
            if path.exists()
            else {
                "info": _INFO,
                "images": [],
                "annotations": [],
                "categories": [{"id": i, "name": n} for i, n in enumerate(classes, 1)],
            }
        )
        self._id_of = {str(c["name"]): c["id"] for c in self.data["categories"]}
        self._name_of = {c["id"]: str(c["name"]) for c in self.data["categories"]}
        missing = [name for name in classes if name not in self._id_of]
        if missing:
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
            self._register(Place(image=image))

    def _register(self, place: Place) -> None:
        self._by_name[place.file_name] = place
        if place.sha256:
            self._by_sha.setdefault(place.sha256, place)

    @property
    def touched(self) -> list[Place]:
        """The films that boxes came for, those listed already in the file's order, new ones by
        name: the order of asking says nothing to a reader of the file."""
        places = [p for p in self._by_name.values() if p.new]
        return sorted(places, key=lambda p: (p.image is None, "" if p.image else p.file_name))

    def add(self, film: ListedFilm) -> None:
        """Take a box in; raises ValueError where it cannot belong to what the file lists."""
        place = self._find(film)
        if place.film is None and place.image is not None:
            self._read_boxes(place)
        if place.size_hw != film.size_hw:
            (h, w), (height, width) = film.size_hw, place.size_hw
            raise ValueError(
                f"it is listed with {width} × {height} px and comes with {w} × {h} px;"
                " one file takes one --size"
            )
        place.film = place.film or film
        place.new.append(film.contributor)
        place.names |= {place.file_name: None, film.file_name: None}

    def _find(self, film: ListedFilm) -> Place:
        named, same = self._by_name.get(film.file_name), self._by_sha.get(film.sha256)
        if named is not None and named.sha256 and film.sha256 and named.sha256 != film.sha256:
            other = named.film.film if named.film is not None else f"the one in {self.path}"
            raise ValueError(
                f"two different films have this name, {film.film} and {other}: their "
                "contents (sha256) differ"
            )
        if named is not None and same is not None and named is not same:
            raise ValueError(
                f"{self.path} lists the same film (sha256) as {same.file_name} too; "
                "take one of them out"
            )
        place = named or same
        if place is None:
            place = Place(film)
            self._register(place)
        elif film.sha256:
            self._by_sha.setdefault(film.sha256, place)
        return place

    def _read_boxes(self, place: Place) -> None:
        assert place.image is not None
        notes = self._notes[place.image["id"]]
        if len(notes) != 1:
            held = f"{len(notes)} boxes" if notes else "no box, as a film without a thorax"
            raise ValueError(
                f"{self.path} lists it with {held}, and merge keeps one box a film; "
                "take its entry out first"
            )
        place.note = notes[0]
        category = self._name_of[place.note["category_id"]]
        x, y, w, h = place.note["bbox"]
        if not place.note.get("provenance"):
            who = str(place.image.get("annotator") or BEFORE)
            place.stored = [Contributor(who, "", False, BEFORE, BEFORE, (x, y, w, h), category)]
            return
        place.stored = self._read_provenance(place.note["provenance"], category)
        foreign = sorted({c.category for c in place.stored} - set(self._id_of))
        if foreign:
            raise ValueError(
                f"its provenance names the class {foreign[0]!r}, which is none of the "
                "file's categories"
            )
        if not is_explained(place.note["bbox"], place.stored):
            raise ValueError(
                f"its box in {self.path} is none of its provenance, so it was changed by hand "
                "since; take its provenance out to keep the box as one of unknown origin"
            )

    def _read_provenance(self, entries: Any, category: str) -> list[Contributor]:
        if not isinstance(entries, list):
            raise ValueError(f"provenance must be a list. Got {entries!r} instead.")
        return [Contributor.from_entry(entry, category) for entry in entries]

    def stored_for(self, file_name: str, sha256: str) -> list[Contributor]:
        """Whose boxes of a film the file holds; empty for a film it does not list."""
        place = self._by_name.get(file_name) or self._by_sha.get(sha256)
        note = self._notes[place.image["id"]][:1] if place and place.image is not None else []
        entries = note[0].get("provenance") if note else None
        return self._read_provenance(entries, "") if entries else []

    def find_conflicts(self) -> list[str]:
        """A line for each box that --policy refuse does not take."""
        return [
            f"{' = '.join(place.names)}: {old} stands, {new} is new: --policy newest|mean|first"
            for place in self.touched
            for old, new in find_conflicts(place.stored, place.new)
        ]

    def put(self, place: Place, policy: str) -> bool:
        """Write the film's box and its provenance; whether that changes anything.

        Raises ValueError where the policy has no answer.
        """
        if policy == "refuse" and place.stored:
            return False
        contributors = combine(place.stored, place.new, policy)
        choice = choose(contributors, policy)
        image = self._to_image(place, choice)
        note = self._to_note(place, image["id"], choice, contributors)
        if image == place.image and note == place.note:
            return False
        if place.image is None or place.note is None:
            self.data["images"].append(image)
            self.data["annotations"].append(note)
            self._notes[image["id"]].append(note)
            place.image, place.note = image, note
        else:
            place.image |= image
            place.note |= note
        return True

    def _to_image(self, place: Place, choice: Choice) -> dict[str, Any]:
        height, width = place.size_hw
        assert place.film is not None
        image = place.image or {
            "id": _next_id(self.data["images"]),
            "file_name": place.file_name,
            "width": width,
            "height": height,
        }
        facts = {k: v for k, v in place.film.facts.items() if v and not image.get(k)}
        whose = {"annotator": choice.annotator} if choice.annotator else {}
        digest = {"sha256": place.sha256} if place.sha256 else {}
        return {**image, **facts, **whose, **digest}

    def _to_note(
        self, place: Place, image_id: Any, choice: Choice, contributors: Sequence[Contributor]
    ) -> dict[str, Any]:
        height, width = place.size_hw
        x, y, w, h = choice.bbox
        fraction = [round(v, 6) for v in (x / width, y / height, w / width, h / height)]
        note = {
            "category_id": self._id_of[choice.category],
            "bbox": list(choice.bbox),
            "bbox_fraction": fraction,
            "provenance": [c.to_entry(choice.category) for c in contributors],
        }
        if place.note is None:
            head = {"id": _next_id(self.data["annotations"]), "image_id": image_id}
            return {**head, **note, "area": round(w * h, 3), "iscrowd": 0}
        if place.note["bbox"] != note["bbox"]:
            note["area"] = round(w * h, 3)
        return {**place.note, **note}


def _next_id(entries: Sequence[dict[str, Any]]) -> int:
    """One above the highest whole number among the ids, so that no id ever moves."""
    return max((e["id"] for e in entries if isinstance(e.get("id"), int)), default=0) + 1

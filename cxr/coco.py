"""COCO detection JSON: read, check with a line for each fault, write.

Boxes are held as xyxy in the pixels of the film as listed; on disk they are COCO's xywh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from cxr.boxes import keeps_aspect, stretch_xyxy, xywh_to_xyxy, xyxy_to_xywh
from cxr.workdir import log, read_json, write_json

# A box that stands in a file and is not to be counted: COCO's crowd regions, the `ignore` of COCO's
# own evaluation and of CrowdHuman, Pascal VOC's `difficult`.
MARKS = ("iscrowd", "ignore", "difficult")


@dataclass(frozen=True)
class CocoFilm:
    """One film with its boxes: (N, 4) xyxy in its own pixels; N = 0 is a film without a thorax."""

    file_name: str
    size_hw: tuple[int, int]
    boxes_xyxy: np.ndarray
    labels: tuple[int, ...]  # category index of each box, from 0 in the order of `classes`
    extra: dict[str, Any] = field(default_factory=dict)  # label, patient_id, source, annotator …
    notes: tuple[dict[str, Any], ...] = ()  # other keys of each box: area, iscrowd, provenance …

    @property
    def patient_id(self) -> str:
        """The patient, or the film's own name where no patient is given."""
        return str(self.extra.get("patient_id") or self.file_name)

    @property
    def source(self) -> str:
        """Where the film comes from; films.csv's sources. Empty where it is not said."""
        return str(self.extra.get("source") or "")

    @property
    def label(self) -> str:
        """What the film shows; films.csv's labels. Empty where it is not said."""
        return str(self.extra.get("label") or "")

    @property
    def ignored(self) -> np.ndarray:
        """(N,) bool: the boxes that one of MARKS says not to count. They are kept in the file, and
        are no object: nothing is trained on, measured by or cut along them."""
        marked = [bool(marks_in(note)) for note in self.notes]
        return np.array(marked or [False] * len(self.boxes_xyxy), dtype=bool)

    @property
    def counted(self) -> CocoFilm:
        """The film with the boxes that count alone."""
        kept = np.flatnonzero(~self.ignored)
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[kept],
            labels=tuple(self.labels[i] for i in kept),
            notes=tuple(self.notes[i] for i in kept if self.notes),
        )

    def resized(
        self, size_hw: tuple[int, int], stored_hw: tuple[int, int] | None = None
    ) -> CocoFilm:
        """The film's copy at another size: its boxes scaled, of their notes MARKS alone. A copy
        that was stored as `stored_hw` and resampled to square pixels may have either shape. Raises
        ValueError when the aspect ratios differ by more than 1 %."""
        if size_hw == self.size_hw:
            return self
        if not any(keeps_aspect(self.size_hw, hw) for hw in (size_hw, stored_hw or size_hw)):
            (h, w), (height, width) = size_hw, self.size_hw
            raise ValueError(
                f"{self.file_name} must have the size of its annotation, {width} × {height} px, or "
                f"be a scaled copy of it. Got {w} × {h} px instead."
            )
        boxes = stretch_xyxy(self.boxes_xyxy, self.size_hw, size_hw)
        notes = tuple({k: v for k, v in note.items() if k in MARKS} for note in self.notes)
        return replace(self, size_hw=size_hw, boxes_xyxy=boxes, notes=notes)


def marks_in(note: dict[str, Any]) -> list[str]:
    """Those of MARKS that an annotation bears: as 1 or true, also as a text, as converters from XML
    leave it; a list of scores is no mark."""
    plain = {m: note[m] for m in MARKS if isinstance(note.get(m), int | float | str)}
    return [m for m, value in plain.items() if str(value).strip().lower() in ("1", "1.0", "true")]


@dataclass(frozen=True)
class CocoSet:
    """A whole annotation file."""

    films: list[CocoFilm]
    classes: tuple[str, ...]
    info: dict[str, Any] = field(default_factory=dict)


_IMAGE_KEYS = ("id", "file_name", "width", "height")
OUTSIDE = "reaches out of the film"  # of a fault; check has a stricter rule of its own
_BEYOND = 1e300
_NOTE_KEYS = ("id", "image_id", "category_id", "bbox")


class CocoFault(NamedTuple):
    """One fault. `where` is an entry as `image 3` (counted from 0) or a film; "" is the file."""

    where: str
    what: str
    film: str = ""  # file_name of the image that it belongs to, where that is sound

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


def find_faults(data: Any) -> list[str]:
    """One line for each fault of a COCO detection object; an empty list when it is sound."""
    return [str(fault) for fault in iter_faults(data)]


def iter_faults(data: Any) -> Iterator[CocoFault]:
    """The faults of `find_faults`, whatever the object holds."""
    keys = ("images", "annotations", "categories")
    if not isinstance(data, dict):
        yield CocoFault(
            "", "the file must hold a JSON object with images, annotations and categories"
        )
        return
    if odd := [k for k in keys if not isinstance(data.get(k), list)]:
        yield from (CocoFault("", f"{k} must be a list") for k in odd)
        return
    sound: dict[Any, dict[str, Any]] = {}
    names: set[str] = set()
    for number, image in enumerate(data["images"]):
        if fault := image_fault(image):
            yield CocoFault(f"image {number}", fault)
            continue
        name = image["file_name"]
        if image["id"] in sound:
            yield CocoFault(f"image {name}", f"id {image['id']} stands twice", name)
        if name in names:
            yield CocoFault(f"image {name}", "listed twice", name)
        names.add(name)
        sound[image["id"]] = image
    known: set[Any] = set()
    for number, category in enumerate(data["categories"]):
        if not isinstance(category, dict) or not {"id", "name"} <= set(category):
            yield CocoFault(f"category {number}", "it must have an id and a name")
        elif not isinstance(category["id"], int | str):
            yield CocoFault(f"category {number}", _id_fault(category["id"]))
        elif category["id"] in known:
            what = f"id {category['id']} stands twice"
            yield CocoFault(f"category {category['name']}", what)
        else:
            known.add(category["id"])
    for number, note in enumerate(data["annotations"]):
        yield from _annotation_faults(number, note, sound, known)


def is_box(value: Any) -> TypeGuard[list[float]]:
    """Whether it is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < _BEYOND  # False for NaN too


def _say(value: Any) -> str:
    beyond = isinstance(value, int) and abs(value) >= _BEYOND
    return "a number beyond all films" if beyond else repr(value)


def _id_fault(value: Any) -> str:
    return f"id must be a number or a text. Got {value!r}"


def image_fault(image: Any) -> str:
    """What is wrong with an entry of `images` by itself; "" when it is sound."""
    if not isinstance(image, dict):
        return "it must be a JSON object"
    missing = [k for k in _IMAGE_KEYS if k not in image]
    if missing:
        return f"{', '.join(missing)} missing"
    if not isinstance(image["file_name"], str) or not image["file_name"]:
        return f"file_name must be a text. Got {image['file_name']!r}"
    for side in ("width", "height"):
        if not _is_number(image[side]) or image[side] < 1:
            return f"{image['file_name']}: {side} must be 1 px or more. Got {_say(image[side])}"
    if not isinstance(image["id"], int | str):
        return f"{image['file_name']}: {_id_fault(image['id'])}"
    return ""


def _annotation_faults(
    number: int, note: Any, images: dict[Any, dict[str, Any]], known: set[Any]
) -> Iterator[CocoFault]:
    if not isinstance(note, dict):
        yield CocoFault(f"annotation {number}", "it must be a JSON object")
        return
    owner = note.get("image_id")
    image = images.get(owner) if isinstance(owner, int | str) else None
    if image is None:
        yield CocoFault(f"annotation {number}", f"image_id {owner!r} is no image of the file")
        return
    name, width, height = image["file_name"], image["width"], image["height"]
    category = note.get("category_id")
    if not isinstance(category, int | str) or category not in known:
        yield CocoFault(name, f"category_id {category!r} is not in categories", name)
    box = note.get("bbox")
    if not is_box(box):
        said = f"[{', '.join(map(_say, box))}]" if isinstance(box, list) else repr(box)
        yield CocoFault(name, f"bbox must be four numbers x, y, width, height. Got {said}", name)
        return
    x, y, w, h = box
    if w <= 0 or h <= 0:
        yield CocoFault(name, f"bbox must have a width and a height above 0. Got {box}", name)
    elif x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
        yield CocoFault(name, f"bbox {box} {OUTSIDE} of {width} × {height}", name)


def read_coco_json(path: str | Path) -> dict[str, Any]:
    """The file's own object, with every key it has; raises ValueError that lists the first faults.
    For commands that change a part of a file and must leave the rest as it is."""
    path = Path(path)
    try:
        data = read_json(path)
    except ValueError as error:  # no JSON, or no text at all
        raise ValueError(f"{path} must be JSON. {error}") from error
    faults = find_faults(data)
    if faults:
        more = f"\n… and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise ValueError(f"{path} has {len(faults)} faults:\n" + "\n".join(faults[:8]) + more)
    return dict(data)


def read_coco(path: str | Path) -> CocoSet:
    """Read and check; raises ValueError that lists the first faults."""
    data = read_coco_json(path)
    order = {c["id"]: i for i, c in enumerate(data["categories"])}
    notes: dict[Any, list[dict[str, Any]]] = {}
    for note in data["annotations"]:
        notes.setdefault(note["image_id"], []).append(note)
    films = []
    for image in data["images"]:
        own = notes.get(image["id"], [])
        films.append(
            CocoFilm(
                image["file_name"],
                (int(image["height"]), int(image["width"])),
                xywh_to_xyxy([n["bbox"] for n in own]),
                tuple(order[n["category_id"]] for n in own),
                {k: v for k, v in image.items() if k not in _IMAGE_KEYS},
                tuple({k: v for k, v in n.items() if k not in _NOTE_KEYS} for n in own),
            )
        )
    return CocoSet(films, tuple(c["name"] for c in data["categories"]), data.get("info") or {})


def read_counted(path: str | Path) -> list[CocoFilm]:
    """The films of a COCO file with the boxes that count. A film all of whose boxes are marked not
    to is left out, with a word in the log: it shows something, and nobody says what."""
    films = [(film, film.counted) for film in read_coco(path).films]
    kept = [own for film, own in films if len(own.boxes_xyxy) or not len(film.boxes_xyxy)]
    if less := len(films) - len(kept):
        log.warning("%s: %d films left out, all their boxes are marked not to count", path, less)
    return kept


def to_coco(coco: CocoSet) -> dict[str, Any]:
    """The set as a COCO object; ids count from 1."""
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for number, film in enumerate(coco.films, 1):
        height, width = film.size_hw
        head = {"id": number, "file_name": film.file_name, "width": width, "height": height}
        images.append({**head, **film.extra})
        boxes = xyxy_to_xywh(film.boxes_xyxy).tolist()
        extras = film.notes or ({},) * len(boxes)
        for box, label, extra in zip(boxes, film.labels, extras, strict=True):
            bbox = [round(v, 3) for v in box]
            head = {"id": len(notes) + 1, "image_id": number, "category_id": label + 1}
            area = round(bbox[2] * bbox[3], 3)
            notes.append({**head, "bbox": bbox, "area": area, "iscrowd": 0, **extra})
    categories = [{"id": i, "name": name} for i, name in enumerate(coco.classes, 1)]
    return {"info": coco.info, "categories": categories, "images": images, "annotations": notes}


def write_coco(path: str | Path, coco: CocoSet) -> None:
    """Write atomically; raises ValueError rather than write a file with faults."""
    write_coco_json(path, to_coco(coco))


def write_coco_json(path: str | Path, data: dict[str, Any]) -> None:
    """`write_coco` for an object as `read_coco_json` gives it."""
    faults = find_faults(data)
    if faults:
        raise ValueError(f"{path} would have {len(faults)} faults, the first: {faults[0]}")
    write_json(path, data)

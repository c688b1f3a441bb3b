"""COCO detection JSON: read, check with a line for each fault, write.

Boxes are held as xyxy in the pixels of the film as listed; on disk they are COCO's xywh.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr.boxes import scale_xyxy, xywh_to_xyxy, xyxy_to_xywh
from cxr.workdir import write_json


@dataclass(frozen=True)
class CocoFilm:
    """One film with its boxes: (N, 4) xyxy in its own pixels; N = 0 is a film without a thorax."""

    file_name: str
    size_hw: tuple[int, int]
    boxes_xyxy: np.ndarray
    labels: tuple[int, ...]  # category index of each box, from 0 in the order of `classes`
    extra: dict[str, Any] = field(default_factory=dict)  # label, patient_id, source, annotator …

    @property
    def patient_id(self) -> str:
        """The patient, or the film's own name where no patient is given."""
        return str(self.extra.get("patient_id") or self.file_name)

    def resized(self, size_hw: tuple[int, int]) -> CocoFilm:
        """The entry of the film's copy at another size, its boxes scaled.

        Raises ValueError when the aspect ratios differ by more than 1 %.
        """
        if size_hw == self.size_hw:
            return self
        try:
            boxes = scale_xyxy(self.boxes_xyxy, self.size_hw, size_hw)
        except ValueError as error:
            (h, w), (height, width) = size_hw, self.size_hw
            raise ValueError(
                f"{self.file_name} must have the size of its annotation, {width} × {height} px, or "
                f"be a scaled copy of it. Got {w} × {h} px instead."
            ) from error
        return replace(self, size_hw=size_hw, boxes_xyxy=boxes)


@dataclass(frozen=True)
class CocoSet:
    """A whole annotation file."""

    films: list[CocoFilm]
    classes: tuple[str, ...]
    info: dict[str, Any] = field(default_factory=dict)


_IMAGE_KEYS = ("id", "file_name", "width", "height")


def find_faults(data: Any) -> list[str]:
    """One line for each fault of a COCO detection object; an empty list when it is sound."""
    if not isinstance(data, dict):
        return ["the file must hold a JSON object with images, annotations and categories"]
    faults = [
        f"{k} must be a list"
        for k in ("images", "annotations", "categories")
        if not isinstance(data.get(k), list)
    ]
    if faults:
        return faults
    sizes: dict[Any, tuple[str, float, float]] = {}
    names: set[str] = set()
    for number, image in enumerate(data["images"]):
        fault = _image_fault(image)
        if fault:
            faults.append(f"image {number}: {fault}")
            continue
        if image["id"] in sizes:
            faults.append(f"image {image['file_name']}: id {image['id']} stands twice")
        if image["file_name"] in names:
            faults.append(f"image {image['file_name']}: listed twice")
        names.add(image["file_name"])
        sizes[image["id"]] = (image["file_name"], image["width"], image["height"])
    known: set[Any] = set()
    for number, category in enumerate(data["categories"]):
        if not isinstance(category, dict) or not {"id", "name"} <= set(category):
            faults.append(f"category {number}: it must have an id and a name")
        elif category["id"] in known:
            faults.append(f"category {category['name']}: id {category['id']} stands twice")
        else:
            known.add(category["id"])
    for number, note in enumerate(data["annotations"]):
        faults += _annotation_faults(number, note, sizes, known)
    return faults


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _image_fault(image: Any) -> str:
    if not isinstance(image, dict):
        return "it must be a JSON object"
    missing = [k for k in _IMAGE_KEYS if k not in image]
    if missing:
        return f"{', '.join(missing)} missing"
    if not isinstance(image["file_name"], str) or not image["file_name"]:
        return f"file_name must be a text. Got {image['file_name']!r}"
    for side in ("width", "height"):
        if not _is_number(image[side]) or image[side] < 1:
            return f"{image['file_name']}: {side} must be 1 px or more. Got {image[side]!r}"
    if not isinstance(image["id"], int | str):
        return f"{image['file_name']}: id must be a number or a text. Got {image['id']!r}"
    return ""


def _annotation_faults(
    number: int, note: Any, sizes: dict[Any, tuple[str, float, float]], known: set[Any]
) -> list[str]:
    if not isinstance(note, dict):
        return [f"annotation {number}: it must be a JSON object"]
    if not isinstance(note.get("image_id"), int | str) or note["image_id"] not in sizes:
        return [f"annotation {number}: image_id {note.get('image_id')!r} is no image of the file"]
    name, width, height = sizes[note["image_id"]]
    faults = []
    category = note.get("category_id")
    if not isinstance(category, int | str) or category not in known:
        faults.append(f"{name}: category_id {category!r} is not in categories")
    box = note.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return [*faults, f"{name}: bbox must be four numbers x, y, width, height. Got {box!r}"]
    x, y, w, h = box
    if w <= 0 or h <= 0:
        faults.append(f"{name}: bbox must have a width and a height above 0. Got {box}")
    elif x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
        faults.append(f"{name}: bbox {box} reaches out of the film of {width} × {height}")
    return faults


def read_coco_json(path: str | Path) -> dict[str, Any]:
    """The file's own object, with every key it has; raises ValueError that lists the first faults.

    For commands that change a part of a file and must leave the rest as it is.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
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
            )
        )
    return CocoSet(films, tuple(c["name"] for c in data["categories"]), data.get("info") or {})


def to_coco(coco: CocoSet) -> dict[str, Any]:
    """The set as a COCO object; ids count from 1."""
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for number, film in enumerate(coco.films, 1):
        height, width = film.size_hw
        images.append(
            {
                "id": number,
                "file_name": film.file_name,
                "width": width,
                "height": height,
                **film.extra,
            }
        )
        for box, label in zip(xyxy_to_xywh(film.boxes_xyxy), film.labels, strict=True):
            x, y, w, h = (round(float(v), 3) for v in box)
            notes.append(
                {
                    "id": len(notes) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x, y, w, h],
                    "area": round(w * h, 3),
                    "iscrowd": 0,
                }
            )
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

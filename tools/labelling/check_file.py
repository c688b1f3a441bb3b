"""The faults of a COCO file of thorax boxes, with or without its films at hand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr.boxes import xywh_to_xyxy
from cxr.coco import CocoFilm, find_faults
from cxr.film import Film
from cxr.stream import Unread, default_jobs, read_ahead
from detect.data import find_films
from labelling.box_rules import (
    Fault,
    Follow,
    count_boxes,
    find_box_faults,
    find_wrong_label,
    name_film,
    no_bar,
)

SAME_SHAPE = 0.01  # of the aspect ratio; sizes are whole pixels
# What to do about a line of cxr.coco.find_faults, by a piece of that line.
_FIXES = (
    ("listed twice", "Keep one of its entries"),
    ("stands twice", "Give each entry an id of its own"),
    ("category_id", "Take the id of one of the categories"),
    ("width and a height above 0", "Its edges are crossed or lie on each other: draw it again"),
    ("is no image of the file", "Delete it, or add its image"),
    ("missing", "Add what is missing"),
)


@dataclass(frozen=True)
class FileContent:
    """What a COCO file holds as far as it can be read: film names by image id, and their boxes."""

    data: Any
    images: tuple[dict[str, Any], ...]  # the sound ones
    numbers: dict[str, int]  # file name → place in the file, from 1
    notes: dict[Any, list[dict[str, Any]]]  # image id → annotations
    faults: tuple[Fault, ...]  # of the format

    @property
    def boxes(self) -> int:
        """Boxes of the known films."""
        return sum(map(len, self.notes.values()))

    @property
    def without_box(self) -> int:
        """Films without a box, as a limb or an empty plate has none."""
        return sum(not self.notes.get(image["id"]) for image in self.images)


def find_file_faults(
    coco_path: str | Path,
    films: str | Path | None = None,
    classes: Sequence[str] = (),
    complete: bool = False,
    hashes: bool = True,
    follow: Follow = no_bar,
) -> list[Fault]:
    """All faults of a COCO file, those of its format first.

    Args:
        coco_path: the file.
        films: folder of the films; None looks at no film.
        classes: right labels; empty takes the file's own categories.
        complete: a film without a box is a fault as well.
        hashes: where the file knows the hash of a film, the film must have it still.
        follow: wraps the walk over the films in a progress bar.

    Raises:
        OSError: for a file that cannot be opened.
    """
    content = read_content(coco_path)
    faults = list(content.faults)
    labels = {c["id"]: str(c["name"]) for c in _sound_categories(content.data)}
    for image in content.images:
        name = name_film(content.numbers[image["file_name"]], image["file_name"])
        notes = content.notes.get(image["id"], [])
        for what, fix in _image_faults(image, notes, labels, classes, complete):
            faults.append(Fault(name, what, f"{fix} in {coco_path}"))
    if films is not None:
        faults += _film_faults(content, Path(films), Path(coco_path), hashes, follow)
    return sorted(faults, key=_place)


def read_content(coco_path: str | Path) -> FileContent:
    """Read what can be read; the faults of the format are found by cxr.coco. Raises OSError."""
    where = str(coco_path)
    try:
        data = json.loads(Path(coco_path).read_bytes().decode("utf-8"), parse_int=_parse_int)
    except (ValueError, RecursionError) as error:
        fix = "Take the last good copy, or write it again with annotate.py merge"
        return FileContent(None, (), {}, {}, (Fault(where, f"it is not JSON: {error}", fix),))
    found: list[Fault] = []
    if isinstance(data, dict) and isinstance(data.get("categories"), list):
        odd = [c for c in data["categories"] if not _has_plain_id(c)]
        found = [
            Fault(
                where,
                f"a category must have a number or a text as id. Got {c!r}",
                f"Correct it in {where}",
            )
            for c in odd
        ]
        data = {**data, "categories": [c for c in data["categories"] if _has_plain_id(c)]}
    lines = find_faults(data)
    images = _sound_images(data)
    numbers = _number_images(data)
    found += [
        _to_fault(line, numbers, where)
        for line in lines
        if "reaches out of the film" not in line  # our own rule is stricter, and is for all boxes
    ]
    notes: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in images}
    for note in _list_of(data, "annotations"):
        owner = note.get("image_id") if isinstance(note, dict) else None
        if isinstance(owner, int | str) and owner in notes:
            notes[owner].append(note)
    return FileContent(data, images, numbers, notes, tuple(found))


def _parse_int(text: str) -> int | float:
    """A whole number; one beyond all floats as infinity, which is refused by its name."""
    return int(text) if len(text) < 300 else float(text)


def _list_of(data: Any, key: str) -> list[Any]:
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, list) else []


def _number_images(data: Any) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for number, image in enumerate(_list_of(data, "images"), start=1):
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            numbers.setdefault(image["file_name"], number)
    return numbers


def _place(fault: Fault) -> int:
    """Faults of the whole file first, then film by film."""
    number = fault.film.split(" ")[0]
    return int(number) if number.isdecimal() else 0


def _has_plain_id(entry: Any) -> bool:
    return not isinstance(entry, dict) or isinstance(entry.get("id", 0), int | str)


def _sound_images(data: Any) -> tuple[dict[str, Any], ...]:
    """The images that can be spoken of: a name, an id and a size; of two with one id the first."""
    sound: dict[Any, dict[str, Any]] = {}
    for image in _list_of(data, "images"):
        if not find_faults({"images": [image], "annotations": [], "categories": []}):
            sound.setdefault(image["id"], image)
    return tuple(sound.values())


def _sound_categories(data: Any) -> list[dict[str, Any]]:
    return [
        c for c in _list_of(data, "categories") if isinstance(c, dict) and {"id", "name"} <= set(c)
    ]


def _to_fault(line: str, numbers: dict[str, int], where: str) -> Fault:
    """A line of find_faults, `NAME: what` or `annotation 0: what`, as a fault."""
    fix = next((fix for piece, fix in _FIXES if piece in line), "Correct it")
    text = line.removeprefix("image ")
    name, _, what = text.partition(": ")
    while name not in numbers and ": " in what:  # a film's name may hold a colon itself
        more, _, what = what.partition(": ")
        name = f"{name}: {more}"
    if name in numbers:
        return Fault(name_film(numbers[name], name), what, f"{fix} in {where}")
    entry = re.match(r"(image|annotation|category) (\d+): (.*)", line, re.DOTALL)
    if not entry:
        return Fault(where, line, f"{fix} in {where}")
    kind, index, what = entry.groups()  # counted from 0 there, from 1 for people
    return Fault(f"{kind} {int(index) + 1}", what, f"{fix} in {where}")


def _image_faults(
    image: dict[str, Any],
    notes: Sequence[dict[str, Any]],
    labels: dict[Any, str],
    classes: Sequence[str],
    complete: bool,
) -> Iterator[tuple[str, str]]:
    if complete and not notes:
        yield "no box", "Draw one and merge again, or leave the film out"
    if len(notes) > 1:
        yield count_boxes(len(notes)), "Delete all but the right one"
    for number, note in enumerate(notes, start=1):
        name = "the box" if len(notes) == 1 else f"box {number} of {len(notes)}"
        category = note.get("category_id")
        label = labels.get(category) if isinstance(category, int | str) else None
        if classes and label is not None and (wrong := find_wrong_label(label, classes, name)):
            yield wrong, f"Give it the category {' or '.join(classes)}"
        box = note.get("bbox")
        if not _is_sound_box(box):
            continue  # the format's faults name it already
        yield from find_box_faults(xywh_to_xyxy([box])[0].tolist(), _size_hw(image), name)


def _is_sound_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in box):
        return False
    return all(map(math.isfinite, box)) and box[2] > 0 and box[3] > 0


def _film_faults(
    content: FileContent, folder: Path, coco_path: Path, hashes: bool, follow: Follow
) -> Iterator[Fault]:
    images = content.images
    listed = [CocoFilm(i["file_name"], _size_hw(i), np.zeros((0, 4)), ()) for i in images]
    try:
        listed = find_films(listed, folder)  # by base name too, as for training
    except ValueError as error:
        yield Fault(str(folder), str(error).rstrip("."), "Give one of its folders as --films")
    paths = [folder / film.file_name for film in listed]
    if images and not any(path.exists() for path in paths):  # one line, not one for each film
        what = f"none of the {len(images)} films is in this folder"
        yield Fault(str(folder), what, "Give the folder of the films as --films")
        return
    read = read_ahead(paths, jobs=default_jobs(len(images)))
    pairs = zip(images, read, strict=True)
    for image, (path, film) in follow(pairs, len(images)):
        name = name_film(content.numbers[image["file_name"]], image["file_name"])
        if isinstance(film, Unread):
            missing = film.reason == "not_found"
            why = film.sentence.rstrip(".")
            what = "the film is missing" if missing else f"the film cannot be read: {why}"
            yield Fault(name, what, f"Put it at {path}, or give the right --films")
        elif what := _difference(image, film, hashes):
            fix = f"Put the film that was boxed at {path}, or box this one and merge it into"
            copies = "; if the films boxed were copies: --hashes=false"
            yield Fault(name, what, f"{fix} {coco_path}{copies * ('changed' in what)}")


def _difference(image: dict[str, Any], film: Film, hashes: bool) -> str:
    """In what a film differs from the one that was boxed; "" when it does not.

    A file may list a film at its size in a public set though a smaller copy was boxed: that copy
    is known by its hash, and any size of the same shape is right for it.
    """
    height, width = film.pixels.shape
    listed_h, listed_w = _size_hw(image)
    known = image.get("sha256")
    if hashes and known and known != film.sha256:
        return "the film has changed since it was boxed"
    if (height, width) == (listed_h, listed_w):
        return ""
    scaled = abs(height * listed_w / (width * listed_h) - 1) < SAME_SHAPE
    if scaled and known == film.sha256:
        return ""
    return f"the film is {width} × {height} px, the file says {listed_w} × {listed_h}"


def _size_hw(image: dict[str, Any]) -> tuple[int, int]:
    return int(image["height"]), int(image["width"])

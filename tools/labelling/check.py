"""annotate.py check: one line for each fault of a session or a COCO file, with what to do."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.text import Text

from cxr.boxes import area_xyxy, clip_xyxy, xywh_to_xyxy
from cxr.coco import OUTSIDE, CocoFault, CocoFilm, image_fault, is_box, iter_faults, marks_in
from cxr.film import Film, list_films
from cxr.films_table import FilmStems, film_stem
from cxr.page import printable
from cxr.stream import Unread, default_jobs, read_ahead
from cxr.workdir import console as progress_console
from cxr.workdir import read_json, sha256_file
from detect.data import find_films
from labelling import (
    DONE_STATES,
    Answer,
    Session,
    SessionFilm,
    count_states,
    is_session,
    so_many,
    split_names,
)
from labelling.labelme import Shape

OUTSIDE_PX = 0.5  # film pixels; less is rounding on the way from the view to the film
MIN_SHARE, MAX_SHARE = 0.20, 0.99  # of the film's area
SAME_SHAPE = 0.01  # of the aspect ratio; sizes are whole pixels
START = "python tools/annotate.py start --session"
_LONGEST = 240  # characters of a fault: some hold a whole list of points
_WORTH_A_BAR = 20  # films; fewer are through before a bar is read
_DELETE_OTHERS = "Delete all but the right one"
# What to do about a fault of cxr.coco, by a piece of its text.
_FIXES = {
    "listed twice": "Keep one of its entries",
    "stands twice": "Give each entry an id of its own",
    "category_id": "Take the id of one of the categories",
    "width and a height above 0": "Its edges are crossed or lie on each other: draw it again",
    "is no image of the file": "Delete it, or add its image",
    "missing": "Add what is missing",
}

Says = Iterator[tuple[str, str]]  # what is wrong, and what to do, without the film
Entry = dict[str, Any]  # of a COCO file
Names = Sequence[str]
SizeHw = tuple[int, int]


@dataclass(frozen=True)
class CheckConfig:
    """Check the boxes of labelling sessions or COCO files: one line for each fault with the film
    and what to do. The exit code is 1 when there are faults.

    Args:
        session: session folders, or COCO files such as annotations/thorax.json.
        hashes: look whether a session's films are there and unchanged; of a COCO file with films,
            whether those whose hash it knows are unchanged.
        complete: films that are still to do (in a COCO file: without a box) are faults as well.
        films: folder of a COCO file's films, to see that they are there and of the same size.
        classes: right labels in a COCO file, with commas between; empty takes those it names.
    """

    session: tuple[str, ...] = ()
    hashes: bool = True
    complete: bool = False
    films: str = ""
    classes: str = ""

    def __post_init__(self) -> None:
        if not self.session:
            rule = "session must name a session's folder or a COCO file"
            raise ValueError(f"{rule}. Got none instead.")
        only_files = [f"--{name}" for name in ("films", "classes") if getattr(self, name)]
        if only_files and all(map(is_session, self.session)):
            why = "A session knows its films and classes itself."
            raise ValueError(f"{' and '.join(only_files)} must stand beside a COCO file. {why}")


@dataclass(frozen=True)
class Fault:
    """One fault: number and name of the film (or a file), what is wrong, and what to do."""

    film: str
    what: str
    fix: str

    def __str__(self) -> str:
        what = self.what if len(self.what) <= _LONGEST else self.what[: _LONGEST - 1] + "…"
        # One line whatever the file names and the JSON hold.
        return printable(f"{self.film}: {what}. {self.fix}", "?")


def run(config: CheckConfig) -> int:
    """Print the faults of each; 1 when there are any or one could not be opened."""
    console = Console(highlight=False, soft_wrap=True)
    code, classes = 0, split_names(config.classes)
    for path in config.session:
        try:
            if is_session(path):
                session = Session.open(path)
                faults, summary = check_session(session, config.hashes, config.complete)
            elif Path(path).is_file():
                own = config.films or None, classes, config.complete, config.hashes
                faults, summary = check_file(path, *own)
            else:
                rule = "session must be a folder that `annotate.py start` made, or a COCO file"
                raise FileNotFoundError(f"{rule}. Got '{path}' instead, which is neither.")
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            code = 1
            continue
        for fault in faults:
            line = Text(str(fault))
            line.stylize("bold", 0, len(fault.film))
            console.print(line)
        number = so_many(len(faults), "fault") if faults else "no faults"
        where = f"{path}: " if len(config.session) > 1 else ""
        console.print(Text(f"{where}{number} in {summary}", style="bold"))
        code = max(code, int(bool(faults)))
    return code


def _summarise(films: int, boxes: int, rest: dict[str, int]) -> str:
    said = f"{so_many(films, 'film')}, {so_many(boxes, 'box')}"
    left = ", ".join(f"{count} {what}" for what, count in rest.items() if count)
    return f"{said}; {left}" if left else said


def _follow(items: Iterable[Any], total: int) -> Iterable[Any]:
    """The films with a progress bar, where there are many."""
    if total < _WORTH_A_BAR:
        return items
    return track(items, "looking at the films", total, console=progress_console, transient=True)


def _name_film(number: int, name: str) -> str:
    return f"{number:04d} {name}"


def _box_faults(boxes: Sequence[Shape], size_hw: SizeHw, classes: Names, word: str) -> Says:
    """The faults of a film's boxes, in film pixels; `word` is what gives a box its class."""
    for number, box in enumerate(boxes, start=1):
        name = "the box" if len(boxes) == 1 else f"box {number} of {len(boxes)}"
        if not box.prelabelled:  # nobody has answered for that one yet
            for what, fix in _rules(box, size_hw, classes, word):
                yield f"{name} {what}", fix


def _rules(box: Shape, size_hw: SizeHw, classes: Names, word: str) -> Says:
    """What a thorax box must be like, whichever file it stands in."""
    (height, width), (x0, y0, x1, y1) = size_hw, box.xyxy
    if classes and box.label not in classes:
        label = f"is labelled '{box.label}'" if box.label else "has no label"
        right = " or ".join(classes)
        yield f"{label}, not {right}", f"Give it the {word} {right}"
    if box.shape_type != "rectangle":
        kind = box.shape_type.replace("_", " ")
        yield f"is of the shape {kind}, not a rectangle", "Delete it and draw a rectangle"
        return
    if box.crossed:
        yield "has no width or height, or its edges are crossed", "Delete it and draw it again"
        return
    over = {"left": -x0, "top": -y0, "right": x1 - width, "bottom": y1 - height}
    sides = [f"{px:.1f} px at the {side}" for side, px in over.items() if px > OUTSIDE_PX]
    if sides:
        yield f"reaches out of the film by {' and '.join(sides)}", "Move its edge onto the film"
    share = float(area_xyxy(clip_xyxy(box.xyxy, size_hw))[0]) / max(1, height * width)
    if share < MIN_SHARE:
        percent = math.floor(1000 * share) / 10  # rounded down: 19.96 is not "20 %"
        least = f"a thorax at least {MIN_SHARE * 100:.0f} %"
        yield f"covers {percent:.1f} % of the film, {least}", "Draw it round both lungs"
    elif share > MAX_SHARE:
        most = f"a thorax at most {MAX_SHARE * 100:.0f} %"
        yield f"covers the whole film, {most}", "Draw it tight round both lungs"


def _count_boxes(boxes: Sequence[Any]) -> str:
    return "two boxes" if len(boxes) == 2 else f"{len(boxes)} boxes"


# A labelling session: its label files against its films, one by one


def check_session(
    session: Session, hashes: bool = True, complete: bool = False
) -> tuple[list[Fault], str]:
    """All faults of a session in the order of its films, and its films and boxes in words; for the
    arguments see CheckConfig."""
    faults = []
    if hashes and not session.root.is_dir():  # one line, not one for each film in it
        fix = "Put it back, or check the boxes alone: --hashes=false"
        faults.append(Fault(str(session.root), "the folder of the films is missing", fix))
        hashes = False
    last = {entry["number"]: entry["state"] for entry in session.history()}
    answers = session.answers()
    for film, answer in _follow(answers, len(answers)):
        if answer.state == "unreadable":
            continue  # it never had a view to draw on
        if hashes:
            faults += _find_changed(session, film)
        own = list(_answer_faults(session, film, answer, last.get(film.number) in DONE_STATES))
        if complete and answer.state == "todo" and not own:
            what = "still ticked as doubtful" if "doubtful" in answer.flags else "no answer yet"
            own = [_in_labelme(session, film, what, "Draw or accept its box")]
        faults += own
    views, own_names = session.path / "views", {Path(f.view).stem for f in session.films if f.view}
    for path in sorted(views.glob("*.json")):
        if path.stem not in own_names:  # somebody drew on a picture that is not the session's
            what = "this label file belongs to no film of the session"
            fix = f"Move it out of {views}, or delete it"
            faults.append(Fault(f"views/{path.name}", what, fix))
    counts = count_states(answer for _, answer in answers)
    doubtful = f" ({counts['doubtful']} of them doubtful)" if counts["doubtful"] else ""
    rest = {f"still to do{doubtful}": counts["todo"], "skipped": counts["skipped"]}
    rest["that cannot be opened"] = counts["unreadable"]
    boxes = sum(answer.box is not None for _, answer in answers)
    return faults, _summarise(counts["films"], boxes, rest)


def _in_labelme(session: Session, film: SessionFilm, what: str, fix: str) -> Fault:
    """A fault that is mended in labelme, with the command that opens it at this film."""
    command = f"{START} {shlex.quote(str(session.path))} --film {film.number}"
    return Fault(_name_film(film.number, film.film), what, f"{fix} in labelme: {command}")


def _find_changed(session: Session, film: SessionFilm) -> list[Fault]:
    """Why the film's file is no longer the one that was labelled."""
    path = session.film_path(film)
    what = "the film has changed since the session was made"
    fix = f"Put the old film back at {path}, or label this one in a session of its own"
    try:
        if sha256_file(path) == film.sha256:
            return []
    except FileNotFoundError:
        what, fix = "the film is missing", f"Put it back at {path}"
    except OSError as error:
        what = f"the film cannot be opened: {error.strerror}"
        fix = f"Make {path} readable, or put the film back there"
    return [Fault(_name_film(film.number, film.film), what, fix)]


def _answer_faults(
    session: Session, film: SessionFilm, answer: Answer, answered: bool
) -> Iterator[Fault]:
    """The faults of a film's label file; `answered`: the history holds an answer for it."""
    name, path, boxes = _name_film(film.number, film.film), session.label_path(film), answer.boxes
    start = f"{START} {shlex.quote(str(session.path))}"
    kept = f"Its last answer is kept, and put back by: {start}"
    if answer.fault:
        foreign = answer.fault.startswith("belongs to")
        what = answer.fault if foreign else f"is of no use: {answer.fault}"
        move = f"Move {path} elsewhere and draw the box again: {start} --film {film.number}"
        yield Fault(name, f"its label file {path.name} {what}", kept if answered else move)
        return
    if answer.state == "skipped":
        return
    if not boxes and not path.exists() and answered:
        yield Fault(name, f"its label file {path.name} is gone", kept)
    if not boxes and path.exists() and "doubtful" not in answer.flags:
        # `start` writes no label file without a box: an empty one was saved by hand
        said = "accepted is ticked" if "accepted" in answer.flags else "it was saved"
        fix = "Draw the box, or tick unreadable or not frontal,"
        yield _in_labelme(session, film, f"no box, though {said}", fix)
    if len(boxes) > 1:
        what = _count_boxes(boxes) + ", one of them pre-drawn" * any(b.prelabelled for b in boxes)
        fix = "Delete the one that is wrong" if len(boxes) == 2 else _DELETE_OTHERS
        yield _in_labelme(session, film, what, fix)
    for what, fix in _box_faults(boxes, film.size_hw, session.classes, "label"):
        yield _in_labelme(session, film, what, fix)


# A COCO file, with or without its films at hand


def check_file(
    path: str | Path,
    films: str | Path | None = None,
    classes: Names = (),
    complete: bool = False,
    hashes: bool = True,
) -> tuple[list[Fault], str]:
    """All faults of a COCO file, those of its format first, and its films and boxes in words; for
    the arguments see CheckConfig. Raises OSError for a file that cannot be opened."""
    try:
        data = read_json(path)
    except ValueError as error:
        fix = "Take the last good copy, or write it again with annotate.py merge"
        return [Fault(str(path), f"it is not JSON: {error}", fix)], _summarise(0, 0, {})
    images: dict[Any, Entry] = {}  # the sound ones by id
    names: dict[str, str] = {}  # file name → as every line begins
    for number, image in enumerate(_entries(data, "images"), start=1):
        if not image_fault(image):
            images.setdefault(image["id"], image)
            names.setdefault(image["file_name"], _name_film(number, image["file_name"]))
    labels = {
        c["id"]: str(c["name"])
        for c in _entries(data, "categories")
        if isinstance(c, dict) and {"id", "name"} <= set(c) and isinstance(c["id"], int | str)
    }
    notes: dict[Any, list[Entry]] = {key: [] for key in images}
    for note in _entries(data, "annotations"):
        owner = note.get("image_id") if isinstance(note, dict) else None
        if isinstance(owner, int | str) and owner in notes and not marks_in(note):
            notes[owner].append(note)
    # what leaves the film is ours to say: our own rule is stricter, and is for all boxes
    lines = [fault for fault in iter_faults(data) if OUTSIDE not in fault.what]
    faults = [_to_fault(fault, names, path) for fault in lines]
    for key, image in images.items():
        found = list(_image_faults(image, notes[key], labels, classes))
        if complete and not notes[key]:
            found.append(("no box", "Draw one and merge again, or leave the film out"))
        name = names[image["file_name"]]
        faults += [Fault(name, what, f"{fix} in {path}") for what, fix in found]
    if films is not None:
        faults += _film_faults(list(images.values()), names, Path(films), path, hashes)
    boxes = [len(own) for own in notes.values()]
    summary = _summarise(len(boxes), sum(boxes), {"without a box": boxes.count(0)})

    def place(fault: Fault) -> int:  # those of the whole file first, then film by film
        number = fault.film.split(" ")[0]
        return int(number) if number.isdecimal() else 0

    return sorted(faults, key=place), summary


def _entries(data: Any, key: str) -> list[Any]:
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, list) else []


def _to_fault(fault: CocoFault, names: dict[str, str], path: str | Path) -> Fault:
    fix = next((fix for piece, fix in _FIXES.items() if piece in fault.what), "Correct it")
    entry = re.fullmatch(r"(image|annotation|category) (\d+)", fault.where)
    where, what = str(path), str(fault)
    if fault.film:
        where, what = names[fault.film], fault.what
    elif entry:  # counted from 0 there, from 1 for people
        where, what = f"{entry[1]} {int(entry[2]) + 1}", fault.what
    return Fault(where, what, f"{fix} in {path}")


def _image_faults(image: Entry, notes: list[Entry], labels: dict[Any, str], classes: Names) -> Says:
    if len(notes) > 1:
        yield _count_boxes(notes), _DELETE_OTHERS
    boxes = []
    for note in notes:
        category, box = note.get("category_id"), note.get("bbox")
        # an unknown class or an odd box is a fault of the format, and named already
        if is_box(box) and box[2] > 0 and box[3] > 0:
            known = isinstance(category, int | str) and category in labels
            label = labels[category] if known else next(iter(classes), "")
            x0, y0, x1, y1 = xywh_to_xyxy([box])[0].tolist()
            boxes.append(Shape(label, ((x0, y0), (x1, y1))))
    yield from _box_faults(boxes, _size_hw(image), classes, "category")


def _film_faults(
    images: list[Entry], names: dict[str, str], folder: Path, path: str | Path, hashes: bool
) -> Iterator[Fault]:
    try:
        places = _find_places([image["file_name"] for image in images], folder)
    except ValueError as error:
        yield Fault(str(folder), str(error).rstrip("."), "Give one of its folders as --films")
        places = [folder / image["file_name"] for image in images]
    if images and not any(place.exists() for place in places):  # one line, not one for each film
        what = f"none of the {len(images)} films is in this folder"
        yield Fault(str(folder), what, "Give the folder of the films as --films")
        return
    read = read_ahead(places, jobs=default_jobs(len(images)))
    for image, (place, film) in _follow(zip(images, read, strict=True), len(images)):
        name = names[image["file_name"]]
        if isinstance(film, Unread):
            what = f"the film cannot be read: {film.sentence.rstrip('.')}"
            what = "the film is missing" if film.reason == "not_found" else what
            yield Fault(name, what, f"Put it at {place}, or give the right --films")
        elif what := _difference(image, film, hashes):
            fix = f"Put the film that was boxed at {place}, or box this one and merge it into"
            copies = "; if the films boxed were copies: --hashes=false"
            yield Fault(name, what, f"{fix} {path}{copies * ('changed' in what)}")


def _find_places(names: Names, folder: Path) -> list[Path]:
    """Where each film lies: by its path, by its base name as for training, else by its stem, as
    `merge --names base --suffix .jpeg` lists what lies as x/film.dcm. Raises ValueError for a base
    name of several films."""
    listed = find_films([CocoFilm(n, (1, 1), np.zeros((0, 4)), ()) for n in names], folder)
    places = [folder / film.file_name for film in listed]
    lost = {place for place in places if not place.exists()}
    if not lost or not folder.is_dir():
        return places
    stems = Counter(film_stem(place.name) for place in lost)
    others = FilmStems(set(list_films([folder]).films) - set(places))
    alone = {place for place in lost if stems[film_stem(place.name)] == 1}
    return [(others.find(p.name) if p in alone else None) or p for p in places]


def _difference(image: Entry, film: Film, hashes: bool) -> str:
    """In what a film differs from the one that was boxed; "" when it does not. A file may list a
    film at its size in a public set though a smaller copy was boxed: that copy is known by its
    hash, and any size of the same shape is right for it."""
    height, width = film.pixels.shape
    listed_h, listed_w = _size_hw(image)
    known = image.get("sha256")
    if hashes and known and known != film.sha256:
        return "the film has changed since it was boxed"
    scaled = abs(height * listed_w / (width * listed_h) - 1) < SAME_SHAPE
    if (height, width) == (listed_h, listed_w) or (scaled and known == film.sha256):
        return ""
    return f"the film is {width} × {height} px, the file says {listed_w} × {listed_h}"


def _size_hw(image: Entry) -> SizeHw:
    return int(image["height"]), int(image["width"])

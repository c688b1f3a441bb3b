"""The public sets by name: which there are, which a folder is, and reading one.

The sets whose folders say what a film shows are here, those with a table in `tables`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import get_args

import numpy as np
from PIL import Image
from rich.progress import track

from cxr.public_sets import tables
from cxr.public_sets.records import (
    NO_FINDING,
    OWN,
    FindingBox,
    Item,
    LayoutError,
    LeftOut,
    LoadedSet,
    Loader,
    Problem,
    PublicFilm,
    Uncertain,
    describe,
    levels,
    list_folders,
    list_pictures,
)
from cxr.workdir import console

# --- Kermany et al.: children of 1 to 5 years from Guangzhou, `chest_xray/` ---

PARTS = ("train", "val", "test")
LABELS = {"NORMAL": "normal", "PNEUMONIA": "pneumonia"}
_CAUSES = {"bacteria": "bacterial", "virus": "viral"}
_PERSON = re.compile(r"^(person\d+)_(bacteria|virus)_\d+$", re.I)
_NORMAL = re.compile(r"^(?:NORMAL2?-)?(IM-\d+)-\d+(?:-\d+)?$", re.I)
_MENDELEY3 = re.compile(r"^(BACTERIA|VIRUS|NORMAL)-(\d+)-\d+$", re.I)  # names of version 3


def name_of_film(stem: str) -> tuple[str, str] | None:
    """(patient, cause) of a file's name; cause `bacterial`, `viral` or "" for a normal film.
    `NORMAL2-IM-0117-0001` and `IM-0117-0001` are one patient: a number may have been given twice,
    but one patient too many in a group does no harm, one in two groups does. None: no such name."""
    if match := _PERSON.match(stem):
        return match[1].lower(), _CAUSES[match[2].lower()]
    if match := _NORMAL.match(stem):
        return match[1].upper(), ""
    if match := _MENDELEY3.match(stem):
        return match[2], _CAUSES.get(match[1].lower(), "")
    return None


def _kermany(root: Path, _: Uncertain) -> Iterator[Item]:
    parts_of_patient: dict[str, set[str]] = defaultdict(set)
    for part in PARTS:
        if not (root / part).is_dir():
            yield Problem("missing_folder", part, "The part is not there.")
            continue
        for folder in list_folders(root / part):
            if folder.name not in LABELS:
                text = "No class of this set; its films were left out."
                yield Problem("odd_name", f"{part}/{folder.name}", text)
        for word, label in LABELS.items():
            names = list_pictures(root / part / word)
            if not names:
                yield Problem("missing_folder", f"{part}/{word}", "No pictures in this class.")
            for name in names:
                for item in _kermany_film(f"{part}/{word}/{name}", label):
                    if isinstance(item, PublicFilm):
                        parts_of_patient[item.patient_id].add(part)
                    yield item
    shared = sorted(p for p, parts in parts_of_patient.items() if len(parts) > 1)
    if shared:
        yield Problem(
            "patient_in_two_parts",
            ", ".join(shared[:5]) + (", …" if len(shared) > 5 else ""),
            f"{len(shared)} patients' names are in more than one of train, val and test: the "
            "official split may share patients. Split by patient_id.",
        )


def _kermany_film(image: str, label: str) -> Iterator[PublicFilm | Problem]:
    stem = Path(image).stem
    named = name_of_film(stem)
    if named is None:
        yield Problem("odd_name", image, f"The name says no patient; the film {OWN}.")
    patient, cause = named or (stem, "")
    if named and (cause != "") != (label == "pneumonia"):
        text = f"The name says {cause or 'normal'}, the folder {label}; the folder counts."
        yield Problem("odd_name", image, text)
    sublabel = NO_FINDING if label == "normal" else cause or "unspecified"
    who = ("kermany", f"kermany-{patient}")
    yield PublicFilm(image, "", *who, label, sublabel, "CC BY 4.0", "AP", age="paediatric 1-5 y")


# --- COVID-19 Radiography Database: films of many other sets by class, without patients ---

_KAGGLE = "not stated; Kaggle: data files © original authors"
# folder, lower case without signs → label, sublabel
_CLASSES = {
    "covid": ("covid", "COVID-19"),
    "covid19": ("covid", "COVID-19"),
    "normal": ("normal", NO_FINDING),
    "lungopacity": ("other", "Lung_Opacity"),
    "viralpneumonia": ("pneumonia", "viral"),
}


def _class_folders(root: Path) -> dict[Path, tuple[str, str]]:
    """Folders of the classes that are there, however they are written."""
    words = {f: re.sub(r"[^a-z0-9]", "", f.name.lower()) for f in list_folders(root)}
    return {f: _CLASSES[word] for f, word in words.items() if word in _CLASSES}


def _is_radiography(folder: Path) -> bool:
    """Whether `folder` has covid and one of the set's own classes (normal is anyone's)."""
    sublabels = {sublabel for _, sublabel in _class_folders(folder).values()}
    return "COVID-19" in sublabels and bool(sublabels & {"Lung_Opacity", "viral"})


def _radiography(root: Path, _: Uncertain) -> Iterator[Item]:
    """Films of `images/` or, in older releases, right in the class. The lung masks of the set are a
    network's and smaller than the films; they are not taken."""
    found = _class_folders(root)
    missing = {sub for _, sub in _CLASSES.values()} - {sub for _, sub in found.values()}
    for sublabel in sorted(missing - {"Lung_Opacity"}):  # the first releases had no Lung_Opacity
        yield Problem("missing_folder", sublabel, "The class is not there.")
    text = (
        f"The set names no patients: each film {OWN}, and one patient may be in two parts of a "
        "split. Viral pneumonia are children of kermany."
    )
    yield Problem("no_patient", "all films", text)
    for folder, what in found.items():
        films = folder / "images" if (folder / "images").is_dir() else folder
        for name in list_pictures(films):
            stem = Path(name).stem
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9 _-]*?[ _-]?\(?\d+\)?", stem):
                yield Problem("odd_name", f"{folder.name}/{name}", "Not a name as `COVID-1`; kept.")
            image, who = (films / name).relative_to(root).as_posix(), f"radiography-{stem}"
            yield PublicFilm(image, "", "radiography", who, *what, _KAGGLE, "unknown")


SETS = {
    loader.name: loader
    for loader in (
        Loader(
            "kermany",
            "Kermany et al., chest X-ray images (pneumonia)",
            "chest_xray/ with train/, val/ and test/, each with NORMAL/ and PNEUMONIA/ of .jpeg "
            "files",
            "CC BY 4.0",
            "Kermany, Zhang, Goldbaum: Labeled Optical Coherence Tomography (OCT) and Chest X-Ray "
            "Images for Classification. Mendeley Data, doi 10.17632/rscbjbr9sj; Cell 172 (2018), "
            "doi 10.1016/j.cell.2018.02.010",
            lambda folder: any((folder / p / label).is_dir() for p in PARTS for label in LABELS),
            _kermany,
        ),
        *tables.LOADERS,
        Loader(
            "radiography",
            "COVID-19 Radiography Database",
            "COVID-19_Radiography_Dataset/ with COVID/, Normal/, Lung_Opacity/ and Viral Pneumonia/"
            ", each with images/ of .png files (older releases: the files right in the class)",
            _KAGGLE,
            "Chowdhury et al.: Can AI Help in Screening Viral and COVID-19 Pneumonia? IEEE Access "
            "2020, doi 10.1109/ACCESS.2020.3010287; Rahman et al. 2021, "
            "doi 10.1016/j.compbiomed.2021.104319",
            _is_radiography,
            _radiography,
        ),
    )
}

# --- reading a set ---


def load_set(
    name: str, path: str | Path, uncertain: Uncertain = "ignore", progress: bool = True
) -> LoadedSet:
    """Read the public set `name` in the folder `path` (or up to two folders below it), to which
    `image` of the rows is relative; `uncertain` as in `cxr.public_sets.records.label_of_values`.
    Raises ValueError for an unknown name or policy, and LayoutError, which is one too, when the
    folder is not laid out as the set is."""
    if name not in SETS:
        raise ValueError(f"source must be one of {', '.join(SETS)}. Got '{name}'.")
    if uncertain not in get_args(Uncertain):
        known = ", ".join(get_args(Uncertain))
        raise ValueError(f"uncertain must be one of {known}. Got '{uncertain}'.")
    path = Path(path)
    root = find_root(name, path)
    return gather(SETS[name].read(root, uncertain), path, root, name, progress)


def find_root(name: str, path: Path) -> Path:
    """The top of the set in `path` or up to two folders below; raises LayoutError without one."""
    for level in levels(path) if path.is_dir() else ():
        roots = [folder for folder in level if SETS[name].is_root(folder)]
        if len(roots) == 1:
            return roots[0]
        if roots:
            places = ", ".join(str(root) for root in roots)
            raise LayoutError(
                f"'{path}' must hold {name} once. Got {len(roots)}: {places}. Name "
                "the folder of one of them."
            )
    folders = (f for level in (levels(path) if path.is_dir() else ()) for f in level)
    other = next((s for f in folders for s, loader in SETS.items() if loader.is_root(f)), "")
    hint = f" It looks like {other}: use --source {other}." if other else ""
    raise LayoutError(
        f"'{path}' must be a folder of {name}: {SETS[name].layout}. Found: {describe(path)}.{hint}"
    )


_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # values of the orientation tag that swap width and height


def gather(
    items: Iterable[Item], path: Path, root: Path, source: str, progress: bool = True
) -> LoadedSet:
    """Rows with sizes for all films of `items` that are there; nothing is decoded. Names in `items`
    are relative to `root`, names in the result to `path` above it. A film that is missing,
    unreadable or listed twice becomes a problem instead of a row."""
    found = list(items)
    films = [item for item in found if isinstance(item, PublicFilm)]
    problems = [item for item in found if isinstance(item, Problem)]
    left_out = Counter(item.reason for item in found if isinstance(item, LeftOut))
    prefix = root.relative_to(path)
    rows: dict[str, PublicFilm] = {}
    bar = track(films, f"{source}: reading sizes", console=console, disable=not progress)
    for film in bar:
        row = _measure(film, root, (prefix / film.image).as_posix(), rows)
        if isinstance(row, Problem):
            problems.append(row)
        else:
            rows[film.image] = row
    boxes = [item for item in found if isinstance(item, FindingBox)]
    kept = [_check_box(box, rows.get(box.image), problems) for box in boxes]
    return LoadedSet(
        list(rows.values()),
        problems,
        [box for box in kept if box],
        dict(sorted(left_out.items())),
        source,
    )


def _measure(
    film: PublicFilm, root: Path, name: str, rows: dict[str, PublicFilm]
) -> PublicFilm | Problem:
    if film.image in rows:
        text = "The film is listed twice; the first line counts."
        if (film.label, film.patient_id) != (rows[film.image].label, rows[film.image].patient_id):
            text = "The film is listed twice and differently; the first line counts."
        return Problem("duplicate", name, text)
    place = PurePosixPath(film.image)
    if place.is_absolute() or ".." in place.parts:
        return Problem("odd_name", name, "The name leads out of the set's folder; left out.")
    try:
        name.encode()
    except UnicodeEncodeError:
        return Problem("odd_name", name, "The name is no UTF-8 text; left out. Rename the file.")
    try:
        width, height = read_size(root / film.image)
    except (FileNotFoundError, NotADirectoryError):
        return Problem("missing_file", name, "The film is listed but not there; left out.")
    except Exception:  # Pillow raises all kinds on broken headers
        return Problem("unreadable", name, "The file's header is no picture's; left out.")
    return film.sized(name, width, height)


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture from its header, upright as `cxr.film.read_film` shows it."""
    with Image.open(path) as image:
        width, height = image.size
        # a PNG's tag may stand behind the pixels, and asking for it would decode them
        turned = image.format == "JPEG" and image.getexif().get(_ORIENTATION) in _SIDEWAYS
    return (height, width) if turned else (width, height)


def _check_box(
    box: FindingBox, film: PublicFilm | None, problems: list[Problem]
) -> FindingBox | None:
    """The box in pixels of the file, clipped to it; None, and a problem, when nothing is left."""
    if film is None:
        text = f"A box of {box.finding} has no film; left out."
        problems.append(Problem("box_without_film", box.image, text))
        return None
    scale = film.width / box.of_width if box.of_width else 1.0
    asked = np.array([box.x, box.y, box.x + box.w, box.y + box.h]) * scale
    x0, y0, x1, y1 = clipped = np.clip(asked, 0, [film.width, film.height] * 2)
    if not (x1 > x0 and y1 > y0):
        text = f"The box of {box.finding} has no area on the film; left out."
        problems.append(Problem("bad_box", film.image, text))
        return None
    if np.abs(clipped - asked).max() > 1:
        text = f"The box of {box.finding} leaves the film and was cut at its edge."
        problems.append(Problem("bad_box", film.image, text))
    x, y, w, h = (round(float(v), 1) for v in (x0, y0, x1 - x0, y1 - y0))
    return replace(box, image=film.image, x=x, y=y, w=w, h=h, of_width=film.width)

"""Sets whose folders say what a film shows."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from cxr.public_sets.records import (
    OWN,
    Item,
    Loader,
    Problem,
    PublicFilm,
    Uncertain,
    list_folders,
    list_pictures,
)
from cxr.public_sets.words import NO_FINDING

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
    but one patient too many in a group does no harm, one in two groups does. None: no such name.
    """
    if match := _PERSON.match(stem):
        return match[1].lower(), _CAUSES[match[2].lower()]
    if match := _NORMAL.match(stem):
        return match[1].upper(), ""
    if match := _MENDELEY3.match(stem):
        return match[2], _CAUSES.get(match[1].lower(), "")
    return None


def _is_kermany(folder: Path) -> bool:
    return any((folder / part / label).is_dir() for part in PARTS for label in LABELS)


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


LOADERS = (
    Loader(
        "kermany",
        "Kermany et al., chest X-ray images (pneumonia)",
        "chest_xray/ with train/, val/ and test/, each with NORMAL/ and PNEUMONIA/ of .jpeg files",
        "CC BY 4.0",
        "Kermany, Zhang, Goldbaum: Labeled Optical Coherence Tomography (OCT) and Chest X-Ray "
        "Images for Classification. Mendeley Data, doi 10.17632/rscbjbr9sj; Cell 172 (2018), "
        "doi 10.1016/j.cell.2018.02.010",
        _is_kermany,
        _kermany,
    ),
    Loader(
        "radiography",
        "COVID-19 Radiography Database",
        "COVID-19_Radiography_Dataset/ with COVID/, Normal/, Lung_Opacity/ and Viral Pneumonia/, "
        "each with images/ of .png files (older releases: the files right in the class)",
        _KAGGLE,
        "Chowdhury et al.: Can AI Help in Screening Viral and COVID-19 Pneumonia? IEEE Access "
        "2020, doi 10.1109/ACCESS.2020.3010287; Rahman et al. 2021, "
        "doi 10.1016/j.compbiomed.2021.104319",
        _is_radiography,
        _radiography,
    ),
)

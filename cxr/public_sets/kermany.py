"""Kermany et al.: children of 1 to 5 years from Guangzhou, `chest_xray/`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from cxr.public_sets.records import (
    Item,
    Loader,
    Problem,
    PublicFilm,
    Uncertain,
    list_folders,
    list_pictures,
)

LICENCE = "CC BY 4.0"
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


def is_root(folder: Path) -> bool:
    """Whether `folder` holds train, val or test with NORMAL or PNEUMONIA in it."""
    return any((folder / part / label).is_dir() for part in PARTS for label in LABELS)


def read(root: Path, uncertain: Uncertain = "ignore") -> Iterator[Item]:
    """Every picture of the two classes in the three parts."""
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
                for item in _film(f"{part}/{word}/{name}", label):
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


def _film(image: str, label: str) -> Iterator[PublicFilm | Problem]:
    stem = Path(image).stem
    named = name_of_film(stem)
    if named is None:
        text = "The name says no patient; the film is taken for a patient of its own."
        yield Problem("odd_name", image, text)
    patient, cause = named or (stem, "")
    if named and (cause != "") != (label == "pneumonia"):
        text = f"The name says {cause or 'normal'}, the folder {label}; the folder counts."
        yield Problem("odd_name", image, text)
    sublabel = "No Finding" if label == "normal" else cause or "unspecified"
    yield PublicFilm(
        image,
        "",
        "kermany",
        f"kermany-{patient}",
        label,
        sublabel,
        LICENCE,
        "AP",
        age="paediatric 1-5 y",
    )


LOADER = Loader(
    name="kermany",
    title="Kermany et al., chest X-ray images (pneumonia)",
    layout="chest_xray/ with train/, val/ and test/, each with NORMAL/ and PNEUMONIA/ of .jpeg "
    "files",
    licence=LICENCE,
    citation="Kermany, Zhang, Goldbaum: Labeled Optical Coherence Tomography (OCT) and Chest X-Ray "
    "Images for Classification. Mendeley Data, doi 10.17632/rscbjbr9sj; Cell 172 (2018), "
    "doi 10.1016/j.cell.2018.02.010",
    is_root=is_root,
    read=read,
)

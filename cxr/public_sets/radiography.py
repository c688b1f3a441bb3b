"""COVID-19 Radiography Database: films of many other sets by class, without patients."""

from __future__ import annotations

import re
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

LICENCE = "not stated; Kaggle: data files © original authors"
# folder, lower case without signs → label, sublabel
CLASSES = {
    "covid": ("covid", "COVID-19"),
    "covid19": ("covid", "COVID-19"),
    "normal": ("normal", "No Finding"),
    "lungopacity": ("other", "Lung_Opacity"),
    "viralpneumonia": ("pneumonia", "viral"),
}


def class_folders(root: Path) -> dict[Path, tuple[str, str]]:
    """Folders of the classes that are there, however they are written."""
    words = {f: re.sub(r"[^a-z0-9]", "", f.name.lower()) for f in list_folders(root)}
    return {f: CLASSES[word] for f, word in words.items() if word in CLASSES}


def is_root(folder: Path) -> bool:
    """Whether `folder` has covid and one of the set's own classes (normal is anyone's)."""
    sublabels = {sublabel for _, sublabel in class_folders(folder).values()}
    return "COVID-19" in sublabels and bool(sublabels & {"Lung_Opacity", "viral"})


def read(root: Path, uncertain: Uncertain = "ignore") -> Iterator[Item]:
    """Every picture of the classes, from `images/` or, in older releases, from the class itself.

    The lung masks of the set are a network's and smaller than the films; they are not taken.
    """
    found = class_folders(root)
    missing = {sub for _, sub in CLASSES.values()} - {sub for _, sub in found.values()}
    for sublabel in sorted(missing - {"Lung_Opacity"}):  # the first releases had no Lung_Opacity
        yield Problem("missing_folder", sublabel, "The class is not there.")
    yield Problem(
        "no_patient",
        "all films",
        "The set names no patients: each film is taken for a "
        "patient of its own, and one patient may be in two parts of a split. Viral "
        "pneumonia are children of kermany.",
    )
    for folder, (label, sublabel) in found.items():
        nested = folder / "images"
        films = nested if nested.is_dir() else folder
        for name in list_pictures(films):
            stem = Path(name).stem
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9 _-]*?[ _-]?\(?\d+\)?", stem):
                yield Problem("odd_name", f"{folder.name}/{name}", "Not a name as `COVID-1`; kept.")
            yield PublicFilm(
                (films / name).relative_to(root).as_posix(),
                "",
                "radiography",
                f"radiography-{stem}",
                label,
                sublabel,
                LICENCE,
                "unknown",
            )


LOADER = Loader(
    name="radiography",
    title="COVID-19 Radiography Database",
    layout="COVID-19_Radiography_Dataset/ with COVID/, Normal/, Lung_Opacity/ and Viral "
    "Pneumonia/, each with images/ of .png files (older releases: the files right in the class)",
    licence=LICENCE,
    citation="Chowdhury et al.: Can AI Help in Screening Viral and COVID-19 Pneumonia? IEEE Access "
    "2020, doi 10.1109/ACCESS.2020.3010287; Rahman et al. 2021, "
    "doi 10.1016/j.compbiomed.2021.104319",
    is_root=is_root,
    read=read,
)

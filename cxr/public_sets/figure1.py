"""Figure 1 COVID-19 chest X-ray dataset: films that doctors shared, `metadata.csv`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cxr.public_sets.covid_tables import RESEARCH_ONLY, read_collection, table_columns
from cxr.public_sets.records import Item, Loader, Uncertain

_SUFFIXES = (".jpg", ".png", ".jpeg")


def is_root(folder: Path) -> bool:
    """Whether `folder` has a metadata.csv that names patients and no files."""
    columns = table_columns(folder)
    names_files = columns & {"filename", "imagename"}
    return {"patientid", "finding", "view"} <= columns and not names_files


def read(root: Path, uncertain: Uncertain = "ignore") -> Iterator[Item]:
    """All films; the table names them by `patientid`, and `a`, `b` are films of one patient."""
    return read_collection(
        root,
        "figure1",
        "patientid",
        find_file=find_file,
        patient_of=lambda name: re.sub(r"(?<=\d)[a-z]$", "", name),
        licence_of=lambda row: RESEARCH_ONLY,
    )


def find_file(name: str, index: dict[str, str]) -> str:
    """The film called `name` with the ending that it has, or ""."""
    return next((index[name + s] for s in _SUFFIXES if name + s in index), "")


LOADER = Loader(
    name="figure1",
    title="Figure 1 COVID-19 chest X-ray dataset",
    layout="Figure1-COVID-chestxray-dataset/ with metadata.csv (columns patientid, finding, view; "
    "the patientid is the film's name) and images/",
    licence=RESEARCH_ONLY,
    citation="Figure 1 COVID-19 Chest X-ray Dataset Initiative, "
    "github.com/agchung/Figure1-COVID-chestxray-dataset; Wang, Lin, Wong: COVID-Net, "
    "doi 10.1038/s41598-020-76550-z",
    is_root=is_root,
    read=read,
)

"""Actualmed COVID-19 chest X-ray dataset: one Spanish practice, `metadata.csv`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cxr.public_sets.covid_tables import RESEARCH_ONLY, read_collection, table_columns
from cxr.public_sets.records import Item, Loader, Uncertain


def is_root(folder: Path) -> bool:
    """Whether `folder` has a metadata.csv with a column imagename."""
    return {"patientid", "finding", "imagename"} <= table_columns(folder)


def read(root: Path, uncertain: Uncertain = "ignore") -> Iterator[Item]:
    """All films; those without a finding whose notes say so are `inconclusive`."""
    return read_collection(
        root,
        "actualmed",
        "imagename",
        find_file=lambda name, index: index.get(name, ""),
        patient_of=str,
        licence_of=lambda row: RESEARCH_ONLY,
    )


LOADER = Loader(
    name="actualmed",
    title="Actualmed COVID-19 chest X-ray dataset",
    layout="Actualmed-COVID-chestxray-dataset/ with metadata.csv (columns patientid, finding, "
    "view, imagename) and images/",
    licence=RESEARCH_ONLY,
    citation="Actualmed COVID-19 Chest X-ray Dataset Initiative, "
    "github.com/agchung/Actualmed-COVID-chestxray-dataset; Wang, Lin, Wong: COVID-Net, "
    "doi 10.1038/s41598-020-76550-z",
    is_root=is_root,
    read=read,
)

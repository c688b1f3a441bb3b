"""COVID-19 image data collection (Cohen et al.): mostly adults, pictures from papers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cxr.public_sets.covid_tables import NOT_STATED, read_collection, table_columns
from cxr.public_sets.records import Item, Loader, Uncertain


def is_root(folder: Path) -> bool:
    """Whether `folder` has a metadata.csv that names patients and files."""
    columns = table_columns(folder)
    return {"patientid", "finding", "filename"} <= columns and "imagename" not in columns


def read(root: Path, uncertain: Uncertain = "ignore") -> Iterator[Item]:
    """Frontal radiographs with each film's own licence."""
    return read_collection(
        root,
        "ieee8023",
        "filename",
        find_file=lambda name, index: index.get(name, ""),
        patient_of=lambda patient: patient.removesuffix(".0"),
        licence_of=lambda row: row.get("license", "") or row.get("licence", "") or NOT_STATED,
    )


LOADER = Loader(
    name="ieee8023",
    title="COVID-19 image data collection",
    layout="covid-chestxray-dataset/ with metadata.csv (columns patientid, finding, view, "
    "modality, filename, license) and images/",
    licence="by film, in the column license of its metadata.csv",
    citation="Cohen et al.: COVID-19 Image Data Collection: Prospective Predictions Are the "
    "Future. arXiv 2006.11988; first version arXiv 2003.11597",
    is_root=is_root,
    read=read,
)

"""The three COVID-19 collections with a `metadata.csv`: Cohen's, Actualmed's and Figure 1's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cxr.public_sets.records import (
    Item,
    LeftOut,
    Loader,
    Problem,
    PublicFilm,
    Uncertain,
    index_pictures,
    read_columns,
    read_lines,
    unlisted,
)
from cxr.public_sets.words import frontal_view, is_known_view, label_of_finding, sex_of

TABLE = "metadata.csv"
RESEARCH_ONLY = "not stated; README: research purposes only"
_XRAY = {"x-ray", "xray", "cr", "dx"}


@dataclass(frozen=True)
class Collection:
    """One of the sets: `key` is the column that names a film, `patient_of` the patient from the
    column `patientid`, and `licence_of` the licence from a line."""

    name: str
    key: str
    is_root: Callable[[set[str]], bool]  # from the table's columns
    patient_of: Callable[[str], str] = str
    licence_of: Callable[[dict[str, str]], str] = lambda row: RESEARCH_ONLY
    suffixes: tuple[str, ...] = ("",)  # that the film's name lacks in the table

    def loader(self, title: str, layout: str, licence: str, citation: str) -> Loader:
        """The set as the registry knows it."""
        return Loader(
            self.name,
            title,
            layout,
            licence,
            citation,
            lambda folder: self.is_root(read_columns(folder / TABLE)),
            self.read,
        )

    def read(self, root: Path, uncertain: Uncertain = "ignore") -> Iterator[Item]:
        """Frontal radiographs of the table; other modalities and views are counted and left out."""
        index = index_pictures(root, [root / "images"])
        listed = set()

        def film(where: str, row: dict[str, str]) -> Iterator[Item]:
            name = row[self.key]
            image = next((index[name + s] for s in self.suffixes if name + s in index), "")
            listed.add(image)
            if reason := _not_a_frontal_film(row):
                yield LeftOut(reason)
                return
            yield from _odd_words(where, row, name)
            label, sublabel = _label(row)
            patient = self.patient_of(row.get("patientid", "")) or f"film-{Path(name).stem}"
            yield PublicFilm(
                image or f"images/{name}",
                "",
                self.name,
                f"{self.name}-{patient}",
                label,
                sublabel,
                self.licence_of(row),
                frontal_view(row.get("view", ""))[0],
                age=row.get("age", ""),
                sex=sex_of(row.get("sex", "")),
            )

        yield from read_lines(root / TABLE, self.key, film)
        yield from unlisted(set(index.values()) - listed, TABLE)


def _not_a_frontal_film(row: dict[str, str]) -> str:
    modality = row.get("modality", "")
    if modality and modality.lower().replace(" ", "-") not in _XRAY:
        return f"modality {modality}"
    reason = frontal_view(row.get("view", ""))[1]
    return f"view {row['view']} ({reason})" if reason else ""


def _label(row: dict[str, str]) -> tuple[str, str]:
    label, sublabel = label_of_finding(row.get("finding", "")) or ("unknown", row["finding"])
    if label == "unknown" and "inconclusive" in row.get("notes", "").lower()[:20]:
        sublabel = "inconclusive"  # Actualmed says so in the notes
    return label, sublabel


def _odd_words(where: str, row: dict[str, str], name: str) -> Iterator[Problem]:
    if label_of_finding(row.get("finding", "")) is None:
        text = f"{name}: '{row['finding']}' is no known finding; taken for unknown."
        yield Problem("unknown_label", where, text)
    if not is_known_view(row.get("view", "")):
        yield Problem("odd_value", where, f"{name}: view '{row['view']}' is taken for unknown.")
    if not row.get("patientid", ""):
        text = f"{name} names no patient; the film is taken for a patient of its own."
        yield Problem("no_patient", where, text)


IEEE8023 = Collection(
    "ieee8023",
    "filename",
    lambda columns: {"patientid", "finding", "filename"} <= columns and "imagename" not in columns,
    lambda patient: patient.removesuffix(".0"),
    lambda row: row.get("license", "") or row.get("licence", "") or "not stated",
)
ACTUALMED = Collection(
    "actualmed", "imagename", lambda columns: {"patientid", "finding", "imagename"} <= columns
)
FIGURE1 = Collection(
    "figure1",
    "patientid",  # it names the film, and `a`, `b` are films of one patient
    lambda columns: (
        {"patientid", "finding", "view"} <= columns and not columns & {"filename", "imagename"}
    ),
    lambda name: re.sub(r"(?<=\d)[a-z]$", "", name),
    suffixes=(".jpg", ".png", ".jpeg"),
)
LOADERS = (
    IEEE8023.loader(
        "COVID-19 image data collection",
        "covid-chestxray-dataset/ with metadata.csv (columns patientid, finding, view, modality, "
        "filename, license) and images/",
        "by film, in the column license of its metadata.csv",
        "Cohen et al.: COVID-19 Image Data Collection: Prospective Predictions Are the Future. "
        "arXiv 2006.11988; first version arXiv 2003.11597",
    ),
    ACTUALMED.loader(
        "Actualmed COVID-19 chest X-ray dataset",
        "Actualmed-COVID-chestxray-dataset/ with metadata.csv (columns patientid, finding, view, "
        "imagename) and images/",
        RESEARCH_ONLY,
        "Actualmed COVID-19 Chest X-ray Dataset Initiative, "
        "github.com/agchung/Actualmed-COVID-chestxray-dataset; Wang, Lin, Wong: COVID-Net, "
        "doi 10.1038/s41598-020-76550-z",
    ),
    FIGURE1.loader(
        "Figure 1 COVID-19 chest X-ray dataset",
        "Figure1-COVID-chestxray-dataset/ with metadata.csv (columns patientid, finding, view; the "
        "patientid is the film's name) and images/",
        RESEARCH_ONLY,
        "Figure 1 COVID-19 Chest X-ray Dataset Initiative, "
        "github.com/agchung/Figure1-COVID-chestxray-dataset; Wang, Lin, Wong: COVID-Net, "
        "doi 10.1038/s41598-020-76550-z",
    ),
)

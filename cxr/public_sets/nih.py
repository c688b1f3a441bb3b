"""NIH ChestX-ray14: adults, findings mined from reports, 984 boxes by radiologists."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cxr.films_table import NIH_TERMS
from cxr.public_sets.records import (
    FindingBox,
    Item,
    Loader,
    Problem,
    PublicFilm,
    Uncertain,
    index_pictures,
    list_folders,
    read_lines,
    unlisted,
)
from cxr.public_sets.words import frontal_view, sex_of, years_of

LICENCE = NIH_TERMS  # by which `FilmRow.publishable` knows it
_FINDINGS = (
    "Atelectasis Cardiomegaly Consolidation Edema Effusion Emphysema Fibrosis Hernia Infiltration "
    "Mass Nodule Pleural_Thickening Pneumonia Pneumothorax"
)
FINDINGS = frozenset(_FINDINGS.split())
NO_FINDING = "No Finding"
BOX_TABLE = "BBox_List_2017.csv"
_BOXES_DRAWN_ON = 1024  # px, side of the published films


def label_of_findings(text: str) -> tuple[str, list[str]]:
    """(label, words that are no findings of this set) of `Edema|Pneumonia`."""
    words = [word.strip() for word in text.split("|") if word.strip()]
    odd = [word for word in words if word not in FINDINGS and word != NO_FINDING]
    if "Pneumonia" in words:
        return "pneumonia", odd
    if any(word in FINDINGS for word in words):
        return "other", odd
    return ("normal" if NO_FINDING in words and not odd else "unknown"), odd


def entry_tables(folder: Path) -> list[Path]:
    """Tables of the films; the newest last."""
    return sorted(folder.glob("Data_Entry_2017*.csv"))


def is_root(folder: Path) -> bool:
    """Whether `folder` holds the table of the films."""
    return bool(entry_tables(folder))


def image_folders(root: Path) -> list[Path]:
    """`images/` and `images_001/images/` … that are there."""
    tops = [f for f in list_folders(root) if f.name.lower().startswith("images")]
    return [*tops, *(child for top in tops for child in list_folders(top))]


def read(root: Path, uncertain: Uncertain = "ignore") -> Iterator[Item]:
    """Films of the newest table, then the boxes."""
    tables = entry_tables(root)
    if len(tables) > 1:
        yield Problem("two_tables", ", ".join(t.name for t in tables), f"{tables[-1].name} counts.")
    index = index_pictures(root, image_folders(root))
    listed = set()

    def film(where: str, row: dict[str, str]) -> Iterator[Item]:
        listed.add(row["image index"])
        return _film(where, row, index)

    yield from read_lines(tables[-1], "image index", film)
    yield from unlisted(set(index) - listed, tables[-1].name)
    if (root / BOX_TABLE).exists():
        yield from read_lines(root / BOX_TABLE, "image index", partial(_box, index))


def _film(where: str, row: dict[str, str], index: dict[str, str]) -> Iterator[Item]:
    name = row["image index"]
    findings = row.get("finding labels", "")
    label, odd = label_of_findings(findings)
    if odd or not findings:
        what = f"{', '.join(odd) or 'no label'} is no finding of this set"
        yield Problem("unknown_label", where, f"{name}: {what}; taken for {label}.")
    elif NO_FINDING in findings and label != "normal":
        text = f"{name}: 'No Finding' beside findings; taken for {label}."
        yield Problem("unknown_label", where, text)
    in_name, stated = name.split("_")[0].lstrip("0"), row.get("patient id", "").lstrip("0")
    if not stated or (in_name.isdigit() and stated != in_name):
        kind = "odd_name" if stated else "no_patient"
        yield Problem(kind, where, f"{name} does not go with patient '{stated}'; the name counts.")
    patient = in_name if in_name.isdigit() else stated or Path(name).stem
    view, _ = frontal_view(row.get("view position", ""))
    if view not in {"PA", "AP"}:
        yield Problem("odd_value", where, f"{name}: view '{row.get('view position', '')}'.")
    age = years_of(row.get("patient age", ""))
    if age is None:
        yield Problem("odd_value", where, f"{name}: age '{row['patient age']}' is left empty.")
    yield PublicFilm(
        index.get(name, name),
        "",
        "nih",
        f"nih-{patient.zfill(5)}",
        label,
        findings,
        LICENCE,
        view or "unknown",
        age=age or "",
        sex=sex_of(row.get("patient gender", "") or row.get("patient sex", "")),
    )


def _box(index: dict[str, str], where: str, row: dict[str, str]) -> Iterator[Item]:
    try:
        x, y, w, h = (float(row.get(c, "")) for c in ("bbox [x", "y", "w", "h]"))
    except ValueError:
        x = y = w = h = math.nan
    name = row["image index"]
    if not all(map(math.isfinite, (x, y, w, h))):
        yield Problem("bad_box", where, f"{name}: the box is no four numbers.")
        return
    finding = row.get("finding label", "")
    yield FindingBox(index.get(name, name), finding, x, y, w, h, of_width=_BOXES_DRAWN_ON)


LOADER = Loader(
    name="nih",
    title="NIH ChestX-ray14",
    layout="a folder with Data_Entry_2017.csv (or Data_Entry_2017_v2020.csv) and images_001/"
    "images/ to images_012/images/ (or images/) of .png files; BBox_List_2017.csv beside",
    licence=LICENCE,
    citation="Wang et al.: ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks. CVPR "
    "2017, arXiv 1705.02315; the NIH Clinical Center is to be named as the provider",
    is_root=is_root,
    read=read,
)

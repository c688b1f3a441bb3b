"""MIMIC-CXR-JPG: adults of Boston, labels of CheXpert's labeller by study."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cxr.public_sets.chexpert import label_of_values, read_values
from cxr.public_sets.records import Item, LeftOut, Loader, Problem, PublicFilm, Uncertain
from cxr.public_sets.tables import read_lines

LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
_FRONTAL = ("PA", "AP")
_Labels = dict[str, tuple[str, str]]  # study → label, sublabel


def find_table(folder: Path, kind: str) -> Path | None:
    """`mimic-cxr-2.0.0-KIND.csv` or its .gz; the newest."""
    names = (f"mimic-cxr-*-{kind}.csv", f"mimic-cxr-*-{kind}.csv.gz")
    return max((path for name in names for path in folder.glob(name)), default=None)


def is_root(folder: Path) -> bool:
    """Whether `folder` holds the table of the films."""
    return find_table(folder, "metadata") is not None


def read(root: Path, uncertain: Uncertain = "ignore") -> Iterator[Item]:
    """PA and AP films with the label of their study."""
    labels: _Labels = {}
    table, name = find_table(root, "chexpert"), "mimic-cxr-2.0.0-chexpert.csv.gz"
    if table is None:
        text = "The table of the labels is not there: all labels are unknown."
        yield Problem("missing_file", name, text)
    else:
        yield from read_lines(table, "study_id", partial(_study, labels, uncertain))
    films = find_table(root, "metadata")
    assert films is not None, "is_root was not asked"
    film = partial(_film, labels, table is not None)
    yield from read_lines(films, "dicom_id", film)


def _study(
    labels: _Labels, uncertain: Uncertain, where: str, row: dict[str, str]
) -> Iterator[Problem]:
    values, odd = read_values(row)
    if odd:
        text = f"study {row['study_id']}: {', '.join(odd)} is taken for not stated."
        yield Problem("unknown_label", where, text)
    labels[row["study_id"]] = label_of_values(values, uncertain)


def _film(labels: _Labels, labelled: bool, where: str, row: dict[str, str]) -> Iterator[Item]:
    view = row.get("viewposition", "").upper()
    if view not in _FRONTAL:
        yield LeftOut(f"view {view or 'not stated'}")
        return
    patient, study = row.get("subject_id", ""), row.get("study_id", "")
    if not (patient.isdigit() and study.isdigit()):
        text = f"{row['dicom_id']} names no patient or no study; left out."
        yield Problem("bad_line", where, text)
        return
    if labelled and study not in labels:
        yield Problem("unknown_label", where, f"study {study} has no line among the labels.")
    label, sublabel = labels.get(study, ("unknown", "no label"))
    image = f"files/p{patient[:2]}/p{patient}/s{study}/{row['dicom_id']}.jpg"
    yield PublicFilm(image, "", "mimic", f"mimic-p{patient}", label, sublabel, LICENCE, view)


LOADER = Loader(
    name="mimic",
    title="MIMIC-CXR-JPG",
    layout="a folder with mimic-cxr-2.0.0-metadata.csv(.gz), mimic-cxr-2.0.0-chexpert.csv(.gz) and "
    "files/p10/p10000032/s50414267/DICOM_ID.jpg",
    licence=LICENCE,
    citation="Johnson et al.: MIMIC-CXR-JPG, a large publicly available database of labeled chest "
    "radiographs. arXiv 1901.07042; PhysioNet",
    is_root=is_root,
    read=read,
)

"""CheXpert, adults of Stanford, and MIMIC-CXR-JPG, adults of Boston: labels that CheXpert's labeler
mined from reports, uncertain ones among them; those of MIMIC are by study."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from cxr.public_sets.records import (
    Item,
    LeftOut,
    Loader,
    Problem,
    PublicFilm,
    Uncertain,
    list_folders,
    read_columns,
    read_lines,
)
from cxr.public_sets.words import sex_of, years_of

LICENCE = "Stanford University Dataset Research Use Agreement (research only)"
TABLES = ("train.csv", "valid.csv")
_PATIENT = re.compile(r"^patient\d+$")
NO_FINDING = "No Finding"
FINDINGS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
)
SUPPORT = "Support Devices"  # a tube is no disease: the labeller allows it beside No Finding
COLUMNS = (NO_FINDING, *FINDINGS, SUPPORT)
_VALUES = {"1": 1, "0": 0, "-1": -1, "": None}


def is_root(folder: Path) -> bool:
    """Whether `folder` has a train.csv or valid.csv with paths and views."""
    return any({"path", "frontal/lateral"} <= read_columns(folder / name) for name in TABLES)


def read(root: Path, uncertain: Uncertain = "ignore") -> Iterator[Item]:
    """Frontal films of both tables; see `label_of_values` for what uncertain labels become."""
    for table in TABLES:
        if not (root / table).exists():
            yield Problem("missing_file", table, "The table is not there.")
            continue
        film = partial(_film, root, _batches(root), uncertain)
        yield from read_lines(root / table, "path", film)


def _batches(root: Path) -> list[str]:
    """Folders that hold patients and are called otherwise than the table's paths say.

    The full set is handed out as `CheXpert-v1.0 batch 2 (train 1)/patient00001/…`.
    """
    return [f.name for f in list_folders(root) if "batch" in f.name.lower()]


def _place(path: str, root: Path, batches: list[str]) -> str:
    """The table's path relative to `root`: its first part is the published folder's name."""
    parts = PurePosixPath(path).parts
    tail = parts[1:] if len(parts) > 1 and parts[0].lower().startswith("chexpert") else parts
    image = "/".join(tail)
    if batches and not (root / image).exists():
        patient = next((i for i, part in enumerate(tail) if _PATIENT.match(part)), 0)
        inside = "/".join(tail[patient:])
        return next((f"{b}/{inside}" for b in batches if (root / b / inside).exists()), image)
    return image


def _film(
    root: Path, batches: list[str], uncertain: Uncertain, where: str, row: dict[str, str]
) -> Iterator[Item]:
    path = row["path"]
    side = row.get("frontal/lateral", "").lower() or PurePosixPath(path).stem
    if "lateral" in side:
        yield LeftOut("view lateral")
        return
    if "frontal" not in side:
        yield Problem("odd_value", where, f"{path}: neither frontal nor lateral; left out.")
        return
    patient = next((p for p in PurePosixPath(path).parts if _PATIENT.match(p)), "")
    if not patient:
        text = f"{path} has no folder patientNNNNN; the film is taken for a patient of its own."
        yield Problem("odd_name", where, text)
    values, odd = read_values(row)
    if odd:
        yield Problem("unknown_label", where, f"{path}: {', '.join(odd)} is taken for not stated.")
    age = years_of(row.get("age", ""))
    if age is None:
        yield Problem("odd_value", where, f"{path}: age '{row['age']}' is left empty.")
    label, sublabel = label_of_values(values, uncertain)
    view = row.get("ap/pa", "").upper()
    yield PublicFilm(
        _place(path, root, batches),
        "",
        "chexpert",
        f"chexpert-{patient or PurePosixPath(path).as_posix()}",
        label,
        sublabel,
        LICENCE,
        view if view in {"AP", "PA"} else "unknown",
        age=age or "",
        sex=sex_of(row.get("sex", "")),
    )


def read_values(row: dict[str, str]) -> tuple[dict[str, int], list[str]]:
    """(observation → 1, 0 or -1; those not mentioned are left out, columns with another value)."""
    values: dict[str, int] = {}
    odd = []
    for column in COLUMNS:
        text = row.get(column.lower(), "")
        value = _VALUES.get(text.removesuffix(".0"), "odd")
        if isinstance(value, int):
            values[column] = value
        elif value == "odd":
            odd.append(f"{column} '{text}'")
    return values, odd


def label_of_values(values: dict[str, int], uncertain: Uncertain) -> tuple[str, str]:
    """(label, sublabel): what is present, joined by |; `Pneumonia?` where uncertain and ignored.

    Uncertain counts as present for `positive` and as absent for `negative`. For `ignore` a film
    with uncertain pneumonia, or with nothing but uncertain findings, is `unknown`.
    """
    if uncertain != "ignore":
        taken = 1 if uncertain == "positive" else 0
        values = {name: taken if value == -1 else value for name, value in values.items()}
    words = [name + ("?" if values[name] < 0 else "") for name in COLUMNS if values.get(name)]
    sublabel = "|".join(words) or "no label"
    if values.get("Pneumonia"):
        return ("pneumonia" if values["Pneumonia"] == 1 else "unknown"), sublabel
    if any(values.get(name) == 1 for name in FINDINGS):
        return "other", sublabel
    if any(values.get(name) for name in FINDINGS):
        return "unknown", sublabel
    return ("normal" if values.get(NO_FINDING) == 1 else "unknown"), sublabel


MIMIC_LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
_MIMIC_VIEWS = ("PA", "AP")
_Labels = dict[str, tuple[str, str]]  # study → label, sublabel


def find_table(folder: Path, kind: str) -> Path | None:
    """`mimic-cxr-2.0.0-KIND.csv` or its .gz; the newest."""
    names = (f"mimic-cxr-*-{kind}.csv", f"mimic-cxr-*-{kind}.csv.gz")
    return max((path for name in names for path in folder.glob(name)), default=None)


def is_mimic(folder: Path) -> bool:
    """Whether `folder` holds the table of the films."""
    return find_table(folder, "metadata") is not None


def read_mimic(root: Path, uncertain: Uncertain = "ignore") -> Iterator[Item]:
    """PA and AP films with the label of their study."""
    labels: _Labels = {}
    table, name = find_table(root, "chexpert"), "mimic-cxr-2.0.0-chexpert.csv.gz"
    if table is None:
        text = "The table of the labels is not there: all labels are unknown."
        yield Problem("missing_file", name, text)
    else:
        yield from read_lines(table, "study_id", partial(_study, labels, uncertain))
    films = find_table(root, "metadata")
    assert films is not None, "is_mimic was not asked"
    film = partial(_mimic_film, labels, table is not None)
    yield from read_lines(films, "dicom_id", film)


def _study(
    labels: _Labels, uncertain: Uncertain, where: str, row: dict[str, str]
) -> Iterator[Problem]:
    values, odd = read_values(row)
    if odd:
        text = f"study {row['study_id']}: {', '.join(odd)} is taken for not stated."
        yield Problem("unknown_label", where, text)
    labels[row["study_id"]] = label_of_values(values, uncertain)


def _mimic_film(labels: _Labels, labelled: bool, where: str, row: dict[str, str]) -> Iterator[Item]:
    view = row.get("viewposition", "").upper()
    if view not in _MIMIC_VIEWS:
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
    yield PublicFilm(image, "", "mimic", f"mimic-p{patient}", label, sublabel, MIMIC_LICENCE, view)


MIMIC = Loader(
    name="mimic",
    title="MIMIC-CXR-JPG",
    layout="a folder with mimic-cxr-2.0.0-metadata.csv(.gz), mimic-cxr-2.0.0-chexpert.csv(.gz) and "
    "files/p10/p10000032/s50414267/DICOM_ID.jpg",
    licence=MIMIC_LICENCE,
    citation="Johnson et al.: MIMIC-CXR-JPG, a large publicly available database of labeled chest "
    "radiographs. arXiv 1901.07042; PhysioNet",
    is_root=is_mimic,
    read=read_mimic,
)

CHEXPERT = Loader(
    name="chexpert",
    title="CheXpert",
    layout="CheXpert-v1.0/ or CheXpert-v1.0-small/ with train.csv and valid.csv (columns Path, "
    "Frontal/Lateral, …) and train/ and valid/ of patient00001/study1/view1_frontal.jpg",
    licence=LICENCE,
    citation="Irvin et al.: CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and "
    "Expert Comparison. AAAI 2019, arXiv 1901.07031",
    is_root=is_root,
    read=read,
)
LOADERS = (CHEXPERT, MIMIC)

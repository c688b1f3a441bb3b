"""CheXpert: adults of Stanford, labels mined from reports with uncertain ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from cxr.public_sets.folders import list_folders
from cxr.public_sets.records import Item, LeftOut, Loader, Problem, PublicFilm, Uncertain
from cxr.public_sets.tables import read_columns, read_lines
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


LOADER = Loader(
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

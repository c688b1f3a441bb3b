"""CheXpert: adults of Stanford, labels mined from reports with uncertain ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cxr.public_sets.chexpert_labels import check_uncertain, label_of_values, read_values
from cxr.public_sets.folders import list_folders
from cxr.public_sets.records import Item, LeftOut, Loader, Problem, PublicFilm, Uncertain
from cxr.public_sets.tables import read_columns, read_lines
from cxr.public_sets.words import sex_of, years_of

LICENCE = "Stanford University Dataset Research Use Agreement (research only)"
TABLES = ("train.csv", "valid.csv")
_PATIENT = re.compile(r"^patient\d+$")


def is_root(folder: Path) -> bool:
    """Whether `folder` has a train.csv or valid.csv with paths and views."""
    return any({"path", "frontal/lateral"} <= read_columns(folder / name) for name in TABLES)


def read(root: Path, uncertain: Uncertain = "ignore") -> Iterator[Item]:
    """Frontal films of both tables; see `label_of_values` for what uncertain labels become."""
    check_uncertain(uncertain)
    for table in TABLES:
        if not (root / table).exists():
            yield Problem("missing_file", table, "The table is not there.")
            continue
        batches = _batches(root)
        for line in read_lines(root / table, "path"):
            if isinstance(line, Problem):
                yield line
            else:
                yield from _film(*line, root, batches, uncertain)


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
    where: str, row: dict[str, str], root: Path, batches: list[str], uncertain: Uncertain
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
        yield Problem(
            "odd_name",
            where,
            f"{path} has no folder patientNNNNN; the film is taken for a patient of its own.",
        )
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

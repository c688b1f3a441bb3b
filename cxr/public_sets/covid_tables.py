"""What the three COVID-19 collections with a `metadata.csv` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from cxr.public_sets.folders import index_pictures
from cxr.public_sets.records import Item, LeftOut, Problem, PublicFilm
from cxr.public_sets.tables import read_columns, read_lines
from cxr.public_sets.words import frontal_view, is_known_view, label_of_finding, sex_of

TABLE = "metadata.csv"
NOT_STATED = "not stated"
RESEARCH_ONLY = "not stated; README: research purposes only"


def table_columns(folder: Path) -> set[str]:
    """Columns of the folder's metadata.csv in lower case; empty where there is none."""
    return read_columns(folder / TABLE)


def read_collection(
    root: Path,
    source: str,
    key: str,
    find_file: Callable[[str, dict[str, str]], str],
    patient_of: Callable[[str], str],
    licence_of: Callable[[dict[str, str]], str],
) -> Iterator[Item]:
    """Frontal radiographs of `metadata.csv`; other modalities and views are counted and left out.

    Args:
        root: the folder of `metadata.csv` and `images/`.
        source: name of the set.
        key: the column that names a film.
        find_file: its name, and all pictures by name → path relative to the root, or "".
        patient_of: the patient's name from the column `patientid`.
        licence_of: the licence from a line.
    """
    index = index_pictures(root, [root / "images"])
    unlisted = set(index.values())
    for line in read_lines(root / TABLE, key):
        if isinstance(line, Problem):
            yield line
            continue
        where, row = line
        image = find_file(row[key], index)
        unlisted.discard(image)
        reason = _not_a_frontal_film(row)
        if reason:
            yield LeftOut(reason)
            continue
        yield from _odd_words(where, row, key)
        label, sublabel = _label(row)
        patient = patient_of(row.get("patientid", "")) or f"film-{Path(row[key]).stem}"
        view, _ = frontal_view(row.get("view", ""))
        yield PublicFilm(
            image or f"images/{row[key]}",
            "",
            source,
            f"{source}-{patient}",
            label,
            sublabel,
            licence_of(row),
            view,
            age=row.get("age", ""),
            sex=sex_of(row.get("sex", "")),
        )
    if unlisted:
        yield Problem(
            "unlisted_file",
            ", ".join(sorted(unlisted)[:5]),
            f"{len(unlisted)} pictures are not in {TABLE}; left out.",
        )


def _not_a_frontal_film(row: dict[str, str]) -> str:
    modality = row.get("modality", "")
    if modality and modality.lower().replace(" ", "-") not in {"x-ray", "xray", "cr", "dx"}:
        return f"modality {modality}"
    reason = frontal_view(row.get("view", ""))[1]
    return f"view {row['view']} ({reason})" if reason else ""


def _label(row: dict[str, str]) -> tuple[str, str]:
    label, sublabel = label_of_finding(row.get("finding", "")) or ("unknown", row["finding"])
    if label == "unknown" and "inconclusive" in row.get("notes", "").lower()[:20]:
        sublabel = "inconclusive"  # Actualmed says so in the notes
    return label, sublabel


def _odd_words(where: str, row: dict[str, str], key: str) -> Iterator[Problem]:
    if label_of_finding(row.get("finding", "")) is None:
        yield Problem(
            "unknown_label",
            where,
            f"{row[key]}: '{row['finding']}' is no known finding; taken for unknown.",
        )
    if not is_known_view(row.get("view", "")):
        yield Problem("odd_value", where, f"{row[key]}: view '{row['view']}' is taken for unknown.")
    if not row.get("patientid", ""):
        yield Problem(
            "no_patient",
            where,
            f"{row[key]} names no patient; the film is taken for a patient of its own.",
        )

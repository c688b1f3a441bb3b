"""films.csv: one row a film with its patient, source, label and licence."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

# A model whose weights are published may be trained on films under these licences only.
_PUBLISHABLE = ("CC BY 3.0", "CC BY 4.0", "CC BY", "CC BY-SA", "listed as authorized for everyone")
# The NIH Clinical Center's own terms for ChestX-ray14, however a copy of the set words the rest.
NIH_TERMS = "NIH Clinical Center: free use with attribution"


@dataclass(frozen=True)
class FilmRow:
    """One film of the table. `image` and `mask` are relative to the table's folder, or absolute:
    `folder / row.image` is the file either way."""

    image: str
    mask: str
    source: str
    patient_id: str
    label: str
    sublabel: str
    licence: str
    view: str = ""

    @property
    def publishable(self) -> bool:
        """May a published model be trained on this film? By its licence as stated."""
        return self.licence in _PUBLISHABLE or (self.source == "nih" and NIH_TERMS in self.licence)


@contextmanager
def open_table(path: str | Path) -> Iterator[TextIO]:
    """A table's text, without the mark that spreadsheets put before it; raises ValueError for a
    file in another encoding than UTF-8."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8: save it so. {error}.") from error


def read_films_table(path: str | Path) -> list[FilmRow]:
    """Rows of a films.csv; raises ValueError when a column, a cell or a patient is missing."""
    wanted = ["image", "mask", "source", "patient_id", "label", "sublabel", "licence"]
    with open_table(path) as file:
        reader = csv.DictReader(file)
        missing = [c for c in wanted if c not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(
                f"{path} must have the columns {', '.join(wanted)}. Missing: {', '.join(missing)}."
            )
        rows = []
        for r in reader:
            if any(r[c] is None for c in wanted):
                raise ValueError(
                    f"{path} line {reader.line_num} must have a cell for each column. "
                    "It ends early."
                )
            rows.append(FilmRow(**{c: r[c] for c in wanted}, view=r.get("view") or ""))
    nameless = [r.image for r in rows if not r.patient_id]
    if nameless:
        raise ValueError(f"{path} must name a patient_id for each film. Missing for {nameless[0]}.")
    return rows

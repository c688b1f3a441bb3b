"""films.csv: one row a film with its patient, source, label and licence."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

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


def take_films(
    patients: Sequence[str], strata: Sequence[Hashable], most: int, seed: int = 0
) -> list[int]:
    """Indices of at most `most` of N films, drawn by the seed: whole patients, the strata (such as
    class or source) in their shares. What `max_films` means everywhere; 0 takes all."""
    if not 0 < most < len(patients):
        return list(range(len(patients)))
    shares = {s: most * n / len(strata) for s, n in Counter(strata).items()}
    room = Counter({s: int(share) for s, share in shares.items()})
    by_rest = sorted(shares, key=lambda s: int(shares[s]) - shares[s])  # largest remainder first
    room.update(by_rest[: most - room.total()])
    films_of: dict[str, list[int]] = defaultdict(list)
    for i, patient in enumerate(patients):
        films_of[patient].append(i)
    names = sorted(films_of)
    chosen: list[int] = []
    for k in np.random.default_rng(seed).permutation(len(names)):
        films = films_of[names[k]]
        needed = Counter(strata[i] for i in films)
        if all(room[s] >= n for s, n in needed.items()):
            room.subtract(needed)
            chosen += films
    return sorted(chosen)

"""films.csv: one row a film with its patient, source, label and licence; its class; its name."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TextIO

import numpy as np

# A model whose weights are published may be trained on films under these licences only.
_PUBLISHABLE = ("CC BY 3.0", "CC BY 4.0", "CC BY", "CC BY-SA", "listed as authorized for everyone")
# The NIH Clinical Center's own terms for ChestX-ray14, however a copy of the set words the rest.
NIH_TERMS = "NIH Clinical Center: free use with attribution"
_TELLING = 2  # parts: source/name
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")  # not the .3 of the UID 1.2.840.3

Parts = tuple[str, ...]


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


def has_disease(row: FilmRow, diseases: Sequence[str]) -> bool:
    """Does the film's label or sublabel name one of these diseases? `bacterial` also stands for
    `bacterial/Klebsiella`, and each of the findings joined by `|`; a normal film has none."""
    if row.label in ("normal", "unknown"):
        return False
    named = {row.label, *row.sublabel.split("|"), *row.sublabel.split("/")[:1]}
    return not {_folded(n) for n in named}.isdisjoint(_folded(d) for d in diseases)


def _folded(name: str) -> str:
    return name.replace("_", " ").casefold()


def class_of(row: FilmRow, classes: Sequence[str]) -> int | None:
    """Number of a film's class: its sublabel's first word (`bacterial/Klebsiella` → `bacterial`)
    where that is a class, else its label; None where neither is."""
    first = re.split(r"[/|\s]", row.sublabel.strip(), maxsplit=1)[0].casefold()
    wanted = [name.casefold() for name in classes]
    return next((wanted.index(n) for n in (first, row.label.casefold()) if n in wanted), None)


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


class FilmNames:
    """Names of films, found by the end that they share with another path of the same film.

    Two names go together when their last two parts (folder and file) are equal: `images/nih/1.png`
    and `/films/nih/1.png`. Where several names end so (CheXpert calls every film
    `study1/view1_frontal.jpg`), as many more parts must be equal as tell one name from the others.

    Args:
        names: the names to be found.
        asked: the names that will be asked for, where they are known: one that ends like another
            of them must share more parts too, though `names` may hold only one such.
    """

    def __init__(self, names: Iterable[str], asked: Iterable[str] = ()) -> None:
        self._names = _Ends(names)
        self._asked = _Ends(asked)

    def find(self, path: str) -> str | None:
        """The name of that film; None where there is none, or where it cannot be told which."""
        wanted = _parts(path)
        for count in range(_TELLING, len(wanted) + 1):
            found = self._names.of(wanted, count)
            if not found:
                break
            if len(found) == 1 and len(self._asked.of(wanted, count)) <= 1:
                return found[0]
        if wanted and not self._names.of(wanted, _TELLING):
            return self._names.bare.get(wanted[-1])
        exact = [name for name in self._names.of(wanted, len(wanted)) if _parts(name) == wanted]
        return exact[0] if exact else None


class FilmStems:
    """Films found by the end of their name without folder and suffix, where only one has it."""

    def __init__(self, films: Iterable[Path]) -> None:
        self._films: dict[str, list[Path]] = defaultdict(list)
        for film in films:
            self._films[film_stem(str(film))].append(film)

    def find(self, name: str) -> Path | None:
        """The only film of that stem; None for none or several."""
        found = self._films.get(film_stem(name), [])
        return found[0] if len(found) == 1 else None


def film_stem(name: str) -> str:
    """A film's name without folder and suffix, accents as one character (a Mac writes two)."""
    path = unicodedata.normalize("NFC", name).replace("\\", "/")
    return _SUFFIX.sub("", path.rpartition("/")[2])


class _Ends:
    """Names by their last parts; each number of parts is indexed when it is first asked for."""

    def __init__(self, names: Iterable[str]) -> None:
        self._parts = {name: _parts(name) for name in names}
        self._by_count: dict[int, dict[Parts, list[str]]] = {}
        self.bare = {parts[0]: name for name, parts in self._parts.items() if len(parts) == 1}

    def of(self, wanted: Parts, count: int) -> list[str]:
        """The names whose last `count` parts are those of `wanted`."""
        if count not in self._by_count:
            ends: dict[Parts, list[str]] = defaultdict(list)
            for name, parts in self._parts.items():
                if len(parts) >= count:
                    ends[parts[-count:]].append(name)
            self._by_count[count] = dict(ends)
        return self._by_count[count].get(wanted[-count:], [])


def _parts(path: str) -> Parts:
    return PurePosixPath(path.replace("\\", "/")).parts

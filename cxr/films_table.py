"""films.csv: one row a film with its patient, source, label and licence; its class; its name."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from cxr.workdir import log, read_text

# A model whose weights are published may be trained on films under these licences only.
_PUBLISHABLE = ("CC BY 3.0", "CC BY 4.0", "CC BY", "CC BY-SA", "listed as authorized for everyone")
# The NIH Clinical Center's own terms for ChestX-ray14, however a copy of the set words the rest.
NIH_TERMS = "NIH Clinical Center: free use with attribution"
_OWN_TERMS = {
    "nih": NIH_TERMS,
    "nih_unnamed": "NIH ChestX-ray14 films",  # a copy that states no terms, but whose they are
}
_TELLING = 2  # parts: source/name
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")  # not the .3 of the UID 1.2.840.3

Parts = tuple[str, ...]
Xywh = tuple[float, float, float, float]


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
        own = any(is_among(self.source, [s]) and t in self.licence for s, t in _OWN_TERMS.items())
        return own or self.licence in _PUBLISHABLE


# --- the words of the column label ---

# what films.csv means by other words (negative and positive are a test's: the film may not show it)
_ALIASES = {
    "normal": "no finding, no findings, healthy, none found, nothing found, no disease, "
    "no abnormality, no abnormalities, no abnormality detected, nad, clear, unremarkable, "
    "within normal limits, wnl, normal chest",
    "abnormal": "sick, diseased, disease, pathological, not normal, non normal",
    "other": "others, other disease, other diseases, other finding, other findings, other lesion",
    "covid": "covid 19, covid19, sars cov 2, coronavirus, ncov, 2019 ncov",
    "tuberculosis": "tb, ptb",
}
# what a task may ask for under one name, in the words of NIH's labels
_GROUPS = {
    "pleural effusion": ("effusion",),
    "interstitial opacity": ("fibrosis", "infiltration", "infiltrate"),
    "nodule or mass": ("nodule", "mass", "nodule/mass"),
    "infiltration": ("infiltrate",),
}
_ALIAS = {word: name for name, words in _ALIASES.items() for word in words.split(", ")}
# the findings of the public sets and of the papers, as `plain_word` writes them
_FINDINGS = (
    "abnormal, other, covid, tuberculosis, active tuberculosis, advanced tuberculosis, latent "
    "tuberculosis, pneumonia, bacterial, viral, fungal, lipoid, aspiration, bacterial pneumonia, "
    "viral pneumonia, fungal pneumonia, covid pneumonia, bacteria, virus, ards, sars, mers, "
    "sarcoidosis, atelectasis, cardiomegaly, consolidation, edema, oedema, effusion, pleural "
    "effusion, emphysema, fibrosis, pulmonary fibrosis, hernia, infiltration, infiltrate, mass, "
    "nodule, nodule/mass, pleural thickening, pleural other, pleural calcification, calcification, "
    "pneumothorax, pneumoperitoneum, pneumomediastinum, mediastinal widening, mediastinal shift, "
    "enlarged cardiomediastinum, lung opacity, opacity, lung lesion, lesion, lung cyst, lung "
    "cavity, interstitial opacity, interstitial lung disease, ild, aortic enlargement, fracture, "
    "rib fracture, clavicle fracture, support device, support devices, cancer, lung cancer, tumor, "
    "tumour, lung tumor, copd, bronchitis, bronchiolitis, bronchiectasis, silicosis, asbestosis, "
    "heart failure, congestion"
)
FINDINGS = frozenset(_FINDINGS.split(", "))
# words that say that nobody knows
_UNSAID = "unknown nan n/a na none null -1 -1.0 ? uncertain todo inconclusive"
UNKNOWN_WORDS = frozenset(["", *_UNSAID.split()])
# what a column that holds nothing else means by them
_BINARY = dict.fromkeys(("0", "0.0", "false", "no"), "normal")
_BINARY |= dict.fromkeys(("1", "1.0", "true", "yes"), "abnormal")


@lru_cache(4096)
def plain_word(text: str) -> str:
    """A word as all compare it: without case, outer blanks and stops; inner blanks, `_` and `-`
    are one blank."""
    text = unicodedata.normalize("NFKC", text).strip(" \t\r\n.,;:'\"").casefold()
    return re.sub(r"[\s_]+|(?<=\w)-+(?=\w)", " ", text).strip()  # not the minus of -1


def is_among(source: str, sources: Iterable[str]) -> bool:
    """Is it one of these sources, however they are spelt?"""
    return plain_word(source) in map(plain_word, sources)


def label_word(text: str) -> str:
    """The one name of a label or finding: `No_Finding ` is normal, `COVID-19` covid; a word that
    is not known stays as `plain_word` has it."""
    word = plain_word(text)
    return _ALIAS.get(word, word)


def names_of(finding: str) -> tuple[str, ...]:
    """The words that a label may have for a finding that a task asks for: `interstitial_opacity` is
    also fibrosis and infiltration."""
    word = label_word(finding)
    return (word, *_GROUPS.get(word, ()))


def _names(text: str) -> set[str]:
    """The findings of a label or sublabel: each of those joined by `|`; `bacterial/Klebsiella` is
    also bacterial."""
    parts = [part for whole in text.split("|") for part in (whole, whole.split("/")[0])]
    return {label_word(part) for part in parts} - {""}


def _asked(words: Iterable[str]) -> list[str]:
    """What a task calls its classes; 0 and 1 are also what a column of them has become."""
    plain = [label_word(word) for word in words]
    return plain + [_BINARY.get(word, word) for word in plain]


def has_disease(row: FilmRow, diseases: Iterable[str]) -> bool:
    """Does the film's label or sublabel name one of these diseases? `bacterial` also stands for
    `bacterial/Klebsiella`, and each of the findings joined by `|`; a normal film has none."""
    if label_word(row.label) in UNKNOWN_WORDS | {"normal"}:
        return False
    return not (_names(row.label) | _names(row.sublabel)).isdisjoint(
        name for word in _asked(diseases) for name in names_of(word)
    )


def class_of(row: FilmRow, classes: Sequence[str]) -> int | None:
    """Number of a film's class: its sublabel's first finding or word (`bacterial/Klebsiella` →
    `bacterial`) where that is a class, else its label; None where neither is, or the label is
    unknown."""
    label, finding = label_word(row.label), re.split(r"[/|]", row.sublabel)[0].strip()
    wanted = _asked(classes)
    named = [label_word(finding), label_word(finding.split(" ")[0])]
    # normal is what the label alone may say
    named = [n for n in named if n != "normal" and label not in UNKNOWN_WORDS] + [label]
    return next((wanted.index(n) % len(classes) for n in named if n in wanted), None)


def is_abnormal(row: FilmRow, known: Iterable[str] = (), normal: str = "normal") -> bool | None:
    """Is the film another than normal? None where its label does not say: it is empty, unknown,
    or neither a finding nor one of the task's own words `known`; `normal` is normal too."""
    label, own, usual = label_word(row.label), set(_asked(known)) - {"normal"}, _asked([normal])
    if "abnormal" in usual and label in ("normal", "abnormal"):  # of 0 and 1 it is 1 that is normal
        return label == "normal"
    if label in ("normal", *usual):
        return False
    named = _names(label)
    if "normal" in named:  # `normal|edema` contradicts itself
        return None
    return bool(named & (FINDINGS | own)) or has_disease(row, own) or None


def why_unknown(row: FilmRow, known: Iterable[str] = (), normal: str = "normal") -> str:
    """Why `is_abnormal` does not know, to count by; "" where it does."""
    if is_abnormal(row, known, normal) is not None:
        return ""
    word = label_word(row.label)
    return "truth unknown" if word == "unknown" else f"label not known: {word or '(empty)'}"


def tell_unknown(
    rows: Iterable[FilmRow], table: str | Path, known: Sequence[str] = (), normal: str = "normal"
) -> None:
    """Warn of the films of a table whose label is not known: which words, how many films, where."""
    films: dict[str, list[FilmRow]] = defaultdict(list)
    for row in rows:
        films[why_unknown(row, known, normal)].append(row)
    words = [
        f"{why.removeprefix('label not known: ')} ({len(found)} film{'s' * (len(found) > 1)} of "
        f"{', '.join(sorted({row.source for row in found}))}, such as {found[0].image})"
        for why, found in films.items()
        if why not in ("", "truth unknown")
    ]
    if words:
        log.warning(
            "%s: labels that are not known count as unknown: %s. Correct them, or write other as "
            "the label and the word as the sublabel.",
            table,
            "; ".join(words),
        )


# --- the table ---


def table_rows(path: str | Path, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each row of a CSV file, by column in lower case, without the blanks
    round them; empty lines are passed over, and `;` or a tabulator may part the cells. Raises
    ValueError for a file that cannot be read, another encoding than UTF-8, a table without the
    columns `wanted`, and a row that ends before them."""
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8: save it so. {error}.") from error
    except OSError as error:
        why = f"{error.strerror}: check the path"
        raise ValueError(f"{path} must be a table that can be read. {why}.") from error
    head = text.partition("\n")[0]
    lines = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=head.count))
    try:
        columns = [name.strip().casefold() for name in next(lines, [])]
        if missing := [c for c in wanted if c not in columns]:
            raise ValueError(
                f"{path} must have the columns {', '.join(wanted)}. Missing: {', '.join(missing)}."
            )
        for cells in lines:
            row = dict(zip(columns, map(str.strip, cells), strict=False))
            if any(row.values()):
                if any(c not in row for c in wanted):
                    raise csv.Error("it must have a cell for each column and ends early")
                yield lines.line_num, row
    except csv.Error as error:
        line = f"{path} line {lines.line_num}"
        raise ValueError(f"{line} must be a line of CSV: {error}.") from error


def read_films_table(path: str | Path) -> list[FilmRow]:
    """Rows of a films.csv, labels as `label_word` names them (a column of 0 and 1 alone is normal
    and abnormal), names of films as they lie there: with their suffix, and `/` between folders.
    Raises ValueError when a column, a cell or a patient is missing."""
    wanted = ["image", "mask", "source", "patient_id", "label", "sublabel", "licence"]
    place = FilesOf(Path(path).parent)
    rows, sources = [], dict[str, str]()  # each source as it is spelt first
    for line, cells in table_rows(path, wanted):
        found = {c: cells[c] for c in wanted} | {c: place.name(cells[c]) for c in ("image", "mask")}
        for name in ("image", "patient_id"):
            if not found[name]:
                where = found["image"] or f"line {line}"
                raise ValueError(f"{path} must name a {name} for each film. Missing for {where}.")
        found["label"] = label_word(found["label"])
        found["source"] = sources.setdefault(plain_word(found["source"]), found["source"])
        rows.append(FilmRow(**found, view=cells.get("view") or ""))
    words = {row.label for row in rows} - UNKNOWN_WORDS
    if words and words <= _BINARY.keys():
        rows = [replace(row, label=_BINARY.get(row.label, row.label)) for row in rows]
    return rows


def read_finding_boxes(path: str | Path) -> list[tuple[str, str, Xywh]]:
    """Image, finding ("" where no column names it) and box x, y, w, h of each row of a
    finding_boxes.csv, in pixels of the film; raises ValueError with the line that is wrong."""
    boxes = []
    place = FilesOf(Path(path).parent)
    for line, row in table_rows(path, ("image",)):
        try:
            x, y, w, h = (float(row[k]) for k in ("x", "y", "w", "h"))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{path} line {line} must have image, x, y, w, h as numbers. Got {row} instead."
            ) from error
        boxes.append((place.name(row["image"]), row.get("finding", ""), (x, y, w, h)))
    return boxes


class FilesOf:
    """Files by their names under a folder, however another program wrote these."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stems: dict[Path, FilmStems] = {}

    def name(self, name: str) -> str:
        """The name with `/` between folders, and with its suffix where it lacks that."""
        if "\\" in name and not (self._folder / name).exists():
            name = name.replace("\\", "/")
        if not name or _SUFFIX.search(name):
            return name
        place = self._folder / name
        if place.exists() or not place.parent.is_dir():
            return name
        if place.parent not in self._stems:
            self._stems[place.parent] = FilmStems(place.parent.iterdir())
        found = self._stems[place.parent].find(name)
        return f"{name.removesuffix(place.name)}{found.name}" if found else name


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

    Where the names that will be `asked` for are known, one that ends like another of them must
    share more parts too, though `names` may hold only one such.
    """

    def __init__(self, names: Iterable[str], asked: Iterable[str] = ()) -> None:
        self._all, self._every = list(names), list(asked)
        self._names, self._asked = _Ends(self._all), _Ends(self._every)

    def find(self, path: str) -> str | None:
        """The name of that film; None where there is none, or where it cannot be told which. A
        name without a suffix is that of any, where only one other has it."""
        found, bare = self._find(path), _without_suffix(path)
        if found or bare != path:
            return found or self._find(bare)
        stems, names = self._stems
        return names.get(stems._find(path) or "")

    @cached_property
    def _stems(self) -> tuple[FilmNames, dict[str, str]]:
        """The names without their suffixes, and each one's own name where only one has it."""
        counts = Counter(map(_without_suffix, self._all))
        own = {b: n for n in self._all if counts[b := _without_suffix(n)] == 1}
        return FilmNames(own, map(_without_suffix, self._every)), own

    def _find(self, path: str) -> str | None:
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
    return _without_suffix(_parts(name)[-1]) if name else ""


def _without_suffix(name: str) -> str:
    return _SUFFIX.sub("", name)


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
    return PurePosixPath(unicodedata.normalize("NFC", path).replace("\\", "/")).parts

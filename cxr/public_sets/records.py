"""What the loaders of public sets share: the records that they hand on, reading folders and tables,
the tables that we write, and the words for findings, views, sexes and ages in these."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TextIO

from cxr.films_table import UNKNOWN_WORDS, FilmRow, label_word
from cxr.workdir import TEXT, write_atomic

# What an uncertain mention (-1 of CheXpert's labeller) is taken for.
Uncertain = Literal["ignore", "positive", "negative"]


@dataclass(frozen=True)
class PublicFilm(FilmRow):
    """One row of a films.csv with all its columns; sizes in pixels, 0 as long as unread."""

    age: str = ""
    sex: str = ""
    width: int = 0
    height: int = 0
    orig_width: int = 0
    orig_height: int = 0

    def sized(self, image: str, width: int, height: int) -> PublicFilm:
        """The row under its final name with the size of the file, which is the original's too."""
        return replace(
            self, image=image, width=width, height=height, orig_width=width, orig_height=height
        )


_COLUMNS = "image mask source patient_id view label sublabel age sex licence width height"
COLUMNS = (*_COLUMNS.split(), "orig_width", "orig_height")  # as `read_films_table` takes them


@dataclass(frozen=True)
class Problem:
    """One thing in a set that is not as published."""

    kind: str  # a word to count by, such as `missing_file` or `odd_name`
    where: str  # the file, or the table and its line
    text: str  # what is wrong and what was done, in a sentence


@dataclass(frozen=True)
class LeftOut:
    """A film that is no frontal radiograph, passed over for a reason that is counted."""

    reason: str


@dataclass(frozen=True)
class FindingBox:
    """A radiologist's box round a finding: left, top, width, height in pixels of the film."""

    image: str
    finding: str
    x: float
    y: float
    w: float
    h: float
    of_width: int = 0  # width of the film that the numbers were drawn on; 0: the file's own


def unlisted(names: Iterable[str], table: str) -> Iterator[Problem]:
    """A problem where there are pictures that the table does not list."""
    if found := sorted(names):
        text = f"{len(found)} pictures are not in {table}; left out."
        yield Problem("unlisted_file", ", ".join(found[:5]), text)


Row = dict[str, str]
OWN = "is taken for a patient of its own"
Item = PublicFilm | Problem | LeftOut | FindingBox


@dataclass(frozen=True)
class LoadedSet:
    """A public set as read; `image` of rows and boxes is relative to the folder that was given."""

    rows: list[PublicFilm]
    problems: list[Problem]
    finding_boxes: list[FindingBox] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)  # on purpose (lateral, CT), by reason
    source: str = ""


@dataclass(frozen=True)
class Loader:
    """One public set."""

    name: str  # as in the column `source` and in `--source`
    title: str  # as its authors call it
    layout: str  # the published folder layout in a sentence
    licence: str  # where it differs by film, says so
    citation: str  # what its authors ask to cite
    is_root: Callable[[Path], bool]  # whether a folder is the top of this set
    read: Callable[[Path, Uncertain], Iterator[Item]]  # names of images are relative to the top


class LayoutError(ValueError):
    """A folder that is not laid out as the set is published."""


def read_lines(path: Path, key: str, read: Callable[[str, Row], Iterator[Item]]) -> Iterator[Item]:
    """What `read` makes of each line of a CSV file (also .gz), given where it stands and its cells
    by lower-case column; a Problem for a broken line. A line without a value in column `key` is
    broken: nothing can be made of it. Bytes that are no UTF-8 are replaced, because some tables
    hold notes in other encodings."""
    with _open(path) as file:
        lines = csv.reader(file)
        try:
            columns = _columns(lines)
        except (EOFError, OSError) as error:
            yield Problem("unreadable", path.name, f"The table cannot be read: {error}.")
            return
        while True:
            try:
                cells = next(lines)
            except StopIteration:
                return
            except (csv.Error, EOFError, OSError) as error:
                where = f"{path.name}:{lines.line_num}"
                yield Problem("bad_line", where, f"Not a line of a table: {error}.")
                if not isinstance(error, csv.Error):
                    return  # the file itself ends early
                continue
            where = f"{path.name}:{lines.line_num}"
            cells = list(map(str.strip, cells))
            row = dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False))
            if row.get(key):
                yield from read(where, row)
            elif any(cells):
                yield Problem("bad_line", where, f"The column '{key}' is empty; line left out.")


def read_columns(path: Path) -> set[str]:
    """Names of a CSV file's columns in lower case; empty where there is no such file."""
    try:
        with _open(path) as file:
            return set(_columns(csv.reader(file)))
    except (OSError, EOFError):
        return set()


def _columns(reader: Any) -> list[str]:
    try:
        return [name.strip().lower() for name in next(reader, [])]
    except csv.Error:
        return []


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=TEXT, errors="replace", newline="")
    return path.open(encoding=TEXT, errors="replace", newline="")


def write_rows(path: str | Path, columns: Sequence[str], records: Iterable[Any]) -> Path:
    """Dataclasses as a CSV file with these columns; the whole file or none. Bytes of a name that
    are no UTF-8 are spelt out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, records))
    return write_atomic(path, text.getvalue().encode("utf-8", "backslashreplace"))


PICTURES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif"})
_WIDEST = 40  # subfolders looked into; a set's parts are few, its patients are not


def list_pictures(folder: Path) -> list[str]:
    """Names of the pictures right inside `folder`, sorted, without hidden copies (`._a.jpeg` of
    macOS); empty where there is no folder."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith("."))
        return [name for name in names if Path(name).suffix.lower() in PICTURES]
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_folders(folder: Path) -> list[Path]:
    """Subfolders, sorted, without hidden ones and `__MACOSX`."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and e.name[0] not in "._")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [folder / name for name in names]


def levels(path: Path, deepest: int = 2) -> Iterator[list[Path]]:
    """The folder itself, then its subfolders, then theirs: archives are often packed twice."""
    level = [path]
    for _ in range(deepest + 1):
        yield level
        level = [child for folder in level for child in list_folders(folder)[:_WIDEST]]


def describe(path: Path, most: int = 6) -> str:
    """What lies in a folder, for an error message."""
    if not path.exists():
        return "no such folder"
    if not path.is_dir():
        return "a file, not a folder"
    folders = [f.name + "/" for f in list_folders(path)]
    with os.scandir(path) as entries:
        files = sorted(e.name for e in entries if e.is_file() and not e.name.startswith("."))
    if not folders and not files:
        return "an empty folder"
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:most])}{', …' if len(names) > most else ''})"
        for names, what in ((folders, "folders"), (files, "files"))
        if names
    )


def index_pictures(root: Path, folders: Iterable[Path]) -> dict[str, str]:
    """Name of each picture in `folders` → its path relative to `root`; the first of a name wins."""
    index: dict[str, str] = {}
    for folder in folders:
        prefix = folder.relative_to(root).as_posix()
        for name in list_pictures(folder):
            index.setdefault(name, f"{prefix}/{name}" if prefix != "." else name)
    return index


# --- words that the sets share ---


NO_FINDING = "No Finding"
NIH_FINDINGS = frozenset(
    [
        *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema"),
        *("Fibrosis", "Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening"),
        *("Pneumonia", "Pneumothorax"),
    ]
)
# of CheXpert's labeler; a tube is no disease: the labeller allows it beside No Finding
FINDINGS = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"),
    *("Pleural Other", "Fracture"),
)
OBSERVATIONS = (NO_FINDING, *FINDINGS, "Support Devices")
_VALUES = {"1": 1, "0": 0, "-1": -1, "": None}
# findings of early releases of the COVID-19 sets that do not name their group
_NAMES = {
    "viral": "sars mers mers-cov influenza varicella herpes h1n1",
    "bacterial": "streptococcus klebsiella legionella e.coli mycoplasma chlamydophila nocardia "
    "staphylococcus",
    "fungal": "pneumocystis aspergillosis",
}
_GROUPS = {name: group for group, names in _NAMES.items() for name in names.split()}
_BARE = {"viral", "bacterial", "fungal", "lipoid", "aspiration"}
_OTHER = {"ards", "tuberculosis", "pneumothorax", "effusion", "edema", "atelectasis", "sarcoidosis"}

_FRONTAL = re.compile(r"^(PA|AP)([ _-]?(erect|supine|sitting|portable|semi.?erect))?$", re.I)
_NOT_FRONTAL = dict.fromkeys(("L", "LL", "LATERAL", "RL"), "lateral") | dict.fromkeys(
    ("AXIAL", "CORONAL", "SAGITTAL", "CT"), "CT"
)
_AGE = re.compile(r"(\d+)(?:\.\d+)?\s*([YMWD]?)(?:ears?|onths?|eeks?|ays?)?", re.I)


def label_of_finding(finding: str) -> tuple[str, str] | None:
    """(label, sublabel) of a finding as the COVID-19 sets write it; None for an unknown word.
    `Pneumonia/Bacterial/Streptococcus` is (pneumonia, bacterial/Streptococcus); `COVID-19, ARDS` is
    covid."""
    finding = finding.strip()
    word = label_word(finding)
    if word in UNKNOWN_WORDS:
        return "unknown", "no label"
    if word == "normal":
        return "normal", finding
    parts = [part.strip() for part in finding.split("/") if part.strip()]
    if not parts:
        return None
    head = parts[-1].split(",")[0].strip()
    if label_word(head) == "covid":
        return "covid", parts[-1]
    if parts[0].lower() == "pneumonia":
        rest = parts[1:] or ["unspecified"]
        return "pneumonia", "/".join([rest[0].lower(), *rest[1:]])
    if word in _BARE:
        return "pneumonia", word
    first = head.split(" ")[0]
    if first.lower() in _GROUPS:
        return "pneumonia", f"{_GROUPS[first.lower()]}/{first}"
    return ("other", finding) if head.lower() in _OTHER else None


def label_of_findings(text: str) -> tuple[str, list[str]]:
    """(label, words that are no findings of NIH) of `Edema|Pneumonia`."""
    words = [word.strip() for word in text.split("|") if word.strip()]
    odd = [word for word in words if word not in NIH_FINDINGS and word != NO_FINDING]
    if "Pneumonia" in words:
        return "pneumonia", odd
    if any(word in NIH_FINDINGS for word in words):
        return "other", odd
    return ("normal" if NO_FINDING in words and not odd else "unknown"), odd


def read_values(row: dict[str, str]) -> tuple[dict[str, int], list[str]]:
    """(observation → 1, 0 or -1; those not mentioned are left out, columns with another value)."""
    values: dict[str, int] = {}
    odd = []
    for column in OBSERVATIONS:
        text = row.get(column.lower(), "")
        value = _VALUES.get(text.removesuffix(".0"), "odd")
        if isinstance(value, int):
            values[column] = value
        elif value == "odd":
            odd.append(f"{column} '{text}'")
    return values, odd


def label_of_values(values: dict[str, int], uncertain: str) -> tuple[str, str]:
    """(label, sublabel): what is present, joined by |; `Pneumonia?` where uncertain and ignored.
    Uncertain counts as present for `positive` and as absent for `negative`. For `ignore` a film
    with uncertain pneumonia, or with nothing but uncertain findings, is `unknown`."""
    if uncertain != "ignore":
        taken = 1 if uncertain == "positive" else 0
        values = {name: taken if value == -1 else value for name, value in values.items()}
    words = [name + ("?" if values[name] < 0 else "") for name in OBSERVATIONS if values.get(name)]
    sublabel = "|".join(words) or "no label"
    if values.get("Pneumonia"):
        return ("pneumonia" if values["Pneumonia"] == 1 else "unknown"), sublabel
    if any(values.get(name) == 1 for name in FINDINGS):
        return "other", sublabel
    if any(values.get(name) for name in FINDINGS):
        return "unknown", sublabel
    return ("normal" if values.get(NO_FINDING) == 1 else "unknown"), sublabel


def frontal_view(view: str) -> tuple[str, str]:
    """(view, "") of a frontal film, `AP Supine` as `AP_Supine`; ("", reason) of another picture. A
    view that is not stated, or a word that is not known, is ("unknown", "")."""
    view = view.strip()
    reason = _NOT_FRONTAL.get(view.upper(), "")
    if reason:
        return "", reason
    if not _FRONTAL.match(view):
        return "unknown", ""
    head, _, tail = view.replace(" ", "_").replace("-", "_").partition("_")
    return f"{head.upper()}_{tail}" if tail else head.upper(), ""


def is_known_view(view: str) -> bool:
    """Whether `frontal_view` knows the word, an empty one included."""
    word = view.strip()
    return (
        word.lower() in UNKNOWN_WORDS or word.upper() in _NOT_FRONTAL or bool(_FRONTAL.match(word))
    )


def sex_of(word: str) -> str:
    """ "M", "F", or "" where it is not stated."""
    return {"M": "M", "F": "F"}.get(word.strip()[:1].upper(), "")


def years_of(age: str) -> str | None:
    """Age in whole years, "" where not stated, None where it cannot be an age. `058Y`, `007M`
    (months) and `012D` (days) of NIH's first table count too, and `8 months`."""
    age = age.strip()
    if not age:
        return ""
    match = _AGE.fullmatch(age)
    if not match:
        return None
    days = {"": 365.25, "Y": 365.25, "M": 30.44, "W": 7.0, "D": 1.0}[match[2].upper()]
    years = int(int(match[1]) * days / 365.25 + 1e-6)
    return str(years) if years <= 120 else None

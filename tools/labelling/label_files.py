"""What all label formats share: which film a label file means, which of its boxes can be used, and
where label files lie. Boxes are xyxy in film pixels, as cxr.coco has them."""

from __future__ import annotations

import math
import os
import re
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from rich.progress import track

from cxr.boxes import as_boxes
from cxr.coco import CocoFilm, CocoSet, find_faults, marks_in, to_coco
from cxr.film import FILM_SUFFIXES, FilmError, list_films, read_film
from cxr.films_table import label_word
from cxr.picture import is_picture
from cxr.workdir import console
from labelling import is_session
from labelling.labelme import PRELABELLED, Shape

MAX_LABEL_BYTES = 256 << 20  # labelme may keep the whole picture in its file
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_LONGEST = 300  # characters of a reason: some name all that a hostile file holds
_TURNED = range(5, 9)  # EXIF orientations that swap width and height

SizeHw = tuple[int, int]
Names = tuple[str, ...]
T = TypeVar("T")


class LabelError(ValueError):
    """Why a label file, or one film of it, cannot be used; the message is the reason alone."""


class Unusable(NamedTuple):
    """A label file, or one film of it, that cannot be used, and why."""

    where: str
    reason: str

    def __str__(self) -> str:
        cut = len(self.reason) > _LONGEST
        return f"{self.where}: {self.reason[:_LONGEST]}{'…' * cut}"


Read = tuple[CocoSet, list[Unusable]]  # the films that can be used, and what cannot


class ReadRules(NamedTuple):
    """How label files are judged."""

    classes: Names = ()  # the labels allowed; empty allows all that the files use
    hull: bool = False  # take the smallest box round a shape that is no rectangle
    # Film name → (height, width) where the films are known beforehand, as a session's are; a label
    # of another film is then no fault.
    known: Mapping[str, SizeHw] | None = None


ANY_LABELS = ReadRules()


class FilmLabels(NamedTuple):
    """What a label file says of one film; shapes are upright rectangles in film pixels."""

    film: str
    size_hw: SizeHw
    shapes: Sequence[Shape]
    extra: dict[str, Any]
    notes: tuple[dict[str, Any], ...] = ()  # that the boxes have in a COCO file

    def to_film(self, classes: Sequence[str]) -> CocoFilm:
        """The record of cxr.coco, labels numbered by `classes`."""
        index = tuple(classes.index(shape.label) for shape in self.shapes)
        untouched = any(shape.prelabelled for shape in self.shapes)
        extra = self.extra | ({PRELABELLED: True} if untouched else {})
        notes = self.notes or tuple(map(_to_note, self.shapes))
        boxes = as_boxes([shape.xyxy for shape in self.shapes])
        notes = notes if any(notes) else ()
        return CocoFilm(self.film, self.size_hw, boxes, index, extra, notes)


def _to_note(shape: Shape) -> dict[str, Any]:
    """What COCO keeps of a shape. Any mark is a crowd for the trainers of others, which know no
    other mark of COCO."""
    marks = {"iscrowd": 1, **dict.fromkeys(sorted(shape.marks), 1)} if shape.marks else {}
    return marks | ({} if shape.group_id is None else {"group_id": shape.group_id})


def to_rectangle(label: str, xyxy: Sequence[float], flags: Iterable[str] = ()) -> Shape:
    """A box that a file gives by its edges, which may not be crossed; raises LabelError."""
    x0, y0, x1, y1 = xyxy
    said = ", ".join(f"{value:g}" for value in xyxy)
    if not all(map(math.isfinite, xyxy)):
        raise LabelError(f"the edges of a box must be four numbers. Got {said}")
    if x0 >= x1 or y0 >= y1:
        raise LabelError(f"a box must have a width and a height above 0. Got the edges {said}")
    return Shape(label, ((x0, y0), (x1, y1)), flags=frozenset(flags))


def to_shapes(film: CocoFilm, classes: Sequence[str]) -> list[Shape]:
    """The boxes of a record as shapes in film pixels, with their marks."""
    untouched = {PRELABELLED} if film.extra.get(PRELABELLED) else set()
    notes, shapes = film.notes or ({},) * len(film.labels), []
    for box, label, note in zip(film.boxes_xyxy.tolist(), film.labels, notes, strict=True):
        x0, y0, x1, y1 = (round(v, 3) for v in box)
        flags, group = frozenset({*untouched, *marks_in(note)}), note.get("group_id")
        group = group if type(group) is int else None
        shapes.append(Shape(classes[label], ((x0, y0), (x1, y1)), "rectangle", flags, group))
    return shapes


Entry = tuple[str, Callable[[], FilmLabels]]  # which film of which file, and what reads it


class LabelFormat:
    """One kind of label file; this base has a file a film, which `save` writes and `load` reads."""

    suffix = ""
    marker = ""  # the folder that its label files conventionally lie in

    def write(
        self, coco: CocoSet, out: Path, films: Path | None = None, overwrite: bool = False
    ) -> list[Path]:
        """Write the label files, at the films' relative paths below `out`. Raises ValueError for a
        film that leads out of `out`, for two that share a label file, for names that the format
        cannot hold; FileExistsError for a file that is there and may not be replaced."""
        names = [film.file_name for film in coco.films]
        stems, owners = Counter(map(stem_of, names)), dict[str, str]()
        for name in names:
            check_name(name)
            place = self.place(name, stems[stem_of(name)] > 1)
            if (other := owners.setdefault(place, name)) != name:
                both = f"'{other}' and '{name}' would share the label file {place}"
                raise ValueError(f"{both}; rename one of the films.")
        paths = [out / place for place in owners]
        check_free(paths, overwrite)
        for path, film in zip(paths, coco.films, strict=True):
            self.save(path, film, coco.classes, films)
        return paths

    def place(self, film: str, alike: bool) -> str:
        """Where the film's label file lies. Films of one folder that are `alike` but for their
        suffix, as a.png and a.dcm, keep it: a.png.xml, a.dcm.xml."""
        return f"{film if alike else stem_of(film)}{self.suffix}"

    def save(self, path: Path, film: CocoFilm, classes: Names, films: Path | None) -> None:
        """Write one film's label file; `films` is the folder of the films, if known."""
        raise NotImplementedError

    def read(self, path: Path, films: Path | None = None, rules: ReadRules = ANY_LABELS) -> Read:
        """Read one label file or a folder of them; `films` is where the films lie, if they are to
        be found. Returns the films that can be used, and what cannot."""
        collector = Collector(FilmFinder(films, rules.known), rules)
        base, files = list_label_files(path, self.suffix, self.marker)
        for where, load in self.entries(base, files, collector):
            collector.take(where, load)
        return collector.finish()

    def entries(self, base: Path, files: Sequence[Path], collector: Collector) -> Iterator[Entry]:
        """The films of the label files below `base`."""
        for where, file in collector.follow(base, files):
            yield where, partial(self.load, file, base, collector.finder, collector.rules)

    def load(self, file: Path, base: Path, finder: FilmFinder, rules: ReadRules) -> FilmLabels:
        """Read one label file below `base`; raises LabelError for one that cannot be used."""
        raise NotImplementedError


class Collector:
    """Gathers films into one set and refuses those with a fault, each whole: a film that lost one
    of its boxes would teach that there is nothing. `classes` are those that the source declares."""

    def __init__(self, finder: FilmFinder, rules: ReadRules) -> None:
        self.finder, self.rules = finder, rules
        self.classes: dict[str, None] = {}
        self.infos: list[dict[str, Any]] = []
        self.unusable: list[Unusable] = []
        self._films: dict[str, tuple[str, FilmLabels]] = {}

    def follow(self, base: Path, files: Sequence[Path]) -> Iterator[tuple[str, Path]]:
        """Each file that is not too large, with its name below `base`."""
        for file in track(files, "reading labels", console=console, transient=True):
            where = file.relative_to(base).as_posix()
            size = self.attempt(where, partial(os.path.getsize, file))
            if size is not None and size <= MAX_LABEL_BYTES:
                yield where, file
            elif size:
                most = f"larger than {MAX_LABEL_BYTES >> 20} MiB, too large for labels"
                self.unusable.append(Unusable(where, most))

    def attempt(self, where: str, do: Callable[[], T]) -> T | None:
        """What `do` gives; None where it failed, which is noted."""
        try:
            return do()
        except OSError as error:
            why = f"it cannot be read: {error.strerror or error}"
        except (ValueError, OverflowError, RecursionError) as error:
            why = str(error).replace("\n", "; ")
        self.unusable.append(Unusable(where, why))
        return None

    def take(self, where: str, load: Callable[[], FilmLabels]) -> None:
        """Read and keep a film's labels, or note why they cannot be used."""

        def keep() -> None:
            labels = self._checked(load())
            self._films[labels.film] = where, labels

        self.attempt(where, keep)

    def _checked(self, labels: FilmLabels) -> FilmLabels:
        if labels.film in self._films:
            raise LabelError(f"{labels.film} has labels in {self._films[labels.film][0]} already")
        allowed = self.rules.classes
        known = {label_word(name): name for name in allowed} | {name: name for name in allowed}
        named = []
        for shape in labels.shapes:
            name = shape.label.strip()
            named.append(replace(shape, label=known.get(name, known.get(label_word(name), name))))
            if not name:
                raise LabelError("a box of it has no label")
        used = sorted({shape.label for shape in named})
        foreign = [label for label in used if label not in allowed]
        if allowed and foreign:
            raise LabelError(f"label {foreign[0]!r} is not of {', '.join(allowed)}")
        labels = labels._replace(shapes=named)
        if faults := find_faults(to_coco(CocoSet([labels.to_film(used)], tuple(used)))):
            raise LabelError(faults[0])
        return labels

    def finish(self) -> Read:
        """The set and what is not in it."""
        films = [labels for _, labels in self._films.values()]
        used = {shape.label for film in films for shape in film.shapes}
        declared = [name.strip() for name in self.classes]
        order = self.rules.classes or tuple(dict.fromkeys([*declared, *sorted(used)]))
        info = self.infos[0] if len(self.infos) == 1 else {}
        return CocoSet([film.to_film(order) for film in films], order, info), self.unusable


def list_label_files(path: Path, suffix: str, marker: str = "") -> tuple[Path, list[Path]]:
    """The folder that label files are relative to, and the files. `path` is one file or a folder
    searched through; `marker` is the name of the folder that labels conventionally lie in, found
    above or below `path`. Raises FileNotFoundError, ValueError for a path without such files."""
    if path.is_file():
        above = [p for p in path.resolve().parents if p.name == marker]
        return (above[0] if above else path.resolve().parent), [path.resolve()]
    if not path.is_dir():
        rule = "path must be a label file or a folder of label files"
        raise FileNotFoundError(f"{rule}. Got '{path}', which does not exist.")
    if is_session(path) or is_session(path.parent):
        raise ValueError(
            f"path must be label files of films. Got '{path}', a labelling session, whose boxes "
            "are in the pixels of its views: export the session first."
        )
    base = path / marker if marker and (path / marker).is_dir() else path
    named = [p for p in sorted(base.rglob("*")) if p.suffix.lower() == suffix and p.is_file()]
    files = [p for p in named if "/." not in f"/{p.relative_to(base).as_posix()}"]
    if not files:
        raise ValueError(f"path must hold label files named *{suffix}. Got '{path}' with none.")
    return base, files


def ticked(extra: Mapping[str, Any]) -> list[str]:
    """The flags of a film's `extra`, which may come from any COCO file."""
    flags = extra.get("flags")
    return [f for f in flags if isinstance(f, str)] if isinstance(flags, list) else []


def stem_of(film: str) -> str:
    """The film's name without the suffix of a film; "IM.0001" and "1.2.840" keep all of theirs."""
    path = PurePosixPath(film)
    return str(path.with_suffix("")) if path.suffix.lower() in FILM_SUFFIXES else film


def check_name(film: str) -> None:
    """Raises ValueError for a film that cannot be named by a path below the films' folder."""
    parts = film.replace("\\", "/").split("/")
    if PurePosixPath(film).is_absolute() or ".." in parts or "\0" in film:
        rule = "must be a path below the films' folder for its labels to go out"
        raise ValueError(f"'{film}' {rule}; pass --films with a folder that holds all films.")
    try:
        os.fsencode(film).decode("utf-8")
    except ValueError as error:
        raise ValueError(f"{film!r} must be a name in UTF-8; rename the film.") from error


def check_free(paths: Iterable[Path], overwrite: bool) -> None:
    """Raises FileExistsError when one of the files is there and may not be replaced."""
    there = [] if overwrite else [p for p in paths if p.exists()]
    if there:
        raise FileExistsError(
            f"out must be a folder without label files of these films. '{there[0]}' is there "
            f"({len(there)} in all); take another folder or pass --overwrite."
        )


class FilmFinder:
    """The films that labels may mean, without ever leaving the films' folder.

    Names are relative to `folder`; without `known`, labels must mean a film in it. `known` are film
    name → (height, width) of films known beforehand; labels may mean others too, whose names are
    kept as they stand. With neither, any name below no particular folder is taken as it stands.
    """

    def __init__(self, folder: Path | None, known: Mapping[str, SizeHw] | None = None) -> None:
        if folder is not None and not folder.is_dir():
            rule = "films must be the folder that holds the films"
            raise FileNotFoundError(f"{rule}. Got '{folder}', which is none.")
        self.folder = folder.resolve() if folder is not None else None
        self.known = known

    @cached_property
    def names(self) -> frozenset[str]:
        """All films, relative to the folder."""
        if self.known is not None or self.folder is None:
            return frozenset(self.known or ())
        films = list_films([self.folder]).films
        return frozenset(film.relative_to(self.folder).as_posix() for film in films)

    @cached_property
    def _composed(self) -> dict[str, str]:
        return {compose(name): name for name in self.names}

    @cached_property
    def _loose(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The films by their bare names, and by their names without a suffix."""
        bases, stems = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
        for name in sorted(self.names):
            whole, bare = compose(name), compose(PurePosixPath(name).name)
            bases[bare].append(name)
            for key in {stem_of(whole), stem_of(bare)}:
                stems[key].append(name)
        return bases, stems

    def of_stem(self, path: str) -> list[str]:
        """The films whose bare name without its suffix is the last part of this path."""
        return self._loose[1].get(path.rpartition("/")[2], [])

    def find(self, *candidates: str) -> str:
        """The film that the first fitting candidate names, exactly; else the one film with that
        bare name in any folder; else, for a name without a suffix, the one film of that stem.
        Raises LabelError when none does, several do, or a name leads out of the folder."""
        tried = [self._to_relative(c) for c in candidates]
        if found := next(filter(None, map(self.look_up, tried)), None):
            return found
        for index in self._loose:
            for name in tried:
                same = index.get(compose(name), [])
                if len(same) > 1:
                    both = f"{same[0]} or {same[1]}"
                    raise LabelError(f"{name!r} may be {both}; name it with its folder")
                if same:
                    return same[0]
        if self.folder is not None and self.known is None:
            raise LabelError(f"its film {tried[0]!r} does not lie in the films' folder")
        return tried[0]

    def look_up(self, name: str) -> str | None:
        """The film of exactly this name, however its accents are spelt; None when there is none."""
        return name if name in self.names else self._composed.get(compose(name))

    def inside(self, path: Path) -> str | None:
        """The name of a path in the films' folder; None for one outside. Touches no file."""
        normal = Path(os.path.normpath(path))
        if self.folder is None or normal == self.folder or not normal.is_relative_to(self.folder):
            return None
        return normal.relative_to(self.folder).as_posix()

    def check_size(self, film: str, said_hw: SizeHw | None) -> SizeHw:
        """(height, width) of the film, which must be what its labels say where both are known.
        Raises LabelError for another size, an unknown one or a film that cannot be read."""
        size_hw = None
        if self.known is not None:
            size_hw = self.known.get(film)
            if size_hw is not None and min(size_hw) < 1:
                raise LabelError(f"{film} could not be read when the session was made")
        elif self.folder is not None:
            size_hw = read_size_hw(self.folder / film, said_hw)
        if size_hw and said_hw and size_hw != said_hw:
            said, own = (f"{width} × {height} px" for height, width in (said_hw, size_hw))
            raise LabelError(f"it is for a film of {said}, but {film} has {own}")
        size = size_hw or said_hw
        if size is None:
            raise LabelError(f"it does not say the size of {film}; pass --films with its folder")
        return size

    def _to_relative(self, name: str) -> str:
        if name in self.names:
            return name
        slashed = name.replace("\\", "/").strip()
        if not slashed.strip("/. ") or "\0" in name:
            raise LabelError(f"it names no film. Got {name!r}")
        parts = PurePosixPath(slashed).parts
        relative: str | None = None if ".." in parts else "/".join(parts)
        if slashed.startswith("/") or _DRIVE.match(slashed):
            relative = self.inside(Path(slashed))
        if relative is None:
            raise LabelError(f"its film {name!r} lies outside the films' folder")
        return relative


def read_size_hw(path: Path, said_hw: SizeHw | None = None) -> SizeHw:
    """(height, width) of a film as read_film gives it, or as it is stored where labels say that
    and its pixels are no squares; of a picture only the header is read. Raises LabelError for what
    is no film."""
    from PIL import Image

    try:
        with path.open("rb") as file:
            head = file.read(132)
        if head[128:132] == b"DICM" or not is_picture(head):
            read = read_film(path)
            height, width = read.pixels.shape
            return said_hw if said_hw and said_hw == read.stored_hw else (height, width)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
                turned = image.getexif().get(0x0112, 1) in _TURNED
                width, height = image.size
        return (width, height) if turned else (height, width)
    except FilmError as error:
        raise LabelError(f"its film {path.name} cannot be read: {error.sentence}") from error
    except Exception as error:  # Pillow raises all kinds
        raise LabelError(f"its film {path.name} cannot be read: its header is damaged") from error


def name_below(path: Path, folder: Path) -> str | None:
    """The path relative to a folder, as films are named; None for one outside of it."""
    relative = Path(os.path.relpath(path.parent.resolve() / path.name, folder.resolve()))
    return None if relative.parts[:1] == (os.pardir,) else relative.as_posix()


def compose(name: str) -> str:
    """é as one character; a Mac spells it as two."""
    return unicodedata.normalize("NFC", name)

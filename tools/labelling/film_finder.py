"""Which film a label file means, without ever leaving the films' folder, and how large it is."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath

from PIL import Image

from cxr.errors import FilmError
from cxr.film import list_films, read_film
from cxr.picture import is_picture

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_TURNED = range(5, 9)  # EXIF orientations that swap width and height


class LabelError(ValueError):
    """Why a label file, or one film of it, cannot be used; the message is the reason alone."""


class FilmFinder:
    """The films that labels may mean.

    Args:
        folder: names are relative to it. Without `known`, labels must mean a film in it.
        known: film name → (height, width) of films known beforehand; labels may mean others too,
            whose names are kept as they stand.

    With neither, any name below no particular folder is taken as it stands.
    """

    def __init__(
        self, folder: Path | None, known: Mapping[str, tuple[int, int]] | None = None
    ) -> None:
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(
                f"films must be the folder that holds the films. Got '{folder}', which is none."
            )
        self.folder = folder.resolve() if folder is not None else None
        self.known = known

    @cached_property
    def names(self) -> frozenset[str]:
        """All films, relative to the folder."""
        if self.known is not None:
            return frozenset(self.known)
        if self.folder is None:
            return frozenset()
        return frozenset(
            p.relative_to(self.folder).as_posix() for p in list_films([self.folder]).films
        )

    @cached_property
    def _composed(self) -> dict[str, str]:
        return {_compose(name): name for name in self.names}

    @cached_property
    def _by_base(self) -> dict[str, list[str]]:
        names = defaultdict(list)
        for name in sorted(self.names):
            names[_compose(PurePosixPath(name).name)].append(name)
        return names

    def find(self, *candidates: str) -> str:
        """The film that the first fitting candidate names, exactly; else the one film with that
        bare name in any folder.

        Raises:
            LabelError: when none does, when several do, or when a name leads out of the folder.
        """
        tried = [self._to_relative(c) for c in candidates]
        for name in tried:
            found = self.look_up(name)
            if found:
                return found
        for name in tried:
            same = [] if "/" in name else self._by_base.get(_compose(name), [])
            if len(same) > 1:
                raise LabelError(f"{name!r} may be {same[0]} or {same[1]}; name it with its folder")
            if same:
                return same[0]
        if self.folder is not None and self.known is None:
            raise LabelError(f"its film {tried[0]!r} does not lie in the films' folder")
        return tried[0]

    def look_up(self, name: str) -> str | None:
        """The film of exactly this name, however its accents are spelt; None when there is none."""
        return name if name in self.names else self._composed.get(_compose(name))

    def inside(self, path: Path) -> str | None:
        """The name of a path in the films' folder; None for one outside. Touches no file."""
        if self.folder is None:
            return None
        normal = Path(os.path.normpath(path))
        inside = normal.is_relative_to(self.folder) and normal != self.folder
        return normal.relative_to(self.folder).as_posix() if inside else None

    def check_size(self, film: str, said_hw: tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) of the film, which must be what its labels say where both are known.

        Raises:
            LabelError: for another size, an unknown one or a film that cannot be read.
        """
        size_hw = self._size_hw(film)
        if size_hw is None and said_hw is None:
            raise LabelError(f"it does not say the size of {film}; pass --films with its folder")
        if size_hw and said_hw and size_hw != said_hw:
            raise LabelError(f"it is for a film of {_say(said_hw)}, but {film} has {_say(size_hw)}")
        size = size_hw or said_hw
        assert size is not None
        return size

    def _size_hw(self, film: str) -> tuple[int, int] | None:
        if self.known is not None:
            size_hw = self.known.get(film)
            if size_hw is not None and min(size_hw) < 1:
                raise LabelError(f"{film} could not be read when the session was made")
            return size_hw
        return read_size_hw(self.folder / film) if self.folder is not None else None

    def _to_relative(self, name: str) -> str:
        if name in self.names:
            return name
        slashed = name.replace("\\", "/")
        if not slashed.strip("/. ") or "\0" in name:
            raise LabelError(f"it names no film. Got {name!r}")
        if slashed.startswith("/") or _DRIVE.match(name):
            relative = self.inside(Path(slashed))
            if relative is None:
                raise LabelError(f"its film {name!r} lies outside the films' folder")
            return relative
        parts = PurePosixPath(slashed).parts
        if ".." in parts:
            raise LabelError(f"its film {name!r} lies outside the films' folder")
        return "/".join(parts)


def read_size_hw(path: Path) -> tuple[int, int]:
    """(height, width) of a film as read_film gives it; of a picture only the header is read.

    Raises:
        LabelError: for what is no film.
    """
    try:
        with path.open("rb") as file:
            head = file.read(132)
        if head[128:132] == b"DICM" or not is_picture(head):
            height, width = read_film(path).pixels.shape
            return height, width
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "JPEG", "TIFF", "MPO")) as image:
                turned = image.getexif().get(0x0112, 1) in _TURNED
                width, height = image.size
        return (width, height) if turned else (height, width)
    except FilmError as error:
        raise LabelError(f"its film {path.name} cannot be read: {error.sentence}") from error
    except Exception as error:  # Pillow raises all kinds
        raise LabelError(f"its film {path.name} cannot be read ({type(error).__name__})") from error


def name_below(path: Path, folder: Path) -> str | None:
    """The path relative to a folder, as films are named; None for one outside of it."""
    relative = Path(os.path.relpath(path.parent.resolve() / path.name, folder.resolve()))
    return None if relative.parts[:1] == (os.pardir,) else relative.as_posix()


def _compose(name: str) -> str:
    """é as one character; a Mac spells it as two."""
    return unicodedata.normalize("NFC", name)


def _say(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[1]} × {size_hw[0]} px"

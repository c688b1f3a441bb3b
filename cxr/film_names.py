"""Which name in one table is which film of another, where films lie in other folders."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

_TELLING = 2  # parts: source/name
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")  # not the .3 of the UID 1.2.840.3

Parts = tuple[str, ...]


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

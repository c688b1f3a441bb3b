"""What a loader of a public set reads and hands on: films, problems, boxes of findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cxr.films_table import FilmRow

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
COLUMNS = (*_COLUMNS.split(), "orig_width", "orig_height")


@dataclass(frozen=True)
class Problem:
    """One thing in a set that is not as published.

    Attributes:
        kind: a word to count by, such as `missing_file` or `odd_name`.
        where: the file, or the table and its line.
        text: what is wrong and what was done, in a sentence.
    """

    kind: str
    where: str
    text: str


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


Item = PublicFilm | Problem | LeftOut | FindingBox


@dataclass(frozen=True)
class LoadedSet:
    """A public set as read; `image` of rows and boxes is relative to the folder that was given.

    `left_out` counts the films that were passed over on purpose (lateral, CT), by reason.
    """

    rows: list[PublicFilm]
    problems: list[Problem]
    finding_boxes: list[FindingBox] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Loader:
    """One public set.

    Attributes:
        name: as in the column `source` and in `--source`.
        title: as its authors call it.
        layout: the published folder layout in a sentence.
        licence: of the set; where it differs by film, says so.
        citation: what its authors ask to cite.
        is_root: whether a folder is the top of this set.
        read: the set's films, problems and boxes; names of images relative to the top.
    """

    name: str
    title: str
    layout: str
    licence: str
    citation: str
    is_root: Callable[[Path], bool]
    read: Callable[[Path, Uncertain], Iterator[Item]]


class LayoutError(ValueError):
    """A folder that is not laid out as the set is published."""

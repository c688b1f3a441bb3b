"""What a run works on: films or crops one by one, with what the report shows of each.

An Item keeps the pixels that the members see and a thumbnail of the film, not the film itself:
a batch of items is then as small as its crops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cxr.film import Film, FilmError, read_film
from cxr.manifest import CropRow
from cxr.page.pictures import Picture, make_picture
from cxr.page.words import printable
from cxr.stream import Unread, read_ahead


class HasPixels(Protocol):
    """A crop as detect.crop gives it: pixels (h, w) float32 in [0, 1]."""

    @property
    def pixels(self) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Item:
    """One film on its way to the members. `pixels` (H, W) are the crop's or the whole film's;
    None when there is nothing to classify, and then `reason` says why."""

    film: str
    status: str
    reason: str = ""
    sha256: str = ""
    pixels: np.ndarray | None = None
    picture: Picture | None = None
    facts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.pixels is not None or self.reason, f"{self.film}: refused without a reason"


@dataclass(frozen=True)
class Source:
    """The films of a run by name, and how the pending ones are turned into items."""

    names: list[str]
    items: Callable[[list[str]], Iterator[Item]]
    settings: dict[str, Any]
    passed_over: dict[str, int] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)


def whole_films(paths: Iterable[Path], jobs: int) -> Iterator[Item]:
    """Each film as it is; no thorax box is sought."""
    for path, film in read_ahead(paths, jobs):
        name = name_of(path)
        if isinstance(film, Unread):
            yield Item(name, "unreadable", str(film), film.sha256)
        else:
            yield Item(
                name, "ok", "", film.sha256, film.pixels, make_picture(film.pixels), facts_of(film)
            )


def fresh_crop(row: CropRow, film: Film | None, crop: HasPixels | None) -> Item:
    """A film that was boxed and cut just now."""
    picture = make_picture(film.pixels, row.thorax_xyxy, row.crop_xyxy) if film else None
    pixels, facts = crop.pixels if crop else None, facts_of(film) if film else ()
    return Item(name_of(row.film), row.status, row.reason, row.sha256, pixels, picture, facts)


def crop_on_disk(row: CropRow, folder: Path) -> Item:
    """A film that was cropped earlier. Its own picture is shown where the same film still lies
    where it was; its crop is all that the members need."""
    film = _same_film(row)
    picture = make_picture(film.pixels, row.thorax_xyxy, row.crop_xyxy) if film else None
    facts = facts_of(film) if film else ("the film itself is no longer where it was",)
    if row.crop is None:
        return Item(name_of(row.film), row.status, row.reason, row.sha256, None, picture, facts)
    try:
        pixels = read_film(folder / row.crop).pixels
    except FilmError as error:
        why = f"its crop {row.crop} cannot be read: {error.sentence}"
        return Item(name_of(row.film), "unreadable", why, row.sha256, None, picture, facts)
    return Item(name_of(row.film), row.status, row.reason, row.sha256, pixels, picture, facts)


def name_of(path: str | Path) -> str:
    """A film's name in every table of the run: its path, with line breaks and undecodable bytes
    spelt out, so that any file name can be written, read again and resumed from."""
    return printable(Path(path).as_posix())


def facts_of(film: Film) -> tuple[str, ...]:
    """Size, depth, spacing, view and what was assumed on reading."""
    height, width = film.pixels.shape
    size = f"{height} × {width} px, {film.bits} bits"
    if film.spacing_mm:
        size += f", {film.spacing_mm[0]:.3g} × {film.spacing_mm[1]:.3g} mm"
    return (size, f"view {film.view}", *film.notes)


def _same_film(row: CropRow) -> Film | None:
    if not Path(row.film).is_file():
        return None
    try:
        film = read_film(row.film)
    except FilmError:
        return None
    return film if film.sha256 == row.sha256 else None


def member_files(folder: str | Path) -> list[Path]:
    """The bundles of a folder of members, or of a single network; raises ValueError for none."""
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        folds = f" (it holds folds: give {folder / 'fold0'})" * (folder / "fold0").is_dir()
        raise ValueError(
            f"{folder} must hold members' bundles (TARGET.safetensors). Got none{folds}: train "
            "them with python -m classify.train, or give another folder."
        )
    return files

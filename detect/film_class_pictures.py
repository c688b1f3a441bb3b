"""Pictures of detect-and-classify: films with their boxes and classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cxr import draw
from cxr.film import read_film
from cxr.workdir import write_atomic
from detect.film_class_answers import NO_BOX, AnsweredFilm, Box, ClassedFilm

_WHITE = (255, 255, 255)
_SHOWN = 24  # films on a sheet
_SIDE = 512  # px that a film is drawn at: the lines are thinner there than at the sheet's size


def choose_shown(films: Sequence[AnsweredFilm], number: int = _SHOWN) -> list[AnsweredFilm]:
    """Wrong films first, the worst of them at the head, then right ones from the worst to the best.

    Worst is where the true class scores least. Wrong ones take two thirds of the places at most,
    and right ones are taken at even steps, so that the sheet shows both kinds.
    """
    order = sorted(films, key=lambda f: (f.true_score, f.entry.file_name))
    right = [f for f in order if f.right]
    wrong = [f for f in order if not f.right]
    room = max(number - len(right), 2 * number // 3)
    wrong = wrong[:room]
    steps = np.linspace(0, len(right) - 1, min(len(right), number - len(wrong)))
    return [*wrong, *(right[round(i)] for i in steps)]


def draw_answers(films: Sequence[AnsweredFilm], folder: Path, path: Path) -> None:
    """A sheet of tested films as PNG: the true box white, the detector's green where the class is
    right and orange where it is wrong."""
    shown = choose_shown(films)
    tiles, captions = [], []
    for film in shown:
        said, colour = film.said, draw.GREEN if film.right else draw.ORANGE
        boxes = [(film.truth_xyxy, _WHITE), (said.xyxy, colour)]
        tiles.append(_tile(folder / film.entry.file_name, boxes))
        iou = "" if film.iou is None else f", IoU {film.iou:.2f}"
        captions.append(
            f"{'right' if film.right else 'WRONG'}: true {film.truth}\n"
            f"said {_said(said)}{iou}\n{Path(film.entry.file_name).name}"
        )
    right = sum(f.right for f in films)
    title = (
        f"{right} of {len(films)} tested films right; {len(shown)} shown, wrong ones first, "
        "worst first. White: true box. Green: right class. Orange: wrong class."
    )
    sheet = draw.sheet(tiles, captions, columns=6, tile=256, title=title)
    write_atomic(path, draw.encode_png(sheet))


def draw_classed(films: Sequence[ClassedFilm], path: Path) -> None:
    """A sheet of films without a truth as PNG, the least sure first; unreadable ones left out."""
    read = [f for f in films if f.status != "unreadable"]
    shown = sorted(read, key=lambda f: (max(f.scores[:-1]), f.film))[:_SHOWN]
    tiles = [_tile(Path(f.film), [(f.xyxy, draw.BLUE)]) for f in shown]
    captions = [f"{_said(f)}\n{Path(f.film).name}" for f in shown]
    title = f"{len(shown)} of {len(read)} films that were read, the least sure first"
    sheet = draw.sheet(tiles, captions, columns=6, tile=256, title=title)
    write_atomic(path, draw.encode_png(sheet))


def _said(film: ClassedFilm) -> str:
    if film.answer == NO_BOX:
        return f"{NO_BOX} (best {film.box_score:.2f})"
    unsure = "" if film.status == "ok" else " unsure"
    return f"{film.answer} {max(film.scores):.2f}{unsure}"


def _tile(path: Path, boxes: Sequence[tuple[Box | None, draw.Colour]]) -> np.ndarray:
    """The film fitted into `_SIDE` px with boxes that are given in its own pixels."""
    pixels = read_film(path).pixels
    small = draw.fit(pixels, _SIDE)
    scale = np.array([small.shape[1] / pixels.shape[1], small.shape[0] / pixels.shape[0]] * 2)
    picture = draw.to_rgb(small)
    for xyxy, colour in boxes:
        if xyxy is not None:
            picture = draw.draw_box(picture, np.asarray(xyxy) * scale, colour)
    return picture

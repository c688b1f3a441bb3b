"""Seeded synthetic films and small helpers; real films only through `shared_data`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

# Read by torch when it is first imported: two threads would wait for each other on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(autouse=True, scope="session")
def refusals_in_plain_words() -> Iterator[None]:
    """No film that any test has refused may be refused with the name of an exception."""
    from cxr.notes import FilmError

    plain = FilmError.__init__

    def checked(self: FilmError, reason: str, sentence: str, *known: str) -> None:
        assert not re.search(r"[a-z](Error|Exception)\b|Traceback", sentence), sentence
        plain(self, reason, sentence, *known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FilmError, "__init__", checked)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real films with boxes and labels, which lie beside the project and never in it."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "films.csv").exists():
        pytest.skip(
            f"real films are missing: no {folder.relative_to(ROOT.parent)} beside the project"
        )
    return folder


def draw_phantom(
    height: int = 160, width: int = 140, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A schematic chest: pixels (H, W) float32 in [0, 1] and its thorax box (4,) xyxy.

    Two dark lungs in grey tissue with bright ribs and spine; a non-square film, so that swapped
    axes show.
    """
    rng = np.random.default_rng(seed)
    film = np.full((height, width), 0.55, np.float32)
    cx = width / 2 + rng.uniform(-0.04, 0.04) * width
    top, bottom = height * rng.uniform(0.14, 0.24), height * rng.uniform(0.72, 0.84)
    half = width * rng.uniform(0.11, 0.14)
    lungs = np.zeros((height, width), np.uint8)
    for side in (-1, 1):
        centre = (round(cx + side * width * 0.19), round((top + bottom) / 2))
        cv2.ellipse(lungs, centre, (round(half), round((bottom - top) / 2)), 0, 0, 360, 255, -1)
    film[lungs > 0] = 0.18
    for y in np.linspace(top, bottom, 7):
        cv2.line(film, (0, int(y + 6)), (int(cx), int(y)), 0.45, 2)
        cv2.line(film, (int(cx), int(y)), (width, int(y + 6)), 0.45, 2)
    cv2.rectangle(film, (int(cx - width * 0.04), 0), (int(cx + width * 0.04), height), 0.85, -1)
    film += rng.normal(0, 0.01, film.shape).astype(np.float32)
    rows, columns = np.flatnonzero(lungs.any(1)), np.flatnonzero(lungs.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
    return np.clip(film, 0, 1), box


@pytest.fixture
def phantom() -> tuple[np.ndarray, np.ndarray]:
    """One schematic chest and its box."""
    return draw_phantom()


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `write_phantoms`."""
    return write_phantoms(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="session")
def phantom_folders(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """That folder and another one, with films of other patients."""
    return [str(phantom_folder), str(write_phantoms(tmp_path_factory.mktemp("more"), 24))]


def write_phantoms(folder: Path, first: int = 0) -> Path:
    """24 schematic chests of 12 patients as PNG with thorax.json and films.csv (labels normal,
    bacterial and viral by turns), laid out as the real data are."""
    import csv

    from cxr.coco import CocoFilm, CocoSet, write_coco

    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    films, rows = [], []
    for number in range(first, first + 24):
        pixels, box = draw_phantom(seed=number)
        name = f"images/film{number:02d}.png"
        label = ("normal", "bacterial", "viral")[number % 3]
        if label == "bacterial":  # something to find: a bright round patch in one lung
            cv2.circle(pixels, (int(box[0] + 16), int(box[1] + 40)), 12, 0.9, -1)
        cv2.imwrite(str(folder / name), (pixels * 255).astype(np.uint8))
        mask = np.zeros(pixels.shape, np.uint8)
        x0, y0, x1, y1 = box.astype(int)
        mask[y0:y1, x0:x1] = 255
        cv2.imwrite(str(folder / f"masks/film{number:02d}.png"), mask)
        patient = f"patient{number // 6 * 3 + number % 3:02d}"
        coarse = "normal" if label == "normal" else "pneumonia"
        films.append(
            CocoFilm(
                name,
                (pixels.shape[0], pixels.shape[1]),
                box[None],
                (0,),
                {"patient_id": patient, "label": coarse, "source": "phantom"},
            )
        )
        rows.append(
            {
                "image": name,
                "mask": f"masks/film{number:02d}.png",
                "source": "phantom",
                "patient_id": patient,
                "view": "AP",
                "label": coarse,
                "sublabel": "No Finding" if label == "normal" else label,
                "licence": "CC BY 4.0",
            }
        )
    write_coco(folder / "thorax.json", CocoSet(films, ("thorax",)))
    with (folder / "films.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder

"""Thorax boxes for the probe where nobody drew one: the detector that comes with lungfirst."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cxr.stream import Unread, batched, default_jobs, read_ahead
from cxr.workdir import log, sha256_file, write_json
from detect.predict import DEFAULT_WEIGHTS, ThoraxDetector
from exploring.entries import Box

_BATCH = 8


def found_boxes(
    images: Sequence[str], data: Path, cache: Path, weights: str | Path = DEFAULT_WEIGHTS
) -> dict[str, Box]:
    """Image → the detector's box; films that cannot be read or are refused have none.

    Each film is looked at once: CACHE/boxes_….json is kept as long as weights and films are what
    they were. Nothing is found where there are no weights.
    """
    if not images or not Path(weights).is_file():
        return {}
    path = cache / f"boxes_{sha256_file(weights)[:16]}.json"
    known = _load(path)
    marks = {image: _mark(data / image) for image in images}
    pending = [image for image in images if marks[image] not in known]
    if pending:
        log.info("shortcut probe: boxing %d films that nobody boxed", len(pending))
        known |= {marks[i]: found for i, found in _detect(pending, data, Path(weights)).items()}
        write_json(path, known)
    boxes = {image: known[mark] for image, mark in marks.items()}
    return {
        image: _box(*found["xyxy"], *found["size_hw"]) for image, found in boxes.items() if found
    }


def _box(x0: float, y0: float, x1: float, y1: float, height: float, width: float) -> Box:
    return Box((x0, y0, x1, y1), (int(height), int(width)))


def _detect(
    images: Sequence[str], data: Path, weights: Path
) -> dict[str, dict[str, list[float]] | None]:
    detector = ThoraxDetector.load(weights)
    out: dict[str, dict[str, list[float]] | None] = dict.fromkeys(images)
    films = read_ahead([data / image for image in images], default_jobs(len(images)))
    for group in batched(zip(images, films, strict=True), _BATCH):
        good = [(image, film) for image, (_, film) in group if not isinstance(film, Unread)]
        for (image, film), box in zip(
            good, detector.predict([film.pixels for _, film in good]), strict=True
        ):
            if box.xyxy is not None:
                out[image] = {"xyxy": [float(v) for v in box.xyxy], "size_hw": [*film.pixels.shape]}
    return out


def _mark(film: Path) -> str:
    """The file's path as it is asked for, its size and the time of its last change."""
    try:
        found = film.stat()
    except OSError:
        return str(film)
    return f"{film} {found.st_size} {found.st_mtime_ns}"


def _load(path: Path) -> dict[str, dict[str, list[float]] | None]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}

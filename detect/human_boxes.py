"""Boxes drawn by people in the detector's place: the same crops without its errors."""

from __future__ import annotations

from pathlib import Path

from cxr.boxes import clip_xyxy, union_xyxy
from cxr.coco import CocoFilm, read_coco
from cxr.film import Film
from cxr.workdir import sha256_file
from detect.predict import ThoraxBox


class HumanBoxes:
    """Boxes of a COCO file in the detector's place.

    A film is the entry whose `file_name` ends its path. A scaled copy of the film that was boxed
    gets its boxes scaled; a film of another shape gets none.
    """

    def __init__(self, path: str | Path) -> None:
        self.weights = {Path(path).name: sha256_file(path)}
        self._films = {f.file_name: f for f in read_coco(path).films}

    def box_film(self, film: Film) -> ThoraxBox:
        """The union of the film's boxes, or `no_thorax` with the reason."""
        entry = self._find(film.path)
        if entry is None:
            return _no_thorax("the boxes' file does not list this film")
        if not len(entry.boxes_xyxy):
            return _no_thorax("the boxes' file has no box for this film")
        size_hw = (film.pixels.shape[0], film.pixels.shape[1])
        try:
            entry = entry.resized(size_hw)
        except ValueError:
            sizes = [f"{w} x {h} px" for h, w in (size_hw, entry.size_hw)]
            return _no_thorax(f"the film has {sizes[0]}, in the boxes' file it has {sizes[1]}")
        x0, y0, x1, y1 = (
            float(v) for v in clip_xyxy(union_xyxy(entry.boxes_xyxy), entry.size_hw)[0]
        )
        return ThoraxBox((x0, y0, x1, y1), 1.0, "ok", "")

    def _find(self, path: str) -> CocoFilm | None:
        parts = Path(path).resolve().parts
        names = ("/".join(parts[start:]) for start in range(1, len(parts)))  # the longest first
        return next((self._films[name] for name in names if name in self._films), None)


def _no_thorax(reason: str) -> ThoraxBox:
    return ThoraxBox(None, 0.0, "no_thorax", reason)

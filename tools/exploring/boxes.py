"""Thorax boxes for the films of a table: drawn by people (COCO) or found by detect.crop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cxr.boxes import area_xyxy, clip_xyxy, scale_xyxy, union_xyxy
from cxr.coco import read_coco
from cxr.films_table import FilmNames
from cxr.manifest import read_manifest


@dataclass(frozen=True)
class Box:
    """A box (4,) xyxy on a film of `size_hw`."""

    xyxy: tuple[float, float, float, float]
    size_hw: tuple[int, int]

    def on(self, size_hw: tuple[int, int]) -> np.ndarray | None:
        """The box (4,) on the film's copy of that size; None where the copy has another shape, or
        the box no area on it."""
        try:
            box = clip_xyxy(scale_xyxy(self.xyxy, self.size_hw, size_hw), size_hw)
        except ValueError:
            return None
        return box[0] if np.isfinite(box).all() and area_xyxy(box)[0] >= 1 else None


def coco_boxes(path: str | Path, images: Sequence[str]) -> dict[str, Box]:
    """Image of the table → the union of its boxes; raises ValueError for a file with faults."""
    return _matched(
        {
            f.file_name: Box(_four(union_xyxy(f.boxes_xyxy)), f.size_hw)
            for f in read_coco(path).films
            if len(f.boxes_xyxy)
        },
        images,
    )


def crop_boxes(folder: str | Path, images: Sequence[str]) -> dict[str, Box]:
    """Image of the table → its box in the manifest of detect.crop. Raises ValueError."""
    boxes = {
        row.film: Box(_four(np.asarray(row.thorax_xyxy)), row.size_hw)
        if row.thorax_xyxy is not None and row.size_hw is not None
        else None
        for row in read_manifest(folder)[1]
    }
    return _matched(boxes, images)


def _matched(boxes: Mapping[str, Box | None], images: Sequence[str]) -> dict[str, Box]:
    """Image → its box, by the end of its path; films that cannot be told apart get none."""
    names = FilmNames(boxes, images)
    found = {image: boxes.get(names.find(image) or "") for image in images}
    return {image: box for image, box in found.items() if box is not None}


def _four(box: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(v) for v in box)
    return x0, y0, x1, y1

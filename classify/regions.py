"""The region a member restores: drawn lesions, boxes round findings, or the lung field.

A film for which nobody drew one has none: its region is unknown, never made up.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from classify.films import Case
from cxr.film import read_film


@dataclass(frozen=True)
class RegionConfig:
    """Which region the decoder restores where the target is present.

    Args:
        kind: lung_field (the mask column of films.csv), lesion_masks (a folder), finding_boxes (a
            CSV), or none. A film without one takes no part in the reconstruction loss.
        path: the folder (one PNG for each target and film: TARGET/FILM_STEM.png, white where
            diseased), or the CSV with the columns image, finding, x, y, w, h.
        dilation: elliptic dilation kernel in px of the network's input; 0 for none.
    """

    kind: str = "lung_field"
    path: str = ""
    dilation: int = 9

    def __post_init__(self) -> None:
        kinds = ("lung_field", "lesion_masks", "finding_boxes", "none")
        if self.kind not in kinds:
            raise ValueError(
                f"region kind must be one of {', '.join(kinds)}. Got {self.kind!r} instead."
            )
        if self.kind in ("lesion_masks", "finding_boxes") and not self.path:
            raise ValueError(f"region path must be given for the kind {self.kind}.")


class RegionFinder:
    """Finds a film's region as a mask (H, W) uint8 of 0 / 255 in the film's pixels, or None."""

    def __init__(self, config: RegionConfig, target: str) -> None:
        self.config = config
        self.target = target if config.kind in ("lesion_masks", "finding_boxes") else ""
        self._boxes: dict[str, list[tuple[str, list[float]]]] = {}
        if config.kind == "finding_boxes":
            with Path(config.path).open(newline="") as file:
                for row in csv.DictReader(file):
                    xywh = [float(row[k]) for k in ("x", "y", "w", "h")]
                    key = PurePosixPath(row["image"]).name
                    self._boxes.setdefault(key, []).append((row["finding"].casefold(), xywh))

    def mask_of(self, case: Case) -> np.ndarray | None:
        """The region of this film, or None where nobody drew one."""
        if self.config.kind == "lung_field" and case.row.mask:
            data = Path(str(case.film)[: -len(case.row.image)])
            return _read_mask(data / case.row.mask)
        if self.config.kind == "lesion_masks":
            path = Path(self.config.path) / self.target / f"{case.film.stem}.png"
            return _read_mask(path) if path.is_file() else None
        if self.config.kind == "finding_boxes":
            return self._boxes_mask(case)
        return None

    def _boxes_mask(self, case: Case) -> np.ndarray | None:
        found = [b for f, b in self._boxes.get(case.film.name, []) if f == self.target.casefold()]
        if not found:
            return None
        mask = np.zeros(read_film(case.film).pixels.shape, np.uint8)
        for x, y, w, h in found:
            mask[int(y) : int(np.ceil(y + h)), int(x) : int(np.ceil(x + w))] = 255
        return mask


def _read_mask(path: Path) -> np.ndarray:
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise ValueError(f"{path} must be a mask as PNG. It cannot be read: check the file.")
    return (mask > 127).astype(np.uint8) * 255

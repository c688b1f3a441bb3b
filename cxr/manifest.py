"""crops/manifest.jsonl: the checked list of crops that stage one hands to stage two.

First line: schema, version, provenance. Then one JSON line a film, written when the film is
finished; a film without a crop stays in, with its status and reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr.boxes import Frame, stretch_xyxy
from cxr.ledger import RowLedger, read_rows
from cxr.rules import require_one_of

SCHEMA, VERSION = "lungfirst.crops", 1
STATUSES = ("ok", "fallback", "no_thorax", "unreadable")


@dataclass(frozen=True)
class CropRow:
    """One film. `size_hw` and the boxes (xyxy) are in the film's pixels as they are stored; `frame`
    is that of the crop on the film as `read_film` gives it, with square pixels. `notes` are the
    film's (see `cxr.notes`), `crop` is relative to the manifest. `apart` is 1 − IoU of the
    detector's and the lung field's box, `quality` the expected IoU of the box with a person's."""

    film: str
    sha256: str
    status: str
    reason: str = ""
    patient: str = ""
    study: str = ""
    size_hw: tuple[int, int] | None = None
    thorax_xyxy: tuple[float, float, float, float] | None = None
    score: float | None = None
    crop_xyxy: tuple[float, float, float, float] | None = None
    frame: dict[str, Any] | None = None
    crop: str | None = None
    notes: tuple[str, ...] = ()
    apart: float | None = None
    quality: float | None = None

    def __post_init__(self) -> None:
        require_one_of(self, status=STATUSES)
        has_crop = self.status in ("ok", "fallback")
        if has_crop and (not self.crop or not self.frame or not self.size_hw):
            raise ValueError(f"{self.film}: status {self.status} needs crop, frame and size_hw.")
        if not has_crop and (self.crop or not self.reason):
            raise ValueError(f"{self.film}: status {self.status} needs a reason and no crop.")
        if self.frame is not None:
            self.to_frame()  # raises where it is none

    @property
    def readable(self) -> bool:
        """Is there a crop to classify?"""
        return self.crop is not None

    def on_film(
        self, box_xyxy: tuple[float, float, float, float] | None, size_hw: tuple[int, int]
    ) -> np.ndarray | None:
        """One of the row's boxes (4,) on the film of (height, width) as `read_film` gives it."""
        if box_xyxy is None or self.size_hw is None:
            return None
        return stretch_xyxy(box_xyxy, self.size_hw, size_hw)[0]

    def to_frame(self) -> Frame:
        """The Frame of the crop on the film; raises ValueError without a crop."""
        if self.frame is None:
            raise ValueError(f"{self.film} has no crop, so it has no frame ({self.reason}).")
        return Frame.from_dict(self.frame)


class ManifestWriter(RowLedger[CropRow]):
    """A manifest that is begun, or continued; `done` holds its rows by film."""

    def __init__(self, path: str | Path, provenance: dict[str, Any], restart: bool = False) -> None:
        super().__init__(path, CropRow, SCHEMA, VERSION, provenance, restart)


def read_manifest(path: str | Path) -> tuple[dict[str, Any], list[CropRow]]:
    """Header and rows of a manifest, or of its folder; raises ValueError with the wrong line."""
    path = Path(path)
    if path.is_dir():
        path = path / "manifest.jsonl"
    if not path.exists():
        raise ValueError(
            f"{path} does not exist. Make crops first: "
            f"python -m detect.crop FILMS --out {path.parent}"
        )
    header, rows = read_rows(path, CropRow, SCHEMA, VERSION)
    return header, list(rows.values())

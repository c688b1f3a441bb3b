"""crops/manifest.jsonl: the checked list of crops that stage one hands to stage two.

First line: schema, version, provenance. Then one JSON line a film, written when the film is
finished; a film without a crop stays in, with its status and reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr.boxes import Frame
from cxr.ledger import RowLedger, read_rows

SCHEMA, VERSION = "lungfirst.crops", 1
STATUSES = ("ok", "fallback", "no_thorax", "unreadable")


@dataclass(frozen=True)
class CropRow:
    """One film. Boxes are xyxy in the film's own pixels; `crop` is relative to the manifest."""

    film: str
    sha256: str
    status: str
    reason: str = ""
    patient: str = ""
    study: str = ""
    size_hw: tuple[int, int] | None = None
    thorax_xyxy: tuple[float, float, float, float] | None = None
    score: float | None = None
    crop_xyxy: tuple[int, int, int, int] | None = None
    frame: dict[str, Any] | None = None
    crop: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(
                f"status must be one of {', '.join(STATUSES)}. Got {self.status!r} instead."
            )
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

    def to_frame(self) -> Frame:
        """The Frame that maps crop pixels to film pixels; raises ValueError without a crop."""
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

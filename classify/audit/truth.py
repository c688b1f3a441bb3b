"""What people know of a film: its label and patient, its lungs, and the findings they boxed."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from classify.audit.rows import UNKNOWN
from classify.inputs import name_of
from classify.labels import label_of
from cxr.boxes import as_boxes, clip_xyxy
from cxr.films_table import FilmNames, FilmRow, read_films_table
from cxr.split import Split
from cxr.workdir import log

FINDINGS = "finding_boxes.csv"
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Truth:
    """What is known of one film; a film that no table lists has none of it."""

    row: FilmRow | None = None
    mask: Path | None = None
    findings_xyxy: tuple[Box, ...] = ()

    def label_for(self, target: str) -> int:
        """NORMAL, TARGET or OTHERS for a member, UNKNOWN where the label does not say."""
        found = None if self.row is None else label_of(self.row, target)
        return UNKNOWN if found is None else found

    def read_lungs(self, size_hw: tuple[int, int]) -> np.ndarray | None:
        """The human lung mask (H, W) bool in the film's pixels, or None: where there is none, it
        cannot be read, is empty, or has another shape than the film."""
        if self.mask is None or not self.mask.is_file():
            return None
        raw = np.fromfile(self.mask, np.uint8)
        found = cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE) if raw.size else None  # it raises for none
        height, width = size_hw
        why = ""
        if found is None or not (found > 127).any():
            why = "cannot be read or is empty"
        elif abs(found.shape[0] * width / (found.shape[1] * height) - 1) > 0.01:
            why = "has another shape than its film"
        if found is None or why:
            log.warning("%s %s: the network's lung field is taken", self.mask, why)
            return None
        if found.shape != size_hw:
            found = cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(found > 127)

    def findings_on(self, size_hw: tuple[int, int]) -> np.ndarray:
        """(N, 4) radiologists' boxes in the film's pixels; those that miss the film are left out.

        The boxes are in the pixels of the table's picture, which the film must have.
        """
        boxes = clip_xyxy(as_boxes(self.findings_xyxy), size_hw)
        whole = np.rint(boxes)  # as the metrics round them: a box must hold a pixel
        return np.asarray(boxes[(whole[:, 2:] > whole[:, :2]).all(1)])


@dataclass(frozen=True)
class Truths:
    """All that a folder's tables say, by the film's name in them; found by the end of a path."""

    by_name: dict[str, Truth] = field(default_factory=dict)

    @classmethod
    def load(cls, data: str | Path, human_masks: bool = True) -> Truths:
        """films.csv of the folder, its masks and finding_boxes.csv where there are any; raises
        OSError or ValueError."""
        folder = Path(data)
        if not (folder / "films.csv").is_file():
            raise ValueError(f"--data must be a folder with films.csv. {folder} holds none.")
        findings = _read_findings(folder / FINDINGS)
        by_name = {}
        for row in read_films_table(folder / "films.csv"):
            mask = folder / row.mask if row.mask and human_masks else None
            by_name[name_of(row.image)] = Truth(row, mask, tuple(findings.get(row.image, ())))
        return cls(by_name)

    def of(self, film: str) -> Truth:
        """What is known of a film by its name in a run."""
        name = self._names.find(film)
        return Truth() if name is None else self.by_name[name]

    @cached_property
    def _names(self) -> FilmNames:
        return FilmNames(self.by_name)

    def select(
        self, films: Iterable[str], split: Split, part: str, trained_on: Sequence[str]
    ) -> list[str]:
        """The names of the films of one part of the split, in their order.

        `part` cuts the sources that the members were trained on. Every film of other sources is
        held out, so all are taken, but for `train`, which is what the members have seen. Raises
        ValueError for a part that the split does not have.
        """
        parts = sorted(set(split.part_of.values()))
        if part not in parts:
            raise ValueError(
                f"--part must be a part of the split: {', '.join(parts)}. Got {part!r} instead."
            )

        def is_chosen(film: str) -> bool:
            row = self.of(film).row
            if row is None or row.source not in trained_on:
                return row is not None and part != "train"
            return split.part_of.get(row.patient_id) == part

        return [film for film in films if is_chosen(film)]


def _read_findings(path: Path) -> dict[str, list[Box]]:
    """Image → boxes x0, y0, x1, y1 of a CSV with image, x, y, w, h; {} where there is no file."""
    out: dict[str, list[Box]] = defaultdict(list)
    if not path.is_file():
        return out
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                x, y, w, h = (float(row[k]) for k in ("x", "y", "w", "h"))
                out[row["image"]].append((x, y, x + w, y + h))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path} line {line} must have image, x, y, w, h as numbers. "
                    f"Got {dict(row)} instead."
                ) from error
    return out

"""What is known of a session's film: where it came from, and what its label file says now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr.boxes import Frame
from labelling.labelme_file import LabelFile, Shape

FLAGS = ("accepted", "doubtful", "unreadable", "not frontal", "apices cut off")
SKIP_FLAGS = ("unreadable", "not frontal")
PRELABELLED = "prelabelled"
DONE_STATES = ("accepted", "corrected", "drawn", "skipped")
TOUCHED_PX = 0.05  # view pixels; less than this is rounding, not a hand


Xyxy = tuple[float, float, float, float]


@dataclass(frozen=True)
class SessionFilm:
    """One film of the session; boxes in its own pixels.

    Attributes:
        number: from 1, the order of asking.
        film: posix path relative to the session's root, or absolute where it lies elsewhere.
        sha256: of the film's file; "" when it cannot be read.
        size_hw: of the film; (0, 0) when it cannot be read.
        view: the 8-bit view, relative to the session's folder; "" when the film cannot be read.
        frame: film → view.
        original_hw: the film's size in the public set, where films.csv knows it.
        prelabel_xyxy: the detector's box, None where there is none.
        disagreement: 1 − IoU of the detector's boxes on the film and on its mirror image.
        uncertainty: how doubtful the pre-label is; the order of asking.
        reason: why the film cannot be read.
    """

    number: int
    film: str
    sha256: str = ""
    size_hw: tuple[int, int] = (0, 0)
    view: str = ""
    frame: Frame | None = None
    patient_id: str = ""
    label: str = ""
    sublabel: str = ""
    source: str = ""
    original_hw: tuple[int, int] | None = None
    prelabel_xyxy: Xyxy | None = None
    prelabel_score: float = 0.0
    disagreement: float = 0.0
    uncertainty: float = 0.0
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**asdict(self), "frame": self.frame.to_dict() if self.frame else None}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SessionFilm:
        """The inverse of `to_dict`; raises TypeError or KeyError for what is none."""
        values = dict(data)
        values["frame"] = Frame.from_dict(data["frame"]) if data["frame"] else None
        for key in ("size_hw", "original_hw", "prelabel_xyxy"):
            values[key] = tuple(data[key]) if data[key] is not None else None
        return cls(**values)


@dataclass(frozen=True)
class LabelledBox:
    """One drawn box in film pixels. `prelabelled`: as the detector drew it, and not accepted.
    `crossed`: edges cross, or it has no width or height."""

    label: str
    xyxy: Xyxy
    prelabelled: bool = False
    shape_type: str = "rectangle"
    crossed: bool = False


@dataclass(frozen=True)
class Answer:
    """What is known of one film now. `changed`: UTC time of the last human change, or ""."""

    state: str  # todo, accepted, corrected, drawn, skipped or unreadable
    boxes: tuple[LabelledBox, ...] = ()
    flags: frozenset[str] = frozenset()
    fault: str = ""
    via: str = ""
    changed: str = ""

    @property
    def done(self) -> bool:
        """Whether a human has answered for this film."""
        return self.state in DONE_STATES

    @property
    def box(self) -> LabelledBox | None:
        """The box that counts: the first one a human drew, moved or accepted."""
        if self.state not in ("accepted", "corrected", "drawn"):
            return None
        return next((b for b in self.boxes if usable(b) and not b.prelabelled), None)


def to_shape(
    film: SessionFilm, xyxy: Sequence[float], label: str, prelabelled: bool = False
) -> Shape:
    """A box in film pixels as labelme's rectangle in view pixels."""
    assert film.frame is not None
    x0, y0, x1, y1 = (round(float(v), 3) for v in film.frame.to_model_xyxy(xyxy)[0])
    flags = frozenset({PRELABELLED} if prelabelled else ())
    return Shape(label, ((x0, y0), (x1, y1)), "rectangle", flags)


def to_box(film: SessionFilm, shape: Shape, film_flags: frozenset[str]) -> LabelledBox:
    assert film.frame is not None
    hull = shape.hull_xyxy
    untouched = False
    if PRELABELLED in shape.flags and film.prelabel_xyxy and "accepted" not in film_flags:
        drawn = film.frame.to_model_xyxy(film.prelabel_xyxy)[0]
        untouched = bool(np.abs(np.subtract(hull, drawn)).max() <= TOUCHED_PX)
    box = tuple(float(v) for v in film.frame.to_original_xyxy(hull)[0])
    return LabelledBox(shape.label, box, untouched, shape.shape_type, shape.crossed)  # type: ignore[arg-type]


def usable(box: LabelledBox) -> bool:
    return box.shape_type == "rectangle" and not box.crossed


def find_state(film: SessionFilm, boxes: Sequence[LabelledBox], flags: frozenset[str]) -> str:
    if flags & set(SKIP_FLAGS):
        return "skipped"
    human = [b for b in boxes if usable(b) and not b.prelabelled]
    if "doubtful" in flags or not human:
        return "todo"
    if film.prelabel_xyxy is None:
        return "drawn"
    assert film.frame is not None
    sides = film.frame.to_model_xyxy([human[0].xyxy, film.prelabel_xyxy])
    return "accepted" if abs(sides[0] - sides[1]).max() <= TOUCHED_PX else "corrected"


def find_foreign(film: SessionFilm, file: LabelFile) -> str:
    """Why this label file is not the film's own; "" when it is."""
    named = Path(file.image_path).name
    if named != Path(film.view).name:
        return f"belongs to another film: it names {named or 'no picture'}"
    if (file.sha256 and file.sha256 != film.sha256) or (file.film and file.film != film.film):
        return f"belongs to another film: it was made for {file.film}"
    if film.frame and file.size_hw and file.size_hw != film.frame.canvas_hw:
        (h, w), (vh, vw) = file.size_hw, film.frame.canvas_hw
        return f"belongs to another film: its picture is {w} × {h} px, the view {vw} × {vh}"
    return ""

"""Each member's map of the films of a batch: where its energy lies, and the flags.

The rows go to audit.csv, the record of each film to the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from classify.audit.films import AuditFilm
from classify.audit.metrics import Regions, find_text, measure
from classify.audit.rows import AuditRow, Thresholds, flag_row
from classify.ensemble import Ensemble
from classify.saliency import to_pixels
from cxr.boxes import Frame
from cxr.notes import sentence_of
from cxr.page.pictures import map_uri, picture_uri, to_polygons
from cxr.stats import softmax

Record = dict[str, Any]
# what the page calls a member's figures
_FACE = {
    "lift": "lift",
    "inside": "inside_share",
    "area": "area_share",
    "border": "border_share",
    "outside_box": "outside_box_share",
    "text": "text_share",
    "pointing": "pointing_hit",
    "finding_hit": "finding_hit",
}


class MemberMap(NamedTuple):
    """One member's logits (3,), its map (h, w) over what it saw, and the cells it was made of."""

    target: str
    logits: np.ndarray
    plane: np.ndarray
    cells: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Films that the members saw, and the members' input (N, 3, side, side) made of them, with the
    Frames that lead back."""

    films: list[AuditFilm]
    batch: torch.Tensor
    frames: list[Frame]

    @classmethod
    def of(cls, films: Sequence[AuditFilm], members: Ensemble) -> Prepared | None:
        """Those of the films that the members saw; None where there is none."""
        seen = [(film, film.pixels) for film in films if film.pixels is not None]
        if not seen:
            return None
        return cls([f for f, _ in seen], *members.prepare([pixels for _, pixels in seen]))

    def only(self, films: Sequence[AuditFilm]) -> Prepared | None:
        """Those of these films; None where there is none."""
        own = [n for n, film in enumerate(self.films) if film in films]
        if not own:
            return None
        frames = [self.frames[n] for n in own]
        return Prepared([self.films[n] for n in own], self.batch[own], frames)


def measure_films(
    films: Sequence[AuditFilm],
    shown: Prepared | None,
    members: Ensemble,
    method: str,
    thresholds: Thresholds | None,
    seed: int = 0,
) -> list[tuple[list[AuditRow], Record]]:
    """Rows (one a member) and page record of each film, in order; `shown` holds those of them that
    the members saw, and maybe others."""
    own = shown.only(films) if shown else None
    maps = iter(_maps(own, members, method) if own else ())
    out = []
    for film in films:
        try:
            found = refused(film) if film.pixels is None else None
            out.append(found or _measure_film(film, next(maps), method, thresholds, seed))
        except ValueError as error:  # say a film too small to hold text: it must not end the audit
            film.reason = f"it cannot be measured: {error}"
            out.append(refused(film))
    return out


def _maps(shown: Prepared, members: Ensemble, method: str) -> list[list[MemberMap]]:
    """Each film's maps, one a member."""
    sizes = [(f.pixels.shape[0], f.pixels.shape[1]) for f in shown.films if f.pixels is not None]
    out: list[list[MemberMap]] = [[] for _ in sizes]
    found = members.look(shown.batch, method)
    for target, (logits, planes) in zip(members.targets, found, strict=True):
        for n, plane in enumerate(to_pixels(planes, shown.frames, sizes)):
            frame = shown.frames[n]  # cells over what was seen, without the square input's padding
            sides = zip(planes.shape[1:], frame.content_hw, frame.canvas_hw, strict=True)
            high, wide = (max(2, round(cam * (own / all_))) for cam, own, all_ in sides)
            out[n].append(MemberMap(target, logits[n], plane, (high, wide)))
    return out


def refused(film: AuditFilm) -> tuple[list[AuditRow], Record]:
    """The only row of a film that cannot be judged, and its record."""
    row = _common(film)
    status = row.status if row.status not in ("ok", "fallback") else "unreadable"
    row = replace(row, status=status, reason=_joined("; ", row.reason, film.reason))
    return [row], {**_facts(film, row), "members": []}


def _measure_film(
    film: AuditFilm,
    maps: Sequence[MemberMap],
    method: str,
    thresholds: Thresholds | None,
    seed: int,
) -> tuple[list[AuditRow], Record]:
    assert film.film is not None and film.lung is not None and film.pixels is not None
    findings, text = film.truth.findings_on(film.size_hw), find_text(film.film.pixels)
    regions = Regions(film.lung, film.box_xyxy, findings, text, film.seen_xyxy)
    crop = film.listed.crop
    rows, faces = [], []
    for target, logits, plane, cells in maps:
        on_film = plane if crop is None else crop.restore(plane, film.size_hw)
        known = measure(on_film, regions, film.listed.name, cells, seed=seed)
        empty, reason = bool(known.pop("empty")), str(known.pop("reason"))
        shares: Any = tuple(softmax(logits).tolist())
        row = replace(
            _common(film),
            member=target,
            method=method,
            lung_by=film.lung_by,
            reason=_joined("; ", film.listed.prediction.reason, reason),
            truth=film.truth.label_for(target),
            metrics=known,
            empty=empty,
            probabilities=shares,
            field_disagreement=film.field_disagreement,
            cut_edges=film.cut_edges,
        )
        flags, reasons = flag_row(row, thresholds)
        rows.append(replace(row, flags=flags, flag_reasons=reasons))
        figures = {short: known.get(name) for short, name in _FACE.items()}
        face = {"name": target, "probability": row.value("p_target"), **figures}
        faces.append({**face, "flags": list(flags), "map": map_uri(plane)})
    height, width = film.size_hw
    size = np.array([width, height, width, height])
    reasons = tuple(dict.fromkeys(r for row in rows for r in row.flag_reasons))
    if film.cut_edges:
        reasons += (f"the film cuts off the lungs at its {' and '.join(film.cut_edges)} edge",)
    return rows, {
        **_facts(film, rows[0]),
        "flags": list(dict.fromkeys(f for row in rows for f in row.flags)),
        "reasons": list(reasons),
        "box": None if film.box_xyxy is None else (film.box_xyxy / size).tolist(),
        "findings": (findings / size).tolist(),
        "seen": (film.seen_xyxy / size).tolist(),
        "field": to_polygons(film.lung),
        "lung_by": film.lung_by,
        "size": [height, width],
        "picture": picture_uri(film.film.pixels),
        "crop": None if crop is None else picture_uri(film.pixels),
        "members": faces,
    }


def _facts(film: AuditFilm, row: AuditRow) -> Record:
    """What the page says of any film."""
    names, listed = ("film", "source", "patient", "status", "reason"), film.listed
    facts: Record = {name: getattr(row, name) for name in names}
    noted = film.film or listed.boxed or listed.prediction
    return {
        **facts,
        "label": _joined(": ", row.label, row.sublabel),
        "decision": listed.prediction.decision,
        "notes": [sentence_of(note) for note in noted.notes],
    }


def _common(film: AuditFilm) -> AuditRow:
    made, row = film.listed.prediction, film.truth.row
    known = (row.source, row.label, row.sublabel) if row else ("", "", "")
    return AuditRow(made.film, made.status, made.reason, *known, film.patient)


def _joined(between: str, *parts: str) -> str:
    return between.join(part for part in parts if part)

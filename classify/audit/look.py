"""One look at a batch of films: every member's map, where its energy lies, and the flags.

The rows go to audit.csv, the record of each film to the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from classify.audit.flags import Thresholds, flag_row
from classify.audit.metrics import Metrics, Regions, measure
from classify.audit.rows import AuditRow
from classify.audit.sight import Sight
from classify.audit.text import find_text
from classify.judge import Members
from classify.labels import TARGET
from classify.saliency.maps import look, saliency_maps, to_pixels
from cxr.boxes import Frame
from cxr.page.pictures import map_uri, picture_uri, to_polygons
from cxr.stats import softmax

Record = dict[str, Any]
Look = tuple[np.ndarray, np.ndarray, tuple[int, int]]  # logits, map over what was seen, its cells


@dataclass(frozen=True)
class FieldCheck:
    """What the lung field says of the film: its quarrel with the thorax box, and cut edges."""

    disagreement: float | None
    cut_edges: tuple[str, ...]


@dataclass(frozen=True)
class Looker:
    """Members, method and thresholds, used batch by batch."""

    members: Members
    method: str
    thresholds: Thresholds | None
    seed: int = 0

    def look(
        self, sights: Sequence[Sight], checks: Sequence[FieldCheck]
    ) -> list[tuple[list[AuditRow], Record]]:
        """Rows (one a member) and page record of each film, in order."""
        shown = [s for s in sights if s.pixels is not None]
        maps = self._maps(shown) if shown else []
        by_id = {id(s): m for s, m in zip(shown, maps, strict=True)}
        return [
            self._judge_or_say_why(s, check, by_id[id(s)]) if id(s) in by_id else refused(s)
            for s, check in zip(sights, checks, strict=True)
        ]

    def _judge_or_say_why(
        self, sight: Sight, check: FieldCheck, looks: Sequence[Look]
    ) -> tuple[list[AuditRow], Record]:
        try:
            return self._judge(sight, check, looks)
        except ValueError as error:  # say a film too small to hold text: it must not end the audit
            return refused(replace(sight, reason=f"it cannot be measured: {error}"))

    def _maps(self, sights: Sequence[Sight]) -> list[list[Look]]:
        """For each film and member: logits (3,), the map over what was seen, its resolution."""
        pixels = [s.pixels for s in sights if s.pixels is not None]
        batch, frames = self.members.prepare(pixels)
        sizes = [(p.shape[0], p.shape[1]) for p in pixels]
        out: list[list[Look]] = [[] for _ in sights]
        for target in self.members.targets:
            logits, planes = member_maps(self.members.member(target), batch, self.method)
            back = to_pixels(planes, frames, sizes)
            for n, plane in enumerate(back):
                out[n].append((logits[n], plane, _cells(planes.shape[1:], frames[n])))
        return out

    def _judge(
        self, sight: Sight, check: FieldCheck, looks: Sequence[Look]
    ) -> tuple[list[AuditRow], Record]:
        assert sight.film is not None and sight.lung is not None
        regions = Regions(
            sight.lung,
            sight.lung_by,
            sight.box_xyxy,
            sight.size_hw,
            sight.truth.findings_on(sight.size_hw),
            find_text(sight.film.pixels),
            sight.seen_xyxy,
        )
        rows, faces = [], []
        for target, (logits, plane, cells) in zip(self.members.targets, looks, strict=True):
            on_film = plane if sight.crop is None else sight.crop.restore(plane, sight.size_hw)
            metrics = measure(on_film, regions, sight.seen.name, cells, seed=self.seed)
            row = self._row(sight, check, target, logits, metrics)
            rows.append(row)
            faces.append(_face(row, plane))
        return rows, _record(sight, rows, faces)

    def _row(
        self, sight: Sight, check: FieldCheck, target: str, logits: np.ndarray, metrics: Metrics
    ) -> AuditRow:
        known = dict(metrics)
        empty, reason = bool(known.pop("empty")), str(known.pop("reason"))
        shares = softmax(logits)
        row = replace(
            _common(sight),
            member=target,
            method=self.method,
            lung_by=sight.lung_by,
            reason="; ".join(r for r in (sight.seen.prediction.reason, reason) if r),
            truth=sight.truth.label_for(target),
            metrics=known,
            empty=empty,
            probabilities=(float(shares[0]), float(shares[1]), float(shares[2])),
            field_disagreement=check.disagreement,
            cut_edges=check.cut_edges,
        )
        flags, reasons = flag_row(row, self.thresholds)
        return replace(row, flags=flags, flag_reasons=reasons)


def member_maps(
    member: torch.nn.Module, batch: torch.Tensor, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, 3) and maps (N, h, w) of TARGET: in one forward pass if the head allows."""
    ((logits, planes),) = look([member], batch, TARGET, method)
    if planes is None:
        planes = saliency_maps(member, batch, [TARGET] * len(batch), method)
    return logits, planes


def refused(sight: Sight) -> tuple[list[AuditRow], Record]:
    """The only row of a film that cannot be judged, and its record."""
    row = _common(sight)
    status = row.status if row.status not in ("ok", "fallback") else "unreadable"
    why = "; ".join(r for r in (sight.seen.prediction.reason, sight.reason) if r)
    row = replace(row, status=status, reason=why)
    return [row], {
        "film": row.film,
        "source": row.source,
        "label": _label(row),
        "patient": row.patient,
        "status": row.status,
        "reason": row.reason,
        "decision": sight.seen.prediction.decision,
        "members": [],
    }


def _common(sight: Sight) -> AuditRow:
    known, name = sight.truth.row, sight.seen.name
    return AuditRow(
        film=name,
        status=sight.seen.prediction.status,
        reason=sight.seen.prediction.reason,
        source=known.source if known else "",
        label=known.label if known else "",
        sublabel=known.sublabel if known else "",
        patient=sight.patient,
    )


def _label(row: AuditRow) -> str:
    return ": ".join(part for part in (row.label, row.sublabel) if part)


def _cells(cam_hw: Sequence[int], frame: Frame) -> tuple[int, int]:
    """The map's resolution over what was seen, without the padding of the square input."""
    share = [c / s for c, s in zip(frame.content_hw, frame.canvas_hw, strict=True)]
    return max(2, round(cam_hw[0] * share[0])), max(2, round(cam_hw[1] * share[1]))


def _face(row: AuditRow, plane: np.ndarray) -> Record:
    """A member as the page shows it."""
    names = {
        "lift": "lift",
        "inside": "inside_share",
        "area": "area_share",
        "border": "border_share",
        "outside_box": "outside_box_share",
        "text": "text_share",
        "pointing": "pointing_hit",
        "finding_hit": "finding_hit",
    }
    return {
        "name": row.member,
        "probability": row.value("p_target"),
        **{short: row.metrics.get(name) for short, name in names.items()},
        "flags": list(row.flags),
        "map": map_uri(plane),
    }


def _cut(row: AuditRow) -> list[str]:
    """A sentence where the lung field runs into the film's edge."""
    edges = " and ".join(row.cut_edges)
    return [f"the film cuts off the lungs at its {edges} edge"] if edges else []


def _record(sight: Sight, rows: Sequence[AuditRow], faces: Sequence[Record]) -> Record:
    assert sight.film is not None and sight.lung is not None and sight.pixels is not None
    first, (height, width) = rows[0], sight.size_hw

    def fractions(xyxy: Sequence[float]) -> list[float]:
        return [xyxy[0] / width, xyxy[1] / height, xyxy[2] / width, xyxy[3] / height]

    return {
        "film": first.film,
        "source": first.source,
        "label": _label(first),
        "patient": first.patient,
        "decision": sight.seen.prediction.decision,
        "status": first.status,
        "reason": first.reason,
        "flags": list(dict.fromkeys(f for row in rows for f in row.flags)),
        "reasons": [*dict.fromkeys(r for row in rows for r in row.flag_reasons), *_cut(first)],
        "box": None if sight.box_xyxy is None else fractions(sight.box_xyxy),
        "findings": [fractions(xyxy) for xyxy in sight.truth.findings_on(sight.size_hw).tolist()],
        "seen": fractions(sight.seen_xyxy),
        "field": to_polygons(sight.lung),
        "lung_by": sight.lung_by,
        "size": [height, width],
        "picture": picture_uri(sight.film.pixels),
        "crop": None if sight.crop is None else picture_uri(sight.pixels),
        "members": list(faces),
    }

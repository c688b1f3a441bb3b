"""What a finished run says of each film, gathered from its tables for the result objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from classify.audit.rows import AuditRow, read_audit
from classify.predictions import PredictionRow, name_of, read_predictions
from classify.screener import Screener
from classify.screening.guarantee import OperatingPoint
from cxr.manifest import CropRow, read_manifest
from cxr.workdir import read_json

_SPACE = UUID("e5735b43-45bc-46fd-9ff8-6dbc6a8fb8ad")  # of all UIDs that are made here


def uid_of(sop_instance_uid: str, weights: str, threshold: str, kind: str) -> str:
    """The UID of a film's result: the same for the same film and models, whenever it is made.

    Args:
        sop_instance_uid: of the film. Not its bytes' hash: a PACS transcodes.
        weights: digest of all that judges, `Judged.weights`.
        threshold: what the screener clears by, `Judged.threshold`.
        kind: of the object, and of what it may hold beyond the usual.
    """
    return _uid(sop_instance_uid, weights, threshold, kind)


def _uid(*parts: str) -> str:
    return f"2.25.{uuid5(_SPACE, chr(0).join(parts)).int}"


@dataclass(frozen=True)
class Algorithm:
    """One step of the judgement, as TID 4019 has it: `version` names every file of weights with
    its SHA-256."""

    name: str
    version: str
    parameters: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the version, where that is too long."""
        return hashlib.sha256(self.version.encode()).hexdigest()

    @property
    def uid(self) -> str:
        """A device's UID, another one for other weights."""
        return _uid(self.name, self.version, *self.parameters)


@dataclass(frozen=True)
class Judged:
    """One film of a run.

    Attributes:
        film, path: its name in the run's tables, and its file.
        boxed: its row among the crops. `row`: its row of predictions.csv.
        audits: its rows of audit.csv that have a lift.
        far: its distance from the calibration films in units of what is allowed; None unguarded.
        saliency: the run's picture of the strongest member's map, `saliency_of`.
        point: the operating point of the screener that judged it; None without one.
        boxer, judge: the algorithms; `judge` is None where no member saw the film.
        weights, threshold: of the run, for `uid_of`. `field`: SHA-256 of the lung field's network;
            `software`: version of the code that judged.
    """

    film: str
    path: Path
    boxed: CropRow
    row: PredictionRow
    weights: str
    threshold: str
    boxer: Algorithm
    judge: Algorithm | None = None
    point: OperatingPoint | None = None
    audits: tuple[AuditRow, ...] = ()
    far: float | None = None
    saliency: Path | None = None
    saliency_of: str = ""
    field: str = ""
    software: str = "lungfirst"

    @property
    def thorax_xyxy(self) -> tuple[float, float, float, float] | None:
        """The thorax box in the film's stored pixels; None where none is sure enough."""
        return self.boxed.thorax_xyxy if self.row.status == "ok" else None

    @property
    def seen(self) -> bool:
        """Did the members see it?"""
        return self.row.logits is not None

    @property
    def line(self) -> str:
        """The decision in a line of ASCII, for a picture."""
        said = {"definitely_normal": "cleared", "read": "to be read"}
        told = f"lungfirst: {said.get(self.row.decision, 'not judged')}"
        if self.row.abnormal_score is not None and self.point is not None:
            told += f", score {self.row.abnormal_score:.3f} (threshold {self.point.threshold:.3f})"
        return f"{told}. Research only."


@dataclass(frozen=True)
class Ran:
    """A folder of `classify.run FILMS --crops`, opened by `read_ran`."""

    folder: Path
    made: Mapping[str, Any]
    rows: Sequence[PredictionRow]
    boxed: Mapping[str, CropRow]
    audits: Mapping[str, list[AuditRow]] = field(default_factory=dict)

    @cached_property
    def weights(self) -> str:
        """A digest of the settings and weights that a judgement hangs on."""
        plain = json.dumps(self.made["settings"], sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()

    @property
    def threshold(self) -> str:
        """The screeners' thresholds by their names."""
        return str(self.made["settings"].get("threshold", ""))

    @cached_property
    def boxer(self) -> Algorithm:
        """What found the thorax."""
        crops = self.made["settings"].get("crops") or {}
        told = [f"{k} {v}" for k, v in sorted(crops.items()) if k != "boxes_from"]
        return Algorithm("lungfirst thorax box", _files(crops.get("boxes_from", {})), tuple(told))

    @cached_property
    def ensembles(self) -> dict[str, tuple[Algorithm, OperatingPoint | None]]:
        """What judged, by the name of its folder. Raises ValueError where a screener is no longer
        the one of the run."""
        folders = self.made.get("folders", {})
        found = {
            Path(folder).name: Path(folder)
            for key, folder in folders.items()
            if key == "ensemble" or key.startswith("ensemble ")
        }
        return {name: self._ensemble(name, folder) for name, folder in found.items()}

    def _ensemble(self, name: str, folder: Path) -> tuple[Algorithm, OperatingPoint | None]:
        from classify.members import GUARD, member_files, targets_of
        from cxr.bundle import bundle_meta

        members = self.made["settings"].get("members", {})
        targets = [t for path in member_files(folder) for t in targets_of(bundle_meta(path))]
        files = {t: members[t] for t in targets if t in members}
        weights = self.made.get("weights", {})
        guard = weights.get(f"{name}/{GUARD}") or weights.get(GUARD)
        files |= {GUARD: guard} if guard else {}
        told: tuple[str, ...] = ()
        point = None
        if (folder / "screener.json").is_file():
            screener = Screener.load(folder)
            if screener.threshold_id not in self.threshold:
                raise ValueError(
                    f"{folder} must hold the screener that the run was judged by, "
                    f"{self.threshold}. It holds {screener.threshold_id}: put the old one back, "
                    "or make the run again."
                )
            point = screener.point
            files |= {"screener": screener.sha256}
            told = (f"threshold {point.threshold!r}",)
        if (least := self.made["settings"].get("tier_threshold")) is not None:
            told += (f"tier_threshold {least}",)
        return Algorithm(f"lungfirst {name}", _files(files), told), point

    def judged(self, source: Mapping[str, Path] | None = None) -> Iterator[Judged]:
        """Each film of predictions.csv, in order. `source` says where a film's file is now, by its
        name; the others are where the run read them."""
        cards = _Cards(self.folder / "report.jsonl")
        boxes_from = (self.made["settings"].get("crops") or {}).get("boxes_from", {})
        only = next(iter(self.ensembles)) if len(self.ensembles) == 1 else ""
        for row in self.rows:
            boxed, card = self.boxed[row.film], cards.of(row.film)
            judge, point = self.ensembles.get(row.ensemble or only, (None, None))
            shown = card.get("saliency") or {}
            uri = shown.get("uri", "")
            yield Judged(
                row.film,
                Path((source or {}).get(row.film, boxed.film)),
                boxed,
                row,
                self.weights,
                self.threshold,
                self.boxer,
                judge if row.logits is not None else None,
                point if row.abnormal_score is not None else None,
                tuple(a for a in self.audits.get(row.film, ()) if a.value("lift") is not None),
                card.get("far"),
                self.folder / uri if uri and not uri.startswith("data:") else None,
                card.get("saliency_of", ""),
                boxes_from.get("lungfield.safetensors", ""),
                f"lungfirst {self.made.get('git_commit', '')}".strip()[:64],
            )


def read_ran(folder: Path) -> Ran:
    """Raises ValueError or OSError for what is no finished run over films that it cropped."""
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(
            f"RUN must be a folder of python -m classify.run FILMS --crops. {folder} holds no "
            "run.json."
        )
    made = read_json(path)
    folders = made.get("folders") or {}
    if made.get("settings", {}).get("input") != "crops":
        raise ValueError(
            f"RUN must be one over crops, whose boxes the results show. {folder} judged whole "
            "films: run python -m classify.run FILMS --crops."
        )
    own = folder / "crops"
    place = own if (own / "manifest.jsonl").is_file() else Path(folders["crops"])
    boxed = {name_of(row.film): row for row in read_manifest(place)[1]}
    rows = read_predictions(folder / "predictions.csv")[1]
    if lost := next((row.film for row in rows if row.film not in boxed), None):
        raise ValueError(f"{place} must hold the crops of {folder}. It lacks {lost}.")
    audits: dict[str, list[AuditRow]] = {}
    audited = folder / "audit" / "audit.csv"
    for audit in read_audit(audited) if audited.is_file() else ():
        audits.setdefault(audit.film, []).append(audit)
    return Ran(folder, made, rows, boxed, audits)


class _Cards:
    """Cards of a run's report by film, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self._places = path, dict[str, int]()
        if not path.is_file():
            return
        with path.open("rb") as file:
            place = 0
            for line in file:
                self._places[json.loads(line)["film"]] = place
                place += len(line)

    def of(self, film: str) -> dict[str, Any]:
        if film not in self._places:
            return {}
        with self.path.open("rb") as file:
            file.seek(self._places[film])
            return dict(json.loads(file.readline()))


def _files(weights: Mapping[str, str]) -> str:
    """Files of weights with their hashes; a file that serves several targets is told once."""
    names: dict[str, list[str]] = {}
    for name, sha in weights.items():
        names.setdefault(sha, []).append(name)
    return "; ".join(f"{', '.join(own)} sha256 {sha}" for sha, own in names.items())

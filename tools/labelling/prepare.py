"""From films to a session: 8-bit views, pre-labels and the order of asking.

Each film is written down as it is prepared (prepared.jsonl), so that a killed start goes on where
it stopped; numbers are given when all films are known, because doubt decides the order.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from cxr.boxes import Frame, flip_x_xyxy, iou_xyxy
from cxr.draw import encode_jpeg
from cxr.film import Film
from cxr.intensity import clahe, min_max, percentile_clip, resize
from cxr.ledger import drop_torn_line
from cxr.stream import Unread, default_jobs, read_ahead
from cxr.workdir import console, write_atomic
from detect.predict import ThoraxDetector
from labelling.choose import Candidate
from labelling.session import Session, SessionFilm, to_shape, write_films

VIEW_SIDE = 1600  # px: a full chest on a large screen
BATCH = 4  # films in memory at once; one of 4,000 × 4,000 px takes 64 MB


@dataclass(frozen=True)
class Prelabel:
    """The detector's box in film pixels, or None, and how doubtful it is."""

    xyxy: tuple[float, float, float, float] | None = None
    score: float = 0.0
    disagreement: float = 0.0
    uncertainty: float = 0.0


def make_view(pixels: np.ndarray, side: int = VIEW_SIDE) -> tuple[np.ndarray, Frame]:
    """An 8-bit view (h, w) of a film (H, W) in [0, 1]: long side at most `side` px, 0.5 / 99.5
    percentiles, CLAHE; and the Frame that leads its boxes back to the film."""
    height, width = pixels.shape
    scale = min(1.0, side / max(height, width))
    view_hw = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = resize(pixels, view_hw)
    grey = clahe(min_max(percentile_clip(small)))
    return (grey * 255 + 0.5).astype(np.uint8), Frame((0, 0, width, height), view_hw, view_hw)


def find_prelabels(detector: ThoraxDetector, films: Sequence[np.ndarray]) -> list[Prelabel]:
    """One pre-label a film (H, W): the mean of the boxes on the film and on its mirror image.

    The doubt is 1 − score, plus 1 − IoU of those two boxes, plus 1 where the detector would not
    use the box itself, plus 1 where it sees no thorax.
    """
    plain = detector.detect(films)
    mirrored = detector.detect([np.ascontiguousarray(f[:, ::-1]) for f in films])
    out = []
    for film, one, two in zip(films, plain, mirrored, strict=True):
        size_hw = (film.shape[0], film.shape[1])
        decision = detector.decide(one, size_hw)
        doubt = {"ok": 0.0, "fallback": 1.0}.get(decision.status, 2.0) + 1 - decision.score
        if decision.status == "no_thorax" or not len(one.boxes_xyxy):
            out.append(Prelabel(None, decision.score, 1.0, doubt + 1))
            continue
        box = one.boxes_xyxy[0] if decision.status != "ok" else np.asarray(decision.xyxy)
        disagreement = 1.0
        other = detector.decide(two, size_hw)
        if other.status == "ok":
            back = flip_x_xyxy(other.xyxy, size_hw[1])[0]
            disagreement = 1 - float(iou_xyxy(box, back)[0, 0])
            box = (box + back) / 2 if disagreement < 0.5 else box
        xyxy = tuple(round(float(v), 3) for v in box)
        out.append(
            Prelabel(
                xyxy,  # type: ignore[arg-type]
                decision.score,
                round(disagreement, 4),
                round(doubt + disagreement, 4),
            )
        )
    return out


def prepare_films(
    path: Path, candidates: Sequence[Candidate], root: Path, detector: ThoraxDetector | None
) -> list[SessionFilm]:
    """Views and pre-labels of films that the session does not know yet; not numbered (0).

    Films that are in prepared.jsonl already are not read again. A film that cannot be read, or
    that is the same file as an earlier one, has its reason instead of a view.
    """
    log_path = path / "prepared.jsonl"
    done = _read_prepared(log_path)
    name_of = {c.path: _relative(c.path, root) for c in candidates}
    pending = [c for c in candidates if name_of[c.path] not in done]
    by_path = {c.path: c for c in pending}
    (path / "prepared").mkdir(parents=True, exist_ok=True)
    read = read_ahead([c.path for c in pending], jobs=default_jobs(len(pending)))
    steps = track(_counted(read, detector), "Preparing films", len(pending), console=console)
    with log_path.open("a", encoding="utf-8") as log:
        for file, film, prelabel in steps:
            row = _to_row(by_path[file], name_of[file], film, prelabel, path)
            log.write(row.to_json())
            log.flush()
            done[row.film] = row
    return _without_doubles([done[name_of[c.path]] for c in candidates])


def _counted(
    read: Iterable[tuple[Path, Film | Unread]], detector: ThoraxDetector | None
) -> Iterator[tuple[Path, Film | Unread, Prelabel]]:
    """Each film with its pre-label, found in batches, in the order read."""
    source = iter(read)
    while batch := list(islice(source, BATCH)):
        films = [f for _, f in batch if isinstance(f, Film)]
        empty = [Prelabel()] * len(films)
        found = iter(find_prelabels(detector, [f.pixels for f in films]) if detector else empty)
        for file, film in batch:
            yield file, film, next(found) if isinstance(film, Film) else Prelabel()


def _to_row(
    candidate: Candidate, name: str, film: Film | Unread, prelabel: Prelabel, path: Path
) -> SessionFilm:
    known = {
        "patient_id": candidate.patient_id,
        "label": candidate.label,
        "sublabel": candidate.sublabel,
        "source": candidate.source,
        "original_hw": candidate.original_hw,
    }
    if isinstance(film, Unread):
        return SessionFilm(0, name, film.sha256, reason=str(film), **known)  # type: ignore[arg-type]
    pixels, frame = make_view(film.pixels)
    view = f"prepared/{film.sha256}.jpg"
    write_atomic(path / view, encode_jpeg(pixels, quality=93))
    known["patient_id"] = candidate.patient_id or film.patient
    return SessionFilm(
        0,
        name,
        film.sha256,
        (film.pixels.shape[0], film.pixels.shape[1]),
        view,
        frame,
        prelabel_xyxy=prelabel.xyxy,
        prelabel_score=prelabel.score,
        disagreement=prelabel.disagreement,
        uncertainty=prelabel.uncertainty,
        **known,  # type: ignore[arg-type]
    )


def _without_doubles(rows: Sequence[SessionFilm]) -> list[SessionFilm]:
    first: dict[str, str] = {}
    out = []
    for row in rows:
        twin = first.setdefault(row.sha256, row.film) if row.view else row.film
        same = f"the same film as {twin}"
        out.append(row if twin == row.film else replace(row, view="", frame=None, reason=same))
    return out


def add_films(
    path: Path, old: Sequence[SessionFilm], new: Sequence[SessionFilm], order: str, seed: int
) -> list[SessionFilm]:
    """Number the new films after the old ones, move their views into place, write films.jsonl.

    `order`: uncertain (most doubtful first), random or path; films that cannot be read come last.
    Done twice, it does the same: a start killed in between is made good by the next.
    """
    (path / "views").mkdir(exist_ok=True)
    films = list(old)
    for row in _in_order(new, order, seed):
        number = max((f.number for f in films), default=0) + 1
        if not row.view:
            films.append(replace(row, number=number))
            continue
        stem = re.sub(r"[^\w.-]+", "_", Path(row.film).stem)[:60]
        view = f"views/{number:04d}_{stem}.jpg"
        with suppress(FileNotFoundError):  # moved already
            os.replace(path / row.view, path / view)  # noqa: PTH105
        films.append(replace(row, number=number, view=view))
    write_films(path, films)
    return films


def _in_order(rows: Sequence[SessionFilm], order: str, seed: int) -> list[SessionFilm]:
    rows = sorted(rows, key=lambda r: r.film)
    if order == "random":
        random.Random(seed).shuffle(rows)
    elif order == "uncertain":
        rows = sorted(rows, key=lambda r: -r.uncertainty)
    return sorted(rows, key=lambda r: not r.view)


def draw_prelabels(session: Session) -> int:
    """Write the pre-labels of films that have no label file yet; returns how many."""
    drawn = 0
    for film in session.films:
        label = prelabel_class(session.classes, film)
        if film.view and film.prelabel_xyxy and label and not session.label_path(film).exists():
            session.write_shapes(film, [to_shape(film, film.prelabel_xyxy, label, True)])
            drawn += 1
    return drawn


def prelabel_class(classes: Sequence[str], film: SessionFilm) -> str:
    """The label of a film's pre-label: the only class, or the film's own label; "" is none."""
    if len(classes) == 1:
        return classes[0]
    return next((name for name in (film.label, film.sublabel) if name in classes), "")


def renew_prelabels(session: Session, detector: ThoraxDetector) -> int:
    """Pre-label again, with another detector, each film that no human has touched; returns how
    many. Human boxes, and films with a history, stay as they are."""
    noted = {entry["number"] for entry in session.history()}
    free = [f for f in session.films if f.view and f.number not in noted and _is_free(session, f)]
    by_path = {session.film_path(f): f for f in free}
    read = read_ahead(list(by_path), jobs=default_jobs(len(free)))
    steps = track(_counted(read, detector), "Pre-labelling again", len(free), console=console)
    renewed = {}
    for path, read_film, found in steps:
        film = by_path[path]
        if isinstance(read_film, Film) and read_film.sha256 == film.sha256:
            session.label_path(film).unlink(missing_ok=True)
            values: dict[str, Any] = {
                "prelabel_xyxy": found.xyxy,
                "prelabel_score": found.score,
                "disagreement": found.disagreement,
                "uncertainty": found.uncertainty,
            }
            renewed[film.number] = replace(film, **values)
    session.films = [renewed.get(f.number, f) for f in session.films]
    write_films(session.path, session.films)
    draw_prelabels(session)
    return len(renewed)


def _is_free(session: Session, film: SessionFilm) -> bool:
    """Whether nobody has drawn, moved, deleted or ticked anything on this film."""
    if not session.label_path(film).exists():
        return True
    answer = session.answer(film)
    untouched = bool(answer.boxes) and all(b.prelabelled for b in answer.boxes)
    return answer.state == "todo" and not answer.fault and not answer.flags and untouched


def _read_prepared(path: Path) -> dict[str, SessionFilm]:
    if not path.exists():
        return {}
    drop_torn_line(path)
    rows = [SessionFilm.from_json(x) for x in path.read_text("utf-8").splitlines()]
    return {row.film: row for row in rows}


def _relative(path: Path, root: Path) -> str:
    full = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    return full.relative_to(root).as_posix() if full.is_relative_to(root) else full.as_posix()

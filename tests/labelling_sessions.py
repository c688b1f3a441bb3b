"""Labelling sessions for the tests, made without labelme and without a detector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from cxr.boxes import Frame
from cxr.workdir import sha256_file
from labelling import SCHEMA, VERSION, Session, SessionFilm, to_shape, write_films


def make_session(
    path: Path,
    films: Sequence[tuple[str, np.ndarray]],
    prelabels: Mapping[str, Sequence[float]] | None = None,
    annotator: str = "a",
    classes: Sequence[str] = ("thorax",),
    labels: Mapping[str, str] | None = None,
    patients: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
    original_hw: tuple[int, int] | None = None,
    view_side: int = 128,
) -> Session:
    """A session of PNG films (name, pixels (H, W) in [0, 1]) that lie in `path`-films; pre-labels
    in film pixels, drawn and flagged."""
    root = path.parent / f"{path.name}-films"
    (path / "views").mkdir(parents=True)
    rows = []
    for number, (name, pixels) in enumerate(films, start=1):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        ok, data = cv2.imencode(".png", (pixels * 255).astype(np.uint8))
        assert ok
        file.write_bytes(data.tobytes())
        size_hw = (pixels.shape[0], pixels.shape[1])
        scale = view_side / max(size_hw)
        view_hw = (max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale)))
        frame = Frame((0, 0, size_hw[1], size_hw[0]), view_hw, view_hw)
        view = f"views/{number:04d}_film.jpg"
        cv2.imwrite(str(path / view), (frame.apply(pixels) * 255).astype(np.uint8))
        box = (prelabels or {}).get(name)
        rows.append(
            SessionFilm(
                number,
                name,
                sha256_file(file),
                size_hw,
                view,
                frame,
                patient_id=(patients or {}).get(name, ""),
                label=(labels or {}).get(name, ""),
                source=(sources or {}).get(name, ""),
                original_hw=original_hw,
                prelabel_xyxy=tuple(float(v) for v in box) if box is not None else None,  # type: ignore[arg-type]
                prelabel_score=0.9 if box is not None else 0.0,
                uncertainty=0.1,
            )
        )
    session_id = hashlib.sha256(annotator.encode()).hexdigest()[:16]
    meta = {
        "schema": SCHEMA,
        "version": VERSION,
        "session_id": session_id,
        "annotator": annotator,
        "classes": list(classes),
        "root": f"../{root.name}",
    }
    (path / "session.json").write_text(json.dumps(meta))
    write_films(path, rows)
    session = Session.open(path)
    for film in session.films:
        if film.prelabel_xyxy:
            label = film.label if film.label in classes else classes[0]
            session.write_shapes(film, [to_shape(film, film.prelabel_xyxy, label, True)])
    return session

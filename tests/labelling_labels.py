"""Films, sets and label files for the tests of the label formats."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from labelling_sessions import make_session

from cxr.coco import CocoFilm, CocoSet, read_coco, write_coco
from labelling import Session
from labelling.exchange import FORMATS, ExportConfig, ImportConfig, run_export, run_import
from labelling.label_files import ReadRules


def write_film(path: Path, size_hw: tuple[int, int]) -> None:
    """A small PNG of that size; only its size counts here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(".png", np.tile(np.arange(size_hw[1], dtype=np.uint8), (size_hw[0], 1)))
    assert ok
    path.write_bytes(data.tobytes())


def make_set(folder: Path, films: dict[str, tuple[tuple[int, int], list]], classes=("thorax",)):
    """PNG films in `folder` and their set; boxes are xyxy."""
    rows = []
    for name, (size_hw, boxes) in films.items():
        write_film(folder / name, size_hw)
        rows.append(
            CocoFilm(name, size_hw, np.array(boxes, float).reshape(-1, 4), (0,) * len(boxes))
        )
    return CocoSet(rows, tuple(classes))


def by_name(coco: CocoSet) -> dict[str, CocoFilm]:
    return {film.file_name: film for film in coco.films}


def save(tmp_path: Path, coco: CocoSet) -> Path:
    write_coco(tmp_path / "source.json", coco)
    return tmp_path / "source.json"


def export_and_import(tmp_path: Path, source: Path, kind: str, films: Path, **more) -> CocoSet:
    """source → format → COCO through the commands; both must go well."""
    out, into = tmp_path / f"out_{kind}", tmp_path / f"back_{kind}.json"
    assert run_export(ExportConfig((str(source),), kind, str(out), **more)) == 0
    assert run_import(ImportConfig((str(out),), kind, str(films), into=str(into))) == 0
    return read_coco(into)


def voc_text(filename: str = "a.png", box: str = "", size: str = "60 40", folder: str = "") -> str:
    """A VOC file as other programs write it; `size` is width and height."""
    width, height = size.split()
    edges = "".join(
        f"<{t}>{v}</{t}>"
        for t, v in zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=False)
    )
    item = f"<object><name>thorax</name><bndbox>{edges}</bndbox></object>" if box else ""
    return (
        f"<annotation><folder>{folder}</folder><filename>{filename}</filename><size>"
        f"<width>{width}</width><height>{height}</height><depth>3</depth></size>{item}"
        "</annotation>"
    )


def read_voc(tmp_path: Path, text: str, films: Path | None = None, **rules):
    (tmp_path / "labels").mkdir(exist_ok=True)
    (tmp_path / "labels/a.xml").write_text(text)
    return FORMATS["voc"].read(tmp_path / "labels", films, ReadRules(**rules))


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Four films of 60 × 100 px with a pre-label each; the first accepted, the second drawn anew,
    the third skipped, the fourth untouched."""
    names = ["accepted.png", "drawn.png", "side.png", "todo.png"]
    ramp_ = np.tile(np.linspace(0, 1, 100), (60, 1))
    made = make_session(
        tmp_path / "s", [(n, ramp_) for n in names], {n: (10, 10, 50, 40) for n in names}
    )
    made.set_answer(made.films[0], flags=["accepted"])
    made.set_answer(made.films[1], xyxy=(20, 15, 70, 45))
    made.set_answer(made.films[2], flags=["not frontal"])
    return made

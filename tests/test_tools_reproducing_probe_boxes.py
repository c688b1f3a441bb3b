"""tools/reproducing/probe.py: boxes for the probe where nobody drew one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_tools_reproducing_probe import OUTSIDE, TWO, asked, cases_of, write_films

from reproducing import probe
from reproducing.probe import found_boxes

LABELS = [n % 2 for n in range(8)]
looked: list[int] = []


class Detector:
    """Boxes every film but the first it is shown."""

    @classmethod
    def load(cls, weights: Path) -> Detector:
        return cls()

    def predict(self, films: list[np.ndarray]) -> list[SimpleNamespace]:
        looked.append(len(films))
        height, width = films[0].shape
        box = np.array([4.0, 4.0, width - 4.0, height - 4.0])
        return [SimpleNamespace(xyxy=box if n else None) for n in range(len(films))]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(probe, "default_jobs", lambda films: 0)
    monkeypatch.setattr(probe, "ThoraxDetector", Detector)
    looked.clear()
    path = tmp_path / "thorax.safetensors"
    path.write_bytes(b"weights")
    return path


def test_films_that_nobody_boxed_are_boxed_by_the_detector(tmp_path: Path, weights: Path) -> None:
    write_films(tmp_path / "a", LABELS, "border", boxes=False)
    cases = cases_of(tmp_path / "a")
    folds = [(range(6), range(6, 8))]
    found = asked(cases, LABELS, TWO, folds, tmp_path / "a", tmp_path / "c", weights)
    assert len(found.answers[OUTSIDE]) == 2
    assert found.left_out == {"no thorax box": 1}  # the one that the detector refused


def test_a_film_is_looked_at_once(tmp_path: Path, weights: Path) -> None:
    write_films(tmp_path / "a", LABELS, "none", boxes=False)
    images = [case.row.image for case in cases_of(tmp_path / "a")]
    first = found_boxes(images[:5], tmp_path / "a", tmp_path / "c", weights)
    again = found_boxes(images[:5], tmp_path / "a", tmp_path / "c", weights)
    assert looked == [5] and first == again and images[0] not in first
    found_boxes(images, tmp_path / "a", tmp_path / "c", weights)
    assert looked == [5, 3]


def test_without_weights_there_are_no_boxes(tmp_path: Path) -> None:
    assert found_boxes(["images/f0.png"], tmp_path, tmp_path, tmp_path / "none") == {}

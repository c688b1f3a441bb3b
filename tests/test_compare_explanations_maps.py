"""Maps made from films and from crops by any method, a network's own included."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from audit_world import tiny_net
from compare_explanations import main

from classify.ensemble import Ensemble
from classify.models.settings import CXRNetConfig
from classify.models.unets import build_cxrnet
from classify.preprocess import PreprocessConfig
from comparing import load_maps
from cxr.boxes import Frame
from cxr.manifest import CropRow, ManifestWriter


@pytest.fixture(autouse=True)
def members(monkeypatch: pytest.MonkeyPatch) -> Ensemble:
    """A plain member for bacterial, and one for viral that draws its own maps."""
    torch.manual_seed(0)
    drawing = build_cxrnet(CXRNetConfig(classes=3, width=4, depth=3, side=32))
    nets = {"bacterial": tiny_net(0), "viral": drawing}
    found = Ensemble(nets, PreprocessConfig(side=32, contrast="none"))
    monkeypatch.setattr(Ensemble, "load", lambda *_: found)
    return found


def make(out: Path, *words: str) -> int:
    return main(["maps", *words, "--out", str(out)])


def test_films_of_the_target_are_explained_with_patient_and_label(
    phantom_folder: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "cam.safetensors", str(phantom_folder)
    assert make(out, data + "/images", "--data", data, "--showing", "--most", "3") == 0
    found = load_maps(out)
    assert (found.name, found.method, found.target) == ("grad_cam", "grad_cam", "bacterial")
    assert len(found.films) == 3
    for film in found.films.values():
        assert film.label == "pneumonia: bacterial" and film.patient.startswith("patient")
        assert film.picture.shape == (160, 140) and film.plane.shape == (128, 112)


@pytest.mark.parametrize("method", ["explanation", "explanation_class"])
def test_a_network_that_draws_its_own_map_is_asked_for_it(
    phantom_folder: Path, tmp_path: Path, members: Ensemble, method: str
) -> None:
    out, film = tmp_path / "own.safetensors", phantom_folder / "images/film00.png"
    words = (str(film), "--target", "viral", "--method", method, "--name", "drawn")
    assert make(out, *words) == 0
    found = load_maps(out)
    (own,) = found.films.values()
    assert found.name == "drawn" and own.plane.max() == pytest.approx(1)
    if method == "explanation":
        pixels = cv2.imread(str(film), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
        batch, (frame,) = members.prepare([pixels])
        drawn = members.member("viral").explain(batch)[0, 0].detach().numpy()
        cut = np.maximum(frame.restore(drawn, pixels.shape), 0)
        small = cv2.resize(cut, (112, 128), interpolation=cv2.INTER_AREA)
        assert np.allclose(own.plane, small / small.max(), atol=0.02)


def test_a_network_that_draws_none_is_refused(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, film = tmp_path / "own.safetensors", str(phantom_folder / "images/film00.png")
    assert make(out, film, "--method", "explanation") == 1
    assert not out.exists()
    assert "Got bacterial, without one" in " ".join(capsys.readouterr().err.split())


def test_crops_are_explained_and_a_film_without_one_is_left_out(
    phantom_folder: Path, tmp_path: Path
) -> None:
    folder, film = tmp_path / "crops", phantom_folder / "images/film01.png"
    folder.mkdir()
    pixels = cv2.imread(str(film), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(folder / "film01.png"), pixels[20:120, 10:90])
    frame = Frame.cut((10, 20, 90, 120))
    with ManifestWriter(folder / "manifest.jsonl", {}) as book:
        book.add(
            CropRow(
                film.as_posix(),
                "0" * 64,
                "ok",
                size_hw=(160, 140),
                crop="film01.png",
                frame=frame.to_dict(),
            )
        )
        book.add(CropRow("in/leg.png", "1" * 64, "no_thorax", "no thorax found"))
    out = tmp_path / "cam.safetensors"
    assert make(out, "--crops", str(folder)) == 0
    (only,) = load_maps(out).films.values()
    assert only.film == film.as_posix() and only.patient == only.film
    assert only.picture.shape == (100, 80) == only.plane.shape


def test_no_film_of_the_target_is_said(phantom_folder: Path, tmp_path: Path) -> None:
    data = str(phantom_folder)
    words = (data + "/images/film00.png", "--data", data, "--showing")  # that one is normal
    assert make(tmp_path / "cam.safetensors", *words) == 1

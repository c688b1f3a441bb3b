"""classify/restore.py: what a pretrained network makes of films."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from classify.ensemble import save_pretrained
from classify.models.settings import UnetCbamConfig
from classify.models.unets import UnetCbam
from classify.preprocess import PreprocessConfig
from classify.restore import RestoreConfig, main, restore


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    settings = PreprocessConfig(side=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    net = UnetCbam(UnetCbamConfig(widths=(4, 6, 8))).eval()
    return save_pretrained(
        tmp_path / "net.safetensors",
        net,
        settings,
        trained_on="films",
        genesis={"shuffle_windows": 20},
    )


def test_each_film_has_two_rows(weights: Path, phantom_folder: Path, tmp_path: Path) -> None:
    heights = []
    for most in (1, 2):
        out = tmp_path / f"{most}.png"
        films = (str(phantom_folder / "images"),)
        assert restore(RestoreConfig(films, str(weights), str(out), most)) == most
        drawn = cv2.imread(str(out))
        assert drawn is not None
        heights.append(drawn.shape[0])
    assert heights[0] > 2 * 160
    assert heights[1] == pytest.approx(2 * heights[0], abs=20)


def test_a_film_that_cannot_be_read_is_left_out(
    weights: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    good = next((phantom_folder / "images").rglob("*.png"))
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:100])
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out.png")]
    assert main([str(bad), str(good), *flags]) == 0
    assert main([str(bad), *flags]) == 1


def test_other_weights_are_refused(phantom_folder: Path, tmp_path: Path) -> None:
    assert main([str(phantom_folder / "images"), "--weights", str(tmp_path / "none")]) == 2


def test_the_shipped_network_restores(root: Path, phantom_folder: Path, tmp_path: Path) -> None:
    shipped = root / "weights" / "unet_cbam_small.safetensors"
    films = (str(phantom_folder / "images"),)
    assert restore(RestoreConfig(films, str(shipped), str(tmp_path / "a.png"), 1)) == 1

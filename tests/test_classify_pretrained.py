"""classify/ensemble.py: a pretrained network written and read again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from classify.ensemble import load_pretrained, save_pretrained
from classify.models.settings import UnetCbamConfig
from classify.models.unets import UnetCbam
from classify.preprocess import PreprocessConfig
from cxr.bundle import save_bundle
from cxr.cli import to_plain

SETTINGS = PreprocessConfig(side=32, contrast="clahe")


def tiny() -> UnetCbam:
    torch.manual_seed(0)
    return UnetCbam(UnetCbamConfig(widths=(4, 6), norm="batch", attention=False)).eval()


@pytest.mark.parametrize(("half", "apart"), [(False, 0.0), (True, 1e-2)])
def test_the_network_restores_as_before(tmp_path: Path, half: bool, apart: float) -> None:
    net, films = tiny(), torch.rand(2, 1, 32, 32)
    path = save_pretrained(tmp_path / "p.safetensors", net, SETTINGS, half, note="a word")
    found = load_pretrained(path)
    with torch.inference_mode():
        assert (found.net(films) - net(films)).abs().max().item() <= apart
    assert found.settings == SETTINGS and found.net.config == net.config
    assert found.meta["note"] == "a word"


def test_a_bundle_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = save_bundle(tmp_path / "p.safetensors", "member", dict(tiny().state_dict()))
    with pytest.raises(ValueError, match=r"kind 'pretrained'.*'member'"):
        load_pretrained(path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = save_bundle(
        tmp_path / "p.safetensors",
        "pretrained",
        dict(tiny().state_dict()),
        network=to_plain(UnetCbamConfig(widths=(8, 6))),
        preprocessing=SETTINGS.to_dict(),
    )
    with pytest.raises(ValueError, match="weights of its own network"):
        load_pretrained(path)

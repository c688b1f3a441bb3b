"""ThoraxDetector: from films to one box or a reason, in the film's own pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxr.bundle import save_bundle
from detect.model import build_detector
from detect.predict import Detections, ThoraxDetector, _fuse, fold_batchnorm
from detect.settings import DetectorConfig

POINT = {"reject_score": 0.3, "ok_score": 0.6, "aspect_range": [0.5, 2.0], "min_area_share": 0.1}


class BrightestBox(nn.Module):
    """A stand-in with torchvision's calling convention: boxes what is brightest."""

    def __init__(self, score: float = 0.9) -> None:
        super().__init__()
        self.score = score

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        out = []
        for image in images:
            ys, xs = torch.where(image[0] > 0.85)
            box = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            out.append(
                {
                    "boxes": box[None],
                    "scores": torch.tensor([self.score]),
                    "labels": torch.tensor([1]),
                }
            )
        return out


def detector(score: float = 0.9, flips: bool = False, **config: object) -> ThoraxDetector:
    return ThoraxDetector(
        BrightestBox(score),
        DetectorConfig(side=320, **config),
        POINT,
        flips,
        "cpu",  # type: ignore[arg-type]
    )


def film_with_lungs(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    film = np.full((height, width), 0.3, np.float32)
    film[box[1] : box[3], box[0] : box[2]] = 0.9
    return film


@pytest.mark.parametrize("size_hw", [(400, 300), (250, 500), (321, 320)])
@pytest.mark.parametrize("flips", [False, True])
def test_boxes_come_back_in_film_pixels(size_hw: tuple[int, int], flips: bool) -> None:
    height, width = size_hw
    truth = (width // 5, height // 4, width * 3 // 5, height * 3 // 4)
    film = film_with_lungs(height, width, truth)
    film[:, : width // 40] = 0.0  # air beside the patient, so that left differs from right
    found = detector(flips=flips).detect([film])[0]
    np.testing.assert_allclose(found.boxes_xyxy[0], truth, atol=2.5)


def test_a_batch_keeps_its_order() -> None:
    films = [
        film_with_lungs(200, 300, (40, 50, 140, 150)),
        film_with_lungs(300, 200, (60, 90, 160, 200)),
    ]
    boxes = detector().predict(films)
    assert [round(b.xyxy[0]) for b in boxes if b.xyxy] == pytest.approx([40, 60], abs=2)
    assert detector().predict([]) == []


def test_a_sure_box_is_ok() -> None:
    box = detector(0.9).predict([film_with_lungs(300, 300, (60, 60, 240, 240))])[0]
    assert (box.status, box.reason) == ("ok", "") and box.score == pytest.approx(0.9)


def test_a_low_score_falls_back_to_the_whole_film() -> None:
    box = detector(0.5).predict([film_with_lungs(200, 300, (60, 60, 240, 180))])[0]
    assert box.status == "fallback" and box.xyxy == (0, 0, 300, 200)
    assert "0.50 below 0.60" in box.reason


def test_a_score_below_the_floor_is_refused() -> None:
    box = detector(0.2).predict([film_with_lungs(200, 300, (60, 60, 240, 180))])[0]
    assert box.status == "no_thorax" and box.xyxy is None and "0.20 below 0.30" in box.reason


def test_a_shaft_is_no_thorax() -> None:
    found = Detections(np.array([[10.0, 10, 40, 290]]), np.array([0.95]), np.array([0]))
    box = detector().decide(found, (300, 300))
    assert box.status == "no_thorax" and "shape" in box.reason


def test_a_tiny_box_falls_back() -> None:
    found = Detections(np.array([[10.0, 10, 40, 40]]), np.array([0.95]), np.array([0]))
    assert detector().decide(found, (300, 300)).status == "fallback"


def test_no_box_at_all_is_refused() -> None:
    found = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert detector().decide(found, (300, 300)).status == "no_thorax"


def test_two_lungs_give_their_union() -> None:
    found = Detections(
        np.array([[20.0, 30, 140, 250], [160, 40, 280, 260], [165, 45, 275, 255]]),
        np.array([0.9, 0.8, 0.7]),
        np.array([0, 1, 1]),
    )
    union = detector(classes=["left", "right"], box_rule="union").decide(found, (300, 300))
    assert union.xyxy == (20, 30, 280, 260)
    assert detector().decide(found, (300, 300)).xyxy == (20, 30, 140, 250)


def test_fused_flips_are_averaged_by_score() -> None:
    one = Detections(np.array([[10.0, 10, 50, 50]]), np.array([0.9]), np.array([0]))
    # the mirror image of (14, 10, 54, 50) on a film of 100 px
    two = Detections(np.array([[46.0, 10, 86, 50]]), np.array([0.3]), np.array([0]))
    fused = _fuse(one, two, 100)
    np.testing.assert_allclose(fused.boxes_xyxy, [[11, 10, 51, 50]])
    np.testing.assert_allclose(fused.scores, [0.6])


def test_a_box_that_only_one_flip_shows_keeps_half_its_score() -> None:
    one = Detections(np.array([[10.0, 10, 50, 50]]), np.array([0.9]), np.array([0]))
    none = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert _fuse(one, none, 100).scores.tolist() == [0.45]
    assert _fuse(none, one, 100).boxes_xyxy.tolist() == [[50, 10, 90, 50]]


def test_a_bundle_gives_the_same_boxes_again(
    tmp_path: Path, phantom: tuple[np.ndarray, np.ndarray]
) -> None:
    torch.manual_seed(0)
    config = DetectorConfig(backbone="mobilenet_v3_320", side=64, fpn_channels=16, head_channels=16)
    model = build_detector(config).eval()
    from cxr.cli import to_plain

    path = save_bundle(
        tmp_path / "t.safetensors",
        "thorax",
        model.state_dict(),
        half=False,
        model=to_plain(config),
        operating_point=POINT,
    )
    loaded = ThoraxDetector.load(path, device="cpu", flips=False)
    direct = ThoraxDetector(model, config, POINT, False, "cpu")
    np.testing.assert_allclose(
        loaded.detect([phantom[0]])[0].boxes_xyxy,
        direct.detect([phantom[0]])[0].boxes_xyxy,
        atol=1e-3,
    )
    assert list(loaded.weights) == ["t.safetensors"]
    fetching = {**to_plain(config), "weights": "coco"}  # a stranger's file: nothing is fetched
    save_bundle(path, "thorax", model.state_dict(), model=fetching, operating_point=POINT)
    assert ThoraxDetector.load(path, device="cpu").config.weights == "none"
    save_bundle(path, "thorax", model.state_dict(), model=fetching)
    with pytest.raises(ValueError, match=r"t\.safetensors .* The metadata lack 'operating_point'"):
        ThoraxDetector.load(path, device="cpu")
    save_bundle(path, "thorax", {"a": torch.zeros(1)}, model=fetching, operating_point=POINT)
    with pytest.raises(ValueError, match=r"must hold the weights of its own network"):
        ThoraxDetector.load(path, device="cpu")


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    path = save_bundle(tmp_path / "x.safetensors", "member", {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="kind 'thorax'"):
        ThoraxDetector.load(path)
    with pytest.raises(FileNotFoundError, match="no such weights"):
        ThoraxDetector.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("backbone", ["mobilenet_v3", "tf_efficientnet_lite0", "resnet50_v2"])
def test_folded_norms_give_the_same_features(backbone: str) -> None:
    torch.manual_seed(0)
    body: nn.Module = build_detector(DetectorConfig(backbone=backbone, side=64)).backbone  # type: ignore[assignment]
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after a training
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.8, 1.2)  # type: ignore[union-attr]
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before = body.eval()(image)
        fold_batchnorm(body)
        after = body(image)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())
    assert all(torch.allclose(before[k], after[k], rtol=1e-3, atol=1e-4) for k in before)

"""detect/decode.py: what stands behind the dense parts, against torchvision's own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exporting import _Dense
from torchvision.ops import nms, roi_align

from detect.decode import Anchors, BoxDecoder, pooled_boxes, suppressed
from detect.model import build_detector
from detect.settings import DetectorConfig


def both(config: DetectorConfig, films: np.ndarray, shift: float = 0.0) -> tuple[list, list]:
    """Boxes by torchvision and by NumPy, of uint8 films; `shift` adds to the logit of thorax."""
    torch.manual_seed(0)
    net = build_detector(config).eval()
    with torch.no_grad():
        for parameter in net.roi_heads.box_predictor.parameters():
            parameter.mul_(20)
        net.roi_heads.box_predictor.cls_score.bias[1] += shift
        images = [torch.from_numpy(f).float().div(255).expand(3, -1, -1) for f in films]
        theirs = net(images)
        dense = [t.numpy() for t in _Dense(net, config)(torch.from_numpy(films))]
    levels = 2 if config.backbone == "mobilenet_v3_320" else 3
    proposing = (len(dense) - levels) // 2
    decoder = BoxDecoder(config, {k: v.numpy() for k, v in net.state_dict().items()})
    ours = decoder.boxes(
        dense[:levels], dense[levels : levels + proposing], dense[levels + proposing :]
    )
    return theirs, ours


@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("refine", [0, 2])
@pytest.mark.parametrize("shift", [-50.0, 0.0, 5.0])
def test_boxes_are_those_of_torchvision(coarse: bool, refine: int, shift: float) -> None:
    config = DetectorConfig(
        backbone="mobilenet_v3", weights="none", side=128, coarse_rpn=coarse, refine=refine
    )
    films = np.random.default_rng(1).integers(0, 256, (2, 128, 128), np.uint8)
    films = np.concatenate([films, np.zeros((1, 128, 128), np.uint8)])
    theirs, ours = both(config, films, shift)
    counts = [len(boxes) for boxes, _, _ in ours]
    assert (max(counts) == 0) if shift < 0 else (min(counts) >= 1)
    for seen, (boxes, scores, labels) in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(boxes, seen["boxes"].numpy(), atol=2e-3)
        np.testing.assert_allclose(scores, seen["scores"].numpy(), atol=1e-5)
        assert (labels + 1).tolist() == seen["labels"].tolist()


def test_an_anchor_by_hand() -> None:
    # aspect 4 at size 8: sqrt(4) = 2 times as high as 8, half as wide; the second cell begins at 16
    found = Anchors((8,), (4.0,)).over((1, 2), side=32)
    assert found.tolist() == [[-2, -8, 2, 8], [14, -8, 18, 8]]


def test_doubles_go_within_their_group_only() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [20, 0, 30, 10]], float)
    scores = np.array([0.5, 0.9, 0.8, 0.7])
    assert suppressed(boxes, scores, np.array([0, 0, 1, 0]), 0.5).tolist() == [1, 2, 3]
    same = suppressed(boxes, scores, np.zeros(4), 0.5).tolist()
    assert same == nms(torch.tensor(boxes), torch.tensor(scores), 0.5).tolist() == [1, 3]


def test_a_large_box_is_pooled_from_a_coarse_level() -> None:
    levels = [np.full((1, n, n), value, np.float32) for n, value in ((64, 1.0), (32, 2.0), (16, 3))]
    boxes = np.array([[0, 0, 100, 100], [0, 0, 300, 300], [0, 0, 500, 500]], np.float32)
    assert pooled_boxes(levels, boxes, side=512, size=2)[:, 0, 0, 0].tolist() == [1.0, 2.0, 3.0]


def test_boxes_over_the_edge_are_pooled_as_torchvision_does() -> None:
    level = np.random.default_rng(0).random((3, 10, 10), np.float32)
    boxes = np.array([[-9, -30, 70, 90], [10, 20, 10.5, 21], [60, 70, 80, 80]], np.float32)
    theirs = roi_align(
        torch.from_numpy(level)[None], [torch.from_numpy(boxes)], 7, 1 / 8, 2, aligned=False
    )
    ours = pooled_boxes([level], boxes, side=80, size=7)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)

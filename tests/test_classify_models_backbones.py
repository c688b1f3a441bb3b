"""classify/models/backbones.py: shapes, frozen parts, first weights and maps of every network."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torchvision.models as tv
from torch import nn

from classify.models.backbones import Backbone, build_backbone, parts_to
from classify.models.settings import IMAGENET_MEAN, IMAGENET_STD, KNOWN, BackboneConfig, known
from classify.saliency import METHODS
from classify.saliency.maps import saliency_maps

# Those that take seconds each run only when asked for: LUNGFIRST_SLOW=1 python -m pytest …
_slow = pytest.mark.skipif(not os.environ.get("LUNGFIRST_SLOW"), reason="LUNGFIRST_SLOW is not set")


def slow(name: str) -> object:
    return pytest.param(name, marks=_slow)


BIG = ("densenet169", "densenet201", "inception_resnet_v2")


def films(side: int = 64, number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(0))


@cache
def on_meta(name: str, **settings: object) -> Backbone:
    """A network without numbers: its parts and shapes alone."""
    with torch.device("meta"):
        return Backbone(BackboneConfig(name, weights="x.pth", **settings))


def small(folder: Path, name: str = "resnet18", **settings: object) -> Backbone:
    """A network whose weights come from a file, so that it may be frozen."""
    torch.manual_seed(1)
    first = build_backbone(BackboneConfig(name, weights="none"))
    torch.save(first.body.state_dict(), folder / "first.pth")
    return build_backbone(BackboneConfig(name, weights=str(folder / "first.pth"), **settings))


def test_every_network_of_the_papers_is_there() -> None:
    assert set(KNOWN) >= {
        "baseline_cnn",
        "vgg16",
        "vgg19",
        "googlenet",
        "resnet18",
        "resnet50",
        "densenet121",
        "densenet169",
        "densenet201",
        "efficientnet_b2",
        "efficientnet_lite0",
        "mobilenet",
        "mobilenet_v2",
        "inception_v3",
        "xception",
        "inception_resnet_v2",
    }


@pytest.mark.parametrize("name", [slow(n) if n in BIG else n for n in KNOWN])
def test_films_give_one_logit_a_class(name: str) -> None:
    side = known(name).least_side
    assert on_meta(name, classes=3)(torch.empty(2, 3, side, side, device="meta")).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "side", "places"),
    [
        ("resnet50", 224, 7),
        ("vgg16", 224, 7),
        ("inception_v3", 299, 8),
        ("xception", 299, 10),
        ("baseline_cnn", 224, 14),
    ],
)
def test_the_published_input_gives_maps_of_the_published_size(
    name: str, side: int, places: int
) -> None:
    net = on_meta(name, classes=3)
    assert net.config.input_side == side
    assert net.maps(torch.empty(1, 3, side, side, device="meta")).shape[2:] == (places, places)


def with_its_own_forward(name: str) -> nn.Module:
    """The library's network; the features it pools come out of it."""
    if known(name).library == "timm":
        return timm.create_model(known(name).name, num_classes=0)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    net = tv.get_model(name, weights=None, **extra)
    head = "fc" if hasattr(net, "fc") else "classifier"
    setattr(net, head, nn.Identity())
    return net


@pytest.mark.parametrize(
    "name",
    [
        "googlenet",
        "resnet18",
        "efficientnet_lite0",
        *map(slow, ("densenet121", "mobilenet", "mobilenet_v2", "inception_v3", "xception")),
        slow("inception_resnet_v2"),
    ],
)
def test_a_body_takes_the_librarys_weights_and_gives_its_features(
    name: str, tmp_path: Path
) -> None:
    theirs = with_its_own_forward(name).eval()
    path = tmp_path / "whole.pth"
    torch.save(theirs.state_dict(), path)
    net = build_backbone(BackboneConfig(name, weights=str(path))).eval()
    x = films(80, 1)
    with torch.inference_mode():
        ours = net.body(x).mean((2, 3))
        expected = theirs(x)
    assert torch.allclose(ours, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "value"), [("resnet18", None), ("inception_v3", 0.5), ("efficientnet_lite0", 0.498)]
)
def test_a_network_sees_pixels_in_the_range_it_was_trained_on(
    name: str, value: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film of grey 0.7, normalised as for ImageNet, arrives as (0.7 − mean) / std of its own."""
    if name != "resnet18":  # only the first step is looked at
        monkeypatch.setattr("classify.models.backbones.build_body", lambda _: nn.Conv2d(3, 4, 1))
    net = Backbone(BackboneConfig(name, weights="none"))
    net.body = nn.Identity()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    seen = net.maps((torch.full((1, 3, 2, 2), 0.7) - mean) / std)
    own_std = {None: std, 0.5: 0.5, 0.498: 0.502}[value]
    expected = (0.7 - (mean if value is None else value)) / own_std
    assert torch.allclose(seen, torch.as_tensor(expected).expand_as(seen), atol=1e-6)


FROZEN = {
    ("resnet50", "layer2"): {"conv1", "bn1", "layer1", "layer2"},
    ("vgg16", "block2"): {"0", "2", "5", "7"},
    ("densenet169", "denseblock1"): {"conv0", "norm0", "denseblock1", "transition1"},
    ("googlenet", "inception3"): {"conv1", "conv2", "conv3", "inception3a", "inception3b"},
    ("efficientnet_lite0", "stage1"): {"conv_stem", "bn1", "blocks.0"},
    ("xception", "stem"): {"conv1", "bn1", "conv2", "bn2"},
    ("inception_v3", "mixed5"): {
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
        "Conv2d_2b_3x3",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
        "Mixed_5b",
        "Mixed_5c",
        "Mixed_5d",
    },
}


@pytest.mark.parametrize(("name", "stage"), FROZEN)
def test_the_parts_up_to_the_named_stage_are_frozen(name: str, stage: str) -> None:
    net = on_meta(name, classes=3)
    net.freeze_to(stage)
    depth = 2 if name == "efficientnet_lite0" else 1
    frozen = set()
    for key, parameter in net.body.named_parameters():
        if not parameter.requires_grad:
            parts = key.split(".")
            frozen.add(".".join(parts[: depth if parts[0] == "blocks" else 1]))
    assert frozen == FROZEN[name, stage]
    assert all(p.requires_grad for p in net.head.parameters())


@pytest.mark.parametrize("name", KNOWN)
def test_each_stage_freezes_more_and_the_last_the_whole_body(name: str) -> None:
    net = on_meta(name, classes=3)
    parts = [parts_to(net.body, known(name).stages, s) for s in list(known(name).stages)]
    counts = [len(p) for p in parts]
    assert counts == sorted(set(counts))
    net.freeze_to(list(known(name).stages)[-1])
    assert not any(p.requires_grad for p in net.body.parameters())
    net.freeze_to("")
    assert all(p.requires_grad for p in net.parameters())


def one_step(net: nn.Module, side: int = 64) -> dict[str, bool]:
    """Which tensors of the network, statistics included, another step of training changes."""
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    nn.functional.cross_entropy(net(films(side)), torch.tensor([0, 1])).backward()
    optimizer.step()
    return {k: not torch.equal(v, before[k]) for k, v in net.state_dict().items()}


def test_a_step_leaves_frozen_weights_and_statistics_and_moves_the_rest(tmp_path: Path) -> None:
    changed = one_step(small(tmp_path, freeze_to="layer2"))
    kept = ("body.conv1.", "body.bn1.", "body.layer1.", "body.layer2.")
    for name, moved in changed.items():
        assert moved != name.startswith(kept), name


def test_nothing_is_frozen_by_default(tmp_path: Path) -> None:
    assert all(one_step(small(tmp_path)).values())


def test_an_extra_layer_stands_before_the_last() -> None:
    net = on_meta("resnet50", classes=3, extra_fc=64, dropout=0.5)
    kinds = [type(m).__name__ for m in net.head]
    assert kinds == ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert net.head[1].weight.shape == (64, 2048) and net.head[4].weight.shape == (3, 64)


def test_only_the_linear_layers_follow_the_pooled_maps() -> None:
    """Two channels of hand-made maps: means 2.5 and 0.5, weights 4 and −8, bias 1."""
    net = Backbone(BackboneConfig("baseline_cnn", 1, weights="none")).eval()
    net.body = nn.Identity()
    net.head = nn.Sequential(nn.Linear(3, 1))
    with torch.no_grad():
        net.head[0].weight.copy_(torch.tensor([[4.0, -8.0, 0.0]]))
        net.head[0].bias.fill_(1.0)
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]], [[9.0] * 2] * 2]])
    assert net(maps).item() == pytest.approx(4 * 2.5 - 8 * 0.5 + 1)


@pytest.mark.parametrize("method", METHODS)
def test_every_map_can_be_made(method: str) -> None:
    net = build_backbone(BackboneConfig("baseline_cnn", 3, weights="none"))
    maps = saliency_maps(net, films(64), [0, 2], method)
    assert maps.shape == (2, 4, 4) and maps.min() >= 0


def test_maps_by_a_backward_pass_agree_with_the_closed_form(tmp_path: Path) -> None:
    net = small(tmp_path, "mobilenet_v2")
    closed = saliency_maps(net, films(), [1, 0], closed_form=True)
    graph = saliency_maps(net, films(), [1, 0], closed_form=False)
    assert closed == pytest.approx(graph, abs=1e-4 * float(closed.max()))


def test_an_extra_layer_leaves_the_map_of_a_backward_pass(tmp_path: Path) -> None:
    net = small(tmp_path, extra_fc=16)
    assert saliency_maps(net, films(), [1, 0]).shape == (2, 2, 2)
    with pytest.raises(ValueError, match="closed_form"):
        saliency_maps(net, films(), [1, 0], closed_form=True)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "resnet9000"}, "vgg16, vgg19, googlenet, resnet18.*'resnet9000'"),
        ({"freeze_to": "layer9"}, "stem, layer1, layer2, layer3_half, layer3, layer4"),
        ({"freeze_to": "layer1", "weights": "none"}, "frozen noise"),
        ({"name": "baseline_cnn"}, "nobody trained"),
        ({"classes": 0}, "classes"),
        ({"dropout": 1.0}, "dropout"),
        ({"name": "inception_v3", "side": 64}, "at least 75"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BackboneConfig(**wrong)

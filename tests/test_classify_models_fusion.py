"""classify/models/backbones.py: the heads' arithmetic by hand, and where three networks look."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from classify.models.backbones import FusionNet, build_body, build_fusion
from classify.models.settings import FusionConfig
from classify.saliency import METHODS
from classify.saliency.hooks import backbone_layers, left_as_found
from classify.saliency.maps import backbone_maps, saliency_maps
from cxr.cli import from_plain, to_plain

TINY = ("baseline_cnn", "mobilenet_v2")


class Says(nn.Module):
    """A network that gives the same numbers for every film."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self.numbers = torch.tensor(numbers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.numbers.expand(len(x), -1)


class Pools(nn.Module):
    """Means of the input's three channels behind `places`, into any number of outputs."""

    def __init__(self, weight: torch.Tensor, grain: int) -> None:
        super().__init__()
        self.places = nn.AvgPool2d(grain)
        self.fc = nn.Linear(3, len(weight), bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(weight)

    @property
    def saliency_layer(self) -> nn.Module:
        return self.places

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.places(x).mean((2, 3)))


def films(side: int = 64, number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(0))


def set_linear(layer: nn.Module, weight: torch.Tensor, bias: list[float]) -> None:
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.tensor(bias))


def test_1fc_lays_three_pairs_side_by_side() -> None:
    net = FusionNet({"a": Says(1.0, 2), "b": Says(3.0, 4), "c": Says(5.0, 6)}, "1fc", classes=2)
    assert net.fc.weight.shape == (2, 6)
    set_linear(net.fc, torch.tensor([[1.0, 0, 0, 0, 0, 1], [0, 10, 100, 0, 0, 0]]), [0.5, -1])
    # 1 · 1 + 1 · 6 + 0.5   and   10 · 2 + 100 · 3 − 1
    assert net(films(4)).tolist() == [[7.5, 319.0]] * 2


def adding_up(hidden_relu: bool) -> FusionNet:
    """Features k, 2 k and 3 k in place k (0 … 127): their sum is 6 k."""
    k = torch.arange(128.0)
    nets = {name: Says(*(n * k).tolist()) for name, n in (("a", 1), ("b", 2), ("c", 3))}
    net = FusionNet(nets, "2fc", classes=2, hidden_relu=hidden_relu)
    first = torch.zeros(64, 128)
    first[0, 5], first[1, 127] = 1.0, -1.0  # hidden: 6 · 5 + 1 = 31 and −6 · 127 + 0 = −762
    set_linear(net.fc[0], first, [1.0] + [0.0] * 63)
    last = torch.zeros(2, 64)
    last[0, 0], last[1, 0], last[1, 1] = 2.0, 1.0, 1.0
    set_linear(net.fc[2], last, [0.0, 3.0])
    return net


def test_2fc_adds_up_128_features_and_goes_over_64() -> None:
    net = adding_up(hidden_relu=True)
    assert net.fc[0].weight.shape == (64, 128) and net.fc[2].weight.shape == (2, 64)
    # 2 · 31   and   31 + max(−762, 0) + 3
    assert net(films(4)).tolist() == [[62.0, 34.0]] * 2


def test_2fc_without_a_relu_lets_the_negative_pass() -> None:
    assert adding_up(hidden_relu=False)(films(4)).tolist() == [[62.0, 31.0 - 762 + 3]] * 2


@pytest.mark.parametrize(("head", "outputs"), [("1fc", 2), ("2fc", 128)])
def test_the_reports_networks_at_their_size(head: str, outputs: int) -> None:
    config = FusionConfig(head, weights="none")
    assert config.input_side == 299
    with torch.device("meta"):
        net = build_fusion(config)
    assert list(net.nets) == ["resnet18", "densenet121", "inception_v3"]
    assert {part.head[-1].out_features for part in net.nets.values()} == {outputs}
    assert net(torch.empty(1, 3, 299, 299, device="meta")).shape == (1, 2)


def test_three_classes_give_three_logits() -> None:
    net = build_fusion(FusionConfig("1fc", TINY, classes=3, weights="none", side=64)).eval()
    assert net.fc.weight.shape == (3, 6)
    assert net(films()).shape == (2, 3)


def test_the_whole_way_of_1fc_by_hand() -> None:
    """Two networks that pool one channel each, then the common layer."""
    film = torch.zeros(1, 3, 4, 4)
    film[0, 0, 1, 2], film[0, 1, :2, :2] = 16.0, 8.0  # means: red 1, green 2
    # pairs (1, 0) and (0, 2) side by side: 3 · 1 and 5 · 2
    assert hand_net()(film).tolist() == [[3.0, 10.0]]


def test_features_of_2fc_come_from_pooled_maps_by_hand() -> None:
    """Feature 0 of one network is 2 · red, of the other 3 · red + green: 5 · red + green."""
    first, second = torch.zeros(128, 3), torch.zeros(128, 3)
    first[0, 0], second[0, 0], second[0, 1] = 2.0, 3.0, 1.0
    net = FusionNet({"a": Pools(first, 1), "b": Pools(second, 2)}, "2fc", classes=2)
    hidden, last = torch.zeros(64, 128), torch.zeros(2, 64)
    hidden[7, 0], last[1, 7] = 2.0, 10.0
    set_linear(net.fc[0], hidden, [0.0] * 64)
    set_linear(net.fc[2], last, [0.5, -1.0])
    film = torch.ones(1, 3, 4, 4)
    film[:, 1] = 4.0
    # 10 · ReLU(2 · (5 · 1 + 4)) − 1
    assert net(film).tolist() == [[0.5, 179.0]]


def file_of(path: Path, name: str, seed: int) -> str:
    """Weights of a body as a file."""
    torch.manual_seed(seed)
    save_file(build_body(name).state_dict(), path)
    return str(path)


def test_each_network_starts_from_its_own_weights(tmp_path: Path) -> None:
    own = file_of(tmp_path / "own.safetensors", "baseline_cnn", 5)
    weights = {"baseline_cnn": own, "mobilenet_v2": "none"}
    net = build_fusion(FusionConfig("2fc", TINY, weights=weights, side=64))
    torch.manual_seed(5)
    wanted = build_body("baseline_cnn").state_dict()
    ours = net.nets["baseline_cnn"].body.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in wanted.items())


def test_a_stage_of_one_network_is_frozen_and_nothing_else(tmp_path: Path) -> None:
    own = file_of(tmp_path / "own.safetensors", "baseline_cnn", 5)
    config = FusionConfig(
        "2fc",
        TINY,
        weights={"baseline_cnn": own, "mobilenet_v2": "none"},
        freeze_to={"baseline_cnn": "block2"},
        side=64,
    )
    net = build_fusion(config).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    still = [k for k, p in net.named_parameters() if not p.requires_grad]
    # a convolution and the scale and shift of BatchNorm in each of two blocks: 3 · 32 · 9 + 2 · 32
    # and 32 · 64 · 9 + 2 · 64
    assert sum(net.get_parameter(k).numel() for k in still) == 864 + 64 + 18432 + 128
    assert all(
        k.startswith(("nets.baseline_cnn.body.0.", "nets.baseline_cnn.body.1.")) for k in still
    )
    net(films()).square().sum().backward()
    torch.optim.SGD([p for p in net.parameters() if p.grad is not None], 0.1).step()
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert not moved & set(still) and "fc.0.weight" in moved
    assert "nets.baseline_cnn.body.0.1.running_mean" not in moved
    assert "nets.baseline_cnn.body.2.1.running_mean" in moved


def test_one_stage_without_a_name_is_that_of_all() -> None:
    config = FusionConfig(nets=("resnet18", "densenet121"), freeze_to="stem")
    assert {name: part.freeze_to for name, part in config.parts().items()} == {
        "resnet18": "stem",
        "densenet121": "stem",
    }


def test_weights_by_name_come_back_from_plain_values() -> None:
    config = FusionConfig(nets=TINY, weights=dict.fromkeys(TINY, "none"))
    assert from_plain(FusionConfig, to_plain(config)) == config
    plain = {**to_plain(config), "weights": "none", "freeze_to": ""}
    assert from_plain(FusionConfig, plain) == replace(config, weights="none")


def test_every_network_learns() -> None:
    net = build_fusion(FusionConfig("2fc", TINY, weights="none", side=64)).train()
    net(films()).square().sum().backward()
    still = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert not still


def hand_net() -> FusionNet:
    """Two networks that pool the red and the green channel over 4 × 4 and 2 × 2 places; logit 0
    is 3 × red, logit 1 is 5 × green."""
    red, green = torch.zeros(2, 3), torch.zeros(2, 3)
    red[0, 0], green[1, 1] = 1.0, 1.0
    net = FusionNet({"fine": Pools(red, 1), "coarse": Pools(green, 2)}, "1fc", classes=2)
    set_linear(net.fc, torch.tensor([[3.0, 0, 0, 0], [0, 0, 0, 5]]), [0.0, 0.0])
    return net.eval()


def test_each_network_has_the_map_of_its_own_share() -> None:
    film = torch.zeros(1, 3, 4, 4)
    film[0, 0, 1, 2] = 16.0  # red, at one place: mean 1
    film[0, 1, :2, :2] = 4.0  # green, in one quarter: mean 1
    maps = backbone_maps(hand_net(), film.repeat(2, 1, 1, 1), [0, 1])
    assert maps["fine"].shape == (2, 4, 4) and maps["coarse"].shape == (2, 2, 2)
    # logit 0: gradient 3 / 16 at 16 places × 16; nothing from the other network
    assert maps["fine"][0, 1, 2] == pytest.approx(3.0) and maps["fine"][0].sum() == pytest.approx(3)
    assert not maps["coarse"][0].any() and not maps["fine"][1].any()
    # logit 1: gradient 5 / 4 at 4 places × 4
    assert maps["coarse"][1].tolist() == [[pytest.approx(5.0), 0], [0, 0]]


def test_the_fused_map_keeps_each_networks_share() -> None:
    film = torch.zeros(1, 3, 4, 4)
    film[0, 0, 1, 2], film[0, 1, :2, :2] = 16.0, 4.0
    net = hand_net()
    set_linear(net.fc, torch.tensor([[3.0, 0, 0, 5], [0.0] * 4]), [0.0, 0.0])
    fused = saliency_maps(net, film, [0])
    assert fused.shape == (1, 4, 4)
    assert fused.sum() == pytest.approx(8.0, rel=1e-5)  # the logit: 3 · 1 + 5 · 1


@pytest.fixture(scope="module")
def tiny() -> FusionNet:
    torch.manual_seed(0)
    return build_fusion(FusionConfig("2fc", TINY, weights="none", side=64)).train()


@pytest.mark.parametrize("method", [m for m in METHODS if m != "cam"])
def test_every_map_of_a_fusion_net_can_be_made(tiny: FusionNet, method: str) -> None:
    assert backbone_layers(tiny)
    maps = saliency_maps(tiny, films(), [0, 1], method, top_k=4)
    assert maps.shape == (2, 4, 4) and maps.min() >= 0
    assert np.isfinite(maps).all()


def test_a_map_of_one_network_alone_can_be_asked_for(tiny: FusionNet) -> None:
    layer = tiny.saliency_layers["mobilenet_v2"]
    alone = saliency_maps(tiny, films(), [0, 1], layer=layer, closed_form=False)
    both = backbone_maps(tiny, films(), [0, 1])
    assert alone == pytest.approx(both["mobilenet_v2"], abs=1e-6)


def test_maps_leave_the_network_as_it_was(tiny: FusionNet) -> None:
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    saliency_maps(tiny, films(), [0, 1])
    assert tiny.training
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())
    with left_as_found(tiny):
        assert not tiny.training


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"head": "3fc"}, "1fc, 2fc.*'3fc'"),
        ({"nets": ("resnet18", "resnet99")}, "googlenet, resnet18.*'resnet99'"),
        ({"nets": ("resnet18", "resnet18")}, "different names"),
        ({"nets": ()}, "one at least"),
        ({"weights": "coco"}, "imagenet or none"),
        ({"weights": {"resnet18": "none"}}, "each of resnet18, densenet121, inception_v3"),
        ({"nets": TINY}, "for baseline_cnn, which nobody"),
        ({"freeze_to": {"vgg16": "block1"}}, "of resnet18.*vgg16"),
        ({"freeze_to": {"resnet18": "layer9"}}, "freeze_to of resnet18"),
        ({"freeze_to": "stem", "weights": "none"}, "frozen noise"),
        ({"side": 64}, "at least 75"),
        ({"classes": 0}, "classes"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FusionConfig(**wrong)

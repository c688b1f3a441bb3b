"""Every method on one interface: the net left as found, batches, fusion nets, geometry, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection
from saliency_nets import (
    HAND_MAPS,
    TARGET,
    HandNet,
    HeadNet,
    as_the_library_has_it,
    assert_same_maps,
    films,
    linear_net,
    pooled,
    state_of,
)
from torch import nn

from classify.preprocess import PreprocessConfig, frame_of, preprocess, to_input
from classify.saliency import METHODS, to_pixels
from classify.saliency.hooks import left_as_found
from classify.saliency.maps import backbone_maps, fuse, look, saliency_maps
from cxr.boxes import Frame

EVERY = [(m, c) for m in METHODS for c in ("auto", False)]


@pytest.mark.parametrize(("method", "closed_form"), EVERY)
def test_maps_are_positive_numbers_of_the_layer_s_size(method: str, closed_form: object) -> None:
    maps = saliency_maps(linear_net(), films(2, 16, 12), [0, 2], method, closed_form=closed_form)
    assert maps.shape == (2, 8, 6) and maps.dtype == np.float32
    assert np.isfinite(maps).all() and maps.min() >= 0 and maps.max() > 0


@pytest.mark.parametrize(("method", "closed_form"), EVERY)
def test_a_batch_is_its_films_one_by_one(method: str, closed_form: object) -> None:
    net, batch, classes = linear_net(), films(), [2, 0, 1]
    together = saliency_maps(net, batch, classes, method, closed_form=closed_form)
    for n, wanted in enumerate(classes):
        (alone,) = saliency_maps(net, batch[n : n + 1], [wanted], method, closed_form=closed_form)
        np.testing.assert_allclose(alone, together[n], atol=1e-5 * max(1.0, together.max()))


@pytest.mark.parametrize(("method", "closed_form"), EVERY)
def test_the_model_is_left_as_it_was_found(method: str, closed_form: object) -> None:
    net = linear_net().train()
    net.body[1].eval()
    net.neck.bias.requires_grad_(False)
    net(films()).sum().backward()
    handle = net.neck.register_forward_hook(lambda *_: None)
    tensors = {k: v.clone() for k, v in net.state_dict().items()}
    before = state_of(net)
    saliency_maps(net, films(), [0, 1, 2], method, closed_form=closed_form)
    assert state_of(net) == before
    assert handle.id in net.neck._forward_hooks
    assert all(torch.equal(v, tensors[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(("method", "closed_form"), EVERY)
def test_the_model_is_left_as_it_was_found_after_an_error(method: str, closed_form: object) -> None:
    net = linear_net().train()
    before = state_of(net)
    net.broken = True
    with pytest.raises(RuntimeError, match="the head is broken"):
        saliency_maps(net, films(), [0, 1, 2], method, closed_form=closed_form)
    net.broken = False
    for wrong in (3, -1):
        with pytest.raises(IndexError, match=rf"classes must lie in 0 … 2.* Got {wrong} instead"):
            saliency_maps(net, films(), [0, wrong, 2], method, closed_form=closed_form)
    assert state_of(net) == before


@pytest.mark.parametrize(("method", "closed_form"), EVERY)
def test_maps_are_made_inside_inference_mode_too(method: str, closed_form: object) -> None:
    net = linear_net()
    with torch.inference_mode():
        inside = saliency_maps(net, films() * 1.0, [0, 1, 2], method, closed_form=closed_form)
    outside = saliency_maps(net, films(), [0, 1, 2], method, closed_form=closed_form)
    np.testing.assert_allclose(inside, outside, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_no_film_gives_no_map(method: str) -> None:
    assert len(saliency_maps(linear_net(), films()[:0], [], method)) == 0


@pytest.mark.parametrize("closed_form", ["auto", False])
def test_eigen_cam_worked_out_by_hand(closed_form: object) -> None:
    # Centred, A₁ is (−1.5, −0.5, 0.5, 1.5) and A₂ (0.5, −0.5, −0.5, 0.5): they are orthogonal and
    # A₁ has more variance. The energies 2, 4, 9, 17 rise with it: that sign is kept.
    (plane,) = saliency_maps(HandNet(), HAND_MAPS, [0], "eigen_cam", closed_form=closed_form)
    np.testing.assert_allclose(plane, [[0, 0], [0.5, 1.5]], atol=1e-6)


@pytest.mark.parametrize("stride", [1, 4])  # more places than channels, and fewer
def test_eigen_cam_is_the_library_s_up_to_its_sign(stride: int) -> None:
    torch.manual_seed(0)
    net = HeadNet(pooled(nn.Linear(8, 3)), stride=stride).eval()
    batch = films(4, 8, 8)
    ours = saliency_maps(net, batch, [0] * 4, "eigen_cam")
    with torch.no_grad():
        theirs = get_2d_projection(net.neck(net.body(batch)).numpy())
    for plane, other in zip(ours, theirs, strict=True):
        distance = min(np.abs(plane - np.maximum(sign * other, 0)).max() for sign in (1, -1))
        assert distance <= 1e-4 * np.abs(other).max()


def test_eigen_cam_s_sign_follows_the_activity() -> None:
    """One bright place in every channel is salient, and its mirror image in sign as well."""
    maps = torch.zeros(2, 2, 3, 3)
    maps[0, :, 1, 1] = 5.0
    maps[1, :, 1, 1] = -5.0
    for closed_form in (True, False):
        planes = saliency_maps(HandNet(), maps, [0, 0], "eigen_cam", closed_form=closed_form)
        assert [int(p.argmax()) for p in planes] == [4, 4]
        assert (np.delete(planes.reshape(2, 9), 4, axis=1) == 0).all()


def test_eigen_cam_of_flat_maps_is_empty() -> None:
    assert saliency_maps(HandNet(), torch.ones(1, 2, 3, 3), [0], "eigen_cam").max() == 0


def test_an_activation_in_place_behind_the_layer_changes_nothing() -> None:
    torch.manual_seed(0)
    net = HeadNet(pooled(nn.Linear(8, 3)), after=nn.ReLU(inplace=True)).eval()
    in_place = saliency_maps(net, films(), [0, 1, 2], closed_form=False)
    net.after = nn.ReLU()
    np.testing.assert_array_equal(
        in_place, saliency_maps(net, films(), [0, 1, 2], closed_form=False)
    )
    theirs = as_the_library_has_it(GradCAM, net, net.neck, films(), [0, 1, 2])
    assert_same_maps(in_place, theirs)


def test_cam_needs_mean_pooling() -> None:
    torch.manual_seed(0)
    net = HeadNet(nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 3))).eval()
    with pytest.raises(ValueError, match="cam needs a layer whose maps are pooled by their mean"):
        saliency_maps(net, films(), [0, 1, 2], "cam")


def test_the_backward_pass_ends_at_the_layer() -> None:
    net = linear_net()
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            seen.append(1)
            return gradient

    handle = net.body.register_forward_hook(lambda _m, _i, out: Watch.apply(out))
    saliency_maps(net, films(), [0, 1, 2], closed_form=False)
    handle.remove()
    assert not seen


@pytest.mark.parametrize("method", METHODS)
def test_maps_come_back_on_films_that_are_not_square(method: str) -> None:
    settings = PreprocessConfig(side=32, clip=False)
    sizes = [(100, 50), (40, 90)]
    pixels = [np.random.default_rng(0).random(s, dtype=np.float32) for s in sizes]
    batch = to_input(
        torch.from_numpy(np.stack([preprocess(p, settings) for p in pixels]))[:, None], settings
    )
    frames = [frame_of(size, settings) for size in sizes]
    net = linear_net()
    net.neck.bias.data += 2  # so that no method's map is empty
    net.head[-1].weight.data.abs_()
    planes = to_pixels(saliency_maps(net, batch, [1, 1], method), frames, sizes)
    assert [p.shape for p in planes] == sizes
    assert all(p.min() >= 0 and p.max() > 0 for p in planes)


def test_wrong_arguments_name_the_rule_and_the_fix() -> None:
    net = linear_net()
    with pytest.raises(ValueError, match=r"must be one of grad_cam, .*, cam, .*\. Got 'gradcam'"):
        saliency_maps(net, films(), [0, 1, 2], "gradcam")
    with pytest.raises(ValueError, match=r"one logit a film\. Got 1 for 3"):
        saliency_maps(net, films(), [0], "layercam")
    with pytest.raises(ValueError, match="must be a module of the model"):
        saliency_maps(net, films(), [0, 1, 2], layer=nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="must name its `saliency_layer`"):
        saliency_maps(nn.Conv2d(3, 3, 1), films(), [0, 1, 2])


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_gives_no_maps_is_refused(method: str) -> None:
    net = linear_net()
    with pytest.raises(ValueError, match=r"layer must .* give maps \(N, C, h, w\).*Linear gave"):
        saliency_maps(net, films(), [0, 1, 2], method, layer=net.head[-1])


def test_a_layer_that_runs_twice_or_never_is_refused() -> None:
    class Twice(HeadNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + super().forward(x.flip(3))

    torch.manual_seed(0)
    net = Twice(pooled(nn.Linear(8, 3))).eval()
    with pytest.raises(ValueError, match="must run once a forward pass"):
        saliency_maps(net, films(), [0, 1, 2])
    idle = linear_net()
    idle.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="Conv2d gave nothing: name another layer"):
        saliency_maps(idle, films(), [TARGET] * 3, layer=idle.spare)


STRIDES = {"fine": 2, "middle": 4, "coarse": 8}


class Fusion(nn.Module):
    """Three backbones of other resolutions and widths, run in another order than named."""

    def __init__(self, hidden: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.nets = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Conv2d(3, 4 + n, 3, stride, 1), nn.ReLU())
                for n, (name, stride) in enumerate(STRIDES.items())
            }
        )
        middle: list[nn.Module] = [nn.Linear(15, 9), nn.ReLU()] if hidden else []
        self.head = nn.Sequential(*middle, nn.Linear(9 if hidden else 15, 2))
        self.saliency_layers = {name: net[1] for name, net in self.nets.items()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = {name: self.nets[name](x).mean((2, 3)) for name in reversed(STRIDES)}
        return self.head(torch.cat([pooled[name] for name in STRIDES], dim=1))


class HandFusion(nn.Module):
    """Logit 1 is 4 · mean of the film + 1 · mean of its 2 × 2 means."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Identity(), nn.AvgPool2d(2)
        self.weights = nn.Parameter(torch.tensor([4.0, 1.0]))
        self.saliency_layers = {"fine": self.fine, "coarse": self.coarse}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine, coarse = (layer(x).mean((1, 2, 3)) for layer in (self.fine, self.coarse))
        return torch.stack([0 * fine, self.weights[0] * fine + self.weights[1] * coarse], dim=1)


def test_saliency_maps_worked_out_by_hand() -> None:
    film = torch.zeros(1, 1, 4, 4)
    film[0, 0, :2, :2] = 4.0
    maps = backbone_maps(HandFusion(), film, [1])
    np.testing.assert_allclose(maps["fine"][0, :2, :2], 4 * 4 / 16)  # gradient 4 / 16 a place
    np.testing.assert_allclose(maps["coarse"][0], [[4 / 4, 0], [0, 0]])  # gradient 1 / 4 a place
    (fused,) = saliency_maps(HandFusion(), film, [1])
    assert fused.shape == (4, 4)
    # each map's sum is its share of the logit: 4 · 1 + 1 · 1
    assert fused.sum() == pytest.approx(5.0)
    # the coarse map, enlarged (corner 1, then 3/4), keeps its sum of 1: before that it was 4
    assert fused[0, 0] == pytest.approx(1 + 1 / 4)
    assert fused[1, 1] == pytest.approx(1 + 0.75 * 0.75 / 4)


def test_a_backbone_that_says_nothing_adds_nothing() -> None:
    """The library would scale its map up to 1."""
    net = Fusion().eval()
    net.head[0].weight.data[:, 4:] *= 1e-4  # only the first backbone counts
    fused = saliency_maps(net, films(), [1, 1, 1])
    alone = backbone_maps(net, films(), [1, 1, 1])["fine"]
    np.testing.assert_allclose(fused, alone, atol=1e-3 * alone.max())


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    ("method", "theirs"), [("grad_cam", GradCAM), ("hirescam", HiResCAM), ("layercam", LayerCAM)]
)
def test_each_backbone_gets_its_own_map(method: str, theirs: type, hidden: bool) -> None:
    """As the library gives it for that layer alone, though the backbones run in another order."""
    net = Fusion(hidden).eval()
    maps = backbone_maps(net, films(), [0, 1, 1], method)
    assert list(maps) == list(STRIDES)
    for name, stride in STRIDES.items():
        assert maps[name].shape == (3, 16 // stride, 16 // stride)
        expected = as_the_library_has_it(theirs, net, net.nets[name][1], films(), [0, 1, 1])
        if expected.max() > 0:
            assert_same_maps(maps[name], expected)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_fused_and_saliency_maps_finds_the_backbones(method: str) -> None:
    net = Fusion().train()
    before = state_of(net)
    fused = saliency_maps(net, films(), [0, 1, 1], method)
    assert state_of(net) == before
    assert fused.shape == (3, 8, 8) and fused.dtype == np.float32
    assert fused.min() >= 0 and fused.max() > 0
    np.testing.assert_array_equal(
        fused, fuse(backbone_maps(net, films(), [0, 1, 1], method), method)
    )
    (alone,) = saliency_maps(net, films()[2:], [1], method)
    np.testing.assert_allclose(alone, fused[2], atol=1e-5 * fused.max())


def test_the_share_of_each_backbone_is_kept() -> None:
    net = Fusion().eval()
    maps = backbone_maps(net, films(), [1, 1, 1], "layercam")
    shares = sum(plane.sum((1, 2)) for plane in maps.values())
    np.testing.assert_allclose(
        saliency_maps(net, films(), [1, 1, 1], "layercam").sum((1, 2)), shares, rtol=1e-5
    )


def test_cam_of_a_backbone_is_weighed_by_the_head() -> None:
    net = Fusion().eval()
    maps = backbone_maps(net, films(), [1, 1, 1], "cam")
    with torch.no_grad():
        weights = net.head[0].weight[1, :4]
        expected = torch.einsum("c,nchw->nhw", weights, net.nets["fine"](films())).clamp_min(0)
    assert_same_maps(maps["fine"], expected.numpy())


def test_one_pass_of_a_fusion_net_gives_its_logits() -> None:
    net = Fusion().eval()
    ((logits, planes),) = look([net], films(), 1)
    assert planes is None
    np.testing.assert_array_equal(logits, net(films()).detach().numpy())


def test_no_film_gives_no_fused_map() -> None:
    assert len(saliency_maps(Fusion(), films()[:0], [])) == 0


def test_a_named_layer_of_another_net_is_refused() -> None:
    net = Fusion()
    net.saliency_layers["fine"] = nn.ReLU()
    with pytest.raises(ValueError, match="must be a module of the model"):
        saliency_maps(net, films(), [0, 0, 0])


def test_a_map_comes_back_where_it_was_on_a_film_that_is_not_square() -> None:
    frame = Frame.letterbox((100, 50), 20, centre=True)  # 20 × 10 of content, 5 px of air beside
    plane = np.zeros((20, 20), np.float32)
    plane[4, 6] = 1.0  # content row 4, column 1: film rows 20–25, columns 5–10
    plane[4, 0] = 9.0  # in the air: must vanish
    (pixels,) = to_pixels(plane[None], [frame], [(100, 50)])
    assert pixels.shape == (100, 50) and pixels.min() >= 0
    row, column = np.unravel_index(pixels.argmax(), pixels.shape)
    assert 20 <= row < 25 and 5 <= column < 10
    assert pixels.max() <= 1.0


def test_left_as_found_stops_parameter_gradients() -> None:
    net = linear_net()
    with left_as_found(net):
        assert not net(films()).requires_grad
    assert net(films()).requires_grad

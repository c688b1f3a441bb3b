"""Classifiers that were trained elsewhere: their names, their settings, and their answers."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_nets import SETTINGS, SIDE, SmallNet, resnet, small_onnx
from torch import nn

from classify.ensemble import Ensemble
from classify.members import NORMAL, OTHERS, TARGET, ForeignConfig, ModelSpec, settings_for
from classify.models.foreign import SigmoidMember, open_foreign

FILMS = [np.random.default_rng(n).random((90, 70), dtype=np.float32) for n in range(3)]


def opened(text: str, settings: str = "") -> Ensemble:
    spec = ModelSpec.parse(text)
    return open_foreign(spec, settings_for(spec, settings), "cpu")


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(-1).numpy()


@pytest.mark.parametrize(
    "text",
    [
        "torchxrayvision:densenet121-res224-all",
        "timm:resnet18@nets/a.safetensors",
        "torchvision:resnet18@a.pth",
        "onnx:nets/a.onnx",
        "python:my.nets:make",
    ],
)
def test_a_name_is_read_and_written(text: str) -> None:
    assert str(ModelSpec.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["resnet18", "keras:a", "timm:resnet18", "python:os", "python:a b:c", "onnx:", ""]
)
def test_what_names_no_model_is_told_what_does(text: str) -> None:
    with pytest.raises(ValueError, match=r"--model must be torchxrayvision:NAME, timm:NAME@WEI"):
        ModelSpec.parse(text)


def test_findings_become_the_words_of_tables() -> None:
    config = ForeignConfig(("No Finding", "", "Effusion"), words={"Effusion": "pleural effusion"})
    assert config.targets == {2: "pleural_effusion"} and config.normal == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("findings: [a, a]", "different names"),
        ("findings: [a]\nthresholds: {b: 0.5}", r"must be of the findings"),
        ("findings: [a]\nthresholds: {a: 1.5}", "between 0 and 1"),
        ("preprocessing: {size: 3}", "preprocessing must be of"),
        ("outputs: [a]", "outputs"),
        ("[1, 2]", "names and values"),
        ("findings: [a", "net.yaml"),
    ],
)
def test_settings_that_do_not_fit_name_their_file(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "net.yaml").write_text(text)
    with pytest.raises(ValueError, match=why) as caught:
        settings_for(ModelSpec.parse(f"onnx:{tmp_path}/net.onnx"), "")
    assert "net.yaml" in str(caught.value)


def test_outputs_without_names_are_asked_for(tmp_path: Path) -> None:
    _, path = resnet(tmp_path)
    path.with_suffix(".yaml").write_text("findings: [normal, viral]")
    with pytest.raises(ValueError, match=r"must name its 3 outputs.*Got 2: normal, viral.*yaml"):
        opened(f"torchvision:resnet18@{path}")


def test_a_threshold_moves_a_findings_half() -> None:
    member = SigmoidMember(nn.Identity(), 0, {0: 0.2, 1: 0.5, 2: 0.5})
    at, below = np.log(0.2 / 0.8), np.log(0.2 / 0.8) - 2
    logits = torch.tensor([[at, 1.0, -2.0], [below, 1.0, -2.0]])
    shares = member.rearrange(logits.double()).softmax(1).numpy()
    assert shares[0, TARGET] == pytest.approx(0.5)  # the classifier says it from here on
    target, strongest = 1 / (1 + np.exp(2)), 1 / (1 + np.exp(-1))  # of the other findings
    expected = [(1 - target) * (1 - strongest), target, (1 - target) * strongest]
    np.testing.assert_allclose(shares[1], expected, atol=1e-6)


def test_a_finding_is_answered_where_the_classifier_says_it_and_nowhere_else() -> None:
    member = SigmoidMember(nn.Identity(), 0, {0: 0.3, 1: 0.5})
    logits = 3 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    answered = member.rearrange(logits).argmax(1) == TARGET
    assert torch.equal(answered, logits[:, 0].sigmoid() >= 0.3) and answered.float().mean() > 0.3


def test_a_single_finding_knows_no_others() -> None:
    shares = SigmoidMember(nn.Identity(), 0, {0: 0.5}).rearrange(torch.tensor([[0.7]])).softmax(1)
    assert shares[0, TARGET].item() == pytest.approx(1 / (1 + np.exp(-0.7)))
    assert shares[0, OTHERS] < 1e-12 and shares[0, NORMAL] > 0.3


def test_torchvisions_answers_are_its_own(tmp_path: Path) -> None:
    net, path = resnet(tmp_path)
    members = opened(f"torchvision:resnet18@{path}")
    batch, (frame, *_) = members.prepare(FILMS)
    assert batch.shape == (3, 3, SIDE, SIDE) and frame.content_hw == (SIDE, SIDE)  # stretched
    with torch.no_grad():
        own = net(batch).softmax(1).numpy()
    found = softmax(members.predict(FILMS))
    assert members.targets == ("bacterial", "viral")
    np.testing.assert_allclose(found[:, 0], own[:, [0, 1, 2]], atol=1e-5)
    np.testing.assert_allclose(found[:, 1], own[:, [0, 2, 1]], atol=1e-5)
    assert members.foreign["layer"] == "layer4" and members.pools
    assert members.foreign["spec"].endswith("resnet18.safetensors")


def test_checkpoints_of_trainings_are_understood(tmp_path: Path) -> None:
    net, path = resnet(tmp_path)
    wrapped = {f"module.{k}": v for k, v in net.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "last.pth")
    other = opened(f"torchvision:resnet18@{tmp_path}/last.pth", str(path.with_suffix(".yaml")))
    np.testing.assert_array_equal(
        other.predict(FILMS), opened(f"torchvision:resnet18@{path}").predict(FILMS)
    )


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch owned",)


def test_a_file_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "net.pth", pickle_module=pickle)
    for text in ("torchvision:resnet18@net.pth", "torchxrayvision:densenet121-res224-all@net.pth"):
        with pytest.raises(ValueError, match="must hold tensors by name and nothing that runs"):
            opened(text)
    assert not Path("owned").exists()


def test_another_networks_weights_are_refused(tmp_path: Path) -> None:
    _, path = resnet(tmp_path)
    with pytest.raises(ValueError, match="every tensor of the network"):
        opened(f"torchvision:resnet34@{path}")


def test_timm_reads_classes_and_channels_off_the_file(tmp_path: Path) -> None:
    import timm

    net = timm.create_model("resnet10t", num_classes=4, in_chans=1)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    (tmp_path / "net.yaml").write_text(
        f"findings: [Mass, '', Hernia, Edema]\nlayer: layer3\npreprocessing: {{side: {SIDE}}}"
    )
    members = opened(f"timm:resnet10t@{tmp_path}/net.pth")
    assert members.targets == ("mass", "hernia", "edema")
    assert members.foreign["channels"] == 1 and members.foreign["answers"] == "sigmoid"
    assert members.look(members.prepare(FILMS)[0])[0][1].shape == (3, SIDE // 16, SIDE // 16)


def test_an_unknown_layer_is_told_the_last_ones(tmp_path: Path) -> None:
    _, path = resnet(tmp_path)
    path.with_suffix(".yaml").write_text(SETTINGS + "layer: fc\n")
    with pytest.raises(ValueError, match=r"layer must be one that gives maps.*'fc'.*layer4"):
        opened(f"torchvision:resnet18@{path}")


def test_a_transformer_has_no_layer_and_maps_by_occlusion(tmp_path: Path) -> None:
    import timm

    name = "vit_tiny_patch16_224"
    net = timm.create_model(name, num_classes=2, depth=3)
    torch.save(net.state_dict(), tmp_path / "net.pth")

    def make() -> nn.Module:
        return net

    from classify.models.foreign import ForeignNet

    config = ForeignConfig(("a", "b"))
    wrapped = ForeignNet(make(), config)
    wrapped.find_layer(config.settings_from({}))
    assert wrapped.saliency_layer is None and wrapped.layer_name == ""


@pytest.mark.parametrize("films", [0, 2])
def test_an_onnx_file_answers_as_its_network_does(tmp_path: Path, films: int) -> None:
    net, path = small_onnx(tmp_path, films=films)
    members = opened(f"onnx:{path}")
    assert members.settings.side == SIDE and members.foreign["channels"] == 1
    with torch.no_grad():
        own = net(members.prepare(FILMS)[0][:, :1]).softmax(1).numpy()
    np.testing.assert_allclose(softmax(members.predict(FILMS))[:, 0], own, atol=1e-5)
    assert not members.pools
    assert members.slow_maps("viral", members.prepare(FILMS)[0]).shape == (3, 8, 8)


def test_weights_beside_an_onnx_file_are_part_of_its_hash(tmp_path: Path) -> None:
    _, path = small_onnx(tmp_path)
    alone = opened(f"onnx:{path}").foreign["sha256"]
    Path(f"{path}.data").write_bytes(b"weights")
    first = opened(f"onnx:{path}").foreign["sha256"]
    Path(f"{path}.data").write_bytes(b"others")
    assert len({alone, first, opened(f"onnx:{path}").foreign["sha256"]}) == 3


def test_probabilities_in_logits_place_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from foreign_nets import SmallNet\nfrom torch import nn, manual_seed\n\n\n"
    code += "def make():\n    manual_seed(0)\n    return nn.Sequential(SmallNet(), nn.Softmax(1))\n"
    (tmp_path / "with_softmax.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "s.yaml").write_text(SETTINGS)
    with pytest.raises(ValueError, match="gives probabilities that add up to 1"):
        opened("python:with_softmax:make", f"{tmp_path}/s.yaml")
    (tmp_path / "s.yaml").write_text(SETTINGS + "gives: probabilities\n")
    members = opened("python:with_softmax:make", f"{tmp_path}/s.yaml")
    torch.manual_seed(0)
    net = SmallNet().eval()
    with torch.no_grad():
        own = net(members.prepare(FILMS)[0][:, :1]).softmax(1).numpy()
    np.testing.assert_allclose(softmax(members.predict(FILMS))[:, 0], own, atol=1e-5)


def test_ones_own_code_brings_its_own_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from foreign_nets import SmallNet\nfrom torch import manual_seed\n\n\n"
    code += "def make():\n    manual_seed(0)\n    return SmallNet(), lambda x: 1 - x\n"
    (tmp_path / "own_nets.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "s.yaml").write_text(f"findings: [a, b, c]\npreprocessing: {{side: {SIDE}}}\n")
    members = opened("python:own_nets:make", f"{tmp_path}/s.yaml")
    torch.manual_seed(0)
    net = SmallNet().eval()
    batch = members.prepare(FILMS)[0][:, :1]
    assert batch.min() >= 0 and batch.max() <= 1
    with torch.no_grad():
        own = net(1 - batch).sigmoid().numpy()
    found = softmax(members.predict(FILMS))[..., TARGET]
    np.testing.assert_allclose(found, own, atol=1e-5)
    again = opened("python:own_nets:make", f"{tmp_path}/s.yaml")
    assert again.weights == members.weights  # by the tensors, which the seed draws alike
    with pytest.raises(ValueError, match="PYTHONPATH"):
        opened("python:not_there:make")


@pytest.fixture(scope="module")
def xray_net() -> nn.Module:
    models = pytest.importorskip("torchxrayvision").models
    torch.manual_seed(0)
    return models.DenseNet(weights=None).eval()


def test_torchxrayvision_is_read_from_its_own_folder(
    xray_net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchxrayvision.models import model_urls

    monkeypatch.setenv("HOME", str(tmp_path))
    text, about = "torchxrayvision:densenet121-res224-all", model_urls["all"]
    place = tmp_path / ".torchxrayvision/models_data" / Path(about["weights_url"]).name
    with pytest.raises(FileNotFoundError, match="torchxrayvision keeps those of") as caught:
        opened(text)
    assert str(place) in str(caught.value) and "get_weights" in str(caught.value)
    place.parent.mkdir(parents=True)
    torch.save(xray_net, place)  # whole, as its files are
    members = opened(text)
    assert len(members) == 18 and "pleural_effusion" in members.targets
    batch, _ = members.prepare([np.array([[0, 0.5], [0.25, 1]], np.float32).repeat(112, 0)])
    assert batch.min() == -1024 and batch.max() == pytest.approx(1024)
    with torch.no_grad():
        own = xray_net(batch[:, :1] / 1000)  # random weights answer wildly to their range
        found = members.predict_prepared(batch / 1000)
    shift = np.log(np.array(about["op_threshs"])) - np.log1p(-np.array(about["op_threshs"]))
    expected = torch.sigmoid(own.double() - torch.from_numpy(shift)).numpy()
    np.testing.assert_allclose(softmax(found)[..., TARGET], expected, atol=1e-4)
    looks = members.look(batch)
    assert looks[0][1].shape == (1, 7, 7) and members.foreign["layer"] == "relu"


def test_a_file_of_an_old_torch_is_told_how_to_become_a_new_one(
    xray_net: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "old.pt"
    torch.save(xray_net, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"s\.save_file\(x\.models\.DenseNet"):
        opened(f"torchxrayvision:densenet121-res224-all@{path}")

"""A single network in the members' place: logits by hand, its own maps, run, audit and pictures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from audit_world import FakeDetector, FakeField, add_film, write_table
from pytorch_grad_cam import GradCAM
from saliency_nets import HeadNet, as_the_library_has_it, assert_same_maps, films, pooled
from torch import nn

from classify import run, show
from classify.audit import __main__ as audit
from classify.audit import auditor
from classify.audit.randomise import randomise, stages_of
from classify.audit.rows import read_audit
from classify.ensemble import Ensemble, build_net, member_maps, members_of, save_single
from classify.models.settings import BackboneConfig, FusionConfig
from classify.preprocess import PreprocessConfig
from classify.saliency import METHODS
from classify.saliency.hooks import backbone_layers
from classify.saliency.maps import Explained, explain, look, saliency_maps
from classify.tasks.settings import SingleConfig
from cxr.stats import softmax
from detect.finder import ThoraxFinder

THREE = ("normal", "bacterial", "viral")
TARGET, OTHERS = 1, 2


def net_of(classes: int, hidden: bool = False, seed: int = 0) -> HeadNet:
    """A tiny net with K logits; with `hidden` a ReLU in its head, so that no closed form fits."""
    torch.manual_seed(seed)
    middle: list[nn.Module] = [nn.Linear(8, 8), nn.ReLU()] if hidden else []
    return HeadNet(pooled(*middle, nn.Linear(8, classes))).eval()


def fusion_config(classes: tuple[str, ...] = THREE, **changes: object) -> SingleConfig:
    fusion = FusionConfig("2fc", ("baseline_cnn", "mobilenet_v2"), weights="none")
    return small_config(classes, kind="fusion", fusion=fusion, **changes)


def small_config(classes: tuple[str, ...] = THREE, **changes: object) -> SingleConfig:
    usual = PreprocessConfig(side=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    backbone = BackboneConfig("baseline_cnn", weights="none")
    settings = {"preprocess": usual, "backbone": backbone, "classes": classes, **changes}
    return SingleConfig(**settings)  # type: ignore[arg-type]


def write_single(folder: Path, config: SingleConfig) -> nn.Module:
    """A bundle of an untrained network in the folder; gives the network."""
    torch.manual_seed(0)
    net = build_net(config.network())
    save_single(folder / "single.safetensors", net, config)
    return net.eval()


def test_three_classes_are_weighed_by_hand() -> None:
    members = members_of(net_of(3), THREE)
    assert list(members) == ["bacterial", "viral"]
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    assert members["bacterial"].rearrange(logits).tolist() == [[1.0, 2.0, 4.0]]
    assert members["viral"].rearrange(logits).tolist() == [[1.0, 4.0, 2.0]]


def test_the_rest_is_the_log_of_the_summed_exponentials() -> None:
    classes = ("viral", "normal", "bacterial", "fungal")
    logits = torch.log(torch.tensor([[2.0, 1.0, 3.0, 4.0]]))
    members = members_of(net_of(4), classes)
    # P = 0.2, 0.1, 0.3, 0.4: of viral the others are 0.3 + 0.4
    shares = {name: softmax(m.rearrange(logits).numpy())[0] for name, m in members.items()}
    assert shares["viral"] == pytest.approx([0.1, 0.2, 0.7])
    assert shares["bacterial"] == pytest.approx([0.1, 0.3, 0.6])
    assert shares["fungal"] == pytest.approx([0.1, 0.4, 0.5])


def test_two_classes_leave_next_to_nothing_for_others() -> None:
    member = members_of(net_of(2), ("normal", "pneumonia"))["pneumonia"]
    logits = member.rearrange(torch.tensor([[0.0, np.log(3.0)], [5.0, 2.0]]))
    assert logits[:, OTHERS].tolist() == [-30.0, -28.0]
    assert softmax(logits.numpy())[0] == pytest.approx([0.25, 0.75, 0], abs=1e-12)


@pytest.mark.parametrize("classes", [("bacterial", "viral"), ("normal",)])
def test_a_network_without_normal_is_refused(classes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="must hold 'normal' and one more"):
        members_of(net_of(2), classes)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_members_map_is_that_of_the_bare_networks_logit(classes: int, hidden: bool) -> None:
    net = net_of(classes, hidden)
    names = ("normal", *(f"class{k}" for k in range(1, classes)))
    for k, member in enumerate(members_of(net, names).values(), start=1):
        ours = saliency_maps(member, films(), [TARGET] * 3)
        bare = as_the_library_has_it(GradCAM, net, net.neck, films(), [k] * 3)
        if bare.max() > 0:
            assert_same_maps(ours, bare)
        ((logits, planes),) = member_maps([member], films(), "grad_cam")
        np.testing.assert_allclose(planes, ours, atol=1e-6)
        np.testing.assert_allclose(logits, member(films()).detach(), atol=1e-5)


def test_maps_come_with_the_logits_in_one_pass_where_the_head_is_linear() -> None:
    member = members_of(net_of(2), ("normal", "pneumonia"))["pneumonia"]
    ((_, planes),) = look([member], films(), TARGET)
    assert planes is not None
    insisted = saliency_maps(member, films(), [TARGET] * 3, closed_form=True)
    by_hand = saliency_maps(member, films(), [TARGET] * 3, closed_form=False)
    assert_same_maps(insisted, by_hand)


def test_the_others_are_explained_too_and_a_fourth_logit_is_refused() -> None:
    member = members_of(net_of(4), ("normal", "a", "b", "c"))["a"]
    maps = saliency_maps(member, films(), [OTHERS] * 3)
    assert maps.shape == (3, 8, 8) and maps.max() > 0
    with pytest.raises(IndexError):
        saliency_maps(member, films(), [3] * 3)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("cam", "score_cam")])
def test_a_fusion_nets_member_has_its_fused_map(method: str) -> None:
    torch.manual_seed(0)
    net = build_net(fusion_config().network()).eval()
    member = members_of(net, THREE)["viral"]
    batch = films(2, 64, 64)
    assert backbone_layers(member) and not backbone_layers(net_of(2))
    ours = member_maps([member], batch, method)[0][1]
    np.testing.assert_allclose(ours, saliency_maps(net, batch, [2, 2], method), atol=1e-6)


def test_the_cascade_goes_through_the_networks_own_stages() -> None:
    net = net_of(3)
    member = members_of(net, THREE)["viral"]
    assert [s.name for s in stages_of(member)] == [s.name for s in stages_of(net)]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with randomise(member, stages_of(member)[:1]):
        assert not torch.equal(net.head[2].weight, before["head.2.weight"])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_folder_with_a_single_network_loads_and_the_network_runs_once(tmp_path: Path) -> None:
    net = write_single(tmp_path, small_config(crops="runs/crops"))
    ensemble = Ensemble.load(tmp_path, "cpu")
    assert ensemble.targets == ("bacterial", "viral") and ensemble.trained_on == "crops"
    assert len(set(ensemble.weights.values())) == 1
    batch, _ = ensemble.prepare([np.random.default_rng(0).random((70, 90), np.float32)])
    runs: list[int] = []
    ensemble.member("viral").net.register_forward_hook(lambda *_: runs.append(1))
    logits = ensemble.predict_prepared(batch)
    assert logits.shape == (1, 2, 3) and runs == [1]
    with torch.inference_mode():
        own = net(batch).numpy()[0]  # the bundle is of half precision
    assert logits[0, 1] == pytest.approx(own[[0, 2, 1]], abs=0.01)


def test_a_folder_of_a_network_without_normal_is_named(tmp_path: Path) -> None:
    write_single(tmp_path, small_config(("bacterial", "viral")))
    with pytest.raises(ValueError, match=r"single\.safetensors: classes.*bacterial, viral"):
        Ensemble.load(tmp_path)


def test_a_folder_of_folds_says_which_to_give(tmp_path: Path) -> None:
    (tmp_path / "fold0").mkdir()
    with pytest.raises(ValueError, match=r"it holds folds: give .*fold0"):
        Ensemble.load(tmp_path)


def test_explain_gives_the_answered_class_and_each_nets_share() -> None:
    torch.manual_seed(0)
    net = build_net(fusion_config().network()).eval()
    found = explain(net, films(2, 64, 64))
    assert found.classes == tuple(found.logits.argmax(1)) and found.logits.shape == (2, 3)
    assert list(found.nets) == ["baseline_cnn", "mobilenet_v2"]
    shares = sum(planes.sum((1, 2)) for planes in found.nets.values())
    assert found.maps.sum((1, 2)) == pytest.approx(shares, rel=1e-4)


@pytest.mark.parametrize("hidden", [False, True])
def test_explain_is_the_library_on_a_plain_net(hidden: bool) -> None:
    net = net_of(3, hidden)
    found = explain(net, films(), [2, 1, 0])
    assert found.classes == (2, 1, 0) and not found.nets
    assert_same_maps(found.maps, as_the_library_has_it(GradCAM, net, net.neck, films(), [2, 1, 0]))
    with pytest.raises(IndexError):
        explain(net, films(), [3, 0, 0])


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Three films with labels, a folder `trained` with a single network, an empty folder as home;
    stand-ins for detector and lung field."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ThoraxFinder, "load", lambda *_, **__: FakeDetector())
    monkeypatch.setattr(auditor.LungField, "load", lambda *_: FakeField())
    rows = []
    for n, (label, sublabel) in enumerate(
        [("normal", ""), ("pneumonia", "bacterial"), ("pneumonia", "viral")]
    ):
        add_film(f"kermany/f{n}.png", 0.1 + 0.2 * n, seed=n)
        rows.append({"image": f"images/kermany/f{n}.png", "label": label, "sublabel": sublabel})
    write_table(rows)
    return tmp_path


def test_run_and_audit_of_a_single_network(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_single(Path("trained"), small_config(crops="crops"))
    again = ["data/images", "--crops", "--out", "run", "--ensemble", "trained", "--jobs", "0"]
    assert run.main(again) == 0
    assert "holds no screener" in " ".join(capsys.readouterr().err.split())
    with Path("run/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["decision"] for r in rows] == ["read"] * 3
    assert all(float(r["bacterial.target"]) == float(r["viral.others"]) for r in rows)
    assert all(r["viral.normal"] == r["bacterial.normal"] for r in rows)
    page = Path("run/report.html").read_text()
    assert "viral" in page and "trained on films but" not in page
    assert (
        audit.main(
            [
                "run",
                "--data",
                "data",
                "--draws",
                "20",
                "--pdf",
                "false",
                "--jobs",
                "0",
                "--controls",
                "masked",
            ]
        )
        == 0
    )
    found = read_audit("run/audit/audit.csv")
    assert {(r.member, r.truth) for r in found} >= {("bacterial", 1), ("viral", 1), ("viral", 0)}
    assert all(
        r.probabilities is not None and sum(r.probabilities) == pytest.approx(1) for r in found
    )
    summary = json.loads(Path("run/audit/audit.json").read_text())
    assert summary["members"] == ["bacterial", "viral"]
    assert {r["member"] for r in summary["controls"]["masked"]} >= {"bacterial", "viral"}


def test_a_fusion_net_runs_and_is_audited(world: Path) -> None:
    write_single(Path("trained"), fusion_config())
    assert run.main(["data/images", "--out", "run", "--ensemble", "trained", "--jobs", "0"]) == 0
    assert audit.main(["run", "--draws", "20", "--pdf", "false", "--jobs", "0"]) == 0
    rows = read_audit("run/audit/audit.csv")
    assert {r.member for r in rows} == {"bacterial", "viral"} and len(rows) == 6


def test_two_classes_of_whole_films_run_and_are_audited(world: Path) -> None:
    write_single(Path("trained"), small_config(("normal", "pneumonia")))
    assert run.main(["data/images", "--out", "run", "--ensemble", "trained", "--jobs", "0"]) == 0
    assert audit.main(["run", "--draws", "20", "--pdf", "false", "--jobs", "0"]) == 0
    assert {r.member for r in read_audit("run/audit/audit.csv")} == {"pneumonia"}


def test_a_fusion_nets_maps_are_drawn_side_by_side(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_single(Path("trained"), fusion_config())
    Path("data/images/bad.png").write_bytes(b"no film")
    assert show.main(["data/images", "--folder", "trained", "--most", "0"]) == 0
    pictures = sorted(Path("trained/shown").glob("*.png"))
    assert [p.name[3:] for p in pictures] == ["_f0.png", "_f1.png", "_f2.png"]
    picture = cv2.imread(str(pictures[0]))
    assert picture.shape[1] == 4 * (show.TILE + 4) + 4  # film, fused and two nets
    assert "bad.png is left out" in " ".join(capsys.readouterr().err.split())


def test_another_class_can_be_shown_and_an_unknown_one_is_refused(world: Path) -> None:
    write_single(Path("trained"), small_config())
    again = ["data/images/kermany/f0.png", "--folder", "trained", "--out", "here", "--explain"]
    assert show.main([*again, "viral"]) == 0 and len(list(Path("here").iterdir())) == 1
    assert show.main([*again, "gout"]) == 2


def test_shares_and_answers_in_words() -> None:
    logits = np.log(np.array([[0.25, 0.75]]))
    nets = {"a": np.full((1, 2, 2), 3.0), "b": np.full((1, 1, 1), 4.0)}  # sums 12 and 4
    found = Explained(logits, (0,), nets["a"], nets)
    assert show.energy_shares(found, 0) == {"a": "75 % of the energy", "b": "25 % of the energy"}
    assert show.answer_line(found, 0, ("normal", "ill")) == "ill 0.75, shown is normal 0.25"

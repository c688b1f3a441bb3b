"""CXRNet as a single network: trained, judged by runs, and its own map measured by the audit."""

from __future__ import annotations

import json
from pathlib import Path

import compare_explanations
import numpy as np
import pytest
import torch
from audit_world import FakeDetector, FakeField, add_film, write_table

from classify import run, show
from classify.audit import __main__ as audit
from classify.audit import auditor
from classify.audit.randomise import stages_of
from classify.audit.rows import read_audit
from classify.ensemble import Ensemble, build_net, load_single, members_of, save_single
from classify.models.settings import BackboneConfig, CXRNetConfig
from classify.models.unets import build_cxrnet
from classify.preprocess import PreprocessConfig
from classify.saliency.maps import explanations, saliency_maps
from classify.single import main
from classify.tasks.settings import SingleConfig
from cxr.workdir import log
from detect.finder import ThoraxFinder

THREE = ("normal", "bacterial", "viral")
SMALL = """
classes: [normal, pneumonia]
sources: []
kind: cxrnet
cxrnet: { width: 2, depth: 2 }
preprocess: { side: 32 }
protocol: { parts: { train: 0.5, val: 0.25, test: 0.25 } }
balance: weights
batch: 4
device: cpu
draws: 10
optim: { epochs: 1, rate: 0.001, schedule: constant, patience: 0 }
"""


def write_net(folder: Path, kind: str) -> None:
    """A bundle of an untrained network of three classes."""
    torch.manual_seed(0)
    config = SingleConfig(
        classes=THREE,
        kind=kind,
        cxrnet=CXRNetConfig(width=2, depth=2),
        backbone=BackboneConfig("baseline_cnn", weights="none"),
        preprocess=PreprocessConfig(side=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    )
    save_single(folder / "single.safetensors", build_net(config.network()), config)


def test_it_is_trained_by_its_configuration(phantom_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    out = tmp_path / "out"
    words = ["--config", str(tmp_path / "small.yaml"), "--data", str(phantom_folder)]
    assert main([*words, "--out", str(out)]) == 0
    (row,) = json.loads((out / "history.json").read_text())
    assert row["train_loss"] == pytest.approx(row["train_answer"] + row["train_map"], rel=1e-4)
    net = load_single(out / "single.safetensors").net
    assert explanations(net, torch.zeros(1, 3, 32, 32)).shape == (1, 32, 32)
    assert Ensemble.load(out, "cpu").targets == ("pneumonia",)


def test_its_maps_are_methods_as_any_other() -> None:
    torch.manual_seed(0)
    net = build_cxrnet(CXRNetConfig(classes=3, width=4, depth=3, side=32)).eval()
    member, batch = members_of(net, THREE)["viral"], torch.randn(2, 3, 32, 32)
    drawn = saliency_maps(member, batch, [1, 1], "explanation")
    assert np.array_equal(drawn, explanations(net, batch))
    weighed = saliency_maps(member, batch, [1, 1], "explanation_class")
    assert np.allclose(weighed, explanations(net, batch, [2, 2]))
    assert not np.allclose(weighed, drawn)


def test_its_maps_are_drawn_beside_the_films(world: Path) -> None:
    write_net(Path("trained"), "cxrnet")
    words = ["data/images", "--folder", "trained", "--most", "1", "--method", "explanation"]
    assert show.main(words) == 0
    assert len(list(Path("trained/shown").glob("*.png"))) == 1
    write_net(Path("trained"), "backbone")
    assert show.main(words) == 2


def test_only_what_moves_the_answer_is_made_random() -> None:
    net = build_cxrnet(CXRNetConfig(width=2, depth=2, side=32))
    names = [stage.name for stage in stages_of(net)]
    assert names[:4] == ["head", "second", "explainer", "decoder"]
    assert "first_head" not in names and len(names) == 6  # and two stages of the first encoder


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Three films with labels, an empty folder as home; stand-ins for detector and lung field."""
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


def audit_again(*words: str) -> int:
    return audit.main(
        ["run", "--data", "data", "--draws", "20", "--pdf", "false", "--jobs", "0", *words]
    )


def test_the_audit_measures_its_own_map_beside_grad_cam(world: Path) -> None:
    write_net(Path("trained"), "cxrnet")
    assert run.main(["data/images", "--out", "run", "--ensemble", "trained", "--jobs", "0"]) == 0
    lifts = {}
    for method in ("grad_cam", "explanation", "explanation_class"):
        out = f"run/{method}"
        more = ["--against", "run/grad_cam", "--controls", "randomised", "--control_films", "2"]
        assert audit_again("--method", method, "--out", out, *more * (method == "explanation")) == 0
        rows = read_audit(f"{out}/audit.csv")
        assert {r.method for r in rows} == {method}
        lifts[method] = [r.value("lift") for r in rows if r.member == "viral"]
    assert len({str(values) for values in lifts.values()}) == 3
    summary = json.loads(Path("run/explanation/audit.json").read_text())
    assert summary["method"] == "the network's own map"
    assert {"lift", "pointing_hit"} <= {row["name"] for row in summary["metrics"]}
    stages = {row["stage"] for row in summary["controls"]["randomisation"]}
    assert {"head", "second", "explainer", "decoder", "another film"} <= stages
    assert summary["compare_arms"] == ["Grad-CAM", "the network's own map"]
    assert {row["metric"] for row in summary["compare"]} >= {"lift", "pointing_hit"}
    assert not {"accuracy", "auc"} & {row["metric"] for row in summary["compare"]}
    gap = next(r for r in summary["compare"] if (r["member"], r["metric"]) == ("viral", "lift"))
    pairs = zip(lifts["explanation"], lifts["grad_cam"], strict=True)
    gaps = [own - cam for own, cam in pairs if own is not None and cam is not None]
    assert gap["n"] == len(gaps) and gap["difference"] == pytest.approx(np.mean(gaps), abs=1e-4)
    assert "the network's own map − Grad-CAM" in Path("run/explanation/compare.md").read_text()
    assert "beside Grad-CAM" in Path("run/explanation/report.html").read_text()


def test_an_audit_of_the_same_map_is_not_held_against_it(
    world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_net(Path("trained"), "cxrnet")
    assert run.main(["data/images", "--out", "run", "--ensemble", "trained", "--jobs", "0"]) == 0
    assert audit_again("--out", "run/one") == 0
    log.addHandler(caplog.handler)
    try:
        assert audit_again("--out", "run/two", "--against", "run/one") == 2
    finally:
        log.removeHandler(caplog.handler)
    assert "or the audit of RUN by another --method" in caplog.text


def test_a_network_that_draws_no_map_is_not_measured_by_one(
    world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_net(Path("trained"), "backbone")
    assert run.main(["data/images", "--out", "run", "--ensemble", "trained", "--jobs", "0"]) == 0
    log.addHandler(caplog.handler)
    try:
        assert audit_again("--method", "explanation") == 2
    finally:
        log.removeHandler(caplog.handler)
    assert "must be for networks that draw a map" in caplog.text
    assert "Got bacterial, viral, without one" in caplog.text


def test_readers_choose_between_its_map_and_grad_cam(phantom_folder: Path, tmp_path: Path) -> None:
    write_net(tmp_path / "trained", "cxrnet")
    data, files = str(phantom_folder), []
    for method in ("grad_cam", "explanation_class"):
        files.append(str(tmp_path / f"{method}.safetensors"))
        words = [
            "--data",
            data,
            "--showing",
            "--most",
            "3",
            "--target",
            "viral",
            "--method",
            method,
            "--ensemble",
            str(tmp_path / "trained"),
            "--out",
            files[-1],
        ]
        assert compare_explanations.main(["maps", data + "/images", *words]) == 0
    likeness, page = tmp_path / "ssim.json", tmp_path / "ask.html"
    assert compare_explanations.main(["ssim", *files, "--out", str(likeness), "--draws", "20"]) == 0
    (pair,) = json.loads(likeness.read_text())["pairs"]
    assert (pair["first"], pair["second"]) == ("grad_cam", "explanation_class")
    assert pair["films"] and -1 <= pair["own"]["value"] < 1
    assert compare_explanations.main(["page", *files, "--out", str(page), "--repeats", "0"]) == 0
    key = json.loads((tmp_path / "ask.key.json").read_text())
    chosen = [
        {"trial": t["trial"], "choice": "right" if t["left"] == 0 else "left", "seconds": 1}
        for t in key["trials"]
    ]
    said = {"schema": "lungfirst.choices", "version": 1, "page": key["page"], "reader": "mk"}
    (tmp_path / "mk.json").write_text(json.dumps({**said, "choices": chosen}))
    found = tmp_path / "read.json"
    words = ["--key", str(tmp_path / "ask.key.json"), "--out", str(found), "--draws", "20"]
    assert compare_explanations.main(["read", str(tmp_path / "mk.json"), *words]) == 0
    reader = json.loads(found.read_text())["preferences"][0]
    assert reader["second"] == len(chosen) and reader["first"] == 0

"""The tools end to end, and that every configuration file can be read."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))


def test_the_demo_boxes_a_chest_and_refuses_a_leg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    pytest.importorskip(
        "data_store", reason="the sample films are missing: pip install -e .[samples]"
    )
    import demo

    monkeypatch.chdir(root)
    out = tmp_path / "demo"
    assert demo.main(["--out", str(out), "--picture", str(tmp_path / "way.png")]) == 0
    with (out / "predictions.csv").open() as file:
        rows = {Path(r["film"]).name: r for r in csv.DictReader(file)}
    assert rows["RG1_UNCI.dcm"]["status"] == rows["RG1_J2KI.dcm"]["status"] == "ok"
    assert rows["RG1_UNCI.dcm"]["decision"] == "read"  # it is full of masses
    assert rows["RG3_UNCI.dcm"]["decision"] == "not_read_by_model"
    assert "no frontal chest" in rows["RG3_UNCI.dcm"]["reason"]
    assert "RG3_UNCI.dcm" in (out / "report.html").read_text()
    assert (tmp_path / "way.png").read_bytes().startswith(b"\x89PNG")


ONE_THREAD = ["--threads", "1"]  # what the tests that follow have, too


def test_the_benchmark_gives_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    import benchmark
    from benching import networks, whole

    monkeypatch.chdir(root)
    ways = {name: whole.ENGINES[name] for name in ("torch", "ONNX Runtime")}
    monkeypatch.setattr(whole, "installed_engines", lambda *_: ways)
    monkeypatch.setattr(networks, "xrv_timers", lambda _films: [])  # PSPNet: seconds a film
    args = ["--parts", "[detection, engines, way, saliency]", "--films", "1"]
    args += ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "b")]
    args += ["--saliency_batch", "2", "--score_films", "0", *ONE_THREAD]
    assert benchmark.main(args) == 0
    found = json.loads((tmp_path / "b/benchmark.json").read_text())
    groups = [g for part in ("detection", "engines", "way", "saliency") for g in found[part]]
    rows = {row["what"]: row for group in groups for row in group}
    assert rows["torchvision fasterrcnn_mobilenet_v3_large_320_fpn"]["ratio"] == 1.0
    assert rows["lungfirst, detector and lung field"]["ms"] > 0
    assert rows["lungfirst, Grad-CAM of 2 films, closed form"]["ms"] > 0
    assert rows["detector, 8 at a time, ONNX Runtime"]["apart"] < 0.05
    assert rows["members of ensemble_crops, 1 at a time, ONNX Runtime"]["apart"] < 1e-4
    assert "## Each network by each engine" in (tmp_path / "b/speed.md").read_text()


def test_the_benchmark_runs_the_whole_way_and_compares_decisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    pytest.importorskip("data_store", reason="the sample films are missing")
    import benchmark
    from benching import whole
    from demo import sample_films

    monkeypatch.chdir(root)
    ways = {name: whole.ENGINES[name] for name in ("torch", "ONNX Runtime")}
    monkeypatch.setattr(whole, "installed_engines", lambda *_: ways)
    films = tmp_path / "films"
    films.mkdir()
    (films / "a.dcm").write_bytes(Path(sample_films()[0]).read_bytes())
    args = ["--parts", "[whole, growth, decisions]", "--data", str(tmp_path / "none")]
    args += ["--whole", "[0, 4]", "--growth", "[2, 4]", "--decide", f"[{films}]", *ONE_THREAD]
    assert benchmark.main([*args, "--out", str(tmp_path / "b")]) == 0
    found = json.loads((tmp_path / "b/benchmark.json").read_text())
    assert [row["films"] for row in found["whole"]] == ["4 dicom", "4 dicom"]
    assert [row["films"] for row in found["growth"]] == [2, 4]
    onnx = found["decisions"][1]
    assert onnx["films"] == 1 and not onnx["decision"] and onnx["logit"] < 1e-3
    text = (tmp_path / "b/speed.md").read_text()
    assert "## Many films" in text and "differs: none." in text
    assert (tmp_path / "b/growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (p.parent.name, p.name)
        for p in sorted(Path("configs").glob("*/*.yaml"))
        if p.parent.name != "experiments"
    ],  # these are read in test_tools_reproduce_experiment.py
)
def test_every_configuration_is_read(root: Path, stage: str, name: str) -> None:
    """Unknown keys and wrong types would be errors here, and not after hours of training."""
    from classify.screening.reading import read_tiers
    from classify.tasks.settings import FinetuneConfig, IscoreConfig, PretrainConfig, SingleConfig
    from classify.tasks.settings import TrainConfig as EnsembleConfig
    from cxr.cli import parse_config
    from detect.film_class import FilmClassConfig
    from detect.settings import FieldTrainConfig
    from detect.settings import TrainConfig as DetectConfig
    from detect.view.head import ViewTrainConfig

    path = root / "configs" / stage / name
    if name == "tiers.yaml":
        assert read_tiers(path)
        return
    kinds: dict[str, type[Any]] = {"detect": DetectConfig, "classify": EnsembleConfig}
    kinds |= dict.fromkeys(
        ("backbone.yaml", "causes_resnet50.yaml", "cxrnet.yaml", "fusion.yaml"), SingleConfig
    )
    kinds |= dict.fromkeys(("two_class.yaml", "two_class_resnet50.yaml"), FilmClassConfig)
    kinds |= {"iscore.yaml": IscoreConfig, "view.yaml": ViewTrainConfig}
    kinds |= {"unet_cbam.yaml": FinetuneConfig, "pretrain_unet_cbam.yaml": PretrainConfig}
    kind = FieldTrainConfig if name == "lungfield.yaml" else kinds.get(name, kinds[stage])
    assert parse_config(kind, ["--config", str(path)], "test").out.startswith("runs/")

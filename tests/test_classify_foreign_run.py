"""Classifiers that were trained elsewhere from end to end: run, audit, screener, comparison."""

from __future__ import annotations

import csv
import json
import pickle
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from audit_world import QUICK, add_film, make_world, said, summary, write_split, write_table
from foreign_nets import SETTINGS, SIDE, resnet, small_onnx

from classify import run
from classify.audit import __main__ as audit
from classify.audit.rows import read_audit
from classify.audit.side_by_side import Audited, compare_audits
from classify.screener import Screener
from classify.screening.guarantee import OperatingPoint
from classify.work import RunConfig, RunWork
from cxr.stats import auc

LABELS = [("normal", ""), ("pneumonia", "bacterial"), ("normal", ""), ("pneumonia", "viral")]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Four films with labels; detector and lung field are stand-ins."""
    made = make_world(monkeypatch, tmp_path)
    rows = []
    for n, (label, sublabel) in enumerate(LABELS):
        add_film(f"kermany/{n}.png", 0.1 + 0.12 * n, seed=n)
        image = f"images/kermany/{n}.png"
        rows.append({"image": image, "label": label, "sublabel": sublabel, "patient_id": f"p{n}"})
    write_table(rows)
    write_split({f"p{n}": "test" for n in range(4)})
    return made


def make_run(out: str, model: str, *more: str) -> int:
    words = ["data/images", "--crops", "--out", out, "--model", model, "--jobs", "0"]
    return run.main([*words, "--device", "cpu", *more])


def make_audit(name: str, *more: str) -> int:
    return audit.main([name, "--data", "data", "--device", "cpu", *QUICK, *more])


def predictions(out: str) -> list[dict[str, str]]:
    with Path(out, "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_resnet_is_audited_as_our_own_are(world: SimpleNamespace) -> None:
    _, path = resnet(Path())
    assert make_run("mine", f"torchvision:resnet18@{path}") == 0
    rows = predictions("mine")
    assert len(rows) == 4 and {r["decision"] for r in rows} == {"read"}
    made = json.loads(Path("mine/run.json").read_text())["settings"]
    assert made["model"]["spec"] == f"torchvision:resnet18@{path}"
    assert made["members"]["viral"] == made["model"]["sha256"]
    page = Path("mine/report.html").read_text()
    assert f"torchvision:resnet18@{path}" in page and made["model"]["sha256"][:12] in page
    assert (
        make_audit("mine", "--controls", "all", "--control_films", "1") == 0
    )  # the run says which model it was
    found, page = summary("mine/audit"), Path("mine/audit/report.html").read_text()
    assert found["method"] == "Grad-CAM" and found["settings"]["model"] == made["model"]
    assert f"torchvision:resnet18@{path}" in page
    stages = [r["stage"] for r in found["controls"]["randomisation"] if r["member"] == "viral"]
    assert stages[:2] == ["fc", "layer4"] and stages[-2:] == ["conv1", "another film"]
    assert {r["control"] for r in found["controls"]["masked"]} >= {"as is", "outside only"}


def test_a_run_goes_on_with_the_same_model_alone(
    world: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = resnet(Path())
    model = f"torchvision:resnet18@{path}"
    assert make_run("mine", model) == 0
    before = Path("mine/predictions.csv").read_bytes()
    assert make_run("mine", model) == 0 and Path("mine/predictions.csv").read_bytes() == before
    path.with_suffix(".yaml").write_text(SETTINGS.replace("stretch", "pad"))
    assert make_run("mine", model) == 2 and "model" in said(capsys)
    assert make_audit("mine") == 0  # with the settings of the run, whatever lies there now
    torch.manual_seed(9)
    from safetensors.torch import load_file, save_file

    save_file({k: v + 1 if k == "fc.bias" else v for k, v in load_file(path).items()}, path)
    assert make_audit("mine", "--out", "other") == 2 and "other members" in said(capsys)


def test_a_worker_builds_the_model_by_its_name(world: SimpleNamespace) -> None:
    _, path = small_onnx(Path())
    films = sorted(Path("data/images/kermany").glob("*.png"))
    config = RunConfig(films=("data/images",), model=f"onnx:{path}", device="cpu", saliency=False)
    make = pickle.loads(pickle.dumps(partial(RunWork.on_worker, config, 0.5)))
    words = ["data/images", "--out", "here", "--model", config.model, "--device", "cpu"]
    assert run.main([*words, "--saliency", "false", "--jobs", "0"]) == 0
    here = {r["film"]: float(r["viral.target"]) for r in predictions("here")}
    there = {item.film: float(item.logits[1, 1]) for item in make()(films)}
    assert there == pytest.approx(here) and len(there) == 4


def test_an_onnx_file_is_audited_by_occlusion(world: SimpleNamespace) -> None:
    _, path = small_onnx(Path())
    assert make_run("onnx", f"onnx:{path}") == 0
    assert "Occlusion, " in Path("onnx/report.html").read_text()
    assert make_audit("onnx", "--controls", "all", "--control_films", "2") == 0
    found = summary("onnx/audit")
    assert found["method"] == "occlusion" and found["controls"]["masked"]
    assert not found["controls"]["randomisation"] and found["controls"]["road"]
    assert any("weights made random is left out" in c for c in found["cautions"])
    assert {r.method for r in read_audit("onnx/audit/audit.csv")} == {"occlusion"}


def test_torchxrayvision_with_random_weights_runs_and_is_audited(world: SimpleNamespace) -> None:
    models = pytest.importorskip("torchxrayvision").models
    torch.manual_seed(0)
    torch.save(models.DenseNet(weights=None).state_dict(), "net.pt")
    Path("net.yaml").write_text(f"preprocessing: {{side: {SIDE}}}")
    model = "torchxrayvision:densenet121-res224-all@net.pt"
    assert make_run("xrv", model) == 0 and len(predictions("xrv")) == 4
    assert make_audit("xrv", "--controls", "masked") == 0
    rows, found = read_audit("xrv/audit/audit.csv"), summary("xrv/audit")
    assert len(rows) == 4 * 18 and {r.method for r in rows} == {"grad_cam"}
    truth = {r.film: r.truth for r in rows if r.member == "pneumonia"}
    assert sorted(truth.values()) == [0, 0, 1, 1]  # pneumonia is its word and the table's
    assert found["settings"]["model"]["spec"] == model
    assert "pleural_effusion" in found["members"] and found["controls"]["masked"]


def test_a_screener_is_fitted_for_a_model_and_for_no_other(
    world: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = resnet(Path())
    model = f"torchvision:resnet18@{path}"
    assert make_run("mine", model) == 0
    members = json.loads(Path("mine/run.json").read_text())["settings"]["members"]
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC
    from skops.io import dumps

    rng = np.random.default_rng(0)
    svm = make_pipeline(StandardScaler(), SVC(C=1.0, gamma=0.1))
    fitted = CalibratedClassifierCV(svm, ensemble=False, cv=2)
    fitted.fit(rng.normal(size=(40, 6)), np.arange(40) % 2)
    point = OperatingPoint(0.99, 0.99, 0.95, True, 0.99, 300, 0, 299, 0.4)
    targets = ("bacterial", "viral")
    meta = {"members": members}
    data = dumps(fitted.set_params(cv=None))
    Path("own").mkdir()
    screener = Screener(None, targets, point, meta, data=data)  # type: ignore[arg-type]
    screener.save("own")
    assert make_run("cleared", model, "--ensemble", "own") == 0
    assert "definitely_normal" in {r["decision"] for r in predictions("cleared")}
    Screener(None, targets, point, {}, data=data).save("own")  # type: ignore[arg-type]
    assert make_run("other", model, "--ensemble", "own") == 2
    assert "fitted on this model's own answers" in said(capsys)


def test_models_stand_beside_each_other(
    world: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = resnet(Path())
    _, other = small_onnx(Path())
    for name, model in (("mine", f"torchvision:resnet18@{path}"), ("file", f"onnx:{other}")):
        assert make_run(name, model, "--saliency", "false") == 0
        assert make_audit(name, "--controls", "masked") == 0
    assert audit.main(["compare", "mine", "file", "--out", "both", "--draws", "50"]) == 0
    found = json.loads(Path("both/compare.json").read_text())
    rows = {(r["model"], r["member"]): r for r in found["rows"]}
    questions = {m for _, m in rows} - {"bacterial", "viral", "all members"}
    assert "normal / pneumonia, kermany" in questions
    assert len(rows) == 6 + 2 * len(questions) and {r["films"] for r in rows.values()} == {4}
    own = [r for r in read_audit("mine/audit/audit.csv") if r.member == "viral"]
    expected = auc([r.value("p_target") for r in own], [r.truth == 1 for r in own])
    assert rows["mine", "viral"]["auc"] == pytest.approx(expected)
    assert rows["mine", "viral"]["accuracy"] == pytest.approx(np.mean([r.right for r in own]))
    lifts = [r.value("lift") for r in own if r.value("lift") is not None]
    assert rows["mine", "viral"]["lift"] == pytest.approx(np.mean(lifts))
    assert rows["file", "all members"]["masked outside only"] is not None
    page = Path("both/compare.html").read_text()
    assert "<svg" in page and "lungs blacked out" in page and "different methods" in page
    assert "| mine |" in Path("both/compare.md").read_text()
    assert audit.main(["compare", "mine", "data"]) == 2 and "no finished audit" in said(capsys)


def test_only_films_that_all_judged_are_compared(world: SimpleNamespace) -> None:
    _, path = resnet(Path())
    assert make_run("mine", f"torchvision:resnet18@{path}", "--saliency", "false") == 0
    assert make_audit("mine") == 0
    one = Audited.read(Path("mine"), "", "one")
    film = min(one.films)
    fewer = {key: row for key, row in one.rows.items() if key[0] != film}
    rows = compare_audits([one, Audited("two", fewer, one.summary)], 20)
    assert {r["films"] for r in rows} == {3}
    first, second = (next(r for r in rows if r["model"] == name) for name in ("one", "two"))
    assert first["lift"] == second["lift"]


def test_a_model_that_is_none_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["films", "--model", "resnet18"])
    assert ended.value.code == 2 and "--model must be" in said(capsys)
    with pytest.raises(SystemExit):
        run.main(["films", "--model_settings", "a.yaml"])
    assert "must stand beside --model" in said(capsys)
    assert run.main(["films", "--model", "onnx:nowhere.onnx"]) in (1, 2)

"""tools/export.py: networks without torch answer as torch does, or are not written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import export
import numpy as np
import pytest
from test_classify_ensemble import write_member
from test_classify_ensemble_single import fusion_config, small_config, write_single

from classify.ensemble import Ensemble
from classify.exported import ExportedEnsemble, open_ensemble
from cxr.engines import onnx_path

FILMS = [np.random.default_rng(n).random((80 + n, 60), np.float32) for n in range(3)]


def exported(folder: Path) -> Path:
    for bundle in sorted(folder.glob("*.safetensors")):
        differs, most = export.export(bundle, FILMS)
        assert differs <= most
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network that answers for two targets, with its exported file."""
    folder = tmp_path_factory.mktemp("shared")
    write_member(folder, "members", 0, targets=["viral", "bacterial"])
    return exported(folder)


@pytest.fixture(scope="module")
def fusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fusion")
    write_single(folder, fusion_config(("normal", "a", "b", "c")))
    return exported(folder)


def assert_same_answers(folder: Path) -> None:
    ours, theirs = ExportedEnsemble.load(folder), Ensemble.load(folder, "cpu")
    for name in ("targets", "weights", "trained_on", "settings", "pools"):
        assert getattr(ours, name) == getattr(theirs, name), name
    (batch, frames), (input_, expected) = ours.prepare(FILMS), theirs.prepare(FILMS)
    assert frames == expected
    logits, pooled = ours.predict_pooled(batch)
    wanted = theirs.predict_pooled(input_)
    np.testing.assert_allclose(logits, wanted[0], atol=1e-4)
    np.testing.assert_allclose(pooled, wanted[1], atol=1e-4)
    np.testing.assert_allclose(ours.predict(FILMS), logits, atol=1e-6)
    (looks, seen), (others, known) = ours.look_pooled(batch), theirs.look_pooled(input_)
    np.testing.assert_allclose(seen, known, atol=1e-4)
    for (own, plane), (right, other) in zip(looks, others, strict=True):
        np.testing.assert_allclose(own, right, atol=1e-4)
        assert (plane is None) == (other is None)
        if plane is not None:
            np.testing.assert_allclose(plane, other, atol=1e-5)


def test_a_network_of_several_targets_answers_as_torch_does(shared: Path) -> None:
    assert_same_answers(shared)
    looks, _ = ExportedEnsemble.load(shared).look_pooled(np.zeros((1, 1, 64, 64), np.float32))
    assert all(plane is not None for _, plane in looks)


def test_members_of_their_own_keep_the_order_of_their_training(tmp_path: Path) -> None:
    write_member(tmp_path, "viral", 0)
    write_member(tmp_path, "bacterial", 1)
    assert_same_answers(exported(tmp_path))


def test_a_single_network_takes_the_members_place(tmp_path: Path) -> None:
    write_single(tmp_path, small_config())
    assert_same_answers(exported(tmp_path))


def test_a_network_of_several_backbones_has_no_maps_of_its_own(fusion: Path) -> None:
    assert_same_answers(fusion)
    members = ExportedEnsemble.load(fusion)
    looks, _ = members.look_pooled(members.prepare(FILMS)[0])
    assert [plane for _, plane in looks] == [None] * 3
    with pytest.raises(ValueError, match=r"--engine torch.*--saliency false"):
        members.slow_maps("a", members.prepare(FILMS)[0])


def test_maps_that_need_torch_get_it(fusion: Path) -> None:
    assert isinstance(open_ensemble(fusion, "auto", "fp32", "cpu", maps=True), Ensemble)
    assert isinstance(open_ensemble(fusion, "auto", "fp32", "cpu"), ExportedEnsemble)


def test_no_film_is_no_answer(shared: Path) -> None:
    assert ExportedEnsemble.load(shared).predict([]).shape == (0, 2, 3)


def test_a_network_that_answers_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_member(tmp_path, "viral", 0)
    monkeypatch.setattr("exporting.to_onnx", lambda *_: b"")
    monkeypatch.setattr(export, "OnnxNet", lambda *_, **__: None)
    monkeypatch.setattr(export, "_compare_members", lambda *_: 0.02)
    assert export.main([str(tmp_path)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "It differs by 0.02, so nothing was written" in told
    assert not list(tmp_path.glob("*.onnx"))


def test_a_folder_without_networks_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(tmp_path)]) == 2
    assert "bundles must be, or hold, a bundle of kind" in capsys.readouterr().err


_WITHOUT_TORCH = """
import importlib.util, runpy, sys
for name in ("torch", "torchvision", "timm", "lightning", "segmentation_models_pytorch"):
    sys.modules[name] = None
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else found(name, *rest)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_the_shipped_networks_judge_films_without_torch(
    root: Path, phantom_folder: Path, tmp_path: Path, engine: str
) -> None:
    words = ["classify.run", str(phantom_folder), "--crops", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-c", _WITHOUT_TORCH, *words, "--engine", engine, "--jobs", "0"]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    told = " ".join((ran.stdout + ran.stderr).split())
    if engine == "torch":
        assert ran.returncode == 2 and "engine torch is not installed" in told
    else:
        assert ran.returncode == 0, told
        assert (tmp_path / "run/report.html").exists()
    assert onnx_path(root / "weights/lungfield.safetensors").exists()

"""cxr/engines.py: which engine runs a network, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exporting import to_onnx
from torch import nn

from cxr import engines
from cxr.bundle import save_bundle
from cxr.engines import SCHEMA, VERSION, OnnxNet, onnx_path, pick_engine, read_meta
from cxr.workdir import sha256_file


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with its network beside it: x → 2 x + 0.5, weights as fp16."""
    bundle = tmp_path_factory.mktemp("net") / "net.safetensors"
    net = nn.Conv2d(1, 128, 1)
    with torch.no_grad():
        net.weight.fill_(2.0)
        net.bias.fill_(0.5)
    save_bundle(bundle, "member", dict(net.state_dict()))
    meta = {"schema": SCHEMA, "version": VERSION, "outputs": ["y"]}
    meta["bundle_sha256"] = sha256_file(bundle)
    onnx_path(bundle).write_bytes(to_onnx(net, torch.zeros(2, 1, 4, 4), ["y"], meta))
    return bundle


def copied(exported: Path, folder: Path) -> Path:
    for path in (exported, onnx_path(exported)):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / exported.name


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize("films", [1, 3])
def test_a_network_answers_batches_of_any_size(exported: Path, engine: str, films: int) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    x = np.random.default_rng(0).random((films, 1, 4, 4), np.float32)
    found = OnnxNet(exported, engine).run(x)
    np.testing.assert_allclose(found["y"], np.repeat(2 * x + 0.5, 128, 1), atol=1e-6)


def test_weights_are_stored_as_fp16_and_nothing_of_the_machine(exported: Path) -> None:
    proto = onnx.load(onnx_path(exported))
    kinds = {t.name: t.data_type for t in proto.graph.initializer if "half" in t.name}
    assert len(kinds) == 2 and set(kinds.values()) == {onnx.TensorProto.FLOAT16}
    text = onnx_path(exported).read_bytes()
    assert b".py" not in text and str(Path.home()).encode() not in text
    assert proto.producer_name == "lungfirst"


def test_metadata_are_read_without_the_graph(exported: Path) -> None:
    assert read_meta(onnx_path(exported))["bundle_sha256"] == sha256_file(exported)


@pytest.mark.parametrize("kept", [0, 1, 40, 0.5, -1])
def test_a_torn_file_is_refused(exported: Path, tmp_path: Path, kept: float) -> None:
    bundle = copied(exported, tmp_path)
    data = onnx_path(bundle).read_bytes()
    onnx_path(bundle).write_bytes(data[: int(kept * len(data)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(ValueError, match=r"net\.onnx"):
        OnnxNet(bundle)


def test_text_is_no_network(exported: Path, tmp_path: Path) -> None:
    bundle = copied(exported, tmp_path)
    onnx_path(bundle).write_bytes(b"PK\x03\x04 something else altogether, and long enough" * 9)
    with pytest.raises(ValueError, match="must be an ONNX file"):
        OnnxNet(bundle)


def test_a_network_without_metadata_is_refused(exported: Path, tmp_path: Path) -> None:
    bundle = copied(exported, tmp_path)
    proto = onnx.load(onnx_path(bundle))
    del proto.metadata_props[:]
    onnx.save(proto, onnx_path(bundle))
    with pytest.raises(ValueError, match=r"must be a network of tools/export\.py"):
        OnnxNet(bundle)


def test_a_network_of_another_bundle_is_refused(exported: Path, tmp_path: Path) -> None:
    bundle = copied(exported, tmp_path)
    save_bundle(bundle, "member", {"weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"made from another one.*tools/export\.py"):
        OnnxNet(bundle)
    with pytest.raises(FileNotFoundError, match=r"tools/export\.py"):
        OnnxNet(tmp_path / "other.safetensors")


def test_auto_takes_what_was_exported(exported: Path, tmp_path: Path) -> None:
    assert pick_engine("auto", [exported], "cpu") == "onnx"
    assert pick_engine("auto", [exported, tmp_path / "b.safetensors"], "cpu") == "torch"
    assert pick_engine("auto", [exported], "cuda") == "torch"
    assert pick_engine("auto", [exported], "cpu", bf16=True) == "torch"


def test_auto_leaves_a_network_of_another_bundle(
    exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = copied(exported, tmp_path)
    save_bundle(bundle, "member", {"weight": torch.ones(1)})
    assert pick_engine("auto", [bundle], "cpu") == "torch"
    assert "torch runs instead" in caplog.text


@pytest.mark.parametrize(
    ("engine", "device", "bf16", "told"),
    [
        ("tensorrt", "cpu", False, "engine must be one of auto, onnx, openvino, torch"),
        ("onnx", "cpu", True, "bf16 must run by openvino or torch"),
        ("onnx", "cuda", False, "runs on the processor"),
    ],
)
def test_what_cannot_be_had_is_told(engine: str, device: str, bf16: bool, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        pick_engine(engine, [], device, bf16)


def test_an_engine_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "is_there", lambda _engine: False)
    with pytest.raises(ImportError, match="engine torch is not installed"):
        pick_engine("auto", [], "cpu")
    with pytest.raises(ImportError, match="pip install openvino"):
        pick_engine("openvino", [], "cpu")

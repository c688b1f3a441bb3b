"""cxr.bundle: weights and what is needed to use them, in one safe file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cxr.bundle import bundle_kind, load_bundle, save_bundle
from cxr.workdir import sha256_file


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"w": torch.randn(3, 5), "count": torch.tensor(2**40), "empty": torch.zeros(0, 4)}


def test_bundle_reads_back_with_its_meta_and_hash(tmp_path: Path, tensors) -> None:
    path = save_bundle(tmp_path / "a.safetensors", "thorax", tensors, classes=["thorax"], side=320)
    bundle = load_bundle(path, "thorax")
    assert bundle.kind == "thorax" and bundle.sha256 == sha256_file(path)
    assert bundle.meta["classes"] == ["thorax"] and bundle.meta["side"] == 320
    assert set(bundle.tensors) == set(tensors)
    assert bundle.tensors["count"].item() == 2**40  # a counter of batch norm must not be rounded
    assert bundle.tensors["w"].dtype == torch.float32
    assert torch.equal(bundle.tensors["w"], tensors["w"].half().float())


def test_a_kind_is_told_by_the_metadata_alone(tmp_path: Path, tensors) -> None:
    path = save_bundle(tmp_path / "a.safetensors", "single", tensors)
    assert bundle_kind(path) == "single"
    save_file({"w": torch.zeros(2)}, tmp_path / "bare.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    others = ("bare.safetensors", "torn.safetensors", "missing.safetensors")
    assert [bundle_kind(tmp_path / name) for name in others] == ["", "", ""]


def test_full_precision_is_kept_when_wanted(tmp_path: Path, tensors) -> None:
    path = save_bundle(tmp_path / "a.safetensors", "thorax", tensors, half=False)
    assert torch.equal(load_bundle(path, "thorax").tensors["w"], tensors["w"])


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    big = {"w": torch.randn(200, 200)}
    sizes = [save_bundle(tmp_path / f"{h}", "k", big, half=h).stat().st_size for h in (True, False)]
    assert sizes[0] < 0.55 * sizes[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])  # 1e6 overflows fp16
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        save_bundle(tmp_path / "a", "k", {"w": torch.tensor([1.0, value])})
    assert not (tmp_path / "a").exists()


def test_meta_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_bundle(tmp_path / "a", "k", {"w": torch.zeros(1)}, iou=float("nan"))


def test_another_kind_is_refused(tmp_path: Path, tensors) -> None:
    path = save_bundle(tmp_path / "a.safetensors", "scxnn", tensors)
    with pytest.raises(ValueError, match="of kind 'thorax'"):
        load_bundle(path, "thorax")


@pytest.mark.parametrize(
    "meta", [None, {"lungfirst": "[]"}, {"lungfirst": "{"}, {"lungfirst": '{"kind": "thorax"}'}]
)
def test_other_safetensors_are_refused(tmp_path: Path, meta: dict[str, str] | None) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors", metadata=meta)
    with pytest.raises(ValueError, match="must be a lungfirst bundle"):
        load_bundle(tmp_path / "a.safetensors", "thorax")


def test_another_version_is_refused(tmp_path: Path) -> None:
    text = json.dumps({"schema": "lungfirst.bundle", "version": 2, "kind": "thorax"})
    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"lungfirst": text})
    with pytest.raises(ValueError, match=r"version 1\. Got 2"):
        load_bundle(tmp_path / "a.safetensors", "thorax")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickle in a zip", b"\x80\x04N."])
def test_what_is_no_safetensors_file_is_never_unpickled(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match="must be a safetensors file"):
        load_bundle(tmp_path / "a.pt", "thorax")


def test_missing_weights_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train them, or give another file"):
        load_bundle(tmp_path / "none.safetensors", "thorax")

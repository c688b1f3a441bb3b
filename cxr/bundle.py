"""A trained model as one safetensors file: weights, and all that is needed to use them rightly.

Preprocessing belongs to the weights: the metadata holds the kind, network configuration, classes,
preprocessing, operating point, what it was trained on, its figures with their command, licence.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from cxr.workdir import sha256_file, write_atomic

if TYPE_CHECKING:
    import torch

SCHEMA, VERSION = "lungfirst.bundle", 1


@dataclass(frozen=True)
class Bundle:
    """Weights by name (float32 on the CPU), metadata, and the file's SHA-256."""

    kind: str
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]
    sha256: str
    path: str


def save_bundle(
    path: str | Path, kind: str, tensors: dict[str, torch.Tensor], half: bool = True, **meta: Any
) -> Path:
    """Write a bundle atomically; floating weights as fp16 when `half` (integers stay)."""
    import torch  # late: to name a kind of bundle must not pay for it
    from safetensors.torch import save as save_tensors

    ready = {
        name: (t.half() if half and t.is_floating_point() else t).detach().cpu().contiguous()
        for name, t in tensors.items()
    }
    broken = [n for n, t in ready.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if broken:
        raise ValueError(f"tensors of a bundle must be finite. Got inf or nan in {broken[0]}.")
    text = json.dumps({"schema": SCHEMA, "version": VERSION, "kind": kind, **meta}, allow_nan=False)
    return write_atomic(path, save_tensors(ready, metadata={"lungfirst": text}))


def load_bundle(path: str | Path, kind: str) -> Bundle:
    """Read a bundle of that kind; raises FileNotFoundError or ValueError with the remedy."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such weights. Run from the project's folder, train "
            "them, or give another file."
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("lungfirst", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file. {error}") from error
    meta = _parse(text)
    if meta.get("schema") != SCHEMA or meta.get("kind") != kind:
        got = meta.get("kind")
        raise ValueError(f"{path} must be a lungfirst bundle of kind {kind!r}. Got {got!r}.")
    if meta.get("version") != VERSION:
        got = meta.get("version")
        raise ValueError(f"{path} must be a bundle of version {VERSION}. Got {got!r}: train anew.")
    floats = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    return Bundle(kind, floats, meta, sha256_file(path), str(path))


def bundle_kind(path: str | Path) -> str:
    """The kind of a bundle by its metadata alone; "" for a file that is no bundle."""
    try:
        with safe_open(Path(path), framework="pt") as file:
            meta = _parse((file.metadata() or {}).get("lungfirst", ""))
    except (OSError, SafetensorError):
        return ""
    return str(meta.get("kind", "")) if meta.get("schema") == SCHEMA else ""


def _parse(text: str) -> dict[str, Any]:
    """The metadata; empty for text that is none."""
    try:
        meta = json.loads(text) if text else {}
    except ValueError:
        return {}
    return meta if isinstance(meta, dict) else {}

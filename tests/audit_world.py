"""A small world for audits: tiny members, a lung field, a detector, films with labels and masks."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import draw_phantom
from saliency_nets import HeadNet, pooled
from torch import nn

from classify import audit, run
from classify.ensemble import Ensemble
from classify.preprocess import PreprocessConfig
from cxr.split import Split
from detect.predict import ThoraxBox

TARGETS = ("bacterial", "viral")
COLUMNS = ("image", "mask", "source", "patient_id", "label", "sublabel", "licence")


class FakeField:
    """Two upright boxes in every film, in fractions of its sides; `stop_after` films Ctrl-C comes,
    and a film without any bright pixel has no lungs."""

    def __init__(self) -> None:
        self.weights = {"lungfield.safetensors": "f" * 64}
        self.seen: list[tuple[int, int]] = []
        self.stop_after: int | None = None

    def segment(self, films: Sequence[np.ndarray]) -> list[np.ndarray]:
        out = []
        for film in films:
            if self.stop_after is not None and len(self.seen) >= self.stop_after:
                raise KeyboardInterrupt
            self.seen.append(film.shape)
            lungs = lungs_of(film.shape[0], film.shape[1])
            out.append(lungs.astype(np.float32) * (0.9 if film.max() > 0.05 else 0.1))
        return out


class FakeDetector:
    """Boxes the lungs of `FakeField`; a film twice as wide as high is none, one twice as high as
    wide is uncertain."""

    def __init__(self) -> None:
        self.weights = {"thorax.safetensors": "d" * 64}
        self.seen = 0

    def predict(self, films: Sequence[np.ndarray]) -> list[ThoraxBox]:
        return [self._box(*film.shape) for film in films]

    def _box(self, height: int, width: int) -> ThoraxBox:
        self.seen += 1
        if width > 1.5 * height:
            return ThoraxBox(None, 0.1, "no_thorax", "no thorax found: score 0.10")
        if height > 1.5 * width:
            whole = (0.0, 0.0, float(width), float(height))
            return ThoraxBox(whole, 0.4, "fallback", "uncertain box: whole film used")
        box = (width * 0.2, height * 0.2, width * 0.8, height * 0.8)
        return ThoraxBox(box, 0.99, "ok")


def lungs_of(height: int, width: int) -> np.ndarray:
    """(H, W) bool: the lungs that `FakeField` finds in every film."""
    lungs = np.zeros((height, width), bool)
    rows = slice(round(0.2 * height), round(0.8 * height))
    for left, right in ((0.2, 0.45), (0.55, 0.8)):
        lungs[rows, round(left * width) : round(right * width)] = True
    return lungs


class LungNet(nn.Module):
    """Says target where the lungs of a 32 × 32 input are bright, and looks at nothing else."""

    def __init__(self, gain: float = 20.0) -> None:
        super().__init__()
        self.neck = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.neck.weight, 1 / 3)
        self.register_buffer("lungs", torch.from_numpy(lungs_of(32, 32)).float())
        self.gain = gain

    @property
    def saliency_layer(self) -> nn.Module:
        return self.neck

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = (self.neck(x)[:, 0] * self.lungs).mean((1, 2)) * self.gain
        return torch.stack([-level, level, level * 0 - 9], dim=1)


def tiny_net(seed: int) -> HeadNet:
    """An untrained net with global pooling and a linear head, as SCXNN has."""
    torch.manual_seed(seed)
    return HeadNet(pooled(nn.Linear(8, 3))).eval()


def tiny_ensemble(*nets: nn.Module) -> Ensemble:
    """Members `bacterial` and `viral` that see 32 × 32 px."""
    nets = nets or (tiny_net(0), tiny_net(1))
    members = dict(zip(TARGETS, nets, strict=False))
    settings = PreprocessConfig(side=32, clip=False)
    return Ensemble(members, settings, weights={t: t[0] * 64 for t in members})


def make_world(monkeypatch: pytest.MonkeyPatch, path: Path) -> SimpleNamespace:
    """Stand-ins in the place of all that is loaded; the working folder is empty."""
    world = SimpleNamespace(
        ensemble=tiny_ensemble(), detector=FakeDetector(), field=FakeField(), path=path
    )
    monkeypatch.setattr(run.Ensemble, "load", lambda folder, device="auto": world.ensemble)
    monkeypatch.setattr(run.ThoraxDetector, "load", lambda p, device="auto": world.detector)
    monkeypatch.setattr(audit.LungField, "load", lambda p, device="auto": world.field)
    monkeypatch.chdir(path)
    return world


def add_film(
    name: str, level: float = 0.3, size: tuple[int, int] = (120, 100), seed: int = 0
) -> str:
    """A phantom as PNG under data/images, darker or brighter; returns its path."""
    pixels, _ = draw_phantom(*size, seed=seed)
    path = Path("data/images") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = cv2.imencode(".png", (np.clip(pixels * 0.3 + level, 0, 1) * 255).astype(np.uint8))[1]
    path.write_bytes(raw.tobytes())
    return path.as_posix()


def add_mask(name: str, mask: np.ndarray) -> str:
    """A lung mask (H, W) bool as PNG in data/; returns its name there."""
    path = Path("data/masks") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask.astype(np.uint8) * 255)
    return f"masks/{name}"


def write_table(rows: Sequence[dict[str, str]]) -> None:
    """data/films.csv; what a row leaves out has a default."""
    Path("data").mkdir(exist_ok=True)
    with Path("data/films.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            image = row["image"]
            usual = {"source": image.split("/")[-2], "patient_id": image, "label": "normal"}
            writer.writerow({"mask": "", "sublabel": "", "licence": "CC BY 4.0", **usual, **row})


def write_split(part_of: dict[str, str]) -> None:
    """split.json: patient → part."""
    Split(0, part_of).save("split.json")

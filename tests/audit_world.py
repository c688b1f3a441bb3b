"""A small world for audits: tiny members, a lung field, a detector, films with labels and masks.

`audited_world` holds two runs, `films` on whole films and `crops`. They are made once a module,
and each test has a copy of them as its working folder.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import draw_phantom
from saliency_nets import HeadNet, pooled
from torch import nn

from classify import run
from classify.audit import __main__ as audit
from classify.audit import auditor
from classify.ensemble import Ensemble
from classify.preprocess import PreprocessConfig
from cxr.split import Split
from detect.finder import ThoraxFinder
from detect.predict import ThoraxBox

TARGETS = ("bacterial", "viral")
KERMANY = [
    ("n0", "normal", ""),
    ("b0", "pneumonia", "bacterial"),
    ("n1", "normal", ""),
    ("v0", "pneumonia", "viral"),
    ("b1", "pneumonia", "bacterial"),
]
QUICK = ("--draws", "50", "--pdf", "false", "--jobs", "0", "--split", "split.json")
COLUMNS = ("image", "mask", "source", "patient_id", "label", "sublabel", "licence")


class FakeField:
    """Two upright boxes in every film, in fractions of its sides; `stop_after` films Ctrl-C comes,
    and a film 130 px high has no lungs."""

    def __init__(self) -> None:
        self.weights = {"lungfield.safetensors": "f" * 64}
        self.threshold = 0.5
        self.seen: list[tuple[int, int]] = []
        self.stop_after: int | None = None

    def segment(self, films: Sequence[np.ndarray]) -> list[np.ndarray]:
        out = []
        for film in films:
            if self.stop_after is not None and len(self.seen) >= self.stop_after:
                raise KeyboardInterrupt
            self.seen.append(film.shape)
            lungs = lungs_of(film.shape[0], film.shape[1])
            out.append(lungs.astype(np.float32) * (0.1 if film.shape[0] == 130 else 0.9))
        return out


class FakeDetector:
    """Boxes the lungs of `FakeField`; a film twice as wide as high is none, one twice as high as
    wide is uncertain."""

    def __init__(self) -> None:
        self.weights, self.field = {"thorax.safetensors": "d" * 64}, None
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
    nets = nets or (tiny_net(0), tiny_net(6))  # of which neither has empty maps
    members = dict(zip(TARGETS, nets, strict=False))
    settings = PreprocessConfig(side=32, clip=False)
    return Ensemble(members, settings, weights={t: t[0] * 64 for t in members})


def make_world(monkeypatch: pytest.MonkeyPatch, path: Path) -> SimpleNamespace:
    """Stand-ins in the place of all that is loaded; the working folder is empty."""
    world = SimpleNamespace(
        ensemble=tiny_ensemble(), detector=FakeDetector(), field=FakeField(), path=path
    )
    monkeypatch.setattr(Ensemble, "load", lambda *_: world.ensemble)
    monkeypatch.setattr(ThoraxFinder, "load", lambda *_, **__: world.detector)
    monkeypatch.setattr(auditor.LungField, "load", lambda *_: world.field)
    monkeypatch.chdir(path)
    for kind in ("crops", "films"):
        (path / f"weights/ensemble_{kind}").mkdir(parents=True, exist_ok=True)
        (path / f"weights/ensemble_{kind}/viral.safetensors").touch()
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


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Five films of kermany and one of nih, with labels, one human mask and one finding, and the
    runs `films` and `crops` over them."""
    path = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        make_world(patch, path)
        rows = []
        for n, (name, label, sublabel) in enumerate(KERMANY):
            add_film(f"kermany/{name}.png", 0.1 + 0.12 * n, seed=n)
            rows.append(
                {
                    "image": f"images/kermany/{name}.png",
                    "label": label,
                    "sublabel": sublabel,
                    "patient_id": f"p{n}",
                }
            )
        rows[0]["mask"] = add_mask("n0.png", lungs_of(120, 100))
        add_film("nih/x.png", 0.4, seed=9)
        rows.append({"image": "images/nih/x.png", "label": "other", "patient_id": "q0"})
        write_table(rows)
        Path("data/finding_boxes.csv").write_text("image,x,y,w,h\nimages/nih/x.png,20,30,25,20\n")
        write_split({**{f"p{n}": "test" if n < 4 else "train" for n in range(5)}, "q0": "train"})
        make_run("films")
        make_run("crops", "--crops")
    yield path


@pytest.fixture
def audited_world(
    two_runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> SimpleNamespace:
    """A copy of `two_runs` as the working folder, with stand-ins for all that is loaded."""
    shutil.copytree(two_runs, tmp_path / "here")
    return make_world(monkeypatch, tmp_path / "here")


def make_run(out: str, *more: str) -> None:
    """classify.run over all films, those that it has already left as they are."""
    assert run.main(["data/images", "--out", out, "--saliency", "false", "--jobs", "0", *more]) == 0


def make_audit(name: str = "crops", *more: str) -> int:
    """The audit of a run, quickly; returns the exit code."""
    return audit.main([name, "--data", "data", *QUICK, *more])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to the terminal, on one line."""
    return " ".join(capsys.readouterr().err.split())


def summary(folder: str = "crops/audit") -> dict:
    """audit.json."""
    return json.loads(Path(folder, "audit.json").read_text())


def films_of(folder: str = "crops/audit") -> int:
    """Films whose data the page holds."""
    page = Path(folder, "report.html").read_text()
    return page.count('<li class="card"')

"""Small classifiers as somebody else might have trained them, and their files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

SIDE = 64
SETTINGS = (
    "findings: [normal, bacterial, viral]\n"
    f"preprocessing: {{side: {SIDE}, fit: stretch, mean: [0.4, 0.4, 0.4], std: [0.2, 0.2, 0.2]}}\n"
)


class SmallNet(nn.Module):
    """Two convolutions and a linear head on one channel."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, 4, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.neck = nn.Conv2d(6, 8, 1)
        self.fc = nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, h, w) to logits."""
        return self.fc(self.neck(self.body(x)).mean((2, 3)))


def resnet(folder: Path, outputs: int = 3) -> tuple[nn.Module, Path]:
    """torchvision's ResNet18 of random weights, and its file with the settings beside it."""
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=outputs).eval()
    path = folder / "resnet18.safetensors"
    save_file(net.state_dict(), path)
    path.with_suffix(".yaml").write_text(SETTINGS)
    return net, path


def small_onnx(folder: Path, films: int = 0) -> tuple[nn.Module, Path]:
    """A small network of one channel, and its ONNX file; made for so many films at a time, or for
    any number."""
    path = folder / "net.onnx"
    path.write_bytes(_exported(films))
    path.with_suffix(".yaml").write_text("findings: [normal, bacterial, viral]\n")
    return _small(), path


def _small() -> nn.Module:
    torch.manual_seed(1)
    return SmallNet().eval()


@cache
def _exported(films: int) -> bytes:
    """Once a process: torch's exporter takes seconds."""
    batch = torch.zeros(films or 2, 1, SIDE, SIDE)
    free = None if films else ({0: torch.export.Dim("films")},)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        how = {"dynamic_shapes": free, "external_data": False, "verbose": False}
        torch.onnx.export(_small(), (batch,), path, **how)
        return path.read_bytes()

"""What a training leaves behind to look at: history.json, curves.png and pictures of boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cxr import draw
from cxr.boxes import iou_xyxy
from cxr.plots import draw_history
from cxr.workdir import write_atomic, write_json
from detect.dataset import ThoraxDataset


class History(Callback):
    """One row an epoch in history.json (kept over a resume), and the curves drawn from it."""

    def __init__(self, folder: Path, shown: tuple[str, ...] = ("loss", "val_iou")) -> None:
        self.folder, self.shown = folder, shown
        self.rows: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # only here has Lightning restored the epoch of a checkpoint
        path = self.folder / "history.json"
        if trainer.ckpt_path and path.exists():
            rows = json.loads(path.read_text())
            self.rows = [r for r in rows if r["epoch"] <= trainer.current_epoch]

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        # validation has run by now, so both kinds of figures are there
        values = {k: round(float(v), 5) for k, v in trainer.callback_metrics.items()}
        if self.rows and self.rows[-1]["epoch"] == trainer.current_epoch:
            self.rows[-1].update(values)  # resumed between an epoch's validation and its end
        else:
            self.rows.append({"epoch": trainer.current_epoch, **values})
        if trainer.is_global_zero:
            write_json(self.folder / "history.json", self.rows)
            draw_history(self.rows, self.shown, self.folder / "curves.png")


class ValidationPicture(Callback):
    """Twelve validation films each few epochs: truth in white, the best box in colour."""

    def __init__(self, path: Path, films: ThoraxDataset, every: int) -> None:
        self.path, self.films, self.every = path, films, every

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        due = (trainer.current_epoch + 1) % self.every == 0
        if not due or not trainer.is_global_zero or trainer.sanity_checking:
            return
        step = max(1, len(self.films) // 12)
        tiles, captions = [], []
        for index in range(0, len(self.films), step)[:12]:
            image, target = self.films[index]
            with torch.inference_mode():
                model: Any = module.model
                found: dict[str, Any] = model([image.to(module.device)])[0]
            tile, caption = _tile(image, target, found)
            tiles.append(tile)
            captions.append(caption)
        sheet = draw.sheet(tiles, captions, columns=6, tile=220)
        write_atomic(self.path, draw.encode_png(sheet))
        board = getattr(trainer.logger, "experiment", None)
        if board is not None and hasattr(board, "add_image"):
            board.add_image("validation boxes", sheet, trainer.current_epoch, dataformats="HWC")


def _tile(
    image: torch.Tensor, target: dict[str, torch.Tensor], found: dict[str, Any]
) -> tuple[np.ndarray, str]:
    picture = draw.to_rgb(image[0].numpy())
    truth, boxes = target["boxes"].numpy(), found["boxes"].cpu().numpy()[:1]
    for box in truth:
        picture = draw.draw_box(picture, box, (255, 255, 255))
    for box in boxes:
        picture = draw.draw_box(picture, box, (255, 176, 0))
    iou = iou_xyxy(boxes, truth)
    score = float(found["scores"][0]) if len(boxes) else 0.0
    return picture, f"IoU {iou.max() if iou.size else 0:.3f}, score {score:.2f}"

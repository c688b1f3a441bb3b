"""An ensemble without torch: the exported networks of its members, by ONNX Runtime or OpenVINO.

members = ExportedEnsemble.load("weights/ensemble_crops")
logits = members.predict([film.pixels])  # (1, members, 3), as `classify.ensemble.Ensemble` has it

Maps come from the same pass: a graph gives the plane of each logit where its head has a closed form
(see `classify.saliency.hooks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from classify.members import (
    FAR_BELOW,
    OTHERS,
    TARGET,
    check_together,
    member_files,
    normal_of,
    targets_of,
)
from classify.preprocess import PreprocessConfig, preprocess_all
from cxr.boxes import Frame
from cxr.bundle import bundle_meta, rebuilding
from cxr.engines import OnnxNet, pick_engine

Array = np.ndarray


@dataclass(frozen=True)
class Seat:
    """Where a member's logits stand among those of the network `net`: NORMAL, TARGET, and OTHERS;
    that of others is made of all the rest where `others` is -1."""

    net: int
    normal: int
    target: int
    others: int = -1

    def rearrange(self, logits: Array) -> Array:
        """The network's logits (N, K) to the member's (N, 3)."""
        if self.others >= 0:
            return logits[:, [self.normal, self.target, self.others]]
        rest = [k for k in range(logits.shape[1]) if k not in (self.normal, self.target)]
        others = np.logaddexp.reduce(logits[:, rest], axis=1) if rest else logits.min(1) - FAR_BELOW
        return np.stack([logits[:, self.normal], logits[:, self.target], others], 1)


class ExportedEnsemble:
    """`classify.ensemble.Ensemble` as a run uses it; what needs gradients is not there."""

    def __init__(
        self,
        nets: Sequence[OnnxNet],
        seats: dict[str, Seat],
        settings: PreprocessConfig,
        trained_on: str = "",
    ) -> None:
        self.nets, self.seats, self.settings = list(nets), seats, settings
        self.targets = tuple(seats)
        self.weights = {t: nets[seat.net].sha256 for t, seat in seats.items()}
        self.trained_on = trained_on

    @classmethod
    def load(cls, folder: str | Path, engine: str = "onnx", precision: str = "fp32") -> Self:
        """The exported files beside all bundles of a folder; raises as `Ensemble.load` does."""
        files = member_files(folder)
        metas = {f: bundle_meta(f) for f in files}
        seats: dict[str, Seat] = {}
        with rebuilding(folder):
            if len(files) == 1 and metas[files[0]].get("kind") == "single":
                classes = metas[files[0]]["classes"]
                normal = normal_of(classes)
                seats = {c: Seat(0, normal, k) for k, c in enumerate(classes) if k != normal}
            else:
                files = sorted(files, key=lambda f: metas[f]["order"])
                check_together(folder, {f: metas[f] for f in files})
                for k, path in enumerate(files):
                    for n, target in enumerate(targets_of(metas[path])):
                        seats[target] = Seat(k, 3 * n, 3 * n + TARGET, 3 * n + OTHERS)
            nets = [OnnxNet(f, engine, precision) for f in files]
            meta = metas[files[0]]
            settings = PreprocessConfig.from_dict(meta["preprocessing"])
            return cls(nets, seats, settings, meta["trained_on"])

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def pools(self) -> bool:
        """Whether each network gives what a guard knows films by."""
        return all("seen" in net.outputs for net in self.nets)

    @property
    def draws(self) -> bool:
        """Whether each network gives the plane of each logit, and so a Grad-CAM."""
        return all("planes" in net.outputs for net in self.nets)

    def prepare(self, pixels: Sequence[Array]) -> tuple[Array, list[Frame]]:
        """N films or crops (H, W) float32 in [0, 1] to the input (N, 1, side, side) of the
        networks, and the Frames that lead from it back to each film's or crop's pixels."""
        return preprocess_all(pixels, self.settings)

    def predict(self, pixels: Sequence[Array]) -> Array:
        """N films or crops (H, W) float32 in [0, 1] to (N, members, 3) float32 logits in the order
        NORMAL, TARGET, OTHERS; one forward pass for each network."""
        return self.predict_prepared(self.prepare(pixels)[0])

    def predict_prepared(self, batch: Array) -> Array:
        """(N, members, 3) logits of what `prepare` gave."""
        return self._arranged(self._run(batch))

    def predict_pooled(self, batch: Array) -> tuple[Array, Array]:
        """`predict_prepared`, and from the same passes what a guard knows films by (N, F)."""
        found = self._run(batch)
        return self._arranged(found), _side_by_side(found)

    def look_pooled(self, batch: Array) -> tuple[list[tuple[Array, Array | None]], Array | None]:
        """Of each member logits (N, 3) and the Grad-CAM of its target (N, h, w) ≥ 0; and what a
        guard knows films by (N, F), None where a network does not give it."""
        found = self._run(batch)
        looks: list[tuple[Array, Array | None]] = []
        for seat in self.seats.values():
            own, planes = found[seat.net], None
            if "planes" in own:
                every = own["planes"]
                planes = np.maximum(every[:, seat.target], 0) / (every.shape[2] * every.shape[3])
            looks.append((seat.rearrange(own["logits"]), planes))
        return looks, _side_by_side(found) if self.pools else None

    def slow_maps(self, target: str, _batch: Array) -> Array:
        """What would need gradients: raises ValueError."""
        raise ValueError(
            f"maps of {target} must be made by --engine torch: what follows its network's last "
            "maps is more than a mean and linear layers. Or run without them: --saliency false."
        )

    def _run(self, batch: Array) -> list[dict[str, Array]]:
        if not len(batch):  # no engine takes a batch of none
            batch = np.zeros((1, *batch.shape[1:]), np.float32)
            return [{k: v[:0] for k, v in net.run(batch).items()} for net in self.nets]
        return [net.run(batch) for net in self.nets]

    def _arranged(self, found: Sequence[dict[str, Array]]) -> Array:
        arranged = [s.rearrange(found[s.net]["logits"]) for s in self.seats.values()]
        return np.stack(arranged, axis=1).astype(np.float32, copy=False)


def _side_by_side(found: Sequence[dict[str, Array]]) -> Array:
    """(N, F) of what each network's guard knows films by."""
    return np.concatenate([own["seen"] for own in found], axis=1)


def open_ensemble(
    folder: Path, engine: str, precision: str, device: str, maps: bool = False
) -> Any:
    """The members by the engine that `cxr.engines` picks: an Ensemble, or one without torch. With
    `maps` torch is picked where a network's maps need it."""
    files = member_files(folder)
    picked = pick_engine(engine, files, device, precision == "bf16")
    if picked != "torch":
        exported = ExportedEnsemble.load(folder, picked, precision)
        if engine != "auto" or not maps or exported.draws:
            return exported
    from classify.ensemble import Ensemble

    return Ensemble.load(folder, device, precision)


def answer_by(members: Any, folder: Path, engine: str) -> None:
    """From now on an Ensemble takes of exported networks what can be had of them, as `cxr.engines`
    picks: logits, and Grad-CAM where a network's file has it. Raises as they do."""
    bf16 = members.precision == "bf16"
    picked = pick_engine(engine, member_files(folder), members.device.type, bf16)
    if picked != "torch":
        members.exported = ExportedEnsemble.load(folder, picked, members.precision)

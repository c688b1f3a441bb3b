"""All members of an ensemble over the same films: decoded and preprocessed once, batched.

ensemble = Ensemble.load("weights/ensemble_crops")
logits = ensemble.predict([film.pixels])  # (1, members, 3)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from classify.models.multitask import SCXNN, build_member
from classify.models.settings import MemberConfig
from classify.preprocess import PreprocessConfig, frame_of, preprocess, to_input
from classify.singles.members import members_of, run_members
from cxr.boxes import Frame
from cxr.bundle import Bundle, bundle_kind, load_bundle
from cxr.devices import pick_device


class Ensemble:
    """Trained members that share one preprocessing. Targets keep the order of their training.

    `weights` maps each member's target to the SHA-256 of its file; `trained_on` is `crops` or
    `films`: what the members must be given.
    """

    def __init__(
        self,
        members: Mapping[str, nn.Module],
        settings: PreprocessConfig,
        device: str | torch.device = "cpu",
        weights: Mapping[str, str] | None = None,
        trained_on: str = "",
    ) -> None:
        if not members:
            raise ValueError("members must hold at least one. Got none.")
        self.settings = settings
        self.targets = tuple(members)
        self.weights = dict(weights or {})
        self.trained_on = trained_on
        self.device = torch.device(device)
        self._members = {
            target: net.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for target, net in members.items()
        }

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Ensemble:
        """All member bundles `TARGET.safetensors` of a folder; or the one bundle of a single
        network (classify.single), each class of which but normal becomes a member.

        Raises ValueError when there is none, or when they do not belong together; the message
        names the file.
        """
        folder = Path(folder)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            folds = f" (it holds folds: give {folder / 'fold0'})" * (folder / "fold0").is_dir()
            raise ValueError(
                f"{folder} must hold members' bundles (TARGET.safetensors). Got none{folds}: train "
                "them with python -m classify.train, or give another folder."
            )
        if len(files) == 1 and bundle_kind(files[0]) == "single":
            return cls._of_single(files[0], device)
        bundles = sorted((load_bundle(f, "member") for f in files), key=lambda b: b.meta["order"])
        _check_three_classes(bundles)
        first = bundles[0]
        for other in bundles[1:]:
            for key in ("preprocessing", "trained_on"):
                if other.meta[key] != first.meta[key]:
                    raise ValueError(
                        f"members of {folder} must agree in {key}. {Path(other.path).name} has "
                        f"{other.meta[key]}, {Path(first.path).name} {first.meta[key]}."
                    )
        names = [b.meta["target"] for b in bundles]
        if len(set(names)) != len(names):
            raise ValueError(f"members of {folder} must have different targets. Got {names}.")
        return cls(
            {b.meta["target"]: member_of(b) for b in bundles},
            PreprocessConfig.from_dict(first.meta["preprocessing"]),
            pick_device(device),
            {b.meta["target"]: b.sha256 for b in bundles},
            first.meta["trained_on"],
        )

    @classmethod
    def _of_single(cls, path: Path, device: str) -> Ensemble:
        from classify.singles.bundle import load_single  # late: it trains by what stands above

        single = load_single(path)
        try:
            members = members_of(single.net, single.classes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return cls(
            members,
            single.settings,
            pick_device(device),
            dict.fromkeys(members, single.sha256),
            single.trained_on,
        )

    def __len__(self) -> int:
        return len(self.targets)

    def member(self, target: str) -> nn.Module:
        """The network of one target; raises ValueError for a target that has none."""
        if target not in self._members:
            raise ValueError(f"target must be one of {', '.join(self.targets)}. Got {target!r}.")
        return self._members[target]

    def prepare(self, pixels: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[Frame]]:
        """N films or crops (H, W) float32 in [0, 1] to the input (N, 3, side, side) of every
        member, and the Frames that lead from it back to each film's or crop's pixels."""
        return prepare_films(pixels, self.settings, self.device)

    def predict(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """N films or crops (H, W) float32 in [0, 1] to (N, members, 3) float32 logits in the order
        NORMAL, TARGET, OTHERS; one forward pass for each network."""
        if not len(pixels):
            return np.zeros((0, len(self), 3), np.float32)
        return self.predict_prepared(self.prepare(pixels)[0])

    def predict_prepared(self, batch: torch.Tensor) -> np.ndarray:
        """(N, members, 3) logits of what `prepare` gave."""
        with torch.inference_mode():
            logits = [z.float().cpu() for z in run_members(self._members.values(), batch)]
        return torch.stack(logits, dim=1).numpy()


def prepare_films(
    pixels: Sequence[np.ndarray], settings: PreprocessConfig, device: torch.device
) -> tuple[torch.Tensor, list[Frame]]:
    """N films or crops (H, W) float32 in [0, 1] to a network's input (N, 3, side, side), and the
    Frames that lead from it back to each film's or crop's pixels."""
    side = settings.side
    images = [preprocess(p, settings) for p in pixels]
    frames = [frame_of((p.shape[0], p.shape[1]), settings) for p in pixels]
    stacked = np.stack(images) if images else np.zeros((0, side, side), np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(stacked))[:, None].to(device)
    return to_input(tensor, settings), frames


def member_of(bundle: Bundle) -> SCXNN:
    """The network of a member's bundle with its weights."""
    known = {f.name for f in fields(MemberConfig)}
    network: dict[str, Any] = {k: v for k, v in bundle.meta["network"].items() if k in known}
    network["decoder_channels"] = tuple(network["decoder_channels"])
    # nothing is fetched, and nothing is frozen: the weights are all in the bundle
    network |= {"weights": "none", "freeze_stages": 0, "frozen_batchnorm": False}
    net = build_member(
        MemberConfig(**network), bool(bundle.meta["decoder"]), len(_classes_of(bundle))
    )
    try:
        net.load_state_dict(bundle.tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{bundle.path} must hold the weights of its own network. {error}"
        ) from error
    return net


def _classes_of(bundle: Bundle) -> Sequence[str]:
    """What a member answers; three, where its bundle does not say."""
    return tuple(bundle.meta.get("classes") or ("normal", bundle.meta["target"], "others"))


def _check_three_classes(bundles: Sequence[Bundle]) -> None:
    for bundle in bundles:
        names = _classes_of(bundle)
        if len(names) != 3:
            raise ValueError(
                f"a member must answer normal / target / others to be screened with. {bundle.path} "
                f"answers {' / '.join(names)}: train it with classes: three."
            )

"""What differs between a cell as it was trained here and the paper's own, in words.

Worked out from the settings, so that it cannot be forgotten: each setting that is not the one of
the budget `paper` gives a sentence such as «96 px (paper 299)».
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reproducing.experiment import Experiment, flatten
from reproducing.runners import find_runner

NAMES = {
    "baseline_cnn": "a small CNN",
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "googlenet": "GoogLeNet",
    "resnet18": "ResNet18",
    "resnet50": "ResNet50",
    "densenet121": "DenseNet121",
    "densenet169": "DenseNet169",
    "densenet201": "DenseNet201",
    "efficientnet_b2": "EfficientNet-B2",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "mobilenet_v2": "MobileNetV2",
    "inception_v3": "InceptionV3",
    "xception": "Xception",
    "inception_resnet_v2": "Inception-ResNet-V2",
    "mobilenet_v3": "MobileNetV3",
    "mobilenet_v3_320": "MobileNetV3 (320 px)",
    "resnet50_v2": "ResNet50 v2",
    "tf_efficientnet_lite0": "EfficientNet-Lite0",
    "tu-test_efficientnet": "a tiny network",
    "tu-tf_efficientnet_lite0": "EfficientNet-Lite0",
    "tu-mobilenetv3_large_100": "MobileNetV3",
    "unet_cbam": "UNet + CBAM",
    "unet_cbam_small": "small UNet + CBAM",
    "mobilenet": "MobileNet",
}
START = {
    "imagenet": "ImageNet weights",
    "none": "random weights",
    "coco": "COCO weights",
    "pretrained": "pretraining without labels",
    "own": "no pretraining",
}

# What a setting is called by the last part (or two) of its key: "{} px" holds the value's place.
_PHRASES = {
    "side": "{} px",
    "epochs": "{} epochs",
    "max_epochs": "at most {} epochs",
    "batch": "batch {}",
    "rate": "learning rate {}",
    "optimizer": "optimiser {}",
    "schedule": "{} schedule",
    "folds": "{} folds",
    "seed": "seed {}",
    "freeze_to": "frozen to {}",
    "dropout": "dropout {}",
    "extra_fc": "extra FC layer {}",
    "augment": "augmentation {}",
    "copies": "{} copies a film",
    "balance": "balance {}",
    "head": "head {}",
    "nets": "networks {}",
    "weight_decay": "weight decay {}",
    "max_films": "at most {} films",
    "per_label": "films of each class {}",
    "contrast": "contrast {}",
    "clip": "percentile clip {}",
    "parts": "parts {}",
    "classes": "classes {}",
    "sources": "films of {}",
    "choose": "epoch chosen by {}",
    "ema": "averaged weights (decay {})",
    "kind": "split of kind {}",
    "learn": "learnt from {} of the patients",
    "encoder_rate": "encoder's rate times {}",
    "publishable_only": "publishable films only: {}",
    "warmup_epochs": "{} epochs of warm-up",
    "decoder": "decoder {}",
    "decoder_channels": "decoder widths {}",
    "restore_weight": "λ {}",
    "region.kind": "region {}",
    "region.path": "region's folder {}",
    "neck_channels": "neck {}",
    "dilation": "region dilated by {} px",
    "unseen": "held out {}",
    "targets": "targets {}",
    "phases": "phases {}",
    "films": "films of the phase {}",
    "work_side": "shrunk to {} px first",
    "factor": "rate cut by {}",
    "floor_rate": "lowest rate {}",
    "shift": "shifts up to {}",
    "clahe_clip": "CLAHE clip limit {}",
    "clahe_tiles": "CLAHE tiles {}",
    "gamma": "gamma up to {}",
    "rotate": "rotations up to {}°",
    "sensitivity": "sensitivity to be proven {}",
    "screen_folds": "{} folds of the screener",
    "freeze_stages": "{} frozen stages",
    "negatives": "share of empty pictures {}",
    "select.start": "random sets of {} features",
    "select.subsets": "{} random sets",
    "select.penalty": "regression with C {}",
    "select.permutations": "{} permutations of labels",
    "select.counts": "numbers of kept features {}",
    "cxrnet.width": "{} channels at full size",
    "cxrnet.depth": "{} stages an encoder",
    "cxrnet.area": "weight of the map's mean {}",
    "cxrnet.first": "weight of the first encoder's own answer {}",
    "cxrnet.smooth": "weight of the map's variation {}",
}
# Settings that two cells of one result may differ in without a reader caring.
_SILENT = (
    "data",
    "crops",
    "out",
    "cache",
    "device",
    "workers",
    "draws",
    "seed",
    "precision",
    "accelerator",
    "devices",
    "bundle",
    "picture_every",
    "half",
    "restart",
    "split",
    "follow",
)
_ORDER = ("train", "val", "test", "normal", "pneumonia", "bacterial", "viral", "covid")
_BEFORE = "pretraining."  # settings of what came before the training itself
# A network's name and its first weights make one phrase.
_PAIRS = {
    "backbone.name": "backbone.weights",
    "model.backbone": "model.weights",
    "member.encoder": "member.weights",
}


def differences(
    experiment: Experiment, ours: Mapping[str, Any], paper: Mapping[str, Any]
) -> list[str]:
    """A sentence for each setting in which `ours` (resolved) is not `paper` (resolved)."""
    mine, theirs = _spread(ours, paper), _spread(paper, ours)
    silent = {key for key in (*mine, *theirs) if _is_silent(key, experiment.runner)}
    if mine.get("start") == "own":  # it has no pretraining
        silent |= {key for key in (*mine, *theirs) if key.startswith(_BEFORE)}
    changed = [k for k in {**theirs, **mine} if k not in silent and mine.get(k) != theirs.get(k)]
    sentences, told = [], set[str]()
    for key in changed:
        if key in told:
            continue
        group = _group(key, {*mine, *theirs})
        if key in _PAIRS.values() and mine.get(group[0]) == theirs.get(group[0]):
            group = (key,)  # the same network from other weights
        told |= set(group)
        say = _phrase(group)
        guessed = any(k in experiment.guessed for k in group)
        there = say(theirs, alone=True)
        where = f"paper not given, full recipe {there}" if guessed else f"paper {there}"
        stage = "pretraining: " * key.startswith(_BEFORE)
        sentences.append(f"{stage}{say(mine, alone=False)} ({where})")
    if "crops" in find_runner(experiment.runner).keys and mine.get("crops"):
        sentences.append("crops of the thorax (paper whole films)")
    return sentences


def guesses(experiment: Experiment, papers: Sequence[Mapping[str, Any]]) -> str:
    """What the full recipe takes where the paper's is not known to us; empty when all is known.

    `papers`: the settings of every cell at the budget paper; a setting with several values among
    them is told with all of them.
    """
    every = [_spread(paper, paper) for paper in papers]
    said = []
    for key in experiment.guessed:
        known = [flat for flat in every if key in flat]
        if known:
            pair = key in _PAIRS.values()
            say = _phrase((key,) if pair else _group(key, set(known[0])))
            first, *others = dict.fromkeys(say(flat, alone=False) for flat in known)
            more = dict.fromkeys(say(flat, alone=True) for flat in known)
            words = " or ".join([first, *list(more)[1:]]) if others else first
            said.append("pretraining: " * key.startswith(_BEFORE) + words)
    if not said:
        return ""
    return (
        f"The paper as we have it does not give these, so the full recipe takes: {', '.join(said)}."
    )


def _spread(settings: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key. A list of phases becomes their names, and phase by phase what is set
    in those that `other` has, too: `phases.hard.films`."""
    flat, theirs = flatten(settings), flatten(other)
    for key, value in list(flat.items()):
        phases = _named(value)
        if phases:
            flat[key] = list(phases)
            common = {n: p for n, p in phases.items() if n in _named(theirs.get(key))}
            flat |= {f"{key}.{name}": v for name, v in flatten(common).items()}
    return flat


def _named(value: Any) -> dict[str, dict[str, Any]]:
    """Name → the rest of each mapping of a list; empty for another value."""
    if not isinstance(value, list | tuple):
        return {}
    named = [dict(v) for v in value if isinstance(v, Mapping) and "name" in v]
    return {str(v.pop("name")): v for v in named}


def _is_silent(key: str, runner: str) -> bool:
    free = {*find_runner(runner).keys.values(), *find_runner(runner).free}
    return key in free or key.rpartition(".")[2] in _SILENT


def _group(key: str, keys: set[str]) -> tuple[str, ...]:
    """The settings that are told in one phrase with `key`."""
    for name, weights in _PAIRS.items():
        if key in (name, weights) and {name, weights} <= keys:
            return name, weights
    head = key.rpartition(".")[0]
    if head.endswith(("parts", "per_label")):  # three shares are one split
        return tuple(f"{head}.{name}" for name in _ORDER if f"{head}.{name}" in keys)
    return (key,)


def _phrase(group: Sequence[str]) -> Callable[..., str]:
    """Settings → words; `alone` is the short form for the brackets."""

    def say(settings: Mapping[str, Any], alone: bool) -> str:
        key = group[0]
        if key in _PAIRS and len(group) > 1:
            name, weights = (settings.get(k) for k in group)
            return f"{NAMES.get(str(name), name)} with {START.get(str(weights), weights)}"
        head, _, last = key.rpartition(".")
        if head.endswith(("parts", "per_label")):
            shares = [
                f"{k.rpartition('.')[2]} {_value(settings[k])}" for k in group if k in settings
            ]
            phrase = _PHRASES[head.rpartition(".")[2]]
            return ", ".join(shares) if alone else phrase.format(", ".join(shares))
        if last in ("max_films", "sources") and not settings.get(key):
            return "all" if alone else "all films"
        if last in ("weights", "name"):
            return START.get(str(settings.get(key)), _value(settings.get(key)))
        value = _value(settings.get(key))
        both = f"{head.rpartition('.')[2]}.{last}"  # a kind is a kind of what
        phrase = _PHRASES.get(both, _PHRASES.get(last, f"{last.replace('_', ' ')} {{}}"))
        said = value if alone else phrase.format(value)
        return said.removesuffix("s") if said in ("1 epochs", "1 folds") else said

    return say


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(NAMES.get(str(v), str(v).replace("_", " ")) for v in value) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    if value in ("", None, 0):
        return "none"
    return NAMES.get(str(value), str(value).replace("_", " "))

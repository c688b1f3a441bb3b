"""classify/tasks/settings.py: what a single network's configuration allows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from classify.films import ProtocolConfig
from classify.models.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BackboneConfig,
    CXRNetConfig,
    FusionConfig,
)
from classify.preprocess import PreprocessConfig
from classify.tasks.settings import SingleConfig
from cxr.cli import build_parser, from_plain, to_plain

SIZED = PreprocessConfig(side=299, mean=IMAGENET_MEAN, std=IMAGENET_STD)


KINDS = {"backbone": BackboneConfig, "fusion": FusionConfig, "cxrnet": CXRNetConfig}


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_network_takes_its_classes_and_its_side_from_the_training(kind: str) -> None:
    config = SingleConfig(classes=("a", "b", "c"), kind=kind, preprocess=SIZED)
    network = config.network()
    assert isinstance(network, KINDS[kind])
    assert (network.classes, network.input_side) == (3, 299)


def test_settings_come_back_from_plain_values() -> None:
    config = SingleConfig(protocol=ProtocolConfig("folds", folds=4), preprocess=SIZED)
    assert from_plain(SingleConfig, to_plain(config)) == config


def test_a_part_of_the_preprocessing_keeps_imagenets_normalisation() -> None:
    config = from_plain(SingleConfig, {"preprocess": {"side": 96, "contrast": "clahe"}})
    assert config.preprocess == replace(SIZED, side=96, contrast="clahe")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"classes": ("normal",)}, "classes must name at least two"),
        ({"classes": ("normal", "normal")}, "each once"),
        ({"kind": "ensemble"}, "kind must be one of backbone, fusion, cxrnet"),
        ({"augment": "mixup"}, "augment must be one of none, affine, rotate, geometric"),
        ({"balance": "smote"}, "balance must be one of"),
        ({"choose": "accuracy"}, "choose must be one of val_loss, val_auc"),
        ({"batch": 1}, "batch must be at least 2"),
        ({"copies": 3}, "copies must be .* 1 without augment"),
        ({"copies": 0, "augment": "rotate"}, "copies must be at least 1"),
        ({"max_films": -1}, "max_films must not be negative"),
        ({"preprocess": PreprocessConfig(side=64)}, "mean and std must be ImageNet's"),
        ({"kind": "fusion", "preprocess": replace(SIZED, side=64)}, r"preprocess.side .* 75 px"),
        (
            {
                "kind": "cxrnet",
                "cxrnet": CXRNetConfig(depth=7),
                "preprocess": replace(SIZED, side=96),
            },
            "preprocess.side must be at least 128 px for cxrnet",
        ),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SingleConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "leave-one-out"}, "pooled, official, folds, file"),
        ({"parts": {"train": 0.5, "val": 0.5}}, "train, val and test"),
        ({"parts": {"train": 0.8, "val": 0.2, "test": 0.0}}, "positive shares"),
        ({"parts": {"train": 0.8, "val": 0.1, "test": 0.2}}, "sum to 1"),
        ({"kind": "folds", "folds": 2}, "at least 3"),
        ({"kind": "file"}, "protocol.split must name"),
        ({"split": "split.json"}, "empty for the others"),
    ],
)
def test_wrong_protocols_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ProtocolConfig(**wrong)


@pytest.mark.parametrize(
    ("name", "nets", "side"),
    [
        ("fusion", ("resnet18", "densenet121", "inception_v3"), 299),
        ("causes_resnet50", ("resnet50",), 224),
        ("backbone", ("vgg16",), 224),
    ],
)
def test_the_papers_configurations_are_valid(
    root: Path, name: str, nets: tuple[str, ...], side: int
) -> None:
    parser = build_parser(SingleConfig, "classify.single", "")
    file = root / "configs" / "classify" / f"{name}.yaml"
    ready = parser.instantiate(parser.parse_args(["--config", str(file)]))
    values = {k: ready[k] for k in SingleConfig.__dataclass_fields__}
    config = SingleConfig(**values)
    assert (config.nets, config.network().input_side) == (nets, side)
    assert config.optim.epochs == 30

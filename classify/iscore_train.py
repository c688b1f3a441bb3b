"""Trains a network, keeps its convolution features by the I-score, and answers the tested films.

python -m classify.iscore_train --config configs/classify/iscore.yaml
python -m classify.iscore_train --config configs/classify/iscore.yaml --keep all --out runs/all

Leaves answers.csv, metrics.json, confusion.png and figures.json; with keep: iscore also iscore.json
and iscore.png, the AUC against the number of kept features. What is chosen and how: see
`classify.iscore_select`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from classify.bundles import Single, load_single
from classify.features.parts import Part, SelectConfig
from classify.features.select import Selection, regress, select_features
from classify.iscore_report import write_selection
from classify.preprocess import to_input
from classify.singles.config import PARTS, SingleConfig
from classify.singles.data import film_loader
from classify.singles.figures import draw_report, report_of
from classify.singles.films import Films, load_films
from classify.singles.fit import read_images, train_single
from classify.singles.parts import share_films
from classify.singles.training import ANSWERS, BUNDLE, in_words, is_done
from cxr.answers import Answer, read_answers, write_answers
from cxr.cli import parse_config, to_plain
from cxr.devices import pick_device
from cxr.stats import Figure
from cxr.training.learner import NonFiniteLossError
from cxr.training.recipe import keep_to_recipe
from cxr.workdir import Workdir, log, provenance, write_json

EXAMPLE = "python -m classify.iscore_train --config configs/classify/iscore.yaml"
KEEPS = ("iscore", "all", "head")
FIGURES = "figures.json"


@dataclass(frozen=True)
class IscoreConfig(SingleConfig):
    """Train one network for K classes and answer with a plain regression on its pooled features.

    A finished network is loaded and not trained again, so that several ways to keep features take
    the same one.

    Args:
        keep: iscore (the features that the I-score keeps), all (every feature) or head (the
            network's own answers, with no regression).
        trained: folder of the network, of classify.single with the same settings; it is trained
            there where it is not yet. Empty takes OUT/network.
        select: how features are chosen; its seed and draws are those of the training.
    """

    keep: str = "iscore"
    trained: str = ""
    select: SelectConfig = field(default_factory=SelectConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep not in KEEPS:
            raise ValueError(f"keep must be one of {', '.join(KEEPS)}. Got {self.keep!r} instead.")
        if self.kind == "fusion":
            raise ValueError(
                "kind must be backbone or cxrnet: a fusion pools the maps of several "
                "networks. Got 'fusion' instead."
            )
        if self.protocol.kind == "folds":
            raise ValueError(
                "protocol.kind must be pooled, official or file: each fold would keep "
                "other features. Got 'folds' instead."
            )

    def to_single(self) -> SingleConfig:
        """The network's training."""
        own = {name: getattr(self, name) for name in SingleConfig.__dataclass_fields__}
        out = self.trained or str(Path(self.out) / "network")
        return SingleConfig(**{**own, "out": out, "bundle": True})

    def to_select(self) -> SelectConfig:
        """How features are chosen, with this training's seed and draws."""
        return replace(self.select, seed=self.seed, draws=max(1, self.draws))


def train_iscore(config: IscoreConfig) -> Path:
    """Train or take the network, choose, answer; returns `config.out` with answers.csv.

    Raises ValueError, OSError or ImportError for what a user can mend, and NonFiniteLossError.
    """
    out, folder = Path(config.out), train_single(config.to_single())
    single, films = load_single(folder / BUNDLE), load_films(config)
    select = {k: v for k, v in to_plain(config.to_select()).items() if k != "draws"}
    keep_to_recipe(
        out,
        {"keep": config.keep, "select": select, "network": single.sha256, "films": films.mark()},
    )
    if is_done(out):
        log.info("%s is finished: nothing is chosen anew", out)
        return out
    workdir = Workdir(out)
    workdir.start(to_plain(config), config.seed, weights={BUNDLE: single.sha256})
    if config.keep == "head":
        answers = read_answers(folder / ANSWERS)[1]
        figures = {"features.kept": _count(_width(single), len(answers))}
    else:
        answers, figures = _answer(config, single, films)
    _write(config, answers, figures)
    workdir.update(finished=True)
    return out


def _answer(
    config: IscoreConfig, single: Single, films: Films
) -> tuple[list[Answer], dict[str, Figure]]:
    """The regression's answers to the tested films, and its own figures."""
    (shares,) = share_films([case.row for case in films.cases], films.labels, config.protocol)
    images = read_images(config.to_single(), films)
    train, validation, test = (
        _pool(config, single, films, images, shares.parts[name]) for name in PARTS
    )
    if config.keep == "iscore":
        found = select_features(train, validation, test, config.classes, config.to_select())
        write_selection(config.out, found)
        _tell(found)
        scores, kept, own = found.scores, found.kept, {"gain.auc": found.gain}
    else:
        kept, own = train.features.shape[1], {}
        scores = regress(train, test, range(kept), config.select.penalty)
    answers = [
        Answer(
            films.cases[i].row.image,
            films.cases[i].patient,
            films.cases[i].row.source,
            config.classes[films.labels[i]],
            tuple(float(s) for s in row),
        )
        for i, row in zip(shares.parts["test"], scores, strict=True)
    ]
    return answers, {"features.kept": _count(kept, len(answers)), **own}


def _pool(
    config: IscoreConfig, single: Single, films: Films, images: np.ndarray, indices: Sequence[int]
) -> Part:
    """What the network's head is given of the films `indices`."""
    net: Any = single.net.to(pick_device(config.device))
    batches = (
        to_input(batch["image"].float() / 255, config.preprocess)
        for batch in film_loader(config, images, films.labels, indices)
    )
    return Part.of(
        net, batches, [films.labels[i] for i in indices], [films.cases[i].patient for i in indices]
    )


def _tell(found: Selection) -> None:
    gain = "?" if found.gain.value is None else f"{found.gain.value:+.3f}"
    log.info(
        "%d of %d features are kept; macro AUC less that of all features: %s",
        found.kept,
        len(found.order),
        gain,
    )


def _write(config: IscoreConfig, answers: Sequence[Answer], figures: dict[str, Figure]) -> None:
    out = Path(config.out)
    write_answers(out / ANSWERS, config.classes, answers)
    report = report_of(config.classes, answers, config.draws, config.seed)
    draw_report(report, out / "confusion.png")
    log.info("keep %s: %s", config.keep, in_words(report.to_dict()))
    write_json(out / FIGURES, {name: asdict(value) for name, value in figures.items()})
    write_json(
        out / "metrics.json",
        {"keep": config.keep, "figures": {"test": report.to_dict()}, **provenance()},
    )
    write_json(out / "done.json", {"keep": config.keep})


def _count(features: int, films: int) -> Figure:
    """A number of features as a figure: it is no estimate and has no interval."""
    return Figure(float(features), None, None, films)


def _width(single: Single) -> int:
    """How many features the network's head is given."""
    head: Any = single.net.head
    return next(m.in_features for m in head.modules() if isinstance(m, nn.Linear))


def main(argv: Sequence[str] | None = None) -> int:
    """Train and choose what is not finished yet; 2 for settings or files that do not fit."""
    config = parse_config(
        IscoreConfig, argv, prog="python -m classify.iscore_train", example=EXAMPLE
    )
    try:
        folder = train_iscore(config)
    except (ValueError, OSError, ImportError, NonFiniteLossError) as error:
        log.error("%s", error)
        return 2
    log.info("answers and figures: %s", folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

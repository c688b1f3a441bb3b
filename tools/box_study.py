"""How many boxes does one need, and which network finds them best? Detectors of one budget each.

    python tools/box_study.py boxes        # learning curve over 50, 100, 200, 400 and all boxes
    python tools/box_study.py networks     # backbones and sizes of the film, on all boxes

Every detector sees the same number of pictures and is measured on the same films, none of them
seen in any training: children of kermany, and the adults of sources that nobody trains on. A
detector that is finished is not trained again. Writes study.json, table.md and curve.png.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr.cli import Several, as_command, from_plain, parse_config, to_plain
from cxr.coco import CocoFilm, CocoSet, read_coco, write_coco
from cxr.draw import LINES, new_figure, write_figure
from cxr.rules import refusing, require
from cxr.split import Split
from cxr.stats import Interval, in_words
from cxr.workdir import Workdir, console, log, read_json, write_atomic, write_json
from detect.data import at_most, read_annotations, select_films
from detect.metrics import to_markdown
from detect.settings import TrainConfig

BOXES = "thorax.json"
LITE0 = "configs/detect/thorax_lite0.yaml"
SIZES = (50, 100, 200, 400)
NETWORKS: dict[str, dict[str, Any]] = {
    "EfficientNet-Lite0, 320 px": {},
    "EfficientNet-Lite0, 448 px": {"side": 448},
    "EfficientNet-Lite1, 320 px": {"backbone": "tf_efficientnet_lite1"},
    "MobileNetV3, 320 px": {
        "backbone": "mobilenet_v3",
        "weights": "none",  # none can be had without a network
        "freeze_stages": 0,
        "frozen_batchnorm": False,
    },
}
ADULTS = ("shenzhen", "jsrt")


@dataclass(frozen=True)
class BoxStudyConfig:
    """Train detectors of one budget and measure them on the same films.

    Args:
        study: boxes (the learning curve) or networks.
        data: folders of the films.
        annotations: the boxes that the smaller sets of the curve are drawn from.
        views: pictures that each detector sees in training.
        batch: films a step.
        side: px that films are fitted into, for the curve.
        films: at most so many films of each test set; 0 takes all.
        split: of the patients; the children that are measured are of its parts test and
            calibration, and no patient of `annotations`.
        precision: of the training (see detect.train).
        seed: of everything random.
        out: folder of the study.
    """

    study: tuple[str, ...] = ()
    data: Several = "../shared/data"
    annotations: str = "annotations/thorax_kermany400.json"
    views: int = 4000
    batch: int = 8
    side: int = 256
    films: int = 200
    split: str = "configs/split_seed0.json"
    precision: str = "auto"
    seed: int = 0
    out: str = "runs/box_study"

    def __post_init__(self) -> None:
        known = len(self.study) == 1 and self.study[0] in ("boxes", "networks")
        require(known, "the study must be boxes or networks", " ".join(self.study))


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; 2 for data that are missing."""
    example = "python tools/box_study.py boxes --data ../shared/data --data ../shared/more"
    config = parse_config(BoxStudyConfig, argv, example, ("study",))
    workdir = Workdir(Path(config.out) / config.study[0])
    with refusing():
        tests = test_sets(config)
        trainings = (
            curve(config, workdir) if config.study[0] == "boxes" else networks(config, workdir)
        )
    workdir.start(to_plain(config), config.seed)
    rows = [run(name, training, tests, config) for name, training in trainings.items()]
    write_json(workdir / "study.json", {"config": to_plain(config), "rows": rows})
    write_atomic(workdir / "table.md", "\n".join(table(rows, tests)) + "\n")
    if config.study[0] == "boxes":
        draw(rows, tests, workdir / "curve.png")
    console.print("\n".join(table(rows, tests)), markup=False, highlight=False)
    return 0


def test_sets(config: BoxStudyConfig) -> dict[str, list[CocoFilm]]:
    """Children and adults that no detector of the study is trained on."""
    films = read_annotations(config.data, BOXES)
    part = Split.load(config.split).part_of
    known = {f.patient_id for f in read_coco(config.annotations).films}
    children = [
        f
        for f in films
        if f.source == "kermany"
        and part.get(f.patient_id) in ("test", "calibration")
        and f.patient_id not in known
    ]
    sets = {"children (kermany)": children}
    sets |= {f"adults ({s})": [f for f in films if f.source == s] for s in ADULTS}
    return {k: at_most(v, config.films, config.seed) for k, v in sets.items() if v}


def base(config: BoxStudyConfig, out: Path, **model: Any) -> TrainConfig:
    """The shipped detector's recipe with this study's budget."""
    import yaml

    recipe = from_plain(TrainConfig, yaml.safe_load(Path(LITE0).read_text()))
    recipe = replace(recipe, data=replace(recipe.data, data=config.data, split=config.split))
    seen = len(select_films(recipe.data, config.seed).films["train"])
    return replace(
        recipe,
        out=str(out),
        model=replace(recipe.model, **model),
        batch=config.batch,
        precision=config.precision,
        seed=config.seed,
        epochs=max(2, round(config.views / seen)),
        picture_every=0,
    )


def curve(config: BoxStudyConfig, workdir: Workdir) -> dict[str, TrainConfig]:
    """Number of boxes → training. The smaller sets are drawn from the annotations, and a fifth of
    each chooses the epoch, as with a user's own; all boxes are those of the shipped detector."""
    whole = read_coco(config.annotations)
    full = base(config, workdir / "all", side=config.side)
    trainings = {}
    for size in (n for n in SIZES if n <= len(whole.films)):
        films = at_most(whole.films, size, config.seed)
        path = workdir / f"{size}.json"
        write_coco(path, CocoSet(films, whole.classes))
        data = replace(
            full.data,
            annotations=str(path),
            split="",
            parts={"train": 0.8, "val": 0.2},
            masks=False,
            publishable_only=False,
        )
        trainings[str(size)] = replace(
            full, out=str(workdir / str(size)), data=data, epochs=round(config.views / (0.8 * size))
        )
    number = sum(len(select_films(full.data, config.seed).films[p]) for p in ("train", "val"))
    return {**trainings, f"all {number}": full}


def networks(config: BoxStudyConfig, workdir: Workdir) -> dict[str, TrainConfig]:
    """Network → training on all boxes."""
    return {
        name: base(
            config, workdir / name.replace(", ", "_").replace(" ", ""), **{"side": 320, **own}
        )
        for name, own in NETWORKS.items()
    }


def run(
    name: str, training: TrainConfig, tests: dict[str, list[CocoFilm]], config: BoxStudyConfig
) -> dict[str, Any]:
    """Train where there is no bundle yet, and measure."""
    from detect.evaluate import WHOLE_FILM, EvaluateConfig, evaluate
    from detect.finder import ThoraxFinder
    from detect.train import train

    bundle, done = (Path(training.out) / f for f in ("thorax.safetensors", "measured.json"))
    if done.exists():
        return dict(read_json(done))
    if not bundle.exists():
        log.info("%s: %d epochs", name, training.epochs)
        train(training)
    finder = ThoraxFinder.load(bundle, box="detector")
    ask = EvaluateConfig(data=config.data)
    row: dict[str, Any] = {"name": name, "epochs": training.epochs, "sets": {}}
    for key, films in tests.items():
        line = evaluate(finder, films, WHOLE_FILM, ask).blocks["all"]["detector"].summary
        told = ("films", "patients", "misses", "mean_iou", "share_iou_90")
        row["sets"][key] = {name: to_plain(getattr(line, name)) for name in told}
    write_json(done, row)
    return row


def table(rows: Sequence[dict[str, Any]], tests: dict[str, Any]) -> list[str]:
    """The lines of a table: a detector a row, mean IoU, share at 0.9 and misses of each set."""
    head = ["boxes or network", "epochs"]
    for key, films in tests.items():
        head += [f"{key}, {len(films)} films: mean IoU [95 %]", "IoU≥.9 [95 %]", "misses"]
    cells = []
    for row in rows:
        line = [row["name"], str(row["epochs"])]
        for key in tests:
            seen = row["sets"][key]
            shares = (in_words(Interval(**seen[k])) for k in ("mean_iou", "share_iou_90"))
            line += [*shares, str(seen["misses"])]
        cells.append(line)
    return to_markdown(head, cells)


def draw(rows: Sequence[dict[str, Any]], tests: dict[str, Any], path: Path) -> None:
    """Mean IoU with its interval over the number of boxes, a line a set."""
    figure = new_figure(7, 4.2)
    axis = figure.subplots()
    sizes = [int(row["name"].split()[-1]) for row in rows]
    for (colour, style), key in zip(LINES, tests, strict=False):
        found = [Interval(**row["sets"][key]["mean_iou"]) for row in rows]
        means, lows, highs = zip(*((f.value, f.low, f.high) for f in found), strict=True)
        spread = [np.subtract(means, lows), np.subtract(highs, means)]
        axis.errorbar(sizes, means, spread, fmt=style, color=colour, capsize=3, label=key)
    axis.axhline(0.95, color="grey", linewidth=1, linestyle=":")
    axis.annotate("two people: 0.95", (sizes[0], 0.951), color="grey")
    axis.set_xscale("log")
    axis.set_xticks(sizes, [str(n) for n in sizes])
    axis.minorticks_off()
    axis.set(xlabel="boxed films", ylabel="mean IoU with a person's box")
    axis.grid(alpha=0.3)
    axis.legend()
    write_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())

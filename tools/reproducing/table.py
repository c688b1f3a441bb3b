"""A table's finished cells put into the paper's layout, ready for Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product
from string import ascii_lowercase
from typing import Any

from cxr.stats import Figure
from reproducing.cells import Cell
from reproducing.engine import read_result
from reproducing.experiment import Experiment, Measure, flatten
from reproducing.figures import Entry, entries_of
from reproducing.place import Place
from reproducing.runners import find_runner

TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_auc": "AUC (macro)",
    "macro_f1": "F1 (macro)",
    "lift": "Attention: lift in the lungs",
}
LIFTS = {"explanation": "Lift of its own map", "explanation_class": "Lift of that for the class"}
ATTENTION_FILMS = {"smoke": 8, "small": 120, "paper": 0}


@dataclass(frozen=True)
class Row:
    """A cell of the table with all its measures, and the letters of what differs."""

    row: str
    column: str
    entries: dict[str, Entry]
    letters: tuple[str, ...]
    key: str
    seconds: float | None


@dataclass(frozen=True)
class ProbeRow:
    """What a model without lungs reaches on the same films."""

    name: str
    figures: dict[str, Figure | None]


@dataclass(frozen=True)
class Table:
    """Everything that the Markdown and the page show.

    `made`: command, made (the date), commit, versions, seed, draws, parts and films; nothing in it
    names a folder of this machine.
    """

    experiment: Experiment
    budget: str
    input: str
    rows: tuple[Row, ...]
    legend: tuple[tuple[str, str], ...]
    probe: tuple[ProbeRow, ...]
    probe_reason: str
    notes: tuple[str, ...]
    made: dict[str, Any]

    @property
    def failed(self) -> int:
        """Cells without a training that came to its end."""
        return sum(any(e.state == "failed" for e in row.entries.values()) for row in self.rows)

    @property
    def finished(self) -> int:
        """Cells with figures."""
        return sum(row.seconds is not None for row in self.rows)

    def cell(self, row: str, column: str) -> Row:
        """One cell."""
        return next(r for r in self.rows if (r.row, r.column) == (row, column))

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures with their titles."""
        return tuple(
            Measure(m.name, m.title or measure_title(m.name), m.ours_only)
            for m in self.experiment.measures
        )

    def title_of(self, measure: str) -> str:
        """A measure's title."""
        return next(m.title for m in self.measures if m.name == measure)


def measure_title(name: str) -> str:
    """A measure's name for a person."""
    if name in TITLES:
        return TITLES[name]
    group, _, rest = name.partition(".")
    return {
        "f1": f"F1 of {rest}",
        "auc": f"AUC of {rest}",
        "lift": LIFTS.get(rest, f"Lift, {NAMES.get(rest, rest)} alone"),
        "goes": f"Held-out films called {rest}",
        "kept": f"{rest}: kept for reading".capitalize(),
        "found": f"{rest}: found by its member".capitalize(),
        "features": f"Features {rest}",
        "gain": f"Gain in {rest.upper()} over all features",
    }.get(group, f"{group.capitalize()} of {rest}")


def fill_rows(
    experiment: Experiment, cells: Sequence[Cell], place: Place, budget: str, data: str = ""
) -> tuple[tuple[Row, ...], tuple[tuple[str, str], ...]]:
    """The cells' figures, and the legend of what differs: (letter, sentence).

    `data` is the sentence about films that differ from the paper's; it goes with every cell.
    """
    letters: dict[str, str] = {}
    names = letter_names()
    rows = []
    for cell in cells:
        sentences = differences(experiment, cell.settings, cell.paper)
        sentences = [data, *sentences] if data else sentences
        for sentence in sentences:
            if sentence not in letters:
                letters[sentence] = next(names)
        entries = entries_of(cell, experiment, place, ATTENTION_FILMS[budget])
        seconds = float(read_result(cell)["seconds"]) if cell.finished else None
        ours = tuple(sorted((letters[s] for s in sentences), key=lambda x: (len(x), x)))
        rows.append(Row(cell.row, cell.column, entries, ours, cell.key, seconds))
    return tuple(rows), tuple((letter, sentence) for sentence, letter in letters.items())


def notes_of(experiment: Experiment, budget: str, cells: Sequence[Cell]) -> tuple[str, ...]:
    """The file's notes, the budget's, those of its rows and columns, and what had to be chosen."""
    notes = [*experiment.notes, *experiment.budgets[budget].notes]
    for line in (*experiment.rows, *experiment.columns):
        if budget in line.budgets:
            notes += [f"{line.name}: {note}" for note in line.budgets[budget].notes]
    guess = guesses(experiment, [cell.paper for cell in cells])
    return tuple(filter(None, [*notes, guess]))


def letter_names() -> Iterator[str]:
    """a, b … z, aa, ab …"""
    for length in count(1):
        yield from map("".join, product(ascii_lowercase, repeat=length))


def spans(letters: Sequence[str]) -> str:
    """Letters in short: a, b, c, e as «a–c, e»."""
    names = letter_names()
    place = {name: i for i, name in zip(range(2000), names, strict=False)}
    runs: list[list[str]] = []
    for letter in sorted(letters, key=place.__getitem__):
        if runs and place[letter] == place[runs[-1][-1]] + 1:
            runs[-1].append(letter)
        else:
            runs.append([letter])
    words = [", ".join(run) if len(run) < 3 else f"{run[0]}–{run[-1]}" for run in runs]
    return ", ".join(words)


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
# Any other is called by its own name: "weight decay {}".
_PHRASES = {
    "side": "{} px",
    "epochs": "{} epochs",
    "max_epochs": "at most {} epochs",
    "rate": "learning rate {}",
    "optimizer": "optimiser {}",
    "schedule": "{} schedule",
    "folds": "{} folds",
    "freeze_to": "frozen to {}",
    "extra_fc": "extra FC layer {}",
    "augment": "augmentation {}",
    "copies": "{} copies a film",
    "nets": "networks {}",
    "max_films": "at most {} films",
    "per_label": "films of each class {}",
    "clip": "percentile clip {}",
    "sources": "films of {}",
    "choose": "epoch chosen by {}",
    "ema": "averaged weights (decay {})",
    "kind": "split of kind {}",
    "learn": "learnt from {} of the patients",
    "encoder_rate": "encoder's rate times {}",
    "publishable_only": "publishable films only: {}",
    "warmup_epochs": "{} epochs of warm-up",
    "decoder_channels": "decoder widths {}",
    "restore_weight": "λ {}",
    "region.kind": "region {}",
    "region.path": "region's folder {}",
    "neck_channels": "neck {}",
    "dilation": "region dilated by {} px",
    "unseen": "held out {}",
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
_SILENT = re.compile(
    "data|crops|out|cache|device|workers|draws|seed|precision|accelerator|devices|bundle|"
    "picture_every|half|restart|split|follow"
)
_SHARED = ("parts", "per_label")  # their shares make one phrase, in this order:
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
        guessed = any(k in experiment.guessed for k in group)
        there = _say(group, theirs, alone=True)
        where = f"paper not given, full recipe {there}" if guessed else f"paper {there}"
        stage = "pretraining: " * key.startswith(_BEFORE)
        sentences.append(f"{stage}{_say(group, mine)} ({where})")
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
            group = (key,) if pair else _group(key, set(known[0]))
            _, *others = dict.fromkeys(_say(group, flat, alone=True) for flat in known)
            words = " or ".join([_say(group, known[0]), *others])
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
    return key in free or bool(_SILENT.fullmatch(key.rpartition(".")[2]))


def _group(key: str, keys: set[str]) -> tuple[str, ...]:
    """The settings that are told in one phrase with `key`."""
    for name, weights in _PAIRS.items():
        if key in (name, weights) and {name, weights} <= keys:
            return name, weights
    head = key.rpartition(".")[0]
    if head.endswith(_SHARED):  # three shares are one split
        return tuple(f"{head}.{name}" for name in _ORDER if f"{head}.{name}" in keys)
    return (key,)


def _say(group: Sequence[str], settings: Mapping[str, Any], alone: bool = False) -> str:
    """Settings in words; `alone` is the short form for the brackets."""
    key, value = group[0], settings.get(group[0])
    if key in _PAIRS and len(group) > 1:
        name, weights = (str(settings.get(k)) for k in group)
        return f"{NAMES.get(name, name)} with {START.get(weights, weights)}"
    head, _, last = key.rpartition(".")
    if last in ("max_films", "sources") and not value:
        return "all" if alone else "all films"
    if last in ("weights", "name"):
        return START.get(str(value), _value(value))
    said = _value(value)
    if head.endswith(_SHARED):
        head, _, last = head.rpartition(".")
        shares = [(k.rpartition(".")[2], settings[k]) for k in group if k in settings]
        said = ", ".join(f"{part} {_value(share)}" for part, share in shares)
    both = f"{head.rpartition('.')[2]}.{last}"  # a kind is a kind of what
    phrase = _PHRASES.get(both, _PHRASES.get(last, f"{last.replace('_', ' ')} {{}}"))
    said = said if alone else phrase.format(said)
    return said.removesuffix("s") if said in ("1 epochs", "1 folds") else said


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

"""Members: what they answer to a film (normal, the disease that one seeks, or any other), bundles
that lie together in a folder, and classifiers that were trained elsewhere in their place: what
--model names, and what must be known of it. `classify.models.foreign` builds it.

    torchxrayvision:densenet121-res224-all     its weights from torchxrayvision's own folder
    torchxrayvision:densenet121-res224-all@net.pt
    timm:resnet18@net.safetensors              a network of timm with your weights
    torchvision:resnet18@net.pth               one of torchvision
    onnx:net.onnx                              films in, logits out
    python:my_project.nets:make                calls make() of your own code

A `python:` name runs code. It comes from the command line, or from run.json of a run that was begun
with it, and from nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from classify.preprocess import ForeignPreprocess
from cxr.cli import from_plain, to_plain
from cxr.films_table import FilmRow, has_disease, is_abnormal, label_word
from cxr.rules import require, require_one_of

NORMAL, TARGET, OTHERS = 0, 1, 2
NAME_OF_NORMAL = "normal"
GUARD = "guard.safetensors"  # lies among the members and is none
FAR_BELOW = 30.0  # so far below a network's logits lies that of a class which it does not know
KINDS = ("torchxrayvision", "timm", "torchvision", "onnx", "python")
ANSWERS = ("softmax", "sigmoid")
GIVES = ("logits", "probabilities")
_FORMS = (
    "torchxrayvision:NAME, timm:NAME@WEIGHTS, torchvision:NAME@WEIGHTS, onnx:FILE or "
    "python:MODULE:FUNCTION"
)


def normal_of(classes: Sequence[str]) -> int:
    """The index of the class normal, against which a member weighs its target; raises ValueError
    where there is none, or nothing else."""
    if NAME_OF_NORMAL not in classes or len(classes) < 2:
        raise ValueError(
            f"classes of the network must hold {NAME_OF_NORMAL!r} and one more, for "
            "runs and audits weigh each class against it. Got "
            f"{', '.join(classes)} instead."
        )
    return list(classes).index(NAME_OF_NORMAL)


def label_of(
    row: FilmRow, target: str, classes: str = "three", known: Sequence[str] = ()
) -> int | None:
    """What a member should answer: NORMAL (no disease at all), TARGET or OTHERS for three classes;
    with two (`normal` or `target` against all else) 0 or 1, the disease sought being 1. None where
    the film's truth is unknown; `known` are labels beside the usual ones."""
    sick, found = is_abnormal(row, (target, *known)), has_disease(row, [target])
    if sick is None:
        return None
    if classes == "three":
        return TARGET if found else OTHERS if sick else NORMAL
    return int(sick if classes == "normal" else found)


def bundles_in(folder: Path) -> list[Path]:
    """The bundles of a folder but the guard, which lies among the members and is none."""
    return sorted(path for path in folder.glob("*.safetensors") if path.name != GUARD)


def member_files(folder: str | Path) -> list[Path]:
    """The bundles of a folder of members, or of a single network; raises ValueError for none."""
    folder = Path(folder)
    files = bundles_in(folder)
    if not files:
        folds = f" (it holds folds: give {folder / 'fold0'})" * (folder / "fold0").is_dir()
        raise ValueError(
            f"{folder} must hold members' bundles (TARGET.safetensors). Got none{folds}: train "
            "them with python -m classify.train, or give another folder."
        )
    return files


def targets_of(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """The targets that a member answers for, by its bundle's metadata; one, in an older bundle."""
    return tuple(meta.get("targets") or (meta["target"],))


def classes_of(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """What a member answers; three, where its bundle does not say."""
    return tuple(meta.get("classes") or ("normal", *targets_of(meta)[:1], "others"))


def check_together(folder: str | Path, metas: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raises ValueError unless the bundles, by path, are members that can be screened as one."""
    first_path, first = next(iter(metas.items()))
    for path, meta in metas.items():
        names = classes_of(meta)
        if len(names) != 3:
            raise ValueError(
                f"a member must answer normal / target / others to be screened with. {path} "
                f"answers {' / '.join(names)}: train it with classes: three."
            )
        for key in ("preprocessing", "trained_on"):
            if meta[key] != first[key]:
                raise ValueError(
                    f"members of {folder} must agree in {key}. {path.name} has "
                    f"{meta[key]}, {first_path.name} {first[key]}."
                )
    targets = [t for meta in metas.values() for t in targets_of(meta)]
    if len(set(targets)) != len(targets):
        raise ValueError(f"members of {folder} must have different targets. Got {targets}.")


# --- classifiers that were trained elsewhere


@dataclass(frozen=True)
class ModelSpec:
    """A classifier by its kind (one of KINDS), its name there, and its file, where it has one."""

    kind: str
    name: str
    file: str = ""

    @classmethod
    def parse(cls, text: str, name: str = "--model") -> ModelSpec:
        """Raises ValueError, which says what there is, for a text that names no model."""
        kind, _, rest = text.partition(":")
        rule = f"{name} must be {_FORMS}"
        require(kind in KINDS and bool(rest), rule, text)
        if kind == "onnx":
            return cls(kind, Path(rest).name, rest)
        if kind == "python":
            module, _, function = rest.partition(":")
            require(all(p.isidentifier() for p in (*module.split("."), function)), rule, text)
            return cls(kind, rest)
        model, _, file = rest.partition("@")
        require(bool(model) and (bool(file) or kind == "torchxrayvision"), rule, text)
        return cls(kind, model, file)

    def __str__(self) -> str:
        if self.kind == "onnx":
            return f"onnx:{self.file}"
        return f"{self.kind}:{self.name}" + (f"@{self.file}" if self.file else "")

    @property
    def title(self) -> str:
        """Its short name in tables."""
        return f"{self.kind} {self.name}"

    @property
    def settings_file(self) -> Path | None:
        """The YAML file that may lie beside the weights."""
        return Path(self.file).with_suffix(".yaml") if self.file else None


@dataclass(frozen=True)
class ForeignConfig:
    """What must be known of a classifier that was trained elsewhere. What is left empty is what its
    library knows of it, and else the default named here.

    Args:
        findings: the name of each output, in their order; an empty name leaves one out. `normal`
            is one that says that there is no disease.
        answers: softmax, where one class is right; sigmoid, where each finding is asked by itself.
            Empty: sigmoid without an output for normal, else softmax.
        gives: logits or probabilities.
        words: finding → its name in films.csv and for the screener, where that is another.
        thresholds: finding → the probability from which on the classifier says it (sigmoid); 0.5
            where none is given.
        layer: the layer that maps are drawn of, by its name in the network. Empty: the last one
            that gives maps.
        channels: 1 or 3 channels of the input; 0: as the network has it.
        preprocessing: side, fit, mean, std and all else of `classify.preprocess`, by name.
    """

    findings: tuple[str, ...] = ()
    answers: str = ""
    gives: str = "logits"
    words: dict[str, str] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    layer: str = ""
    channels: int = 0
    preprocessing: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_one_of(self, answers=("", *ANSWERS), gives=GIVES)
        require(self.channels in (0, 1, 3), "channels must be 1 or 3, or 0", self.channels)
        named = [f for f in self.findings if f]
        require(len(set(named)) == len(named), "findings must have different names", named)
        if named:
            odd = sorted({*self.words, *self.thresholds} - set(named))
            require(not odd, "words and thresholds must be of the findings", odd)
        if not all(0 < t < 1 for t in self.thresholds.values()):
            raise ValueError(f"thresholds must lie between 0 and 1. Got {self.thresholds}.")
        if self.answers == "softmax" and self.thresholds:
            raise ValueError("thresholds must be left out where answers is softmax.")
        self.settings_from({})

    @classmethod
    def read(cls, path: Path) -> ForeignConfig:
        """From a YAML file; raises OSError or ValueError, which names it."""
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            require(isinstance(data, dict), "it must hold names and values", type(data).__name__)
            return from_plain(cls, data)
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def of_run(cls, known: dict[str, Any]) -> ForeignConfig:
        """As a run recorded it among its settings."""
        names = {f.name for f in fields(cls)}
        return from_plain(cls, {k: v for k, v in known.items() if k in names})

    def filled_from(self, known: dict[str, Any]) -> ForeignConfig:
        """With what a library knows where nothing is said here."""
        ours = {k: v for k, v in to_plain(self).items() if v or k not in known}
        laid = {**known.get("preprocessing", {}), **self.preprocessing}
        return from_plain(type(self), {**known, **ours, "preprocessing": laid})

    def settings_from(self, defaults: dict[str, Any]) -> ForeignPreprocess:
        """The preprocessing; raises ValueError for what it does not know."""
        given = {**_PLAIN, **defaults, **self.preprocessing}
        names = {f.name for f in fields(ForeignPreprocess)}
        odd = sorted(set(given) - names)
        require(not odd, f"preprocessing must be of {', '.join(sorted(names))}", odd)
        return ForeignPreprocess.from_dict(given)

    @property
    def targets(self) -> dict[int, str]:
        """Output → the target of its member: every output that has a name and is not normal."""
        found = {n: self.word_of(f) for n, f in enumerate(self.findings) if f}
        return {n: word for n, word in found.items() if word != NAME_OF_NORMAL}

    @property
    def normal(self) -> int | None:
        """The output that says normal, where there is one."""
        said = [n for n, f in enumerate(self.findings) if f and self.word_of(f) == NAME_OF_NORMAL]
        return said[0] if said else None

    def word_of(self, finding: str) -> str:
        """A finding as tables name it."""
        return label_word(self.words.get(finding, finding)).replace(" ", "_")

    def checked(self, spec: ModelSpec, outputs: int) -> ForeignConfig:
        """Complete for a classifier of so many outputs; raises ValueError for what is missing."""
        if len(self.findings) != outputs:
            beside = spec.settings_file or "a YAML file"
            got = f"{len(self.findings)}: {', '.join(self.findings)}" if self.findings else "none"
            raise ValueError(
                f"findings of {spec} must name its {outputs} outputs, in their order. Got {got}. "
                f"Write them into {beside}, such as `findings: [normal, pneumonia]`, and name it "
                "with --model_settings where it does not lie beside the weights."
            )
        words = list(self.targets.values())
        require(bool(words), f"findings of {spec} must hold one that is not normal", self.findings)
        rule = "words must name each finding differently"
        require(len(set(words)) == len(words), rule, words)
        answers = self.answers or ("sigmoid" if self.normal is None else "softmax")
        rule = "answers must be sigmoid for a single output"
        require(outputs > 1 or answers == "sigmoid", rule, answers)
        return replace(self, answers=answers)


# as most classifiers are trained: the film's greys as they are, resized once
_PLAIN: dict[str, Any] = {"clip": False, "work_side": 0, "contrast": "none"}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def settings_for(spec: ModelSpec, path: str) -> ForeignConfig:
    """The settings of `--model_settings`, else those beside the weights, else none."""
    if path:
        return ForeignConfig.read(Path(path))
    beside = spec.settings_file
    return ForeignConfig.read(beside) if beside and beside.is_file() else ForeignConfig()


def check_model(model: str, settings: str) -> None:
    """Raises ValueError for what --model and --model_settings cannot be."""
    if model:
        ModelSpec.parse(model)
    require(bool(model) or not settings, "--model_settings must stand beside --model", settings)


def sentence_of(known: dict[str, Any]) -> str:
    """Which model answered, in a sentence, by what a run recorded of it."""
    return (
        f"The answers are those of {known['spec']} (SHA-256 of its weights "
        f"{known['sha256'][:12]}…), a classifier that was trained elsewhere: which films it was "
        "trained on is not known here."
    )

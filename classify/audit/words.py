"""What the audit page calls things, and one short sentence for each: no figure without words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric's name, its sentence, its unit, and what chance or a blind map would give."""

    name: str
    means: str
    unit: str = "share"  # "share" in per cent, "ratio" as ×, "sd" and "score" as they are
    chance: float | None = None
    chance_by: str = ""  # the metric that holds each row's own chance level
    better: str = ""  # "higher", "lower" or "" where neither is


LIFT = "How many times more attention falls on lung than its area would get by chance; 1 is chance."
_ALL = {
    "lift": Metric("Lift", LIFT, "ratio", 1.0, "gaussian_lift", "higher"),
    "inside_share": Metric(
        "Attention on lung",
        "The share of all attention that falls on lung; chance gives it the lung's share of the "
        "area, so this figure alone proves nothing.",
        chance_by="area_share",
        better="higher",
    ),
    "lift_z": Metric(
        "Lift against luck",
        "How far the lift lies above that of random maps as coarse as the network's, in their "
        "standard deviations; 0 is chance, and beyond 2 luck is an unlikely explanation on a film.",
        "sd",
        0.0,
        better="higher",
    ),
    "lift_over_gaussian": Metric(
        "Lift beyond a blind blob",
        "The lift less that of a blob in the middle of every film, which looks at nothing.",
        "ratio",
        0.0,
        better="higher",
    ),
    "lift_answered": Metric(
        "Lift where the answer is yes",
        "The lift on films on which the network says that its disease is there. On the others the "
        "map shows what speaks for a disease that it does not find.",
        "ratio",
        1.0,
        "gaussian_lift",
        "higher",
    ),
    "road_area": Metric(
        "Faithfulness (ROAD)",
        "How much faster the probability falls when the brightest parts of the map are taken away "
        "than when the darkest are; above 0 the answer hangs on what the map shows.",
        "score",
        0.0,
        better="higher",
    ),
    "road_over_random": Metric(
        "Faithfulness beyond luck",
        "The same against parts taken away at random.",
        "score",
        0.0,
        better="higher",
    ),
    "below_chance": Metric(
        "Films below chance",
        "The share of films on which lung gets less attention than its area would get by chance.",
        better="lower",
    ),
    "area_share": Metric("Lung area", "The share of what the network saw that is lung."),
    "pointing_hit": Metric(
        "Pointing game",
        "The share of films on which the single brightest point of the map lies on lung.",
        chance_by="area_share",
        better="higher",
    ),
    "border_share": Metric(
        "Attention on the border",
        "The share of attention on the outermost band of what the network saw, where there is "
        "rarely anything to diagnose.",
        chance_by="border_area_share",
        better="lower",
    ),
    "outside_box_share": Metric(
        "Attention outside the thorax box",
        "The share of attention that falls outside the box round the thorax.",
        better="lower",
    ),
    "text_share": Metric(
        "Attention on writing",
        "The share of attention on letters and marks burnt into the film.",
        chance_by="text_area_share",
        better="lower",
    ),
    "finding_share": Metric(
        "Attention on the finding",
        "The share of attention inside the box a radiologist drew round the finding; chance gives "
        "it the box's share of the area.",
        chance_by="finding_area_share",
        better="higher",
    ),
    "finding_lift": Metric(
        "Lift on the finding",
        "How many times more attention falls inside the radiologist's box than its area would get "
        "by chance; 1 is chance.",
        "ratio",
        1.0,
        better="higher",
    ),
    "finding_hit": Metric(
        "Pointing at the finding",
        "The share of films on which the brightest point of the map lies in the radiologist's box.",
        chance_by="finding_area_share",
        better="higher",
    ),
    "finding_area_share": Metric(
        "Area of the finding", "The share of what the network saw that the finding's box covers."
    ),
    "gaussian_lift": Metric(
        "Lift of a centred blob",
        "The lift of a map that looks at the middle of every film and at nothing in particular.",
        "ratio",
        1.0,
    ),
    "random_lift": Metric(
        "Lift of a random map", "The lift of random maps as coarse as the network's.", "ratio", 1.0
    ),
    "random_sd": Metric("Spread of random maps", "The standard deviation of their lifts.", "ratio"),
    "border_area_share": Metric("Border area", "The border's share of what the network saw."),
    "text_area_share": Metric("Area of writing", "Its share of what the network saw."),
    "flagged": Metric("Flagged films", "The share of films that carry at least one flag."),
    "empty": Metric("Empty maps", "The share of films whose map is zero everywhere."),
    "accuracy": Metric("Accuracy", "The share of films named rightly.", better="higher"),
    "balanced_accuracy": Metric(
        "Balanced accuracy",
        "The mean share named rightly over the labels, each label counted alike.",
        better="higher",
    ),
    "auc": Metric(
        "AUC",
        "How often a film with the disease scores above one without; 0.5 is guessing.",
        "score",
        0.5,
        better="higher",
    ),
}
_ALIASES = {
    "inside": "inside_share",
    "area": "area_share",
    "border": "border_share",
    "outside_box": "outside_box_share",
    "text": "text_share",
    "pointing": "pointing_hit",
    "finding": "finding_share",
    "auroc": "auc",
    "macro_auc": "auc",
}
ORDER = tuple(_ALL)

FLAGS = {
    "looks outside": "Far less attention on lung than on the films the network was trained on.",
    "border": "Unusually much attention on the outermost band of the picture.",
    "text": "Unusually much attention on letters or marks burnt into the film.",
    "map empty": "The map is zero everywhere: nothing on the film speaks for the target.",
    "field and box disagree": "Lung field and thorax box do not lie over each other: one of the "
    "two is wrong, so the figures of this film mean little.",
}
AS_IS = "as is"
_CONTROLS = {
    AS_IS: "as it is",
    "outside only": "lungs blacked out",
    "lungs only": "only lungs shown",
    "shape only": "silhouette alone",
}
# blind maps that a distribution is held against
BLIND = {"random": "random maps", "gaussian": "centred blob", "even": "even spread"}


def metric_key(name: str) -> str:
    """The name a metric goes by here: "mean lift" and "inside" become "lift", "inside_share"."""
    key = str(name).strip().lower().replace(" ", "_").replace("-", "_").removeprefix("mean_")
    return _ALIASES.get(key, key)


def metric(name: str) -> Metric:
    """Words for a metric; one that is not known keeps its own name and gets no sentence."""
    known = _ALL.get(metric_key(name))
    return known or Metric(str(name).replace("_", " "), "", "score")


def control_name(control: str) -> str:
    """What a masking control does: "outside_only" blacks the lungs out, "outside only, mean" paints
    them in the mean of what stays."""
    name, _, fill = str(control).replace("_", " ").partition(", ")
    words = _CONTROLS.get(name, name)
    return f"{words.replace('blacked out', 'painted over')}, {fill} grey" if fill else words


def order_of(name: str) -> tuple[int, str]:
    """For sorting: known metrics in the page's order, others behind them by name."""
    key = metric_key(name)
    return (ORDER.index(key) if key in ORDER else len(ORDER)), key

"""What the audit page calls its figures, and one short sentence for each: none without words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric's name, its sentence, its unit, and what chance or a blind map would give."""

    name: str
    means: str
    better: str = ""  # "higher", "lower" or "" where neither is
    unit: str = "share"  # "share" in per cent, "ratio" as ×, "sd" and "score" as they are
    chance: float | None = None
    chance_by: str = ""  # the metric of BLIND that holds each row's own chance level


LIFT = "How many times more attention falls on lung than its area would get by chance; 1 is chance."
METRICS = {  # in the page's order
    "lift": Metric("Lift", LIFT, "higher", "ratio", 1.0, "gaussian_lift"),
    "inside_share": Metric(
        "Attention on lung",
        "The share of all attention that falls on lung; chance gives it the lung's share of the "
        "area, so this figure alone proves nothing.",
        "higher",
        chance_by="area_share",
    ),
    "lift_z": Metric(
        "Lift against luck",
        "How far the lift lies above that of random maps as coarse as the network's, in their "
        "standard deviations; 0 is chance, and beyond 2 luck is an unlikely explanation on a film.",
        "higher",
        "sd",
        0.0,
    ),
    "lift_over_gaussian": Metric(
        "Lift beyond a blind blob",
        "The lift less that of a blob in the middle of every film, which looks at nothing.",
        "higher",
        "ratio",
        0.0,
    ),
    "lift_answered": Metric(
        "Lift where the answer is yes",
        "The lift on films on which the network says that its disease is there. On the others the "
        "map shows what speaks for a disease that it does not find.",
        "higher",
        "ratio",
        1.0,
        "gaussian_lift",
    ),
    "road_area": Metric(
        "Faithfulness (ROAD)",
        "How much faster the probability falls when the brightest parts of the map are taken away "
        "than when the darkest are; above 0 the answer hangs on what the map shows.",
        "higher",
        "score",
        0.0,
    ),
    "road_over_random": Metric(
        "Faithfulness beyond luck",
        "The same against parts taken away at random.",
        "higher",
        "score",
        0.0,
    ),
    "road_lungs": Metric(
        "The answer hangs on lungs",
        "How much faster the probability falls when the lungs are taken away than when all else "
        "is; above 0 the answer hangs on lungs, whatever the map shows.",
        "higher",
        "score",
        0.0,
    ),
    "below_chance": Metric(
        "Films below chance",
        "The share of films on which lung gets less attention than its area would get by chance.",
        "lower",
    ),
    "pointing_hit": Metric(
        "Pointing game",
        "The share of films on which the single brightest point of the map lies on lung.",
        "higher",
        chance_by="area_share",
    ),
    "border_share": Metric(
        "Attention on the border",
        "The share of attention on the outermost band of what the network saw, where there is "
        "rarely anything to diagnose.",
        "lower",
        chance_by="border_area_share",
    ),
    "outside_box_share": Metric(
        "Attention outside the thorax box",
        "The share of attention that falls outside the box round the thorax.",
        "lower",
    ),
    "text_share": Metric(
        "Attention on writing",
        "The share of attention on letters and marks burnt into the film.",
        "lower",
        chance_by="text_area_share",
    ),
    "finding_share": Metric(
        "Attention on the finding",
        "The share of attention inside the box a radiologist drew round the finding; chance gives "
        "it the box's share of the area.",
        "higher",
        chance_by="finding_area_share",
    ),
    "finding_lift": Metric(
        "Lift on the finding",
        "How many times more attention falls inside the radiologist's box than its area would get "
        "by chance; 1 is chance.",
        "higher",
        "ratio",
        1.0,
    ),
    "finding_hit": Metric(
        "Pointing at the finding",
        "The share of films on which the brightest point of the map lies in the radiologist's box.",
        "higher",
        chance_by="finding_area_share",
    ),
    "flagged": Metric("Flagged films", "The share of films that carry at least one flag."),
    "empty": Metric("Empty maps", "The share of films whose map is zero everywhere."),
    "accuracy": Metric("Accuracy", "The share of films named rightly.", "higher"),
    "auc": Metric(
        "AUC",
        "How often a film with the disease scores above one without; 0.5 is guessing.",
        "higher",
        "score",
        0.5,
    ),
}
# metrics of maps that are blind to the film: they stand beside the others alone
BLIND = {
    "gaussian_lift": "lift of a centred blob",
    "area_share": "lung area",
    "border_area_share": "border area",
    "text_area_share": "area of writing",
    "finding_area_share": "area of the finding",
}
BLIND_MAPS = {"random": "random maps", "gaussian": "centred blob", "even": "even spread"}
# what a crop changes without any change of the network's attention
_HOLDS_MORE = "It rises by cropping alone, as a crop holds more lung: compare lifts."
TRAPS = {
    "inside_share": _HOLDS_MORE,
    "pointing_hit": _HOLDS_MORE,
    "border_share": "The border is that of what each network saw: a crop's runs through the chest "
    "wall.",
    "outside_box_share": "It falls by cropping alone, as a crop is little more than the box.",
}
SHOWN = {  # what the masking controls leave of a film
    "as is": "as it is",
    "outside only": "lungs blacked out",
    "lungs only": "only lungs shown",
    "shape only": "silhouette alone",
    "swapped": "another film around",
}

"""What an audit found, in figures with intervals by patient and in one sentence; and what the page
calls its figures, with one short sentence for each: none without words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from classify.audit.metrics import METRICS as MEASURED
from classify.audit.rows import BOUNDS, UNKNOWN, AuditRow, Row, Thresholds, figure_cells
from cxr.stats import Figure, in_words, mean_figure


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


# --- what was found

ALL = ""  # the source of figures over all films
_LIFTS = ("lift", "gaussian_lift", "random_lift")
_FIGURES = (*_LIFTS, *(name for name in MEASURED if name not in (*_LIFTS, "random_sd")))
_FIGURES += ("lift_z", "lift_answered", "below_chance", "flagged", "empty")
# edges of each histogram, and the means of what blind maps would give
_HISTOGRAMS = {
    "lift": (np.linspace(0, 2, 41), {"random": "random_lift", "gaussian": "gaussian_lift"}),
    "border_share": (np.linspace(0, 0.8, 41), {"even": "border_area_share"}),
}


def figure_rows(rows: Sequence[AuditRow], draws: int, seed: int) -> list[Row]:
    """Mean of each figure for each member, over all films and source by source."""
    out = []
    for member, source, chosen in _groups(rows):
        patients = [row.patient for row in chosen]
        for name in _FIGURES:
            found = _mean_figure((row.value(name) for row in chosen), patients, draws, seed)
            if found.n:
                about = {"member": member, "source": source, "name": name}
                out.append({**about, **figure_cells(found)})
    return out


def distributions(rows: Sequence[AuditRow]) -> list[Row]:
    """Histograms of lift and border share for each member, with what blind maps would give."""
    out: list[Row] = []
    for member, source, chosen in _groups(rows):
        for metric, (edges, blind) in _HISTOGRAMS.items() if source == ALL else ():
            values = [v for row in chosen if (v := row.value(metric)) is not None]
            if values:
                counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
                base = {k: mean_of(row.value(v) for row in chosen) for k, v in blind.items()}
                told = {"bins": edges.tolist(), "counts": {"films": counts.tolist()}}
                out.append({"member": member, "metric": metric, **told, "baseline": base})
    return out


def answer(rows: Sequence[AuditRow], draws: int, seed: int) -> Row:
    """The question's answer: mean lift over films (the mean of its members) and what it means."""
    films: dict[str, list[AuditRow]] = defaultdict(list)
    for row in rows:
        if row.value("lift") is not None:
            films[row.film].append(row)
    if not films:
        sentence = "No film has a map and a lung field, so nothing can be said."
        return {"sentence": sentence, "value": None, "low": None, "high": None}
    patients = [group[0].patient for group in films.values()]

    def mean(name: str) -> Figure:
        values = (mean_of(row.value(name) for row in group) for group in films.values())
        return _mean_figure(values, patients, draws, seed)

    lift, blob = mean("lift"), mean("gaussian_lift")
    interval = "" if lift.low is None else f" (95 % interval {lift.low:.2f} to {lift.high:.2f})"
    inside, area = (f"{100 * (mean(n).value or 0):.0f} %" for n in ("inside_share", "area_share"))
    sentence = (
        f"{_verdict(lift, blob)}: lung gets {lift.value:.2f} times the attention that its area "
        f"would get by chance{interval}. {inside} of the attention falls on lung, which is {area} "
        "of what the network sees; a blob in the middle of the picture, blind to the film, would "
        f"reach {blob.value:.2f}."
    )
    return {"sentence": sentence, "value": lift.value, "low": lift.low, "high": lift.high}


def _verdict(lift: Figure, blob: Figure) -> str:
    """In words. The interval of the lift decides, and the blob that looks at nothing."""
    if lift.low is None or lift.high is None or blob.value is None:
        return "Too few patients to tell"
    if lift.high < 1:
        return "No"
    if lift.low <= 1:
        return "No more than chance"
    if lift.low > blob.value:
        return "Yes, more than chance and more than a blind blob in the middle"
    less = "less" if lift.high < blob.value else "no more"
    return f"More than chance, but {less} than a blind blob in the middle"


def cautions(
    rows: Sequence[AuditRow],
    cropped: bool,
    thresholds: Thresholds | None,
    controls: Mapping[str, Any],
    fitted: bool = False,
) -> list[str]:
    """What a reader must know before believing the figures; `controls` are their results,
    `fitted`: the thresholds are these films' own."""
    drawn = {row.film: row.lung_by for row in rows if row.member}
    human = sum(by == "human" for by in drawn.values())
    blind, unlabelled = controls.get("blind", 0), unknown_labels(rows)
    unfaithful = [
        area
        for area in controls.get("areas", [])
        if area["name"] == "road_area" and area["low"] is not None and area["low"] <= 0
    ]
    said = {
        f"Lungs were drawn by people on {human} of {len(drawn)} films and by the lung-field "
        "network on the others.": True,
        "A map shows where a score comes from as far as the method can tell, not why. The controls "
        "say how far to trust it.": True,
        **{
            # a map that the answer does not hang on says nothing of where the network looked
            f"Do not read the maps of {area['member']} as where it looked: taking away what they "
            "show did not lower its answer faster than taking away the rest (ROAD, area "
            f"{area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}]).": True
            for area in unfaithful
        },
        "The members saw crops: lung covers more of a crop than of a film, so shares "
        "are higher than on whole films by cropping alone. Compare lifts.": cropped,
        "No thresholds are stored for these members, so only empty maps are flagged: "
        "run python -m classify.audit RUN --data DATA --part train --fit": thresholds is None,
        "The thresholds were taken from these very films, so only empty maps are flagged "
        "here.": fitted and thresholds is not None,
        f"Films without a lung field, left out of the masking control: {blind}.": blind > 0,
        f"Films whose label says nothing, left out of all figures that need it: {len(unlabelled)} "
        f"({', '.join(sorted(set(unlabelled.values())))}).": bool(unlabelled),
        "Sources differ in nearly everything: trust the rows of one source more than "
        "those of all films together.": len({row.source for row in rows if row.member}) > 1,
    }
    return [sentence for sentence, holds in said.items() if holds]


def unknown_labels(rows: Sequence[AuditRow]) -> dict[str, str]:
    """Films of the table, and their labels, that say no member's truth."""
    said = {row.film for row in rows if row.truth != UNKNOWN}
    judged = [row for row in rows if row.member and row.film not in said]
    return {row.film: row.label or "(empty)" for row in judged if row.label or row.source}


def threshold_table(thresholds: Thresholds | None) -> Mapping[str, Any]:
    """As the page lists them."""
    if thresholds is None:
        return {}
    words = {k: f"{k.partition('_')[0]} {bound.side}" for k, bound in BOUNDS.items()}
    table: dict[str, Any] = {
        member: {words[k]: round(v, 3) for k, v in own.items() if v is not None}
        for member, own in thresholds.by_member.items()
    }
    if thresholds.field_disagreement is not None:
        bound = round(thresholds.field_disagreement, 3)
        table["every member"] = {"lung field against thorax box (1 - IoU) above": bound}
    counts = {"films": thresholds.films, "patients": thresholds.patients}
    return {**table, "taken from": {**counts, "share beyond each": thresholds.tail}}


def control_rows(controls: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Rows of the controls under the page's names. A question of one source is asked of its films
    alone: its row of all films would say it twice, and its rows of other sources nothing."""

    def asked(row: Row) -> tuple[Any, ...]:
        return row.get("member"), row.get("control"), row.get("n")

    masked = [pooled(row) for row in controls.get("masked", []) if row.get("n")]
    apart = {asked(row) for row in masked if row["source"] != ALL}
    return {
        "masked": [row for row in masked if row["source"] != ALL or asked(row) not in apart],
        "randomisation": list(controls.get("randomised", [])),
        "road": list(controls.get("road", [])),
    }


def pooled(row: Mapping[str, Any]) -> Row:
    """The row with its source as the page has it: all sources together are ""."""
    return {**row, "source": ALL if row["source"] == "all" else row["source"]}


def figure_table(metrics: Sequence[Row]) -> Table:
    """The main figures for the terminal."""
    columns = ("lift [95 %]", "blind blob", "on lung", "at the border", "flagged")
    table = Table("member", "films of", *columns, highlight=False)
    found = {(m["member"], m["source"], m["name"]): m for m in metrics}
    for member, source in dict.fromkeys((m, s) for m, s, _ in found):
        cells = []
        for name in ("lift", "gaussian_lift", "inside_share", "border_share", "flagged"):
            row = found.get((member, source, name), {})
            ends = (row.get("low"), row.get("high")) if name == "lift" else (None, None)
            cells.append(in_words(Figure(row.get("value"), *ends, 0), missing=""))
        table.add_row(member, source or "all", *cells)
    return table


def _groups(rows: Sequence[AuditRow]) -> Iterator[tuple[str, str, list[AuditRow]]]:
    """Rows by member and source; all sources together first."""
    seen = [row for row in rows if row.member]
    sources = sorted({row.source for row in seen} - {""})
    for member in dict.fromkeys(row.member for row in seen):
        for source in (ALL, *(sources if len(sources) > 1 else [])):
            chosen = [r for r in seen if r.member == member and source in (ALL, r.source)]
            yield member, source, chosen


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of those that are known."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _mean_figure(
    values: Iterable[float | None], patients: Sequence[str], draws: int, seed: int
) -> Figure:
    """Mean with its interval; None where one patient, drawn again and again, would show none."""
    known = np.array(list(values), float)
    found = mean_figure(known, patients, draws, seed)
    several = len({p for p, v in zip(patients, known, strict=True) if not np.isnan(v)}) > 1
    return found if several else replace(found, low=None, high=None)

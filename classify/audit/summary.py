"""What an audit found, in figures with intervals by patient and in one sentence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.table import Table

from classify.audit.flags import Thresholds
from classify.audit.rows import AuditRow, lift_z
from classify.labels import TARGET
from cxr.stats import Figure, mean_figure

Row = dict[str, Any]
ALL = ""  # the source of figures over all films
MEANS = (
    "lift",
    "gaussian_lift",
    "random_lift",
    "inside_share",
    "area_share",
    "pointing_hit",
    "border_share",
    "border_area_share",
    "outside_box_share",
    "text_share",
    "text_area_share",
    "finding_share",
    "finding_area_share",
    "finding_lift",
    "finding_hit",
)
_BINS = {"lift": np.linspace(0, 2, 41), "border_share": np.linspace(0, 0.8, 41)}


def figure_rows(rows: Sequence[AuditRow], draws: int, seed: int) -> list[Row]:
    """Mean of each metric for each member, over all films and source by source."""
    columns: dict[str, Callable[[AuditRow], float | None]] = {
        **{name: lambda row, name=name: row.value(name) for name in MEANS},  # type: ignore[misc]
        "lift_z": lift_z,
        "lift_answered": lambda row: row.value("lift") if row.answer == TARGET else None,
        "below_chance": lambda row: None if row.value("lift") is None else row.metrics["lift"] < 1,
        "flagged": lambda row: bool(row.flags),
        "empty": lambda row: row.empty,
    }
    out = []
    for member, source, chosen in _groups(rows):
        patients = [row.patient for row in chosen]
        for name, value_of in columns.items():
            values = [value_of(row) for row in chosen]
            found = _mean_figure(values, patients, draws, seed)
            if found.n:
                out.append({"member": member, "source": source, "name": name, **_plain(found)})
    return out


def distributions(rows: Sequence[AuditRow]) -> list[Row]:
    """Histograms of lift and border share for each member, with what blind maps would give."""
    out = []
    for member, source, chosen in _groups(rows):
        if source != ALL:
            continue
        for metric, edges in _BINS.items():
            values = [v for row in chosen if (v := row.value(metric)) is not None]
            if not values:
                continue
            counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
            chance = {
                "lift": {"random": "random_lift", "gaussian": "gaussian_lift"},
                "border_share": {"even": "border_area_share"},
            }[metric]
            out.append(
                {
                    "member": member,
                    "metric": metric,
                    "bins": edges.tolist(),
                    "counts": {"films": counts.tolist()},
                    "baseline": {
                        k: _mean(row.value(v) for row in chosen) for k, v in chance.items()
                    },
                }
            )
    return out


def answer(rows: Sequence[AuditRow], draws: int, seed: int) -> Row:
    """The question's answer: mean lift over films (the mean of its members) and what it means."""
    films: dict[str, list[AuditRow]] = defaultdict(list)
    for row in rows:
        if row.value("lift") is not None:
            films[row.film].append(row)
    if not films:
        return {
            "sentence": "No film has a map and a lung field, so nothing can be said.",
            "value": None,
            "low": None,
            "high": None,
        }
    patients = [group[0].patient for group in films.values()]

    def over_films(name: str) -> Figure:
        values = [_mean(row.value(name) for row in group) for group in films.values()]
        return _mean_figure(values, patients, draws, seed)

    lift, blob = over_films("lift"), over_films("gaussian_lift")
    inside, area = over_films("inside_share"), over_films("area_share")
    assert lift.value is not None and inside.value is not None
    assert area.value is not None and blob.value is not None
    interval = "" if lift.low is None else f" (95 % interval {lift.low:.2f} to {lift.high:.2f})"
    return {
        "sentence": f"{_verdict(lift, blob)}: lung gets {lift.value:.2f} times the attention that "
        f"its area would get by chance{interval}. {100 * inside.value:.0f} % of the attention "
        f"falls on lung, which is {100 * area.value:.0f} % of what the network sees; a blob in the "
        f"middle of the picture, blind to the film, would reach {blob.value:.2f}.",
        "value": lift.value,
        "low": lift.low,
        "high": lift.high,
    }


def _verdict(lift: Figure, blob: Figure) -> str:
    """In words. The interval of the lift decides, and the blob that looks at nothing."""
    assert lift.value is not None and blob.value is not None
    low, high = lift.low, lift.high
    if low is None or high is None:
        return "Too few patients to tell"
    if high < 1:
        return "No"
    if low <= 1:
        return "No more than chance"
    if low > blob.value:
        return "Yes, more than chance and more than a blind blob in the middle"
    if high < blob.value:
        return "More than chance, but less than a blind blob in the middle"
    return "More than chance, but no more than a blind blob in the middle"


def cautions(
    rows: Sequence[AuditRow],
    cropped: bool,
    thresholds: Thresholds | None,
    trials: Mapping[str, Any] | None = None,
    fitted: bool = False,
) -> list[str]:
    """What a reader must know before believing the figures; `trials` are the controls' results,
    `fitted`: the thresholds are these films' own."""
    drawn = {row.film: row.lung_by for row in rows if row.member}
    human = sum(by == "human" for by in drawn.values())
    said = [
        f"Lungs were drawn by people on {human} of {len(drawn)} films and by the lung-field "
        "network on the others.",
        "A map shows where a score comes from as far as the method can tell, not why. The controls "
        "say how far to trust it.",
    ]
    trials = trials or {}
    said += [
        _unfaithful(row)
        for row in trials.get("areas", [])
        if row["name"] == "road_area" and row["low"] is not None and row["low"] <= 0
    ]
    if cropped:
        said.append(
            "The members saw crops: lung covers more of a crop than of a film, so shares "
            "are higher than on whole films by cropping alone. Compare lifts."
        )
    if thresholds is None:
        said.append(
            "No thresholds are stored for these members, so only empty maps are flagged: "
            "run python -m classify.audit RUN --data DATA --part train --fit"
        )
    elif fitted:
        said.append(
            "The thresholds were taken from these very films, so only empty maps are flagged here."
        )
    if blind := trials.get("blind", 0):
        said.append(f"Films without a lung field, left out of the masking control: {blind}.")
    sources = {row.source for row in rows if row.member}
    if len(sources) > 1:
        said.append(
            "Sources differ in nearly everything: trust the rows of one source more than "
            "those of all films together."
        )
    return said


def _unfaithful(area: Row) -> str:
    """A map that the answer does not hang on says nothing of where the network looked."""
    return (
        f"Do not read the maps of {area['member']} as where it looked: taking away what they "
        "show did not lower its answer faster than taking away the rest (ROAD, area "
        f"{area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}])."
    )


def threshold_table(thresholds: Thresholds | None) -> Mapping[str, Any]:
    """As the page lists them."""
    if thresholds is None:
        return {}
    words = {"lift": "lift below", "border_share": "border above", "text_share": "text above"}
    table: dict[str, Any] = {
        member: {words[k]: round(v, 3) for k, v in bounds.items() if v is not None}
        for member, bounds in thresholds.by_member.items()
    }
    if thresholds.field_disagreement is not None:
        table["every member"] = {
            "lung field against thorax box (1 - IoU) above": round(thresholds.field_disagreement, 3)
        }
    table["taken from"] = {
        "films": thresholds.films,
        "patients": thresholds.patients,
        "share beyond each": thresholds.tail,
    }
    return table


def control_rows(trials: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Rows of the controls under the names that the page knows.

    A question of one source is asked of its films alone: its row of all films would say it twice,
    and its rows of other sources nothing.
    """
    masked = [pooled(row) for row in trials.get("masked", []) if row.get("n")]
    apart = {_asked(r) for r in masked if r["source"] != ALL}
    twice = [r["source"] == ALL and _asked(r) in apart for r in masked]
    return {
        "masked": [row for row, again in zip(masked, twice, strict=True) if not again],
        "randomisation": list(trials.get("randomised", [])),
        "road": list(trials.get("road", [])),
    }


def _asked(row: Row) -> tuple[Any, ...]:
    return row.get("member"), row.get("control"), row.get("n")


def pooled(row: Mapping[str, Any]) -> Row:
    """The row with its source as the page has it: all sources together are ""."""
    return {**row, "source": ALL if row["source"] == "all" else row["source"]}


def figure_table(metrics: Sequence[Row]) -> Table:
    """The main figures for the terminal."""
    table = Table(
        "member",
        "films of",
        "lift [95 %]",
        "blind blob",
        "on lung",
        "at the border",
        "flagged",
        highlight=False,
    )
    found = {(r["member"], r["source"], r["name"]): r for r in metrics}
    nothing = {"value": None, "low": None, "high": None}
    for member, source in dict.fromkeys((m, s) for m, s, _ in found):
        cells = []
        for name in ("lift", "gaussian_lift", "inside_share", "border_share", "flagged"):
            row = found.get((member, source, name), nothing)
            value = "" if row["value"] is None else f"{row['value']:.3f}"
            interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else ""
            cells.append(value + (interval if name == "lift" else ""))
        table.add_row(member, source or "all", *cells)
    return table


def _groups(rows: Sequence[AuditRow]) -> list[tuple[str, str, list[AuditRow]]]:
    """Rows by member and source; all sources together first."""
    seen = [row for row in rows if row.member]
    members = list(dict.fromkeys(row.member for row in seen))
    sources = sorted({row.source for row in seen} - {""})
    wanted = [ALL, *(sources if len(sources) > 1 else [])]
    return [
        (m, s, [r for r in seen if r.member == m and s in (ALL, r.source)])
        for m in members
        for s in wanted
    ]


def _mean(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _mean_figure(
    values: Sequence[float | None], patients: Sequence[str], draws: int, seed: int
) -> Figure:
    """Mean with its interval; None where one patient, drawn again and again, would show none."""
    known = np.array([np.nan if v is None else v for v in values], float)
    found = mean_figure(known, patients, draws, seed)
    several = len({p for p, v in zip(patients, known, strict=True) if not np.isnan(v)}) > 1
    return found if several else replace(found, low=None, high=None)


def _plain(found: Figure) -> Row:
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}

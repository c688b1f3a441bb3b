"""From an audit's summary to the page's sections: each figure a chart, a sentence and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from classify.audit.page_compare import compare_section
from classify.audit.page_controls import controls_section
from classify.audit.words import BLIND, metric, metric_key, order_of
from cxr.page.charts import Row, both, forest, histogram, say
from cxr.page.parts import (
    Cells,
    Chart,
    Fold,
    Section,
    Table,
    Values,
    by_source,
    figure_of,
    source_of,
)
from cxr.page.words import in_unit, interval, listed, whole

_MAIN = (
    "lift",
    "lift_answered",
    "inside_share",
    "pointing_hit",
    "border_share",
    "finding_lift",
    "finding_hit",
)
_NOT_DRAWN = (
    "gaussian_lift",
    "random_lift",
    "random_sd",
    "area_share",
    "finding_area_share",
    "border_area_share",
    "text_area_share",
)


def sections(summary: Values) -> list[Section]:
    """Every section the summary holds figures for, in the page's order."""
    made = (
        _attention(summary.get("metrics") or []),
        _distributions(summary.get("distributions") or []),
        controls_section(summary.get("controls") or {}),
        compare_section(summary.get("compare") or [], summary.get("compare_arms") or ()),
    )
    return [s for s in made if s.charts]


def answer_chart(answer: Values) -> Markup | None:
    """The answer's value with its interval beside chance."""
    if answer.get("value") is None:
        return None
    known = metric(str(answer.get("metric", "lift")))
    text = interval(*figure_of(answer), known.unit)
    line = None if known.chance is None else (known.chance, f"chance: {known.chance:g}")
    row = Row(known.name, *figure_of(answer), text)
    about = f"{known.name} {text}, 95 % interval"
    return both(partial(forest, [row], about, known.unit, line, labels=60, texts=170), 640)


def _attention(metrics: Sequence[Values]) -> Section:
    rows = [{**m, "key": metric_key(m["name"])} for m in metrics if m.get("value") is not None]
    keys = sorted({r["key"] for r in rows} - set(_NOT_DRAWN), key=order_of)
    charts = [_metric_chart(key, rows) for key in keys if key in _MAIN]
    more = [_metric_chart(key, rows) for key in keys if key not in _MAIN]
    if not charts:
        charts, more = more, []
    intro = (
        "Each dot is a mean over films, each bar its 95 % interval (bootstrap over patients). "
        "Attention is what a saliency map shows: where the target's score comes from.",
    )
    fold = Fold("More figures: " + listed(c.title.lower() for c in more), more) if more else None
    return Section("attention", "How much attention falls on lung", intro, charts, fold=fold)


def _metric_chart(key: str, every: Sequence[Values]) -> Chart:
    """One metric of every member and source; what has no value there is named in the sentence."""
    known = metric(key)
    values = {(r["key"], r.get("member"), source_of(r)): r["value"] for r in every}
    rows = by_source([r for r in every if r["key"] == key])
    drawn: list[Row] = []
    cells: list[Cells] = []
    for r in rows:
        text = interval(*figure_of(r), known.unit)
        member, source = str(r.get("member", "")), source_of(r)
        chance = values.get((known.chance_by, r.get("member"), source))
        drawn.append(Row(member, *figure_of(r), text, chance, source))
        cells.append((source, member, text, in_unit(chance, known.unit), whole(r.get("n"))))
    line = None if known.chance is None else (known.chance, f"chance: {known.chance:g}")
    blind = metric(known.chance_by).name.lower() if known.chance_by else ""
    missing = {source_of(r): None for r in every}.keys() - {source_of(r) for r in rows}
    means = known.means
    if any(r.chance is not None for r in drawn):
        means += f" Diamond: {blind}."
    if missing:
        means += f" No figure for {listed(sorted(missing))}."
    svg = both(partial(forest, drawn, say(known.name, drawn), known.unit, line))
    if any(r.chance is not None for r in drawn):
        head: Cells = ("Films of", "Member", f"{known.name} [95 % interval]", blind, "Films")
    else:
        head = ("Films of", "Member", f"{known.name} [95 % interval]", "Films")
        cells = [(*row[:3], row[4]) for row in cells]
    return Chart(known.name, means, svg, Table(head, cells, 2))


def _distributions(given: Sequence[Values]) -> Section:
    """Histograms; `counts` hold values beyond the ends of `bins` in the outermost ones."""
    charts = []
    for one in sorted(given, key=lambda d: order_of(d["metric"])):
        known = metric(one["metric"])
        base = one.get("baseline") or {}
        lines = [(v, BLIND.get(k, k)) for k, v in base.items() if v is not None]
        counts = {str(k): list(v) for k, v in (one.get("counts") or {}).items()}
        edges = [float(v) for v in one["bins"]]
        films = round(sum(sum(v) for v in counts.values()))
        member = str(one.get("member", ""))
        about = f"{known.name} of {member}, {films} films; " + ", ".join(
            f"{label} {in_unit(v, known.unit)}" for v, label in lines
        )
        rows: list[Cells] = [
            (
                f"{in_unit(low, known.unit)} to {in_unit(high, known.unit)}",
                *(whole(c[n]) for c in counts.values()),
            )
            for n, (low, high) in enumerate(pairwise(edges))
        ]
        more = f" Bars: {', outline: '.join(counts)}." if len(counts) > 1 else ""
        title = f"{known.name} · {member}" if member else known.name
        svg = both(partial(histogram, edges, counts, lines, about, known.unit))
        head = (known.name, *(name.capitalize() for name in counts))
        charts.append(Chart(title, known.means + more, svg, Table(head, rows)))
    intro = (
        "How many films lie where; those beyond an end are counted in the last bar. Lines mark "
        "what maps that are blind to the film would give.",
    )
    return Section("distributions", "Film by film: how attention is spread", intro, charts)


def flatten(values: Any, at: str = "") -> list[tuple[str, str]]:
    """Nested settings as (name, value) pairs for a table: {"a": {"b": 1}} gives ("a · b", "1")."""
    if isinstance(values, Mapping):
        pairs = values.items()
        return [p for k, v in pairs for p in flatten(v, f"{at} · {k}" if at else str(k))]
    if isinstance(values, list | tuple):
        return [(at, ", ".join(str(v) for v in values))]
    text = f"{values:.4g}" if isinstance(values, float) else str(values)
    return [(at, "–" if values is None else text)]

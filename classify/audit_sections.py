"""From an audit's summary to the page's sections: each figure a chart, a sentence and a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from classify.audit_charts import Row, cascade, curves, forest, histogram
from classify.audit_words import (
    CONTROLS,
    Metric,
    in_unit,
    interval,
    metric,
    metric_key,
    order_of,
    p_value,
)

_NOT_DRAWN = ("gaussian_lift", "random_lift", "area_share", "finding_area_share")
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """The same figures as text: for a screen reader, and for whoever wants the digits."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    words: int = 1  # as many columns from the left hold words, the others figures


@dataclass(frozen=True)
class Chart:
    """A chart with its name, its sentence and its table."""

    title: str
    means: str
    svg: Markup
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of the page; `table` stands below its charts, open."""

    id: str
    title: str
    intro: tuple[str, ...]
    charts: list[Chart] = field(default_factory=list)
    table: Table | None = None


def sections(summary: Values) -> list[Section]:
    """Every section the summary holds figures for, in the page's order."""
    controls = summary.get("controls") or {}
    made = (
        _attention(summary.get("metrics") or []),
        _distributions(summary.get("distributions") or []),
        _controls(controls),
        _compare(summary.get("compare") or []),
    )
    return [s for s in made if s.charts]


def answer_chart(answer: Values) -> Markup | None:
    """The answer's value with its interval beside chance."""
    if answer.get("value") is None:
        return None
    known = metric(str(answer.get("metric", "lift")))
    value, low, high = (answer.get(k) for k in ("value", "low", "high"))
    text = interval(value, low, high, known.unit)
    line = None if known.chance is None else (known.chance, f"chance: {known.chance:g}")
    row = Row(known.name, value, low, high, text)
    about = f"{known.name} {text}, 95 % interval"
    return forest([row], about, known.unit, line, width=640, labels=60, texts=170)


def _attention(metrics: Sequence[Values]) -> Section:
    rows = [{**m, "key": metric_key(m["name"])} for m in metrics]
    values = {(r["key"], r.get("member"), r.get("source")): r.get("value") for r in rows}
    charts = []
    for key in sorted({r["key"] for r in rows} - set(_NOT_DRAWN), key=order_of):
        known = metric(key)
        drawn: list[Row] = []
        cells: list[tuple[str, ...]] = []
        for r in _by_source([r for r in rows if r["key"] == key]):
            figure = (r.get("value"), r.get("low"), r.get("high"))
            text = interval(*figure, known.unit)
            chance = values.get((known.chance_by, r.get("member"), r.get("source")))
            member, source = str(r.get("member", "")), _source(r)
            drawn.append(Row(member, *figure, text, chance, source))
            cells.append((source, member, text, in_unit(chance, known.unit), _whole(r.get("n"))))
        line = None if known.chance is None else (known.chance, f"chance: {known.chance:g}")
        blind = metric(known.chance_by).name.lower() if known.chance_by else ""
        means = known.means + (f" Diamond: {blind}." if any(r.chance for r in drawn) else "")
        head = ("Films of", "Member", f"{known.name} [95 % interval]", blind or "chance", "Films")
        svg = forest(drawn, _say(known.name, drawn), known.unit, line)
        charts.append(Chart(known.name, means, svg, Table(head, cells, 2)))
    intro = (
        "Each dot is a mean over films, each bar its 95 % interval (bootstrap over patients). "
        "Attention is what a saliency map shows: where the target's score comes from.",
    )
    return Section("attention", "How much attention falls on lung", intro, charts)


def _distributions(given: Sequence[Values]) -> Section:
    charts = []
    for one in sorted(given, key=lambda d: order_of(d["metric"])):
        known = metric(one["metric"])
        base = one.get("baseline") or {}
        names = {"random": "random map", "gaussian": "centred blob"}
        lines = [(v, names.get(k, k)) for k, v in base.items() if v is not None]
        counts = {str(k): list(v) for k, v in (one.get("counts") or {}).items()}
        edges = [float(v) for v in one["bins"]]
        films = round(sum(sum(v) for v in counts.values()))
        member = str(one.get("member", ""))
        about = f"{known.name} of {member}, {films} films; " + ", ".join(
            f"{label} {in_unit(v, known.unit)}" for v, label in lines
        )
        rows = [
            (f"{in_unit(low, known.unit)} to {in_unit(high, known.unit)}",
             *(_whole(c[n]) for c in counts.values()))
            for n, (low, high) in enumerate(pairwise(edges))
        ]  # fmt: skip
        more = f" Bars: {', outline: '.join(counts)}." if len(counts) > 1 else ""
        title = f"{known.name} · {member}" if member else known.name
        svg = histogram(edges, counts, lines, about, known.unit)
        table = Table((known.name, *counts), rows)
        charts.append(Chart(title, known.means + more, svg, table))
    intro = (
        "How many films lie where. Lines mark what maps would give that look at nothing: random "
        "specks, and a blob in the middle of every film. A network that looks inside the lungs has "
        "its films beyond both.",
    )
    return Section("distributions", "Film by film: how attention is spread", intro, charts)


def _controls(controls: Values) -> Section:
    charts = [*_masked(controls.get("masked") or [])]
    for member, rows in _by(controls.get("randomisation") or [], "member"):
        stages = [str(r["stage"]) for r in rows]
        series = {"rank correlation": [r.get("rank_correlation") for r in rows],
                  "SSIM": [r.get("ssim") for r in rows]}  # fmt: skip
        cells = [(s, *(in_unit(v[n], "score") for v in series.values()))
                 for n, s in enumerate(stages)]  # fmt: skip
        charts.append(Chart(
            f"Weights made random, layer by layer · {member}",
            "From top to bottom more of the network is replaced by random numbers. Its maps should "
            "lose their likeness to the true ones (1 is the same map): if they do not, they show "
            "the film and not what the network learnt.",
            cascade(stages, series, f"Likeness of {member}'s maps as its weights become random"),
            Table(("Replaced down to", *series), cells),
        ))  # fmt: skip
    for member, rows in _by(controls.get("road") or [], "member"):
        rows = sorted(rows, key=lambda r: r["percentile"])
        series = {name: [r.get(key) for r in rows] for name, key in (
            ("most attended first", "morf"), ("least attended first", "lerf"),
            ("random order", "random")) if any(r.get(key) is not None for r in rows)}  # fmt: skip
        xs = [float(r["percentile"]) for r in rows]
        cells = [(f"{x:g} %", *(in_unit(v[n], "score") for v in series.values()))
                 for n, x in enumerate(xs)]  # fmt: skip
        charts.append(Chart(
            f"Taking pixels away (ROAD) · {member}",
            "Pixels are blurred away and the target's score is taken again. If the map tells the "
            "truth, the score falls fastest when the most attended pixels go first, and slowest "
            "when they go last.",
            curves(xs, series, "pixels taken away, %", "target's score",
                   f"Target's score of {member} as pixels are taken away"),
            Table(("Taken away", *series), cells),
        ))  # fmt: skip
    intro = (
        "Controls ask whether the figures above can be believed: they break the film or the "
        "network on purpose and watch what happens.",
    )
    return Section("controls", "Controls", intro, charts)


def _masked(masked: Sequence[Values]) -> Iterable[Chart]:
    for member, rows in _by(masked, "member"):
        drawn: list[Row] = []
        cells: list[tuple[str, ...]] = []
        for r in _by_source(rows):
            figure = (r.get("auc"), r.get("low"), r.get("high"))
            text = interval(*figure, "score")
            name = CONTROLS.get(str(r["control"]), str(r["control"]))
            source = _source(r)
            drawn.append(Row(name, *figure, text, None, source))
            changed = in_unit(r.get("changed"), "share")
            cells.append((source, name, text, changed, _whole(r.get("n"))))
        head = ("Films of", "Control", "AUC [95 % interval]", "Decision changed", "Films")
        yield Chart(
            f"Parts of the film blacked out · {member}",
            metric("auc").means + " A network that still tells the films apart with the lungs "
            "blacked out does not need the lungs.",
            forest(drawn, _say(f"AUC of {member}", drawn), "score", (0.5, "guessing: 0.5"),
                   labels=175),
            Table(head, cells, 2),
        )  # fmt: skip


def _compare(given: Sequence[Values]) -> Section:
    charts: list[Chart] = []
    cells: list[tuple[str, ...]] = []
    for key, rows in sorted(_by(given, "metric"), key=lambda pair: order_of(pair[0])):
        known: Metric = metric(key)
        drawn = []
        for r in _by_source(rows):
            figure = (r.get("difference"), r.get("low"), r.get("high"))
            text = interval(*figure, known.unit, signed=True).replace(" %", " points")
            source = _source(r)
            drawn.append(Row(source, *figure, text))
            film, crop = (in_unit(r.get(k), known.unit) for k in ("film", "crop"))
            cells.append((known.name, source, film, crop, text, p_value(r.get("p")),
                          _whole(r.get("n"))))  # fmt: skip
        good = {"higher": "To the right of 0 the crop is better.",
                "lower": "To the left of 0 the crop is better."}.get(known.better, "")  # fmt: skip
        svg = forest(drawn, _say(f"{known.name}, crop minus whole film", drawn), known.unit,
                     (0.0, "no difference"), signed=True, texts=190)  # fmt: skip
        table = Table(("Films of", "Crop − film"), [(r.label, r.text) for r in drawn])
        charts.append(
            Chart(f"{known.name}: crop − whole film", f"{known.means} {good}", svg, table)
        )
    intro = (
        "The same network, trained alike on whole films and on crops, judges the same films. Each "
        "dot is the difference, each bar its 95 % interval (bootstrap over patients): where it "
        "holds 0, no difference is shown. p says how often chance alone would give so large a one.",
    )
    head = ("Figure", "Films of", "Whole film", "Crop", "Crop − film [95 % interval]", "p", "Films")
    return Section("compare", "Whole film against crop", intro, charts, Table(head, cells, 2))


def flatten(values: Any, at: str = "") -> list[tuple[str, str]]:
    """Nested settings as (name, value) pairs for a table: {"a": {"b": 1}} gives ("a · b", "1")."""
    if isinstance(values, Mapping):
        pairs = values.items()
        return [p for k, v in pairs for p in flatten(v, f"{at} · {k}" if at else str(k))]
    if isinstance(values, list | tuple):
        return [(at, ", ".join(str(v) for v in values))]
    text = f"{values:.4g}" if isinstance(values, float) else str(values)
    return [(at, "–" if values is None else text)]


def _by(rows: Sequence[Values], key: str) -> list[tuple[str, list[Values]]]:
    groups: dict[str, list[Values]] = {}
    for row in rows:
        groups.setdefault(str(row.get(key, "")), []).append(row)
    return list(groups.items())


def _source(row: Values) -> str:
    source = str(row.get("source") or "all")
    return "all sources" if source == "all" else source


def _by_source(rows: Sequence[Values]) -> list[Values]:
    """All sources together first, then one after the other in the order they come in."""
    order = list(dict.fromkeys(["all sources", *map(_source, rows)]))
    return sorted(rows, key=lambda row: order.index(_source(row)))


def _say(name: str, rows: Sequence[Row]) -> str:
    lines = (f"{r.group + ', ' if r.group else ''}{r.label}: {r.text}" for r in rows)
    return f"{name}. " + "; ".join(lines)


def _whole(value: Any) -> str:
    return "–" if value is None else f"{round(value):,}"

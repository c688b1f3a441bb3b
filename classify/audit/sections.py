"""From an audit's summary to the page's sections: each figure a chart, a sentence and a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from classify.audit.figures import BLIND, BLIND_MAPS, METRICS, SHOWN, TRAPS
from cxr.page import in_unit, interval, listed, p_value, whole
from cxr.page.build import (
    Cells,
    Chart,
    Fold,
    Section,
    Table,
    Values,
    by_key,
    by_source,
    figure_of,
    source_of,
)
from cxr.page.charts import Row, both, cascade, curves, forest, forest_of, histogram

_MAIN = {"lift", "lift_answered", "inside_share", "pointing_hit", "border_share"}
_MAIN |= {"finding_lift", "finding_hit"}
_MAIN_COMPARED = ("accuracy", "auc", "lift", "border_share")
_AS_IS, _ANOTHER_FILM = "as is", "another film"
_LIKE = {"rank correlation": "rank_correlation", "SSIM": "ssim"}
_ORDERS = {"most attended first": "morf", "least attended first": "lerf"}
_ORDERS |= {"as a random map says": "random"}
Column = tuple[str, Callable[[Values], str | None]]  # its head, and a row's cell


def sections(summary: Values) -> list[Section]:
    """Every section the summary holds figures for, in the page's order."""
    made = (
        _attention(summary.get("metrics") or []),
        _distributions(summary.get("distributions") or []),
        _controls(summary.get("controls") or {}),
        _compare(summary.get("compare") or [], summary.get("compare_arms") or ()),
    )
    return [s for s in made if s.charts]


def answer_chart(answer: Values) -> Markup | None:
    """The answer's value with its interval beside chance."""
    if answer.get("value") is None:
        return None
    text = interval(*figure_of(answer), "ratio")
    rows, about = [Row("Lift", *figure_of(answer), text)], f"Lift {text}, 95 % interval"
    chance = (1.0, "chance: 1")
    return both(partial(forest, rows, about, "ratio", chance, labels=60, texts=170), 640)


def flatten(values: Any, at: str = "") -> list[tuple[str, str]]:
    """Nested settings as (name, value) pairs for a table: {"a": {"b": 1}} gives ("a · b", "1")."""
    if isinstance(values, Mapping):
        pairs = values.items()
        return [p for k, v in pairs for p in flatten(v, f"{at} · {k}" if at else str(k))]
    if isinstance(values, list | tuple):
        return [(at, ", ".join(str(v) for v in values))]
    text = f"{values:.4g}" if isinstance(values, float) else str(values)
    return [(at, "–" if values is None else text)]


def _table(columns: Sequence[Column], rows: Sequence[Values], words: int, **more: Any) -> Table:
    """One row each; columns in which no row has anything are left out."""
    cells = [(head, [cell(row) for row in rows]) for head, cell in columns]
    used = [(head, column) for head, column in cells if any(c is not None for c in column)]
    full = [["–" if cell is None else cell for cell in column] for _, column in used]
    lines = list(zip(*full, strict=True))
    return Table(tuple(head for head, _ in used), lines, words, **more)


def _attention(metrics: Sequence[Values]) -> Section:
    rows = [m for m in metrics if m.get("value") is not None]
    keys = [key for key in METRICS if key in {r["name"] for r in rows}]
    main = [key for key in keys if key in _MAIN] or keys
    charts = [_metric_chart(key, rows) for key in main]
    more = [_metric_chart(key, rows) for key in keys if key not in main]
    intro = (
        "Each dot is a mean over films, each bar its 95 % interval (bootstrap over patients). "
        "Attention is what a saliency map shows: where the target's score comes from.",
    )
    fold = Fold("More figures: " + listed(c.title.lower() for c in more), more) if more else None
    return Section("attention", "How much attention falls on lung", intro, charts, fold=fold)


def _metric_chart(key: str, every: Sequence[Values]) -> Chart:
    """One metric of every member and source; what has no value there is named in the sentence."""
    known = METRICS[key]
    values = {(r["name"], r.get("member"), source_of(r)): r["value"] for r in every}
    rows = by_source([r for r in every if r["name"] == key])

    def text(row: Values) -> str:
        return interval(*figure_of(row), known.unit)

    def chance(row: Values) -> float | None:
        return values.get((known.chance_by, row.get("member"), source_of(row)))

    drawn = [
        Row(str(r.get("member", "")), *figure_of(r), text(r), chance(r), source_of(r)) for r in rows
    ]
    blind = BLIND.get(known.chance_by, "") if any(r.chance is not None for r in drawn) else ""
    missing = {source_of(r): None for r in every}.keys() - {source_of(r) for r in rows}
    means = known.means
    means += f" Diamond: {blind}." if blind else ""
    means += f" No figure for {listed(sorted(missing))}." if missing else ""
    line = None if known.chance is None else (known.chance, f"chance: {known.chance:g}")
    columns: list[Column] = [
        ("Films of", source_of),
        ("Member", lambda r: str(r.get("member", ""))),
        (f"{known.name} [95 % interval]", text),
        (blind, lambda r: in_unit(chance(r), known.unit) if blind else None),
        ("Films", lambda r: whole(r.get("n"))),
    ]
    svg = forest_of(drawn, known.name, known.unit, line)
    return Chart(known.name, means, svg, _table(columns, rows, 2))


def _distributions(given: Sequence[Values]) -> Section:
    """Histograms; `counts` hold values beyond the ends of `bins` in the outermost ones."""
    charts = []
    for one in sorted(given, key=lambda d: [*METRICS].index(d["metric"])):
        known, member = METRICS[one["metric"]], str(one.get("member", ""))
        base = one.get("baseline") or {}
        lines = [(v, BLIND_MAPS.get(k, k)) for k, v in base.items() if v is not None]
        counts = {str(k): list(v) for k, v in (one.get("counts") or {}).items()}
        edges = [float(v) for v in one["bins"]]
        films = round(sum(sum(v) for v in counts.values()))
        about = f"{known.name} of {member}, {films} films; " + ", ".join(
            f"{label} {in_unit(v, known.unit)}" for v, label in lines
        )
        rows: list[Cells] = [
            (f"{in_unit(a, known.unit)} to {in_unit(b, known.unit)}", *map(whole, counted))
            for (a, b), *counted in zip(pairwise(edges), *counts.values(), strict=True)
        ]
        head = (known.name, *(name.capitalize() for name in counts))
        svg = both(partial(histogram, edges, counts, lines, about, known.unit))
        charts.append(Chart(f"{known.name} · {member}", known.means, svg, Table(head, rows)))
    intro = (
        "How many films lie where; those beyond an end are counted in the last bar. Lines mark "
        "what maps that are blind to the film would give.",
    )
    return Section("distributions", "Film by film: how attention is spread", intro, charts)


# --- controls: films blacked out in part, weights made random, pixels taken away


def _controls(controls: Values) -> Section:
    """`masked`, `randomisation` and `road` rows, each of which may be missing."""
    parts = {"masked": _masked, "randomisation": _randomised, "road": _road}
    charts = [
        chart
        for name, draw in parts.items()
        for member, rows in by_key(controls.get(name) or [], "member")
        for chart in draw(member, rows)
    ]
    intro = (
        "Controls ask whether the figures above can be believed: they break the film or the "
        "network on purpose and watch what happens.",
    )
    return Section("controls", "Controls", intro, charts)


def _masked(member: str, rows: Sequence[Values]) -> Iterator[Chart]:
    """Rows of classify.audit.controls.control_table."""

    def name_of(row: Values) -> str:
        return SHOWN.get(row["control"], str(row["control"]))

    def auc(row: Values) -> str:
        return interval(*figure_of(row, "auc"), "score")

    def against(row: Values, key: str, unit: str, signed: bool = False) -> str | None:
        found = figure_of(row, key, f"{key}_low", f"{key}_high")
        undefined = row["control"] == _AS_IS or found[0] is None
        return "–" if undefined else interval(*found, unit, signed)

    columns: list[Column] = [
        ("Films of", source_of),
        ("Shown", name_of),
        ("AUC [95 % interval]", auc),
        ("Against as it is", lambda r: against(r, "difference", "score", True)),
        ("Answer changed [95 % interval]", lambda r: against(r, "changed", "share")),
        ("Films", lambda r: whole(r.get("n"))),
    ]
    rows = by_source(rows)
    drawn = [  # a source of one truth has no AUC; its table row stays
        Row(name_of(r), *figure_of(r, "auc"), auc(r), None, source_of(r))
        for r in rows
        if r.get("auc") is not None
    ]
    about, line = f"AUC of {member}", (0.5, "guessing: 0.5")
    yield Chart(
        f"Parts of the film hidden · {member}",
        METRICS["auc"].means + " What still tells films apart with the lungs blacked out does "
        "not need the lungs.",
        forest_of(drawn, about, "score", line, labels=185) if drawn else Markup(""),
        _table(columns, rows, 2, grouped=True),
    )


def _randomised(member: str, every: Sequence[Values]) -> Iterator[Chart]:
    """Rows of classify.audit.randomise.cascade_rows, the head first."""
    rows = [r for r in every if r["stage"] != _ANOTHER_FILM]
    last = next((r for r in every if r["stage"] == _ANOTHER_FILM), None)
    floor = ("two other films", [last.get(k) for k in _LIKE.values()]) if last else None
    means = (
        "From top to bottom more of the network is replaced by random numbers. Its maps should "
        "lose their likeness to the true ones (1 is the same map): if they do not, they show "
        "the film and not what the network learnt."
    )
    if floor:
        means += " The last row is how alike the maps of two different films are: a line that "
        means += "comes down to it has lost all that was the film's own."
    empty, pairs = (sum(r.get(k) or 0 for r in rows) for k in ("empty", "pairs"))
    if empty:
        means += f" {whole(empty)} of {whole(empty + pairs)} pairs of maps are left out, as "
        means += "one of the two is the same everywhere."
    columns: list[Column] = [
        ("Random down to", lambda r: "two other films" if r is last else str(r["stage"])),
        *((name, lambda r, key=key: in_unit(r.get(key), "score")) for name, key in _LIKE.items()),
        *(
            (head, lambda r, key=key: None if r.get(key) is None else whole(r[key]))
            for head, key in (("Pairs", "pairs"), ("Left out", "empty"))
        ),
    ]
    series = {name: [1.0, *(r.get(key) for r in rows)] for name, key in _LIKE.items()}
    stages = ["as trained", *(str(r["stage"]) for r in rows)]
    about = f"Likeness of {member}'s maps as its weights become random"
    yield Chart(
        f"Weights made random, layer by layer · {member}",
        means,
        both(partial(cascade, stages, series, about, floor)),
        _table(columns, every, 1),
    )


def _road(member: str, rows: Sequence[Values]) -> Iterator[Chart]:
    """Rows of classify.audit.road.RoadFilms.points; 0 % is `before`."""
    rows = sorted(rows, key=lambda r: r["percentile"])
    orders = {n: key for n, key in _ORDERS.items() if any(r.get(key) is not None for r in rows)}
    if not orders:
        return
    start = dict.fromkeys(orders.values(), rows[0]["before"])
    rows = [{"percentile": 0, "n": rows[0]["n"], **start}, *rows]
    columns: list[Column] = [
        ("Taken away", lambda r: f"{r['percentile']:g} %"),
        *((name, lambda r, key=key: in_unit(r.get(key), "score")) for name, key in orders.items()),
        ("Films", lambda r: whole(r.get("n"))),
    ]
    xs = [float(r["percentile"]) for r in rows]
    series = {name: [r.get(key) for r in rows] for name, key in orders.items()}
    about = f"Mean probability of {member} as pixels are taken away"
    yield Chart(
        f"Taking pixels away (ROAD) · {member}",
        "Pixels are taken away and filled in from their neighbours, and the network answers "
        "again. If the map tells the truth, the target's probability falls fastest when the "
        "most attended pixels go first and slowest when they go last, and lies between for a "
        "random map as coarse.",
        both(partial(curves, xs, series, "pixels taken away, %", "mean probability", about)),
        _table(columns, rows, 1),
    )


# --- networks trained on whole films beside those on crops, or one method beside another


def _compare(given: Sequence[Values], arms: Sequence[str]) -> Section:
    """Rows of classify.audit.compare.compare; those without a difference are left out. `arms` are
    the names of two methods; none for whole film and crop."""
    rows = [r for r in given if r.get("difference") is not None]
    keys = [key for key in METRICS if key in {r["metric"] for r in rows}]
    main = [k for k in _MAIN_COMPARED if k in keys] or keys
    rest = [k for k in keys if k not in main]
    fold = None
    if rest:
        title = "More differences: " + listed(METRICS[k].name.lower() for k in rest)
        charts = [_difference_chart(k, rows, arms) for k in rest]
        fold = Fold(title, charts, _difference_table(rest, rows, arms))
    asked = (
        "The same answers of the same networks on the same films, explained by two methods. "
        if arms
        else "The same network, trained alike on whole films and on crops, judges the same films. "
    )
    intro = (
        f"{asked}Each dot is the difference, each bar its 95 % interval (bootstrap over "
        "patients): where it holds 0, no difference is shown.",
    )
    return Section(
        "compare",
        f"{_capital(arms[1])} beside {arms[0]}" if arms else "Whole film against crop",
        intro,
        [_difference_chart(k, rows, arms) for k in main],
        _difference_table(main, rows, arms) if rows else None,
        _notes(rows),
        fold,
    )


def _difference_chart(key: str, every: Sequence[Values], arms: Sequence[str]) -> Chart:
    known, (one, other) = METRICS[key], arms or ("whole film", "crop")
    rows = by_source([r for r in every if r["metric"] == key])
    drawn = [
        Row(_member(r), *figure_of(r, "difference"), _difference(r), None, source_of(r))
        for r in rows
    ]
    about, line = f"{known.name}, {other} minus {one}", (0.0, "no difference")
    side = {"higher": "right", "lower": "left"}.get(known.better)
    better = f"To the {side} of 0 {other} is better." if side else ""
    means = f"{known.means} {better if arms else TRAPS.get(key) or better}".strip()
    svg = forest_of(drawn, about, known.unit, line, signed=True, texts=190)
    return Chart(f"{known.name}: {other} − {one}", means, svg)


def _difference_table(keys: Sequence[str], every: Sequence[Values], arms: Sequence[str]) -> Table:
    """Figures of these metrics, each a group."""

    films, crops = [_capital(arm) for arm in arms] or ("Whole film", "Crop")
    missed = any(r.get("left_out") for r in every)
    corrected = any(r.get("p_holm") is not None for r in every)
    columns: list[Column] = [
        ("Figure", lambda r: METRICS[r["metric"]].name),
        ("Films of", source_of),
        ("Member", _member),
        (films, lambda r: in_unit(r.get("film"), METRICS[r["metric"]].unit)),
        (crops, lambda r: in_unit(r.get("crop"), METRICS[r["metric"]].unit)),
        (f"{'Difference' if arms else 'Crop − film'} [95 % interval]", _difference),
        ("p", lambda r: p_value(r.get("p"))),
        ("p, corrected", lambda r: p_value(r.get("p_holm")) if corrected else None),
        ("Films", lambda r: whole(r.get("n"))),
        ("Patients", lambda r: whole(r.get("patients"))),
        ("Left out", lambda r: whole(sum(r["left_out"].values())) if missed else None),
    ]
    rows = [row for key in keys for row in by_source([r for r in every if r["metric"] == key])]
    return _table(columns, rows, 3, grouped=True)


def _notes(rows: Sequence[Values]) -> Cells:
    said = {
        "p": "p: how often chance alone would give so large a difference.",
        "p_holm": "Corrected p: for having tested so many differences (Holm), some of which look "
        "large by luck.",
    }
    words = [what for key, what in said.items() if any(r.get(key) is not None for r in rows)]
    tests = [
        (test, dict.fromkeys(METRICS[r["metric"]].name for r in tested))
        for test, tested in by_key(rows, "test")
        if test
    ]
    for number, (test, names) in enumerate(sorted(tests, key=lambda pair: -len(pair[1]))):
        words.append(f"Test{f' of {listed(names)}' if number else ''}: {test}.")
    return (" ".join(words),) if words else ()


def _member(row: Values) -> str:
    return str(row.get("member") or "all members")


def _difference(row: Values) -> str:
    text = interval(*figure_of(row, "difference"), METRICS[row["metric"]].unit, signed=True)
    return text.replace(" %", " points")


def _capital(name: str) -> str:
    """A name at the beginning of a sentence."""
    return name[:1].upper() + name[1:]

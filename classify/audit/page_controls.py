"""The audit page's controls: films blacked out in part, weights made random, pixels taken away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from markupsafe import Markup

from classify.audit.words import AS_IS, control_name, metric
from cxr.page.charts import Row, both, cascade, curves, forest, say
from cxr.page.parts import (
    Cells,
    Chart,
    Section,
    Table,
    Values,
    by_key,
    by_source,
    figure_of,
    source_of,
)
from cxr.page.words import in_unit, interval, whole

_FLOOR = "another film"  # the stage of classify.audit.randomise.another_film
_LIKE = {"rank correlation": "rank_correlation", "SSIM": "ssim"}
_ORDERS = {
    "most attended first": "morf",
    "least attended first": "lerf",
    "as a random map says": "random",
}


def controls_section(controls: Values) -> Section:
    """`masked`, `randomisation` and `road` rows, each of which may be missing."""
    charts = [
        *_masked(controls.get("masked") or []),
        *_randomised(controls.get("randomisation") or []),
        *_road(controls.get("road") or []),
    ]
    intro = (
        "Controls ask whether the figures above can be believed: they break the film or the "
        "network on purpose and watch what happens.",
    )
    return Section("controls", "Controls", intro, charts)


def _masked(masked: Sequence[Values]) -> Iterator[Chart]:
    """Rows of classify.audit.controls.ControlRow.to_dict()."""
    head = (
        "Films of",
        "Shown",
        "AUC [95 % interval]",
        "Against as it is",
        "Answer changed [95 % interval]",
        "Films",
    )
    for member, rows in by_key(masked, "member"):
        drawn: list[Row] = []
        cells: list[Cells] = []
        for r in by_source(rows):
            auc = figure_of(r, "auc")
            source, name = source_of(r), control_name(r["control"])
            if auc[0] is not None:  # a source of one truth has no AUC; its table row stays
                drawn.append(Row(name, *auc, interval(*auc, "score"), None, source))
            gap = figure_of(r, "difference", "difference_low", "difference_high")
            changed = figure_of(r, "changed", "changed_low", "changed_high")
            itself = r["control"] == AS_IS
            cells.append(
                (
                    source,
                    name,
                    interval(*auc, "score"),
                    "–" if itself or gap[0] is None else interval(*gap, "score", signed=True),
                    "–" if itself or changed[0] is None else interval(*changed, "share"),
                    whole(r.get("n")),
                )
            )
        svg = Markup("")
        if drawn:
            svg = both(
                partial(
                    forest,
                    drawn,
                    say(f"AUC of {member}", drawn),
                    "score",
                    (0.5, "guessing: 0.5"),
                    labels=185,
                )
            )
        yield Chart(
            f"Parts of the film hidden · {member}",
            metric("auc").means + " What still tells films apart with the lungs blacked out does "
            "not need the lungs.",
            svg,
            Table(head, cells, 2, grouped=True),
        )


def _randomised(given: Sequence[Values]) -> Iterator[Chart]:
    """StageLikeness.to_dict() of classify.audit.randomise with its member, the head first."""
    for member, every in by_key(given, "member"):
        rows = [r for r in every if r.get("stage") != _FLOOR]
        last = next((r for r in every if r.get("stage") == _FLOOR), None)
        floor = ("two other films", [last.get(k) for k in _LIKE.values()]) if last else None
        series = {name: [1.0, *(r.get(key) for r in rows)] for name, key in _LIKE.items()}
        stages = ["as trained", *(str(r["stage"]) for r in rows)]
        means = (
            "From top to bottom more of the network is replaced by random numbers. Its maps should "
            "lose their likeness to the true ones (1 is the same map): if they do not, they show "
            "the film and not what the network learnt."
        )
        if floor:
            means += (
                " The last row is how alike the maps of two different films are: a line that "
                "comes down to it has lost all that was the film's own."
            )
        empty, pairs = (sum(r.get(k) or 0 for r in rows) for k in ("empty", "pairs"))
        if empty:
            means += (
                f" {whole(empty)} of {whole(empty + pairs)} pairs of maps are left out, as "
                "one of the two is the same everywhere."
            )
        about = f"Likeness of {member}'s maps as its weights become random"
        yield Chart(
            f"Weights made random, layer by layer · {member}",
            means,
            both(partial(cascade, stages, series, about, floor)),
            _likeness_table(every),
        )


def _likeness_table(rows: Sequence[Values]) -> Table:
    counted = any(r.get("pairs") is not None for r in rows)
    cells: list[Cells] = []
    for r in rows:
        name = "two other films" if r.get("stage") == _FLOOR else str(r["stage"])
        counts = (whole(r.get("pairs")), whole(r.get("empty"))) if counted else ()
        cells.append((name, *(in_unit(r.get(k), "score") for k in _LIKE.values()), *counts))
    return Table(("Random down to", *_LIKE, *(("Pairs", "Left out") if counted else ())), cells)


def _road(given: Sequence[Values]) -> Iterator[Chart]:
    """RoadPoint.to_dict() of classify.audit.road with its member; 0 % is `before`."""
    for member, rows in by_key(given, "member"):
        rows = sorted(rows, key=lambda r: r["percentile"])
        orders = {
            name: key for name, key in _ORDERS.items() if any(r.get(key) is not None for r in rows)
        }
        if not orders:
            continue
        if rows[0].get("before") is not None and rows[0]["percentile"] > 0:
            start = dict.fromkeys(orders.values(), rows[0]["before"])
            rows = [{"percentile": 0, "n": rows[0].get("n"), **start}, *rows]
        series = {name: [r.get(key) for r in rows] for name, key in orders.items()}
        xs = [float(r["percentile"]) for r in rows]
        cells: list[Cells] = [
            (
                f"{r['percentile']:g} %",
                *(in_unit(r.get(k), "score") for k in orders.values()),
                whole(r.get("n")),
            )
            for r in rows
        ]
        about = f"Mean probability of {member} as pixels are taken away"
        yield Chart(
            f"Taking pixels away (ROAD) · {member}",
            "Pixels are taken away and filled in from their neighbours, and the network answers "
            "again. If the map tells the truth, the target's probability falls fastest when the "
            "most attended pixels go first and slowest when they go last, and lies between for a "
            "random map as coarse.",
            both(partial(curves, xs, series, "pixels taken away, %", "mean probability", about)),
            Table(("Taken away", *series, "Films"), cells),
        )

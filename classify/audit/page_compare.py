"""The audit page's comparison of networks trained on whole films and on crops, or of methods."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from classify.audit.words import metric, metric_key, order_of
from cxr.page.charts import Row, both, forest, say
from cxr.page.parts import (
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
from cxr.page.words import in_unit, interval, listed, p_value, whole

_ARMS = ("Whole film", "Crop")
_MAIN = ("accuracy", "auc", "lift", "border_share")
_BETTER = {
    "higher": "To the right of 0 the crop is better.",
    "lower": "To the left of 0 the crop is better.",
}
# what a crop changes without any change of the network's attention
_TRAPS = {
    "inside_share": "It rises by cropping alone, as a crop holds more lung: compare lifts.",
    "pointing_hit": "It rises by cropping alone, as a crop holds more lung: compare lifts.",
    "border_share": "The border is that of what each network saw: a crop's runs through the chest "
    "wall.",
    "outside_box_share": "It falls by cropping alone, as a crop is little more than the box.",
}


def compare_section(given: Sequence[Values], arms: Sequence[str] = ()) -> Section:
    """Rows of classify.audit.compare.CompareRow.to_dict(); those without a difference are left
    out. `arms` are the names of two methods; none for whole film and crop."""
    given = [{**r, "metric": metric_key(r["metric"])} for r in given]
    rows = [r for r in given if r.get("difference") is not None]
    keys = sorted({r["metric"] for r in rows}, key=order_of)
    main = [k for k in _MAIN if k in keys] or keys
    rest = [k for k in keys if k not in main]
    fold = None
    if rest:
        title = "More differences: " + listed(metric(k).name.lower() for k in rest)
        fold = Fold(title, [_chart(k, rows, arms) for k in rest], _table(rest, rows, arms))
    title = f"{capital(arms[1])} beside {arms[0]}" if arms else "Whole film against crop"
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
        title,
        intro,
        [_chart(k, rows, arms) for k in main],
        _table(main, rows, arms) if rows else None,
        _notes(rows),
        fold,
    )


def _chart(key: str, every: Sequence[Values], arms: Sequence[str]) -> Chart:
    known = metric(key)
    rows = by_source([r for r in every if r["metric"] == key])
    members = any(r.get("member") for r in rows)
    drawn = []
    for r in rows:
        source = source_of(r)
        names = (str(r.get("member") or "all members"), source) if members else (source, "")
        drawn.append(Row(names[0], *figure_of(r, "difference"), _difference(r), None, names[1]))
    one, other = arms or ("whole film", "crop")
    svg = both(
        partial(
            forest,
            drawn,
            say(f"{known.name}, {other} minus {one}", drawn),
            known.unit,
            (0.0, "no difference"),
            signed=True,
            texts=190,
        )
    )
    better = _BETTER.get(known.better, "").replace("the crop", other)
    means = f"{known.means} {better if arms else _TRAPS.get(key) or better}".strip()
    return Chart(f"{known.name}: {other} − {one}", means, svg)


def capital(name: str) -> str:
    """A name at the beginning of a sentence."""
    return name[:1].upper() + name[1:]


def _difference(row: Values) -> str:
    text = interval(*figure_of(row, "difference"), metric(row["metric"]).unit, signed=True)
    return text.replace(" %", " points")


def _table(keys: Sequence[str], every: Sequence[Values], arms: Sequence[str]) -> Table:
    """Figures of these metrics, each a group; columns that no row fills are left out."""
    members = any(r.get("member") for r in every)
    corrected = any(r.get("p_holm") is not None for r in every)
    counted = any(r.get("patients") is not None for r in every)
    missed = any(r.get("left_out") for r in every)
    rows: list[Cells] = []
    for key in keys:
        known = metric(key)
        for r in by_source([r for r in every if r["metric"] == key]):
            film, crop = (in_unit(r.get(k), known.unit) for k in ("film", "crop"))
            rows.append(
                (
                    known.name,
                    source_of(r),
                    *([str(r.get("member") or "all members")] * members),
                    film,
                    crop,
                    _difference(r),
                    p_value(r.get("p")),
                    *([p_value(r.get("p_holm"))] * corrected),
                    whole(r.get("n")),
                    *([whole(r.get("patients"))] * counted),
                    *([whole(sum((r.get("left_out") or {}).values()))] * missed),
                )
            )
    head = (
        "Figure",
        "Films of",
        *(["Member"] * members),
        *([capital(arm) for arm in arms] or _ARMS),
        f"{'Difference' if arms else 'Crop − film'} [95 % interval]",
        "p",
        *(["p, corrected"] * corrected),
        "Films",
        *(["Patients"] * counted),
        *(["Left out"] * missed),
    )
    return Table(head, rows, 3 if members else 2, grouped=True)


def _notes(rows: Sequence[Values]) -> Cells:
    words = []
    if any(r.get("p") is not None for r in rows):
        words.append("p: how often chance alone would give so large a difference.")
    if any(r.get("p_holm") is not None for r in rows):
        words.append(
            "Corrected p: for having tested so many differences (Holm), some of which "
            "look large by luck."
        )
    tests = [
        (test, dict.fromkeys(metric(r["metric"]).name for r in tested))
        for test, tested in by_key(rows, "test")
        if test
    ]
    for number, (test, names) in enumerate(sorted(tests, key=lambda pair: -len(pair[1]))):
        words.append(f"Test{f' of {listed(names)}' if number else ''}: {test}.")
    return (" ".join(words),) if words else ()

"""The page of tools/explore.py: one HTML file that needs no script, no other file, no network.

Pictures are data URIs and the style is named by hash in a Content-Security-Policy that allows
nothing else; every text from the table is escaped, and control characters are spelt out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from cxr.page.build import page_text
from cxr.page.charts import WIDTH, Row, both, forest
from cxr.page.pictures import inferno
from exploring.counts import age_table, terms_table
from exploring.entries import ordered_classes
from exploring.gather import GRID, OUTSIDE, SMALLEST_SHOWN, Gathered
from exploring.pictures import class_pictures, differences
from exploring.probe import FEATURES, FOLDS, Answer
from exploring.scatter import fit_slope, size_scatter
from exploring.warn import LIMIT, WHAT, Verdict, auc_text, headline

HERE = Path(__file__).resolve().parent
MOST_UNREAD, MOST_CLASSES = 50, 6  # rows of the table; classes in one scatter


@dataclass(frozen=True)
class Told:
    """What the page says beside the gathered films."""

    title: str
    made: str
    command: str
    boxes: str
    seed: int
    draws: int
    smallest: int


def page_html(
    told: Told, gathered: Gathered, answers: Sequence[Answer], found: Sequence[Verdict]
) -> str:
    """The whole page."""
    entries = gathered.entries
    classes, most_variance = class_pictures(gathered.moments)
    pairs, most_difference = differences(gathered.moments)
    reasons = Counter(reason for _, reason, _ in gathered.unread)
    shown = {
        "title": told.title,
        "made": told.made,
        "command": told.command,
        "boxes": told.boxes,
        "seed": told.seed,
        "draws": told.draws,
        "smallest": told.smallest,
        "folds": FOLDS,
        "limit": LIMIT,
        "answer": headline(found),
        "label_verdicts": _worst_first(found),
        "source_verdicts": [v for v in found if v.about == "sources"],
        "films": len(entries),
        "patients": len({e.row.patient_id for e in entries}),
        "read": int(gathered.seen.sum()),
        "boxed": int(np.isfinite(gathered.features[OUTSIDE]).all(1).sum()),
        "unread": gathered.unread,
        "cautions": cautions(gathered),
        "unread_words": ", ".join(f"{r.replace('_', ' ')} {n}" for r, n in reasons.most_common()),
        "unread_table": {
            "head": ["Film", "Reason"],
            "words": 2,
            "rows": [[i, s] for i, _, s in gathered.unread[:MOST_UNREAD]],
        },
        "probe_charts": probe_charts(answers),
        "probe_tables": probe_tables(answers),
        "notes": _notes(answers),
        "ages": age_table(entries),
        "terms": terms_table(entries),
        "size_charts": size_charts(gathered, told.seed),
        "slopes": slope_table(gathered),
        "differences": pairs,
        "most_difference": most_difference,
        "classes": classes,
        "most_variance": most_variance,
        "inferno": inferno(),
        "per_class": GRID,
        "small_words": _small_words(gathered),
        "grids": _grids(gathered),
    }
    return page_text(HERE / "page.html", **shown)


def probe_tables(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Questions against shortcuts, labels and sources apart."""
    tables = []
    for about, title in (("labels", "Labels of one source"), ("sources", "Source against source")):
        rows = []
        for name in dict.fromkeys(a.question for a in answers if a.about == about):
            own = {a.what: a for a in answers if a.question == name}
            sides = max((a.sides for a in own.values()), key=sum)
            cells = [
                auc_text(own[w].auc) if own[w].auc.value is not None else "–" for w in FEATURES
            ]
            rows.append([name, f"{sides[0]:,} / {sides[1]:,}", *cells])
        if rows:
            head = [
                "Question",
                "Films",
                "Film 8×8",
                "Thorax blacked out",
                "Box’s numbers",
                "Aspect ratio",
                "Crop 8×8",
            ]
            tables.append({"title": title, "head": head, "words": 1, "rows": rows})
    return tables


def probe_charts(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """A forest of AUCs for each question about labels, all on one scale."""
    charts = []
    span = [
        v
        for a in answers
        if a.about == "labels"
        for v in (a.auc.value, a.auc.low, a.auc.high)
        if v is not None
    ]
    for name in dict.fromkeys(a.question for a in answers if a.about == "labels"):
        own = [a for a in answers if a.question == name and a.auc.value is not None]
        rows = [
            Row(_SHORT[a.what], a.auc.value, a.auc.low, a.auc.high, auc_text(a.auc)) for a in own
        ]
        if rows:
            about = f"{name}: AUC of linear models. " + "; ".join(
                f"{WHAT[a.what]} {auc_text(a.auc)}" for a in own
            )
            draw = partial(forest, rows, about, "score", line=(0.5, "chance"), span=span)
            charts.append(
                {
                    "title": name,
                    "means": "AUC of each shortcut, with its interval.",
                    "svg": both(draw),
                }
            )
    return charts


_SHORT = dict(
    zip(
        FEATURES,
        ("film, 8×8", "thorax blacked out", "box’s numbers", "aspect ratio", "crop, 8×8"),
        strict=True,
    )
)


def class_sizes(gathered: Gathered) -> dict[str, dict[str, np.ndarray]]:
    """Source → name of a class → (N, 2) sizes of its readable films."""
    names = np.asarray([e.film_class.name for e in gathered.entries], dtype=object)
    sources: dict[str, dict[str, np.ndarray]] = {}
    for film_class, _ in ordered_classes(gathered.entries):
        own = gathered.sizes_wh[(names == film_class.name) & gathered.seen]
        if len(own):
            sources.setdefault(film_class.source, {})[film_class.name] = own
    return sources


def size_charts(gathered: Gathered, seed: int) -> list[dict[str, Any]]:
    """A scatter for each source with films enough for a class with pictures."""
    charts = []
    for source, classes in class_sizes(gathered).items():
        large = {n.split(" · ", 1)[1]: s for n, s in classes.items() if n_enough(s, gathered)}
        if large:
            some = dict(list(large.items())[:MOST_CLASSES])
            about = f"{source}: height against width of the films, by class"
            charts.append(
                {"title": source, "means": "", "svg": both(partial(_scatter, some, about, seed))}
            )
    return charts


def n_enough(sizes: np.ndarray, gathered: Gathered) -> bool:
    """Are there as many films as a class needs for its pictures (any, in a small set)?"""
    return len(sizes) >= min(
        SMALLEST_SHOWN, max((m.n for m in gathered.moments.values()), default=0)
    )


def slope_table(gathered: Gathered) -> dict[str, Any]:
    """The fitted slope of every class."""
    rows = []
    for classes in class_sizes(gathered).values():
        for name, sizes in classes.items():
            fit = fit_slope(sizes)
            middle = np.median(sizes, axis=0)
            rows.append(
                [
                    name,
                    f"{fit.n:,}",
                    fit.words,
                    f"{fit.ratio:.3f}",
                    f"{middle[0]:.0f} × {middle[1]:.0f}",
                ]
            )
    head = ["Class", "Films", "Slope", "Height / width, median", "Median size, px"]
    return {"head": head, "words": 1, "rows": rows}


def cautions(gathered: Gathered) -> list[str]:
    """What a reader must know of these films before believing a picture."""
    out = []
    wrong = gathered.box_faults["the film has another shape than its box says"]
    if wrong:
        out.append(f"{wrong:,} films have another shape than their box says; the box was not used.")
    twice = len(gathered.entries) - len({e.row.image for e in gathered.entries})
    if twice:
        out.append(f"{twice:,} rows name a film that stands in the table already; each row counts.")
    sides: dict[str, set[str]] = {}
    for entry in gathered.entries:
        sides.setdefault(entry.row.patient_id, set()).add(entry.row.source)
    shared = sum(len(sources) > 1 for sources in sides.values())
    if shared:
        out.append(f"{shared:,} patient ids stand in more than one source.")
    return out


def _scatter(
    classes: dict[str, np.ndarray], about: str, seed: int, *, width: int = WIDTH
) -> Markup:
    return size_scatter(classes, about, seed, width)


def _notes(answers: Sequence[Answer]) -> list[str]:
    whys = Counter(a.why_not for a in answers if a.why_not)
    seen = "; ".join(f"{_SHORT[w]}: {WHAT[w]}" for w in FEATURES)
    not_asked = [f"– means not asked: {why} ({n} cells)." for why, n in whys.most_common()]
    return [f"What each model sees. {seen}.", *not_asked]


def _small_words(gathered: Gathered) -> str:
    small = [(c, n) for c, n in ordered_classes(gathered.entries) if c not in gathered.moments]
    if not small:
        return ""
    some = ", ".join(f"{c.name} {n}" for c, n in small[:8])
    more = f" and {len(small) - 8} more" if len(small) > 8 else ""
    return f"Classes without pictures, as they are few or small: {some}{more}."


def _grids(gathered: Gathered) -> list[dict[str, Any]]:
    counts = dict(ordered_classes(gathered.entries))
    return [
        {
            "name": c.name,
            "n": counts[c],
            "films": [
                {"uri": uri, "name": Path(gathered.entries[i].row.image).name} for i, uri in films
            ],
        }
        for c, films in gathered.grids.items()
        if films
    ]


def _worst_first(found: Sequence[Verdict]) -> list[Verdict]:
    order = ("warning", "caution", "unknown", "clear")
    return sorted((v for v in found if v.about == "labels"), key=lambda v: order.index(v.level))

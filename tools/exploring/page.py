"""The page of tools/explore.py: one HTML file that needs no script, no other file, no network.

Pictures are data URIs and the style is named by hash in a Content-Security-Policy that allows
nothing else; every text from the table is escaped, and control characters are spelt out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import combinations
from operator import add
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup

from cxr.draw import encode_jpeg, to_data_uri
from cxr.page.build import page_text
from cxr.page.charts import LETTER, NARROW, WIDTH, Axis, Row, both, forest, nice_ticks, svg, text_at
from cxr.page.pictures import inferno
from exploring.entries import FilmClass, age_table, ordered_classes, terms_table
from exploring.gather import GRID, OUTSIDE, SMALLEST_SHOWN, Gathered, Moments
from exploring.probe import (
    FEATURES,
    FOLDS,
    LEVELS,
    LIMIT,
    WHAT,
    Answer,
    Verdict,
    auc_text,
    headline,
)

HERE = Path(__file__).resolve().parent
MOST_UNREAD, MOST_CLASSES = 50, 6  # rows of the table; classes in one scatter


def page_html(
    gathered: Gathered, answers: Sequence[Answer], found: Sequence[Verdict], **told: Any
) -> str:
    """The whole page; `told` are title, made, command, boxes (their origin), seed, draws and
    smallest, as the page says them."""
    entries = gathered.entries
    classes, most_variance = class_pictures(gathered.moments)
    pairs, most_difference = differences(gathered.moments)
    reasons = Counter(reason for _, reason, _ in gathered.unread)
    shown = {
        **told,
        "folds": FOLDS,
        "limit": LIMIT,
        "answer": headline(found),
        "label_verdicts": sorted(
            (v for v in found if v.about == "labels"), key=lambda v: LEVELS.index(v.level)
        ),
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
        "size_charts": size_charts(gathered, told["seed"]),
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
            shorts = (s.replace(",", "").capitalize() for s in _SHORT.values())
            head = ["Question", "Films", *shorts]
            tables.append({"title": title, "head": head, "words": 1, "rows": rows})
    return tables


def probe_charts(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """A forest of AUCs for each question about labels, all on one scale."""
    charts = []
    labels = [a for a in answers if a.about == "labels" and a.auc.value is not None]
    ends = (v for a in labels for v in (a.auc.value, a.auc.low, a.auc.high))
    span = [v for v in ends if v is not None]
    for name in dict.fromkeys(a.question for a in labels):
        own = [(a, auc_text(a.auc)) for a in labels if a.question == name]
        rows = [Row(_SHORT[a.what], a.auc.value, a.auc.low, a.auc.high, text) for a, text in own]
        figures = "; ".join(f"{WHAT[a.what]} {text}" for a, text in own)
        about = f"{name}: AUC of linear models. {figures}"
        draw = partial(forest, rows, about, "score", line=(0.5, "chance"), span=span)
        means = "AUC of each shortcut, with its interval."
        charts.append({"title": name, "means": means, "svg": both(draw)})
    return charts


_WORDS = ("film, 8×8", "thorax blacked out", "box’s numbers", "aspect ratio", "crop, 8×8")
_SHORT = dict(zip(FEATURES, _WORDS, strict=True))


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
    # as many films as a class needs for its pictures; any, in a small set
    enough = min(SMALLEST_SHOWN, max((m.n for m in gathered.moments.values()), default=0))
    for source, classes in class_sizes(gathered).items():
        large = {n.split(" · ", 1)[1]: s for n, s in classes.items() if len(s) >= enough}
        if large:
            some = dict(list(large.items())[:MOST_CLASSES])
            about = f"{source}: height against width of the films, by class"
            draw = partial(size_scatter, some, about, seed)
            charts.append({"title": source, "means": "", "svg": both(draw)})
    return charts


def slope_table(gathered: Gathered) -> dict[str, Any]:
    """The fitted slope of every class."""
    rows = []
    for classes in class_sizes(gathered).values():
        for name, sizes in classes.items():
            fit = fit_slope(sizes)
            middle = np.median(sizes, axis=0)
            size = f"{middle[0]:.0f} × {middle[1]:.0f}"
            rows.append([name, f"{fit.n:,}", fit.words, f"{fit.ratio:.3f}", size])
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
    name_of = {i: Path(e.row.image).name for i, e in enumerate(gathered.entries)}
    return [
        {
            "name": c.name,
            "n": counts[c],
            "films": [{"uri": u, "name": name_of[i]} for i, u in films],
        }
        for c, films in gathered.grids.items()
        if films
    ]


QUALITY = 88
# Okabe and Ito's blue and vermilion: told apart by colour-blind readers, and of one lightness
FIRST, SECOND = np.array([213.0, 94.0, 0.0]), np.array([0.0, 114.0, 178.0])


@dataclass(frozen=True)
class Difference:
    """Two classes' means held against each other; `most` is the largest difference in [0, 1]."""

    source: str
    first: str
    second: str
    n: tuple[int, int]
    most: float
    mean: float
    picture: str


def class_pictures(moments: Mapping[FilmClass, Moments]) -> tuple[list[dict[str, Any]], float]:
    """Mean and variance pictures of all classes that have films, and the variance that is drawn
    brightest: one scale for all, so that classes can be compared."""
    some = {c: m for c, m in moments.items() if m.n}
    top = max((float(m.variance.max()) for m in some.values()), default=0.0)
    shown = [
        {"film_class": c, "n": m.n, "mean": grey_uri(m.mean), "variance": heat_uri(m.variance, top)}
        for c, m in some.items()
    ]
    return shown, top


def differences(moments: Mapping[FilmClass, Moments]) -> tuple[list[Difference], float]:
    """Means against each other inside each source, label against label and part against part of a
    label; and the difference that is drawn in full colour, one scale for all."""
    found: list[tuple[str, str, str, Moments, Moments]] = []
    for source in dict.fromkeys(c.source for c in moments):
        own = {c: m for c, m in moments.items() if c.source == source and m.n}
        labels: dict[str, dict[str, Moments]] = {}
        for c, m in own.items():
            labels.setdefault(c.label, {})[c.kind] = m
        whole = {name or "no label": reduce(add, m.values()) for name, m in labels.items()}
        for group in (whole, *({k: m for k, m in kinds.items() if k} for kinds in labels.values())):
            found += [(source, a, b, group[a], group[b]) for a, b in combinations(group, 2)]
    planes = [b.mean - a.mean for _, _, _, a, b in found]
    top = max((float(np.abs(p).max()) for p in planes), default=0.0)
    out = []
    for (source, first, second, a, b), p in zip(found, planes, strict=True):
        most, mean = float(np.abs(p).max()), float(np.abs(p).mean())
        out.append(
            Difference(source, first, second, (a.n, b.n), most, mean, _uri(to_colours(p, top)))
        )
    return out, top


def grey_uri(plane: np.ndarray) -> str:
    """(H, W) in [0, 1] as a grey picture."""
    return _uri(_to_bytes(plane))


def heat_uri(plane: np.ndarray, top: float) -> str:
    """(H, W) ≥ 0 in inferno colours, `top` the brightest."""
    share = _to_bytes(plane / top if top > 0 else np.zeros_like(plane))
    return _uri(np.ascontiguousarray(cv2.applyColorMap(share, cv2.COLORMAP_INFERNO)[..., ::-1]))


def _to_bytes(share: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def _uri(image: np.ndarray) -> str:
    return to_data_uri(encode_jpeg(image, QUALITY))


def to_colours(plane: np.ndarray, top: float) -> np.ndarray:
    """(H, W) with sign as uint8 RGB (H, W, 3): white is 0, full blue +`top`, full vermilion
    −`top`."""
    share = np.clip(plane / top, -1, 1)[..., None] if top > 0 else np.zeros((*plane.shape, 1))
    colour = np.where(share > 0, SECOND, FIRST)
    return np.rint(255 + np.abs(share) * (colour - 255)).astype(np.uint8)


MOST_DOTS = 400  # of a class; the fit takes all films
_STYLES = "abcdef"  # classes .k-a … of the style sheet: colour, and dash of the fitted line
# a dot, a square, a dash, a stroke: told apart in print and by colour-blind readers too
_MARKS = ("h0", "h0", "m-2 0h4", "m0 -2v4", "m-2 -2l4 4", "m-2 2l4 -4")


@dataclass(frozen=True)
class Fit:
    """Least squares of height on width: height = intercept + slope × width, in px; None where all
    films are equally wide. `ratio` is the median of height / width."""

    n: int
    slope: float | None
    intercept: float | None
    ratio: float | None

    @property
    def words(self) -> str:
        """For a table and the legend."""
        if self.slope is None:
            return "all of one width"
        return f"{round(self.slope, 3) + 0:.3f}".replace("-", "−")  # + 0: no minus before a zero


def fit_slope(sizes_wh: np.ndarray) -> Fit:
    """The fit of (N, 2) widths and heights."""
    wide, high = sizes_wh[:, 0].astype(np.float64), sizes_wh[:, 1].astype(np.float64)
    if not len(wide):
        return Fit(0, None, None, None)
    ratio = float(np.median(high / wide))
    spread = float(((wide - wide.mean()) ** 2).sum())
    if spread == 0:
        return Fit(len(wide), None, None, ratio)
    slope = float(((wide - wide.mean()) * (high - high.mean())).sum()) / spread
    return Fit(len(wide), slope, float(high.mean() - slope * wide.mean()), ratio)


def size_scatter(
    series: Mapping[str, np.ndarray], about: str, seed: int = 0, width: int = WIDTH
) -> Markup:
    """A chart of name → (N, 2) sizes; at most MOST_DOTS films of a class are drawn, by seed."""
    shown = {name: sizes for name, sizes in series.items() if len(sizes)}
    every = np.concatenate(list(shown.values())) if shown else np.ones((1, 2))
    fits = {name: fit_slope(sizes) for name, sizes in shown.items()}
    slopes = {n: f.words if f.slope is None else f"slope {f.words}" for n, f in fits.items()}
    out, y = _legend([f"{name}: {slope}" for name, slope in slopes.items()], width)
    out.append(text_at(0, y + 24, "height, px", "soft"))
    top, left = y + 36, 62
    bottom = top + (230 if width > NARROW else 190)
    across = Axis(*_range(every[:, 0]), left, width - 14)
    up = Axis(*_range(every[:, 1]), bottom, top)
    for tick in nice_ticks(up.low, up.high, 4):
        out.append(f'<path class="grid" d="M{left} {up(tick)}H{width - 14}"/>')
        out.append(text_at(left - 8, up(tick) + 4, f"{tick:g}", "end soft"))
    out += across.ticks(
        nice_ticks(across.low, across.high, 4 if width > NARROW else 3), top, bottom, "px"
    )
    rng = np.random.default_rng(seed)
    for number, sizes in enumerate(shown.values()):
        some = sizes if len(sizes) <= MOST_DOTS else rng.choice(sizes, MOST_DOTS, replace=False)
        spots = "".join(f"M{across(w)} {up(h)}{_MARKS[number % 6]}" for w, h in some.tolist())
        out.append(f'<path class="spots k-{_STYLES[number % 6]}" d="{spots}"/>')
    for number, (name, sizes) in enumerate(shown.items()):
        out += _line(fits[name], sizes[:, 0], across, up, _STYLES[number % 6])
    out.append(text_at(width - 14, bottom + 34, "width, px", "end soft"))
    return svg(out, width, bottom + 40, about)


def _line(fit: Fit, wide: np.ndarray, across: Axis, up: Axis, style: str) -> list[str]:
    """The fitted line over the widths of its class, cut off where it would leave the chart."""
    if fit.slope is None or fit.intercept is None:
        return []
    ends = []
    for w in (float(wide.min()), float(wide.max())):
        h = min(max(fit.intercept + fit.slope * w, up.low), up.high)
        at = (h - fit.intercept) / fit.slope if fit.slope else w
        ends.append(f"{across(at)} {up(h)}")
    path = "L".join(ends)
    return [f'<path class="under" d="M{path}"/>', f'<path class="fit k-{style}" d="M{path}"/>']


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = 0.05 * (high - low) or max(1.0, math.ceil(0.1 * high))
    return max(0.0, low - room), high + room


def _legend(names: Sequence[str], width: float, top: float = 12) -> tuple[list[str], float]:
    """Line, mark and name of each class, in as many rows as they need; and where they end."""
    out, x, y = [], 0.0, top
    for number, name in enumerate(names):
        style, wide = _STYLES[number % 6], 34 + LETTER * len(name)
        if x and x + wide > width:
            x, y = 0.0, y + 18
        out.append(f'<path class="fit k-{style}" d="M{x:.1f} {y - 4}h26"/>')
        dot = f"M{x + 13:.1f} {y - 4}{_MARKS[number % 6]}"
        out += [
            f'<path class="spots k-{style}" d="{dot}"/>',
            text_at(x + 32, y, name, "", width - 40),
        ]
        x += wide + 14
    return out, y

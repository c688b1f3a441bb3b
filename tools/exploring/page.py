"""The page of tools/explore.py: one HTML file that needs no script, no other file, no network.

Pictures are data URIs and the style is named by hash in a Content-Security-Policy that allows
nothing else; every text from the table is escaped, and control characters are spelt out.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from itertools import combinations
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from markupsafe import Markup

from cxr.draw import encode_jpeg, to_data_uri
from cxr.notes import code_of, count_notes, sentence_of
from cxr.page.build import Chart, Table, inferno, page_text
from cxr.page.charts import NARROW, WIDTH, Axis, Row, both, forest, legend, nice_ticks, svg, text_at
from exploring import (
    FEATURES,
    GRID,
    OTHER_SHAPE,
    OUTSIDE,
    SMALLEST_SHOWN,
    FilmClass,
    Gathered,
    Moments,
    age_table,
    ordered_classes,
    terms_table,
    unknown_labels,
)
from exploring.probe import FOLDS, LEVELS, LIMIT, WHAT, Answer, Verdict, auc_text, headline

MOST_UNREAD, MOST_CLASSES = 50, 6  # rows of the table; classes in one scatter


def page_html(
    gathered: Gathered, answers: Sequence[Answer], found: Sequence[Verdict], **told: Any
) -> str:
    """The whole page; `told` are title, made, command, boxes (their origin), seed, draws and
    smallest, as the page says them."""
    entries, unread = gathered.entries, gathered.unread
    classes, most_variance = class_pictures(gathered.moments)
    pairs, most_difference = differences(gathered.moments)
    reasons = Counter(reason.replace("_", " ") for _, reason, _ in unread).most_common()
    worst_first = sorted(found, key=lambda v: LEVELS.index(v.level))
    return page_text(
        Path(__file__).with_name("page.html"),
        **told,
        folds=FOLDS,
        limit=LIMIT,
        answer=headline(found),
        label_verdicts=[v for v in worst_first if v.about == "labels"],
        source_verdicts=[v for v in found if v.about == "sources"],
        films=len(entries),
        patients=len({e.row.patient_id for e in entries}),
        read=int(gathered.seen.sum()),
        boxed=int(np.isfinite(gathered.features[OUTSIDE]).all(1).sum()),
        unread=unread,
        cautions=cautions(gathered),
        unread_words=", ".join(f"{reason} {n}" for reason, n in reasons),
        unread_table=Table(("Film", "Reason"), [(i, s) for i, _, s in unread[:MOST_UNREAD]], 2),
        noted=note_table(gathered),
        probe_charts=probe_charts(answers),
        probe_tables=probe_tables(answers),
        notes=_notes(answers),
        ages=age_table(entries),
        terms=terms_table(entries),
        size_charts=size_charts(gathered, told["seed"]),
        slopes=slope_table(gathered),
        differences=pairs,
        most_difference=most_difference,
        classes=classes,
        most_variance=most_variance,
        inferno=inferno(),
        per_class=GRID,
        small_words=_small_words(gathered),
        grids=_grids(gathered),
    )


def _by_question(answers: Sequence[Answer], about: str) -> dict[str, dict[str, Answer]]:
    """Question → shortcut → its answer."""
    found: dict[str, dict[str, Answer]] = defaultdict(dict)
    for a in answers:
        if a.about == about:
            found[a.question][a.what] = a
    return found


def probe_tables(answers: Sequence[Answer]) -> list[tuple[str, Table]]:
    """Questions against shortcuts, labels and sources apart, each with its title."""
    shorts = (s.replace(",", "").capitalize() for s in _SHORT.values())
    head, tables = ("Question", "Films", *shorts), []
    for about, title in (("labels", "Labels of one source"), ("sources", "Source against source")):
        rows = []
        for name, own in _by_question(answers, about).items():
            sides = max((a.sides for a in own.values()), key=sum)
            aucs = [own[what].auc for what in FEATURES]
            cells = ("–" if auc.value is None else auc_text(auc) for auc in aucs)
            rows.append((name, f"{sides[0]:,} / {sides[1]:,}", *cells))
        tables += [(title, Table(head, rows))] if rows else []
    return tables


def probe_charts(answers: Sequence[Answer]) -> list[Chart]:
    """A forest of AUCs for each question about labels, all on one scale."""
    labels = _by_question([a for a in answers if a.auc.value is not None], "labels")
    every = (a.auc for own in labels.values() for a in own.values())
    span = [v for auc in every for v in (auc.value, auc.low, auc.high) if v is not None]
    charts = []
    for name, own in labels.items():
        texts = {what: auc_text(a.auc) for what, a in own.items()}
        rows = [
            Row(_SHORT[w], a.auc.value, a.auc.low, a.auc.high, texts[w]) for w, a in own.items()
        ]
        figures = "; ".join(f"{WHAT[what]} {text}" for what, text in texts.items())
        about = f"{name}: AUC of linear models. {figures}"
        draw = partial(forest, rows, about, "score", line=(0.5, "chance"), span=span)
        charts.append(Chart(name, "AUC of each shortcut, with its interval.", both(draw)))
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


def size_charts(gathered: Gathered, seed: int) -> list[Chart]:
    """A scatter for each source with films enough for a class with pictures."""
    charts = []
    # as many films as a class needs for its pictures; any, in a small set
    enough = min(SMALLEST_SHOWN, max((m.n for m in gathered.moments.values()), default=0))
    for source, classes in class_sizes(gathered).items():
        large = [(n.split(" · ", 1)[1], s) for n, s in classes.items() if len(s) >= enough]
        if large:
            about = f"{source}: height against width of the films, by class"
            draw = partial(size_scatter, dict(large[:MOST_CLASSES]), about, seed)
            charts.append(Chart(source, "", both(draw)))
    return charts


def slope_table(gathered: Gathered) -> Table:
    """The fitted slope of every class."""
    rows = []
    for name, sizes in (c for classes in class_sizes(gathered).values() for c in classes.items()):
        fit, (width, height) = fit_slope(sizes), np.median(sizes, axis=0)
        size = f"{width:.0f} × {height:.0f}"
        rows.append((name, f"{fit.n:,}", fit.words, f"{fit.ratio:.3f}", size))
    return Table(("Class", "Films", "Slope", "Height / width, median", "Median size, px"), rows)


def cautions(gathered: Gathered) -> list[str]:
    """What a reader must know of these films before believing a picture."""
    out = []
    if wrong := gathered.box_faults[OTHER_SHAPE]:
        out.append(f"{wrong:,} films have another shape than their box says; the box was not used.")
    twice = len(gathered.entries) - len({e.row.image for e in gathered.entries})
    if twice:
        out.append(f"{twice:,} rows name a film that stands in the table already; each row counts.")
    if unknown := unknown_labels(gathered.entries):
        words = ", ".join(f"{label} {n:,}" for label, n in unknown.items())
        out.append(f"Films whose label is not known, of which the probe is not asked: {words}.")
    owners = {(entry.row.patient_id, entry.row.source) for entry in gathered.entries}
    if shared := sum(n > 1 for n in Counter(patient for patient, _ in owners).values()):
        out.append(f"{shared:,} patient ids stand in more than one source.")
    return out


def note_table(gathered: Gathered) -> Table:
    """What was noted of the films while they were read: a row a code, with one film's sentence."""
    sentences = {code_of(n): sentence_of(n) for notes in gathered.noted for n in notes}
    counts = count_notes(gathered.noted)
    rows = [(sentences[code], f"{films:,}") for code, films in counts.items()]
    return Table(("Noted while reading", "Films"), rows)


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
        {"name": c.name, "n": counts[c], "films": [(uri, name_of[i]) for i, uri in films]}
        for c, films in gathered.grids.items()
        if films
    ]


QUALITY = 88
# Okabe and Ito's blue and vermilion: told apart by colour-blind readers, and of one lightness
FIRST, SECOND = np.array([213.0, 94.0, 0.0]), np.array([0.0, 114.0, 178.0])


class Difference(NamedTuple):
    """Two classes' means held against each other; `most` is the largest difference in [0, 1]."""

    source: str
    first: str
    second: str
    n: tuple[int, int]
    most: float
    mean: float
    picture: str


def class_pictures(moments: Mapping[FilmClass, Moments]) -> tuple[list[dict[str, Any]], float]:
    """Mean and variance pictures of all classes that have films, each with its largest variance and
    where it lies, and the variance that is drawn brightest: one scale for all, so that classes can
    be compared."""
    some = {c: m for c, m in moments.items() if m.n}
    top = max((float(m.variance.max()) for m in some.values()), default=0.0)
    shown = []
    for c, m in some.items():
        pictures = {"mean": _uri(_to_bytes(m.mean)), "variance": heat_uri(m.variance, top)}
        shown.append({"film_class": c, "n": m.n, "most": _most(m.variance), **pictures})
    return shown, top


def _most(plane: np.ndarray) -> str:
    """The largest value of a plane (H, W) and its place, in words."""
    place = np.unravel_index(int(plane.argmax()), plane.shape)
    down, across = (100 * (n + 0.5) / side for n, side in zip(place, plane.shape, strict=True))
    return f"{plane.max():.3f} at {across:.0f} % across, {down:.0f} % down"


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
        picture = _uri(to_colours(p, top))
        out.append(Difference(source, first, second, (a.n, b.n), most, mean, picture))
    return out, top


def heat_uri(plane: np.ndarray, top: float) -> str:
    """(H, W) ≥ 0 in inferno colours, `top` the brightest."""
    share = _to_bytes(plane / top if top > 0 else np.zeros_like(plane))
    return _uri(np.ascontiguousarray(cv2.applyColorMap(share, cv2.COLORMAP_INFERNO)[..., ::-1]))


def _to_bytes(share: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] as a grey picture."""
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


class Fit(NamedTuple):
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
    wide, high = sizes_wh.astype(np.float64).T
    if not len(wide):
        return Fit(0, None, None, None)
    off, ratio = wide - wide.mean(), float(np.median(high / wide))
    if not off.any():
        return Fit(len(wide), None, None, ratio)
    slope = float((off * (high - high.mean())).sum()) / float((off**2).sum())
    return Fit(len(wide), slope, float(high.mean() - slope * wide.mean()), ratio)


def size_scatter(
    series: Mapping[str, np.ndarray], about: str, seed: int = 0, width: int = WIDTH
) -> Markup:
    """A chart of name → (N, 2) sizes, none empty; at most MOST_DOTS films of a class are drawn, by
    seed."""
    every = np.concatenate(list(series.values()))
    fits = {name: fit_slope(sizes) for name, sizes in series.items()}
    slopes = (f.words if f.slope is None else f"slope {f.words}" for f in fits.values())
    names = [f"{name}: {slope}" for name, slope in zip(series, slopes, strict=True)]
    out, y = legend(names, width, sign=_sign)
    out.append(text_at(0, y + 24, "height, px", "soft"))
    top, left = y + 36, 62
    bottom = top + (230 if width > NARROW else 190)
    across = Axis(*_range(every[:, 0]), left, width - 14)
    up = Axis(*_range(every[:, 1]), bottom, top)
    for tick in nice_ticks(up.low, up.high, 4):
        out.append(f'<path class="grid" d="M{left} {up(tick)}H{width - 14}"/>')
        out.append(text_at(left - 8, up(tick) + 4, f"{tick:g}", "end soft"))
    ticks = nice_ticks(across.low, across.high, 4 if width > NARROW else 3)
    out += across.ticks(ticks, top, bottom, "px")
    rng, lines = np.random.default_rng(seed), []
    for number, (name, sizes) in enumerate(series.items()):
        some = sizes if len(sizes) <= MOST_DOTS else rng.choice(sizes, MOST_DOTS, replace=False)
        out.append(_spots(number, "".join(f"M{across(w)} {up(h)}*" for w, h in some.tolist())))
        lines += _line(fits[name], sizes[:, 0], across, up, number)
    out += [*lines, text_at(width - 14, bottom + 34, "width, px", "end soft")]
    return svg(out, width, bottom + 40, about)


def _spots(number: int, places: str) -> str:
    """A class's mark at each place, where `places` has a star."""
    marks = places.replace("*", _MARKS[number % 6])
    return f'<path class="spots k-{_STYLES[number % 6]}" d="{marks}"/>'


def _sign(number: int, x: float, y: float) -> str:
    line = f'<path class="fit k-{_STYLES[number % 6]}" d="M{x:.1f} {y}h26"/>'
    return line + _spots(number, f"M{x + 13:.1f} {y}*")


def _line(fit: Fit, wide: np.ndarray, across: Axis, up: Axis, number: int) -> list[str]:
    """The fitted line over the widths of its class, cut off where it would leave the chart."""
    if fit.slope is None or fit.intercept is None:
        return []
    ends = []
    for w in (float(wide.min()), float(wide.max())):
        h = min(max(fit.intercept + fit.slope * w, up.low), up.high)
        at = (h - fit.intercept) / fit.slope if fit.slope else w
        ends.append(f"{across(at)} {up(h)}")
    path, style = "L".join(ends), _STYLES[number % 6]
    return [f'<path class="under" d="M{path}"/>', f'<path class="fit k-{style}" d="M{path}"/>']


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = 0.05 * (high - low) or max(1.0, math.ceil(0.1 * high))
    return max(0.0, low - room), high + room

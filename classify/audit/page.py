"""The audit's page: the answer, its figures and controls, and every film, worst first.

One HTML file that needs no other file and no network, as `classify.report` makes them: pictures are
data URIs, style and script are inline and named by hash in a Content-Security-Policy. Films come
from an iterable and go to a scratch file one by one; what stays in memory is a film's names, flags
and figures, and the pictures of the 24 worst, which are shown without a script and in print.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from markupsafe import Markup

from classify.audit.page_films import Record, film_entry, film_record, rank
from classify.audit.sections import answer_chart, flatten, sections
from classify.audit.words import FLAGS, LIFT
from cxr.page.build import to_json, write_page
from cxr.page.pictures import inferno
from cxr.page.words import DECISIONS, printable

HERE = Path(__file__).resolve().parent
WORST = 24  # films shown without a script and in print


def write_audit_page(
    path: str | Path, summary: Mapping[str, Any], films: Iterable[Mapping[str, Any]]
) -> Path:
    """Write the page whole or leave the old one; `films` may be a generator and is read once.

    `summary` may lack any part: its section is left out then. A film needs only `film`; pictures
    and maps are data URIs as `picture_uri` and `map_uri` make them, `box`, `seen` and `field` are
    fractions of the film. Every text is escaped, and control characters are spelt out. A picture
    that is no data URI, or a box that is not four numbers, raises ValueError with the film's name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent) as scratch:
        index, worst = _spool(films, scratch)
        return write_page(path, HERE / "page.html", **_shown(summary, index, worst, scratch))


def _spool(
    films: Iterable[Mapping[str, Any]], scratch: IO[str]
) -> tuple[list[Record], list[Record]]:
    """Every film's data to the scratch file; gives what the gallery sorts and filters by, worst
    first, and the worst films' whole records."""
    index: list[tuple[tuple[Any, ...], Record]] = []
    worst: list[tuple[tuple[Any, ...], Record]] = []
    anchors: Counter[str] = Counter()
    for film in films:
        record = film_record(film)
        anchors[record["id"]] += 1
        if anchors[record["id"]] > 1:  # the same film twice, say under two methods
            record["id"] += f"-{anchors[record['id']]}"
        scratch.write(f'<script type="application/json" id="data-{record["id"]}">')
        scratch.write(f"{to_json(record)}</script>\n")
        entry = film_entry(record)
        place = (*rank(entry), len(index))
        index.append((place, entry))
        worst = sorted([*worst, (place, record)], key=lambda pair: pair[0])[:WORST]
    return [e for _, e in sorted(index, key=lambda pair: pair[0])], [r for _, r in worst]


def _shown(
    summary: Mapping[str, Any], index: list[Record], worst: list[Record], scratch: IO[str]
) -> dict[str, Any]:
    clean = _clean(summary)
    flags = Counter(flag for entry in index for flag in entry["flags"])
    return {
        "title": clean.get("title") or "Attention audit",
        "made": clean.get("made") or "",
        "question": clean.get("question") or "Did the model look inside the lungs?",
        "answer": clean.get("answer") or {},
        "method": clean.get("method") or "",
        "answer_chart": answer_chart(clean.get("answer") or {}),
        "lift": LIFT,
        "cautions": clean.get("cautions") or [],
        "sections": sections(clean),
        "thresholds": flatten(clean.get("thresholds") or {}),
        "settings": flatten(clean.get("settings") or {}),
        "members": clean.get("members") or [],
        "films": len(index),
        "flagged": sum(bool(entry["flags"]) for entry in index),
        "flags": flags,
        "flag_words": {**{f: FLAGS[f] for f in FLAGS}, **{f: "" for f in flags if f not in FLAGS}},
        "findings": any(entry["findings"] for entry in index),
        "worst": worst,
        "index": to_json(index),
        "words": to_json({"decisions": DECISIONS, "flags": FLAGS}),
        "early": Markup('document.documentElement.className = "js";'),
        "film_blocks": lambda: _blocks(scratch),
        "inferno_stops": inferno(),
        "inferno": [[round(c / 255, 3) for c in rgb] for rgb in zip(*inferno(), strict=True)],
    }


def _blocks(scratch: IO[str]) -> Iterator[Markup]:
    scratch.seek(0)
    while piece := scratch.read(1 << 16):
        yield Markup(piece)  # noqa: S704 - written by _spool through to_json


def _clean(value: Any) -> Any:
    """Plain values with printable texts; NaN becomes None."""
    if isinstance(value, Mapping):
        return {printable(str(k)): _clean(v) for k, v in value.items()}
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        plain = value.tolist() if hasattr(value, "tolist") else value
        return [_clean(v) for v in plain] if isinstance(plain, Sequence) else _clean(plain)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, int | float) else printable(str(value))

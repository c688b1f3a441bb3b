"""The audit's page: the answer, its figures and controls, and every film, worst first.

One HTML file that needs no other file and no network, as `classify.report` makes them: pictures are
data URIs, style and script are inline and named by hash in a Content-Security-Policy. Films come
from an iterable and go to a scratch file one by one; what stays in memory is a film's names, flags
and figures, and the pictures of the 24 worst, which are shown without a script and in print.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from classify.audit.films import Record, film_anchor, film_entry, film_record, rank
from classify.audit.pdf import write_pdf
from classify.audit.pictures import inferno, map_uri, picture_uri, to_polygons
from classify.audit.sections import answer_chart, flatten, sections
from classify.audit.words import DECISIONS, FLAGS, LIFT, in_unit
from classify.report import csp_hash, printable
from cxr.workdir import replacing

__all__ = ["film_anchor", "map_uri", "picture_uri", "to_polygons", "write_audit_page", "write_pdf"]

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
    with (
        replacing(path) as file,
        tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent) as scratch,
    ):
        index, worst = _spool(films, scratch)
        for piece in _template().generate(**_shown(summary, index, worst, scratch)):
            file.write(piece.encode("utf-8"))
    return path


def to_json(values: Any) -> Markup:
    """JSON that may stand inside <script>: plain ASCII, in which no tag or comment can begin."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))  # ASCII: no U+2028 either
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704 - that is what this function is for


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
    script = _asset("page.js")
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
        "decisions": DECISIONS,
        "worst": worst,
        "index": to_json(index),
        "words": to_json({"decisions": DECISIONS, "flags": FLAGS}),
        "style": _asset("page.css"),
        "script": script,
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


@cache
def _asset(name: str) -> Markup:
    return Markup((files("classify") / "audit" / name).read_text(encoding="utf-8"))  # noqa: S704 - our own


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("classify", "audit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(csp_hash=csp_hash, in_unit=in_unit)
    return environment.get_template("page.html")

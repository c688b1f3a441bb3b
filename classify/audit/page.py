"""The audit's page: the answer, its figures and controls, and every film, worst first.

Films come from an iterable, and their cards go to a scratch file one by one; what stays in memory
is a film's names, flags and figures. The 24 worst are shown without a script and in print.
"""

from __future__ import annotations

import hashlib
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from markupsafe import Markup

from classify.audit.figures import LIFT
from classify.audit.rows import FLAGS
from classify.audit.sections import answer_chart, flatten, sections
from cxr.page import DECISIONS, in_unit, name_of, printable
from cxr.page.build import inferno, page_template, to_json, write_page
from cxr.rules import require

HERE = Path(__file__).resolve().parent
WORST = 24  # films shown without a script and in print
_FEW = 4  # members on a card
Record = dict[str, Any]

_VIEW = 1000  # longer side of a film in the coordinates of its outlines
_TEXTS = ("source", "label", "patient", "decision", "status", "reason")
FIGURES = {  # of a member in a film's record: which measure it is, and its head in a table
    "probability": ("p_target", "Probability"),
    "lift": ("lift", "Lift"),
    "inside": ("inside_share", "On lung"),
    "area": ("area_share", "Lung area"),
    "border": ("border_share", "On border"),
    "outside_box": ("outside_box_share", "Outside box"),
    "text": ("text_share", "On writing"),
}
HITS = {
    "pointing": ("pointing_hit", "Brightest on lung"),
    "finding_hit": ("finding_hit", "Brightest on finding"),
}
_URI = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")


def write_audit_page(
    path: str | Path, summary: Mapping[str, Any], films: Iterable[Mapping[str, Any]]
) -> Path:
    """Write the page whole or leave the old one; `films` may be a generator and is read once.
    `summary` may lack any part: its section is left out then. A film needs only `film`; pictures
    and maps are data URIs as `picture_uri` and `map_uri` make them, `box`, `seen` and `field` are
    fractions of the film. Every text is escaped, and control characters are spelt out. A picture
    that is no data URI, or a box that is not four numbers, raises ValueError with the film's
    name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as scratch:
        index, places = _spool(films, scratch)
        cards = {
            "worst": lambda: _cards(scratch, places[:WORST]),
            "others": lambda: _cards(scratch, places[WORST:]),
        }
        return write_page(path, HERE / "page.html", **_shown(summary, index), **cards)


def _spool(
    films: Iterable[Mapping[str, Any]], scratch: IO[bytes]
) -> tuple[list[Record], list[tuple[int, int]]]:
    """Every film's card to the scratch file; gives what the gallery sorts and filters by, and where
    the cards begin and how long they are, worst first."""
    draw = page_template(HERE / "card.html").module.card  # type: ignore[attr-defined]
    found: list[tuple[Record, tuple[int, int]]] = []
    anchors: Counter[str] = Counter()
    for film in films:
        record = film_record(film)
        anchors[record["id"]] += 1
        if anchors[record["id"]] > 1:  # the same film twice, say under two methods
            record["id"] += f"-{anchors[record['id']]}"
        card = draw(record, FLAGS, _FEW).encode()
        found.append((_entry(record), (scratch.tell(), len(card))))
        scratch.write(card)
    found.sort(key=lambda pair: _rank(pair[0]))
    return [entry for entry, _ in found], [place for _, place in found]


def _cards(scratch: IO[bytes], places: Iterable[tuple[int, int]]) -> Iterator[Markup]:
    for start, size in places:
        scratch.seek(start)
        yield Markup(scratch.read(size).decode())  # noqa: S704 - the template escaped every text


def _shown(summary: Mapping[str, Any], index: list[Record]) -> dict[str, Any]:
    clean = _plain(summary)
    flags = Counter(flag for entry in index for flag in entry["flags"])
    answer, colours = clean.get("answer") or {}, inferno()
    return {
        "title": clean.get("title") or "Attention audit",
        "question": clean.get("question") or "Did the model look inside the lungs?",
        **{name: clean.get(name) or "" for name in ("made", "method")},
        **{name: clean.get(name) or [] for name in ("cautions", "members")},
        **{name: flatten(clean.get(name) or {}) for name in ("thresholds", "settings")},
        "answer": answer,
        "answer_chart": answer_chart(answer),
        "lift": LIFT,
        "sections": sections(clean),
        "films": len(index),
        "flagged": sum(bool(entry["flags"]) for entry in index),
        "flags": flags,
        "flag_words": {**FLAGS, **{f: "" for f in flags if f not in FLAGS}},
        "findings": any(entry["findings"] for entry in index),
        "first": min(len(index), WORST),
        "index": to_json(index),
        "words": to_json({"decisions": DECISIONS, "flags": list(FLAGS)}),
        "early": Markup('document.documentElement.className = "js";'),
        "inferno_stops": colours,
        "inferno": [[round(c / 255, 3) for c in rgb] for rgb in zip(*colours, strict=True)],
    }


def _plain(value: Any) -> Any:
    """Plain values with printable texts; NaN becomes None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {printable(str(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Sequence):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, int | float) else printable(str(value))


def film_anchor(film: str) -> str:
    """The film's own anchor on the page: the same in every run, whatever its name holds."""
    return "film-" + hashlib.sha256(film.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def film_record(film: Mapping[str, Any]) -> Record:
    """A film as its card shows it: clean texts, outlines in units of 1/1000 of the longer side."""
    name, clean = str(film["film"]), _plain(film)
    height, width = clean.get("size") or (1, 1)
    scale = _VIEW / max(height, width)
    view = (round(width * scale, 1), round(height * scale, 1))
    members = [
        {
            "name": member.get("name", ""),
            **dict.fromkeys(FIGURES | HITS),  # None for what is undefined
            **{k: round(float(v), 4) for k, v in _known(member, FIGURES)},
            **{k: bool(v) for k, v in _known(member, HITS)},
            "flags": list(member.get("flags") or ()),
            "map": _uri(member.get("map"), name),
        }
        for member in clean.get("members") or ()
    ]
    flags = [*(clean.get("flags") or ()), *(f for member in members for f in member["flags"])]
    known = [n for n, m in enumerate(members) if m["map"] or m["lift"] is not None]
    outlines = (
        "L".join(f"{x * view[0]:.0f} {y * view[1]:.0f}" for x, y in polygon)
        for polygon in clean.get("field") or ()
    )
    texts = {k: clean.get(k) or "" for k in _TEXTS}
    field = "".join(f"M{line}Z" for line in outlines if line)
    drawn = "a person" if clean.get("lung_by") == "human" else "the lung-field network"
    facts = {name.capitalize(): texts[name] for name in ("label", "source", "patient", "status")}
    facts["Status"] = "" if texts["status"] == "ok" else texts["status"].replace("_", " ")
    facts |= {"Why": texts["reason"], "Notes": " ".join(clean.get("notes") or ())}
    facts["Lung field"] = f"drawn by {drawn}" if field else "none found"
    return {
        "id": film_anchor(name),
        "film": clean["film"],
        "name": printable(name_of(name)),
        **texts,
        "facts": list(facts.items()),
        "flags": list(dict.fromkeys(flags)),
        "reasons": list(clean.get("reasons") or ()),
        "view": view,
        "box": _rectangle(clean.get("box"), view, name),
        "seen": _rectangle(clean.get("seen") or (0, 0, 1, 1), view, name),
        "findings": [_rectangle(xyxy, view, name) for xyxy in clean.get("findings") or ()],
        "field": field,
        "picture": _uri(clean.get("picture"), name),
        "crop": _uri(clean.get("crop"), name),
        "members": members,
        "ranked": sorted(members, key=_rank),
        "figures": list(_cells(members)),
        "worst": min(known, key=lambda n: _rank(members[n]), default=0),
    }


def _known(member: Mapping[str, Any], names: Iterable[str]) -> list[tuple[str, Any]]:
    return [(k, member[k]) for k in names if member.get(k) not in (None, "")]


def _cells(members: Sequence[Record]) -> Iterator[tuple[str, list[str]]]:
    """Columns of a large film's table: the first two, and those in which a member has a figure."""
    for key, (_, head) in (FIGURES | HITS).items():
        if key in HITS:
            cells = [{None: "–", True: "yes", False: "no"}[m[key]] for m in members]
        else:
            unit = "ratio" if key == "lift" else "share"
            cells = [in_unit(m[key], unit) for m in members]
        if key in ("probability", "lift") or set(cells) != {"–"}:
            yield head, cells


def _entry(record: Record) -> Record:
    """What the gallery sorts, filters and searches by, for every film at hand."""
    own = {k: [m[k] for m in record["members"] if m[k] is not None] for k in FIGURES}
    return {
        **{k: record[k] for k in ("id", "film", "name", *_TEXTS, "flags", "reasons")},
        "lift": min(own["lift"], default=None),
        **{k: max(own[k], default=None) for k in ("border", "text", "outside_box")},
        "members": [m["name"] for m in record["members"]],
        "findings": len(record["findings"]),
    }


def _rank(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """Worst first: most flags, then the least lift; films without a measurement come last."""
    lift = entry["lift"]
    return (not entry.get("members", True), -len(entry["flags"]), lift is None, lift or 0.0)


def _rectangle(xyxy: Any, view: Sequence[float], film: str) -> list[float] | None:
    """Fractions x0, y0, x1, y1 to x, y, width, height in the view's units."""
    if xyxy is None:
        return None
    rule = f"A box of film {film!r} must be x0, y0, x1, y1 as fractions of the film"
    require(len(xyxy) == 4 and None not in xyxy, rule, xyxy)
    x0, y0, x1, y1 = xyxy
    corner = (x0 * view[0], y0 * view[1])
    size = (max(x1 - x0, 0) * view[0], max(y1 - y0, 0) * view[1])
    return [round(v, 1) for v in (*corner, *size)]


def _uri(uri: Any, film: str) -> str:
    if uri and not (isinstance(uri, str) and _URI.fullmatch(uri)):
        raise ValueError(
            f"A picture of film {film!r} must be a data URI of a PNG or JPEG. Got "
            f"{str(uri)[:40]!r} instead: use picture_uri or map_uri."
        )
    return Markup(uri or "")  # noqa: S704 - of the letters above

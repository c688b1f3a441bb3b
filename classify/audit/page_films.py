"""One film as the audit page holds it: clean texts, outlines, pictures, members' figures."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cxr.page.words import printable

_VIEW = 1000  # longer side of a film in the coordinates of its outlines
_FIGURES = ("probability", "lift", "inside", "area", "border", "outside_box", "text")
_URI = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
Record = dict[str, Any]


def film_anchor(film: str) -> str:
    """The film's own anchor on the page: the same in every run, whatever its name holds."""
    return "film-" + hashlib.sha256(film.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def film_record(film: Mapping[str, Any]) -> Record:
    """A film as the page holds it: clean texts, outlines in units of 1/1000 of the longer side."""
    name = str(film["film"])
    words = {
        k: printable(str(film.get(k) or ""))
        for k in ("source", "label", "patient", "decision", "status", "reason", "lung_by")
    }
    height, width = (float(v) for v in film.get("size") or (1, 1))
    scale = _VIEW / max(height, width)
    view = (round(width * scale, 1), round(height * scale, 1))
    members = [_member(m, name) for m in film.get("members") or ()]
    flags = list(
        dict.fromkeys(
            printable(str(f))
            for f in (*(film.get("flags") or ()), *(f for m in members for f in m["flags"]))
        )
    )
    known = [n for n, m in enumerate(members) if m["map"] or m["lift"] is not None]
    return {
        "id": film_anchor(name),
        "film": printable(name),
        "name": printable(_name_of(name)),
        **words,
        "flags": flags,
        "reasons": [printable(str(r)) for r in film.get("reasons") or ()],
        "view": view,
        "box": _rectangle(film.get("box"), view, name),
        "seen": _rectangle(film.get("seen") or (0, 0, 1, 1), view, name),
        "findings": [_rectangle(xyxy, view, name) for xyxy in film.get("findings") or ()],
        "field": _path(film.get("field") or (), view),
        "picture": _uri(film.get("picture"), name),
        "crop": _uri(film.get("crop"), name),
        "members": members,
        "worst": min(known, key=lambda n: rank(members[n]), default=0),
    }


def _member(member: Mapping[str, Any], film: str) -> Record:
    hits = {
        k: None if member.get(k) in (None, "") else bool(member[k])
        for k in ("pointing", "finding_hit")
    }
    return {
        "name": printable(str(member.get("name", ""))),
        **{k: _number(member.get(k)) for k in _FIGURES},
        **hits,
        "flags": [printable(str(f)) for f in member.get("flags") or ()],
        "map": _uri(member.get("map"), film),
    }


def film_entry(record: Record) -> Record:
    """What the gallery sorts, filters and searches by, for every film at hand."""
    worst = {k: [m[k] for m in record["members"] if m[k] is not None] for k in _FIGURES}
    return {
        **{
            k: record[k]
            for k in (
                "id",
                "film",
                "name",
                "source",
                "label",
                "patient",
                "decision",
                "status",
                "reason",
                "flags",
                "reasons",
            )
        },
        "lift": min(worst["lift"], default=None),
        **{k: max(worst[k], default=None) for k in ("border", "text", "outside_box")},
        "members": [m["name"] for m in record["members"]],
        "findings": len(record["findings"]),
    }


def rank(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """Worst first: most flags, then the least lift; films without a measurement come last."""
    lift = entry["lift"]
    return (not entry.get("members", True), -len(entry["flags"]), lift is None, lift or 0.0)


def _rectangle(xyxy: Any, view: Sequence[float], film: str) -> list[float] | None:
    """Fractions x0, y0, x1, y1 to x, y, width, height in the view's units."""
    if xyxy is None:
        return None
    values = [float(v) for v in xyxy]
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise ValueError(
            f"A box of film {film!r} must be x0, y0, x1, y1 as fractions of the film. "
            f"Got {xyxy!r} instead."
        )
    x0, y0, x1, y1 = values
    return [
        round(x0 * view[0], 1),
        round(y0 * view[1], 1),
        round(max(x1 - x0, 0) * view[0], 1),
        round(max(y1 - y0, 0) * view[1], 1),
    ]


def _path(polygons: Iterable[Any], view: Sequence[float]) -> str:
    lines = ("L".join(f"{x * view[0]:.0f} {y * view[1]:.0f}" for x, y in p) for p in polygons)
    return "".join(f"M{line}Z" for line in lines if line)


def _uri(uri: Any, film: str) -> str:
    if not uri:
        return ""
    if not isinstance(uri, str) or not _URI.fullmatch(uri):
        raise ValueError(
            f"A picture of film {film!r} must be a data URI of a PNG or JPEG. Got "
            f"{str(uri)[:40]!r} instead: use picture_uri or map_uri."
        )
    return uri


def _number(value: Any) -> float | None:
    """A figure with four digits; None for what is undefined, because JSON has no NaN."""
    if value is None or value == "" or not math.isfinite(float(value)):
        return None
    return round(float(value), 4)


def _name_of(film: str) -> str:
    return film.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or film

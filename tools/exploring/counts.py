"""Source × label × age band: how many films and patients, and under which licence, view and sex."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from exploring.entries import BANDS, Entry, age_band


def count_groups(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row for each source, label and age band that has films."""
    groups: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.row.source, entry.row.label, age_band(entry.age)].append(entry)
    order = sorted(groups, key=lambda k: (k[0], k[1] != "normal", k[1], BANDS.index(k[2])))
    return [
        {
            "source": key[0],
            "label": key[1],
            "age": key[2],
            "films": len(groups[key]),
            "patients": len({e.row.patient_id for e in groups[key]}),
            "licences": _count(e.row.licence or "not stated" for e in groups[key]),
            "views": _count(e.row.view or "not stated" for e in groups[key]),
            "sexes": _count(e.sex for e in groups[key]),
        }
        for key in order
    ]


def age_table(entries: Sequence[Entry]) -> dict[str, Any]:
    """Rows of source and label against age bands; a cell is films and, in brackets, patients."""
    every = {age_band(e.age) for e in entries}
    bands = [b for b in BANDS if b in every]
    rows: list[list[str]] = []
    for (source, label), own in _by_label(entries).items():
        cells = [_cell([e for e in own if age_band(e.age) == band]) for band in bands]
        rows.append([source, label or "no label", _cell(own), *cells])
    totals = [_cell([e for e in entries if age_band(e.age) == band]) for band in bands]
    rows.append(["all", "", _cell(entries), *totals])
    return {"head": ["Source", "Label", "All ages", *bands], "words": 2, "rows": rows}


def terms_table(entries: Sequence[Entry]) -> dict[str, Any]:
    """Rows of source and label with sexes, views and licences, each with its number of films."""
    rows = []
    for (source, label), own in _by_label(entries).items():
        licences = _count(e.row.licence or "not stated" for e in own)
        rows.append(
            [
                source,
                label or "no label",
                _words(_count(e.sex for e in own)),
                _words(_count(e.row.view or "not stated" for e in own)),
                _words(licences),
            ]
        )
    return {
        "head": ["Source", "Label", "Sex", "View", "Licence as stated"],
        "words": 5,
        "rows": rows,
    }


def _by_label(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.row.source, entry.row.label].append(entry)
    return dict(sorted(groups.items(), key=lambda i: (i[0][0], i[0][1] != "normal", i[0][1])))


def _count(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _words(counts: dict[str, int]) -> str:
    shown = [f"{name} {n:,}" for name, n in list(counts.items())[:6]]
    return ", ".join(shown) + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")


def _cell(own: Sequence[Entry]) -> str:
    return f"{len(own):,} ({len({e.row.patient_id for e in own}):,})" if own else "–"

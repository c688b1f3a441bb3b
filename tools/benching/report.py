"""What was measured, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detect.metrics import to_markdown

_HEADS = {
    "detection": "From a file to its box",
    "engines": "Each network by each engine",
    "members": "Many members",
    "way": "From a film to its answers",
    "saliency": "Maps",
    "whole": "A whole run beside its networks",
    "growth": "Many films",
    "workers": "Workers",
    "decisions": "Do engines decide alike?",
}
# of the parts whose rows are a table as they are: what a row holds, and its head
_COLUMNS = {
    "whole": {
        "films": "films",
        "saliency": "Grad-CAM",
        "ms": "the run, ms a film",
        "worked_ms": "of processors",
        "forward_ms": "its networks alone, ms a film",
        "forward_by": "by",
        "ratio": "ratio",
        "mib": "peak memory, MiB",
    },
    "growth": {
        "films": "films",
        "seconds": "seconds",
        "ms": "ms a film",
        "worked_ms": "of processors",
        "mib": "peak memory, MiB",
        "page_mb": "report.html, MB",
        "pages": "pages of cards",
    },
    "workers": {
        "workers": "workers of one core",
        "seconds": "seconds, all",
        "ms": "ms a film",
        "efficiency": "efficiency",
    },
}


def page(found: dict[str, Any]) -> str:
    """All parts that were measured, a heading and a table each."""
    lines: list[str] = []
    for part, head in _HEADS.items():
        if part in found:
            lines += ["", f"## {head}", ""]
            lines += _table(part, found[part])
    return "\n".join(lines).lstrip() + "\n"


def _table(part: str, rows: Sequence[Any]) -> list[str]:
    if names := _COLUMNS.get(part):
        cells = [[str(row[name]) for name in names] for row in rows]
        return to_markdown(list(names.values()), cells)
    return _decisions(rows) if part == "decisions" else _timers(rows)


def _timers(groups: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    apart = any("apart" in row for group in groups for row in group)
    head = ["per film", "ms (quartiles)", "ratio", *(["differs by"] if apart else [])]
    lines = []
    for group in groups:
        for row in group:
            low, high = row["quartiles"]
            cells = [row["what"], f"{row['ms']:.1f} ({low:.1f} to {high:.1f})"]
            cells += ["" if row["ratio"] is None else f"{row['ratio']:.2f}"]
            lines.append(cells + ([str(row.get("apart", ""))] if apart else []))
    return to_markdown(head, lines)


def _decisions(rows: Sequence[dict[str, Any]]) -> list[str]:
    head = ["engine", "films", "other decision", "other tier", "other status", "a logit differs by"]
    lines = []
    for row in rows:
        counts = [len(row[kind]) for kind in ("decision", "tier", "status")]
        shares = [f"{n} ({n / max(1, row['films']):.2%})" for n in counts]
        lines.append([row["engine"], str(row["films"]), *shares, str(row["logit"])])
    names = sorted({n for row in rows for kind in ("decision", "status") for n in row[kind]})
    listed = [f"Films whose decision or status differs: {', '.join(names) or 'none'}."]
    return [*to_markdown(head, lines), "", *listed]

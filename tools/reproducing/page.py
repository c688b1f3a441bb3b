"""A table as one HTML page that needs no script, no other file, no network.

Every text is escaped, and the style is named by hash in a Content-Security-Policy that allows
nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxr.page.build import page_text
from reproducing.layout import KEY, SMOKE, facts, grids, headline, probe_grid
from reproducing.pictures import Picture
from reproducing.table import Table

HERE = Path(__file__).resolve().parent


def page_html(table: Table, pictures: Sequence[Picture] = ()) -> str:
    """The whole page."""
    experiment, smoke = table.experiment, table.budget == "smoke"
    shown: dict[str, Any] = {
        "title": experiment.title,
        "study": experiment.study,
        "about": experiment.about,
        "budget": table.budget,
        "smoke": SMOKE if smoke else "",
        "headline": headline(table),
        "key": KEY,
        "grids": grids(table),
        "legend": table.legend,
        "notes": table.notes,
        "probe": probe_grid(table),
        "facts": facts(table),
        "pictures": pictures,
        "probe_reason": "this budget only shows that it runs" if smoke else table.probe_reason,
    }
    return page_text(HERE / "page.html", **shown)

"""A table as one HTML page that needs no script, no other file, no network.

Every text is escaped, and the style is named by hash in a Content-Security-Policy that allows
nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from classify.report import csp_hash, printable
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
    return _template().render(style=_style(), **shown)


@cache
def _style() -> Markup:
    shared = (files("classify") / "audit" / "page.css").read_text(encoding="utf-8")
    return Markup(shared + (HERE / "page.css").read_text(encoding="utf-8"))  # noqa: S704 - our own


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: printable(v) if type(v) is str else v,
    )
    environment.filters["csp_hash"] = csp_hash
    return environment.get_template("page.html")

"""A page as one HTML file that needs no other file and no network.

Pictures are data URIs; style and script are inline and named by hash in a Content-Security-Policy
that allows nothing else. Every text is escaped, and control characters are spelt out.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from cxr.page.words import DECISIONS, in_unit, name_of, printable
from cxr.workdir import replacing

if TYPE_CHECKING:
    from jinja2 import Template

HERE = Path(__file__).resolve().parent


def write_page(path: str | Path, template: Path, **values: Any) -> Path:
    """Put a page together piece by piece, so that what `values` generate need not be in memory at
    once, and move it into place whole."""
    with replacing(path) as file:
        for piece in page_template(template).generate(**values):
            file.write(piece.encode("utf-8"))
    return Path(path)


def page_text(template: Path, **values: Any) -> str:
    """The whole page."""
    return page_template(template).render(**values)


@cache
def page_template(path: Path) -> Template:
    """A page's template, which may use `base.html` and `parts.html` of this folder. It is given its
    style, that of all pages and then NAME.css beside it, and its script, NAME.js, where it has one.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([path.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters.update(csp_hash=csp_hash, in_unit=in_unit, name_of=name_of)
    environment.globals.update(
        decisions=DECISIONS,
        style=_asset(HERE / "page.css") + _asset(path.with_suffix(".css")),
        script=_asset(path.with_suffix(".js")),
    )
    return environment.get_template(path.name)


def _asset(path: Path) -> Markup:
    return Markup(path.read_text(encoding="utf-8") if path.exists() else "")  # noqa: S704 - our own


def csp_hash(text: str) -> str:
    """The source expression by which a Content-Security-Policy allows one inline block."""
    return f"sha256-{base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()}"


def to_json(values: Any) -> Markup:
    """JSON that may stand inside <script>: plain ASCII, in which no tag or comment can begin."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))  # ASCII: no U+2028 either
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704 - that is what this function is for

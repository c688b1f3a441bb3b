"""report.html: one page for a run, with every film's box, crop, members, decision and saliency.

Films are kept in report.jsonl, a line each, as they finish, and their pictures as files beside it;
the page is put together from these piece by piece, so memory holds one film at a time. Up to INLINE
films it needs no other file and no network. Of more films it lists all; their cards follow on pages
of their own in report/, and pictures stay where they are.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from classify.inputs import Item, split_note
from classify.predictions import ANSWERS
from classify.screening.reading import TIERS
from cxr.draw import to_data_uri
from cxr.ledger import FilmRecords
from cxr.page.build import write_page
from cxr.stats import softmax

HERE = Path(__file__).resolve().parent
PICTURES, PAGES = "pictures", "report"  # folders beside report.jsonl
INLINE, ON_A_PAGE = 500, 200  # films whose pictures one page holds; cards a page of many films
_KINDS = ("picture", "crop", "saliency")
_DECISIONS = ("read", "not_read_by_model", "definitely_normal")


class ReportBook(FilmRecords):
    """report.jsonl: a line a film; memory holds how urgent each is.

    A picture's `uri` there is a file, relative to the run's folder; in those of older runs it is
    the picture itself as a data URI.
    """

    def __init__(self, path: str | Path, targets: Sequence[str]) -> None:
        super().__init__(path, _urgency)
        self.targets = tuple(targets)

    def add(self, item: Item) -> None:  # type: ignore[override]
        """Write one film's card; a film that stands there already is replaced by the new one."""
        asked = np.zeros(0, bool) if item.logits is None else ~np.isnan(item.logits).all(axis=1)
        bars = [] if item.logits is None else softmax(item.logits[asked]).tolist()
        targets = [t for t, own in zip(self.targets, asked, strict=bool(asked.size)) if own]
        names = [a.replace("target", "found") for a in ANSWERS]
        told = ("film", "status", "reason", "decision", "tier", "abnormal_score", "doubt")
        super().add(
            {
                **{name: getattr(item, name) for name in told},
                "members": [
                    {"target": target, **dict(zip(names, shares, strict=True))}
                    for target, shares in zip(targets, bars, strict=True)
                ],
                "facts": item.facts,
                **{kind: self._filed(item, kind) for kind in _KINDS},
                "saliency_of": item.saliency_of,
                "ensemble": item.ensemble,
                "far": item.far,
            }
        )

    def _filed(self, item: Item, kind: str) -> dict[str, Any] | None:
        """A picture of a film with its place on disk; one that is only in memory is written."""
        picture = item.pictures.get(kind)
        if picture is None:
            return None
        path, folder = Path(picture.uri), self.path.parent
        if picture.uri.startswith("data:"):
            head, _, text = picture.uri.partition(",")
            key = hashlib.sha256(item.film.encode(errors="surrogatepass")).hexdigest()[:16]
            path = folder / PICTURES / f"{key}_{kind}.{'png' if 'png' in head else 'jpg'}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(base64.b64decode(text))
        return {**asdict(picture), "uri": os.path.relpath(path, folder)}

    @property
    def counts(self) -> Counter[str]:
        """How many films have each decision."""
        return Counter(_DECISIONS[urgency[0]] for urgency in self.kept())

    def cards(
        self, pictures: bool = True, part: slice = slice(None), seen_from: Path | None = None
    ) -> Iterator[dict[str, Any]]:
        """The films as plain values, those to be read first, each read from disk when asked for;
        `pictures` as data URIs, or as links from a page in the folder `seen_from`; None for one
        that is gone."""
        for number, card in enumerate(self.records(ranked=True, part=part), 1 + (part.start or 0)):
            for kind in _KINDS if pictures else ():
                card[kind] = self._shown(card[kind], seen_from)
            yield {"number": number, **card}

    def _shown(
        self, picture: dict[str, Any] | None, seen_from: Path | None
    ) -> dict[str, Any] | None:
        if picture is None or picture["uri"].startswith("data:"):
            return picture
        path = self.path.parent / picture["uri"]
        if not path.is_file():
            return None
        if seen_from is not None:
            return {**picture, "uri": quote(os.path.relpath(path, seen_from))}
        return {**picture, "uri": to_data_uri(split_note(path.read_bytes())[0])}


def write_report(
    path: str | Path,
    summary: Mapping[str, Any],
    book: ReportBook,
    inline: int = INLINE,
    on_a_page: int = ON_A_PAGE,
) -> Path:
    """Put the page together from the book, one film at a time, and move it into place whole; with
    more than `inline` films the pages that it leads to first."""
    path, films = Path(path), len(book)
    shutil.rmtree(path.parent / PAGES, ignore_errors=True)
    step = on_a_page if films > inline else max(1, films)
    starts = range(0, max(1, films), step)
    counts = {d: book.counts[d] for d in _DECISIONS}
    for page in reversed(range(len(starts))):
        place = path if page == 0 else path.parent / PAGES / f"{page + 1}.html"
        root = "" if page == 0 else "../"
        # each page with its first and last film
        links = [
            (
                f"{root}{PAGES}/{k + 1}.html" if k else f"{root}{path.name}",
                s + 1,
                min(films, s + step),
            )
            for k, s in enumerate(starts)
        ]
        own = slice(starts[page], starts[page] + step)
        cards = partial(book.cards, part=own, seen_from=place.parent if films > inline else None)
        known = {"summary": summary, "films": films, "counts": counts, "step": step}
        write_page(
            place,
            HERE / "report.html",
            **known,
            rows=partial(book.cards, False),
            cards=cards,
            page=page,
            pages=links,
            linked=films > inline,
        )
    return path


def _urgency(card: Mapping[str, Any]) -> tuple[Any, ...]:
    """Films to be read come first, then refused ones; pressing tiers and high scores before."""
    tier = TIERS.index(card["tier"]) if card["tier"] in TIERS else len(TIERS)
    score = card["abnormal_score"]
    return _DECISIONS.index(card["decision"]), tier, -(score if score is not None else 2.0)

"""report.html: one page for a run, with every film's box, crop, members, decision and saliency.

The page needs no other file and no network: pictures are data URIs, style and script are inline
and named by hash in a Content-Security-Policy. Films are kept in report.jsonl, a line each, as
they finish; the page is put together from it piece by piece, so memory holds one film at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from classify.screening.tiers import TIERS
from cxr.ledger import FilmRecords
from cxr.page.build import write_page
from cxr.page.pictures import Picture

HERE = Path(__file__).resolve().parent
_DECISIONS = ("read", "not_read_by_model", "definitely_normal")


@dataclass(frozen=True)
class MemberBar:
    """One member's softmax probabilities for a film."""

    target: str
    normal: float
    found: float
    others: float


@dataclass(frozen=True)
class FilmCard:
    """What the page says of one film; pictures are None where there is nothing to show."""

    film: str
    status: str
    reason: str
    decision: str
    tier: str = ""
    abnormal_score: float | None = None
    members: tuple[MemberBar, ...] = ()
    facts: tuple[str, ...] = ()
    picture: Picture | None = None
    crop: Picture | None = None
    saliency: Picture | None = None
    saliency_of: str = ""


@dataclass(frozen=True)
class ReportSummary:
    """What the page says of the whole run."""

    title: str
    made: str
    guarantee: str
    proven: bool
    threshold_id: str
    cropped: bool
    targets: tuple[str, ...]
    cautions: tuple[str, ...] = ()
    passed_over: tuple[tuple[str, int], ...] = ()
    complete: bool = True


class ReportBook(FilmRecords):
    """report.jsonl: a line a film; memory holds how urgent each is."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, _urgency)

    def add(self, card: FilmCard) -> None:  # type: ignore[override]
        """Write one film's card; a film that stands there already is replaced by the new one."""
        super().add(asdict(card))

    @property
    def counts(self) -> Counter[str]:
        """How many films have each decision."""
        return Counter(_DECISIONS[urgency[0]] for urgency in self.kept())

    def cards(self) -> Iterator[dict[str, Any]]:
        """The films as plain values, those to be read first, each read from disk when asked for."""
        for number, card in enumerate(self.records(ranked=True), 1):
            yield {"number": number, **card}


def write_report(path: str | Path, summary: ReportSummary, book: ReportBook) -> Path:
    """Put the page together from the book, one film at a time, and move it into place whole."""
    counts = book.counts
    shown = {
        "summary": summary,
        "cards": book.cards,
        "films": len(book),
        "counts": {d: counts[d] for d in _DECISIONS},
    }
    return write_page(path, HERE / "report.html", **shown)


def _urgency(card: Mapping[str, Any]) -> tuple[Any, ...]:
    """Films to be read come first, then refused ones; pressing tiers and high scores before."""
    tier = TIERS.index(card["tier"]) if card["tier"] in TIERS else len(TIERS)
    score = card["abnormal_score"]
    return _DECISIONS.index(card["decision"]), tier, -(score if score is not None else 2.0)

"""Films with lung masks, and which of them train and which validate the lung field's network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cxr.cli import Several
from cxr.data_folders import Data, DataFolders
from cxr.films_table import FilmRow
from cxr.split import Split
from cxr.training.recipe import free
from detect.data import require_both, share_films

VIEWS = ("film", "crop")
CROP_MARGIN = 0.05  # detect.crop's own


@dataclass(frozen=True)
class FieldDataConfig:
    """Films and masks.

    Args:
        data: folder with films.csv, which names each film's mask; several: the flag again for each.
        split: a split saved by `python -m cxr.split`; empty: made anew by patient (0.8 / 0.2).
        sources: keep these sources only; empty keeps all.
        publishable_only: leave out films whose licence forbids publishing a model.
        max_films: keep at most so many films of each part, for a quick look; 0 keeps all.
    """

    data: Several = free("../shared/data")
    split: str = ""
    sources: list[str] = field(default_factory=list)
    publishable_only: bool = True
    max_films: int = 0


def masked_rows(
    data: Data, sources: Sequence[str] = (), publishable_only: bool = False
) -> list[FilmRow]:
    """Rows of films.csv that have a mask; raises ValueError when there is none."""
    data = DataFolders(data)
    rows = [r for r in data.rows() if r.mask]
    rows = [r for r in rows if not sources or r.source in sources]
    if not rows:
        raise ValueError(
            f"{data.named('films.csv')} must name at least one mask (of the sources asked for). "
            "Got none."
        )
    return [r for r in rows if r.publishable or not publishable_only]


def select_rows(
    config: FieldDataConfig, seed: int
) -> tuple[list[FilmRow], list[FilmRow], Split | None]:
    """Rows to train and to validate on, and the split where it was made anew; raises ValueError or
    OSError for what does not fit."""
    rows = masked_rows(config.data, config.sources, config.publishable_only)
    shares = {"train": 0.8, "val": 0.2}
    parts, made = share_films(rows, config.split, shares, config.max_films, seed)
    require_both(parts)
    return parts["train"], parts["val"], made

"""Loaders of public chest film sets in their published folder layout, as rows of a films.csv."""

from cxr.public_sets.records import (
    COLUMNS,
    FindingBox,
    LayoutError,
    LoadedSet,
    Loader,
    Problem,
    PublicFilm,
    Uncertain,
)
from cxr.public_sets.registry import SETS, detect_set, load_set
from cxr.public_sets.tables import write_films_table, write_finding_boxes, write_problems

__all__ = [
    "COLUMNS",
    "SETS",
    "FindingBox",
    "LayoutError",
    "LoadedSet",
    "Loader",
    "Problem",
    "PublicFilm",
    "Uncertain",
    "detect_set",
    "load_set",
    "write_films_table",
    "write_finding_boxes",
    "write_problems",
]

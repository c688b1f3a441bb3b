"""A public set in its published folders as the tables that this project reads."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from cxr.public_sets import (
    SETS,
    LoadedSet,
    Uncertain,
    load_set,
    write_films_table,
    write_finding_boxes,
    write_problems,
)
from cxr.workdir import log, provenance, write_json

SCHEMA = "lungfirst.public_set"
RECORD = "set.json"


def convert(
    source: str, path: str | Path, out: str | Path, uncertain: Uncertain = "ignore"
) -> Path:
    """Read the public set `source` in `path`; write films.csv and what goes with it into `out`.

    `out` gets films.csv, finding_boxes.csv, problems.csv and set.json, which says where the films
    lie: `image` is relative to `path`, and no film is copied.

    Returns:
        the folder `out`.

    Raises:
        ValueError: when the folder is not the set's, or no film of it can be read.
    """
    path, out = Path(path), Path(out)
    loaded = load_set(source, path, uncertain)
    if not loaded.rows:
        first = f" The first: {loaded.problems[0].text}" if loaded.problems else ""
        raise ValueError(f"'{path}' holds no film of {source} that can be read; "
                         f"{len(loaded.problems)} problems.{first}")  # fmt: skip
    write_finding_boxes(out / "finding_boxes.csv", loaded.finding_boxes)
    write_problems(out / "problems.csv", loaded.problems)
    write_json(out / RECORD, _record(loaded, path, uncertain))
    write_films_table(out / "films.csv", loaded.rows)  # the last: where it is, the others are too
    for line in describe_set(out):
        log.info("%s", line)
    return out


def _record(loaded: LoadedSet, path: Path, uncertain: Uncertain) -> dict[str, object]:
    loader = SETS[loaded.source]
    return {
        "schema": SCHEMA,
        "version": 1,
        "source": loaded.source,
        "title": loader.title,
        "films_in": str(path.resolve()),
        "licence": loader.licence,
        "citation": loader.citation,
        "uncertain": uncertain,
        "films": len(loaded.rows),
        "patients": len({row.patient_id for row in loaded.rows}),
        "labels": dict(sorted(Counter(row.label for row in loaded.rows).items())),
        "problems": dict(sorted(Counter(p.kind for p in loaded.problems).items())),
        "left_out": loaded.left_out,
        **provenance(),
    }


def films_folder(folder: str | Path) -> Path:
    """The folder that `image` of its films.csv is relative to: itself, or as set.json says.

    Raises:
        ValueError: when set.json is not one of `convert`.
    """
    record = Path(folder) / RECORD
    if not record.exists():
        return Path(folder)
    data = json.loads(record.read_text(encoding="utf-8"))
    if data.get("schema") != SCHEMA or data.get("version") != 1:
        raise ValueError(f"{record} must have the schema {SCHEMA}, version 1. "
                         f"Got {data.get('schema')}, {data.get('version')}.")  # fmt: skip
    return Path(data["films_in"])


def describe_set(folder: str | Path) -> list[str]:
    """What `convert` found, in lines for people."""
    data = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
    return [
        f"{data['title']}: {data['films']} films of {data['patients']} patients "
        f"({_counts(data['labels'])})",
        f"Left out: {_counts(data['left_out']) or 'nothing'}",
        f"Problems: {_counts(data['problems']) or 'none'} (problems.csv)",
        f"Licence: {data['licence']}",
        f"Cite: {data['citation']}",
        f"Films stay in {data['films_in']}",
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())

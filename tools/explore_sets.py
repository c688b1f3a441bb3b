"""A public set in its published folders as the tables that this project reads."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
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

    `out` gets films.csv, finding_boxes.csv, problems.csv and set.json, and is a folder for the
    `--data` of every command. No film is copied: `image` is the absolute path of a film that lies
    outside of `out`, and relative to `out` inside it.

    Returns:
        the folder `out`.

    Raises:
        ValueError: when the folder is not the set's, or no film of it can be read.
    """
    path, out = Path(path), Path(out)
    check_out(out)
    loaded = load_set(source, path, uncertain)
    if not loaded.rows:
        first = f" The first: {loaded.problems[0].text}" if loaded.problems else ""
        raise ValueError(
            f"'{path}' holds no film of {source} that can be read; "
            f"{len(loaded.problems)} problems.{first}"
        )
    place = partial(_place, path.resolve(), out.resolve())
    boxes = [replace(box, image=place(box.image)) for box in loaded.finding_boxes]
    rows = [replace(row, image=place(row.image)) for row in loaded.rows]
    write_finding_boxes(out / "finding_boxes.csv", boxes)
    write_problems(out / "problems.csv", loaded.problems)
    write_json(out / RECORD, _record(loaded, path, uncertain))
    write_films_table(out / "films.csv", rows)  # the last: where it is, the others are too
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
        "publishable": sum(row.publishable for row in loaded.rows),
        "patients": len({row.patient_id for row in loaded.rows}),
        "labels": dict(sorted(Counter(row.label for row in loaded.rows).items())),
        "problems": dict(sorted(Counter(p.kind for p in loaded.problems).items())),
        "left_out": loaded.left_out,
        **provenance(),
    }


def check_out(out: Path) -> None:
    """Raise ValueError where `out` holds a films.csv that no conversion wrote: it may be dear."""
    if (out / "films.csv").exists() and not _is_record(out / RECORD):
        raise ValueError(
            f"--out must be a new folder, or one of an earlier --source. {out} holds "
            "a films.csv of other origin, which would be lost."
        )


def _is_record(path: Path) -> bool:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("schema") == SCHEMA


def _place(top: Path, out: Path, image: str) -> str:
    """The path of a film of the set in `top`, as films.csv in `out` names it."""
    film = top / image  # not resolved: a link's target may have lost the published name
    return (film.relative_to(out) if film.is_relative_to(out) else film).as_posix()


def describe_set(folder: str | Path) -> list[str]:
    """What `convert` found, in lines for people."""
    data = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
    return [
        f"{data['title']}: {data['films']} films of {data['patients']} patients "
        f"({_counts(data['labels'])})",
        f"Left out: {_counts(data['left_out']) or 'nothing'}",
        f"Problems: {_counts(data['problems']) or 'none'} (problems.csv)",
        f"Licence: {data['licence']}",
        _may_be_published(data["publishable"], data["films"]),
        f"Cite: {data['citation']}",
        f"Films stay in {data['films_in']}",
    ]


def _may_be_published(films: int, of: int) -> str:
    if not films:
        return "No film's licence allows to publish a model trained on it: publishable_only=false"
    return f"Publishable: by their licence {films} of {of} films may train a published model"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())

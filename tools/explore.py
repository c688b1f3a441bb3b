"""Pictures of a data set, and whether its labels need a lung at all.

    python tools/explore.py DATA                        # a folder with films.csv
    python tools/explore.py --source kermany PATH       # a public set in its published folders

Writes OUT/report.html, one page that needs nothing else, and OUT/explore.json with every figure of
it. With --source first OUT/films.csv: OUT is then a folder for the --data of every command.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from rich.progress import track
from rich.table import Table

from cxr.cli import parse_config, to_plain
from cxr.data_folders import DataFolders
from cxr.notes import count_notes
from cxr.page import printable
from cxr.public_sets.records import COLUMNS, Uncertain, write_rows
from cxr.public_sets.registry import SETS, load_set
from cxr.rules import require, require_at_least, require_one_of
from cxr.workdir import Workdir, console, log, provenance, read_json, write_atomic, write_json
from exploring import (
    FEATURES,
    Box,
    Entry,
    Gathered,
    coco_boxes,
    count_groups,
    crop_boxes,
    gather,
    read_entries,
    unknown_labels,
)
from exploring.page import class_sizes, fit_slope, page_html
from exploring.probe import Answer, Verdict, answer, auc_text, questions, verdicts

PROG = "python tools/explore.py"
UNCERTAIN_SETS = ("chexpert", "mimic")
SCHEMA, RECORD = "lungfirst.public_set", "set.json"


@dataclass(frozen=True)
class ExploreConfig:
    """Look at a data set: counts, sizes, films, means, variances, and the shortcut probe.

    Args:
        data: folder with films.csv and the films it lists, or several of them; with `source` the
            public set's folder.
        source: a public set in its published layout (kermany, nih …): writes its films.csv to
            `out` first.
        uncertain: what an uncertain label of chexpert and mimic is taken for: ignore (a film with
            uncertain pneumonia is unknown), positive or negative.
        crops: folder of detect.crop over the same films, whose boxes are used; by default the boxes
            are those of DATA/thorax.json where it exists.
        out: folder for report.html and explore.json (with `source` for films.csv).
        seed: of the films that are shown, the folds and the bootstrap.
        draws: bootstrap draws of patients for the intervals.
        smallest: films that each side of a question of the probe must have.
        labels: labels of the table beside the usual ones; films of other labels, and of none, are
            counted and shown, and the probe is not asked about them.
        jobs: processes that read films; by default as many as are worth starting.
    """

    data: tuple[str, ...] = ()
    source: str = ""
    uncertain: Uncertain = "ignore"
    crops: str = ""
    out: str = "runs/explore"
    seed: int = 0
    draws: int = 1000
    smallest: int = 30
    labels: tuple[str, ...] = ()
    jobs: int | None = None

    def __post_init__(self) -> None:
        if not self.data or (self.source and len(self.data) > 1):
            some = "one folder with --source" if self.data else "a folder"
            raise ValueError(f"DATA must be {some}. Got {len(self.data)} instead: {PROG} FOLDER")
        if self.source:
            require_one_of(self, source=SETS)
        if self.uncertain != "ignore" and self.source not in UNCERTAIN_SETS:
            raise ValueError(
                f"uncertain is for --source {' and '.join(UNCERTAIN_SETS)} only, "
                f"whose labels can be. Got source '{self.source}'."
            )
        require_at_least(self, smallest=10, draws=1, seed=0)
        require(self.jobs is None or self.jobs >= 0, "jobs must be 0 or more", self.jobs)


def main(argv: Sequence[str] | None = None) -> int:
    """Look, and write the page; 0 when it was written, 1 when the data cannot be used."""
    config = parse_config(ExploreConfig, argv, f"{PROG} ../shared/data", ("data",))
    try:
        return explore(config)
    except (ValueError, OSError) as error:
        log.error("%s", printable(str(error)))
        return 1


def explore(config: ExploreConfig) -> int:
    """Table, one pass over the films, probe, page. Raises ValueError or OSError for bad input."""
    data = DataFolders(list(config.data))
    if config.source:
        data = DataFolders(convert(config.source, config.data[0], config.out, config.uncertain))
    entries = read_entries(data, config.smallest, config.labels)
    boxes, origin = find_boxes(config, data, entries)
    workdir = Workdir(config.out)
    record = workdir.start(to_plain(config))
    gathered = gather(entries, data, boxes, config.seed, config.jobs)
    if not gathered.seen.any():
        whose = f"none of the {len(entries)} films of {data.named('films.csv')}"
        raise ValueError(f"{whose} can be read; the first: {gathered.unread[0][2]}")
    asked = questions(entries, gathered.seen, config.smallest)
    how = config.draws, config.seed, config.smallest
    answers = [
        answer(question, gathered, what, *how)
        for question in track(asked, "asking the probe", console=console, transient=True)
        for what in FEATURES
    ]
    found = verdicts(answers)
    told = {name: getattr(config, name) for name in ("seed", "draws", "smallest")}
    told |= {name: record[name] for name in ("made", "command")}
    told["boxes"] = origin
    told["title"] = config.source or ", ".join(folder.resolve().name for folder in data)
    write_json(workdir / "explore.json", to_json(gathered, answers, found, record))
    page = write_atomic(workdir / "report.html", page_html(gathered, answers, found, **told))
    tell(answers, found, gathered)
    console.print(f"Open {page} in a browser.", highlight=False)
    return 0


def find_boxes(
    config: ExploreConfig, data: DataFolders, entries: Sequence[Entry]
) -> tuple[dict[str, Box], str]:
    """Image → box, and where the boxes come from: one origin only, since boxes of two hands could
    tell two sides apart by their hands."""
    images = [e.row.image for e in entries]
    if config.crops:
        return crop_boxes(config.crops, images), f"from {config.crops}"
    if drawn := data.files("thorax.json"):
        return coco_boxes(drawn, images), "from thorax.json"
    log.warning("no thorax.json and no --crops: the probe cannot black out the thorax")
    return {}, "no thorax.json beside the table, and no --crops"


def to_json(
    gathered: Gathered, answers: Sequence[Answer], found: Sequence[Verdict], record: dict[str, Any]
) -> dict[str, Any]:
    """explore.json: every figure of the page."""
    return {
        "schema": "lungfirst.explore",
        "version": 1,
        **record,
        "films": len(gathered.entries),
        "read": int(gathered.seen.sum()),
        "unread": [{"film": i, "reason": r, "sentence": s} for i, r, s in gathered.unread],
        "without_box": dict(gathered.box_faults),
        "notes": count_notes(gathered.noted),
        "unknown_labels": unknown_labels(gathered.entries),
        "groups": count_groups(gathered.entries),
        "sizes": {
            name: fit_slope(sizes)._asdict()
            for classes in class_sizes(gathered).values()
            for name, sizes in classes.items()
        },
        "probe": [a.to_dict() for a in answers],
        "verdicts": [v._asdict() for v in found],
        "shown": {
            c.name: [gathered.entries[i].row.image for i, _ in films]
            for c, films in gathered.grids.items()
        },
    }


def tell(answers: Sequence[Answer], found: Sequence[Verdict], gathered: Gathered) -> None:
    """The probe's figures about labels and the warnings, to the terminal."""
    table = Table("question", "what looks", "AUC [95 %]", "films", "patients", highlight=False)
    for a in answers:
        if a.about == "labels":
            why = a.why_not or auc_text(a.auc)
            table.add_row(printable(a.question), a.what, why, str(sum(a.sides)), str(a.patients))
    console.print(table, markup=False)
    if gathered.unread:
        log.warning("%d films could not be read", len(gathered.unread))
    for verdict in found:
        if verdict.about == "labels" and verdict.level == "warning":
            log.warning("%s: %s", printable(verdict.question), verdict.text)


def convert(
    source: str, path: str | Path, out: str | Path, uncertain: Uncertain = "ignore"
) -> Path:
    """Read the public set `source` in `path`; write films.csv and what goes with it into `out`.

    `out` gets films.csv, finding_boxes.csv, problems.csv and set.json, and is a folder for the
    `--data` of every command. No film is copied: `image` is the absolute path of a film that lies
    outside of `out`, and relative to `out` inside it. Returns `out`; raises ValueError when the
    folder is not the set's, or no film of it can be read.
    """
    path, out = Path(path), Path(out)
    check_out(out)
    loaded = load_set(source, path, uncertain)
    if not loaded.rows:
        first = f" The first: {loaded.problems[0].text}" if loaded.problems else ""
        said = f"'{path}' holds no film of {source} that can be read"
        raise ValueError(f"{said}; {len(loaded.problems)} problems.{first}")
    loader, top = SETS[source], path.resolve()

    def place(image: str) -> str:
        film = top / image  # not resolved: a link's target may have lost the published name
        here = out.resolve()
        return (film.relative_to(here) if film.is_relative_to(here) else film).as_posix()

    boxes = [replace(box, image=place(box.image)) for box in loaded.finding_boxes]
    rows = [replace(row, image=place(row.image)) for row in loaded.rows]
    record = {
        "schema": SCHEMA,
        "version": 1,
        "source": source,
        "title": loader.title,
        "films_in": str(top),
        "licence": loader.licence,
        "citation": loader.citation,
        "uncertain": uncertain,
        "films": len(rows),
        "publishable": sum(row.publishable for row in rows),
        "patients": len({row.patient_id for row in rows}),
        "labels": dict(sorted(Counter(row.label for row in rows).items())),
        "problems": dict(sorted(Counter(p.kind for p in loaded.problems).items())),
        "left_out": loaded.left_out,
        **provenance(),
    }
    write_rows(out / "finding_boxes.csv", ("image", "finding", "x", "y", "w", "h"), boxes)
    write_rows(out / "problems.csv", ("kind", "where", "text"), loaded.problems)
    write_json(out / RECORD, record)
    write_rows(out / "films.csv", COLUMNS, rows)  # the last: where it is, the others are too
    for line in describe_set(out):
        log.info("%s", line)
    return out


def check_out(out: Path) -> None:
    """Raise ValueError where `out` holds a films.csv that no conversion wrote: it may be dear."""
    with suppress(OSError, ValueError, AttributeError):
        if read_json(out / RECORD).get("schema") == SCHEMA:
            return
    if (out / "films.csv").exists():
        lost = f"{out} holds a films.csv of other origin, which would be lost"
        raise ValueError(f"--out must be a new folder, or one of an earlier --source. {lost}.")


def describe_set(folder: str | Path) -> list[str]:
    """What `convert` found, in lines for people."""
    data = read_json(Path(folder) / RECORD)
    films, free = data["films"], data["publishable"]
    published = (
        f"Publishable: by their licence {free} of {films} films may train a published model"
        if free
        else "No film's licence allows to publish a model trained on it: publishable_only=false"
    )
    return [
        f"{data['title']}: {films} films of {data['patients']} patients "
        f"({_counts(data['labels'])})",
        f"Left out: {_counts(data['left_out']) or 'nothing'}",
        f"Problems: {_counts(data['problems']) or 'none'} (problems.csv)",
        f"Licence: {data['licence']}",
        published,
        f"Cite: {data['citation']}",
        f"Films stay in {data['films_in']}",
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())


if __name__ == "__main__":
    sys.exit(main())

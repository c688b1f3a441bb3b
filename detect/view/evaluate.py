"""How well views are told apart, on pictures of patients that taught nothing.

    python -m detect.view evaluate --folds runs/view/folds.json --out runs/view_evaluate

Frontal films of part test and of sources that never train, turned and mirrored copies, and the
other pictures: those that train are answered by heads that never saw their patient (--folds), or
left out. Each is judged by the view alone, and together with the detector and the lung field.
Writes metrics.json, pictures.csv, table.md and mistakes.png.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr.cli import Several, to_plain
from cxr.draw import fit, to_rgb, write_sheet
from cxr.film import FilmError, read_film
from cxr.films_table import FilmRow
from cxr.rules import refusing
from cxr.split import Split
from cxr.stats import in_words, share_figure
from cxr.workdir import Workdir, console, counting, log, read_json, write_atomic, write_json
from detect.finder import ThoraxFinder
from detect.lungfield.field import LungField
from detect.metrics import print_table, to_csv, to_markdown
from detect.predict import ThoraxBox, ThoraxDetector
from detect.view import View, ViewNet
from detect.view.pictures import read_films, read_negatives

OUTCOMES = ("refused", "turned", "fallback", "ok")
_TILE = 200


@dataclass(frozen=True)
class ViewEvaluateConfig:
    """Measure what is refused, turned, boxed as a whole or taken, kind by kind.

    Args:
        weights: the view's bundle; empty takes the one that comes with lungfirst.
        field: the lung field's bundle; empty takes the one that comes with lungfirst.
        folds: folds.json of the training's folder; empty leaves out pictures that train.
        data: folder with films.csv, or several of them (the flag again for each).
        negatives: table of pictures that are no upright frontal film.
        part: part of the split to measure, beside the films of sources that never train.
        max_films: measure at most so many films; 0 takes all.
        out: folder for the results.
        device: auto, cpu, or cuda.
        seed: of the bootstrap.
    """

    weights: str = ""
    field: str = ""
    folds: str = ""
    data: Several = "../shared/data"
    negatives: str = "../shared/more/negatives.csv"
    part: str = "test"
    max_films: int = 0
    out: str = "runs/view_evaluate"
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """A picture to be judged: `kind` is its line in the table; a copy is mirrored, then turned by
    quarters clockwise; `upright` is the degrees that set it upright."""

    row: FilmRow
    kind: str
    quarters: int = 0
    mirror: bool = False
    upright: int = 0


def choose(config: ViewEvaluateConfig, trained: dict[str, Any], folds: Any) -> Iterator[Asked]:
    """What is measured; `trained` is what the bundle says of its training."""
    part_of, also = Split.load(trained["split"]).part_of, trained["also"]
    films = [(r, r.publishable or r.source in also) for r in read_films(config.data)]
    used = {r.patient_id for r, ours in films if ours} - {
        p for p, part in part_of.items() if part == config.part
    }
    for number, (row, ours) in enumerate([f for f in films if f[0].patient_id not in used]):
        if number == config.max_films > 0:
            break
        yield Asked(row, f"frontal, {row.source}" + ("" if ours else ", never trains"))
        if number % 4 == 0:
            turns = 1 + number // 4 % 3
            yield Asked(row, f"frontal turned by {90 * turns}°", turns, upright=90 * turns)
        if number % 4 == 2:
            yield Asked(row, "frontal mirrored", mirror=True)
    for row in read_negatives(config.negatives):
        trains = row.publishable or row.source in also
        trains &= part_of.get(row.patient_id, "train") == "train"
        if not trains or row.image in folds:
            kind = "whole spine" if "whole-spine" in row.sublabel else row.label
            upright = 270 if row.label == "rotated90" else 0
            yield Asked(row, kind + ", folds" * trains, upright=upright)


@dataclass(frozen=True)
class Judged:
    """What was found: outcomes (of OUTCOMES) by the view alone and together with the detector."""

    image: str
    kind: str
    patient_id: str
    view: View
    alone: str
    together: str
    upright: bool  # set upright by what was found


def outcome(view: View) -> str:
    """What the view alone would make of a picture."""
    return {"frontal": "ok", "turned": "turned", "many": "fallback"}.get(view.kind, "refused")


def outcome_of(box: ThoraxBox) -> str:
    """What became of a picture; a film that was turned upright and boxed is `turned`."""
    if box.status == "no_thorax":
        return "refused"
    return "turned" if box.turned and box.status == "ok" else box.status


def evaluate(config: ViewEvaluateConfig) -> int:
    """The command; 0 when it measured, 1 when no picture could be read."""
    with refusing():
        field = LungField.load(config.field or None, config.device)
        net = ViewNet.load(field, config.weights or None)
        finder = ThoraxFinder(ThoraxDetector.load(device=config.device), field, net)
        folds = read_json(config.folds) if config.folds else {}
        asked = list(choose(config, net.meta["trained_on"], folds))
    workdir = Workdir(config.out)
    workdir.start(to_plain(config), config.seed, finder.weights)
    judged, wrong = list[Judged](), list[tuple[np.ndarray, str]]()
    for one in counting(asked, "judging", len(asked)):
        try:
            film = read_film(one.row.image).pixels[:, :: -1 if one.mirror else 1]
        except FilmError as error:
            log.warning("%s left out: %s", one.row.image, error.sentence)
            continue
        film = np.ascontiguousarray(np.rot90(film, -one.quarters))
        seen, own = finder.look([film])[0], folds.get(one.row.image)
        view = net.decide(np.array(own[:-1]), own[-1]) if own else seen.view
        assert view is not None
        box = finder.conclude([seen._replace(view=view)], [film])[0]
        alone, both = outcome(view), outcome_of(box)
        names = one.row.image, one.kind, one.row.patient_id
        judged.append(Judged(*names, view, alone, both, view.turned == one.upright))
        if (alone == "ok") != one.kind.startswith("frontal") and not one.quarters:
            caption = (
                f"{one.kind}\n{view.kind} {view.score:.2f}, then {both}\n{Path(names[0]).name}"
            )
            wrong.append((fit(to_rgb(film), _TILE), caption))
    if not judged:
        log.error("no picture could be read")
        return 1
    head, rows = tabulate(judged, config.seed)
    write_json(workdir / "metrics.json", [dict(zip(head, row, strict=True)) for row in rows])
    plain = [{**asdict(j.view), **asdict(j), "view": j.view.kind} for j in judged]
    write_atomic(workdir / "pictures.csv", to_csv([[*plain[0]], *([*p.values()] for p in plain)]))
    write_atomic(workdir / "table.md", "\n".join(to_markdown(head, rows)) + "\n")
    title = f"{len(wrong)} of {len(judged)} wrong by the view alone"
    pictures, captions = [w[0] for w in wrong], [w[1] for w in wrong]
    write_sheet(workdir / "mistakes.png", pictures, captions, _TILE, title)
    print_table(head, rows, 1, title="views")
    console.print(f"table.md, pictures.csv, mistakes.png: {workdir.path}", highlight=False)
    return 0


def tabulate(judged: Sequence[Judged], seed: int) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a line a kind with its outcomes, by the view alone and together, and the share
    that is not ok with its interval by patient."""
    head = ["pictures", "n", "patients", "set upright", "mirrored"]
    for what in ("view", "all"):
        head += [*(f"{what}: {o}" for o in OUTCOMES), f"{what}: not ok [95 %]"]
    rows = []
    for kind in sorted({j.kind for j in judged}):
        own = [j for j in judged if j.kind == kind]
        patients = [j.patient_id for j in own]
        upright = sum(j.upright for j in own if j.view.turned)
        mirrored = sum(j.view.mirrored for j in own)
        cells: list[Any] = [len(own), len(set(patients)), upright, mirrored]
        for said in ([j.alone for j in own], [j.together for j in own]):
            cells += [Counter(said)[o] for o in OUTCOMES]
            cells.append(in_words(share_figure([s != "ok" for s in said], patients, seed=seed)))
        rows.append([kind, *map(str, cells)])
    return head, rows

"""The shortcut probe of a table: what is answered without a lung, on the same films as its systems.

A multinomial logistic regression on each shortcut of tools/explore.py is fitted on the training
films of a table and answers its test films, so that every figure of the table has its counterpart
without lungs. A network is only worth as much as it adds to these.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classify.evaluate import fit_shortcut
from classify.films import Case, select_cases
from cxr.data_folders import Data, DataFolders
from cxr.ledger import Answer
from cxr.stream import Unread, batched, default_jobs, read_ahead
from cxr.workdir import log, read_json, replacing, sha256_file, write_json
from detect.predict import DEFAULT_WEIGHTS, ThoraxDetector
from exploring import FEATURES, OTHER_SHAPE, Box, coco_boxes, film_features
from reproducing.cells import Cell, ReproduceConfig, short_reason
from reproducing.experiment import Experiment
from reproducing.runners import SplitOf
from reproducing.table import ProbeRow, measure_answers

_ENDS = np.cumsum(list(FEATURES.values()))[:-1]
_BATCH = 8


class Probe(NamedTuple):
    """What each shortcut answers, a row a test film, to be measured as any system; `left_out`
    counts the films without a box or that could not be read, by reason."""

    answers: dict[str, list[Answer]]
    left_out: dict[str, int]


def ask_probe(
    experiment: Experiment, cells: Sequence[Cell], split: SplitOf | None, config: ReproduceConfig
) -> tuple[tuple[ProbeRow, ...], str]:
    """The probe's rows on the split that all cells of a table share, and why there are none or
    which films they miss. A fault here must not cost the table."""
    if not any(cell.finished for cell in cells):
        return (), "it needs a finished cell"
    if split is None:
        return (), f"runner {experiment.runner} does not tell its split"
    try:
        data = DataFolders(config.data)
        rows = [r for r in data.rows() if r.image in split.truths]
        cases, _ = select_cases(rows, data, (), False, config.crops)
        probe = probe_of(cases, split, data, Path(config.out) / "cache", DEFAULT_WEIGHTS)
        wanted = experiment.measures, config.draws, config.seed
        found = tuple(
            ProbeRow(name, measure_answers(split.classes, answers, *wanted))
            for name, answers in probe.answers.items()
        )
    except Exception as error:
        return (), short_reason(error)
    missed = ", ".join(f"{n} {why}" for why, n in probe.left_out.items())
    return found, f"films that the probe leaves out: {missed}" if missed else ""


def probe_of(
    cases: Sequence[Case], split: SplitOf, data: Data, cache: Path, detector: str | Path = ""
) -> Probe:
    """Fit each shortcut on the training films of every fold, answer its test films, pool them.

    Args:
        cases: the films. The thorax box is their crop's; where no film has a crop, the one of
            DATA/thorax.json.
        split: what each is, and what is learnt from and tested; others than `cases` do not count.
        data: folders with films.csv and the films.
        cache: folder of a file with the films' features, which every table shares: a film is read
            once as long as films.csv, its box and its file stay what they are.
        detector: bundle that boxes the films without a box; empty leaves them out.

    Raises ValueError where no film has a box, or a fold trains on one class.
    """
    left_out, data = Counter[str](), DataFolders(data)
    case_of = {case.row.image: case for case in cases}
    used = dict.fromkeys(i for fold in split.folds for part in fold for i in part if i in case_of)
    boxes = _boxes_of([case_of[image] for image in used], data)
    if detector:
        bare = [image for image in used if image not in boxes]
        boxes |= found_boxes(bare, data, cache, detector)
    if not boxes:
        raise ValueError(
            f"the probe needs thorax boxes, and no film has one. Give crops of "
            f"detect.crop, or boxes in {data.named('thorax.json')}."
        )
    found = _features(boxes, data, cache, left_out)
    left_out["no thorax box"] += sum(image not in boxes for image in used)
    why = {why: n for why, n in left_out.items() if n}
    if missing := sum(image not in found for image in used):
        words = ", ".join(f"{n} {reason}" for reason, n in why.items())
        log.warning("shortcut probe: %d of %d films are left out: %s", missing, len(used), words)
    answers = {
        name: list(_answers({i: values[n] for i, values in found.items()}, case_of, split))
        for n, name in enumerate(FEATURES)
    }
    return Probe(answers, why)


def _answers(
    features: Mapping[str, np.ndarray], case_of: Mapping[str, Case], split: SplitOf
) -> Iterator[Answer]:
    """One shortcut's answers to the test films of all folds."""
    classes = list(split.classes)
    for number, fold in enumerate(split.folds):
        learnt, asked = ([i for i in part if i in features] for part in fold)
        truth = np.array([classes.index(split.truths[i]) for i in learnt])
        if len(set(truth.tolist())) < 2:
            raise ValueError(
                f"the training films of fold {number} must have two classes at least "
                f"to fit a probe. Got {len(learnt)} films with a box, of one class or "
                "none."
            )
        if not asked:
            continue
        model = fit_shortcut(np.stack([features[i] for i in learnt]), truth)
        scores = np.zeros((len(asked), len(classes)))  # 0 for a class that was never seen
        scores[:, model.classes_] = model.predict_proba(np.stack([features[i] for i in asked]))
        for image, row in zip(asked, scores.tolist(), strict=True):
            film = case_of[image].row
            yield Answer(image, film.patient_id, film.source, split.truths[image], tuple(row))


def _boxes_of(cases: Sequence[Case], data: DataFolders) -> dict[str, Box]:
    """Image → its thorax box: of the crops where there are crops, else as people drew it."""
    if not any(case.crop_row for case in cases):
        return coco_boxes(data.files("thorax.json"), [c.row.image for c in cases])
    rows = {case.row.image: case.crop_row for case in cases}
    return {
        image: Box(row.thorax_xyxy, row.size_hw)
        for image, row in rows.items()
        if row is not None and row.thorax_xyxy is not None and row.size_hw is not None
    }


def _features(
    boxes: Mapping[str, Box], data: DataFolders, cache: Path, left_out: Counter[str]
) -> dict[str, list[np.ndarray]]:
    """Image → the shortcuts of FEATURES of a film with its box; read only where the cache, one row
    a film, has none."""
    tables = "_".join(sha256_file(table)[:16] for table in data.tables())
    path = cache / f"shortcuts_{tables}.npz"
    known: dict[str, np.ndarray] = {}
    try:
        with np.load(path) as file:
            known = dict(zip(file["films"].tolist(), file["features"], strict=True))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        pass  # there is none, another version wrote it, or it is torn
    keys = {image: f"{_mark(data / image)} {box.xyxy}" for image, box in boxes.items()}
    pending = [image for image, key in keys.items() if key not in known]
    films = read_ahead((data / image for image in pending), default_jobs(len(pending)))
    for image, (_, film) in zip(pending, films, strict=True):
        if isinstance(film, Unread):
            left_out[f"cannot be read: {film.reason}"] += 1
            continue
        place = boxes[image].on((film.pixels.shape[0], film.pixels.shape[1]))
        if place is None:
            left_out[OTHER_SHAPE] += 1
            continue
        known[keys[image]] = np.concatenate(list(film_features(film.pixels, place).values()))
    if pending and known:
        with replacing(path) as file:
            np.savez(file, films=np.array(list(known)), features=np.stack(list(known.values())))
    return {image: np.split(known[key], _ENDS) for image, key in keys.items() if key in known}


def _mark(film: Path) -> str:
    """Path, size in bytes and time of the last change: a film made anew is read anew."""
    try:
        found = film.stat()
    except OSError:
        return str(film)
    return f"{film} {found.st_size} {found.st_mtime_ns}"


def found_boxes(
    images: Sequence[str], data: DataFolders, cache: Path, weights: str | Path = DEFAULT_WEIGHTS
) -> dict[str, Box]:
    """Image → the detector's box; films that cannot be read or are refused have none.

    Each film is looked at once: CACHE/boxes_….json is kept as long as weights and films are what
    they were. Nothing is found where there are no weights.
    """
    if not images or not Path(weights).is_file():
        return {}
    path = cache / f"boxes_{sha256_file(weights)[:16]}.json"
    try:
        known: dict[str, Any] = dict(read_json(path))
    except (OSError, ValueError, TypeError):
        known = {}
    marks = {image: _mark(data / image) for image in images}
    if pending := [image for image, mark in marks.items() if mark not in known]:
        log.info("shortcut probe: boxing %d films that nobody boxed", len(pending))
        detector = ThoraxDetector.load(Path(weights))
        known |= {marks[image]: None for image in pending}
        read = read_ahead((data / image for image in pending), default_jobs(len(pending)))
        for group in batched(zip(pending, read, strict=True), _BATCH):
            good = [(i, film.pixels) for i, (_, film) in group if not isinstance(film, Unread)]
            boxes = detector.predict([pixels for _, pixels in good])
            for (image, pixels), box in zip(good, boxes, strict=True):
                if box.xyxy is not None:
                    place = {"xyxy": [float(v) for v in box.xyxy], "size_hw": [*pixels.shape]}
                    known[marks[image]] = place
        write_json(path, known)
    found = {image: known[mark] for image, mark in marks.items() if known[mark]}
    return {i: Box(tuple(box["xyxy"]), tuple(box["size_hw"])) for i, box in found.items()}

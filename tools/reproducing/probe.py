"""The shortcut probe of a table: what is answered without a lung, on the same films as its systems.

    probe = probe_of(cases, labels, ("normal", "pneumonia"), [(train, test)], data, cache)
    classes, answers = probe.answers["outside the thorax box"]

A multinomial logistic regression on each shortcut of tools/explore.py is fitted on the training
films of a table and answers its test films, so that every figure of the table has its counterpart
without lungs. A network is only worth as much as it adds to these.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classify.films import Case, select_cases
from cxr.answers import Answer
from cxr.cli import load_named
from cxr.films_table import read_films_table
from cxr.stream import Unread, batched, default_jobs, read_ahead
from cxr.workdir import log, replacing, sha256_file, write_json
from detect.predict import DEFAULT_WEIGHTS, ThoraxDetector
from exploring.entries import Box, coco_boxes
from exploring.gather import WIDTHS, film_features
from exploring.probe import FEATURES
from reproducing.cells import Cell
from reproducing.engine import short_reason
from reproducing.experiment import Experiment
from reproducing.figures import measure_answers
from reproducing.place import Place, SplitOf
from reproducing.runners import find_runner
from reproducing.table import ProbeRow

Fold = tuple[Sequence[int], Sequence[int]]  # numbers of the training and of the test films
_ENDS = np.cumsum([WIDTHS[name] for name in FEATURES]).tolist()
_SPANS = [slice(start, end) for start, end in zip([0, *_ENDS], _ENDS, strict=False)]
_STRENGTH = 0.1  # C, as in classify.shortcuts: weak evidence must not be fitted by heart


@dataclass(frozen=True)
class Probe:
    """What each shortcut answers: name → (classes, a row a test film), to be measured as any
    system. `left_out` counts the films without a box or that could not be read, by reason."""

    answers: dict[str, tuple[tuple[str, ...], list[Answer]]]
    left_out: dict[str, int]


def probe_of(
    cases: Sequence[Case],
    labels: Sequence[int],
    classes: Sequence[str],
    folds: Sequence[Fold],
    data: str | Path,
    cache: str | Path,
    detector: str | Path = "",
) -> Probe:
    """Fit each shortcut on the training films of every fold, answer its test films, pool them.

    Args:
        cases: N films. The thorax box is their crop's; where no film has a crop, the one of
            DATA/thorax.json.
        labels: N indices of `classes`.
        classes: names of the truths, as in the systems' answers.
        folds: (train, test) indices of cases; one pair for a single split.
        data: folder with films.csv and the films.
        cache: folder of a file with the films' features, which every table shares: a film is read
            once as long as films.csv, its box and its file stay what they are.
        detector: bundle that boxes the films without a box; empty leaves them out.

    Raises ValueError where no film has a box, a fold trains on one class, or tests a film again.
    """
    _check(cases, labels, classes, folds)
    data, cache, left_out = Path(data), Path(cache), Counter[str]()
    used = sorted({i for fold in folds for part in fold for i in part})
    image_of = {i: cases[i].row.image for i in used}
    boxes = _boxes_of([cases[i] for i in used], data)
    if detector:
        bare = [image for image in image_of.values() if image not in boxes]
        boxes |= found_boxes(bare, data, cache, detector)
    if not boxes:
        raise ValueError(
            f"the probe needs thorax boxes, and no film has one. Give crops of "
            f"detect.crop, or boxes in {data / 'thorax.json'}."
        )
    found = _features(boxes, data, cache, left_out)
    left_out["no thorax box"] += sum(image not in boxes for image in image_of.values())
    known = {i: found[image] for i, image in image_of.items() if image in found}
    if missing := len(used) - len(known):
        log.warning(
            "shortcut probe: %d of %d films are left out: %s",
            missing,
            len(used),
            ", ".join(f"{n} {why}" for why, n in left_out.items() if n),
        )
    answers = {}
    for name, place in zip(FEATURES, _SPANS, strict=True):
        features = {i: values[place] for i, values in known.items()}
        answers[name] = tuple(classes), _answers(features, cases, labels, classes, folds)
    return Probe(answers, {why: n for why, n in left_out.items() if n})


def _answers(
    features: Mapping[int, np.ndarray],
    cases: Sequence[Case],
    labels: Sequence[int],
    classes: Sequence[str],
    folds: Sequence[Fold],
) -> list[Answer]:
    """One shortcut's answers to the test films of all folds."""
    out = []
    for number, fold in enumerate(folds):
        learnt, asked = ([i for i in part if i in features] for part in fold)
        truth = np.array([labels[i] for i in learnt])
        if len(set(truth.tolist())) < 2:
            raise ValueError(
                f"the training films of fold {number} must have two classes at least "
                f"to fit a probe. Got {len(learnt)} films with a box, of one class or "
                "none."
            )
        if not asked:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, max_iter=2000))
        model.fit(np.stack([features[i] for i in learnt]), truth)
        scores = np.zeros((len(asked), len(classes)))  # 0 for a class that was never seen
        scores[:, model.classes_] = model.predict_proba(np.stack([features[i] for i in asked]))
        for i, row in zip(asked, scores.tolist(), strict=True):
            film = cases[i].row
            truth_name = classes[labels[i]]
            out.append(Answer(film.image, film.patient_id, film.source, truth_name, tuple(row)))
    return out


def _boxes_of(cases: Sequence[Case], data: Path) -> dict[str, Box]:
    """Image → its thorax box: of the crops where there are crops, else as people drew it."""
    if not any(case.crop_row for case in cases):
        drawn = data / "thorax.json"
        return coco_boxes(drawn, [c.row.image for c in cases]) if drawn.is_file() else {}
    out = {}
    for case in cases:
        row = case.crop_row
        if row is not None and row.thorax_xyxy is not None and row.size_hw is not None:
            out[case.row.image] = Box(row.thorax_xyxy, row.size_hw)
    return out


def _features(
    boxes: Mapping[str, Box], data: Path, cache: Path, left_out: Counter[str]
) -> dict[str, np.ndarray]:
    """Image → (F,) all shortcuts of a film with its box, one after the other; read only where the
    cache has none."""
    path = cache / f"shortcuts_{sha256_file(data / 'films.csv')[:16]}.npz"
    known = _load(path)
    keys = {image: f"{_mark(data / image)} {box.xyxy}" for image, box in boxes.items()}
    pending = [image for image, key in keys.items() if key not in known]
    films = read_ahead((data / image for image in pending), default_jobs(len(pending)))
    for image, (_, film) in zip(pending, films, strict=True):
        if isinstance(film, Unread):
            left_out[f"cannot be read: {film.reason}"] += 1
            continue
        place = boxes[image].on((film.pixels.shape[0], film.pixels.shape[1]))
        if place is None:
            left_out["the film has another shape than its box says"] += 1
            continue
        found = film_features(film.pixels, place)
        known[keys[image]] = np.concatenate([found[name] for name in FEATURES])
    if pending and known:
        with replacing(path) as file:
            np.savez(file, films=np.array(list(known)), features=np.stack(list(known.values())))
    return {image: known[key] for image, key in keys.items() if key in known}


def _mark(film: Path) -> str:
    """Path, size in bytes and time of the last change: a film made anew is read anew."""
    try:
        found = film.stat()
    except OSError:
        return str(film)
    return f"{film} {found.st_size} {found.st_mtime_ns}"


def _load(path: Path) -> dict[str, np.ndarray]:
    """Mark → features; nothing, for a file that another version wrote or that is torn."""
    try:
        with np.load(path) as file:
            return dict(zip(file["films"].tolist(), file["features"], strict=True))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return {}


def _check(
    cases: Sequence[Case], labels: Sequence[int], classes: Sequence[str], folds: Sequence[Fold]
) -> None:
    if len(cases) != len(labels):
        raise ValueError(
            f"labels must be one for each of the {len(cases)} cases. Got {len(labels)} instead."
        )
    wrong = [k for k in labels if not 0 <= k < len(classes)]
    if wrong:
        raise ValueError(f"labels must be indices of the {len(classes)} classes. Got {wrong[0]}.")
    tested = Counter(i for _, test in folds for i in test)
    twice = [i for i, n in tested.items() if n > 1]
    if not folds or twice:
        got = f"{cases[twice[0]].row.image} twice" if twice else "none"
        raise ValueError(f"folds must be one at least, and test a film at most once. Got {got}.")


_BATCH = 8


def found_boxes(
    images: Sequence[str], data: Path, cache: Path, weights: str | Path = DEFAULT_WEIGHTS
) -> dict[str, Box]:
    """Image → the detector's box; films that cannot be read or are refused have none.

    Each film is looked at once: CACHE/boxes_….json is kept as long as weights and films are what
    they were. Nothing is found where there are no weights.
    """
    if not images or not Path(weights).is_file():
        return {}
    path = cache / f"boxes_{sha256_file(weights)[:16]}.json"
    try:
        known: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    marks = {image: _mark(data / image) for image in images}
    if pending := [image for image, mark in marks.items() if mark not in known]:
        log.info("shortcut probe: boxing %d films that nobody boxed", len(pending))
        found = _detect([data / image for image in pending], Path(weights))
        known |= {marks[image]: box for image, box in zip(pending, found, strict=True)}
        write_json(path, known)
    boxes = {image: known[mark] for image, mark in marks.items() if known[mark]}
    return {i: Box(tuple(box["xyxy"]), tuple(box["size_hw"])) for i, box in boxes.items()}


def _detect(films: Sequence[Path], weights: Path) -> list[dict[str, list[float]] | None]:
    detector = ThoraxDetector.load(weights)
    out: dict[int, dict[str, list[float]]] = {}
    read = enumerate(film for _, film in read_ahead(films, default_jobs(len(films))))
    for group in batched(read, _BATCH):
        good = [(n, film.pixels) for n, film in group if not isinstance(film, Unread)]
        boxes = detector.predict([pixels for _, pixels in good])
        for (n, pixels), box in zip(good, boxes, strict=True):
            if box.xyxy is not None:
                out[n] = {"xyxy": [float(v) for v in box.xyxy], "size_hw": [*pixels.shape]}
    return [out.get(n) for n in range(len(films))]


NOT_YET = "it needs the split of a finished cell"


def split_of(cells: Sequence[Cell]) -> tuple[SplitOf | None, str]:
    """The split that all cells of a table share, or why it is not known. A fault here must not
    cost the table."""
    cell = next((c for c in cells if c.finished), None)
    if cell is None:
        return None, NOT_YET
    split = find_runner(cell.runner).split
    if split is None:
        return None, f"runner {cell.runner} does not tell its split"
    try:
        return load_named(split)(cell.settings), ""
    except Exception as error:
        return None, short_reason(error)


def probe_rows(
    experiment: Experiment, split: SplitOf | None, place: Place
) -> tuple[tuple[ProbeRow, ...], str]:
    """The probe's rows and which films they miss; or none and why."""
    if split is None:
        return (), NOT_YET
    try:
        return _rows(experiment, split, place)
    except Exception as error:
        return (), short_reason(error)


def _rows(experiment: Experiment, split: SplitOf, place: Place) -> tuple[tuple[ProbeRow, ...], str]:
    data, classes = Path(place.data), split.classes
    known = [r for r in read_films_table(data / "films.csv") if r.image in split.truths]
    crops = Path(place.crops) if place.crops else None
    cases, _ = select_cases(known, data, (), False, crops)
    number = {case.row.image: n for n, case in enumerate(cases)}
    folds: list[Fold] = [
        ([number[i] for i in train if i in number], [number[i] for i in test if i in number])
        for train, test in split.folds
    ]
    labels = [classes.index(split.truths[case.row.image]) for case in cases]
    cache = Path(place.out) / "cache"
    probe = probe_of(cases, labels, classes, folds, data, cache, DEFAULT_WEIGHTS)
    rows = tuple(
        ProbeRow(name, measure_answers(*found, experiment.measures, place.draws, place.seed))
        for name, found in probe.answers.items()
    )
    missed = ", ".join(f"{n} {why}" for why, n in probe.left_out.items())
    return rows, f"films that the probe leaves out: {missed}" if missed else ""

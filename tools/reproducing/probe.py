"""The shortcut probe of a table: what is answered without a lung, on the same films as its systems.

    probe = probe_of(cases, labels, ("normal", "pneumonia"), [(train, test)], data, cache)
    classes, answers = probe.answers["outside the thorax box"]

A multinomial logistic regression on each shortcut of tools/explore.py is fitted on the training
films of a table and answers its test films, so that every figure of the table has its counterpart
without lungs. A network is only worth as much as it adds to these.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classify.films import Case
from cxr.answers import Answer
from cxr.stream import Unread, default_jobs, read_ahead
from cxr.workdir import log, replacing, sha256_file
from exploring.entries import Box, coco_boxes
from exploring.gather import film_features
from exploring.probe import FEATURES
from reproducing.probe_boxes import found_boxes

Fold = tuple[Sequence[int], Sequence[int]]  # numbers of the training and of the test films
Features = dict[str, np.ndarray]  # shortcut → (F,) float64 of one film
Key = tuple[str, tuple[float, ...], tuple[int, ...]]  # image, its box, its file's size and time

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
    data, left_out = Path(data), Counter[str]()
    used = sorted({i for fold in folds for part in fold for i in part})
    boxes = _boxes_of([cases[i] for i in used], data)
    if detector:
        bare = [cases[i].row.image for i in used if cases[i].row.image not in boxes]
        boxes |= found_boxes(bare, data, Path(cache), detector)
    places = {i: boxes[cases[i].row.image] for i in used if cases[i].row.image in boxes}
    if not places:
        raise ValueError(
            f"the probe needs thorax boxes, and no film has one. Give crops of "
            f"detect.crop, or boxes in {data / 'thorax.json'}."
        )
    found = _features(
        {cases[i].row.image: box for i, box in places.items()}, data, Path(cache), left_out
    )
    left_out["no thorax box"] += len(used) - len(places)
    known = {i: found[cases[i].row.image] for i in places if cases[i].row.image in found}
    if missing := len(used) - len(known):
        log.warning(
            "shortcut probe: %d of %d films are left out: %s",
            missing,
            len(used),
            ", ".join(f"{n} {why}" for why, n in left_out.items() if n),
        )
    answers = {
        name: (
            tuple(classes),
            _answers({i: f[name] for i, f in known.items()}, cases, labels, classes, folds),
        )
        for name in FEATURES
    }
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
    for number, (train, test) in enumerate(folds):
        learnt, asked = [i for i in train if i in features], [i for i in test if i in features]
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
        for i, row in zip(asked, scores, strict=True):
            film = cases[i].row
            out.append(
                Answer(
                    film.image,
                    film.patient_id,
                    film.source,
                    classes[labels[i]],
                    tuple(float(s) for s in row),
                )
            )
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
) -> dict[str, Features]:
    """Image → the features of a film with its box; read only where the cache has none."""
    path = cache / f"shortcuts_{sha256_file(data / 'films.csv')[:16]}.npz"
    known = _load(path)
    keys = {image: (image, box.xyxy, _stamp(data / image)) for image, box in boxes.items()}
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
        known[keys[image]] = {name: found[name] for name in FEATURES}
    if pending:
        _save(path, known)
    return {image: known[key] for image, key in keys.items() if key in known}


def _stamp(film: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change: a film made anew is read anew."""
    try:
        found = film.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _load(path: Path) -> dict[Key, Features]:
    """What `_save` wrote; nothing, for a file that another version wrote or that is torn."""
    try:
        with np.load(path) as file:
            columns = {name: file[name] for name in FEATURES}
            rows = [file[name].tolist() for name in ("images", "boxes", "stamps")]
            keys = [(i, tuple(box), tuple(stamp)) for i, box, stamp in zip(*rows, strict=True)]
            return {
                key: {name: columns[name][n] for name in FEATURES} for n, key in enumerate(keys)
            }
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return {}


def _save(path: Path, known: dict[Key, Features]) -> None:
    if not known:
        return
    columns = {name: np.stack([f[name] for f in known.values()]) for name in FEATURES}
    columns["images"] = np.array([image for image, _, _ in known])
    columns["boxes"] = np.array([box for _, box, _ in known])
    columns["stamps"] = np.array([stamp for _, _, stamp in known])
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **columns)


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

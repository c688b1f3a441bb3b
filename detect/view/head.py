"""The view's head: its training, and how well it tells views apart on patients that taught nothing.

    python -m detect.view train --config configs/detect/view.yaml
    python -m detect.view evaluate --folds runs/view/folds.json --out runs/view_evaluate

Views of films are made once, pass the lung field's network, and what it sees of them is kept in
the run's folder, from which a stopped run goes on; the head then trains on that within a minute.

Measured are frontal films of part test and of sources that never train, turned and mirrored copies,
and the other pictures: those that train are answered by heads that never saw their patient
(--folds), or left out. Each is judged by the view alone, and together with the detector and the
lung field. Evaluate writes metrics.json, pictures.csv, table.md and mistakes.png.
"""

from __future__ import annotations

import io
import shutil
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
from cxr.rules import refusing, require
from cxr.split import Split
from cxr.stats import in_words, share_figure
from cxr.training.recipe import free, keep_to_recipe, recipe_of, require_writable
from cxr.workdir import (
    Workdir,
    console,
    counting,
    log,
    provenance,
    read_json,
    write_atomic,
    write_json,
)
from detect.finder import ThoraxFinder
from detect.lungfield.field import LungField
from detect.metrics import print_table, to_csv, to_markdown
from detect.predict import ThoraxBox, ThoraxDetector, prepare_film
from detect.train import LICENCE
from detect.view import CLASSES, View, ViewNet, shares_of
from detect.view.pictures import (
    ViewMaker,
    choose_rows,
    class_of_negative,
    read_films,
    read_grey,
    read_negatives,
)

_CHUNK, _BATCH = 256, 8  # views a file; pictures in one forward pass
Views = tuple[np.ndarray, np.ndarray]  # (N, C, G, G) features, (N, 3) what is to be learnt of them
SURE = 0.75  # no more is asked of a frontal film: above, validation films hardly differ
OUTCOMES = ("refused", "turned", "fallback", "ok")
_TILE = 200


@dataclass(frozen=True)
class ViewTrainConfig:
    """Train what tells an upright frontal chest film from all else, and write it as one bundle.

    The run's folder holds run.json, run.log, features/ (until the end), folds.json with what heads
    that never saw a picture's patient answer of the real pictures, and view.safetensors.

    Args:
        data: folder with films.csv, or several of them (the flag again for each).
        negatives: table of pictures that are no upright frontal film, with the columns image,
            kind, source, patient_id, licence, note.
        also: sources that may train what is published although the words of their licence are not
            among those that are known.
        split: a split saved by `python -m cxr.split`: train trains, val chooses thresholds.
        field: the lung field's bundle; empty takes the one that comes with lungfirst.
        out: the run's folder.
        views: training views that are made.
        epochs: over all views.
        batch: views a step.
        rate: learning rate at its height.
        folds: heads trained without a share of the real pictures' patients, to measure; 0 for none.
        lost: share of the validation films that the threshold may lose.
        seed: of everything random.
        restart: begin anew.
        half: store the bundle's weights as fp16.
    """

    data: Several = "../shared/data"
    negatives: str = "../shared/more/negatives.csv"
    also: tuple[str, ...] = ()
    split: str = "configs/split_seed0.json"
    field: str = free("")
    out: str = free("runs/view")
    views: int = 6144
    epochs: int = 10
    batch: int = 64
    rate: float = 2e-3
    folds: int = 5
    lost: float = 0.003
    seed: int = 0
    restart: bool = free(False)
    half: bool = True

    def __post_init__(self) -> None:
        require(self.views >= self.batch, "--views must be at least --batch", self.views)
        require(self.folds == 0 or self.folds > 1, "--folds must be 0, or 2 or more", self.folds)


def see(field: LungField, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """(N, C, G, G) float16: what the lung field's network sees of uint8 pictures."""
    canvases = [prepare_film(p.astype(np.float32) / 255, field.side)[0] for p in pictures]
    starts = range(0, len(canvases), _BATCH)
    seen = [field.look(canvases[start : start + _BATCH])[1] for start in starts]
    return np.concatenate(seen).astype(np.float16)


def see_views(maker: ViewMaker, field: LungField, views: int, folder: Path) -> Views:
    """The training views; those of a stopped run are in `folder`."""
    features, truth = [], []
    for start in counting(range(0, views, _CHUNK), "looking at views", -(-views // _CHUNK)):
        path = folder / f"{start:06d}.npz"
        if not path.exists():
            made = [maker.make(i) for i in range(start, min(views, start + _CHUNK))]
            pictures, told = zip(*made, strict=True)
            np.savez(data := io.BytesIO(), seen=see(field, pictures), told=np.array(told))
            write_atomic(path, data.getvalue())
        with np.load(path) as stored:
            features.append(stored["seen"])
            truth.append(stored["told"])
    return np.concatenate(features), np.concatenate(truth)


def fit_head(features: np.ndarray, told: np.ndarray, config: ViewTrainConfig, seed: int) -> Any:
    """A head trained on these views: cross-entropy of the class, and of mirrored where it is asked
    (AdamW, one cycle)."""
    import torch
    from torch.nn import functional as F

    from detect.view.net import ViewHead

    torch.manual_seed(seed)
    head = ViewHead(features.shape[1], len(CLASSES)).train()
    optimiser = torch.optim.AdamW(head.parameters(), config.rate, weight_decay=0.02)
    steps = range(0, len(features) - config.batch + 1, config.batch)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.rate, config.epochs * len(steps))
    for epoch in range(config.epochs):
        order, losses = torch.randperm(len(features)).numpy(), []
        for start in steps:
            chosen = order[start : start + config.batch]
            logits = head(torch.from_numpy(features[chosen]).float())
            kind, side, _ = torch.from_numpy(told[chosen]).T
            loss = F.cross_entropy(logits[:, :-1], kind, label_smoothing=0.02)
            if (asked := side >= 0).any():
                flag = F.binary_cross_entropy_with_logits(logits[asked, -1], side[asked].float())
                loss = loss + 0.3 * flag
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            cycle.step()
            losses.append(float(loss.detach()))
        log.info("epoch %d of %d: loss %.4f", epoch + 1, config.epochs, np.mean(losses))
    return head.eval()


def answer_folds(
    maker: ViewMaker, field: LungField, views: Views, config: ViewTrainConfig
) -> dict[str, list[float]]:
    """Real picture → (8,) probabilities of CLASSES and of mirrored, from a head that learnt of no
    view with a picture of its fold."""
    from detect.view.net import answer

    found, (features, told) = dict[str, list[float]](), views
    for fold in range(config.folds):
        own = [r for r in maker.others if maker.fold_of[r.image] == fold]
        log.info("fold %d of %d: %d pictures", fold + 1, config.folds, len(own))
        learnt = told[:, 2] != fold
        head = fit_head(features[learnt], told[learnt], config, config.seed + 1 + fold)
        shares = np.column_stack(shares_of(answer(head, see(field, [maker.read(r) for r in own]))))
        found |= {r.image: np.round(s, 5).tolist() for r, s in zip(own, shares, strict=True)}
    return found


def choose_point(frontal: np.ndarray, mirrored: np.ndarray, lost: float) -> dict[str, float]:
    """The least probability of a frontal film, at most SURE, and that of a mirrored one, at least a
    half, which lose or flag at most the share `lost` of (N,) validation films."""
    most = int(lost * len(frontal))
    low, high = np.sort(frontal)[most], np.sort(mirrored)[-1 - most]
    return {
        "frontal": round(min(SURE, float(low) - 1e-4), 4),
        "mirrored": round(max(0.5, float(high) + 1e-4), 4),
    }


def train(config: ViewTrainConfig) -> int:
    """Make views, fit, choose thresholds, write the bundle; RefusedError when films, weights or an
    earlier run do not fit."""
    workdir = Workdir(config.out)
    cache = workdir / "features"
    with refusing():
        from cxr.bundle import save_bundle
        from detect.view.net import answer

        parts, others = choose_rows(config.data, config.negatives, config.split, config.also)
        field = LungField.load(config.field or None)
        (sha256,) = field.weights.values()
        require_writable(workdir.path, config.views * 30_000)
        keep_to_recipe(workdir.path, {**recipe_of(config), "field": sha256}, config.restart)
        workdir.start(to_plain(config), config.seed, field.weights)
        maker = ViewMaker(parts["train"], others, config.folds, config.seed)
    if config.restart:
        shutil.rmtree(cache, ignore_errors=True)
    films, val = parts["train"], parts["val"]
    log.info("%d films and %d other pictures train", len(films), len(maker.others))
    views = see_views(maker, field, config.views, cache)
    write_json(workdir / "folds.json", answer_folds(maker, field, views, config))
    head = fit_head(*views, config, config.seed)
    shares, mirrored = shares_of(answer(head, see(field, [read_grey(r) for r in val])))
    point = choose_point(shares[:, 0], mirrored, config.lost)
    save_bundle(
        workdir / "view.safetensors",
        "view",
        head.state_dict(),
        half=config.half,
        model={"channels": views[0].shape[1], "classes": len(CLASSES)},
        classes=CLASSES,
        field_sha256=sha256,
        operating_point=point,
        metrics={
            "lost": int((shares[:, 0] < point["frontal"]).sum()),
            "taken_for_mirrored": int((mirrored >= point["mirrored"]).sum()),
            "where": f"{len(val)} validation films, which chose the thresholds",
        },
        trained_on={
            "films": len(films),
            "patients": len({r.patient_id for r in films}),
            "sources": sorted({r.source for r in [*films, *maker.others]}),
            "others": Counter(map(class_of_negative, maker.others)),
            "views": config.views,
            "split": config.split,
            "also": config.also,
        },
        licence=LICENCE,
        provenance=provenance(field.weights),
    )
    shutil.rmtree(cache)
    console.print(f"thresholds {point}; wrote {workdir / 'view.safetensors'}", highlight=False)
    return 0


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

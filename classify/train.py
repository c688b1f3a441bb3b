"""Trains an ensemble of SCXNN members on crops or on whole films.

python -m classify.train --config configs/classify/kermany_crops.yaml --crops runs/crops_data
python -m classify.train --config configs/classify/kermany_films.yaml --max_films 60
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classify.augment import cache_side
from classify.dataset import build_cache
from classify.films import Case, label_of, part_of, select_cases
from classify.fit import MemberJob, fit_member
from classify.recipe import TrainConfig
from cxr.cli import parse_config, to_plain
from cxr.films_table import has_disease, read_films_table
from cxr.split import Split
from cxr.training.recipe import keep_to_recipe
from cxr.workdir import Workdir, log

EXAMPLE = "python -m classify.train --config configs/classify/kermany_crops.yaml --max_films 60"


def main(argv: Sequence[str] | None = None) -> int:
    """Train every target's member that is not finished yet."""
    config = parse_config(TrainConfig, argv, prog="python -m classify.train", example=EXAMPLE)
    try:
        train_ensemble(config)
    except (ValueError, OSError, ImportError) as error:
        log.error("%s", error)
        return 2
    return 0


def train_ensemble(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Train all members into `config.out`; returns each member's metrics by target."""
    workdir = Workdir(config.out)
    workdir.start(to_plain(config), config.seed)
    cases, parts = load_cases(config)
    records: dict[str, dict[str, Any]] = {}
    for order, target in enumerate(config.targets):
        folder = workdir / target
        finished = folder / "metrics.json"
        check_same_recipe(folder, config)
        if finished.exists() and (workdir / f"{target}.safetensors").exists():
            log.info("%s is finished: skipped", target)
            records[target] = json.loads(finished.read_text())
            continue
        records[target] = fit_member(member_job(config, cases, parts, target, order))
        auc = records[target]["figures"]["val"]["macro_auc"]
        shown = [f"{auc[k]:.3f}" if auc[k] is not None else "?" for k in ("value", "low", "high")]
        log.info("%s: validation macro AUC %s (%s to %s)", target, *shown)
    workdir.update(finished=sorted(records))
    return records


def load_cases(config: TrainConfig) -> tuple[list[Case], dict[str, list[int]]]:
    """The films of a configuration, and the indices of each part of the split."""
    data = Path(config.data)
    table = data / "films.csv"
    if not table.is_file():
        raise ValueError(f"data must be a folder with films.csv. {table} does not exist.")
    if not Path(config.split).is_file():
        raise ValueError(f"split must be a file of cxr.split. {config.split} does not exist.")
    crops = Path(config.crops) if config.crops else None
    cases, left_out = select_cases(
        read_films_table(table), data, config.sources, config.publishable_only, crops
    )
    if config.max_films and config.max_films < len(cases):
        chosen = np.random.default_rng(config.seed).permutation(len(cases))[: config.max_films]
        cases = [cases[i] for i in sorted(chosen)]
    split = Split.load(config.split)
    names = sorted(set(split.part_of.values()))
    parts = {name: part_of(cases, split, name) for name in names}
    _hold_out(config.unseen, cases, parts)
    log.info(
        "%d films (%s), left out: %s",
        len(cases),
        ", ".join(f"{k} {len(v)}" for k, v in parts.items()),
        ", ".join(f"{k} {n}" for k, n in left_out.items()) or "none",
    )
    for part in dict.fromkeys(("train", "val", *config.evaluate)):
        if not parts.get(part):
            raise ValueError(
                f"the split must have films in its part {part!r}. Got none: "
                "check evaluate, sources and max_films."
            )
    return cases, parts


def _hold_out(unseen: Sequence[str], cases: Sequence[Case], parts: dict[str, list[int]]) -> None:
    """Take the films of these diseases out of the parts that a member is made from, in place."""
    for disease in unseen:
        films = {i for i, case in enumerate(cases) if has_disease(case.row, [disease])}
        if not films:
            raise ValueError(
                "unseen must stand in the label or sublabel of films. "
                f"Got {disease!r}, which stands nowhere."
            )
        for part in {"train", "val"} & set(parts):
            parts[part] = [i for i in parts[part] if i not in films]


def member_job(
    config: TrainConfig, cases: list[Case], parts: dict[str, list[int]], target: str, order: int
) -> MemberJob:
    """All that one member is trained from; its films are decoded where they are not yet."""
    labels = [label_of(case.row, target, config.classes) for case in cases]
    known = [k for k in labels if k is not None]
    assert len(known) == len(cases), "select_cases leaves unknown truths out"
    if not any(has_disease(cases[i].row, [target]) for i in parts["train"]):
        raise ValueError(
            f"targets must stand in the label or sublabel of training films. "
            f"Got {target!r}, which stands nowhere."
        )
    workdir = Path(config.out)
    cache = Path(config.cache) if config.cache else workdir / "cache"
    side = config.preprocess.side
    wide_side = cache_side(side, config.augment, bool(config.crops))
    exact = build_cache(cases, config.preprocess, config.region, cache, side, 0.0, target)
    wide = exact
    if wide_side != side:
        jitter = config.augment.box_jitter
        wide = build_cache(
            cases, config.preprocess, config.region, cache, wide_side, jitter, target
        )
    return MemberJob(
        target,
        order,
        workdir / target,
        workdir / f"{target}.safetensors",
        config,
        cases,
        known,
        parts,
        wide,
        exact,
    )


def check_same_recipe(folder: Path, config: TrainConfig) -> None:
    """Raise ValueError when a member was begun with other settings than it would go on with."""
    keep_to_recipe(folder, config.recipe())


if __name__ == "__main__":
    raise SystemExit(main())

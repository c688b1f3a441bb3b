"""python tools/benchmark.py: speed ratios against named peers, time and memory over many films,
workers, and whether engines decide alike; all in one run, as benchmark.json and speed.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from cxr.cli import Several, as_list, parse_config, to_plain
from cxr.film import list_films
from cxr.rules import require
from cxr.workdir import Workdir, console, read_json, write_atomic, write_json

PARTS = (
    "detection",
    "engines",
    "members",
    "way",
    "saliency",
    "whole",
    "growth",
    "workers",
    "decisions",
)


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure the networks, the way of a film, whole runs, many films and many workers.

    Args:
        parts: what is measured: detection (file to box), engines (each network by each), members
            (13 DenseNet-121), way (film to answers, against the usual libraries), saliency, whole
            (a run beside its networks), growth (many films), workers (Ray), decisions (do engines
            decide alike). Empty: all. What was measured earlier into the same folder stays.
        data: folder of films, or several of them; the sample chest of pydicom-data where there is
            none.
        films: how many films are timed.
        whole: films of `whole`: of 512 px, and of 7 megapixels.
        growth: numbers of films.
        workers: films of `workers`.
        decide: folders of the films of `decisions`; empty takes `data`.
        bf16: in `decisions` too; slow on a processor that has none.
        threads: of each engine.
        ensemble: folder of the members.
        members: members of `members`.
        saliency_batch: films in a batch for the saliency rows.
        score_films: films for Score-CAM, which takes over a thousand forward passes each; 0 leaves
            it out.
        out: folder for benchmark.json, speed.md and growth.png.
    """

    parts: tuple[str, ...] = ()
    data: Several = "../shared/data/images/kermany"
    films: int = 30
    whole: tuple[int, int] = (300, 40)
    growth: list[int] = field(default_factory=lambda: [100, 1000, 10000])
    workers: int = 240
    decide: tuple[str, ...] = ()
    bf16: bool = True
    threads: int = 2
    ensemble: str = "weights/ensemble_crops"
    members: int = 13
    saliency_batch: int = 16
    score_films: int = 2
    out: str = "runs/benchmark"

    def __post_init__(self) -> None:
        odd = [part for part in self.parts if part not in PARTS]
        require(not odd, f"parts must be of {', '.join(PARTS)}", ", ".join(odd))


def source_films(config: BenchmarkConfig) -> list[Path]:
    """Films of the data folder, or the sample chest of pydicom-data where there is none."""
    if folders := [folder for folder in as_list(config.data) if Path(folder).is_dir()]:
        return list_films(folders).films[: config.films]
    from demo import sample_films

    return sample_films()[:1]


def timed(part: str, config: BenchmarkConfig, films: list[Path]) -> dict[str, Any]:
    """What is measured in this process: groups of rows."""
    import torch
    from benching import networks, saliency
    from benching.timing import time_in_turns

    from classify.ensemble import Ensemble

    torch.set_num_threads(config.threads)
    if part == "members":
        return {part: [networks.many_members(config.members)]}
    ensemble = Ensemble.load(config.ensemble, "cpu")
    if part == "way":
        return {
            part: [time_in_turns(networks.way_timers(films, config.ensemble, ensemble), len(films))]
        }
    stages, crops = networks.stage_timers(films, ensemble)
    if part == "detection":
        detectors = time_in_turns(networks.detection_timers(films), len(films))
        return {part: [detectors, time_in_turns(stages, len(films), ratios=False)]}
    if part == "engines":
        rounds = max(1, config.films // 2)
        return {part: networks.engine_groups(crops[:8], config.ensemble, rounds)}
    sizes = (config.saliency_batch, config.films, config.score_films)
    groups, likeness = saliency.saliency_rows(crops, ensemble, *sizes)
    return {part: groups, "score_cam_rank_correlation": likeness}


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, write benchmark.json, speed.md and growth.png."""
    example = "python tools/benchmark.py --parts '[detection, way]'"
    config = parse_config(BenchmarkConfig, argv, example)
    parts = config.parts or PARTS
    os.environ["OMP_NUM_THREADS"] = str(config.threads)  # what each engine takes
    workdir = Workdir(config.out)
    workdir.start(to_plain(config))
    films = source_films(config)
    from benching import report

    kept = workdir / "benchmark.json"
    found: dict[str, Any] = read_json(kept) if kept.exists() else {}
    found["films"] = len(films)
    for part in PARTS:
        if part in parts:
            found |= measure(part, config, films, workdir)
            write_json(kept, found)  # a part that fails costs no other
            write_atomic(workdir / "speed.md", report.page(found))
    console.print(report.page(found), markup=False, highlight=False)
    return 0


def measure(
    part: str, config: BenchmarkConfig, films: list[Path], workdir: Workdir
) -> dict[str, Any]:
    """What one part finds, by its name."""
    from benching import networks, whole

    if part == "whole":
        return {part: whole.whole_rows(films, *config.whole)}
    if part == "growth":
        rows = whole.growth_rows(films, config.growth, config.ensemble)
        whole.draw_growth(rows, workdir / "growth.png")
        return {part: rows}
    if part == "workers":
        return {part: whole.worker_rows(films, config.workers)}
    if part == "decisions":
        folders = config.decide or tuple(as_list(config.data))
        return {part: whole.decision_rows(folders, networks.installed_engines(config.bf16))}
    return timed(part, config, films)


if __name__ == "__main__":
    sys.exit(main())

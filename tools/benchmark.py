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

PARTS = {  # and their heads
    "detection": "From a file to its box",
    "engines": "Each network by each engine",
    "members": "Many members",
    "way": "From a film to its answers",
    "saliency": "Maps",
    "whole": "A whole run beside its networks",
    "growth": "Many films",
    "workers": "Workers",
    "decisions": "Do engines decide alike?",
}
# of the parts whose rows are a table as they are: what a row holds, and its head
_COLUMNS = {
    "whole": {
        "films": "films",
        "saliency": "Grad-CAM",
        "ms": "the run, ms a film",
        "worked_ms": "of processors",
        "forward_ms": "its networks alone, ms a film",
        "forward_by": "by",
        "ratio": "ratio",
        "mib": "peak memory, MiB",
    },
    "growth": {
        "films": "films",
        "seconds": "seconds",
        "ms": "ms a film",
        "worked_ms": "of processors",
        "mib": "peak memory, MiB",
        "page_mb": "report.html, MB",
        "pages": "pages of cards",
    },
    "workers": {
        "workers": "workers of one core",
        "seconds": "seconds, all",
        "ms": "ms a film",
        "efficiency": "efficiency",
    },
}


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
    from benching import networks

    from classify.ensemble import Ensemble

    torch.set_num_threads(config.threads)
    if part == "members":
        return {part: [networks.many_members(config.members)]}
    ensemble, in_turns = Ensemble.load(config.ensemble, "cpu"), networks.time_in_turns
    if part == "way":
        timers = networks.way_timers(films, config.ensemble, ensemble)
        return {part: [in_turns(timers, len(films))]}
    stages, crops = networks.stage_timers(films, ensemble)
    if part == "detection":
        detectors = in_turns(networks.detection_timers(films), len(films))
        return {part: [detectors, in_turns(stages, len(films), ratios=False)]}
    if part == "engines":
        rounds = max(1, config.films // 2)
        return {part: networks.engine_groups(crops[:8], config.ensemble, rounds)}
    sizes = (config.saliency_batch, config.films, config.score_films)
    groups, likeness = networks.saliency_rows(crops, ensemble, *sizes)
    return {part: groups, "score_cam_rank_correlation": likeness}


def page(found: dict[str, Any]) -> str:
    """All parts that were measured, a heading and a table each."""
    from detect.metrics import to_markdown

    lines: list[str] = []
    for part, head in PARTS.items():
        if part in found:
            columns, cells, *more = _table(part, found[part])
            lines += ["", f"## {head}", "", *to_markdown(columns, cells), *more]
    return "\n".join(lines).lstrip() + "\n"


def _table(part: str, rows: Sequence[Any]) -> tuple[Any, ...]:
    """Head and rows of a part, and what stands under them."""
    if names := _COLUMNS.get(part):
        return list(names.values()), [[str(row[name]) for name in names] for row in rows]
    return _decisions(rows) if part == "decisions" else _timers(rows)


def _timers(groups: Sequence[Sequence[dict[str, Any]]]) -> tuple[Any, ...]:
    apart = ["differs by"] * any("apart" in row for group in groups for row in group)
    lines = []
    for row in (row for group in groups for row in group):
        low, high = row["quartiles"]
        cells = [row["what"], f"{row['ms']:.1f} ({low:.1f} to {high:.1f})"]
        cells += ["" if row["ratio"] is None else f"{row['ratio']:.2f}"]
        lines.append(cells + [str(row.get("apart", "")) for _ in apart])
    return ["per film", "ms (quartiles)", "ratio", *apart], lines


def _decisions(rows: Sequence[dict[str, Any]]) -> tuple[Any, ...]:
    head = ["engine", "films", "other decision", "other tier", "other status", "a logit differs by"]
    lines = []
    for row in rows:
        counts = [len(row[kind]) for kind in ("decision", "tier", "status")]
        shares = [f"{n} ({n / max(1, row['films']):.2%})" for n in counts]
        lines.append([row["engine"], str(row["films"]), *shares, str(row["logit"])])
    names = sorted({n for row in rows for kind in ("decision", "status") for n in row[kind]})
    return head, lines, "", f"Films whose decision or status differs: {', '.join(names) or 'none'}."


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, write benchmark.json, speed.md and growth.png."""
    example = "python tools/benchmark.py --parts '[detection, way]'"
    config = parse_config(BenchmarkConfig, argv, example)
    parts = config.parts or PARTS
    os.environ["OMP_NUM_THREADS"] = str(config.threads)  # what each engine takes
    workdir = Workdir(config.out)
    workdir.start(to_plain(config))
    films = source_films(config)
    kept = workdir / "benchmark.json"
    found: dict[str, Any] = read_json(kept) if kept.exists() else {}
    found["films"] = len(films)
    for part in PARTS:
        if part in parts:
            found |= measure(part, config, films, workdir)
            write_json(kept, found)  # a part that fails costs no other
            write_atomic(workdir / "speed.md", page(found))
    console.print(page(found), markup=False, highlight=False)
    return 0


def measure(
    part: str, config: BenchmarkConfig, films: list[Path], workdir: Workdir
) -> dict[str, Any]:
    """What one part finds, by its name."""
    from benching import whole

    if part == "whole":
        return {part: list(whole.whole_rows(films, *config.whole))}
    if part == "growth":
        rows = list(whole.growth_rows(films, config.growth, config.ensemble))
        whole.draw_growth(rows, workdir / "growth.png")
        return {part: rows}
    if part == "workers":
        return {part: list(whole.worker_rows(films, config.workers))}
    if part == "decisions":
        folders = config.decide or tuple(as_list(config.data))
        engines = whole.installed_engines(config.bf16)
        return {part: list(whole.decision_rows(folders, engines))}
    return timed(part, config, films)


if __name__ == "__main__":
    sys.exit(main())

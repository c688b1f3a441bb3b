"""annotate.py agree: how well two readers agree on the boxes of the same films.

    python tools/annotate.py agree SESSION_A SESSION_B
    python tools/annotate.py agree boxes.json second_reader.csv --films FOLDER

The agreement of two humans is the ceiling that a detector can be measured by.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cxr.cli import to_plain
from cxr.workdir import console, provenance, write_atomic, write_json
from labelling.agree_match import Comparison, compare
from labelling.agree_read import read_sides
from labelling.agree_stats import Agreement, measure_blocks
from labelling.agree_tables import print_tables, printable, to_csv, to_json, to_markdown
from labelling.agree_worst import draw_worst

FILES = ("agreement.md", "agreement.json", "films.csv")


@dataclass(frozen=True)
class AgreeConfig:
    """Compare two readers' boxes of the same films: IoU, edges with limits of agreement, a plot,
    and the worst films drawn.

    Args:
        readers: A and B: each a session's folder, a COCO file (.json) or a table (.csv) with the
            columns image, x, y, w, h (or x0, y0, x1, y1) and, where there are several, reader.
        films: folder of the films, to draw the worst; sessions know where their own are.
        out: folder for the results.
        reader: compare only this reader of a CSV that has several.
        names: match films by path, or by stem, the file's name without folder and suffix; path
            falls back to stem when no film matches.
        worst: how many of the films with the lowest IoU to draw; 0 draws none.
        seed: of the bootstrap.
    """

    readers: tuple[str, ...] = ()
    films: str = ""
    out: str = "runs/agree"
    reader: str = ""
    names: str = "path"
    worst: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.readers) != 2:
            raise ValueError(
                "A and B must be two: each a session's folder, a COCO file or a CSV. "
                f"Got {len(self.readers)} instead."
            )
        if self.names not in ("path", "stem"):
            raise ValueError(f"--names must be path or stem. Got {self.names!r} instead.")
        if not 0 <= self.worst <= 120:
            raise ValueError(f"--worst must lie between 0 and 120. Got {self.worst} instead.")
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more. Got {self.seed} instead.")


def run(config: AgreeConfig) -> int:
    """The command; 0 when boxes were compared, 1 when they could not be read or matched."""
    try:
        if config.films and not Path(config.films).is_dir():
            raise FileNotFoundError(f"--films must be a folder. Got '{config.films}' instead.")
        comparison = compare(*read_sides(config.readers, config.reader), config.names)
        blocks = measure_blocks(comparison.pairs, config.seed)
        write_agreement(comparison, blocks, config)
        said = draw_pictures(comparison, blocks, config)
    except (OSError, ValueError) as error:
        _say(console, f"agree: {error}")
        return 1
    out = Console()
    print_tables(comparison, blocks, out)
    _say(out, f"\n{config.out}: {', '.join(FILES)}, {said}")
    return 0


def write_agreement(
    comparison: Comparison, blocks: dict[str, Agreement], config: AgreeConfig
) -> None:
    """The tables and each film's numbers, into `config.out`."""
    folder = Path(config.out)
    write_json(
        folder / "agreement.json",
        {**to_json(comparison, blocks), "config": to_plain(config), **provenance()},
    )
    write_atomic(folder / "agreement.md", to_markdown(comparison, blocks))
    write_atomic(folder / "films.csv", to_csv(comparison.pairs))


def draw_pictures(comparison: Comparison, blocks: dict[str, Agreement], config: AgreeConfig) -> str:
    """Draw the plot, and the worst films where they are found; returns what was done, in words."""
    from labelling.agree_plot import draw_agreement  # late: no other command needs matplotlib

    plot, sheet = (Path(config.out) / name for name in ("agreement.png", "worst.png"))
    for path in (plot, sheet):
        path.unlink(missing_ok=True)  # an older one would show other films
    if not blocks["all"].pairs:
        return "agreement.png and worst.png are left out: no film has a box in both A and B."
    draw_agreement(comparison, blocks, plot)
    if not config.worst:
        return "agreement.png"
    drawn, lost = draw_worst(comparison, config.films, sheet, config.worst)
    if not drawn:
        where = f"none is under '{config.films}'" if config.films else "name their folder: --films"
        return f"agreement.png\nworst.png is left out: its films were not found ({where})."
    said = f"agreement.png\nworst.png: {drawn} film{'s' * (drawn > 1)} with the lowest IoU"
    return said + (f"; {len(lost)} not found, the first {lost[0].film}." if lost else ".")


def _say(where: Console, text: str) -> None:
    lines = (printable(line) for line in text.split("\n"))
    where.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)

"""Films distorted and restored by a pretrained network: what it has learnt without labels, to look
at.

python -m classify.restore FILMS --out runs/restored.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cxr.cli import as_command, from_plain, parse_config
from cxr.rules import refusing, require, require_not_negative
from cxr.workdir import console, log, write_atomic

WEIGHTS = Path("weights/unet_cbam_small.safetensors")  # commands run from the project's folder


@dataclass(frozen=True)
class RestoreConfig:
    """Draw films, each distorted in the four ways of Models Genesis, and restored by a network.

    Args:
        films: files and folders of films; crops for a network that was pretrained on crops.
        weights: bundle of classify.pretrain.
        out: the picture: two rows a film, with the SSIM to the original under each tile.
        most: draw so many films at most; 0 draws all.
        seed: of the distortions.
        device: auto, cpu or cuda.
    """

    films: tuple[str, ...] = ()
    weights: str = str(WEIGHTS)
    out: str = "runs/restored.png"
    most: int = 8
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        require(bool(self.films), "FILMS must name a file or folder at least", self.films)
        require_not_negative(self, "most", "seed")


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """0, 1 when no film could be drawn, 2 for files that are not what they should be."""
    example = "python -m classify.restore ../shared/data/images/nih --most 4"
    config = parse_config(RestoreConfig, argv, example, ("films",))
    with refusing():
        drawn = restore(config)
    console.print(f"{drawn} films drawn: {config.out}", highlight=False, markup=False)
    return 0 if drawn else 1


def restore(config: RestoreConfig) -> int:
    """Write the picture; how many films stand on it. A film that cannot be read is told and left
    out. Raises OSError or ValueError for weights or paths that do not fit."""
    from classify.augment import GenesisConfig
    from classify.ensemble import load_pretrained
    from classify.preprocess import preprocess
    from classify.tasks.restore import restored_sheet
    from cxr.draw import encode_png
    from cxr.engines import pick_device
    from cxr.film import list_films
    from cxr.stream import Unread, read_ahead

    found = load_pretrained(config.weights)
    if found.meta["trained_on"] == "crops":
        log.info("the network was pretrained on crops: give it crops of detect.crop")
    genesis = from_plain(GenesisConfig, found.meta["genesis"])
    films = []
    for path, film in read_ahead(list_films(config.films).films[: config.most or None]):
        if isinstance(film, Unread):
            log.warning("%s is left out: %s", path, film)
        else:
            films.append(preprocess(film.pixels, found.settings))
    if films:
        net = found.net.to(pick_device(config.device))
        sheet = restored_sheet(net, films, genesis, config.seed)
        write_atomic(Path(config.out), encode_png(sheet))
    return len(films)


if __name__ == "__main__":
    sys.exit(main())

"""Pictures of where a single network looked; for a fusion net, the map of each of its nets too.

    python -m classify.show FILMS --folder runs/fusion --out runs/fusion/shown

One PNG a film: the film, the network's map of the class it answered, and each net's own map with
its share of the energy. A network that was trained on crops is given crops of detect.crop.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classify.saliency import check_method
from cxr.cli import as_command, parse_config
from cxr.draw import encode_png, fit, overlay_saliency, sheet, to_rgb
from cxr.film import Film, list_films
from cxr.rules import refusing, require
from cxr.stats import softmax
from cxr.stream import Unread, batched, read_ahead
from cxr.workdir import console, log, write_atomic

TILE = 320  # px


@dataclass(frozen=True)
class ShowConfig:
    """Draw where a trained single network looked for its answer.

    Args:
        films: files and folders of films; crops for a network that was trained on crops.
        folder: of the training, with single.safetensors.
        out: folder for the pictures; empty takes FOLDER/shown.
        method: grad_cam, grad_cam_pp, hirescam, layercam, eigen_cam, score_cam or cam; of a
            network that draws its own map (CXRNet) also explanation or explanation_class.
        explain: explain this class on every film; empty explains the one that is answered.
        most: draw so many films at most; 0 draws all.
        batch: films at a time.
        device: auto, cpu or cuda.
    """

    films: tuple[str, ...] = ()
    folder: str = "runs/single"
    out: str = ""
    method: str = "grad_cam"
    explain: str = ""
    most: int = 24
    batch: int = 8
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.films:
            raise ValueError("FILMS must name a file or folder at least. Got none.")
        check_method(self.method, "--method")
        if self.most < 0 or self.batch < 1:
            raise ValueError(
                "--most must be 0 or more and --batch 1 or more. Got "
                f"{self.most} and {self.batch} instead."
            )

    @property
    def out_path(self) -> Path:
        """Where the pictures go."""
        return Path(self.out or Path(self.folder) / "shown")


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """The command. 0, 1 when no film could be drawn, 2 for files that are not what they should."""
    example = "python -m classify.show ../shared/data/images/kermany --folder runs/fusion --most 8"
    config = parse_config(ShowConfig, argv, example, ("films",))
    with refusing():
        drawn = show(config)
    console.print(f"{len(drawn)} films drawn: {config.out_path}", highlight=False, markup=False)
    return 0 if drawn else 1


def show(config: ShowConfig) -> list[Path]:
    """The pictures' paths; an unreadable film is told and left out. Raises OSError, ValueError."""
    bundle = Path(config.folder) / "single.safetensors"
    if not bundle.is_file():  # said before torch is loaded
        raise FileNotFoundError(
            f"{bundle}: no such weights. Run from the project's folder, train them, or give "
            "another file."
        )
    paths = list_films(config.films).films[: config.most or None]
    from classify.ensemble import load_single
    from cxr.engines import pick_device

    single = load_single(bundle)
    rule = f"--explain must be one of {', '.join(single.classes)}, or empty"
    require(config.explain in ("", *single.classes), rule, config.explain)
    if single.trained_on == "crops":
        log.info("the network was trained on crops: give it crops of detect.crop")
    device = pick_device(config.device)
    single.net.to(device)
    out: list[Path] = []
    for group in batched(read_ahead(paths), config.batch):
        good: list[tuple[Path, Film]] = []
        for path, film in group:
            if isinstance(film, Unread):
                log.warning("%s is left out: %s", path, film)
            else:
                good.append((path, film))
        if good:
            pictures = _draw_batch(single, good, config, device)
            for (path, _), picture in zip(good, pictures, strict=True):
                # numbered, for films of two folders may have one name
                name = f"{len(out):03d}_{path.stem}.png"
                out.append(write_atomic(config.out_path / name, encode_png(picture)))
    return out


def _draw_batch(
    single: Any, good: Sequence[tuple[Path, Film]], config: ShowConfig, device: Any
) -> list[np.ndarray]:
    from classify.ensemble import prepare_films
    from classify.saliency import to_pixels
    from classify.saliency.maps import explain

    pixels = [film.pixels for _, film in good]
    batch, frames = prepare_films(pixels, single.settings, device)
    wanted = [single.classes.index(config.explain)] * len(good) if config.explain else None
    found = explain(single.net, batch, wanted, config.method)
    sizes = [(p.shape[0], p.shape[1]) for p in pixels]
    maps = {"fused" if found.nets else "map": found.maps, **found.nets}
    planes = {name: to_pixels(own, frames, sizes) for name, own in maps.items()}
    return [
        draw_film(
            path.name,
            pixels[n],
            {name: own[n] for name, own in planes.items()},
            energy_shares(found, n),
            answer_line(found, n, single.classes),
        )
        for n, (path, _) in enumerate(good)
    ]


def draw_film(
    name: str, pixels: np.ndarray, maps: dict[str, np.ndarray], shares: dict[str, str], line: str
) -> np.ndarray:
    """One film (H, W) and its maps (H, W) side by side as uint8 RGB, each with its name and share.
    Each map is coloured up to its own maximum, so colours of two maps do not compare: shares do."""
    film = to_rgb(fit(pixels, TILE))
    size = film.shape[1], film.shape[0]
    pictures, captions = [film], ["film"]
    for title, plane in maps.items():
        small = fit(plane, TILE)
        assert small.shape == (size[1], size[0]), "a map has its film's size"
        pictures.append(overlay_saliency(film, np.maximum(small, 0)))
        captions.append("\n".join(filter(None, (title, shares.get(title, "")))))
    if any("\n" in c for c in captions):
        captions = [c if "\n" in c else f"{c}\n " for c in captions]
    return sheet(pictures, captions, len(pictures), TILE, f"{name}: {line}")


def energy_shares(found: Any, film: int) -> dict[str, str]:
    """What each net's map adds to the fused one, in words; nothing for a single network."""
    sums = {name: float(maps[film].sum()) for name, maps in found.nets.items()}
    total = sum(sums.values())
    if not total:
        return dict.fromkeys(sums, "an empty map")
    return {name: f"{100 * value / total:.0f} % of the energy" for name, value in sums.items()}


def answer_line(found: Any, film: int, classes: Sequence[str]) -> str:
    """The answer with its probability, and what is explained where that is another class."""
    shares = softmax(found.logits[film])
    answered, shown = int(shares.argmax()), found.classes[film]
    line = f"{classes[answered]} {shares[answered]:.2f}"
    if shown != answered:
        line += f", shown is {classes[shown]} {shares[shown]:.2f}"
    return line


if __name__ == "__main__":
    sys.exit(main())

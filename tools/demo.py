"""python tools/demo.py: the main job on real sample films, as `make demo` runs it.

The films come from the PyPI package pydicom-data: a chest with many round masses (uncompressed and
JPEG 2000) and a leg, which must be refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from cxr.cli import parse_config
from cxr.workdir import write_atomic

SAMPLES = ("RG1_UNCI.dcm", "RG1_J2KI.dcm", "RG3_UNCI.dcm")


@dataclass(frozen=True)
class DemoConfig:
    """Box, crop, classify and screen three sample films, and write a page to look at.

    Args:
        out: the run's folder; report.html is the page.
        picture: also draw the first film with its box, crop and saliency as this PNG.
    """

    out: str = "runs/demo"
    picture: str = ""


def sample_films() -> list[Path]:
    """The sample DICOM files of pydicom-data; raises FileNotFoundError with the remedy."""
    from pydicom.data import get_testdata_file

    paths = []
    for name in SAMPLES:
        found = get_testdata_file(name, download=False)
        if not isinstance(found, str):
            raise FileNotFoundError(f"the sample film {name} is missing: pip install -e .[samples]")
        paths.append(Path(found))
    return paths


def draw_way(film_path: Path) -> Any:
    """One film's way as an RGB picture: film, box, crop, Grad-CAM of the strongest member."""
    import numpy as np

    from classify.exported import open_ensemble
    from classify.judge import strongest_member
    from classify.saliency import to_pixels
    from cxr import draw
    from cxr.film import read_film
    from detect.crop import crop_film
    from detect.finder import ThoraxFinder

    film = read_film(film_path)
    box = ThoraxFinder.load().predict([film.pixels])[0]
    crop = crop_film(film, box).pixels
    adults = Path("weights/ensemble_adults")  # the sample is an adult
    ensemble = open_ensemble(adults, "auto", "fp32", "auto", maps=True)
    batch, frames = ensemble.prepare([crop])
    looks, _ = ensemble.look_pooled(batch)
    strongest = strongest_member(np.stack([logits[0] for logits, _ in looks]))
    target = ensemble.targets[strongest]
    plane = to_pixels(looks[strongest][1], frames, [(crop.shape[0], crop.shape[1])])[0]
    plain, cut = draw.to_rgb(film.pixels), draw.to_rgb(crop)
    tiles = [plain, draw.draw_box(plain, box.xyxy or ()), cut, draw.overlay_saliency(cut, plane)]
    names = ["film", f"thorax box, score {box.score:.2f}", "crop", f"Grad-CAM, member {target}"]
    return draw.sheet([draw.fit(t, 320) for t in tiles], names, columns=4, tile=320)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the main job on the samples; 0 when it ran."""
    config = parse_config(DemoConfig, argv, "python tools/demo.py")
    try:
        films = sample_films()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    from classify import run

    code = run.main([*map(str, films), "--crops", "--out", config.out, "--restart"])
    if config.picture and code == 0:
        from cxr import draw

        write_atomic(config.picture, draw.encode_png(draw_way(films[0])))
    print(f"\nOpen {Path(config.out) / 'report.html'} in a browser.")
    return code


if __name__ == "__main__":
    sys.exit(main())

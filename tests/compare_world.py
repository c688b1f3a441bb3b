"""Films explained by two methods, for the tests of tools/compare_explanations.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from conftest import draw_phantom

from comparing import MapSet, explained, save_maps

HOSTILE = "in/</script><script>document.title='owned';alert(2)</script><img src=x onerror=alert(1)>"


def blob(height: int, width: int, y: float, x: float, spread: float = 0.12) -> np.ndarray:
    """A Gaussian spot; its centre and width are shares of the film."""
    rows, columns = np.mgrid[:height, :width]
    far = ((rows / height - y) ** 2 + (columns / width - x) ** 2) / spread**2
    return np.exp(-far / 2).astype(np.float32)


def map_set(name: str, films: Sequence[str], shift: float = 0.0, sha256: str = "") -> MapSet:
    """Each film's spot lies elsewhere; `shift` moves it down, two films share a patient."""
    out = {}
    for number, film in enumerate(films):
        pixels, _ = draw_phantom(96, 80, seed=number)
        y, x = np.random.default_rng(number).uniform(0.2, 0.6, 2)
        plane = 0.01 * blob(96, 80, y + shift, x)
        out[film] = explained(film, f"patient{number // 2}", "pneumonia: viral", pixels, plane)
    return MapSet(name, "grad_cam", "viral", out, sha256)


def write_two(
    folder: Path, films: Sequence[str], names: Sequence[str] = ("near", "far")
) -> list[str]:
    """Two files of maps over the same films."""
    return [
        str(save_maps(folder / f"{n}.safetensors", map_set(name, films, 0.3 * n)))
        for n, name in enumerate(names)
    ]

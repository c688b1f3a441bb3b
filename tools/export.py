"""Networks as ONNX files, which run without torch: checked against torch on real films.

    python tools/export.py                                  every bundle of weights/
    python tools/export.py weights/ensemble_crops           the bundles of a folder
    python tools/export.py runs/fusion/net.safetensors      one bundle

BUNDLE.onnx is written beside each bundle; classify.run, detect.crop and detect.lungfield take it by
themselves (--engine). A network that answers otherwise than torch does is refused with the figure.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cxr.bundle import bundle_kind, load_arrays
from cxr.cli import as_command, parse_config
from cxr.engines import SCHEMA, VERSION, OnnxNet, onnx_path
from cxr.film import Film, list_films
from cxr.rules import refusing, require
from cxr.stream import default_jobs, read_ahead
from cxr.workdir import console, sha256_file, write_atomic

KINDS = ("thorax", "lungfield", "view", "member", "single")
MOST_LOGIT, MOST_PIXELS = 1e-4, 0.05  # by how much an answer may differ
_FEATURES = ("seen", "planes")  # outputs that are no answers yet
_CLEAR = 0.05  # a score from which on a box is compared


@dataclass(frozen=True)
class ExportConfig:
    """Write BUNDLE.onnx beside each bundle, after a comparison with torch.

    Args:
        bundles: bundles, or folders of them (and of folders of them); none named: weights.
        films: films, or folders of them, on which ONNX Runtime must answer as torch does; a black
            picture and one of noise are always among them.
        most_films: so many of these films, evenly drawn.
    """

    bundles: tuple[str, ...] = ()
    films: tuple[str, ...] = ("../shared/data/dicom",)
    most_films: int = 16

    def __post_init__(self) -> None:
        require(self.most_films >= 1, "most_films must be at least 1", self.most_films)


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; 2 for a bundle that cannot be exported, or a network that answers otherwise."""
    example = "python tools/export.py weights --films '[../shared/data/dicom]'"
    config = parse_config(ExportConfig, argv, example, ("bundles",))
    columns = ("network", "kind", "films", "largest difference", "allowed", "MB")
    table = Table(*columns, title="as torch answers, by ONNX Runtime")
    with refusing():
        bundles = bundles_in(config.bundles or ("weights",))
        films = read_films(config.films, config.most_films)
        for path in bundles:
            differs, most = export(path, films)
            size = f"{onnx_path(path).stat().st_size / 1e6:.1f}"
            cells = (str(len(films)), f"{differs:.2g}", f"{most:g}", size)
            table.add_row(onnx_path(path).as_posix(), bundle_kind(path), *cells)
    console.print(table)
    return 0


def bundles_in(paths: Sequence[str]) -> list[Path]:
    """Bundles of networks, in the order in which they are named; raises ValueError for none."""
    found: list[Path] = []
    for path in map(Path, paths):
        files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
        found += [f for f in files if f.is_file() and bundle_kind(f) in KINDS]
        rule = f"bundles must be, or hold, a bundle of kind {', '.join(KINDS)}"
        require(any(f in found for f in files), rule, path)
    return found


def read_films(paths: Sequence[str], most: int) -> list[np.ndarray]:
    """Films (H, W) float32 in [0, 1]: at most so many of a folder, one black and one of noise."""
    listed = list_films(paths).films
    chosen = [listed[k] for k in np.unique(np.linspace(0, len(listed) - 1, most, dtype=int))]
    read = [film for _, film in read_ahead(chosen, default_jobs(len(chosen)))]
    films = [film.pixels for film in read if isinstance(film, Film)]
    require(bool(films), "films must hold a film that can be read", " ".join(paths))
    noise = np.random.default_rng(0).random((400, 300), np.float32)
    return [*films, np.zeros((300, 400), np.float32), noise]


def export(bundle: Path, films: Sequence[np.ndarray]) -> tuple[float, float]:
    """Write one network's file; returns by how much its answers differ at most, and how much is
    allowed. Raises ValueError where they differ by more: then nothing is written."""
    from exporting import (
        GRAPHS,  # torch is loaded here, when nothing light is wrong
        to_onnx,
    )

    kind = bundle_kind(bundle)
    graph, example, names = GRAPHS[kind](bundle)
    meta = {"schema": SCHEMA, "version": VERSION, "kind": kind, "outputs": names}
    data = to_onnx(graph, example, names, {**meta, "bundle_sha256": sha256_file(bundle)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        path.write_bytes(data)
        net = OnnxNet(bundle, path=path)
        differs = _COMPARED.get(kind, _compare_members)(bundle, graph, net, films)
    most = MOST_PIXELS if kind == "thorax" else MOST_LOGIT
    if not differs <= most:
        raise ValueError(
            f"{bundle}: the exported network must answer as torch does, to {most:g}. It differs by "
            f"{differs:.3g}, so nothing was written. Versions of torch, onnxscript and onnxruntime "
            "may not fit together: update them."
        )
    write_atomic(onnx_path(bundle), data)
    return differs, most


def _compare_boxes(bundle: Path, _graph: Any, net: OnnxNet, films: Sequence[np.ndarray]) -> float:
    """In px of the letterbox: each box that torch scores clearly against the nearest of ours; a
    score that is 0.001 off weighs as much as a box that is 0.1 px off."""
    from detect.decode import BoxDecoder
    from detect.predict import ThoraxDetector, prepare_film

    theirs = ThoraxDetector.load(bundle, "cpu", flips=False)
    decoder = BoxDecoder(theirs.config, load_arrays(bundle, "thorax")[0])
    canvases = [prepare_film(film, theirs.config.side)[0] for film in films]
    apart = 0.0
    for seen, ours in zip(theirs.look_at(canvases), decoder.read(net, canvases), strict=True):
        for box, score in zip(seen.boxes_xyxy, seen.scores, strict=True):
            if score >= _CLEAR:
                off = np.abs(ours[0] - box).max(1, initial=0) + 100 * np.abs(ours[1] - score)
                apart = max(apart, float(off.min(initial=np.inf)))
    return apart


def _compare_fields(bundle: Path, _graph: Any, net: OnnxNet, films: Sequence[np.ndarray]) -> float:
    from detect.lungfield.field import LungField
    from detect.predict import prepare_film

    field = LungField.load(bundle, "cpu")
    canvases = [prepare_film(film, field.side)[0] for film in films]
    ours = net.run(np.stack(canvases))
    theirs = field.look(canvases)
    return _apart(ours, dict(zip(net.outputs, theirs, strict=True)))


def _compare_views(bundle: Path, graph: Any, net: OnnxNet, films: Sequence[np.ndarray]) -> float:
    from detect.lungfield.field import LungField
    from detect.predict import prepare_film
    from detect.view.net import answer

    beside = bundle.with_name("lungfield.safetensors")
    field = LungField.load(beside if beside.is_file() else None, "cpu")
    seen = field.look([prepare_film(film, field.side)[0] for film in films])[1]
    return _apart(net.run(seen), {"logits": answer(graph, seen)})


def _compare_members(_bundle: Path, graph: Any, net: OnnxNet, films: Sequence[np.ndarray]) -> float:
    import torch

    from classify.preprocess import preprocess_all

    batch, _ = preprocess_all(films, graph.settings)
    with torch.inference_mode():
        theirs = graph(torch.from_numpy(batch))
    found = [t.numpy() for t in theirs]
    return _apart(net.run(batch), dict(zip(net.outputs, found, strict=True)))


def _apart(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The largest difference of the answers; of features in units of the largest one."""
    apart = 0.0
    for name, right in theirs.items():
        unit = max(1.0, float(np.abs(right).max())) if name in _FEATURES else 1.0
        apart = max(apart, float(np.abs(ours[name] - right).max()) / unit)
    return apart


_COMPARED = {"thorax": _compare_boxes, "lungfield": _compare_fields, "view": _compare_views}


if __name__ == "__main__":
    raise SystemExit(main())

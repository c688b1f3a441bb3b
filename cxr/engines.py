"""By what a network runs, and where: an ONNX file beside each bundle by ONNX Runtime or OpenVINO,
without torch; or torch on a device, in one vocabulary (auto, cpu or cuda; other words are aliases).

`python tools/export.py` writes BUNDLE.onnx beside BUNDLE.safetensors. The graph is all that it
holds, and the SHA-256 of the bundle it was made from: settings, operating point and provenance stay
in the bundle, which must lie beside it, so that a run says the same of itself by either engine.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr.rules import require
from cxr.workdir import log, sha256_file

if TYPE_CHECKING:
    import torch

ENGINES = ("auto", "onnx", "openvino", "torch")
PRECISIONS = ("fp32", "bf16")
SCHEMA, VERSION = "lungfirst.onnx", 1
_METADATA = 14  # the number of that field of a ModelProto
_MODULE = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
_INSTALL = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "-e '.[train]'"}


def pick_engine(engine: str, bundles: list[Path], device: str = "auto", bf16: bool = False) -> str:
    """The engine by which the networks of these bundles run: `auto` is torch on a GPU, else ONNX
    Runtime where an .onnx lies beside each and it is installed, else torch. Raises ValueError for a
    wish that cannot be had, ImportError for an engine that is not there."""
    require(engine in ENGINES, f"engine must be one of {', '.join(ENGINES)}", engine)
    if engine == "auto":
        ready = is_there("onnx") and all(map(_is_exported, bundles))
        wanted = "torch" if bf16 or not ready or _on_gpu(device) else "onnx"
    else:
        wanted = engine
    require(
        not (bf16 and wanted == "onnx"),
        "precision bf16 must run by openvino or torch: ONNX Runtime has no bf16 on processors",
        engine,
    )
    if wanted != "torch":
        rule = f"engine {wanted} runs on the processor: --device must be auto or cpu"
        require(device in ("auto", "cpu"), rule, device)
    if not is_there(wanted):
        way = f"pip install {_INSTALL[wanted]}"
        if wanted == "torch":
            way += "; or export the networks on a machine that has torch: python tools/export.py"
        raise ImportError(f"engine {wanted} is not installed: {way}")
    return wanted


def _is_exported(bundle: Path) -> bool:
    """Whether the bundle as it is now was exported."""
    path = onnx_path(bundle)
    if not path.is_file():
        return False
    fits = read_meta(path)["bundle_sha256"] == sha256_file(bundle)
    if not fits:
        log.warning("%s is of another bundle than the one beside it: torch runs instead", path)
    return fits


def is_there(engine: str) -> bool:
    """Is it installed?"""
    return importlib.util.find_spec(_MODULE[engine]) is not None


def _on_gpu(device: str) -> bool:
    """Is there a GPU for torch? Asked of torch only where a driver is loaded: torch is slow."""
    if device != "auto":
        return device != "cpu"
    driver = any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
    if not driver or not is_there("torch"):
        return False
    import torch

    return bool(torch.cuda.is_available())


def onnx_path(bundle: str | Path) -> Path:
    """The exported file of a bundle."""
    return Path(bundle).with_suffix(".onnx")


class OnnxNet:
    """An exported network: arrays in, arrays out, by the names of its inputs and outputs. Raises
    FileNotFoundError or ValueError, which names the file and the remedy, for one that is missing,
    broken, or made from another bundle than the one beside it."""

    def __init__(
        self,
        bundle: str | Path,
        engine: str = "onnx",
        precision: str = "fp32",
        path: Path | None = None,
    ) -> None:
        path, self.engine = path or onnx_path(bundle), engine
        self.meta = read_meta(path)
        self.sha256 = sha256_file(bundle)
        if self.meta["bundle_sha256"] != self.sha256:
            raise ValueError(
                f"{path} must be made from the bundle beside it. It was made from another one "
                f"({self.meta['bundle_sha256'][:12]}…, not {self.sha256[:12]}…): "
                f"python tools/export.py {bundle}"
            )
        self.outputs: list[str] = list(self.meta["outputs"])
        _calm_numpy()
        try:
            open_ = _open_openvino if engine == "openvino" else _open_onnx
            self._run = open_(path, self.outputs, precision)
        except Exception as error:  # each engine fails in its own way
            raise ValueError(f"{path} must be a network. {engine} says: {error}") from error

    def run(self, films: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs (N, …) for a batch (N, …), by name."""
        found = self._run(np.ascontiguousarray(films))
        return dict(zip(self.outputs, found, strict=True))


@cache
def _calm_numpy() -> None:
    """One thread for NumPy's products of matrices from here on: they are small beside a network,
    and threads of theirs that spin while they wait take a quarter of a run's processor time."""
    from threadpoolctl import ThreadpoolController

    ThreadpoolController().limit(limits=1, user_api="blas")


_ways = 1


@contextmanager
def shared_by(ways: int) -> Iterator[None]:
    """Networks that are opened within answer `ways` at a time, and each takes its share of the
    processors: two on a thread each do more than two that take turns on both."""
    global _ways
    before, _ways = _ways, ways
    try:
        yield
    finally:
        _ways = before


def _threads() -> int:
    """As many as torch would take, or a share of the processors; 0 leaves it to the engine."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit():
        return int(told)
    return 0 if _ways == 1 else max(1, len(os.sched_getaffinity(0)) // _ways)


def onnx_session(path: Path) -> Any:
    """ONNX Runtime on a file, on the processor, with as many threads as torch would take."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.log_severity_level = 3
    # threads that wait must not spin: films are read, cut and written meanwhile
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _open_onnx(path: Path, outputs: list[str], _precision: str) -> Any:
    session = onnx_session(path)
    (given,) = session.get_inputs()
    return lambda films: session.run(outputs, {given.name: films})


def _open_openvino(path: Path, outputs: list[str], precision: str) -> Any:
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision)
    }
    if threads := _threads():
        settings["INFERENCE_NUM_THREADS"] = threads
    net = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(films: np.ndarray) -> list[np.ndarray]:
        found = net(films)
        return [found[name] for name in outputs]

    return run


def read_meta(path: str | Path) -> dict[str, Any]:
    """What tools/export.py wrote into an ONNX file, read without its graph and without a library;
    raises FileNotFoundError or ValueError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such network. python tools/export.py makes it.")
    meta: Any = {}
    # mapped: of the graph, nearly all of the file, only the length is looked at
    held: Any = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    try:
        for number, content in _fields(memoryview(held)):
            entry = dict(_fields(content)) if number == _METADATA else {}
            if entry.get(1) == b"lungfirst":
                meta = json.loads(bytes(entry.get(2, b"")))
    except IndexError:
        raise ValueError(
            f"{path} must be an ONNX file. It is torn or something else: export anew."
        ) from None
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} must be a network of tools/export.py. It says nothing of the bundle that it "
            "was made from: export it anew."
        )
    if meta.get("version") != VERSION:
        raise ValueError(f"{path} is of version {meta.get('version')}, not {VERSION}: export anew.")
    return meta


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each length-delimited field of a protocol buffer's message; raises
    IndexError where it ends too early or is none."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        value, at = _varint(message, at) if kind in (0, 2) else (0, at + 8)
        end = at + value if kind == 2 else at
        if kind not in (0, 1, 2) or end > len(message) or not key >> 3:
            raise IndexError(at)
        if kind == 2:
            yield key >> 3, message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, of ten bytes at most, and where it ends."""
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise IndexError(at)


# --- torch ---


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is the first GPU, or the CPU where there is none; `gpu` is cuda, and torch's own
    words (cuda:1, mps) are taken. Raises ValueError for any other."""
    import torch  # late: settings and --help must not pay for it

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device("cuda" if device == "gpu" else device)
    except RuntimeError as error:
        raise ValueError(
            f"device must be auto, cpu, gpu or a name of torch. Got {device!r}."
        ) from error


@contextmanager
def inferring(device: torch.device, precision: str) -> Iterator[None]:
    """Without gradients, and in bf16 where that was asked for."""
    import torch

    half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with torch.inference_mode(), half:
        yield


_NAME = "torch._dynamo"


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import torchvision and timm in here: a stand-in takes the place of torch's compiler meanwhile
    (it takes as long as torch itself, and nothing is compiled here), whose `disable` leaves
    functions as they are. Afterwards it can be imported as ever; where it is
    loaded already, nothing is done."""
    if _NAME in sys.modules:
        yield
        return
    compiler: Any = ModuleType(_NAME)
    utils: Any = ModuleType(f"{_NAME}.utils")
    compiler.utils, compiler.disable = utils, _leave
    utils.is_compile_supported = lambda _device: False
    for module in (compiler, utils):
        module.__getattr__ = partial(_of_the_compiler, module.__name__)
    sys.modules |= {_NAME: compiler, utils.__name__: utils}
    try:
        yield
    finally:
        _drop_stand_in()


def _drop_stand_in() -> None:
    if not hasattr(sys.modules.get(_NAME), "__file__"):
        for name in (_NAME, f"{_NAME}.utils"):
            sys.modules.pop(name, None)


def _of_the_compiler(module: str, name: str) -> Any:
    """What the stand-in has not is the compiler's own: it is loaded then, after all."""
    if name.startswith("__"):
        raise AttributeError(name)
    _drop_stand_in()
    return getattr(importlib.import_module(module), name)


def _leave(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """As a decorator, with or without arguments."""
    return (lambda given: given) if function is None else function

"""python tests/kills.py: commands that are killed, or whose disk is full, and are begun again.

    python tests/kills.py --times 10
    python tests/kills.py --times 3 --commands crop merge
    python tests/kills.py --times 2 --full             as root: disks of its own, in memory

Each command runs once undisturbed. Then, each time in a new folder, it is killed (SIGKILL) at a
random moment, every third time one of its child processes instead, and the same command is given
again: it must end well, with the same tables, leave no half-written file and no process behind.
With --full its folder lies on a disk that is too small: it must say so and which folder, in words,
and go on when there is room.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked: torch may have no threads

import cv2
import numpy as np
from conftest import write_phantoms
from pydicom.data import get_testdata_file

from cxr.film import read_film

LOCK = ".in_use"
ROOT = Path(__file__).resolve().parents[1]
TIMES_OUT_S = 300.0
NETWORKS = ("classify.ensemble", "classify.judge", "classify.screener", "detect.model")
TINY = (
    "--model.backbone test_efficientnet --model.side 64 --model.fpn_channels 16 "
    "--model.head_channels 16 --batch 4 --accelerator cpu --epochs 3 --workers 0"
)


class Killable(NamedTuple):
    """A command: its module and arguments for a folder, and what of the folder is compared."""

    module: str
    words: Callable[[Path, Path], str]
    tables: Callable[[Path], Any]
    prepare: Callable[[Path, Path], None] = lambda world, out: None


def rows(path: Path) -> list[Any]:
    """The rows of a file of JSON lines by film, without the header's date."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted((r for r in lines if "film" in r), key=lambda r: r["film"])


def crops(folder: Path) -> Any:
    found = rows(folder / "manifest.jsonl")
    return found, {r["crop"]: (folder / r["crop"]).read_bytes() for r in found if r.get("crop")}


def run_tables(folder: Path) -> Any:
    with (folder / "predictions.csv").open(newline="") as file:
        predictions = sorted(csv.reader(file))
    kept = json.loads((folder / "run.json").read_text())
    known = kept["complete"], kept["films"], kept["decisions"]
    return predictions, crops(folder / "crops"), len(rows(folder / "report.jsonl")), known


def audit_tables(folder: Path) -> Any:
    metrics = json.loads((folder / "audit.json").read_text())["metrics"]
    with (folder / "audit.csv").open(newline="") as file:
        return sorted(csv.reader(file)), metrics


def alike(one: Any, other: Any) -> bool:
    """The same, but for numbers that differ in the sixth figure: how many films a network sees at a
    time, and where a sum begins in memory, is seen in the last ones."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    try:
        return math.isclose(float(one), float(other), rel_tol=1e-5, abs_tol=1e-6)
    except (TypeError, ValueError):
        return bool(one == other)


def train_tables(folder: Path) -> Any:
    from cxr.bundle import load_bundle

    bundle = load_bundle(folder / "thorax.safetensors", "thorax")
    tensors = {name: t.numpy().tobytes() for name, t in bundle.tensors.items()}
    return json.loads((folder / "history.json").read_text()), tensors


def merge_words(world: Path, out: Path) -> str:
    return f"{world}/anna {world}/ben --into {out}/thorax.json --policy mean"


def begin_merge(world: Path, out: Path) -> None:
    """A file that is there already."""
    out.mkdir()
    shutil.copy(world / "data/thorax.json", out / "thorax.json")


COMMANDS = {
    "crop": Killable(
        "detect.crop", lambda w, o: f"{w}/films --out {o} --jobs 2 --batch 2 --device cpu", crops
    ),
    "run": Killable(
        "classify.run",
        lambda w, o: f"{w}/films --crops --out {o} --jobs 2 --batch 2 --device cpu",
        run_tables,
    ),
    "audit": Killable(
        "classify.audit.__main__",
        lambda w, o: f"{w}/run --out {o} --draws 50 --pdf false --jobs 2 --batch 2 --device cpu",
        audit_tables,
    ),
    "merge": Killable(
        "labelling.merge", merge_words, lambda o: (o / "thorax.json").read_text(), begin_merge
    ),
    "train": Killable(
        "detect.train", lambda w, o: f"{TINY} --data.data {w}/data --out {o}", train_tables
    ),
}


def make_world(world: Path) -> None:
    """Films, one of them broken; a data set with boxes; two sessions that saw the same films."""
    from labelling_sessions import make_session

    chest = cv2.resize(read_film(get_testdata_file("RG1_UNCI.dcm")).pixels, (400, 424))
    (world / "films").mkdir(parents=True)
    for number in range(8):
        pixels = chest[number * 4 :, number * 3 :] * (1 - 0.03 * number)
        cv2.imwrite(str(world / f"films/{number}.png"), (pixels * 255).astype(np.uint8))
    (world / "films/torn.png").write_bytes((world / "films/0.png").read_bytes()[:500])
    write_phantoms(world / "data")
    films = [(f"{n}.png", np.full((160, 120), 0.1 + 0.01 * n, np.float32)) for n in range(12)]
    for who, edge in (("anna", 20.0), ("ben", 24.0)):
        session = make_session(world / who, films, annotator=who)
        for film in session.films:
            session.set_answer(film, xyxy=(edge, 30.0, 80.0, 110.0))


class Forked:
    """A command in a forked process, in which the libraries are loaded already."""

    def __init__(self, module: str, words: str, said: Path) -> None:
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            code = 99
            try:
                for stream in (1, 2):
                    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
                os.chdir(ROOT)
                code = call(module, words.split())
            except SystemExit as error:
                code = int(error.code or 0)
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
            finally:
                os._exit(code)

    def children(self) -> list[int]:
        """Its child processes now."""
        try:
            listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
            return [int(pid) for pid in listed.split()]
        except OSError:
            return []

    def wait(self, seconds: float) -> int | None:
        """The exit code, or minus the signal; None while it runs."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                return None
            time.sleep(0.01)


def call(module: str, words: list[str]) -> int:
    """The command's exit code."""
    found = import_module(module)
    if module == "labelling.merge":
        import annotate

        return int(annotate.main(["merge", *words]))
    return int(found.main(words))


def kill_once(
    name: str, world: Path, out: Path, seconds: float, wanted: Any, rng: random.Random, child: bool
) -> str:
    """What went wrong; "" when the second run made good what the first had lost."""
    command, said = COMMANDS[name], out.with_suffix(".txt")
    command.prepare(world, out)
    words = command.words(world, out)
    first = Forked(command.module, words, said)
    ended = first.wait(rng.uniform(0, seconds))
    young = first.children()
    if ended is None:
        os.kill(rng.choice(young) if child and young else first.pid, signal.SIGKILL)
        ended = first.wait(TIMES_OUT_S)
    alive = [p for p in young if _lives_on(p)]
    if alive:
        return f"processes {alive} live on after the kill"
    if ended not in (0, -signal.SIGKILL):
        return f"ended with {ended} when a child was killed: {said}"
    again = Forked(command.module, words, said).wait(TIMES_OUT_S)
    if again != 0:
        return f"ended with {again} when begun again: {said}"
    if not alike(command.tables(out), wanted):
        return f"other tables than undisturbed: {out}"
    left = [str(p) for p in out.rglob(".*") if p.name != LOCK]
    return f"left {left}" if left else ""


def fill_once(name: str, world: Path, out: Path, size: int, wanted: Any) -> str:
    """As `kill_once`, on a disk of so many bytes, which is enlarged before the second run."""
    command, said = COMMANDS[name], out.with_suffix(".txt")
    disk = out.with_suffix(".disk")
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", disk], check=True)
    try:
        command.prepare(world, disk / "out")
        words = command.words(world, disk / "out")
        if name == "train":  # which looks for room before it begins: the disk fills up later
            first = Forked(command.module, words, said)
            while (ended := first.wait(0.02)) is None and not (disk / "out/checkpoints").exists():
                pass
            _shrink(disk, size)
            ended = first.wait(TIMES_OUT_S) if ended is None else ended
        else:
            _shrink(disk, size)
            ended = Forked(command.module, words, said).wait(TIMES_OUT_S)
        text = " ".join(said.read_text().split())
        if ended not in (1, 2) or "No space left on device" not in text or disk.name not in text:
            return f"a disk of {size} bytes: ended with {ended}: {said}"
        if "Traceback" in text or "Errno" in text:
            return f"a disk of {size} bytes: told as a programmer's error: {said}"
        subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
        again = Forked(command.module, words, said).wait(TIMES_OUT_S)
        if again != 0:
            return f"ended with {again} when there was room again: {said}"
        if not alike(command.tables(disk / "out"), wanted):
            return f"a disk of {size} bytes: other tables than undisturbed: {said}"
        left = [str(p) for p in (disk / "out").rglob(".*") if p.name != LOCK]
        return f"left {left}" if left else ""
    finally:
        subprocess.run(["umount", disk], check=True)


def _shrink(disk: Path, size: int) -> None:
    """Leave so many bytes free beside what lies there."""
    size += shutil.disk_usage(disk).used
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def _lives_on(pid: int) -> bool:
    """Does a process whose parent was killed outlive it by 10 s?"""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True


def kill_all(names: Sequence[str], times: int, seed: int, full: bool, work: Path) -> list[str]:
    """Each command undisturbed, then disturbed so many times; returns what went wrong."""
    world, faults = work / "world", []
    make_world(world)
    if "audit" in names:
        made = Forked("classify.run", COMMANDS["run"].words(world, world / "run"), work / "run.txt")
        assert made.wait(TIMES_OUT_S) == 0, work / "run.txt"
    for name in names:
        command, whole = COMMANDS[name], work / name
        command.prepare(world, whole)
        begun = time.monotonic()
        ended = Forked(command.module, command.words(world, whole), work / f"{name}.txt").wait(
            TIMES_OUT_S
        )
        seconds = time.monotonic() - begun
        assert ended == 0, f"{name}: {ended}, see {work / f'{name}.txt'}"
        wanted, rng = command.tables(whole), random.Random(f"{seed}/{name}")
        wrong = []
        for k in range(times):
            out = work / f"{name}{k}"
            if full:
                used = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())
                size = max(4096, round(used * (k + rng.random()) / times))
                fault = fill_once(name, world, out, size, wanted)
            else:
                fault = kill_once(name, world, out, seconds, wanted, rng, k % 3 == 2)
            if fault:
                wrong.append(f"{name} {k}: {fault}")
                print(wrong[-1], flush=True)
        print(
            f"{name}: {seconds:.1f} s undisturbed, {times} kills, {len(wrong)} faults", flush=True
        )
        faults += wrong
    return faults


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 without faults."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=10, help="disturbances of each command")
    parser.add_argument("--full", action="store_true", help="full disks in place of kills")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="kept there; without it a temporary folder")
    args = parser.parse_args(argv)
    for name in args.commands:  # forked children need not load them again
        import_module(COMMANDS[name].module)
    for module in NETWORKS if args.commands != ["merge"] else ():
        import_module(module)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.out or Path(temporary)
        faults = kill_all(args.commands, args.times, args.seed, args.full, work)
    print(f"{len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())

"""Workers of a Ray cluster: each item once, whatever dies; and a run by them is a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import draw_phantom
from demo import sample_films

from cxr.stream import check_workers, spread

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def found_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file is a module of the workers too."""
    monkeypatch.syspath_prepend(HERE)


def squares(_folder: str = "") -> Callable[[Iterable[int]], Iterator[tuple[int, int]]]:
    return lambda items: ((n, n * n) for n in items)


def dying(folder: str, kills: int, times: int) -> Callable[[Iterable[int]], Iterator[int]]:
    """Work that takes its worker down at one item, so many times."""

    def work(items: Iterable[int]) -> Iterator[int]:
        for n in items:
            if n == kills and len(list(Path(folder).iterdir())) < times:
                (Path(folder) / str(time.time_ns())).touch()
                os._exit(1)
            yield n

    return work


def failing() -> Callable[[Iterable[int]], Iterator[int]]:
    def work(items: Iterable[int]) -> Iterator[int]:
        for n in items:
            yield 1 // (3 - n)

    return work


def slow(folder: str) -> Callable[[Iterable[int]], Iterator[int]]:
    """Work that says where it is done."""

    def work(items: Iterable[int]) -> Iterator[int]:
        for n in items:
            time.sleep(0.1)
            (Path(folder) / f"{n}_{os.getppid()}").touch()
            yield n

    return work


def stillborn() -> Callable[[Iterable[int]], Iterator[int]]:
    os._exit(1)


def lost(item: int, why: str) -> int:
    assert "three times" in why
    return -item


@pytest.mark.parametrize("words", ["", "ray", "ray:", "ray:0", "local:2", "dask:2", "Local"])
def test_other_words_are_refused(words: str) -> None:
    with pytest.raises(ValueError, match="workers must be local, ray:N"):
        check_workers(words)


@pytest.mark.parametrize("words", ["local", "ray:3", "ray://head:10001", "ray:10.0.0.1:6379"])
def test_these_words_name_workers(words: str) -> None:
    check_workers(words)


def test_each_item_is_done_once_and_errors_come_home() -> None:
    found = list(spread("ray:2", squares, range(23), 4, lost))
    assert sorted(found) == [(n, n * n) for n in range(23)]
    with pytest.raises(ZeroDivisionError):
        list(spread("ray:1", failing, range(5), 2, lost))


def test_workers_that_never_come_end_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxr.stream._PATIENCE", 2.0)
    with pytest.raises(RuntimeError, match="workers ended one after the other"):
        list(spread("ray:1", stillborn, range(3), 2, lost))


@pytest.mark.parametrize(("times", "left"), [(1, 5), (99, -5)])
def test_a_worker_that_dies_loses_no_item(tmp_path: Path, times: int, left: int) -> None:
    make = partial(dying, str(tmp_path), 5, times)
    found = list(spread("ray:2", make, range(12), 4, lost))
    assert sorted(found) == sorted({*range(12)} - {5} | {left})
    assert len(list(tmp_path.iterdir())) == min(times, 3)


def ray_start(*words: str) -> None:
    command = [str(Path(sys.executable).with_name("ray")), "start", "--num-cpus=1", *words]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    subprocess.run(command, check=True, capture_output=True, timeout=120, env=environment)


def raylets(folder: str) -> set[int]:
    """Those of the cluster whose files are in the folder; others' tests may have theirs."""
    command = ["pgrep", "-f", f"raylet/raylet .*{folder}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return {int(pid) for pid in listed.stdout.split()}


@pytest.mark.skipif(
    not os.environ.get("LUNGFIRST_CLUSTER"),
    reason="starts a cluster of two machines, which needs a quiet one: LUNGFIRST_CLUSTER=1",
)
def test_a_machine_that_is_lost_in_the_middle_costs_no_item(
    tmp_path: Path,
) -> None:
    import ray

    port = 20_000 + os.getpid() % 20_000
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:  # sockets' paths are short
        try:
            ports = (f"--port={port}", f"--ray-client-server-port={port + 1}")
            head = ("--head", "--node-ip-address=127.0.0.1", "--include-dashboard=false")
            ray_start(*head, *ports, f"--temp-dir={folder}")
            (first,) = raylets(folder)
            ray_start("--node-ip-address=127.0.0.2", f"--address=127.0.0.1:{port}")
            (second,) = raylets(folder) - {first}
            away = spread(f"ray://127.0.0.1:{port + 1}", squares, range(5), 2, lost)
            assert sorted(away) == [(n, n * n) for n in range(5)]
            found = []
            make = partial(slow, str(tmp_path))
            for n in spread(f"ray:127.0.0.1:{port}", make, range(60), 4, lost):
                found.append(n)
                if len(found) == 16:  # not the machine that the command itself runs on
                    own = ray.get_runtime_context().get_node_id()
                    here = next(n for n in ray.nodes() if n["NodeID"] == own)
                    on_second = here["NodeManagerAddress"] == "127.0.0.2"
                    os.kill(first if on_second else second, signal.SIGKILL)
            assert sorted(found) == list(range(60))
            done = {path.name.split("_")[1] for path in tmp_path.iterdir()}
            assert done >= {str(first), str(second)}, "both machines worked"
        finally:
            for how in ("-TERM", "-KILL"):
                subprocess.run(["pkill", how, "-f", f"{folder}|:{port}"], check=False)
                time.sleep(1)


def test_a_run_its_crops_and_its_audit_by_workers_are_those_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    from classify import run
    from classify.audit import __main__ as audit
    from classify.audit.rows import read_audit
    from classify.predictions import read_predictions
    from cxr.manifest import read_manifest

    films = tmp_path / "films"
    films.mkdir()
    for n, path in enumerate(sample_films()[:2]):
        (films / f"real{n}.dcm").write_bytes(Path(path).read_bytes())
    for n in range(4):
        cv2.imwrite(str(films / f"film{n}.png"), draw_phantom(150, 130, seed=n)[0] * 255)
    (films / "torn.dcm").write_bytes((films / "real0.dcm").read_bytes()[:5000])
    monkeypatch.chdir(Path(HERE).parent)
    for name, workers in (("one", "local"), ("two", "ray:2")):
        out = ["--out", str(tmp_path / name), "--engine", "onnx", "--batch", "2"]
        out += ["--ensemble", "weights/ensemble_crops"]
        assert run.main([str(films), "--crops", *out, "--workers", workers]) == 0
    one, two = (
        {row.film: row for row in read_predictions(tmp_path / name / "predictions.csv")[1]}
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert len(one) == 7
    for film, row in one.items():
        assert (row.status, row.decision, row.notes) == (
            two[film].status,
            two[film].decision,
            two[film].notes,
        )
        if row.logits is not None:
            assert abs(row.logits - two[film].logits).max() < 1e-4  # batches differ
    ours, theirs = (read_manifest(tmp_path / name / "crops")[1] for name in ("one", "two"))
    assert {r.film: r.crop for r in ours} == {r.film: r.crop for r in theirs}
    assert (tmp_path / "two/report.html").exists()
    for name, workers in (("a", "local"), ("b", "ray:1")):
        out = ["--out", str(tmp_path / name), "--pdf", "false", "--draws", "20"]
        assert audit.main([str(tmp_path / "one"), *out, "--workers", workers]) == 0
    rows = [read_audit(tmp_path / name / "audit.csv") for name in ("a", "b")]
    first, second = ({(r.film, r.member): r for r in own} for own in rows)
    assert first.keys() == second.keys()
    for key, row in first.items():  # batches differ
        assert second[key].value("lift") == pytest.approx(row.value("lift"), abs=1e-3)

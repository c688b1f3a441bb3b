"""python tools/pacs.py results, end to end; and that identity is in no file but the objects."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from hospital_world import SECRETS, World, world  # noqa: F401 - a fixture

pytest.importorskip("highdicom", reason="the extra pacs is not installed")

from pacs import main


@pytest.fixture(autouse=True)
def at_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)  # where the weights lie


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.glob("*.dcm")}


def test_results_are_written_once_for_the_owner_alone(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["results", str(world.run), "--out", str(out)]
    assert main(arguments) == 0
    first = contents(out)
    assert len(first) == 9 * 2 + 3  # report and box of judged films, report of refused ones
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in out.glob("*.dcm")} == {0o600}
    assert main(arguments) == 0
    assert contents(out) == first
    told = " ".join(capsys.readouterr().err.split())
    assert "12 films, 21 new objects, 0 there already; 1 films without" in told
    assert "0 new objects, 21 there already" in told
    assert "text.dcm: no results, as its file is no DICOM file" in told


def test_identity_is_in_the_objects_and_nowhere_else(
    world: World,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    kinds = "sr,gsps,seg,saliency,sc"
    assert main(["results", str(world.run), "--out", str(out), "--kinds", kinds]) == 0
    said = capfd.readouterr()
    secrets = [s.encode() for s in (*SECRETS, *world.uids())]
    files = [p for p in (*world.run.rglob("*"), *out.rglob("*")) if p.is_file()]
    texts = {p.as_posix(): p.read_bytes() for p in files if p.suffix != ".dcm"}
    texts |= {"said": f"{said.out}{said.err}".encode(), "log": caplog.text.encode()}
    texts |= {"names": "\n".join(p.name for p in files).encode()}
    assert len(texts) > 20
    assert not [(name, s) for name, text in texts.items() for s in secrets if s in text]
    held = b"".join(p.read_bytes() for p in out.glob("sr_*.dcm"))
    assert b"CompressedSamples^RG1" in held  # where it must be, it is


def test_an_odd_header_that_no_object_can_be_made_of_is_told_without_its_values(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("the name is CompressedSamples^RG1")

    monkeypatch.setattr("hospital.objects.content_of", fails)
    assert main(["results", str(world.run), "--out", str(tmp_path / "out")]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "not all results, as its header contradicts what a result must say (sr)" in told
    assert "CompressedSamples" not in told and "9 films, 9 new objects" in told


def run_of_pictures(world: World, folder: Path) -> Path:
    """The same run, as if its films had been PNG files."""
    run = folder / "run"
    shutil.copytree(world.run, run)
    films = folder / "pictures"
    films.mkdir()
    manifest = (run / "crops" / "manifest.jsonl").read_text()
    from cxr.stream import hash_film

    for stem, row in world.boxed.items():
        path = films / f"{stem}.dcm"
        cv2.imwrite(str(path.with_suffix(".png")), np.full((64, 64), len(stem), np.uint8))
        path.with_suffix(".png").rename(path)
        manifest = manifest.replace(row.sha256, hash_film(path))
    old, new = (world.root / "films").as_posix(), films.as_posix()
    (run / "crops" / "manifest.jsonl").write_text(manifest.replace(old, new))
    for name in ("predictions.csv", "report.jsonl"):
        (run / name).write_text((run / name).read_text().replace(old, new))
    return run


def test_films_that_are_no_dicom_are_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of_pictures(world, tmp_path)
    assert main(["results", str(run), "--out", str(tmp_path / "out")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "RUN must be of DICOM films that lie where they lay" in told
    assert "13 x its file is no DICOM file" in told and not (tmp_path / "out").exists()


def test_films_that_have_moved_or_changed_are_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, films = tmp_path / "run", tmp_path / "films"
    shutil.copytree(world.run, run)
    shutil.copytree(world.root / "films", films)
    manifest = run / "crops" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace((world.root / "films").as_posix(), str(films)))
    for name in ("predictions.csv", "report.jsonl"):
        text = (run / name).read_text()
        (run / name).write_text(text.replace((world.root / "films").as_posix(), str(films)))
    for path in films.glob("*.dcm"):
        if path.stem in ("korean", "latin"):
            path.write_bytes(path.read_bytes() + b"\0\0")
        else:
            path.unlink()
    assert main(["results", str(run), "--out", str(tmp_path / "out")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "11 x its file is no longer where it was" in told
    assert "2 x its file has changed since the run was made" in told


def test_a_film_whose_file_is_elsewhere_now_has_its_results(world: World, tmp_path: Path) -> None:
    from hospital_world import WHEN

    from hospital.results import results_of

    name, moved = world.rows["korean"].film, tmp_path / "elsewhere.bin"
    shutil.copy(world.film("korean"), moved)
    found = dict(results_of(world.run, {name: moved}, ("sr",), "comprehensive", WHEN))
    original = pydicom.dcmread(moved, stop_before_pixels=True)
    assert found[name][0].StudyInstanceUID == original.StudyInstanceUID


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "RUN must be one folder of classify.run. Got 0."),
        (["RUN", "--kinds", "sr,pdf"], "--kinds must be some of sr, gsps, seg, saliency, sc"),
        (["RUN", "--sr", "basic"], "sr must be one of comprehensive, comprehensive3d"),
        (["nowhere"], "holds no run.json"),
    ],
)
def test_wrong_arguments_are_told(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    given = [str(world.run) if a == "RUN" else a for a in arguments]
    try:
        code = main(["results", *given, "--out", str(tmp_path / "out")])
    except SystemExit as end:
        code = end.code
    assert code == 2 and said in " ".join(capsys.readouterr().err.split())


def test_a_screener_that_is_another_one_now_is_refused(world: World, tmp_path: Path) -> None:
    from hospital.judgement import read_ran

    run = tmp_path / "run"
    shutil.copytree(world.run, run)
    record = (run / "run.json").read_text()
    (run / "run.json").write_text(record.replace("@0.336884", "@0.5"))
    with pytest.raises(ValueError, match="must hold the screener that the run was judged by"):
        list(read_ran(run).judged())

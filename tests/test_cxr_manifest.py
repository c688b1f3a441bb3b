"""cxr.manifest: rows as films finish, resume, and faults named by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cxr.boxes import Frame
from cxr.manifest import CropRow, ManifestWriter, read_manifest

SETTINGS = {"settings": {"margin": 0.05}, "made": "now"}


def row(film: str = "a.png", **changes) -> CropRow:
    frame = Frame.cut((1, 2, 30, 40))
    values = {
        "film": film,
        "sha256": "0" * 64,
        "status": "ok",
        "size_hw": (50, 60),
        "score": 0.9,
        "thorax_xyxy": (1.5, 2.0, 30.0, 40.0),
        "crop_xyxy": frame.source_xyxy,
        "frame": frame.to_dict(),
        "crop": "abc.png",
    }
    return CropRow(**{**values, **changes})


def refused(film: str) -> CropRow:
    return CropRow(film, "0" * 64, "unreadable", "truncated: the file ends early.")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "crops" / "manifest.jsonl"


def test_rows_come_back_as_written(path: Path) -> None:
    with ManifestWriter(path, SETTINGS) as book:
        book.add(row())
        book.add(refused("Ü\udcff.dcm"))  # a name that is no UTF-8
    header, rows = read_manifest(path)
    assert (header["schema"], header["version"]) == ("lungfirst.crops", 1)
    assert header["settings"] == {"margin": 0.05}
    assert rows == [row(), refused("Ü\udcff.dcm")]
    assert rows[0].to_frame() == Frame.cut((1, 2, 30, 40))
    assert read_manifest(path.parent)[1] == rows


def test_each_row_is_on_disk_at_once(path: Path) -> None:
    with ManifestWriter(path, SETTINGS) as book:
        book.add(row())
        assert len(read_manifest(path)[1]) == 1


def test_a_manifest_is_continued(path: Path) -> None:
    for name in ("a.png", "b.png"):
        with ManifestWriter(path, {**SETTINGS, "made": name}) as book:
            assert list(book.done) == (["a.png"] if name == "b.png" else [])
            book.add(row(name))
    header, rows = read_manifest(path)
    assert [r.film for r in rows] == ["a.png", "b.png"] and header["made"] == "a.png"


def test_a_line_torn_by_a_kill_is_dropped(path: Path) -> None:
    with ManifestWriter(path, SETTINGS) as book:
        book.add(row("a.png"))
        book.add(row("b.png"))
    path.write_bytes(path.read_bytes()[:-20])
    with ManifestWriter(path, SETTINGS) as book:
        assert list(book.done) == ["a.png"]
        book.add(row("b.png"))
    assert [r.film for r in read_manifest(path)[1]] == ["a.png", "b.png"]


def test_a_torn_header_is_written_anew(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"schema": "lungf')
    with ManifestWriter(path, SETTINGS) as book:
        book.add(row())
    assert len(read_manifest(path)[1]) == 1


def test_restart_forgets_the_rows(path: Path) -> None:
    with ManifestWriter(path, SETTINGS) as book:
        book.add(row())
    with ManifestWriter(path, {"settings": {"margin": 0.2}}, restart=True) as book:
        assert not book.done


def test_other_settings_are_refused_by_name(path: Path) -> None:
    with ManifestWriter(path, SETTINGS):
        pass
    with pytest.raises(ValueError, match=r"begun with other settings \(margin, square\)"):
        ManifestWriter(path, {"settings": {"margin": 0.1, "square": True}})


def test_a_film_has_one_row(path: Path) -> None:
    with ManifestWriter(path, SETTINGS) as book:
        book.add(row())
        with pytest.raises(ValueError, match="stands in"):
            book.add(row())


def test_dropped_films_can_be_added_again(path: Path) -> None:
    with ManifestWriter(path, SETTINGS) as book:
        for name in ("a.png", "b.png", "c.png"):
            book.add(row(name))
        book.drop(["a.png", "c.png"])
        assert [r.film for r in read_manifest(path)[1]] == ["b.png"]
        book.add(row("a.png", score=0.5))
    header, rows = read_manifest(path)
    assert [(r.film, r.score) for r in rows] == [("b.png", 0.9), ("a.png", 0.5)]
    assert header["settings"] == SETTINGS["settings"]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"status": "fine"}, "status must be one of ok, fallback, no_thorax, unreadable"),
        ({"crop": None}, "status ok needs crop, frame and size_hw"),
        ({"status": "no_thorax", "crop": None}, "needs a reason and no crop"),
        ({"status": "unreadable", "reason": "x"}, "needs a reason and no crop"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(changes: dict, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        row(**changes)


def test_a_refused_film_has_no_frame() -> None:
    assert not refused("a.dcm").readable
    with pytest.raises(ValueError, match="has no crop, so it has no frame"):
        refused("a.dcm").to_frame()


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (['{"schema": "other"}'], "line 1: the first line must be a header"),
        (["[]"], "line 1: the first line must be a header"),
        (['{"schema": "lungfirst.crops", "version": 9}'], "line 1: version must be 1"),
        (["HEADER", "{nonsense"], "line 2: "),
        (["HEADER", "[]"], "line 2: a row must be a JSON object"),
        (["HEADER", "null"], "line 2: a row must be a JSON object"),
        (["HEADER", '{"film": "a", "colour": 3}'], "line 2: unknown keys"),
        (["HEADER", '{"film": "a"}'], "line 2: "),
        (["HEADER", '{"film": 7, "sha256": ""}'], "line 2: film must be a text. Got 7"),
        (["HEADER", "FRAME"], "line 2: frame must hold whole pixels as written"),
        (["HEADER", "FLAT"], "line 2: frame must have a width and a height"),
        (["HEADER", "[" * 100_000], "line 2: "),
        (["HEADER", "\udcff"], "line 2: 'utf-8' codec can't decode"),
        (["HEADER", "ROW", "ROW"], "line 3: a.dcm stands there twice"),
        ([], "is empty"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path: Path, lines: list[str], fault: str) -> None:
    bad = {"film": "a.dcm", "sha256": "", "status": "unreadable", "reason": "empty: x"}
    texts = {"HEADER": '{"schema": "lungfirst.crops", "version": 1}', "ROW": json.dumps(bad)}
    crop = {**bad, "status": "ok", "crop": "a.png", "size_hw": [9, 9]}
    flat = {**Frame.cut((1, 2, 3, 4)).to_dict(), "content_hw": [0, 2]}
    texts["FRAME"], texts["FLAT"] = (json.dumps({**crop, "frame": f}) for f in ({"a": 1}, flat))
    path = tmp_path / "manifest.jsonl"
    text = "".join(texts.get(line, line) + "\n" for line in lines)
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=fault):
        read_manifest(path)


def test_a_missing_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Make crops first: python -m detect\.crop"):
        read_manifest(tmp_path)

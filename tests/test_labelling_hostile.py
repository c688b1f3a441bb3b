"""Label files of anybody: damaged in a thousand ways, and written by programs of all kinds."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from labelling_labels import make_set, save, voc_text, write_film
from labelling_merging import BOX_A, into, locks, session_of
from labelling_sessions import make_session

from labelling.check import check_file
from labelling.exchange import FORMATS, ExportConfig, run_export
from labelling.label_files import ReadRules
from labelling.merge import MergeConfig, run
from labelling.readers import read_side

__all__ = ["into", "locks", "session_of"]

TOKEN = re.compile(rb'"[^"]*"|[\w.+-]+|<[^>]*>')
HOSTILE = [
    *(b"NaN", b"Infinity", b"-1", b"0", b"1e400", b"9" * 400, b"1e308", b"0.5", b"true", b"null"),
    *(b'""', b'"x"', b"[]", b"{}", b"[" * 900 + b"]" * 900, b'{"a":' * 900 + b"1" + b"}" * 900),
    *(b'"\\ud800"', b'"a\\u0000b"', b"\x00", b"\xff", b"<a>" * 900, b"&x;", b"../../x", b"2 2"),
]
CLASS = re.compile(r"\b[A-Z]\w*(Error|Exception|Warning)\b")


def damaged(seed: bytes, number: int, salt: str) -> Iterator[bytes]:
    """As many versions of a file, each with one to three pieces replaced, cut out or doubled."""
    rng = random.Random(salt)
    for _ in range(number):
        data = seed
        for _ in range(rng.randint(1, 3)):
            spans = [m.span() for m in TOKEN.finditer(data)] or [(0, len(data))]
            a, b = rng.choice(spans)
            piece = data[a:b]
            at = rng.randrange(len(data) + 1)
            data = rng.choice(
                [
                    data[:a] + rng.choice(HOSTILE) + data[b:],
                    data[:a] + rng.choice(HOSTILE) + data[b:],
                    data[:a] + data[b:],
                    data[:b] + piece + data[b:],
                    data[:at],
                    data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
                ]
            )
        yield data


@pytest.fixture
def seeds(tmp_path: Path) -> dict[str, bytes]:
    """What our own writers make of one film with two boxes, one of them marked."""
    coco = make_set(tmp_path / "films", {"a.png": ((40, 60), [(1, 2, 30, 28), (3, 4, 9, 9)])})
    source = save(tmp_path, coco)
    data = json.loads(source.read_text())
    data["annotations"][1]["iscrowd"] = 1
    source.write_text(json.dumps(data))
    found = {}
    for kind in FORMATS:
        out = tmp_path / f"seed_{kind}"
        run_export(ExportConfig((str(source),), kind, str(out)))
        path = next(p for p in sorted(out.rglob("*")) if p.suffix == (FORMATS[kind].suffix))
        found[kind] = path.read_bytes()
    return found


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_label_files_are_named_with_a_sentence(kind, known, seeds, tmp_path):
    folder = tmp_path / "hostile"
    folder.mkdir()
    for number, data in enumerate(damaged(seeds[kind], 250, kind)):
        (folder / f"{number:03d}{FORMATS[kind].suffix}").write_bytes(data)
    sizes = {f"{n:03d}.png": (40, 60) for n in range(250)} | {"a.png": (40, 60)}
    known = known or kind == "yolo"
    rules = ReadRules(("thorax",), hull=True, known=sizes if known else None)
    coco, unusable = FORMATS[kind].read(folder, None, rules)
    assert len(coco.films) + len(unusable) >= 200
    for one in unusable:
        assert re.match(r"\d{3}\.", one.where)
        assert one.reason and not CLASS.search(str(one)) and "\n" not in str(one)
        assert len(str(one)) < 600


@pytest.mark.parametrize("read", [check_file, read_side])
def test_damaged_coco_files_never_crash_a_command(read: Callable, seeds, tmp_path):
    path = tmp_path / "hostile.json"
    for data in damaged(seeds["coco"], 200, "commands"):
        path.write_bytes(data)
        try:
            read(path)
        except ValueError as error:
            assert str(path) in str(error) and not CLASS.search(str(error))


def test_damaged_tables_of_readers_never_crash(tmp_path):
    path = tmp_path / "hostile.csv"
    text = b"image,reader,x,y,w,h,width,height\na.png,m,1,2,30,20,60,40\nb.png,k,,,,,60,40\n"
    for data in damaged(text, 200, "csv"):
        path.write_bytes(data)
        try:
            read_side(path)
        except ValueError as error:
            assert str(path) in str(error) and not CLASS.search(str(error))


def test_merging_into_a_damaged_file_never_crashes(seeds, into, session_of, capsys):
    anna = session_of("anna", {"1.png": BOX_A})
    into.parent.mkdir()
    for data in damaged(seeds["coco"].replace(b"a.png", b"1.png"), 100, "merge"):
        into.write_bytes(data)
        if run(MergeConfig((str(anna.path),), str(into), policy="first")):
            said = capsys.readouterr().err
            assert said and not CLASS.search(said)
            assert into.read_bytes() == data


def test_a_session_with_damaged_files_still_opens_or_says_why(seeds, tmp_path):
    ramp = np.tile(np.linspace(0, 1, 100), (60, 1))
    session = make_session(tmp_path / "s", [("a.png", ramp)], {"a.png": (10, 10, 90, 55)})
    session.set_answer(session.films[0], flags=["accepted"])
    film = session.films[0]
    for path in (session.label_path(film), session.path / "history.jsonl"):
        whole = path.read_bytes()
        for data in damaged(whole, 150, path.name):
            path.write_bytes(data)
            session._last = None
            answer = session.answer(film)
            assert answer.state and not CLASS.search(answer.fault)
        path.write_bytes(whole)


# Text of all programs

TEXTS = {
    "coco": json.dumps(
        {
            "images": [{"id": 1, "file_name": "sub\\a.png", "width": 60, "height": 40}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 4, 20, 16]}],
            "categories": [{"id": 1, "name": "thorax "}],
        },
        indent=1,
    ),
    "labelme": json.dumps(
        {
            "shapes": [
                {"label": "thorax ", "points": [[5, 4], [25, 20]], "shape_type": "rectangle"}
            ],
            "imagePath": "..\\films\\sub\\a.png",
            "imageHeight": 40,
            "imageWidth": 60,
        },
        indent=1,
    ),
    "voc": voc_text(filename="a.png ", box="6 5 25 20", folder="D:\\set\\sub").replace(
        "thorax", "\n thorax "
    ),
    "yolo": "0 0.25 0.3 0.33333333 0.4 \n\n",
}


def read_text_as(kind: str, data: bytes, tmp_path: Path, film: str = "sub/a.png"):
    write_film(tmp_path / "films" / film, (40, 60))
    folder = tmp_path / "labels"
    folder.mkdir(exist_ok=True)
    (folder / f"a{FORMATS[kind].suffix}").write_bytes(data)
    if kind == "yolo":
        (folder / "classes.txt").write_bytes(b"\xef\xbb\xbfthorax \r\n")
    return FORMATS[kind].read(folder, tmp_path / "films", ReadRules(("thorax",)))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", " \n"], ids=["unix", "windows", "blanks"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_reader_takes_the_text_of_every_program(kind, end, mark, tmp_path):
    data = mark + TEXTS[kind].replace("\n", end).encode() + b"\n"
    coco, unusable = read_text_as(kind, data, tmp_path)
    assert not unusable
    [film] = coco.films
    assert (film.file_name, coco.classes) == ("sub/a.png", ("thorax",))
    assert film.boxes_xyxy[0] == pytest.approx([5, 4, 25, 20], abs=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("film", ["sub/a.dcm", "a.png", "deep/er/a.tif"])
def test_a_name_without_suffix_finds_its_film(kind, film, tmp_path):
    text = re.sub(r'[^ ">]*a\.png ?', "a", TEXTS[kind])
    assert "a.png" not in text
    coco, unusable = read_text_as(kind, text.encode(), tmp_path, film)
    assert not unusable
    assert coco.films[0].file_name == film


def test_two_films_of_one_stem_are_told_apart_by_nobody(tmp_path):
    write_film(tmp_path / "films/b/a.png", (40, 60))
    text = re.sub(r'[^ ">]*a\.png ?', "a", TEXTS["voc"])
    _, [unusable] = read_text_as("voc", text.encode(), tmp_path)
    assert "'a' may be b/a.png or sub/a.png" in unusable.reason


def test_labels_are_matched_to_the_classes_whatever_their_case(tmp_path):
    data = TEXTS["voc"].replace("thorax", "Thorax").encode()
    coco, unusable = read_text_as("voc", data, tmp_path)
    assert not unusable
    assert coco.classes == ("thorax",)


def test_a_readers_table_may_come_from_any_program(tmp_path):
    text = "Image ; x0;Y0;x1;y1;Reader;difficult\na.png ;1;2;30;28; mk;0\nb.png;1;2;3;4;mk;1\n"
    path = tmp_path / "boxes.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    [mark] = read_side(path).readers["mk"]  # b.png is not to be counted
    assert (mark.film, mark.xyxy) == ("a.png", (1, 2, 30, 28))


def test_names_of_windows_in_a_coco_file_are_found_by_export_and_merge(tmp_path, into, session_of):
    plain = make_set(tmp_path / "films", {"sub/1.png": ((160, 120), [BOX_A])})
    source = save(tmp_path, plain)
    source.write_text(source.read_text().replace("sub/1.png", "sub\\\\1.png"))
    out = tmp_path / "out"
    config = ExportConfig((str(source),), "labelme", str(out), str(tmp_path / "films"))
    assert run_export(config) == 0
    data = json.loads((out / "sub/1.json").read_text())
    assert (out / "sub" / data["imagePath"]).resolve() == tmp_path / "films/sub/1.png"
    into.parent.mkdir()
    into.write_bytes(source.read_bytes())
    assert run(MergeConfig((str(session_of("anna", {"sub/1.png": BOX_A}).path),), str(into))) == 0
    assert into.read_bytes() == source.read_bytes()

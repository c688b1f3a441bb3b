"""labelling.check: each fault is found, with its film and its fix, and hides no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from labelling_sessions import make_session

from cxr.workdir import sha256_file
from labelling import Session
from labelling.check import CheckConfig, Fault, check_file, check_session, run

FILM = np.zeros((200, 100), np.float32)  # a view of 128 × 64 px: scale 0.64
SIZE_HW = (200, 100)
BOX = (10.0, 20.0, 90.0, 180.0)
NAMES = ("a.png", "b.png", "c.png")


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Three pre-labelled films, the first accepted, and a fourth without a pre-label."""
    films = [(name, FILM) for name in (*NAMES, "d.png")]
    session = make_session(tmp_path / "s", films, dict.fromkeys(NAMES, BOX))
    session.set_answer(session.films[0], flags=["accepted"])
    return session


def edit(session: Session, number: int, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a film's label file as labelme would."""
    path = session.label_path(session.films[number - 1])
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def redraw(session: Session, number: int, **values: Any) -> None:
    """Change the first shape of a film."""
    edit(session, number, lambda data: data["shapes"][0].update(values))


def said(faults: list[Fault]) -> list[str]:
    return [f"{fault.film}: {fault.what}" for fault in faults]


def find(session: Session, **options: Any) -> list[str]:
    return said(check_session(Session.open(session.path), **options)[0])


def test_a_sound_session_has_no_faults(session: Session) -> None:
    assert find(session) == []


def test_a_line_has_number_name_and_fix(session: Session) -> None:
    edit(session, 1, lambda data: data["shapes"].append(data["shapes"][0]))
    ((fault,), _) = check_session(session)
    assert str(fault) == (
        "0001 a.png: two boxes. Delete the one that is wrong in labelme: "
        f"python tools/annotate.py start --session {session.path} --film 1"
    )


def shape(**values: Any) -> dict[str, Any]:
    """A shape of a label file, in view pixels; 64 × 128 px is the whole film."""
    points = [[6.4, 12.8], [57.6, 115.2]]
    return {"label": "thorax", "points": points, "shape_type": "rectangle", "flags": {}, **values}


TURNED = [[6, 6], [60, 6], [60, 120], [6, 120]]
# What the second film's label file holds, and what is wrong then; it was pre-drawn and untouched.
LABEL_FILES: list[tuple[list[dict[str, Any]], list[str], list[str]]] = [
    ([], ["accepted"], ["no box, though accepted is ticked"]),
    ([], [], ["no box, though it was saved"]),
    ([], ["unreadable"], []),
    ([], ["not frontal"], []),
    ([], ["doubtful"], []),
    (
        [shape(flags={"prelabelled": True}), shape(points=[[5, 5], [60, 120]])],
        [],
        ["two boxes, one of them pre-drawn"],
    ),
    (
        [shape(points=[[-6.4, 12.8], [57.6, 134.4]])],  # 10 px out on both sides
        [],
        ["the box reaches out of the film by 10.0 px at the left and 10.0 px at the bottom"],
    ),
    ([shape(points=[[-0.32, 12.8], [57.6, 115.2]])], [], []),  # half a film pixel is rounding
    (
        [shape(points=[[0, 0], [32, 51.1]])],  # 50 × 79.8 of 100 × 200 px: 19.96 %
        [],
        ["the box covers 19.9 % of the film, a thorax at least 20 %"],
    ),
    (
        [shape(points=[[0, 0], [64, 128]])],
        [],
        ["the box covers the whole film, a thorax at most 99 %"],
    ),
    ([shape(label="throax")], [], ["the box is labelled 'throax', not thorax"]),
    (
        [shape(shape_type="oriented_rectangle", points=TURNED)],
        [],
        ["the box is of the shape oriented rectangle, not a rectangle"],
    ),
    (
        [shape(points=[[6, 6], [6, 120]])],
        [],
        ["the box has no width or height, or its edges are crossed"],
    ),
    ([shape(points=[[57.6, 115.2], [6.4, 12.8]])], [], []),  # drawn from another corner
    (
        [shape(), shape(label="", points=[[5, 5], [9, 9]])],
        [],
        [
            "two boxes",
            "box 2 of 2 has no label, not thorax",
            "box 2 of 2 covers 0.1 % of the film, a thorax at least 20 %",
        ],
    ),
]


@pytest.mark.parametrize(("shapes", "flags", "faults"), LABEL_FILES)
def test_what_a_label_file_may_hold(
    session: Session, shapes: list[dict[str, Any]], flags: list[str], faults: list[str]
) -> None:
    ticked = dict.fromkeys(flags, True)
    edit(session, 2, lambda data: data.update(shapes=shapes, flags=ticked))
    assert find(session) == [f"0002 b.png: {fault}" for fault in faults]


def test_films_to_do_are_faults_when_all_must_be_done(session: Session) -> None:
    session.set_answer(session.films[2], flags=["doubtful"])
    assert find(session, complete=True) == [
        "0002 b.png: no answer yet",
        "0003 c.png: still ticked as doubtful",
        "0004 d.png: no answer yet",
    ]


@pytest.mark.parametrize(
    ("xyxy", "faults"),
    [
        ((0, 0, 50, 80), 0),  # 20 %
        ((0, 0, 49.9, 80), 1),
        ((0, 0, 100, 198), 0),  # 99 %
        ((0, 0, 100, 198.1), 1),
        ((90, 20, 10, 180), 1),  # crossed, and nothing else is said of it
        ((10, 20, 10, 180), 1),
        ((float("nan"), 20, 90, 180), 1),
        ((-200, -200, -100, -100), 2),  # outside, and nothing of it on the film
    ],
)
def test_the_limits_of_a_box(tmp_path: Path, xyxy: tuple[float, ...], faults: int) -> None:
    x0, y0, x1, y1 = xyxy
    path = write_file(tmp_path / "t.json", (1, [x0, y0, x1 - x0, y1 - y0]))
    assert len(check_file(path)[0]) == faults


def test_a_film_that_is_gone_and_one_that_changed(session: Session) -> None:
    session.film_path(session.films[0]).unlink()
    session.film_path(session.films[1]).write_bytes(b"another film")
    assert find(session) == [
        "0001 a.png: the film is missing",
        "0002 b.png: the film has changed since the session was made",
    ]
    assert find(session, hashes=False) == []


def test_a_folder_that_is_gone_is_one_line(session: Session) -> None:
    session.root.rename(session.root.with_name("elsewhere"))
    assert find(session) == [f"{session.root}: the folder of the films is missing"]


def test_the_label_file_of_another_film(session: Session) -> None:
    path = session.label_path(session.films[1])
    path.write_text(session.label_path(session.films[2]).read_text())
    ((fault,), _) = check_session(session)
    assert fault.film == "0002 b.png"
    assert fault.what.startswith(f"its label file {path.name} belongs to another film")
    assert fault.fix.startswith(f"Move {path} elsewhere and draw the box again")


def test_a_torn_label_file_of_a_done_film_can_be_put_back(session: Session) -> None:
    session.label_path(session.films[0]).write_text('{"shapes": [')
    ((fault,), _) = check_session(session)
    assert "is of no use: not JSON, or cut off" in fault.what
    assert fault.fix.startswith("Its last answer is kept, and put back by: python tools/annotate")
    assert session.restore_lost() == [session.films[0]]
    assert find(session) == []


def test_a_lost_label_file_of_a_done_film(session: Session) -> None:
    session.label_path(session.films[0]).unlink()
    assert find(session) == ["0001 a.png: its label file 0001_film.json is gone"]


def test_a_label_file_of_no_film(session: Session) -> None:
    (session.path / "views" / "holiday.json").write_text("{}")
    assert find(session) == [
        "views/holiday.json: this label file belongs to no film of the session"
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"\xff\xfe",
        b'{"shapes": [7]}',
        b'{"shapes": [{"points": [[1]]}]}',
        b"[" * 100_000,
        b'{"shapes": [{"points": [[1, 1e999], [3, 4]]}]}',
        b'{"shapes": [], "flags": []}',
    ],
)
def test_a_malformed_label_file_hides_no_other_fault(session: Session, content: bytes) -> None:
    session.label_path(session.films[0]).write_bytes(content)
    redraw(session, 2, label="lung", points=[[6, 6], [57, 115]])
    session.film_path(session.films[0]).unlink()
    found = find(session)
    assert found[0] == "0001 a.png: the film is missing"
    assert found[-1] == "0002 b.png: the box is labelled 'lung', not thorax"


def test_a_folder_in_the_place_of_a_label_file_hides_no_other_fault(session: Session) -> None:
    session.label_path(session.films[3]).mkdir()
    redraw(session, 1, label="lung")
    assert [line[:10] for line in find(session)] == ["0001 a.png", "0004 d.png"]


def test_a_fault_is_one_line_whatever_it_holds() -> None:
    text = str(Fault("0001 a\n.png", "w" * 1000, "Mend it"))
    assert "\n" not in text
    assert len(text) < 300


# COCO files


def write_file(path: Path, *boxes: tuple[int, list[Any]], **more: Any) -> Path:
    """A COCO file of a.png, b.png and c.png (ids 1 to 3) with boxes (image id, xywh)."""
    images = [
        {"id": i, "file_name": name, "width": 100, "height": 200}
        for i, name in enumerate(NAMES, start=1)
    ]
    notes = [
        {"id": i, "image_id": image, "category_id": 1, "bbox": box}
        for i, (image, box) in enumerate(boxes, start=1)
    ]
    data = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "thorax"}]}
    path.write_text(json.dumps({**data, **more}))
    return path


GOOD = [10, 20, 80, 160]


def test_a_sound_file_has_no_faults(tmp_path: Path) -> None:
    assert check_file(write_file(tmp_path / "t.json", (1, GOOD), (2, GOOD)))[0] == []


def test_a_film_of_a_file_needs_no_box_unless_all_must_have_one(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.json", (1, GOOD), (2, GOOD))
    assert said(check_file(path, complete=True)[0]) == ["0003 c.png: no box"]


def test_the_rules_of_the_box_hold_for_a_file(tmp_path: Path) -> None:
    path = write_file(
        tmp_path / "t.json", (1, GOOD), (1, GOOD), (2, [-0.7, 20, 80, 160]), (3, [10, 20, 8, 16])
    )
    faults, _ = check_file(path, classes=("hand",))
    label = "is labelled 'thorax', not hand"
    assert said(faults) == [
        "0001 a.png: two boxes",
        f"0001 a.png: box 1 of 2 {label}",
        f"0001 a.png: box 2 of 2 {label}",
        f"0002 b.png: the box {label}",
        "0002 b.png: the box reaches out of the film by 0.7 px at the left",
        f"0003 c.png: the box {label}",
        "0003 c.png: the box covers 0.6 % of the film, a thorax at least 20 %",
    ]
    assert faults[0].fix == f"Delete all but the right one in {path}"


def test_crossed_edges_of_a_file(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.json", (2, [90, 20, -80, 160]))
    ((fault,), _) = check_file(path)
    assert fault.film == "0002 b.png"
    assert "width and a height above 0" in fault.what
    assert fault.fix.startswith("Its edges are crossed")


def test_far_outside_is_said_once(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.json", (1, [10, 60, 80, 160]))
    assert said(check_file(path)[0]) == [
        "0001 a.png: the box reaches out of the film by 20.0 px at the bottom"
    ]


def test_malformed_entries_hide_no_other_fault(tmp_path: Path) -> None:
    path = write_file(
        tmp_path / "t.json",
        (1, [10, 20, "wide", 160]),
        (2, [0, 0, 10**400, 5]),
        (77, GOOD),
        (3, [10, 20, 8, 16]),
        categories=[{"id": [2], "name": "odd"}, None, {"id": 1, "name": "thorax"}],
    )
    films = [fault.film for fault in check_file(path)[0]]
    assert films == [
        "category 1",
        "category 2",
        "annotation 3",
        "0001 a.png",
        "0002 b.png",
        "0003 c.png",
    ]


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', "[" * 100_000])
def test_a_file_that_is_no_coco_file_is_a_fault(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    assert {fault.film for fault in check_file(path)[0]} == {str(path)}


def test_a_colon_in_a_name_is_part_of_it(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "a: b.png", "width": 100, "height": 200}
    path = write_file(tmp_path / "t.json", (1, [90, 20, -80, 160]), images=[image])
    assert [fault.film for fault in check_file(path)[0]] == ["0001 a: b.png"]


PIXELS = np.random.default_rng(0).integers(0, 255, (400, 400), np.uint8)


def put_films(folder: Path, **sizes_hw: tuple[int, int]) -> Path:
    """PNG films such as a=(200, 100) in a new folder."""
    folder.mkdir()
    for name, size_hw in sizes_hw.items():
        cv2.imwrite(str(folder / f"{name}.png"), PIXELS[: size_hw[0], : size_hw[1]])
    return folder


def test_a_film_missing_and_one_of_another_size(tmp_path: Path) -> None:
    films = put_films(tmp_path / "films", a=SIZE_HW, c=(100, 200))
    path = write_file(tmp_path / "t.json", (1, GOOD))
    assert said(check_file(path, films)[0]) == [
        "0002 b.png: the film is missing",
        "0003 c.png: the film is 200 × 100 px, the file says 100 × 200",
    ]


def test_a_film_merged_by_its_base_name_is_found_under_another_suffix(tmp_path: Path) -> None:
    films = put_films(tmp_path / "films", a=SIZE_HW, c=SIZE_HW)
    (films / "deep").mkdir()
    (films / "c.png").rename(films / "deep/c.png")
    cv2.imwrite(str(films / "deep/d.jpg"), PIXELS[:200, :100])
    names = ("a.png", "c.jpeg", "d.jpeg", "e.jpeg", "a.jpeg")  # a.png is another film's already
    images = [
        {"id": i, "file_name": n, "width": 100, "height": 200} for i, n in enumerate(names, 1)
    ]
    path = write_file(tmp_path / "t.json", (1, GOOD), images=images)
    missing = ["0004 e.jpeg: the film is missing", "0005 a.jpeg: the film is missing"]
    assert said(check_file(path, films)[0]) == missing
    cv2.imwrite(str(films / "d.png"), PIXELS[:200, :100])  # two may be d.jpeg now
    assert said(check_file(path, films)[0]) == ["0003 d.jpeg: the film is missing", *missing]


def test_a_wrong_folder_is_one_line(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.json", (1, GOOD))
    for folder in (put_films(tmp_path / "empty"), tmp_path / "none"):
        assert said(check_file(path, folder)[0]) == [
            f"{folder}: none of the 3 films is in this folder"
        ]


def test_a_film_is_known_by_its_hash(tmp_path: Path) -> None:
    films = put_films(tmp_path / "films", a=SIZE_HW, b=(400, 200), c=(400, 200))
    images = [
        {"id": i, "file_name": name, "width": 200, "height": 400, "sha256": digest}
        for i, (name, digest) in enumerate(
            # a smaller copy that was boxed itself, a changed film, one whose hash is unknown
            [("a.png", sha256_file(films / "a.png")), ("b.png", "0" * 64), ("c.png", "")],
            start=1,
        )
    ]
    path = write_file(tmp_path / "t.json", (1, [20, 40, 160, 320]), images=images)
    assert said(check_file(path, films)[0]) == [
        "0002 b.png: the film has changed since it was boxed"
    ]
    assert check_file(path, films, hashes=False)[0] == []


# The command


def test_no_faults_is_one_line(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.set_answer(session.films[1], flags=["not frontal"])
    session.set_answer(session.films[2], flags=["doubtful"])
    assert run(CheckConfig((str(session.path),))) == 0
    assert capsys.readouterr().out == (
        "no faults in 4 films, 1 box; 2 still to do (1 of them doubtful), 1 skipped\n"
    )


def test_faults_are_a_line_each(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    redraw(session, 1, label="[red]lung")
    session.film_path(session.films[3]).unlink()
    assert run(CheckConfig((str(session.path),))) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:10] for line in lines[:2]] == ["0001 a.png", "0004 d.png"]
    assert "'[red]lung'" in lines[0]
    assert lines[2:] == ["2 faults in 4 films, 1 box; 3 still to do"]


def test_a_file_and_a_session_together(
    session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_file(tmp_path / "t.json", (1, GOOD), (2, [90, 20, -80, 160]))
    assert run(CheckConfig((str(path), str(session.path)))) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[1] == f"{path}: 1 fault in 3 films, 2 boxes; 1 without a box"
    assert out[2] == f"{session.path}: no faults in 4 films, 1 box; 3 still to do"


def test_what_is_neither_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(CheckConfig((str(tmp_path),))) == 1
    assert "which is neither" in capsys.readouterr().err


def test_arguments_that_do_not_fit(session: Session) -> None:
    with pytest.raises(ValueError, match="Got none"):
        CheckConfig()
    with pytest.raises(ValueError, match="--films must stand beside a COCO file"):
        CheckConfig((str(session.path),), films="films")

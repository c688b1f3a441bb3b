"""Sessions merged into one COCO file: which boxes go in, whose counts, in which pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from labelling_merging import (  # noqa: F401 - fixtures too
    BOX_A,
    BOX_B,
    DATE_A,
    DATE_B,
    MEAN,
    do_merge,
    draw,
    into,
    locks,
    only_note,
    session_of,
)

from cxr.cli import build_parser
from cxr.coco import find_faults, read_coco
from labelling import Session
from labelling.merge import MergeConfig, listed_name, run
from labelling.merged_file import Contributor, choose, combine


def test_a_merged_box_says_whose_it_is(into: Path, session_of: Callable[..., Session]) -> None:
    session = session_of(
        "anna",
        {"1.png": BOX_A},
        patients={"1.png": "p1"},
        labels={"1.png": "normal"},
        sources={"1.png": "kermany"},
    )
    assert do_merge(into, session) == 0
    data = json.loads(into.read_text())
    assert find_faults(data) == []
    assert data["categories"] == [{"id": 1, "name": "thorax"}]
    assert data["images"] == [
        {
            "id": 1,
            "file_name": "1.png",
            "width": 120,
            "height": 160,
            "label": "normal",
            "patient_id": "p1",
            "source": "kermany",
            "annotator": "anna",
            "sha256": session.films[0].sha256,
        }
    ]
    bbox = [20.0, 30.0, 60.0, 80.0]
    assert data["annotations"] == [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": bbox,
            "area": 4800.0,
            "iscrowd": 0,
            "bbox_fraction": [0.166667, 0.1875, 0.5, 0.5],
            "provenance": [
                {
                    "annotator": "anna",
                    "date": DATE_A,
                    "prelabelled": False,
                    "action": "drawn",
                    "session": session.session_id,
                    "bbox": bbox,
                }
            ],
        }
    ]
    assert read_coco(into).films[0].patient_id == "p1"


def test_each_action_is_named_and_what_no_human_saw_stays_out(
    into: Path, session_of: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = dict.fromkeys(("1.png", "2.png", "3.png", "4.png", "5.png"))
    prelabels = {name: BOX_A for name in ("1.png", "2.png", "4.png")}
    session = session_of("anna", boxes, prelabels=prelabels)
    session.set_answer(session.films[0], flags=["accepted"])
    session.set_answer(session.films[1], xyxy=BOX_B)
    session.set_answer(session.films[2], xyxy=BOX_A, flags=["not frontal"])
    session.set_answer(session.films[4], xyxy=BOX_B)
    assert do_merge(into, session) == 0
    data = json.loads(into.read_text())
    assert [i["file_name"] for i in data["images"]] == ["1.png", "2.png", "5.png"]
    entries = [n["provenance"][0] for n in data["annotations"]]
    assert [(e["action"], e["prelabelled"]) for e in entries] == [
        ("accepted", True),
        ("corrected", True),
        ("drawn", False),
    ]
    said = capsys.readouterr().out
    assert (
        "films: 3 merged (1 accepted, 1 corrected, 1 drawn), 0 unchanged, 1 skipped "
        "(1 not frontal), 1 todo"
    ) in said


def test_nothing_done_makes_no_file(into: Path, session_of: Callable[..., Session]) -> None:
    assert do_merge(into, session_of("anna", {"1.png": None})) == 0
    assert not into.exists()


@pytest.mark.parametrize(
    ("policy", "bbox", "whose"),
    [
        ("newest", [24, 34, 66, 66], "ben"),
        ("first", [20, 30, 60, 80], "anna"),
        ("mean", MEAN, "anna, ben"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_policies_by_hand(
    into: Path,
    session_of: Callable[..., Session],
    policy: str,
    bbox: list,
    whose: str,
    together: bool,
) -> None:
    anna = session_of("anna", {"1.png": BOX_A})
    ben = session_of("ben", {"1.png": BOX_B}, DATE_B)
    if together:
        assert do_merge(into, anna, ben, policy=policy) == 0
    else:
        assert do_merge(into, anna) == do_merge(into, ben, policy=policy) == 0
    note = only_note(into)
    assert note["bbox"] == bbox and note["area"] == bbox[2] * bbox[3]
    assert note["bbox_fraction"][2] == round(bbox[2] / 120, 6)
    # nothing is lost: both boxes stand there, and the mean can be computed again
    assert [e["bbox"] for e in note["provenance"]] == [[20, 30, 60, 80], [24, 34, 66, 66]]
    assert json.loads(into.read_text())["images"][0]["annotator"] == whose


@pytest.mark.parametrize("policy", ["refuse", "newest", "first", "mean"])
def test_merging_twice_changes_nothing(
    into: Path, session_of: Callable[..., Session], policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    anna = session_of("anna", {"1.png": BOX_A, "2.png": (10.1234, 20.5678, 90.9, 140.3)})
    sessions = [anna]
    if policy != "refuse":
        sessions.append(session_of("ben", {"1.png": BOX_B, "2.png": (11.1, 21.2, 93.3, 141.4)}))
    assert do_merge(into, *sessions, policy=policy) == 0
    before = into.read_bytes()
    for again in (sessions, sessions[:1], sessions[::-1]):
        assert do_merge(into, *again, policy=policy) == 0
        assert "nothing to change" in capsys.readouterr().out
    assert into.read_bytes() == before
    assert [p.name for p in into.parent.iterdir()] == ["thorax.json"]


def test_another_policy_is_computed_from_what_is_stored(
    into: Path, session_of: Callable[..., Session]
) -> None:
    anna = session_of("anna", {"1.png": BOX_A})
    ben = session_of("ben", {"1.png": BOX_B}, DATE_B)
    assert do_merge(into, anna, ben, policy="newest") == 0
    assert do_merge(into, anna, policy="mean") == 0
    assert only_note(into)["bbox"] == MEAN
    assert do_merge(into, ben, anna, policy="first") == 0
    assert only_note(into)["bbox"] == [20, 30, 60, 80]


def test_two_sessions_with_the_same_box_are_two_all_the_same(
    into: Path, session_of: Callable[..., Session]
) -> None:
    anna, ben = session_of("anna", {"1.png": BOX_A}), session_of("ben", {"1.png": BOX_A})
    assert do_merge(into, anna, ben) == 1
    assert not into.exists()


def test_the_same_film_under_another_name_is_found_by_its_content(
    into: Path, session_of: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    anna, ben = session_of("anna", {"1.png": BOX_A}), session_of("ben", {"other1.png": BOX_B})
    assert do_merge(into, anna, ben) == 1
    assert capsys.readouterr().err.startswith("1.png = other1.png: anna's box")
    assert do_merge(into, anna, ben, policy="mean") == 0
    assert [i["file_name"] for i in json.loads(into.read_text())["images"]] == ["1.png"]
    assert only_note(into)["bbox"] == MEAN
    assert "listed once: 1.png = other1.png" in capsys.readouterr().out


def test_two_films_of_one_name_are_never_averaged(
    into: Path, session_of: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    session = session_of("anna", {"a/1.png": BOX_A, "b/1.png": BOX_B})
    other = session_of("ben", {"x2/1.png": BOX_A})  # film 21, another content
    assert do_merge(into, session, other, policy="mean") == 0
    assert len(json.loads(into.read_text())["images"]) == 2  # a and b hold the same bytes
    clash = into.with_name("clash.json")
    assert do_merge(clash, session, other, policy="mean", names="base") == 1
    assert "two different films have this name, x2/1.png and a/1.png" in capsys.readouterr().err
    assert not clash.exists()


def test_a_box_corrected_later_replaces_its_own_but_with_first(
    into: Path, session_of: Callable[..., Session]
) -> None:
    anna = session_of("anna", {"1.png": BOX_A})
    assert do_merge(into, anna) == 0
    draw(anna, 1, (20.4, 30.0, 80.0, 110.0), DATE_B)  # within half a pixel
    anna = Session.open(anna.path)
    before = into.read_bytes()
    assert do_merge(into, anna) == 0 and into.read_bytes() == before
    draw(anna, 1, BOX_B, DATE_B)
    anna = Session.open(anna.path)
    assert do_merge(into, anna) == 1
    assert do_merge(into, anna, policy="first") == 0 and into.read_bytes() == before
    for policy in ("mean", "newest"):
        assert do_merge(into, anna, policy=policy) == 0
        note = only_note(into)
        assert note["bbox"] == [24, 34, 66, 66] and len(note["provenance"]) == 1
        assert note["provenance"][0]["date"] == DATE_B
    assert do_merge(into, anna) == 0


def test_a_box_sent_back_later_stays_and_is_named(
    into: Path, session_of: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    anna = session_of("anna", {"1.png": BOX_A})
    assert do_merge(into, anna) == 0
    anna.set_answer(anna.films[0], flags=["doubtful"])
    assert do_merge(into, anna) == 0
    assert "merged before, todo or skipped now, their boxes stay: 1.png" in capsys.readouterr().out


def test_classes_are_kept_and_have_no_mean(
    into: Path, session_of: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    classes = ("normal", "pneumonia")
    anna = session_of("anna", {"1.png": BOX_A}, classes=classes)
    ben = session_of("ben", {"1.png": None}, classes=classes)
    ben.set_answer(ben.films[0], xyxy=BOX_B, label="pneumonia")
    assert do_merge(into, anna, ben, policy="mean") == 1
    assert "classes normal and pneumonia, of which there is no mean" in capsys.readouterr().err
    assert do_merge(into, anna, ben, policy="newest") == 0
    note = only_note(into)
    assert note["category_id"] == 2 and note["provenance"][0]["category"] == "normal"
    assert do_merge(into, anna, policy="first") == 0
    note = only_note(into)
    assert note["category_id"] == 1 and note["provenance"][1]["category"] == "pneumonia"


def test_a_faulty_answer_stops_the_merge(
    into: Path, session_of: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    anna = session_of("anna", {"1.png": BOX_A, "2.png": BOX_A})
    anna.label_path(anna.films[1]).write_text("{")
    assert do_merge(into, anna) == 1
    said = capsys.readouterr().err
    assert "anna: 2.png: not JSON" in said and "annotate.py check" in said
    assert not into.exists()


def test_boxes_at_the_original_size_with_the_public_names(
    into: Path, session_of: Callable[..., Session]
) -> None:
    # labelled at 120 × 160 px; in the public set 1000 × 1336: 8.3333 along x, 8.35 along y
    anna = session_of("anna", {"images/1.png": BOX_A}, original_hw=(1336, 1000), view_side=512)
    assert do_merge(into, anna, size="original", names="base", suffix=".jpeg") == 0
    image = json.loads(into.read_text())["images"][0]
    assert (image["file_name"], image["width"], image["height"]) == ("1.jpeg", 1000, 1336)
    note = only_note(into)
    exact = [166.667, 250.5, 500, 668]
    np.testing.assert_allclose(note["bbox"], exact, atol=0.5)
    np.testing.assert_allclose(note["provenance"][0]["bbox"], exact, atol=0.5)
    np.testing.assert_allclose(note["bbox_fraction"], [1 / 6, 0.1875, 0.5, 0.5], atol=5e-4)
    assert do_merge(into, anna, size="film", names="base", suffix=".jpeg") == 1


def test_films_without_or_with_another_original_size_are_named(
    into: Path, session_of: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    anna = session_of("anna", {"1.png": BOX_A})
    ben = session_of("ben", {"2.png": BOX_A}, original_hw=(1000, 1336))
    assert do_merge(into, anna, ben, size="original") == 1
    said = capsys.readouterr().err
    assert "anna: 1.png: its original size is unknown" in said
    assert "ben: 2.png: new_hw of scale_xyxy must keep the aspect ratio" in said
    assert not into.exists()


def test_names_by_hand() -> None:
    base = MergeConfig(("s",), names="base", suffix=".jpeg")
    assert listed_name("images/kermany/IM-0117-0001.jpg", base) == "IM-0117-0001.jpeg"
    assert listed_name("a/1.2.840.113", base) == "1.2.840.113.jpeg"  # a UID has no suffix
    path = MergeConfig(("s",))
    assert listed_name("images/kermany/IM-0117-0001.jpg", path) == "images/kermany/IM-0117-0001.jpg"


@pytest.mark.parametrize(
    "wrong",
    [{"policy": "latest"}, {"size": "big"}, {"names": "x"}, {"suffix": "jpeg"}, {"session": ()}],
)
def test_wrong_arguments_are_named(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        MergeConfig(**{"session": ("s",), **wrong})


def test_the_config_makes_a_command_with_help() -> None:
    help_text = build_parser(MergeConfig, "merge", "merge s", ("session",)).format_help()
    assert all(word in help_text for word in ("--into", "--policy", "--suffix", "backup"))


def test_no_session_there_is_said(into: Path, tmp_path: Path) -> None:
    assert run(MergeConfig((str(tmp_path / "none"),), str(into))) == 1


def test_a_mean_is_computed_from_all_boxes_once() -> None:
    one = Contributor("a", "", False, "drawn", "s", (0.0, 0.0, 10.0, 20.0), "thorax")
    boxes = [(0.0, 0.0, 10.0, 20.0), (3.0, 6.0, 10.0, 20.0), (6.0, 0.0, 10.0, 23.0)]
    new = [Contributor(n, "", False, "drawn", n, b, "thorax") for n, b in zip("abc", boxes)]
    all_of_them = combine([one], [*new, *new], "mean")
    assert len(all_of_them) == 4  # a's two sessions, b and c
    assert choose(all_of_them[1:], "mean").bbox == (3, 2, 10, 21)

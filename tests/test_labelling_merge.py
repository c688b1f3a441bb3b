"""Sessions merged into one COCO file: whose box counts, and what a kill or a conflict leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from labelling_sessions import make_session

from cxr.cli import build_parser
from cxr.coco import find_faults, read_coco
from labelling import merge
from labelling.merge import MergeConfig, listed_name, run
from labelling.merge_rules import Contributor, choose, combine
from labelling.session import Session

BOX_A, BOX_B = (20.0, 30.0, 80.0, 110.0), (24.0, 34.0, 90.0, 100.0)
MEAN = [22.0, 32.0, 63.0, 73.0]  # edges 22, 32, 85, 105
DATE_A, DATE_B = "2025-03-01T10:00:00+00:00", "2025-03-02T09:00:00+00:00"


def film(number: int) -> np.ndarray:
    """(160, 120) film; each number has other pixels, and so another file."""
    return np.full((160, 120), 0.1 + 0.01 * number, np.float32)


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of this test's files, which merge leaves with the temporary files."""
    (tmp_path / "locks").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "locks"))  # for the processes that are killed
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "locks"))


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "annotations/thorax.json"


@pytest.fixture
def session_of(tmp_path: Path) -> Callable[..., Session]:
    """A session of one annotator on films of these names, whose boxes are answered."""

    def build(
        annotator: str, boxes: dict[str, tuple[float, ...] | None], date: str = DATE_A, **options
    ) -> Session:
        films = [(name, film(int("".join(filter(str.isdigit, name))))) for name in boxes]
        session = make_session(tmp_path / annotator, films, annotator=annotator, **options)
        for entry in session.films:
            if boxes[entry.film]:
                draw(session, entry.number, boxes[entry.film], date)
        return session

    return build


def draw(session: Session, number: int, box: tuple[float, ...] | None, date: str) -> None:
    """Answer for a film at a given time."""
    entry = session.films[number - 1]
    session.set_answer(entry, xyxy=box)
    history = session.path / "history.jsonl"
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    lines[-1]["time"] = date
    history.write_text("".join(json.dumps(line) + "\n" for line in lines))


def do_merge(into: Path, *sessions: Session, **options: str) -> int:
    return run(MergeConfig(tuple(str(s.path) for s in sessions), str(into), **options))


def only_note(into: Path) -> dict:
    (note,) = json.loads(into.read_text())["annotations"]
    return note


def test_a_merged_box_says_whose_it_is(into: Path, session_of: Callable[..., Session]) -> None:
    session = session_of("anna", {"1.png": BOX_A}, patients={"1.png": "p1"},
                         labels={"1.png": "normal"}, sources={"1.png": "kermany"})  # fmt: skip
    assert do_merge(into, session) == 0
    data = json.loads(into.read_text())
    assert find_faults(data) == []
    assert data["categories"] == [{"id": 1, "name": "thorax"}]
    assert data["images"] == [{
        "id": 1, "file_name": "1.png", "width": 120, "height": 160, "label": "normal",
        "patient_id": "p1", "source": "kermany", "annotator": "anna",
        "sha256": session.films[0].sha256,
    }]  # fmt: skip
    bbox = [20.0, 30.0, 60.0, 80.0]
    assert data["annotations"] == [{
        "id": 1, "image_id": 1, "category_id": 1, "bbox": bbox, "area": 4800.0, "iscrowd": 0,
        "bbox_fraction": [0.166667, 0.1875, 0.5, 0.5],
        "provenance": [{"annotator": "anna", "date": DATE_A, "prelabelled": False,
                        "action": "drawn", "session": session.session_id, "bbox": bbox}],
    }]  # fmt: skip
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
        ("accepted", True), ("corrected", True), ("drawn", False),
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert ("films: 3 merged (1 accepted, 1 corrected, 1 drawn), 0 unchanged, 1 skipped "
            "(1 not frontal), 1 todo") in said  # fmt: skip


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
    into: Path, session_of: Callable[..., Session], policy: str, bbox: list, whose: str,
    together: bool,
) -> None:  # fmt: skip
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
    into: Path, session_of: Callable[..., Session], policy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
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


def test_refused_conflicts_are_named_and_leave_every_byte(
    into: Path, session_of: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    assert do_merge(into, session_of("anna", {"1.png": BOX_A})) == 0
    before = into.read_bytes()
    ben = session_of("ben", {"1.png": BOX_B, "2.png": BOX_B}, DATE_B)
    assert do_merge(into, ben) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == (
        "1.png: anna's box of 2025-03-01 10:00 (thorax 20.0, 30.0, 80.0, 110.0) stands, ben's box "
        "of 2025-03-02 09:00 (thorax 24.0, 34.0, 90.0, 100.0) is new: --policy newest|mean|first"
    )
    assert len(said) == 2 and "nothing was written" in said[1]
    assert into.read_bytes() == before and len(list(into.parent.iterdir())) == 1


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


HAND_MADE = {
    "info": {"description": "by hand", "version": 3}, "licenses": [{"id": 1, "name": "CC BY"}],
    "categories": [{"id": 7, "name": "thorax", "supercategory": "chest"}],
    "images": [
        {"id": 40, "file_name": "1.png", "width": 120, "height": 160, "annotator": "old hand"},
        {"id": 12, "file_name": "leg.png", "width": 50, "height": 60, "note": "no thorax"},
    ],
    "annotations": [{"id": 90, "image_id": 40, "category_id": 7, "bbox": [20, 30, 60, 80],
                     "segmentation": [[1, 2, 3, 4, 5, 6]]}],
}  # fmt: skip


@pytest.fixture
def hand_made(into: Path) -> Path:
    into.parent.mkdir()
    into.write_text(json.dumps(HAND_MADE))
    return into


def test_what_is_not_touched_stays_and_the_backup_is_the_old_file(
    hand_made: Path, session_of: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    before = hand_made.read_bytes()
    assert do_merge(hand_made, session_of("anna", {"3.png": BOX_B, "2.png": BOX_B})) == 0
    data = json.loads(hand_made.read_text())
    assert data["images"][:2] == HAND_MADE["images"]
    assert data["annotations"][:1] == HAND_MADE["annotations"]
    assert all(data[k] == HAND_MADE[k] for k in ("info", "licenses", "categories"))
    assert [(i["id"], i["file_name"]) for i in data["images"][2:]] == [(41, "2.png"), (42, "3.png")]
    assert [(n["id"], n["image_id"], n["category_id"]) for n in data["annotations"][1:]] == [
        (91, 41, 7), (92, 42, 7),
    ]  # fmt: skip
    assert hand_made.with_name("thorax.json.bak").read_bytes() == before
    assert "thorax.json.bak" in capsys.readouterr().out


def test_a_box_without_provenance_is_a_contributor_from_before(
    hand_made: Path, session_of: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    anna = session_of("anna", {"1.png": BOX_B})
    assert do_merge(hand_made, anna) == 1
    assert "1.png: a box of unknown origin (thorax 20.0, 30.0" in capsys.readouterr().err
    assert do_merge(hand_made, anna, policy="mean") == 0
    note = only_note(hand_made)
    assert note["bbox"] == MEAN and note["id"] == 90 and note["segmentation"]
    assert note["provenance"][0] == {
        "annotator": "old hand", "date": "", "prelabelled": False, "action": "before",
        "session": "before", "bbox": [20, 30, 60, 80],
    }  # fmt: skip
    for policy, left in (("newest", 24), ("first", 20)):
        assert do_merge(hand_made, anna, policy=policy) == 0
        assert only_note(hand_made)["bbox"][0] == left


def test_a_box_without_provenance_that_agrees_is_no_conflict(
    hand_made: Path, session_of: Callable[..., Session]
) -> None:
    before = hand_made.read_bytes()
    assert do_merge(hand_made, session_of("anna", {"1.png": (20.5, 30, 80, 109.5)})) == 0
    assert hand_made.read_bytes() == before


def test_a_box_changed_by_hand_after_merging_is_not_overwritten(
    into: Path, session_of: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    anna = session_of("anna", {"1.png": BOX_A})
    assert do_merge(into, anna) == 0
    text = into.read_text().replace("20.0,", "28.0,", 1)
    into.write_text(text)
    assert do_merge(into, anna, policy="newest") == 1
    assert "was changed by hand since" in capsys.readouterr().err
    assert into.read_text() == text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"categories": [{"id": 7, "name": "lung"}]}, "must have the session's classes"),
        ({"annotations": []}, "lists it with no box, as a film without a thorax"),
        ({"annotations": HAND_MADE["annotations"] * 2}, "lists it with 2 boxes"),
        ({"images": [{**HAND_MADE["images"][0], "width": 240, "height": 320}]}, "one --size"),
        ({"images": [{**HAND_MADE["images"][0], "sha256": "0" * 64}]}, "two different films"),
        ({"annotations": [{**HAND_MADE["annotations"][0], "provenance": [{"bbox": 3}]}]},
         "each entry of provenance must have"),
        ({"images": 3}, "images must be a list"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_every_policy(
    into: Path, session_of: Callable[..., Session], capsys: pytest.CaptureFixture[str],
    change: dict, says: str,
) -> None:  # fmt: skip
    into.parent.mkdir()
    into.write_text(json.dumps({**HAND_MADE, **change}))
    before = into.read_bytes()
    anna = session_of("anna", {"1.png": BOX_A})
    for policy in ("refuse", "newest", "mean", "first"):
        assert do_merge(into, anna, policy=policy) == 1
        assert says in capsys.readouterr().err
    assert into.read_bytes() == before and len(list(into.parent.iterdir())) == 1


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


DRIVER = """
import os, sys, time
from pathlib import Path
real = os.replace
def replace(a, b):
    if Path(b).name == sys.argv[1]:
        print("writing", flush=True)
        time.sleep(60)
    real(a, b)
os.replace = replace
from labelling.merge import MergeConfig, run
sys.exit(run(MergeConfig((sys.argv[2],), sys.argv[3])))
"""


@pytest.mark.parametrize("at", ["thorax.json.bak", "thorax.json"])
def test_a_kill_while_writing_leaves_the_old_file_whole(
    root: Path, hand_made: Path, session_of: Callable[..., Session], at: str
) -> None:
    before = hand_made.read_bytes()
    anna = session_of("anna", {"2.png": BOX_B})
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, at, str(anna.path), str(hand_made)],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tools'}"},
    )  # fmt: skip
    with process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert hand_made.read_bytes() == before
    assert any(p.name.startswith(f".{at}.") for p in hand_made.parent.iterdir())  # it was writing
    assert do_merge(hand_made, anna) == 0  # neither the lock nor what lies about stops the next
    assert {p.name for p in hand_made.parent.iterdir()} == {"thorax.json", "thorax.json.bak"}
    assert hand_made.with_name("thorax.json.bak").read_bytes() == before
    assert len(read_coco(hand_made).films) == 3


def test_two_merges_do_not_interleave(
    hand_made: Path, session_of: Callable[..., Session], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(merge, "LOCK_WAIT_S", 0.1)
    before = hand_made.read_bytes()
    anna = session_of("anna", {"2.png": BOX_B})
    with merge.alone_with(hand_made):
        assert do_merge(hand_made, anna) == 1
    assert "another merge" in capsys.readouterr().err
    assert hand_made.read_bytes() == before
    assert do_merge(hand_made, anna) == 0


def test_a_link_is_written_through(hand_made: Path, session_of: Callable[..., Session]) -> None:
    link = hand_made.with_name("link.json")
    link.symlink_to(hand_made)
    assert do_merge(link, session_of("anna", {"2.png": BOX_B})) == 0
    assert link.is_symlink() and len(read_coco(hand_made).films) == 3

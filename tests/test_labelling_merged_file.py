"""The file that is merged into: what stands in it, what a conflict leaves, and what a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from labelling_merging import (  # noqa: F401 - fixtures too
    BOX_A,
    BOX_B,
    DATE_B,
    HAND_MADE,
    MEAN,
    do_merge,
    hand_made,
    into,
    locks,
    only_note,
    session_of,
)

from cxr.coco import read_coco
from labelling import Session, merge


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
        (91, 41, 7),
        (92, 42, 7),
    ]
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
        "annotator": "old hand",
        "date": "",
        "prelabelled": False,
        "action": "before",
        "session": "before",
        "bbox": [20, 30, 60, 80],
    }
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
        (
            {"annotations": [{**HAND_MADE["annotations"][0], "provenance": [{"bbox": 3}]}]},
            "each entry of provenance must have",
        ),
        ({"images": 3}, "images must be a list"),
    ],
)
def test_what_does_not_fit_is_refused_by_every_policy(
    into: Path,
    session_of: Callable[..., Session],
    capsys: pytest.CaptureFixture[str],
    change: dict,
    says: str,
) -> None:
    into.parent.mkdir()
    into.write_text(json.dumps({**HAND_MADE, **change}))
    before = into.read_bytes()
    anna = session_of("anna", {"1.png": BOX_A})
    for policy in ("refuse", "newest", "mean", "first"):
        assert do_merge(into, anna, policy=policy) == 1
        assert says in capsys.readouterr().err
    assert into.read_bytes() == before and len(list(into.parent.iterdir())) == 1


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
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tools'}"},
    )
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
    hand_made: Path,
    session_of: Callable[..., Session],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
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

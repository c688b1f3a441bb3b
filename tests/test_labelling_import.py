"""The import command: into a COCO file and into a session."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from labelling_labels import make_set, read_voc, save, session, voc_text
from labelling_sessions import make_session

import labelling
from cxr.coco import CocoFilm, CocoSet, read_coco
from labelling import Session
from labelling.exchange import FORMATS, ExportConfig, ImportConfig, run_export, run_import

__all__ = ["session"]


# The import command


def test_import_names_what_is_unusable_and_goes_on(tmp_path, capsys):
    read_voc(tmp_path, voc_text(box="1 2 9 8"))
    (tmp_path / "labels/b.xml").write_text("<annotation>")
    into = tmp_path / "into.json"
    config = ImportConfig((str(tmp_path / "labels"),), "voc", into=str(into), annotator="mk")
    assert run_import(config) == 1
    assert "unusable  b.xml: not XML" in capsys.readouterr().out
    [film] = read_coco(into).films
    assert film.extra["annotator"] == "mk"


def test_import_replaces_a_file_only_when_told(tmp_path, capsys):
    read_voc(tmp_path, voc_text(box="1 2 9 8"))
    into = tmp_path / "into.json"
    into.write_text("mine")
    labels = (str(tmp_path / "labels"),)
    assert run_import(ImportConfig(labels, "voc", into=str(into))) == 1
    assert into.read_text() == "mine"
    assert "--overwrite" in capsys.readouterr().err
    assert run_import(ImportConfig(labels, "voc", into=str(into), overwrite=True)) == 0


def test_import_writes_nothing_when_nothing_is_usable(tmp_path, capsys):
    read_voc(tmp_path, "<annotation>")
    into = tmp_path / "into.json"
    assert run_import(ImportConfig((str(tmp_path / "labels"),), "voc", into=str(into))) == 1
    assert not into.exists()
    assert "was not written" in capsys.readouterr().err


def test_names_cannot_steer_the_terminal(tmp_path, capsys):
    read_voc(tmp_path, "")
    (tmp_path / "labels/\x1b[31m.xml").write_text("")
    run_import(ImportConfig((str(tmp_path / "labels"),), "voc", into=str(tmp_path / "i.json")))
    captured = capsys.readouterr()
    assert "\\x1b[31m.xml" in captured.out
    assert "\x1b[31m" not in captured.out


@pytest.mark.parametrize("path", ["s", "s/views"])
def test_a_session_is_no_folder_of_labels(path, session, tmp_path, capsys):
    config = ImportConfig((str(tmp_path / path),), "labelme", into=str(tmp_path / "i.json"))
    assert run_import(config) == 1
    assert "export the session" in capsys.readouterr().err


# Import into a session


def fill(session: Session, labels: Path, kind: str, **more) -> int:
    return run_import(
        ImportConfig((str(labels),), kind, session=str(session.path), annotator="a", **more)
    )


def empty_session(tmp_path: Path, names=("accepted.png", "drawn.png", "new.png")) -> Session:
    ramp_ = np.tile(np.linspace(0, 1, 100), (60, 1))
    return make_session(
        tmp_path / "t", [(n, ramp_) for n in names], {n: (5, 5, 50, 50) for n in names}
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_a_session_is_filled_through_every_format(kind, session, tmp_path):
    out = tmp_path / "out"
    assert run_export(ExportConfig((str(session.path),), kind, str(out))) == 0
    target = empty_session(tmp_path)
    assert fill(target, out, kind) == 0
    answers = {f.film: a for f, a in Session.open(target.path).answers()}
    assert [answers[n].state for n in answers] == ["corrected", "corrected", "todo"]
    assert answers["drawn.png"].via == "import"
    box = answers["drawn.png"].box
    assert box is not None
    assert box.xyxy == pytest.approx((20, 15, 70, 45), abs=0.51)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_humans_box_is_kept_and_named(kind, session, tmp_path, capsys):
    out = tmp_path / "out"
    run_export(ExportConfig((str(session.path),), kind, str(out)))
    target = empty_session(tmp_path)
    target.set_answer(target.films[0], xyxy=(1, 2, 30, 40))
    target.set_answer(target.films[1], flags=["doubtful"])
    before = [target.label_path(f).read_bytes() for f in target.films]
    assert fill(target, out, kind) == 0
    assert [target.label_path(f).read_bytes() for f in target.films] == before
    captured = capsys.readouterr().out
    assert "kept      accepted.png" in captured and "kept      drawn.png" in captured
    assert "0 boxes set, 0 films skipped by their flags, 2 kept" in captured


def test_a_humans_box_is_kept_though_its_label_file_is_gone(session, tmp_path):
    out = tmp_path / "out"
    run_export(ExportConfig((str(session.path),), "voc", str(out)))
    target = empty_session(tmp_path, names=("drawn.png",))
    target.set_answer(target.films[0], xyxy=(1, 2, 30, 40))
    target.label_path(target.films[0]).unlink()
    assert fill(target, out, "voc") == 0
    box = Session.open(target.path).answers()[0][1].box
    assert box is not None
    assert box.xyxy == pytest.approx((1, 2, 30, 40), abs=0.01)


def test_filling_twice_changes_nothing(session, tmp_path):
    out = tmp_path / "out"
    run_export(ExportConfig((str(session.path),), "voc", str(out)))
    target = empty_session(tmp_path)
    fill(target, out, "voc")
    before = (target.path / "history.jsonl").read_bytes()
    assert fill(target, out, "voc") == 0
    assert (target.path / "history.jsonl").read_bytes() == before


def test_films_that_the_session_does_not_know_are_named(session, tmp_path, capsys):
    out = tmp_path / "out"
    run_export(ExportConfig((str(session.path),), "voc", str(out)))
    target = empty_session(tmp_path, names=("drawn.png",))
    assert fill(target, out, "voc") == 0
    assert "unknown   accepted.png: not a film of this session" in capsys.readouterr().out


def test_a_pre_label_does_not_become_a_humans_box(session, tmp_path, capsys):
    out = tmp_path / "out"
    run_export(ExportConfig((str(session.path),), "labelme", str(out), all=True))
    target = empty_session(tmp_path, names=("todo.png",))
    assert fill(target, out, "labelme") == 0
    assert Session.open(target.path).answers()[0][1].state == "todo"
    assert "not set   todo.png: a detector's box" in capsys.readouterr().out


def test_flags_that_say_why_there_is_no_box_are_taken(tmp_path):
    target = empty_session(tmp_path, names=("side.png",))
    film = CocoFilm("side.png", (60, 100), np.zeros((0, 4)), (), {"flags": ["not frontal"]})
    source = save(tmp_path, CocoSet([film], ("thorax",)))
    assert fill(target, source, "coco") == 0
    answer = Session.open(target.path).answers()[0][1]
    assert (answer.state, answer.flags) == ("skipped", {"not frontal"})


def test_labels_without_a_box_are_left_to_a_human(tmp_path, capsys):
    target = empty_session(tmp_path, names=("leg.png",))
    source = save(tmp_path, make_set(tmp_path / "f", {"leg.png": ((60, 100), [])}))
    assert fill(target, source, "coco") == 0
    assert Session.open(target.path).answers()[0][1].state == "todo"
    assert "not set   leg.png" in capsys.readouterr().out


def test_two_boxes_for_a_film_of_a_session_are_refused(tmp_path, capsys):
    target = empty_session(tmp_path, names=("a.png",))
    boxes = [(1, 2, 9, 8), (20, 2, 30, 9)]
    source = save(tmp_path, make_set(tmp_path / "f", {"a.png": ((60, 100), boxes)}))
    assert fill(target, source, "coco") == 1
    assert "a.png: a session takes one box a film. Got 2" in capsys.readouterr().out


def test_films_may_be_named_from_another_folder(tmp_path):
    target = empty_session(tmp_path, names=("a.png",))
    source = save(
        tmp_path, make_set(tmp_path / "f", {"t-films/a.png": ((60, 100), [(1, 2, 9, 8)])})
    )
    assert fill(target, source, "coco", films=str(tmp_path)) == 0
    assert Session.open(target.path).answers()[0][1].state == "corrected"


def test_a_session_of_another_hand_is_not_filled(tmp_path, capsys):
    target = empty_session(tmp_path)
    source = save(tmp_path, make_set(tmp_path / "f", {"a.png": ((60, 100), [])}))
    config = ImportConfig((str(source),), "coco", session=str(target.path), annotator="b")
    assert run_import(config) == 1
    assert "annotator must be a" in capsys.readouterr().err


def test_a_session_in_use_is_not_filled(tmp_path, capsys):
    target = empty_session(tmp_path)
    source = save(tmp_path, make_set(tmp_path / "f", {"new.png": ((60, 100), [(1, 2, 9, 8)])}))
    with target.locked():
        assert fill(target, source, "coco") == 1
    assert "close that first" in capsys.readouterr().err


def test_an_import_killed_between_its_two_files_is_made_good(session, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_export(ExportConfig((str(session.path),), "voc", str(out)))
    target = empty_session(tmp_path)
    real = labelling.write_label_file

    def killed(path, *rest):
        if "0002" in path.name:
            raise KeyboardInterrupt
        return real(path, *rest)

    monkeypatch.setattr(labelling, "write_label_file", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(target, out, "voc")
    monkeypatch.undo()
    assert fill(target, out, "voc") == 0
    lines = [json.loads(x) for x in (target.path / "history.jsonl").read_text().splitlines()]
    assert [(line["number"], line["state"], line["via"]) for line in lines] == [
        (1, "corrected", "import"),
        (2, "corrected", "import"),
    ]
    assert [a.state for _, a in target.answers()] == ["corrected", "corrected", "todo"]

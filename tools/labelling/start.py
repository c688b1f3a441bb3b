"""annotate.py start: make a session or go on with it, and open labelme at the next film."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console
from rich.markup import escape

from cxr.rules import in_words, require
from cxr.workdir import log, provenance, sha256_file, write_atomic, write_json
from labelling.prepare import (
    absolute,
    add_films,
    draw_prelabels,
    find_candidates,
    parse_sample,
    prepare_films,
    renew_prelabels,
    sample_films,
)
from labelling.session import (
    FLAGS,
    PRELABELLED,
    SCHEMA,
    VERSION,
    Session,
    SessionFilm,
    count_states,
    is_session,
    split_names,
    write_films,
)

HINTS = """\
In labelme:  D next film, A the one before; every change is saved by itself.
  the box is right      tick «accepted» among the flags
  the box is wrong      drag its corners (Ctrl+J edits), or Delete it and draw one with Ctrl+R
  no box can be drawn   tick «unreadable» or «not frontal»
  a box does not count  tick its own flag «ignore» (Ctrl+E edits the label)
Close the window at any time; the same command goes on at the next film without an answer."""


@dataclass(frozen=True)
class StartConfig:
    """Make a labelling session, or go on with it, and open labelme at the first film without a
    human's box. Films are DICOM, PNG, JPEG or TIFF of any depth; boxes come back in their pixels.

    Args:
        films: folders, files, or a table (CSV with image, patient_id, label); may be left out to
            go on with a session.
        session: the session's folder; made if it is not there.
        annotator: who draws; kept with each box.
        sample: so many films of each label, such as normal=200,pneumonia=200, from as many
            patients as there are. Needs a table.
        table: CSV with image, patient_id and label for films given as folders.
        source: keep the table's films of this source only.
        prelabel: a detector's weights, such as weights/thorax_lite0.safetensors: its box is drawn
            beforehand, and counts only when a human moves or accepts it.
        order: films to ask first. Default: uncertain with a pre-label, else path.
        classes: the label of the box, or several with commas between, such as normal,pneumonia.
        open: open labelme; with false the session is only prepared.
        film: open labelme at the film of this number instead.
        seed: of the sample and of the random order.
    """

    films: tuple[str, ...] = ()
    session: str = ""
    annotator: str = ""
    sample: str = ""
    table: str = ""
    source: str = ""
    prelabel: str = ""
    order: Literal["uncertain", "random", "path"] | None = None
    classes: str = ""
    open: bool = True
    film: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.session:
            rule = "session must be the folder of the session, such as --session sessions/first"
            raise ValueError(f"{rule}. Got none.")
        parse_sample(self.sample)
        if self.order == "uncertain" and not self.prelabel and not is_session(self.session):
            raise ValueError(
                "order uncertain needs a detector to be uncertain: add --prelabel "
                "weights/thorax_lite0.safetensors."
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        return split_names(self.classes)


def run(config: StartConfig) -> int:
    """Prepare what is missing, open labelme, tell how far it is; 0 when that went well."""
    path = Path(config.session)
    try:
        detector = None
        if config.prelabel:  # late: without one nothing here needs torch
            from detect.finder import ThoraxFinder

            detector = ThoraxFinder.load(config.prelabel)
        new = not is_session(path)
        if new:
            create_session(config)
        session = Session.open(path)
        with session.locked():
            _check_same(session, config)
            session = add_missing(session, config, detector)
            lost = session.restore_lost()
            session.note_changes()
            weights = _hash(config.prelabel)
            if detector and not new and session.meta.get("prelabel") != weights:
                renew_prelabels(session, detector)
                write_json(path / "session.json", {**session.meta, "prelabel": weights})
            _report(session, lost)
            return _open_labelme(session, config) if config.open else 0
    except (FileNotFoundError, ValueError) as error:
        print(in_words(error), file=sys.stderr)
        return 1


def create_session(config: StartConfig) -> None:
    """Write session.json and an empty list of films; raises ValueError without films or name."""
    if not config.films:
        raise ValueError(f"films must be given to make the session '{config.session}'. Got none.")
    if not config.annotator.strip():
        raise ValueError(
            "annotator must be the name of who draws, such as --annotator mk. Got none."
        )
    path = Path(config.session)
    if path.exists() and any(path.iterdir()):
        rule = "session must be a new folder or a session"
        raise ValueError(f"{rule}. Got '{path}' instead, which holds other files.")
    root = find_candidates(config.films, config.table, config.source).root
    path.mkdir(parents=True, exist_ok=True)
    meta = {
        "schema": SCHEMA,
        "version": VERSION,
        "session_id": os.urandom(8).hex(),
        "annotator": config.annotator.strip(),
        "classes": list(config.class_names or ("thorax",)),
        "root": os.path.relpath(root, path),
        "order": config.order or ("uncertain" if config.prelabel else "path"),
        "seed": config.seed,
        "prelabel": _hash(config.prelabel),
        **provenance(),
    }
    write_films(path, [])
    write_json(path / "session.json", meta)


def _hash(weights: str) -> dict[str, str]:
    return {Path(weights).name: sha256_file(weights)} if weights else {}


def add_missing(session: Session, config: StartConfig, detector: Any) -> Session:
    """Prepare the films that the session does not hold yet; returns it opened anew."""
    path = session.path
    if config.films:
        found = find_candidates(config.films, config.table, config.source)
        for reason, number in found.passed_over.items():
            print(f"{number} files passed over: {reason}", file=sys.stderr)
        chosen = sample_films(found.films, parse_sample(config.sample), config.seed)
        known = {absolute(session.film_path(f)) for f in session.films}
        new = [film for film in chosen if absolute(film.film) not in known]
        if new:
            rows = prepare_films(path, new, absolute(session.root), detector)
            order = str(config.order or session.meta["order"])
            add_films(path, session.films, rows, order, int(session.meta["seed"]))
    shutil.rmtree(path / "prepared", ignore_errors=True)
    (path / "prepared.jsonl").unlink(missing_ok=True)
    session = Session.open(path)
    if not session.films:
        raise ValueError(f"films must be given: '{path}' holds none yet.")
    draw_prelabels(session)
    return session


def _open_labelme(session: Session, config: StartConfig) -> int:
    if config.film:
        film = next((f for f in session.films if f.number == config.film and f.view), None)
        last = len(session.films)
        rule = f"film must be the number of a readable film of the session, 1 to {last}"
        require(film is not None, rule, config.film)
    else:
        film = next((f for f, answer in session.answers() if f.view and not answer.done), None)
    if film is None:
        print("Every film has its answer. `annotate.py check` and `annotate.py merge` come next.")
        return 0
    screen = any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    screen = screen or not sys.platform.startswith("linux")  # there, a display must be named
    if not find_labelme() or not screen:
        why = "there is no screen to open labelme on" if find_labelme() else HOW_TO_INSTALL
        print(f"The session is prepared, but {why}.", file=sys.stderr)
        return 1
    print(HINTS)
    code = run_labelme(session, film)
    _report(Session.open(session.path), [])
    return code


def _check_same(session: Session, config: StartConfig) -> None:
    """A session keeps its annotator and its classes: the boxes in it were drawn under them."""
    for name, given, own in (
        ("annotator", config.annotator.strip(), session.annotator),
        ("classes", ", ".join(config.class_names), ", ".join(session.classes)),
    ):
        if given and given != own:
            fix = "make another session for other ones"
            raise ValueError(f"{name} of '{session.path}' is {own} and stays so; {fix}.")


def _report(session: Session, restored: list[SessionFilm]) -> None:
    counts = count_states(answer for _, answer in session.answers())
    console = Console(highlight=False)
    console.print(
        f"{counts['done']} of {counts['films'] - counts['unreadable']} films done, "
        f"{counts['todo']} to do · "
        f"{session.annotator} · {escape(str(session.path))}"
    )
    for film in restored:
        console.print(f"restored from the history: {escape(film.film)}")
    unreadable = [f for f in session.films if not f.view]
    for film in unreadable[:10]:
        console.print(f"left out: {escape(film.film)}: {escape(film.reason)}")
    if len(unreadable) > 10:
        console.print(f"left out: {len(unreadable) - 10} more; see `annotate.py status`")


POLL_SECONDS = 1.0
SLACK_SECONDS = 3.0  # file systems keep coarse times, and a file may have been half written
COLOURS = ([0, 220, 255], [255, 170, 0], [120, 255, 120])
HOW_TO_INSTALL = "labelme is missing: pip install -e .[annotate]"


def find_labelme() -> str:
    """The program beside this Python, or on the PATH; "" when there is none."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return shutil.which("labelme", path=os.pathsep.join(places)) or ""


def write_settings(session: Session) -> Path:
    """labelme's settings for this session: labels, flags, saving at each change."""
    settings = {
        "auto_save": True,
        "with_image_data": False,  # the view lies beside the label file
        "keep_prev": False,
        "display_label_popup": len(session.classes) > 1,
        "labels": list(session.classes),
        "validate_label": "exact",
        "sort_labels": False,
        "flags": list(FLAGS),
        "label_flags": {".*": [PRELABELLED, "ignore"]},
        "shape_color": "manual",  # labelme's own first colour is a dark red, lost on a dark film
        "label_colors": dict(zip(session.classes, cycle(COLOURS), strict=False)),
    }
    text = "# written by annotate.py start\n" + yaml.safe_dump(settings, sort_keys=False)
    return write_atomic(session.path / "labelme.yaml", text)


def run_labelme(session: Session, film: SessionFilm) -> int:
    """Open labelme at a film and wait till it is closed; returns its exit code.

    Each answer is noted in the history within a second of its being saved, so that a crash, of
    labelme or of the machine, costs at most the box that is being drawn.
    """
    settings, messages = write_settings(session), session.path / "labelme.log"
    ask = [find_labelme(), str(session.view_path(film)), "--config", str(settings)]
    seen = time.time()
    with messages.open("ab") as output:
        process = subprocess.Popen(ask, stdout=output, stderr=output)  # noqa: S603 - our own list
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                before, seen = seen, time.time()
                session.note_changes(before - SLACK_SECONDS)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
    session.note_changes()
    if process.returncode != 0:
        last = "\n".join(messages.read_text(errors="replace").strip().splitlines()[-3:])
        said = "labelme ended with code %d. The last of %s:\n%s"
        log.warning(said, process.returncode, messages, last)
    return process.returncode

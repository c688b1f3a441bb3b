"""annotate.py merge: boxes that humans drew, corrected or accepted, from sessions into one COCO
file that says of each box whose it is. All of it is written or nothing, and merging again changes
nothing."""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from cxr.boxes import as_boxes, clip_xyxy, scale_xyxy, xyxy_to_xywh
from cxr.coco import write_coco_json
from cxr.rules import in_words, require, require_one_of
from cxr.workdir import write_atomic
from labelling.label_files import stem_of
from labelling.labelme import Shape
from labelling.merged_file import POLICIES, Contributor, Target, Xywh
from labelling.session import BOX_STATES, SKIP_FLAGS, Answer, Session, SessionFilm

LOCK_WAIT_S = 30.0  # a merge takes a second or two


@dataclass(frozen=True)
class MergeConfig:
    """Merge the boxes of labelling sessions into one COCO file.

    Films that are not done, or ticked as unreadable or not frontal, are left out. The old file is
    kept as a backup with .bak at its end.

    Args:
        session: folders of the sessions, the first first.
        into: COCO file to merge into; made if there is none.
        policy: of several boxes for one film take: refuse (write nothing and list them), newest,
            mean (of all edges), or first (the file's before the sessions').
        size: pixels of the boxes: film (the film as labelled) or original (its size in the public
            set, from orig_width and orig_height of films.csv).
        names: file_name of each film: path (below the session's films) or base (its last part, as
            in the public set, whatever folders it lies in).
        suffix: put this in the place of each film's suffix, such as .jpeg; empty keeps it.
    """

    session: tuple[str, ...] = ()
    into: str = "annotations/thorax.json"
    policy: str = "refuse"
    size: str = "film"
    names: str = "path"
    suffix: str = ""

    def __post_init__(self) -> None:
        if not self.session:
            raise ValueError("session must name at least one session's folder. Got none.")
        require_one_of(self, policy=POLICIES, size=("film", "original"), names=("path", "base"))
        is_file = bool(self.into) and not Path(self.into).is_dir()
        require(is_file, "--into must be a file", self.into)
        dotted = re.fullmatch(r"(\.\w+)?", self.suffix) is not None
        require(dotted, "--suffix must be a dot and letters, such as .jpeg", self.suffix)


@dataclass
class Tally:
    """What became of the sessions' films; `reasons` are why nothing may be written."""

    merged: int = 0
    unchanged: int = 0
    actions: Counter[str] = field(default_factory=Counter)  # of the boxes of merged films
    left_out: Counter[str] = field(default_factory=Counter)  # todo, unreadable, not frontal …
    withdrawn: list[str] = field(default_factory=list)  # merged before, todo or skipped since
    copies: list[str] = field(default_factory=list)  # names of one film that came under several
    reasons: list[str] = field(default_factory=list)


def run(config: MergeConfig) -> int:
    """Merge and tell what was done: 0 when the file is as it should be, 1 when nothing was written
    because of conflicts or faults."""
    path = Path(config.into)
    path = path.resolve() if path.is_symlink() else path  # not to put a file in the link's place
    try:
        folders = {Path(folder).resolve(): folder for folder in config.session}
        first, *others = sessions = list(map(Session.open, folders.values()))
        for other in others:
            if set(other.classes) != set(first.classes):
                raise ValueError(
                    f"sessions merged together must have the same classes. Got "
                    f"{', '.join(first.classes)} in {first.path} and {', '.join(other.classes)} in "
                    f"{other.path}: merge each into a file of its own."
                )
        with alone_with(path):
            target = Target(path, first.classes)
            tally = fill(target, sessions, config)
            backup = write(target) if tally.merged and not tally.reasons else None
    except (OSError, ValueError) as error:
        print(in_words(error), file=sys.stderr)
        return 1
    if tally.reasons:
        last = f"nothing was written to {path}: {len(tally.reasons)} reasons above"
        print(*tally.reasons, last, sep="\n", file=sys.stderr)
        return 1
    tell(target, tally, backup)
    return 0


def fill(target: Target, sessions: Sequence[Session], config: MergeConfig) -> Tally:
    """Put all boxes that count into `target`, or gather every reason why they may not go in."""
    tally = Tally()
    for session in sessions:
        for film, answer in session.answers():
            name = listed_name(film.film, config)
            try:
                box = find_box(answer, session.classes)
                if box is not None:
                    if abs(clip_xyxy(box.xyxy, film.size_hw) - as_boxes(box.xyxy)).max() > 1:
                        raise ValueError("its box reaches out of the film; see `annotate.py check`")
                    size_hw, bbox = _place_box(film, box, config.size)
                    shown, by = film.prelabel_xyxy is not None, session.session_id
                    who = (session.annotator, answer.changed, shown, answer.state, by)
                    seen = [(s, _place_box(film, s, config.size)[1]) for s in answer.ignored]
                    marked = [(s.label, at, s.marks) for s, at in seen if min(at[2:]) > 0]
                    own = Contributor(*who, bbox, box.label)
                    target.add(name, size_hw, film, own, marked)
                    continue
            except ValueError as error:
                tally.reasons.append(f"{session.path}: {film.film}: {error}")
                continue
            why = "file unreadable" if answer.state == "unreadable" else "todo"
            if answer.state == "skipped":
                why = next(flag for flag in SKIP_FLAGS if flag in answer.flags)
            tally.left_out[why] += 1
            held = target.stored_for(name, film.sha256)
            if any(c.session == session.session_id for c in held):
                tally.withdrawn.append(film.film)
    if config.policy == "refuse":
        tally.reasons += target.find_conflicts()
    for place in target.touched:
        try:
            changed = target.put(place, config.policy)
        except ValueError as error:
            tally.reasons.append(f"{place.file_name}: {error}")
            continue
        tally.merged += changed
        tally.unchanged += not changed
        tally.copies += [" = ".join(place.names)] * (len(place.names) > 1)
        boxes = {c.key: c.action for c in place.new if changed}  # one under two names counts once
        tally.actions.update(boxes.values())
    return tally


def find_box(answer: Answer, classes: Sequence[str]) -> Shape | None:
    """The one box of a film that is done; None for a film that is not, or is skipped. Raises
    ValueError for an answer that must be put right first."""
    fix = "; see `annotate.py check`"
    if answer.state == "unreadable":
        return None
    if answer.fault:
        raise ValueError(answer.fault + fix)
    if answer.state not in BOX_STATES:
        return None
    human = [b for b in answer.boxes if not b.prelabelled]
    if len(human) != 1 or answer.box is None:
        raise ValueError(f"it must have one rectangle. Got {len(human)} shapes{fix}")
    for one in (answer.box, *answer.ignored):
        if one.label not in classes:
            rule = f"its box must be labelled {' or '.join(classes)}"
            raise ValueError(f"{rule}. Got {one.label!r}{fix}")
    return answer.box


def _place_box(film: SessionFilm, box: Shape, size: str) -> tuple[tuple[int, int], Xywh]:
    """The size that the merged file lists the film with, and the box in its pixels; raises
    ValueError where there is none."""
    inside, size_hw = clip_xyxy(box.xyxy, film.size_hw), film.size_hw
    if size == "original":
        if film.original_hw is None:
            what = "its original size is unknown, for its films.csv has no orig_width"
            raise ValueError(f"{what} and orig_height; take --size film")
        size_hw = film.original_hw
        inside = scale_xyxy(inside, film.size_hw, size_hw)
    # rounded here and nowhere else: what is computed from it is then the same in each merge
    x, y, w, h = (round(float(v), 3) for v in xyxy_to_xywh(inside)[0])
    return size_hw, (x, y, w, h)


def listed_name(film: str, config: MergeConfig) -> str:
    """A film's `file_name` in the merged file. A DICOM named by its UID has no suffix to replace,
    whatever follows its last dot."""
    path = PurePosixPath(film)
    if config.names == "base":
        path = PurePosixPath(path.name)
    if config.suffix:
        path = path.with_name(PurePosixPath(stem_of(path.name)).name + config.suffix)
    return path.as_posix()


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Hold the lock of one file; raises ValueError when another merge keeps it.

    The lock lies with the temporary files: it must outlive the merge, as a lock that is deleted
    lets two in (github.com/tox-dev/filelock/issues/574), and would litter the annotations.
    """
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    file = Path(tempfile.gettempdir()) / f"lungfirst-merge-{digest}.lock"
    try:
        with FileLock(file, timeout=LOCK_WAIT_S, mode=0o666):
            yield
    except Timeout as error:
        what = f"{path} is being written by another merge"
        raise ValueError(f"{what}; run this again when that is done.") from error


def write(target: Target) -> Path | None:
    """Write the file, its old content first as a backup; returns where that lies. A kill at any
    moment leaves the old file or the new one whole. Call it under `alone_with`."""
    path = target.path
    leftover = re.compile(rf"\.{re.escape(path.name)}(\.bak)?\.[a-z0-9_]{{8}}")
    for other in path.parent.glob(f".{path.name}.*"):  # a killed merge's files of cxr.workdir
        if leftover.fullmatch(other.name):
            other.unlink(missing_ok=True)
    backup = None
    if path.exists():
        backup = write_atomic(path.with_name(f"{path.name}.bak"), path.read_bytes())
    write_coco_json(path, target.data)
    return backup


def tell(target: Target, tally: Tally, backup: Path | None) -> None:
    """Print what was done."""
    merged = f"{tally.merged} merged{_in_brackets(tally.actions, BOX_STATES)}"
    todo = tally.left_out.pop("todo", 0)
    skips = _in_brackets(tally.left_out, (*SKIP_FLAGS, "file unreadable"))
    skipped = f"{tally.left_out.total()} skipped{skips}"
    print(f"films: {merged}, {tally.unchanged} unchanged, {skipped}, {todo} todo")
    if tally.copies:
        print(f"one film under several names, listed once: {_some(tally.copies)}")
    if tally.withdrawn:
        print(f"merged before, todo or skipped now, their boxes stay: {_some(tally.withdrawn)}")
    if not tally.merged:
        print(f"nothing to change in {target.path}")
        return
    old = f"; its old content lies in {backup}" if backup else ""
    print(f"{target.path} lists {len(target.data['images'])} films{old}")


def _in_brackets(counts: Counter[str], order: Sequence[str]) -> str:
    said = ", ".join(f"{counts[word]} {word}" for word in order if counts[word])
    return f" ({said})" if said else ""


def _some(names: Sequence[str], at_most: int = 12) -> str:
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more

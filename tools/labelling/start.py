"""annotate.py start: make a session or go on with it, and open labelme at the next film.

Which films the session asks for, their 8-bit views, pre-labels and the order. Each film is written
down as it is prepared (prepared.jsonl), so that a killed start goes on where it stopped; numbers
are given when all films are known, because doubt decides the order.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from cxr.boxes import Frame
from cxr.draw import encode_jpeg
from cxr.film import Film, list_films
from cxr.films_table import is_among, label_word, table_rows
from cxr.intensity import clahe, min_max, percentile_clip, resize
from cxr.ledger import FilmRecords
from cxr.rules import in_words, require
from cxr.stream import Unread, batched, default_jobs, read_ahead
from cxr.workdir import console, provenance, sha256_file, write_atomic, write_json
from labelling.labelme import HINTS, run_labelme, why_not_opened, write_settings
from labelling.session import (
    FLAGS,
    SCHEMA,
    VERSION,
    Session,
    SessionFilm,
    count_states,
    is_session,
    split_names,
    to_shape,
    write_films,
)

if TYPE_CHECKING:
    from detect.finder import ThoraxFinder

VIEW_SIDE = 1600  # px: a full chest on a large screen
Films = Sequence[SessionFilm]
Looked = tuple[Path, Film | Unread, dict[str, Any]]  # a film, and its pre-label
BATCH = 4  # films in memory at once; one of 4,000 × 4,000 px takes 64 MB


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
            fix = "add --prelabel weights/thorax_lite0.safetensors"
            raise ValueError(f"order uncertain needs a detector to be uncertain: {fix}.")


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
        rule = "annotator must be the name of who draws, such as --annotator mk"
        raise ValueError(f"{rule}. Got none.")
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
        "classes": list(split_names(config.classes) or ("thorax",)),
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
    if why := why_not_opened():
        print(f"The session is prepared, but {why}.", file=sys.stderr)
        return 1
    print(HINTS)
    settings = write_settings(session.path, session.classes, FLAGS)
    code = run_labelme(session.view_path(film), settings, session.note_changes)
    _report(Session.open(session.path), [])
    return code


def _check_same(session: Session, config: StartConfig) -> None:
    """A session keeps its annotator and its classes: the boxes in it were drawn under them."""
    for name, given, own in (
        ("annotator", config.annotator.strip(), session.annotator),
        ("classes", ", ".join(split_names(config.classes)), ", ".join(session.classes)),
    ):
        if given and given != own:
            fix = "make another session for other ones"
            raise ValueError(f"{name} of '{session.path}' is {own} and stays so; {fix}.")


def _report(session: Session, restored: list[SessionFilm]) -> None:
    counts = count_states(answer for _, answer in session.answers())
    readable = counts["films"] - counts["unreadable"]
    lines = [
        f"{counts['done']} of {readable} films done, {counts['todo']} to do · "
        f"{session.annotator} · {session.path}"
    ]
    lines += [f"restored from the history: {film.film}" for film in restored]
    unreadable = [f for f in session.films if not f.view]
    lines += [f"left out: {film.film}: {film.reason}" for film in unreadable[:10]]
    if len(unreadable) > 10:
        lines.append(f"left out: {len(unreadable) - 10} more; see `annotate.py status`")
    Console(highlight=False, markup=False).print(*lines, sep="\n")


class Candidates(NamedTuple):
    """The films that may be asked for (number 0, `film` the path of its file), the folder their
    names will be relative to, and how many files were passed over for which reason."""

    films: list[SessionFilm]
    root: Path
    passed_over: dict[str, int]


def find_candidates(films: Sequence[str], table: str = "", source: str = "") -> Candidates:
    """Films of folders, files and tables (`.csv`); `table` tells the labels of films in folders,
    and only films of `source` are kept, if it is named. Raises ValueError for a table without its
    columns, or when no film is left; FileNotFoundError for a path that does not exist."""
    tables = [Path(f) for f in films if f.lower().endswith(".csv")]
    listed = [film for path in tables for film in read_table(path)]
    found = list_films([f for f in films if not f.lower().endswith(".csv")])
    known = {absolute(f.film): f for f in read_table(Path(table))} if table else {}
    listed += [known.get(absolute(path), SessionFilm(0, str(path))) for path in found.films]
    if source:
        listed = [film for film in listed if is_among(film.source, [source])]
    if not listed:
        rest = f" of the source {source!r}; see the column source of the table" if source else ""
        rule = f"films must hold at least one film{rest}"
        raise ValueError(f"{rule}. Got none in {', '.join(films)}.")
    folders = {absolute(film.film).parent for film in listed}
    root = Path(os.path.commonpath(folders))
    if tables or table:  # names as the table has them
        base = absolute(table or tables[0]).parent
        root = base if all(f.is_relative_to(base) for f in folders) else root
    return Candidates(listed, root, found.passed_over)


def read_table(path: Path) -> list[SessionFilm]:
    """The films of a CSV. Columns: image (relative to the table), and where known patient_id,
    label, sublabel, source, orig_width, orig_height; raises ValueError without `image`."""
    films = []
    for _, row in table_rows(path, ["image"]):
        if not row["image"]:
            continue
        place = path.parent / row["image"]
        if not place.exists():  # written by Windows
            place = path.parent / row["image"].replace("\\", "/")
        texts = {k: row.get(k, "") for k in ("patient_id", "label", "sublabel", "source")}
        width, height = row.get("orig_width", ""), row.get("orig_height", "")
        size_hw = (int(height), int(width)) if width.isdigit() and height.isdigit() else None
        films.append(SessionFilm(0, str(place), **texts, original_hw=size_hw))  # type: ignore[arg-type]
    return films


def parse_sample(text: str) -> dict[str, int]:
    """`normal=200,pneumonia=200` as a dict; raises ValueError for anything else."""
    sample: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        label, _, number = (p.strip() for p in part.partition("="))
        right = bool(label) and number.isdigit() and int(number) > 0
        rule = "sample must be label=number, with commas between, such as normal=200,pneumonia=200"
        require(right, rule, text)
        sample[label] = int(number)
    return sample


def sample_films(films: Films, sample: dict[str, int], seed: int) -> list[SessionFilm]:
    """So many films of each label (or sublabel), from as many patients as there are: a patient
    gives a second film only after every patient of the label has given one. Raises ValueError when
    a label has too few films."""
    if not sample:
        return list(films)
    chosen: list[SessionFilm] = []
    for label, number in sample.items():
        word = label_word(label)
        same = [f for f in films if word in (label_word(f.label), label_word(f.sublabel))]
        pool = [f for f in same if f not in chosen]
        if len(pool) < number:
            labels = sorted({f.label for f in films} | {f.sublabel for f in films} - {""})
            raise ValueError(
                f"sample asks for {number} films of {label!r}, there are {len(pool)}. "
                f"Labels of these films: {', '.join(labels)[:300]}."
            )
        rng, films_of = random.Random(seed), defaultdict[str, list[SessionFilm]](list)
        for film in sorted(pool, key=lambda f: f.film):
            films_of[film.patient_id or film.film].append(film)
        patients = sorted(films_of)
        rng.shuffle(patients)
        for patient in patients:
            rng.shuffle(films_of[patient])
        rounds = zip_longest(*(films_of[p] for p in patients))  # one film of each patient
        chosen += [film for films in rounds for film in films if film][:number]
    return sorted(chosen, key=lambda f: f.film)


def make_view(pixels: np.ndarray, side: int = VIEW_SIDE) -> tuple[np.ndarray, Frame]:
    """An 8-bit view (h, w) of a film (H, W) in [0, 1]: long side at most `side` px, 0.5 / 99.5
    percentiles, CLAHE; and the Frame that leads its boxes back to the film."""
    height, width = pixels.shape
    scale = min(1.0, side / max(height, width))
    view_hw = (max(1, round(height * scale)), max(1, round(width * scale)))
    grey = clahe(min_max(percentile_clip(resize(pixels, view_hw))))
    return (grey * 255 + 0.5).astype(np.uint8), Frame((0, 0, width, height), view_hw, view_hw)


def find_prelabels(finder: ThoraxFinder, films: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """The pre-label of each film (H, W), as fields of a SessionFilm: the box of both opinions, and
    how doubtful it is.

    The doubt is 1 − the box's quality (its score where none is known), plus 1 − IoU of the two
    boxes, plus 1 where the box would not be used, plus 1 where no thorax is seen.
    """
    found = []
    for box in finder.predict(films):
        good = box.score if box.quality is None else box.quality
        doubt = {"ok": 0.0, "fallback": 1.0}.get(box.status, 2.0) + 1 - good
        apart = 1.0 if box.apart is None else box.apart
        seen = None if box.status == "no_thorax" else box.seen_xyxy
        found.append(
            {
                "prelabel_xyxy": tuple(round(v, 3) for v in seen) if seen else None,
                "prelabel_score": box.score,
                "disagreement": round(apart, 4),
                "uncertainty": round(doubt + apart, 4),
            }
        )
    return found


def _look_at(paths: Sequence[Path], finder: ThoraxFinder | None, said: str) -> Iterator[Looked]:
    """Each film in its turn, with its pre-label; looked at a few together."""
    read = read_ahead(paths, jobs=default_jobs(len(paths)))
    for batch in batched(track(read, said, len(paths), console=console), BATCH):
        films = [film.pixels for _, film in batch if isinstance(film, Film)]
        found = iter(find_prelabels(finder, films) if finder else [{}] * len(films))
        for path, film in batch:
            yield path, film, next(found) if isinstance(film, Film) else {}


def prepare_films(
    path: Path, candidates: Films, root: Path, finder: ThoraxFinder | None
) -> list[SessionFilm]:
    """Views and pre-labels of films that the session does not know yet; not numbered (0). Those in
    prepared.jsonl are not read again. A film that cannot be read, or that is the same file as an
    earlier one, has its reason instead of a view."""
    (path / "prepared").mkdir(parents=True, exist_ok=True)
    places = [absolute(c.film) for c in candidates]
    named = [
        replace(c, film=(p.relative_to(root) if p.is_relative_to(root) else p).as_posix())
        for c, p in zip(candidates, places, strict=True)
    ]
    by_path = dict(zip((Path(c.film) for c in candidates), named, strict=True))
    with FilmRecords(path / "prepared.jsonl", SessionFilm.from_dict) as log:
        pending = [file for file, film in by_path.items() if film.film not in log]
        for file, film, prelabel in _look_at(pending, finder, "Preparing films"):
            log.add(asdict(_prepare(by_path[file], film, prelabel, path)))
        done = {film.film: film for film in log.kept()}
    first: dict[str, str] = {}
    rows = []
    for row in (done[film.film] for film in named):
        twin = first.setdefault(row.sha256, row.film) if row.view else row.film
        same = {"view": "", "frame": None, "reason": f"the same film as {twin}"}
        rows.append(row if twin == row.film else replace(row, **same))
    return rows


def _prepare(
    row: SessionFilm, film: Film | Unread, prelabel: dict[str, Any], path: Path
) -> SessionFilm:
    if isinstance(film, Unread):
        return replace(row, sha256=film.sha256, reason=str(film))
    pixels, frame = make_view(film.pixels)
    view = f"prepared/{film.sha256}.jpg"
    write_atomic(path / view, encode_jpeg(pixels, quality=93))
    return replace(
        row,
        sha256=film.sha256,
        size_hw=(film.pixels.shape[0], film.pixels.shape[1]),
        view=view,
        frame=frame,
        patient_id=row.patient_id or film.patient,
        **prelabel,
    )


def add_films(path: Path, old: Films, new: Films, order: str, seed: int) -> list[SessionFilm]:
    """Number the new films after the old ones, move their views into place, write films.jsonl.

    `order`: uncertain (most doubtful first), random or path; films that cannot be read come last.
    Done twice, it does the same: a start killed in between is made good by the next.
    """
    (path / "views").mkdir(exist_ok=True)
    films = list(old)
    first = max((f.number for f in old), default=0) + 1
    rows = sorted(new, key=lambda r: r.film)
    if order == "random":
        random.Random(seed).shuffle(rows)
    rows.sort(key=lambda r: (not r.view, -r.uncertainty * (order == "uncertain")))
    for number, row in enumerate(rows, first):
        view = ""
        if row.view:
            stem = re.sub(r"[^\w.-]+", "_", Path(row.film).stem)[:60]
            view = f"views/{number:04d}_{stem}.jpg"
            with suppress(FileNotFoundError):  # moved already
                os.replace(path / row.view, path / view)  # noqa: PTH105
        films.append(replace(row, number=number, view=view))
    write_films(path, films)
    return films


def draw_prelabels(session: Session) -> None:
    """Write the pre-labels of films that have no label file yet."""
    for film in session.films:
        label = prelabel_class(session.classes, film)
        if film.view and film.prelabel_xyxy and label and not session.label_path(film).exists():
            session.write_shapes(film, [to_shape(film, film.prelabel_xyxy, label, True)])


def prelabel_class(classes: Sequence[str], film: SessionFilm) -> str:
    """The label of a film's pre-label: the only class, or the film's own label; "" is none."""
    if len(classes) == 1:
        return classes[0]
    words = label_word(film.label), label_word(film.sublabel)
    return next((name for word in words for name in classes if label_word(name) == word), "")


def renew_prelabels(session: Session, finder: ThoraxFinder) -> int:
    """Pre-label again, with other weights, each film that no human has touched; returns how
    many. Human boxes, and films with a history, stay as they are."""
    noted = {entry["number"] for entry in session.history()}
    by_path = {}
    for film in (f for f in session.films if f.view and f.number not in noted):
        answer = session.answer(film)
        # a label file without a box was emptied by hand
        if answer.untouched and (answer.boxes or not session.label_path(film).exists()):
            by_path[session.film_path(film)] = film
    renewed = {}
    for path, read, prelabel in _look_at(list(by_path), finder, "Pre-labelling again"):
        film = by_path[path]
        if isinstance(read, Film) and read.sha256 == film.sha256:
            session.label_path(film).unlink(missing_ok=True)
            renewed[film.number] = replace(film, **prelabel)
    session.films = [renewed.get(f.number, f) for f in session.films]
    write_films(session.path, session.films)
    draw_prelabels(session)
    return len(renewed)


def absolute(path: str | Path) -> Path:
    """The path from the root, links left as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links

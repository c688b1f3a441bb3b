"""predictions.csv, a row a film with every member's logits and the screener's decision; and films
and crops on their way there, with what the report shows of each.

Rows are flushed as they are added, so a killed run loses no finished film and goes on from there.
An Item keeps the pixels that the members see and a thumbnail of the film, not the film itself: a
batch of items is then as small as its crops. Thumbnails of films that are cropped are kept beside
the crops (thumbnails/KEY.jpg, what is known of the film in its comment), so that a film need not
be decoded again for its picture.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr.boxes import Frame
from cxr.film import Film
from cxr.ledger import ODD, Ledger, csv_line, read_csv
from cxr.manifest import CropRow
from cxr.notes import code_of, sentence_of
from cxr.page import printable
from cxr.page.build import Picture, make_picture
from cxr.rules import require
from cxr.stream import Unread, hash_film, read_ahead
from cxr.workdir import log, write_atomic

GONE = "the film itself is no longer where it was"
CHILD_YEARS = 16  # below it a patient is a child
ANSWERS = ("normal", "target", "others")
_BEFORE = ("film", "status", "reason")
_AFTER = ("abnormal_score", "decision", "tier", "threshold_id")
# the last columns; tables of older runs lack some or all of them, and go on without them
_LATER = ("notes", "doubt", "ensemble")


@dataclass(frozen=True, eq=False)
class PredictionRow:
    """One film. `logits` (M, 3), NORMAL, TARGET, OTHERS of each member, or None when refused; NaN
    of the members of an ensemble that was not asked, whose cells are empty. `notes` are the film's,
    of which the table holds the codes, joined by "; " (see `cxr.notes`); `doubt` says why the film
    is never cleared, `ensemble` names the one that judged it."""

    film: str
    status: str
    reason: str = ""
    logits: np.ndarray | None = None
    abnormal_score: float | None = None
    decision: str = ""
    tier: str = ""
    threshold_id: str = ""
    notes: tuple[str, ...] = ()
    doubt: str = ""
    ensemble: str = ""

    @property
    def complete(self) -> bool:
        """Did all members answer?"""
        return self.logits is not None and bool(np.isfinite(self.logits).all())


class PredictionWriter(Ledger[PredictionRow]):
    """Appends rows to a predictions.csv; `done` holds those of an earlier run by film. Raises
    ValueError when the file has other members."""

    def __init__(self, path: str | Path, targets: Sequence[str]) -> None:
        self.targets, self._columns = tuple(targets), columns_of(targets)
        super().__init__(path, csv_line(self._columns), self._earlier, self._line)

    def add(self, row: PredictionRow) -> None:
        """Write one film's row; raises ValueError when the film has one, or for other logits."""
        plain = PredictionRow(**{f.name: getattr(row, f.name) for f in fields(PredictionRow)})
        self.put(row.film, plain)  # `done` must not hold a film's pictures

    def _earlier(self, path: Path) -> dict[str, PredictionRow]:
        self._columns, found, rows = _read(path)
        if found != self.targets:
            raise ValueError(
                f"{path} was begun with the members {', '.join(found)}. Got "
                f"{', '.join(self.targets)} instead: give another folder, or remove the file."
            )
        return rows

    def _line(self, row: PredictionRow) -> str:
        return csv_line(_cells(row, len(self.targets))[: len(self._columns)])


def read_predictions(path: str | Path) -> tuple[tuple[str, ...], list[PredictionRow]]:
    """Targets and rows of a predictions.csv; raises ValueError naming the line that is wrong."""
    _, targets, rows = _read(Path(path))
    return targets, list(rows.values())


def _read(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, PredictionRow]]:
    """Columns, targets, and rows by film."""
    if not path.is_file():
        raise ValueError(
            f"{path} must be a predictions.csv. It does not exist: make one with "
            "python -m classify.run FILMS --crops"
        )
    columns: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    rows: dict[str, PredictionRow] = {}

    def reader_of(header: tuple[str, ...]) -> Callable[[list[str]], None]:
        nonlocal columns, targets
        columns = header
        targets = tuple(c.removesuffix(".normal") for c in header if c.endswith(".normal"))
        wanted = columns_of(targets)
        if header not in [wanted[: len(wanted) - lacking] for lacking in range(len(_LATER) + 1)]:
            raise ValueError(
                f"{path} must have the columns {', '.join(wanted)}. "
                f"Got {', '.join(header)} instead."
            )
        return read

    def read(cells: list[str]) -> None:
        row = _row(cells, len(targets), len(columns))
        if row.film in rows:
            raise ValueError(f"{row.film} stands there twice.")
        rows[row.film] = row

    read_csv(path, reader_of, ODD)
    return columns, targets, rows


def columns_of(targets: Sequence[str]) -> tuple[str, ...]:
    """The columns of a predictions.csv for these members."""
    return (*_BEFORE, *(f"{t}.{a}" for t in targets for a in ANSWERS), *_AFTER, *_LATER)


def _cells(row: PredictionRow, members: int) -> list[str]:
    logits = [""] * (members * len(ANSWERS))
    if row.logits is not None:
        shape = np.shape(row.logits)
        require(shape == (members, 3), f"logits of {row.film} must be ({members}, 3)", shape)
        logits = ["" if np.isnan(v) else repr(float(v)) for v in np.asarray(row.logits).ravel()]
    score = "" if row.abnormal_score is None else repr(float(row.abnormal_score))
    before = (row.film, row.status, row.reason)
    after = (score, row.decision, row.tier, row.threshold_id)
    return [*before, *logits, *after, "; ".join(map(code_of, row.notes)), row.doubt, row.ensemble]


def _row(cells: list[str], members: int, wanted: int) -> PredictionRow:
    width = members * len(ANSWERS)
    require(len(cells) == wanted, f"a row must have {wanted} cells", len(cells))
    (film, status, reason), middle = cells[:3], cells[3 : 3 + width]
    score, decision, tier, threshold_id, *later = cells[3 + width :]
    noted, doubt, ensemble = [*later, "", "", ""][: len(_LATER)]
    logits = None
    if any(middle):
        given = np.array(list(map(bool, middle))).reshape(members, -1)
        values = [float(v) if v else np.nan for v in middle]
        logits = np.array(values, dtype=np.float64).reshape(members, -1)
        if not np.isfinite(logits[given]).all():
            raise ValueError("logits must be finite. Got NaN or infinity.")
        if (given.any(axis=1) != given.all(axis=1)).any():
            raise ValueError("a member must have all of its logits, or none. Got some.")
    known = float(score) if score else None
    notes = tuple(filter(None, noted.split("; ")))
    texts = (decision, tier, threshold_id)
    return PredictionRow(film, status, reason, logits, known, *texts, notes, doubt, ensemble)


# --- films and crops before they are judged


@dataclass(frozen=True, eq=False)
class Item(PredictionRow):
    """One film on its way to the page. `pixels` (H, W) are the crop's or the whole film's; None
    when there is nothing to classify, and then `reason` says why. `pictures` are those of the film
    (`picture`), of its crop and of the `saliency` of the member `saliency_of`. `apart` is 1 − IoU
    of the thorax box's two opinions, None where there is one or none; `far` how far the film is
    from those of the calibration in units of what the guard allows, None without a guard; `child`
    whether the file's age is a child's, None where it has none. `row` is that of a crop cut just
    now, for the manifest; `seen` the Grad-CAM (h, w) over the members' input, and the Frame of that
    input on `pixels`."""

    sha256: str = ""
    pixels: np.ndarray | None = None
    facts: tuple[str, ...] = ()
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    saliency_of: str = ""
    apart: float | None = None
    far: float | None = None
    child: bool | None = None
    row: CropRow | None = None
    seen: tuple[np.ndarray, Frame] | None = None


def whole_films(paths: Iterable[Path], jobs: int, for_processing: bool = False) -> Iterator[Item]:
    """Each film as it is; no thorax box is sought."""
    for path, film in read_ahead(paths, jobs, for_processing=for_processing):
        if isinstance(film, Unread):
            yield Item(name_of(path), "unreadable", str(film), sha256=film.sha256)
        else:
            yield Item(
                name_of(path),
                "ok",
                sha256=film.sha256,
                pixels=film.pixels,
                facts=(*facts_of(film), *map(sentence_of, film.notes)),
                pictures={"picture": make_picture(film.pixels)},
                notes=film.notes,
                child=is_child(film),
            )


def is_child(film: Film) -> bool | None:
    """Whether the patient is one by the file's age; None where it has none."""
    return None if film.age_years is None else film.age_years < CHILD_YEARS


def fresh_crop(row: CropRow, film: Film | None, pixels: np.ndarray | None, folder: Path) -> Item:
    """A film that was boxed and cut just now into `folder`; `pixels` (h, w) are its crop's."""
    seen = _keep_thumbnail(row, film, folder) if film else (None, (), None)
    return replace(_item(row, pixels, seen), row=row)


def crops_on_disk(rows: Sequence[CropRow], folder: Path, jobs: int = 0) -> Iterator[Item]:
    """Films that were cropped earlier, in order; crops are read ahead by `jobs` processes, and so
    are films without a thumbnail that still lie there. The crop is all that the members need."""
    new = [not _thumbnail_path(row, folder).exists() and Path(row.film).is_file() for row in rows]
    paths: list[Path] = []
    for row, is_new in zip(rows, new, strict=True):
        paths += [folder / row.crop] if row.crop else []
        paths += [Path(row.film)] if is_new else []
    # what was read once may be read again
    with closing(read_ahead(paths, jobs, for_processing=True)) as reads:  # type: ignore[type-var]
        for row, is_new in zip(rows, new, strict=True):
            crop = next(reads)[1] if row.crop else None
            film = next(reads)[1] if is_new else None
            if isinstance(film, Film) and film.sha256 == row.sha256:
                seen = _keep_thumbnail(row, film, folder)
            else:
                seen = _kept_thumbnail(row, folder)
            lost = ""
            if isinstance(crop, Unread):
                lost = f"its crop {row.crop} cannot be read: {crop.sentence}"
            yield _item(row, crop.pixels if isinstance(crop, Film) else None, seen, lost)


def _item(row: CropRow, pixels: np.ndarray | None, seen: _Seen, lost: str = "") -> Item:
    """`lost` is why there are no pixels of a crop that was made."""
    picture, facts, child = seen
    return Item(
        name_of(row.film),
        "unreadable" if lost else row.status,
        lost or row.reason,
        sha256=row.sha256,
        pixels=pixels,
        facts=(*facts, *_box_facts(row), *map(sentence_of, row.notes)),
        pictures={"picture": picture} if picture else {},
        notes=row.notes,
        apart=row.apart,
        child=child,
    )


def _box_facts(row: CropRow) -> tuple[str, ...]:
    """How good the box is likely to be, and how far its two opinions lie apart."""
    if row.apart is None:
        return ()
    apart = f"box: its two opinions differ by {row.apart:.2f} (1 − IoU)"
    if row.quality is None or row.status != "ok":
        return (apart,)
    return (f"{apart}; IoU with a person's box likely {row.quality:.2f}",)


def _thumbnail_path(row: CropRow, folder: Path) -> Path:
    told = f"{row.film}\0{row.sha256}\0{row.thorax_xyxy}\0{row.crop_xyxy}"
    key = hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()
    return folder / "thumbnails" / f"{key[:16]}.jpg"


# what is known of a film beside its crop: a picture, facts, and whether it is a child's
_Seen = tuple[Picture | None, tuple[str, ...], bool | None]


def _keep_thumbnail(row: CropRow, film: Film, folder: Path) -> _Seen:
    """What is known of a film, laid beside its crop."""
    size_hw = (film.pixels.shape[0], film.pixels.shape[1])
    thorax, crop = (row.on_film(box, size_hw) for box in (row.thorax_xyxy, row.crop_xyxy))
    picture, facts, child = make_picture(film.pixels, thorax, crop), facts_of(film), is_child(film)
    known = {k: v for k, v in asdict(picture).items() if k != "uri"}
    note = json.dumps({"facts": facts, "child": child, **known}).encode()
    mark = b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big")  # a JPEG's comment
    jpeg = base64.b64decode(picture.uri.partition(",")[2])
    path = _thumbnail_path(row, folder)
    try:
        write_atomic(path, jpeg[:2] + mark + note + jpeg[2:])
    except OSError as error:
        log.warning("no thumbnail can be kept in %s: %s", folder, error.strerror)
        return picture, facts, child
    return replace(picture, uri=path.as_posix()), facts, child


def _kept_thumbnail(row: CropRow, folder: Path) -> _Seen:
    """What is known of a film as it lies beside its crop; without that, that the film is gone."""
    path = _thumbnail_path(row, folder)
    if not path.is_file():
        return None, (GONE,), None
    known = split_note(path.read_bytes())[1]
    facts, child = known.pop("facts"), known.pop("child", None)  # older runs kept no age
    there = row.sha256 == hash_film(row.film)
    return Picture(path.as_posix(), **known), (*facts, *(() if there else (GONE,))), child


def split_note(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """A kept thumbnail's JPEG without its comment, and what that tells of it."""
    if data[2:4] != b"\xff\xfe":
        return data, {}
    end = 4 + int.from_bytes(data[4:6], "big")
    return data[:2] + data[end:], json.loads(data[6:end])


def name_of(path: str | Path) -> str:
    """A film's name in every table of the run: its path, with line breaks and undecodable bytes
    spelt out, so that any file name can be written, read again and resumed from."""
    return printable(Path(path).as_posix())


def facts_of(film: Film) -> tuple[str, ...]:
    """Size as stored, depth, spacing and view."""
    height, width = film.stored_hw or film.pixels.shape
    size = f"{height} × {width} px, {film.bits} bits"
    if film.spacing_mm:
        size += f", {film.spacing_mm[0]:.3g} × {film.spacing_mm[1]:.3g} mm"
    return (size, f"view {film.view}")

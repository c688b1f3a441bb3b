"""What a run works on: films or crops one by one, with what the report shows of each.

An Item keeps the pixels that the members see and a thumbnail of the film, not the film itself: a
batch of items is then as small as its crops. Thumbnails of films that are cropped are kept beside
the crops (thumbnails/KEY.jpg, what is known of the film in its comment), so that a film need not
be decoded again for its picture.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from classify.predictions import PredictionRow
from cxr.boxes import Frame
from cxr.film import Film
from cxr.manifest import CropRow
from cxr.notes import sentence_of
from cxr.page.pictures import Picture, make_picture
from cxr.page.words import printable
from cxr.stream import Unread, hash_film, read_ahead
from cxr.workdir import log, write_atomic

GONE = "the film itself is no longer where it was"
CHILD_YEARS = 16  # below it a patient is a child
GUARD = "guard.safetensors"  # lies among the members and is none


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
    made = _item(row, pixels, *(_keep_thumbnail(row, film, folder) if film else _UNSEEN))
    return replace(made, row=row)


def crops_on_disk(rows: Sequence[CropRow], folder: Path, jobs: int = 0) -> Iterator[Item]:
    """Films that were cropped earlier, in order; crops are read ahead by `jobs` processes, and so
    are films without a thumbnail that still lie where they were. The crop is all that the members
    need."""
    unseen = [
        not _thumbnail_path(row, folder).exists() and Path(row.film).is_file() for row in rows
    ]
    paths: list[Path] = []
    for row, is_unseen in zip(rows, unseen, strict=True):
        paths += [folder / row.crop] if row.crop else []
        paths += [Path(row.film)] if is_unseen else []
    # what was read once may be read again
    with closing(read_ahead(paths, jobs, for_processing=True)) as reads:  # type: ignore[type-var]
        for row, is_unseen in zip(rows, unseen, strict=True):
            crop = next(reads)[1] if row.crop else None
            film = next(reads)[1] if is_unseen else None
            if isinstance(film, Film) and film.sha256 == row.sha256:
                seen = _keep_thumbnail(row, film, folder)
            else:
                seen = _kept_thumbnail(row, folder)
            yield _item(row, crop if crop is None else _pixels_or_why(row, crop), *seen)


def _pixels_or_why(row: CropRow, crop: Film | Unread) -> np.ndarray | str:
    if isinstance(crop, Film):
        return crop.pixels
    return f"its crop {row.crop} cannot be read: {crop.sentence}"


def _item(
    row: CropRow,
    pixels: np.ndarray | str | None,
    picture: Picture | None,
    facts: tuple[str, ...],
    child: bool | None,
) -> Item:
    """`pixels` may be the reason why there are none."""
    lost = isinstance(pixels, str)
    return Item(
        name_of(row.film),
        "unreadable" if lost else row.status,
        pixels if isinstance(pixels, str) else row.reason,
        sha256=row.sha256,
        pixels=None if isinstance(pixels, str) else pixels,
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
_UNSEEN: _Seen = (None, (), None)


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


def bundles_in(folder: Path) -> list[Path]:
    """The bundles of a folder but the guard, which lies among the members and is none."""
    return sorted(path for path in folder.glob("*.safetensors") if path.name != GUARD)


def member_files(folder: str | Path) -> list[Path]:
    """The bundles of a folder of members, or of a single network; raises ValueError for none."""
    folder = Path(folder)
    files = bundles_in(folder)
    if not files:
        folds = f" (it holds folds: give {folder / 'fold0'})" * (folder / "fold0").is_dir()
        raise ValueError(
            f"{folder} must hold members' bundles (TARGET.safetensors). Got none{folds}: train "
            "them with python -m classify.train, or give another folder."
        )
    return files


def targets_of(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """The targets that a member's network answers for, by its bundle's metadata; one, in an older
    bundle."""
    return tuple(meta.get("targets") or (meta["target"],))


def classes_of(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """What a member answers; three, where its bundle does not say."""
    return tuple(meta.get("classes") or ("normal", *targets_of(meta)[:1], "others"))


def check_together(folder: str | Path, metas: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raises ValueError unless the bundles, by path, are members that can be screened with as
    one."""
    first_path, first = next(iter(metas.items()))
    for path, meta in metas.items():
        names = classes_of(meta)
        if len(names) != 3:
            raise ValueError(
                f"a member must answer normal / target / others to be screened with. {path} "
                f"answers {' / '.join(names)}: train it with classes: three."
            )
        for key in ("preprocessing", "trained_on"):
            if meta[key] != first[key]:
                raise ValueError(
                    f"members of {folder} must agree in {key}. {path.name} has "
                    f"{meta[key]}, {first_path.name} {first[key]}."
                )
    targets = [t for meta in metas.values() for t in targets_of(meta)]
    if len(set(targets)) != len(targets):
        raise ValueError(f"members of {folder} must have different targets. Got {targets}.")

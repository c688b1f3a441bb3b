"""Films from files: `read_film` for one, `list_films` for folders.

A film is what a DICOM radiograph, a PNG, a JPEG or a TIFF shows, as float32 in [0, 1] with dense
bone white. PNG, JPEG and TIFF do not say whether dense is white; it is assumed of them.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from cxr.notes import FilmError, bad_pixels, note
from cxr.picture import Film, is_picture, read_picture

__all__ = ["Film", "FilmError", "FilmList", "list_films", "read_film"]

FILM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".png", ".jpg", ".jpeg", ".tif", ".tiff"})
ARCHIVE_SUFFIXES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})
MAX_FILE_BYTES = 1 << 30

_OTHER_PICTURES = {b"BM": "BMP", b"GIF8": "GIF", b"RIFF": "WebP", b"\0\0\0\x0cjP": "JPEG 2000"}
_ENVELOPED = bytes.fromhex("06092a864886f70d010703")  # PKCS #7 envelopedData: secure DICOM files
_CIPHER_STARTS = (b"-----BEGIN PGP", b"age-encryption.org", b"Salted__")


@dataclass(frozen=True)
class FilmList:
    """Films found, sorted, and how many other files were passed over for which reason."""

    films: list[Path]
    passed_over: dict[str, int]


def read_film(path: str | Path, for_processing: bool = False) -> Film:
    """Read one film of a DICOM, PNG, JPEG or TIFF file, which is read once, and hashed and decoded
    from memory. Raw detector data (DICOM's FOR PROCESSING) are refused unless `for_processing`,
    which notes them. Raises FilmError, with reason, path and hash, for what is no readable film."""
    digest = ""
    try:
        data = _read_bytes(Path(path))
        digest = hashlib.sha256(data).hexdigest()
        film = _decode(data, for_processing)
    except FilmError as error:
        raise FilmError(error.reason, error.sentence, str(path), digest) from error
    notes = film.notes + (note("inverted"),) * looks_inverted(film.pixels)
    return replace(film, path=str(path), sha256=digest, notes=notes)


def list_films(paths: Sequence[str | Path]) -> FilmList:
    """Find films: named files as they are, folders searched through.

    A named file is always listed, also when it is missing or no film, so that it gets its row.
    In folders, files count by suffix; files of any other suffix when their content is DICOM, and
    files without one (or with a number for one) also when it is PNG, JPEG or TIFF. Hidden files,
    archives, DICOMDIR and links that lead out of the folder are passed over. Raises
    FileNotFoundError for a folder that does not exist.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    passed: Counter[str] = Counter()
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            candidates = _walk(path, passed)
        elif path.exists() or path.suffix.lower() in FILM_SUFFIXES:
            candidates = iter([path])
        else:
            raise FileNotFoundError(
                f"The 'paths' of list_films must be folders or files that exist. Got '{path}' "
                "instead; check its spelling."
            )
        for candidate in candidates:
            if found.setdefault(candidate.resolve(), candidate) is not candidate:
                passed["duplicate"] += 1
    return FilmList(sorted(found.values()), dict(sorted(passed.items())))


def looks_like_dicom(data: bytes) -> bool:
    """Whether the first bytes (132 or more) are DICOM, with or without preamble and file meta."""
    if data[128:132] == b"DICM" or data[:4] == b"DICM":
        return True
    if len(data) < 16:
        return False
    group, element, length = struct.unpack_from("<HHI", data)
    if group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    return data[4:6] in {b"UL", b"OB", b"CS", b"UI", b"DA", b"SH", b"LO"} or 0 < length <= 4096


def looks_inverted(pixels: np.ndarray) -> bool:
    """Whether the lung areas are brighter than the middle; a hint for a note, never acted on. On
    612 frontal films of five sources it speaks up on 0.2 %, and on 92 % of them when inverted. On
    films that show no chest it means nothing."""
    small = cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_AREA)
    middle = np.median(small[20:44, 28:36])
    lungs = np.median(np.concatenate([small[18:40, 12:22], small[18:40, 42:52]], axis=1))
    return bool(lungs > middle + 0.1)


def _read_bytes(path: Path) -> bytes:
    if not path.exists():
        raise FilmError("not_found", "There is no such file.")
    if not path.is_file():
        raise FilmError("not_an_image", "This is a folder or a device, not a file.")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise bad_pixels("The file is larger than 1 GiB, too large for a film.")
        return path.read_bytes()
    except OSError as error:
        raise FilmError("not_found", "The file cannot be opened; check its permissions.") from error


def _decode(data: bytes, for_processing: bool) -> Film:
    if not data:
        raise FilmError("empty", "The file is empty.")
    if data[128:132] != b"DICM" and is_picture(data):  # a DICOM preamble may pose as a TIFF
        pixels, bits, notes = read_picture(data)
        return Film(pixels, bits=bits, notes=notes)
    if looks_like_dicom(data):
        from cxr.dicom import read_dicom  # late: who reads pictures must not pay for pydicom

        return read_dicom(data, for_processing)
    raise _refusal(data)


def _refusal(data: bytes) -> FilmError:
    """The error for bytes that are neither DICOM nor a picture that is read."""
    if data[:4] == b"PK\x03\x04":
        if len(data) > 6 and data[6] & 1:
            return FilmError("encrypted", "The file is a ZIP archive with a password.")
        return FilmError("not_an_image", "The file is a ZIP archive; unpack it first.")
    enveloped = data[:1] == b"\x30" and _ENVELOPED in data[:64]
    if enveloped or data.startswith(_CIPHER_STARTS):
        return FilmError("encrypted", "The file is encrypted.")
    for start, name in _OTHER_PICTURES.items():
        if data.startswith(start):
            return FilmError(
                "unsupported_syntax",
                f"The file is a {name} picture; save it as PNG, TIFF or JPEG, or better as DICOM.",
            )
    return FilmError("not_an_image", "The file is neither DICOM nor PNG, JPEG or TIFF.")


def _walk(folder: Path, passed: Counter[str]) -> Iterator[Path]:
    root = folder.resolve()
    unreadable = ["unreadable folder"]
    for place, folders, files in os.walk(folder, onerror=lambda _: passed.update(unreadable)):
        here = Path(place)
        for name in list(folders):
            if name.startswith("."):
                passed["hidden"] += 1
            elif (here / name).is_symlink():
                passed["link to a folder"] += 1
            else:
                continue
            folders.remove(name)
        folders.sort()
        for name in sorted(files):
            reason = _reason_to_pass_over(here / name, root)
            if reason:
                passed[reason] += 1
            else:
                yield here / name


def _reason_to_pass_over(path: Path, root: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        return "link out of the folder"
    if not path.is_file():
        return "not a file"
    if path.name.upper().startswith("DICOMDIR"):
        return "dicomdir"
    if path.suffix.lower() in FILM_SUFFIXES:
        return ""
    if path.suffix.lower() in ARCHIVE_SUFFIXES:
        return "archive"
    try:
        with path.open("rb") as file:
            start = file.read(512)
        bare = path.suffix[1:].isdigit() or not path.suffix  # other suffixes: raw photos are TIFFs
        return "" if looks_like_dicom(start) or (bare and is_picture(start)) else "no film"
    except OSError:
        return "unreadable file"

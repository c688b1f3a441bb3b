"""Numbers, words and the pixel layout of a DICOM header, read so that nothing odd passes unsaid.

A number that is there but cannot be read is never taken for one that is absent: it is noted, or
the film is refused, with the element's keyword and its value (`cxr.notes.shown`).
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from cxr.codestream import check_size
from cxr.notes import FilmError, note, shown

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE)
_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")


class Layout(NamedTuple):
    """The image pixel module: how a film's values lie in the words of its pixel data."""

    size_hw: tuple[int, int]
    samples: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: bool

    @property
    def range(self) -> tuple[int, int]:
        """The lowest and the highest value that can be stored."""
        return -self.signed << self.stored - 1, (1 << self.stored - self.signed) - 1


class Words(NamedTuple):
    """(H, W) or (H, W, 3) uint8 or uint16 as decoded: sign, HighBit and BitsStored still apply."""

    words: np.ndarray
    bits: int  # of a word that its coding keeps, fewer than allocated in some streams
    is_ybr: bool = False  # and not RGB
    lossy: bool = False  # bits above BitsStored are then values beyond the range


class Header:
    """A data set and what has been noted of it so far."""

    def __init__(self, ds: Dataset, notes: list[str]) -> None:
        self.ds, self.notes = ds, notes

    def word(self, keyword: str, place: int = 0) -> str:
        """A code word in capitals, without blanks around it; "" where there is none."""
        values = _texts(self.ds, keyword) or []
        return values[place].upper() if place < len(values) else ""

    def items(self, keyword: str) -> list[Dataset] | None:
        """The items of a sequence; None where the header has no such sequence or an empty one."""
        if keyword not in self.ds:
            return None
        try:
            value = self.ds[keyword].value
        except Exception:  # pydicom raises all kinds on a damaged element
            return [Dataset()]
        return list(value) or None if isinstance(value, Sequence) else [Dataset()]

    def numbers(
        self, keyword: str, instead: str = "", item: Dataset | None = None
    ) -> tuple[float, ...] | None:
        """The values of a numeric element of the data set, or of an item of it.

        Args:
            keyword: of the element.
            instead: what happens where it is unreadable, for the note; "" refuses the film.
            item: of a sequence.

        Returns () where the element is absent or empty, None where it is unreadable.
        """
        texts = _texts(self.ds if item is None else item, keyword)
        if texts is not None and not "".join(texts):
            return ()
        told = shown("\\".join(texts or ()))
        points = [text.replace(",", ".") for text in texts or ()]
        right = points and all(map(_NUMBER.fullmatch, points))
        values = tuple(map(float, points)) if right else (math.inf,)
        if all(map(math.isfinite, values)):
            if points != texts:
                self.notes.append(note("decimal_comma", element=keyword, value=told))
            return values
        if not instead:
            raise FilmError("bad_pixels", f"{keyword} of the header is unreadable ({told}).")
        self.notes.append(note("value_unreadable", element=keyword, value=told, instead=instead))
        return None

    def integer(self, keyword: str, default: int | None = None, assumed: bool = False) -> int:
        """The one value of an element that must be a whole number; FilmError otherwise.

        `default` stands in for an absent one, with a note where `assumed`.
        """
        values = self.numbers(keyword) or ()
        if values and values[0].is_integer():
            return int(values[0])
        if values or default is None:
            raise FilmError("bad_pixels", f"The header's {keyword} is missing or no whole number.")
        if assumed:
            self.notes.append(note("assumed", element=keyword, value=default))
        return default

    def layout(self) -> Layout:
        """The checked image pixel module; FilmError where it is none of a film."""
        allocated = self.integer("BitsAllocated")
        stored = self.integer("BitsStored", allocated, assumed=True)
        samples = self.integer("SamplesPerPixel", 1, assumed=True)
        signed = self.integer("PixelRepresentation", 0, assumed=True)
        if allocated not in (8, 16) or not 1 <= stored <= allocated:
            raise FilmError(
                "bad_pixels",
                f"BitsStored {stored} of BitsAllocated {allocated}: films have 1 to 16 of 8 or 16.",
            )
        if samples not in (1, 3) or signed not in (0, 1):
            raise FilmError(
                "bad_pixels",
                f"SamplesPerPixel {samples} or PixelRepresentation {signed} is not allowed.",
            )
        size_hw = (self.integer("Rows"), self.integer("Columns"))
        check_size(size_hw, samples)
        return Layout(
            size_hw,
            samples,
            allocated,
            stored,
            self._high_bit(stored, allocated),
            signed == 1,
            self._photometric(samples),
            samples == 3 and self.integer("PlanarConfiguration", 0) == 1,
        )

    def _high_bit(self, stored: int, allocated: int) -> int:
        values = self.numbers("HighBit", instead=f"{stored - 1} assumed") or (stored - 1.0,)
        if stored - 1 <= values[0] < allocated and values[0].is_integer():
            return int(values[0])
        self.notes.append(note("high_bit_ignored", value=shown(f"{values[0]:g}")))
        return stored - 1

    def _photometric(self, samples: int) -> str:
        said = self.word("PhotometricInterpretation")
        letters = re.sub("[^A-Z0-9]", "", said)
        said = next((k for k in _GREY + _COLOUR if re.sub("[ _]", "", k) == letters), said)
        if not said:
            said = "MONOCHROME2" if samples == 1 else "RGB"
            self.notes.append(note("assumed", element="PhotometricInterpretation", value=said))
        if said not in (_GREY if samples == 1 else _COLOUR):
            what = said if said in _GREY + _COLOUR else "unknown"
            raise FilmError(
                "bad_pixels",
                f"PhotometricInterpretation is {what}, which does not go with {samples} "
                f"sample{'s' * (samples > 1)} a pixel.",
            )
        return said


def _texts(ds: Dataset, keyword: str) -> list[str] | None:
    """The values of an element as text; [] where it is absent, None where it is damaged."""
    try:
        value = ds.get(keyword)
        if isinstance(value, bytes) and " or " in ds[keyword].VR:  # implicit: 16 bits, little
            value = np.frombuffer(value, "<u2").tolist()
        elif isinstance(value, bytes):
            value = value.decode("ascii")
    except Exception:  # pydicom raises all kinds on a damaged element
        return None
    if isinstance(value, str):
        value = value.split("\\")
    values = value if isinstance(value, (list, tuple, MultiValue)) else [value]
    return ["" if v is None else str(v).strip(" \0\t\r\n") for v in values]

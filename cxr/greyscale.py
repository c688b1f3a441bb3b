"""DICOM's grey-value chain: words → stored values → modality LUT → VOI LUT → presentation → [0, 1].

It is worked out for each distinct word once, whichever decoder the words come from, and the film
is read through the table that results. MONOCHROME1 is inverted at the end of the chain: a window is
defined on values that are not yet inverted (DICOM PS3.3 C.7.6.3.1.2), so turning earlier shows the
wrong part of the film.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from cxr.notes import bad_pixels, note
from cxr.picture import by_rows, check_shows
from cxr.pixel_data import Header, Layout, Words

_OWN_RANGE = "the film's own range is shown"


def distinct(words: np.ndarray) -> np.ndarray:
    """The values that occur in an array of uint8 or uint16, ascending, as int64."""
    seen = np.zeros(1 << 8 * words.dtype.itemsize, dtype=bool)
    for row in words:
        seen[row] = True
    return np.flatnonzero(seen)


def grey_from_words(header: Header, layout: Layout, image: Words) -> np.ndarray:
    """(H, W) words of a grey film, as any decoder gives them, to float32 in [0, 1], dense bone
    white; what is assumed is noted in its header."""
    levels = distinct(image.words)
    stored = stored_values(header, layout, levels, image)
    seen = ~_is_padding(header, layout, levels, stored)
    if levels.size > 1 and not seen.any():
        header.notes.append(note("padding_ignored"))
        seen[:] = True
    check_shows(stored[seen])  # before anything is assumed of a blank film
    values, signed, placed = apply_modality(header, layout, stored)
    grey = apply_voi(header, values, signed, placed)
    if grey is not None and grey[seen].min() == grey[seen].max():
        header.notes.append(note("window_empty"))
        grey = None
    if grey is None:
        low, high = values[seen].min(), values[seen].max()
        check_shows(values[seen])
        grey = np.clip((values - low) / (high - low), 0.0, 1.0)
    if _is_inverted(header, layout):
        grey = 1.0 - grey
    if not seen.all():
        grey = np.where(seen, grey, 0.0)
        header.notes.append(note("padding"))
    table = np.zeros(levels[-1] + 1, dtype=np.float32)
    table[levels] = grey
    return by_rows(image.words, lambda rows: table[rows])


def stored_values(header: Header, layout: Layout, levels: np.ndarray, image: Words) -> np.ndarray:
    """Stored values of words: the bits from HighBit down, BitsStored of them, with their sign. Bits
    above and below hold overlays or chance. Films of before DICOM 2014 may sit at the top of their
    word; a HighBit that says so although the values lie at the bottom is ignored."""
    shift, bits = layout.high_bit + 1 - layout.stored, image.bits
    if shift:
        plain = _cut(levels, layout, bits)
        lies_low = (plain & (1 << layout.allocated) - 1 == levels).all()
        if bits <= layout.stored or (lies_low and (levels & (1 << shift) - 1).any()):
            header.notes.append(note("high_bit_ignored", value=layout.high_bit))
            shift = 0
    if image.lossy and bits > layout.stored:
        values = _cut(levels, layout._replace(stored=layout.allocated), bits) >> shift
        low, top = layout.range
        return np.clip(values, low, top)
    return _cut(levels >> shift, layout, bits)


def _cut(words: np.ndarray, layout: Layout, bits: int) -> np.ndarray:
    values = words & (1 << layout.stored) - 1
    sign = 1 << min(layout.stored, bits) - 1
    return (values ^ sign) - sign if layout.signed else values


def _is_padding(
    header: Header, layout: Layout, levels: np.ndarray, stored: np.ndarray
) -> np.ndarray:
    """Which words are padding. Writers mix up signed and unsigned, and pad with words that have
    more bits than are stored."""
    first = header.numbers("PixelPaddingValue", "no padding assumed")
    last = header.numbers("PixelPaddingRangeLimit", "one padding value assumed") or first
    if not first or not last:
        return np.zeros(levels.shape, dtype=bool)
    whole = layout._replace(stored=layout.allocated)
    ends = _cut(np.array([int(v[0]) & 0xFFFF for v in (first, last)]), whole, layout.allocated)
    cut = _cut(ends, layout, layout.allocated)
    bare = layout.signed and ends.min() >= 0 and ends.max() < 1 << layout.stored
    if bare or (cut == ends).all():
        ends, found = cut, stored
    else:
        found = _cut(levels, whole, layout.allocated)
    return (found >= ends.min()) & (found <= ends.max())


def apply_modality(
    header: Header, layout: Layout, stored: np.ndarray
) -> tuple[np.ndarray, bool, bool]:
    """Stored values to float64 manufacturer-independent values, whether these may be negative, and
    whether a window can be placed on them."""
    lut = next(_luts(header, "ModalityLUTSequence", layout.signed), None)
    if lut is not None:
        return lut.apply(stored), False, True  # a table's output is never signed
    slope = (header.numbers("RescaleSlope") or (1.0,))[0]
    intercept = header.numbers("RescaleIntercept", f"0 assumed, {_OWN_RANGE}")
    if slope == 0:
        raise bad_pixels("The header's RescaleSlope is 0, which erases the film.")
    added = intercept[0] if intercept else 0.0
    signed = min(end * slope + added for end in layout.range) < 0
    values = stored.astype(np.float64) * slope + added
    if not np.isfinite(values).all():
        raise bad_pixels("The header's RescaleSlope or RescaleIntercept is too large.")
    return values, signed, intercept is not None


def apply_voi(header: Header, values: np.ndarray, signed: bool, placed: bool) -> np.ndarray | None:
    """Values to [0, 1] by the header's first VOI LUT or window; None where there is none that can
    be used, which is noted."""
    lut = next(_luts(header, "VOILUTSequence", signed), None) if placed else None
    if lut is not None:
        return lut.apply(values) / lut.top
    centre = header.numbers("WindowCenter", _OWN_RANGE)
    width = header.numbers("WindowWidth", _OWN_RANGE)
    if centre is None or width is None or not placed:
        return None
    if not centre or not width:
        header.notes.append(note("no_window"))
        return None
    windowed = apply_window(values, centre[0], width[0], header.word("VOILUTFunction") or "LINEAR")
    if windowed is None:
        header.notes.append(note("window_unusable", value=f"{centre[0]:g}, {width[0]:g}"))
    return windowed


def apply_window(
    values: np.ndarray, centre: float, width: float, function: str = "LINEAR"
) -> np.ndarray | None:
    """Window values to [0, 1] (DICOM PS3.3 C.11.2.1.2); None for a window that is not allowed."""
    if function == "SIGMOID" and width > 0:
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -60.0, 60.0)))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if function != "LINEAR" or width < 1:
        return None
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _is_inverted(header: Header, layout: Layout) -> bool:
    """Whether low values mean white, from photometric interpretation and presentation LUT shape.
    MONOCHROME1 with INVERSE says the same thing twice and is turned once. Devices are known to
    write a wrong IDENTITY into MONOCHROME1 films (dcm4che #944), so there MONOCHROME1 wins."""
    monochrome1 = layout.photometric == "MONOCHROME1"
    shape = header.word("PresentationLUTShape")
    if monochrome1:
        header.notes.append(note("monochrome1"))
    elif shape == "INVERSE":
        header.notes.append(note("inverse"))
    if monochrome1 and shape == "IDENTITY":
        header.notes.append(note("identity_ignored"))
    return monochrome1 or shape == "INVERSE"


class _Lut(NamedTuple):
    table: np.ndarray
    first: int
    top: float  # value that is shown white

    def apply(self, values: np.ndarray) -> np.ndarray:
        index = np.clip(np.rint(values) - self.first, 0, len(self.table) - 1).astype(np.int64)
        return self.table[index].astype(np.float64)


def _luts(header: Header, keyword: str, signed: bool) -> Iterator[_Lut]:
    """The usable tables of a sequence (DICOM PS3.3 C.11.1, C.11.2); broken ones are noted. Where
    the values looked up may be negative, the first one mapped is `signed`."""
    for item in header.items(keyword) or ():
        described = header.numbers("LUTDescriptor", "its table is ignored", item)
        if described is None:
            continue
        if len(described) != 3:
            header.notes.append(note("lut_ignored", element=keyword, why="no descriptor"))
            continue
        count, first, bits = (int(v) & 0xFFFF for v in described)  # whatever its VR: unsigned
        big = header.ds.original_encoding[1] is False
        table = _entries(item, count or 65536, bits, big)
        if len(table) < (count or 65536):
            why = f"{len(table)} entries of {count or 65536}" if len(table) else "no data"
            header.notes.append(note("lut_ignored", element=keyword, why=why))
            continue
        used = max(int(table.max()).bit_length(), 8)
        if not bits - 1 <= used <= bits:  # devices claim 16 bits for a table of 12
            header.notes.append(note("lut_range", said=bits, used=used))
            bits = used
        yield _Lut(table, first - 65536 if signed and first > 32767 else first, 2.0**bits - 1)


def _entries(item: Dataset, count: int, bits: int, big: bool) -> np.ndarray:
    """Up to `count` unsigned entries of a table: words, or bytes packed into words, whatever the
    VR."""
    try:
        data: Any = item["LUTData"].value
        if not isinstance(data, bytes):
            data = np.asarray(data).reshape(-1).astype(np.int64).astype("<u2")
        else:
            data = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2" if big else "<u2")
    except (KeyError, ValueError, TypeError, OverflowError):
        return np.empty(0, np.uint16)
    if data.size < count <= 2 * data.size and (bits <= 8 or count > 2 * data.size - 2):
        data = np.frombuffer(data.astype("<u2").tobytes(), np.uint8)
    return data[:count]

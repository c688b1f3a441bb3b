"""DICOM's grey-value chain: stored values → modality LUT → VOI LUT → presentation → [0, 1].

MONOCHROME1 is inverted at the end of the chain: a window is defined on values that are not yet
inverted (DICOM PS3.3 C.7.6.3.1.2), so turning earlier shows the wrong part of the film.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr.errors import FilmError
from cxr.notes import note

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def min_max_valid(values: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """(H, W) values scaled so that the valid ones span [0, 1]; FilmError where they are constant.

    Args:
        values: (H, W) any real type.
        valid: (H, W) bool, or None where all pixels count.
    """
    seen = values if valid is None else values[valid]
    if seen.size == 0 or not np.isfinite(seen).all() or seen.min() == seen.max():
        raise FilmError("blank", "All pixels have the same value: there is no film.")
    low, high = float(seen.min()), float(seen.max())
    return np.clip((values.astype(np.float64) - low) / (high - low), 0.0, 1.0)


def colour_to_grey(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) RGB to (H, W) float64 luma, in the same range."""
    return rgb[..., :3].astype(np.float64) @ np.asarray(_LUMA)


def padding_mask(ds: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """(H, W) bool, True where a stored value is padding; None where the header names none."""
    value = _first_number(ds.get("PixelPaddingValue"))
    if value is None:
        return None
    limit = _first_number(ds.get("PixelPaddingRangeLimit"))
    ends = [_as_stored(v, stored.dtype) for v in (value, value if limit is None else limit)]
    return (stored >= min(ends)) & (stored <= max(ends))


def apply_modality(ds: Dataset, stored: np.ndarray) -> np.ndarray:
    """(H, W) stored values to float64 manufacturer-independent values."""
    sequence = ds.get("ModalityLUTSequence")
    if sequence:
        return _look_up(stored.astype(np.float64), sequence[0], ds)[0]
    slope, intercept = (_first_number(ds.get(k)) for k in ("RescaleSlope", "RescaleIntercept"))
    if slope == 0:
        raise FilmError("bad_pixels", "The header's rescale slope is 0, which erases the film.")
    return stored.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)


def apply_voi(ds: Dataset, values: np.ndarray) -> tuple[np.ndarray | None, str]:
    """(H, W) values to [0, 1] by the header's first VOI LUT or window.

    Returns:
        the windowed values, or None where the header gives nothing usable, and a note (or "").
    """
    sequence = ds.get("VOILUTSequence")
    if sequence:
        looked_up, top = _look_up(values, sequence[0], ds)
        return looked_up / top, ""
    centre, width = (_first_number(ds.get(k)) for k in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        return None, note("no_window")
    function = str(ds.get("VOILUTFunction") or "LINEAR").strip().upper()
    windowed = apply_window(values, centre, width, function)
    if windowed is None:
        return None, note("window_unusable", value=f"{centre:g}, {width:g}")
    return windowed, ""


def apply_window(
    values: np.ndarray, centre: float, width: float, function: str = "LINEAR"
) -> np.ndarray | None:
    """Window values to [0, 1] (DICOM PS3.3 C.11.2.1.2); None for a window that is not allowed."""
    if function == "SIGMOID":
        if width <= 0:
            return None
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -60.0, 60.0)))
    if function == "LINEAR_EXACT":
        if width <= 0:
            return None
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if function != "LINEAR" or width < 1:
        return None
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def is_inverted(ds: Dataset) -> tuple[bool, list[str]]:
    """Whether low values mean white, from photometric interpretation and presentation LUT shape.

    MONOCHROME1 with INVERSE says the same thing twice and is turned once. Devices are known to
    write a wrong IDENTITY into MONOCHROME1 films (dcm4che #944), so there MONOCHROME1 wins.
    """
    monochrome1 = str(ds.get("PhotometricInterpretation", "")).strip().upper() == "MONOCHROME1"
    shape = str(ds.get("PresentationLUTShape") or "").strip().upper()
    notes = []
    if monochrome1:
        notes.append(note("monochrome1"))
    elif shape == "INVERSE":
        notes.append(note("inverse"))
    if monochrome1 and shape == "IDENTITY":
        notes.append(note("identity_ignored"))
    return monochrome1 or shape == "INVERSE", notes


def grey_from_stored(ds: Dataset, stored: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Stored values of a grey film to (H, W) float64 in [0, 1], dense bone white, with notes."""
    padding = padding_mask(ds, stored)
    valid = None if padding is None else ~padding
    min_max_valid(stored, valid)  # refuses a blank film before anything is assumed of it
    values = apply_modality(ds, stored)
    pixels, said = apply_voi(ds, values)
    notes = [said] if said else []
    if pixels is not None:
        seen = pixels if valid is None else pixels[valid]
        if seen.min() == seen.max():
            pixels, notes = None, [note("window_empty")]
    if pixels is None:
        pixels = min_max_valid(values, valid)
    inverted, why = is_inverted(ds)
    if inverted:
        pixels = 1.0 - pixels
    if padding is not None and padding.any():
        pixels = np.where(padding, 0.0, pixels)
        why.append(note("padding"))
    return pixels, notes + why


def _look_up(values: np.ndarray, item: Dataset, ds: Dataset) -> tuple[np.ndarray, float]:
    """Values through a LUT item of a sequence; returns them as float64 and the LUT's top value."""
    count, first, bits = (int(v) for v in item.LUTDescriptor)
    count = count or 65536
    table = _table(item["LUTData"].value, count, bits, ds)
    if table.size < count or not 1 <= bits <= 16:
        raise FilmError("bad_pixels", "A lookup table of the header is shorter than it says.")
    if first > 32767 and values.min() < 0:  # a signed number read as an unsigned one
        first -= 65536
    index = np.clip(np.rint(values) - first, 0, count - 1).astype(np.int64)
    return table[index].astype(np.float64), float(max(2**bits - 1, int(table.max())))


def _table(data: Any, count: int, bits: int, ds: Dataset) -> np.ndarray:
    if not isinstance(data, bytes):
        return np.asarray(data, dtype=np.int64).reshape(-1)[:count]
    if bits <= 8 and len(data) < 2 * count:
        return np.frombuffer(data, dtype=np.uint8)[:count]
    order = "<" if ds.original_encoding[1] in (True, None) else ">"
    return np.frombuffer(data[: len(data) // 2 * 2], dtype=f"{order}u2")[:count]


def _as_stored(value: float, dtype: np.dtype) -> int:
    """Padding value as the pixels hold it: writers mix up signed and unsigned."""
    return int(np.array(int(value) & 0xFFFF, dtype=np.uint16).astype(dtype))


def _first_number(value: Any) -> float | None:
    """First value of a numeric header element, or None where it is empty or no finite number."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        value = [value]
    try:
        number = float(next(iter(value)))
    except (TypeError, ValueError, StopIteration):
        return None
    return number if math.isfinite(number) else None

"""What is said of a film: notes of one that is read, and the FilmError of one that is not.

A note is "code: Sentence."; it says what was assumed, changed or left out, or what makes the film
less fit. No text of a header goes into it that could hold a name: numbers, keywords of the standard
and words of its fixed lists only (`shown`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

NOTES = {
    # the file
    "preamble_missing": "The DICOM file has no preamble.",
    "meta_missing": "The DICOM file has no file meta information: its coding was guessed.",
    "syntax_contradicted": "The header says {said}, the pixel data are {found}: read as such.",
    "delimiter_missing": "The pixel data have no end marker, but their parts are whole.",
    "modality_missing": "The header names no modality: taken for a film.",
    "frames_odd": "The header's NumberOfFrames is {value}: one image was read.",
    # numbers of the header
    "assumed": "The header has no {element}: {value} assumed.",
    "decimal_comma": "{element} is written with a comma ({value}), read as a decimal point.",
    "value_unreadable": "{element} of the header is unreadable ({value}): {instead}.",
    "high_bit_ignored": "The header's HighBit ({value}) contradicts the pixel data: ignored.",
    # grey values
    "no_window": "The header has no window: the film's own range is shown.",
    "window_unusable": "The header's window cannot be used ({value}): the film's own range is "
    "shown.",
    "window_empty": "The header's window shows no pixel: the film's own range is shown.",
    "lut_ignored": "A lookup table of the header ({element}) is broken ({why}): ignored.",
    "lut_range": "The header's lookup table claims {said} bits and uses {used}: scaled to them.",
    "monochrome1": "Low values are white (MONOCHROME1): inverted.",
    "inverse": "The presentation lookup table is INVERSE: inverted.",
    "identity_ignored": "PresentationLUTShape IDENTITY contradicts MONOCHROME1: ignored.",
    "white_is_zero": "Low values are white (WhiteIsZero): inverted.",
    "padding": "Pixel padding was set to black.",
    "padding_ignored": "The header's padding values are all of the film's: ignored.",
    "colour": "Colour was turned to grey.",
    "alpha_ignored": "The picture has transparent pixels: shown as opaque.",
    "scaled_bits": "The 16-bit file uses {value} bits: scaled to them.",
    "inverted": "The film looks inverted, its lungs brighter than its middle: not changed.",
    # geometry
    "turned": "The picture was turned upright by its orientation tag ({value}).",
    "spacing_detector": "The pixel spacing is the detector's, without magnification.",
    "spacing_scanner": "The pixel spacing is the film scanner's.",
    "not_square": "The pixels are not square ({value}): resampled to square ones.",
    "not_square_ignored": "The pixels are said not to be square ({value}): not obeyed.",
    "thumbnail_skipped": "The picture also holds a reduced copy of itself: left out.",
    # what the picture shows
    "lay_turned": "The film lay turned: it was turned upright by {value}° anticlockwise.",
    "mirrored": "The heart lies on the other side: the film may be mirrored.",
    # fitness
    "for_processing": "The film is FOR PROCESSING: raw detector data, not meant to be looked at.",
    "intent_unknown": "PresentationIntentType is neither FOR PRESENTATION nor FOR PROCESSING.",
    "derived": "The film is derived from another image (ImageType DERIVED).",
    "secondary": "The film is a secondary capture, not the detector's own image.",
    "lossy": "The film was compressed with loss{ratio}.",
    "laterality": "The header's laterality is {value}, that of no whole chest.",
    "unpaired": "The header's laterality is U (unpaired).",
    "lateral": "The view is LATERAL; frontal films are what the networks know.",
}

# FilmError's: what a reason means; what is wrong with the file at hand is the error's sentence.
REASONS = {
    "not_found": "There is no such file, or it may not be read.",
    "empty": "The file has no bytes.",
    "not_an_image": "The file is neither DICOM nor PNG, JPEG or TIFF.",
    "truncated": "The file, or the picture in it, breaks off.",
    "encrypted": "The file, or part of it, is encrypted.",
    "multi_frame": "The file holds several images; a film is one.",
    "no_pixels": "The DICOM file holds no image.",
    "wrong_modality": "The DICOM file is no radiograph.",
    "too_small": "The image is smaller than a film can be.",
    "unsupported_syntax": "The image is coded in a way that is not read.",
    "bad_pixels": "The header or the pixel data contradict themselves, or are damaged.",
    "blank": "All pixels have the same value.",
    "for_processing": "The film is FOR PROCESSING: raw detector data.",
}

_SAFE = re.compile(r"[0-9+\-.,eE \\]{1,32}")


def note(code: str, **values: object) -> str:
    """The note of a code, "code: Sentence."; KeyError for a code or value that is not foreseen."""
    return f"{code}: {NOTES[code].format_map(values)}"


def code_of(text: str) -> str:
    """The code of a note."""
    return text.partition(": ")[0]


def sentence_of(text: str) -> str:
    """The sentence of a note, or all of it where it has none, as in tables that hold codes."""
    return text.partition(": ")[2] or text


def count_notes(notes_of_films: Iterable[Iterable[str]]) -> dict[str, int]:
    """How many films have a note of each code, the most frequent first."""
    codes = Counter(code for notes in notes_of_films for code in {code_of(n) for n in notes})
    return dict(sorted(codes.items(), key=lambda item: (-item[1], item[0])))


def shown(value: object) -> str:
    """A header's value for a note or a refusal: as it is when it is short and made of digits,
    signs and blanks, so that no name is told; "not shown" otherwise."""
    text = str(value).strip()
    return text if _SAFE.fullmatch(text) else "not shown"


class FilmError(Exception):
    """A file that is no readable film: one of `REASONS`, and what is wrong in one sentence for
    people, which never holds text of the header, for that may name the patient. `path` and the
    SHA-256 of the bytes that were read are "" as long as they are not known."""

    def __init__(self, reason: str, sentence: str, path: str = "", sha256: str = "") -> None:
        assert reason in REASONS, reason
        super().__init__(reason, sentence, path, sha256)  # these args make the error picklable
        self.reason = reason
        self.sentence = sentence
        self.path = path
        self.sha256 = sha256

    def __str__(self) -> str:
        place = f"{self.path}: " if self.path else ""
        return f"{place}{self.sentence} [{self.reason}]"


def bad_pixels(sentence: str) -> FilmError:
    """The error of a header or pixel data that contradict themselves, or are damaged."""
    return FilmError("bad_pixels", sentence)


@contextmanager
def decoding(damage: str) -> Iterator[None]:
    """Any failure of a decoder in here, and they raise all kinds, is a FilmError of bad pixels with
    this sentence; what is one already stays as it is, and so does a lack of memory."""
    try:
        yield
    except (FilmError, MemoryError):
        raise
    except Exception as error:
        raise bad_pixels(damage) from error

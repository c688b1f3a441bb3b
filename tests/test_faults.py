"""Faults that other readers stumble over, a kind at a time: read as they should be, or refused with
the true reason. Each kind is built here; the cases of ../shared/faults run where they are present.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
from dicom_films import (
    BASELINE,
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    J2K,
    JLS,
    LOSSLESS_SV1,
    RLE,
    codes,
    compressed,
    film,
    jpeg,
    packed,
    ramp,
    written,
)
from pydicom.dataset import Dataset

from cxr.dicom import read_dicom
from cxr.film import read_film
from cxr.notes import NOTES, REASONS, FilmError, note

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of what is written
SYNTAXES = ("rle", "jpeg-ls", "jpeg 2000", "signed jpeg 2000", "htj2k", "jpeg lossless")
FULL = {"WindowCenter": "2048", "WindowWidth": "4096"}
WHOLE = ramp() / 4095


def read(ds: Dataset, syntax: str = EXPLICIT) -> tuple[np.ndarray, set[str]]:
    got = read_dicom(written(ds, syntax))
    return got.pixels, codes(got.notes)


def why_not(data: bytes) -> FilmError:
    with pytest.raises(FilmError) as caught:
        read_dicom(data)
    return caught.value


def values_of(bits: int, signed: bool) -> np.ndarray:
    """(96, 72) int64 over the whole range of `bits`, some of them alone in their neighbourhood."""
    values = ramp(bits).astype(np.int64)
    values[5, ::7] = (1 << bits) - 1
    values[6, ::7] = 0
    return values - (1 << bits - 1) * signed


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED, *SYNTAXES])
@pytest.mark.parametrize(
    ("allocated", "bits", "high_bit"),
    [(16, 12, 11), (16, 12, 15), (16, 10, 12), (16, 13, 12), (16, 16, 15), (8, 8, 7), (8, 6, 7)],
)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("garbage", [False, True])
def test_the_same_values_give_the_same_film_in_every_syntax(
    syntax, allocated, bits, high_bit, signed, garbage
):
    """Overlays or chance above and below the value, padding, sign: none depends on the coding."""
    values = values_of(bits, signed)
    shift = high_bit + 1 - bits
    words = (values & (1 << bits) - 1) << shift
    if garbage:
        chance = np.random.default_rng(1).integers(0, 1 << allocated, words.shape)
        words |= chance & ~(((1 << bits) - 1) << shift) & (1 << allocated) - 1
    elif signed and not shift:
        words = values & (1 << allocated) - 1  # as most devices write it
    words = words.astype(np.uint8 if allocated == 8 else np.uint16)
    ds = film(words, bits, HighBit=high_bit, PixelRepresentation=int(signed))
    ds.add_new("PixelPaddingValue", "SS" if signed else "US", int(values[0, 0]))
    data = written(ds, syntax) if syntax[0] == "1" else packed(ds, words, syntax)
    got = read_dicom(data)
    inside = values != values[0, 0]
    low = values[inside].min()
    want = np.where(inside, (values - low) / (values.max() - low), 0)
    assert np.abs(got.pixels - want).max() < 1e-6
    assert codes(got.notes) == {"no_window", "padding"}


@pytest.mark.parametrize("syntax", [EXPLICIT, *SYNTAXES])
def test_a_padding_that_has_more_bits_than_are_stored_is_found_in_the_words(syntax):
    words = ramp() // 2 + 1000
    words[:3] = 0xF800
    words[3, 0] = 0x800  # the same bits below BitsStored, but a value
    ds = film(words, PixelPaddingValue=0xF800)
    got = read_dicom(written(ds) if syntax == EXPLICIT else packed(ds, words, syntax))
    assert (got.pixels[:3] == 0).all() and got.pixels[3, 0] > 0.2


def test_a_padding_range_that_covers_the_whole_film_is_ignored():
    pixels, notes = read(film(ramp(), **FULL, PixelPaddingValue=0, PixelPaddingRangeLimit=4095))
    assert np.allclose(pixels, WHOLE, atol=1e-6) and "padding_ignored" in notes


def test_a_high_bit_that_the_values_contradict_is_ignored_with_a_note():
    for kind in ("jpeg-ls", "rle"):
        ds = film(ramp(), HighBit=15)
        got = read_dicom(packed(ds, ramp(), kind))
        assert np.allclose(got.pixels, WHOLE, atol=1e-6)
        assert "high_bit_ignored" in codes(got.notes)
    pixels, notes = read(film(ramp(), HighBit=5))
    assert np.allclose(pixels, WHOLE, atol=1e-6) and "high_bit_ignored" in notes


def test_a_lossy_film_that_overshoots_is_clipped_and_not_wrapped():
    stream = imagecodecs.jpegls_encode(ramp(), level=3)
    got = read_dicom(compressed(film(ramp(), **FULL), stream, "1.2.840.10008.1.2.4.81"))
    assert np.abs(got.pixels - WHOLE).max() < 2e-3


COMMAS = {
    "RescaleSlope": ("0,5", {"RescaleSlope": "0.5"}),
    "RescaleIntercept": ("-100,0", {"RescaleIntercept": "-100"}),
    "WindowCenter": ("1500,5\\9", {"WindowCenter": "1500.5"}),
    "WindowWidth": ("2000,", {"WindowWidth": "2000"}),
}


@pytest.mark.parametrize("keyword", list(COMMAS))
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_a_decimal_comma_is_read_as_a_point(keyword, syntax):
    text, right = COMMAS[keyword]
    want, _ = read(film(ramp(), **FULL | {"RescaleIntercept": "0"} | right))
    ds = film(ramp(), **FULL | {"RescaleIntercept": "0"})
    ds[keyword] = raw(keyword, text)
    data = written(ds, syntax).replace(text.replace(",", ";").encode(), text.encode())
    got = read_dicom(data)
    assert np.array_equal(got.pixels, want)
    assert f"{keyword} is written with a comma" in " ".join(got.notes)


def raw(keyword: str, text: str):
    """A DS element of any text, which pydicom itself would not write."""
    from pydicom.dataelem import DataElement

    return DataElement(keyword, "LO", text.replace(",", ";"), already_converted=True)


ODD = ("nan", "1.2.3", "4711_", "Doe^Jane", "1 500", "0x10", "1e999", "--1", "1_000")


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("keyword", ["WindowCenter", "WindowWidth", "RescaleIntercept"])
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_a_number_that_cannot_be_read_is_noted_and_never_absent(keyword, text, syntax):
    ds = film(ramp(), **FULL)
    ds[keyword] = raw(keyword, text)
    got = read_dicom(written(ds, syntax))
    assert np.allclose(got.pixels, WHOLE, atol=1e-6)
    (said,) = (n for n in got.notes if n.startswith("value_unreadable"))
    assert keyword in said and "Doe" not in said and "no_window" not in codes(got.notes)


@pytest.mark.parametrize("keyword", ["RescaleSlope", "BitsStored", "Rows", "PixelRepresentation"])
@pytest.mark.parametrize("text", ["4711_", "Doe^Jane", "nan"])
def test_a_number_that_a_film_hangs_on_is_refused_with_its_name(keyword, text):
    ds = film(ramp(), **FULL)
    ds[keyword] = raw(keyword, text)
    error = why_not(written(ds))
    assert error.reason == "bad_pixels" and keyword in error.sentence
    assert "Doe" not in error.sentence


def test_unreadable_spacing_padding_and_high_bit_are_noted():
    for keyword in ("PixelSpacing", "PixelPaddingValue", "HighBit", "NumberOfFrames"):
        ds = film(ramp(), **FULL)
        ds[keyword] = raw(keyword, "abc")
        got = read_dicom(written(ds))
        assert np.allclose(got.pixels, WHOLE, atol=1e-3)
        assert any(keyword in n and n.startswith("value_unreadable") for n in got.notes), keyword


def lut(descriptor: list[int], data: object, vr: str = "US", of: str = "US") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", of, descriptor)
    if data is not None:
        item.add_new("LUTData", vr, data)
    return item


FALL = [4095 - i for i in range(4096)]
FALL_8 = bytes(255 - i // 16 for i in range(4096))
FALL_16 = [v * 16 + v // 256 for v in FALL]


TABLES = {
    "words": (lambda _: lut([4096, 0, 12], FALL), 1e-6),
    "OW": (lambda order: lut([4096, 0, 12], np.array(FALL, order).tobytes(), "OW"), 1e-6),
    "16 bits claimed, 12 used": (lambda _: lut([4096, 0, 16], FALL), 1e-6),
    "two bytes a word, OW": (
        lambda order: lut([4096, 0, 8], packed_8(order).tobytes(), "OW"),
        5e-3,
    ),
    "two bytes a word, US": (lambda _: lut([4096, 0, 8], packed_8("<u2").tolist()), 5e-3),
    "a byte a word": (lambda _: lut([4096, 0, 8], list(FALL_8)), 5e-3),
    "16 bits": (lambda _: lut([4096, 0, 16], FALL_16), 2e-4),
    "0 for 65,536 entries": (lambda _: lut([0, 0, 12], FALL + [0] * 61440), 1e-6),
    "written as signed": (
        lambda _: lut([4096, 0, 16], [(v ^ 0x8000) - 0x8000 for v in FALL_16], "SS"),
        2e-4,
    ),
}


def packed_8(order: str) -> np.ndarray:
    return np.frombuffer(FALL_8, "<u2").astype(order)


@pytest.mark.parametrize("name", list(TABLES))
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_lookup_tables_keep_to_the_standards_special_cases(name, keyword, syntax):
    build, tolerance = TABLES[name]
    pixels, _ = read(film(ramp(), **{keyword: [build(">u2" if syntax == BIG else "<u2")]}), syntax)
    assert np.abs(pixels - (1 - WHOLE)).max() < tolerance + 1e-5


@pytest.mark.parametrize(("of", "first"), [("SS", -2048), ("US", 63488)])
def test_the_first_value_of_a_table_is_signed_where_the_pixels_are(of, first):
    values = (ramp().astype(np.int32) - 2048).astype(np.int16)
    pixels, _ = read(film(values, VOILUTSequence=[lut([4096, first, 12], FALL, of=of)]))
    assert np.abs(pixels - (1 - WHOLE)).max() < 1e-5
    words = ramp().astype(np.uint16) + 61000
    pixels, _ = read(
        film(words, 16, VOILUTSequence=[lut([4096, 61000 - 65536, 12], FALL, of="SS")])
    )
    assert np.abs(pixels - (1 - WHOLE)).max() < 1e-5


BROKEN = {
    "no item's content": Dataset(),
    "no data": lut([4096, 0, 12], None),
    "short": lut([4096, 0, 12], FALL[:4000]),
    "no descriptor": lut([4096, 0], FALL),
    "data of text": lut([4096, 0, 12], "DOE^JANE", "LO"),
    "descriptor of text": lut("DOE", FALL, of="LO"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", list(BROKEN))
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_broken_table_is_noted_and_the_window_beside_it_used(name, keyword):
    got = read_dicom(written(film(ramp(), **FULL, **{keyword: [BROKEN[name]]})))
    assert np.allclose(got.pixels, WHOLE, atol=1e-3)
    assert codes(got.notes) & {"lut_ignored", "value_unreadable"} and "DOE" not in str(got.notes)


def test_a_table_that_uses_fewer_bits_than_it_claims_is_scaled_with_a_note():
    assert "lut_range" in read(film(ramp(), VOILUTSequence=[lut([4096, 0, 16], FALL)]))[1]
    assert "lut_range" not in read(film(ramp(), VOILUTSequence=[lut([4096, 0, 12], FALL)]))[1]


@pytest.mark.parametrize(
    ("header", "shape", "spacing"),
    [
        ({"PixelSpacing": [0.2, 0.1]}, (192, 72), (0.1, 0.1)),
        ({"ImagerPixelSpacing": [0.1, 0.15]}, (96, 108), (0.1, 0.1)),
        ({"PixelAspectRatio": [1, 2]}, (96, 144), None),
        ({"PixelSpacing": [0.2, 0.2], "PixelAspectRatio": [1, 2]}, (96, 72), (0.2, 0.2)),
        ({"PixelSpacing": [0.2, 0.2015]}, (96, 72), (0.2, 0.2015)),
        ({"PixelSpacing": [0.2, 0.01]}, (96, 72), (0.2, 0.01)),
        ({"PixelAspectRatio": [0, 1]}, (96, 72), None),
        ({"PixelAspectRatio": [0, 1], "PixelSpacing": [0.1]}, (96, 72), None),
    ],
)
def test_pixels_become_square_and_boxes_find_back(tmp_path, header, shape, spacing):
    path = tmp_path / "a.dcm"
    path.write_bytes(written(film(ramp(), **FULL, **header)))
    got = read_film(path)
    assert got.pixels.shape == shape and got.spacing_mm == spacing
    assert (got.stored_hw is None) == (shape == (96, 72))
    assert ("not_square" in codes(got.notes)) == (got.stored_hw is not None)
    height, width = shape
    assert np.allclose(got.to_stored(np.array([0, 0, width, height])), [0, 0, 72, 96])
    assert abs(got.pixels.mean() - WHOLE.mean()) < 0.01


FITNESS = {
    "derived": {"ImageType": ["DERIVED", "PRIMARY"]},
    "secondary": {"ImageType": ["ORIGINAL", "SECONDARY"]},
    "lossy": {"LossyImageCompression": "01", "LossyImageCompressionRatio": "12.5"},
    "unpaired": {"ImageLaterality": "U"},
    "laterality": {"Laterality": "L"},
    "lateral": {"ViewPosition": "LL"},
    "intent_unknown": {"PresentationIntentType": "DOE"},
}


@pytest.mark.parametrize("code", list(FITNESS))
def test_what_makes_a_film_less_fit_is_noted(code):
    got = read_dicom(written(film(ramp(), **FULL, **FITNESS[code])))
    assert code in codes(got.notes) and "DOE" not in str(got.notes)
    assert code not in read(film(ramp(), **FULL))[1]


@pytest.mark.parametrize(
    "header",
    [
        {"PresentationIntentType": "FOR PROCESSING"},
        {"PresentationIntentType": "for processing "},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"},
    ],
)
def test_a_film_for_processing_is_read_only_when_asked_for(tmp_path, header):
    path = tmp_path / "a.dcm"
    path.write_bytes(written(film(ramp(), Modality="DX", **header)))
    with pytest.raises(FilmError) as caught:
        read_film(path)
    assert caught.value.reason == "for_processing"
    assert "for_processing" in codes(read_film(path, for_processing=True).notes)


@pytest.mark.parametrize("extra", [1, 40, 4097, 100_000])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_padding_behind_a_stream_is_no_fault(syntax, extra):
    data = packed(film(ramp()), ramp(), syntax, behind=bytes(extra))
    assert np.allclose(read_dicom(data).pixels, WHOLE, atol=1e-6)


def test_a_tile_part_of_unsaid_length_is_whole_and_one_of_a_wrong_length_is_not_called_cut():
    data = packed(film(ramp()), ramp(), "jpeg 2000", behind=bytes(4))
    at = data.index(b"\xff\x90") + 6
    length = int.from_bytes(data[at : at + 4], "big")
    unsaid = data[:at] + bytes(4) + data[at + 4 :]
    assert np.allclose(read_dicom(unsaid).pixels, WHOLE, atol=1e-6)
    wrong = data[:at] + (length + 50).to_bytes(4, "big") + data[at + 4 :]
    assert why_not(wrong).reason == "bad_pixels"


def test_an_8_bit_stream_in_16_allocated_bits_is_read():
    ds = film(ramp(8).astype(np.uint16), 8)
    got = read_dicom(compressed(ds, jpeg(ramp(8)), BASELINE))
    assert np.abs(got.pixels - ramp(8) / 255).max() < 0.03


def test_a_missing_sequence_delimiter_is_noted_and_a_cut_is_still_one():
    data = packed(film(ramp()), ramp(), "jpeg 2000")
    got = read_dicom(data[:-8])
    assert np.allclose(got.pixels, WHOLE, atol=1e-6) and "delimiter_missing" in codes(got.notes)
    for cut in (1, 4, 7, 9, 500):
        assert why_not(data[:-cut]).reason == "truncated"


@pytest.mark.parametrize("said", [RLE, J2K, JLS, LOSSLESS_SV1, BASELINE])
def test_a_syntax_that_the_data_contradict_is_said(said):
    data = bytearray(written(film(ramp()), EXPLICIT))
    data = bytes(data).replace(b"1.2.840.10008.1.2.1\0", (said + "\0" * (len(said) % 2)).encode())
    at = data.index(b"\x02\x00\x10\x00UI") + 6
    data = data[:at] + (len(said) + len(said) % 2).to_bytes(2, "little") + data[at + 2 :]
    got = read_dicom(data)
    assert np.allclose(got.pixels, WHOLE, atol=1e-6)
    assert "the pixel data are uncompressed: read as such" in " ".join(got.notes)
    assert "The header says" in why_not(cut_value(data)).sentence


def cut_value(data: bytes) -> bytes:
    """The file with ten rows fewer, and the length of its pixel data to match."""
    at = data.index(b"\xe0\x7f\x10\x00OW\0\0") + 8
    length = int.from_bytes(data[at : at + 4], "little") - 1440
    return data[:at] + length.to_bytes(4, "little") + data[at + 4 : at + 4 + length]


def test_data_that_are_not_deflated_as_the_header_says_are_read():
    data = written(film(ramp()), EXPLICIT)
    plain = b"1.2.840.10008.1.2.1\0"
    said = DEFLATED.encode()
    length = data.index(b"\x02\0\0\0UL\4\0") + 8
    more = int.from_bytes(data[length : length + 4], "little") + len(said) - len(plain)
    data = data[:length] + more.to_bytes(4, "little") + data[length + 4 :]
    at = data.index(plain) - 2
    data = data[:at] + len(said).to_bytes(2, "little") + said + data[at + 2 + len(plain) :]
    got = read_dicom(data)
    assert np.allclose(got.pixels, WHOLE, atol=1e-6) and "syntax_contradicted" in codes(got.notes)


@pytest.mark.parametrize("kind", SYNTAXES)
@pytest.mark.parametrize("said", [EXPLICIT, J2K, JLS, LOSSLESS_SV1])
def test_compressed_data_are_read_as_what_they_are(kind, said):
    got = read_dicom(packed(film(ramp()), ramp(), kind, syntax=said))
    assert np.allclose(got.pixels, WHOLE, atol=1e-6)


def test_two_images_where_the_header_has_one_are_refused():
    for kind in SYNTAXES:
        data = packed(film(ramp()), ramp(), kind)
        at = data.index(b"\xe0\x7f\x10\x00") + 12
        items, end = data[at:-8], data[-8:]
        offset = items[: 8 + int.from_bytes(items[4:8], "little")]
        one = items[len(offset) :]
        table = struct.pack("<4sIII", b"\xfe\xff\x00\xe0", 8, 0, len(one))
        assert why_not(data[:at] + table + one + one + end).reason == "multi_frame"
        if kind != "rle":  # without a table, two RLE images cannot be told from one
            assert why_not(data[:at] + offset + one + one + end).reason == "multi_frame"


@pytest.mark.parametrize("text", ["Monochrome1", "monochrome1 ", " MONOCHROME1", "Monochrome_1"])
def test_photometric_interpretation_is_read_in_any_letters(text):
    pixels, notes = read(film(ramp(), **FULL, PhotometricInterpretation=text))
    assert np.allclose(pixels, 1 - WHOLE, atol=1e-3) and "monochrome1" in notes
    error = why_not(written(film(ramp(), PhotometricInterpretation="DOE")))
    assert "PhotometricInterpretation is unknown" in error.sentence


@pytest.mark.parametrize(("frames", "code"), [("0", "frames_odd"), ("-3", "frames_odd"), ("1", "")])
def test_odd_numbers_of_frames_are_noted(frames, code):
    pixels, notes = read(film(ramp(), **FULL, NumberOfFrames=frames))
    assert np.allclose(pixels, WHOLE, atol=1e-3) and (code in notes) == bool(code)
    assert why_not(written(film(ramp(), NumberOfFrames=10**9))).reason == "multi_frame"


def test_a_note_is_a_code_and_a_sentence():
    assert note("padding") == "padding: Pixel padding was set to black."
    for code, sentence in (NOTES | REASONS).items():
        assert (
            code == code.lower()
            and ":" not in code
            and sentence[0].isupper() | (sentence[0] == "{")
        )
        assert sentence.endswith(".")


FAULTS = Path(__file__).parents[1].parent / "shared/faults"
REFUSED = {
    "for_processing_lin.dcm": "for_processing",
    "jpeg12.jpg": "unsupported_syntax",
    "alloc16_native_8bit_data.dcm": "bad_pixels",
    "j2k_no_eoc.dcm": "truncated",
    "jpeg_no_eoi.dcm": "truncated",
    "rle_short_segment.dcm": "truncated",
    "native_two_frames_one_declared.dcm": "bad_pixels",
    "pages2.tif": "multi_frame",
    "float.tif": "bad_pixels",
    "int16neg.tif": "bad_pixels",
}
SPOKEN = ("comma", "mod_lut", "voi_lut", "ts_", "no_seq", "thumb")


def cases() -> list[tuple[str, str]]:
    files = (FAULTS / folder / "cases.json" for folder in ("failing", "passing"))
    return [(file.parent.name, name) for file in files if file.exists() for name in loaded(file)]


def loaded(file: Path) -> dict[str, dict[str, str]]:
    return json.loads(file.read_text(encoding="utf-8"))


def stretched(pixels: np.ndarray) -> np.ndarray:
    return (pixels - pixels.min()) / (pixels.max() - pixels.min())


@pytest.mark.skipif(not FAULTS.exists(), reason="the fault films are not here")
@pytest.mark.parametrize(("folder", "name"), cases())
def test_the_gathered_faults_are_read_or_refused_as_they_should(folder, name):
    path = FAULTS / folder / name
    if name in REFUSED:
        with pytest.raises(FilmError) as caught:
            read_film(path)
        assert caught.value.reason == REFUSED[name]
        return
    got = read_film(path)
    gold = loaded(FAULTS / folder / "cases.json")[name]["gold"]
    if gold:
        want = cv2.imread(str(FAULTS / folder / f"gold/{gold}.png"), cv2.IMREAD_UNCHANGED)
        assert np.abs(stretched(got.pixels) - stretched(want.astype(np.float64))).max() < 0.01
    if folder == "failing" and name.startswith(SPOKEN):
        assert got.notes

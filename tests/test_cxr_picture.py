"""PNG, JPEG and TIFF: depth, orientation, and what is cut or damaged."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
from dicom_films import H, W, codes, film, ramp, written
from PIL import Image, ImageOps

from cxr.dicom import read_dicom
from cxr.notes import FilmError, note
from cxr.picture import read_picture

ADAM7 = (  # left, top, horizontal and vertical step of the seven passes
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


def deep() -> np.ndarray:
    """(96, 72) uint16 film over the whole range."""
    return ramp(16)


def saved(array: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def by_opencv(array: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, array)[1].tobytes()


def png(head: bytes, rows: bytes) -> bytes:
    """A PNG of whole chunks with right checksums, whatever they hold."""
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    return data


def noise() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (H, W), dtype=np.uint8)


PICTURES = {
    "png 8": (saved(ramp(8), "PNG"), 8, 0),
    "png 16": (saved(deep(), "PNG"), 16, 0),
    "png 8 colour": (saved(np.dstack([ramp(8)] * 3), "PNG"), 8, 0),
    "png 8 alpha": (saved(np.dstack([ramp(8)] * 3 + [ramp(8) * 0 + 9]), "PNG"), 8, 0),
    "png 16 colour": (by_opencv(np.dstack([deep()] * 3), ".png"), 16, 0),
    "jpeg": (saved(ramp(8), "JPEG", quality=98), 8, 0.02),
    "jpeg progressive": (saved(ramp(8), "JPEG", quality=98, progressive=True), 8, 0.02),
    "tiff 8": (saved(ramp(8), "TIFF"), 8, 0),
    "tiff 16": (saved(deep(), "TIFF"), 16, 0),
    "tiff 16 lzw": (saved(deep(), "TIFF", compression="tiff_lzw"), 16, 0),
    "tiff 8 deflate": (saved(ramp(8), "TIFF", compression="tiff_adobe_deflate"), 8, 0),
    "tiff 16 colour": (by_opencv(np.dstack([deep()] * 3), ".tif"), 16, 0),
}


def refused(data: bytes) -> str:
    with pytest.raises(FilmError) as caught:
        read_picture(data)
    return caught.value.reason


@pytest.mark.parametrize("name", list(PICTURES))
def test_each_kind_gives_the_same_film_at_its_own_depth(name):
    data, depth, tolerance = PICTURES[name]
    pixels, bits, _ = read_picture(data)
    assert pixels.dtype == np.float32 and pixels.shape == (H, W)
    assert bits == depth
    step = 1 / 65535 if depth == 16 else 1 / 255
    assert np.abs(pixels - deep() / 65535).max() <= max(tolerance, step / 2 + 1e-6)


def test_a_crop_saved_with_16_bits_comes_back_as_it_was():
    part = (deep() // 3 + 20000).astype(np.uint16)
    pixels, _, notes = read_picture(saved(part, "PNG"))
    assert np.array_equal(np.rint(pixels.astype(np.float64) * 65535).astype(np.uint16), part)
    assert notes == ()


def tiff(values: np.ndarray, *tags: tuple[int, int, int, int], behind: bytes = b"") -> bytes:
    """A TIFF of one strip of (H, W) or (H, W, C) values, or (C, H, W) planes; `tags` are added, or
    replace the usual ones."""
    planar = values.ndim == 3 and values.shape[0] < 5
    channels = 1 if values.ndim == 2 else values.shape[0 if planar else 2]
    height, width = values.shape[1:] if planar else values.shape[:2]
    bits, size = values.dtype.itemsize * 8, values.nbytes // (channels if planar else 1)
    entries = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, bits),
        259: (3, 1, 1),
        262: (3, 1, 2 if channels > 2 else 1),
        273: (4, 1, 8),
        277: (3, 1, channels),
        278: (4, 1, height),
        279: (4, 1, size),
        284: (3, 1, 2 if planar else 1),
    }
    entries |= {tag: tuple(rest) for tag, *rest in tags}
    data = values.tobytes() + behind
    rows = {258: [bits] * channels}  # what has several values lies behind the strips
    if planar:
        rows |= {273: [8 + size * n for n in range(channels)], 279: [size] * channels}
    for tag, numbers in rows.items() if channels > 1 else ():
        kind = entries[tag][0]
        packed = struct.pack(f"<{channels}{'HI'[kind == 4]}", *numbers)
        at = 8 + len(data) if len(packed) > 4 else int.from_bytes(packed, "little")
        entries[tag] = (kind, channels, at)
        data += packed
    directory = struct.pack("<H", len(entries))
    for tag, (kind, count, value) in sorted(entries.items()):
        directory += struct.pack("<HHII", tag, kind, count, value)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


TWINS = {
    "png": lambda v: saved(v, "PNG"),
    "png with alpha": lambda v: imagecodecs.png_encode(np.dstack([v, v * 0 + 65535])),
    "png colour": lambda v: by_opencv(np.dstack([v] * 3), ".png"),
    "png colour with alpha": lambda v: by_opencv(np.dstack([v] * 3 + [v * 0 + 9]), ".png"),
    "tiff": lambda v: saved(v, "TIFF"),
    "tiff colour": lambda v: tiff(np.dstack([v] * 3)),
    "tiff planes": lambda v: tiff(np.stack([v] * 3)),
    "tiff grey with alpha": lambda v: tiff(np.dstack([v, v * 0 + 65535])),
    "tiff planes with alpha": lambda v: tiff(np.stack([v] * 4)),
    "tiff signed": lambda v: tiff((v // 2).astype(np.int16), (339, 3, 1, 2)),
}


@pytest.mark.parametrize("name", list(TWINS))
@pytest.mark.parametrize("bits", [12, 16])
def test_the_same_values_give_the_film_that_they_give_as_dicom(name, bits):
    values = ramp(bits) // 2 * 2 if name == "tiff signed" else ramp(bits)
    stored = values // 2 if name == "tiff signed" else values
    top = 2 ** (bits - (name == "tiff signed" and bits == 12)) - 1
    ds = film(stored, bits, WindowCenter=(top + 1) / 2, WindowWidth=top + 1)
    pixels, _, _ = read_picture(TWINS[name](values))
    assert np.abs(pixels - read_dicom(written(ds)).pixels).max() < 1e-6


@pytest.mark.parametrize(
    ("order", "bits"), [("<", 8), ("<", 10), ("<", 12), ("<", 16), (">", 8), (">", 16)]
)
@pytest.mark.parametrize("big", [False, True])
def test_tiffs_of_either_order_size_and_packing_are_read(order, big, bits):
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=big, byteorder=order) as writer:
        writer.write(
            ramp(bits),
            bitspersample=bits,
            photometric="minisblack",
            compression=None if bits % 8 else "lzw",
            metadata=None,
        )
    pixels, depth, _ = read_picture(file.getvalue())
    assert np.abs(pixels - ramp(bits) / (2**bits - 1)).max() < 1e-6 and depth == bits


@pytest.mark.parametrize("bits", [12, 16])
def test_white_is_zero_is_inverted_within_the_bits_that_are_used(bits):
    pixels, _, notes = read_picture(tiff(ramp(bits), (262, 3, 1, 0)))
    assert np.allclose(pixels, 1 - ramp(bits) / (2**bits - 1), atol=1e-6)
    assert "white_is_zero" in codes(notes)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 4711])
def test_orientations_are_obeyed_as_pillow_does_and_odd_ones_left(kind, deep, number):
    stored = ramp(16) if deep and kind != "JPEG" else ramp(8)
    exif = Image.Exif()
    exif[0x0112] = number
    data = saved(stored, kind, exif=exif.tobytes())
    pixels, _, notes = read_picture(data)
    with Image.open(io.BytesIO(saved(ramp(8), "PNG", exif=exif.tobytes()))) as image:
        want = np.asarray(ImageOps.exif_transpose(image)) / 255
    assert pixels.shape == want.shape and np.abs(pixels - want).max() < 0.03
    assert ("turned" in codes(notes)) == (2 <= number <= 8)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("tag", [(254, 4, 1, 1), (255, 3, 1, 2), (254, 4, 1, 4)])
def test_a_reduced_copy_beside_the_picture_is_left_out(first, tag):
    """Two directories of the same strip; only one of them says what it is."""
    plain = tiff(deep())
    marked = tiff(deep() // 2, tag)
    pages = [marked, plain] if first else [plain, marked]
    joined = pages[0]
    at = len(joined)
    directory = 8 + deep().nbytes
    second = bytearray(pages[1][directory:])
    entry = second.index(struct.pack("<HHII", 273, 4, 1, 8))
    second[entry + 8 : entry + 12] = struct.pack("<I", at + len(second))
    joined = joined[:-4] + struct.pack("<I", at) + bytes(second) + pages[1][8:directory]
    pixels, _, notes = read_picture(joined)
    assert np.abs(pixels - deep() / 65535).max() < 1e-6
    assert codes(notes) == {"thumbnail_skipped"}


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (lambda: imagecodecs.jpeg_encode(ramp(12), bitspersample=12), "12-bit JPEG"),
        (lambda: imagecodecs.jpeg_encode(ramp(8), lossless=True, predictor=1), "lossless JPEG"),
        (lambda: imagecodecs.jpegls_encode(ramp(8)), "JPEG-LS"),
    ],
)
def test_other_kinds_of_jpeg_are_refused_by_name(build, kind):
    with pytest.raises(FilmError, match=f"{kind} is not read") as caught:
        read_picture(build())
    assert caught.value.reason == "unsupported_syntax"


def test_a_resolution_that_says_not_square_is_noted_and_not_obeyed():
    for kind in ("PNG", "TIFF", "JPEG"):
        pixels, _, notes = read_picture(saved(ramp(8), kind, dpi=(300, 150)))
        assert pixels.shape == (H, W) and "not_square_ignored" in codes(notes)


def test_12_bits_in_a_16_bit_file_are_scaled_to_12_and_noted():
    pixels, _, notes = read_picture(saved(ramp(12), "PNG"))
    assert np.allclose(pixels, ramp(12) / 4095, atol=1e-6)
    assert notes == (note("scaled_bits", value=12),)


@pytest.mark.parametrize("stored", [ramp(8), deep()])
def test_a_tiff_of_white_is_zero_is_inverted(stored):
    data = bytearray(saved(stored, "TIFF"))
    entry = data.index(struct.pack("<HHI", 262, 3, 1))
    data[entry + 8 : entry + 10] = b"\0\0"
    pixels, _, _ = read_picture(bytes(data))
    assert np.allclose(pixels, 1 - stored / np.iinfo(stored.dtype).max, atol=1e-6)


def test_an_interlaced_png_is_read():
    """Seven passes of a 65 × 64 film, written by hand: Pillow writes none."""
    stored = ramp(8)[:65, :64]
    rows = b""
    for left, top, dx, dy in ADAM7:
        rows += b"".join(b"\0" + row.tobytes() for row in stored[top::dy, left::dx])
    head = struct.pack(">IIBBBBB", 64, 65, 8, 0, 0, 0, 1)
    pixels, _, _ = read_picture(png(head, rows))
    assert np.array_equal(pixels, (stored / 255).astype(np.float32))
    assert refused(png(head, rows[:-80])) == "truncated"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_the_orientation_tag_is_obeyed_and_noted(kind):
    """Orientation 6: the stored picture must be turned 90° clockwise, so (96, 72) → (72, 96)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels, _, _ = read_picture(saved(ramp(8), kind, exif=exif.tobytes()))
    assert pixels.shape == (W, H)
    assert np.abs(pixels - np.rot90(ramp(8) / 255, -1)).max() < 0.03


def test_colour_is_weighed_by_luma_and_noted():
    green = np.zeros((H, W, 3), np.uint8)
    green[..., 1] = ramp(8)
    pixels, _, notes = read_picture(saved(green, "PNG"))
    assert pixels[-1, -1] == pytest.approx(0.587, abs=1e-3)
    assert notes == (note("colour"),)


@pytest.mark.parametrize("name", list(PICTURES))
def test_a_picture_cut_anywhere_is_refused(name):
    data = PICTURES[name][0]
    cuts = [*range(9, len(data), max(len(data) // 25, 1)), len(data) - 20]
    assert {refused(data[:cut]) for cut in cuts} <= {"truncated", "bad_pixels"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_half_a_picture_counts_as_truncated(kind):
    data = saved(noise(), kind)
    assert refused(data[: len(data) // 2]) == "truncated"


def test_the_end_marker_of_a_thumbnail_does_not_hide_a_cut():
    exif = Image.Exif()
    exif[0x010E] = "thumbnail \xff\xd9"
    exif.get_ifd(0x8769)[0x9286] = b"\xff\xd8\xff\xd9" * 9
    data = saved(noise(), "JPEG", exif=exif.tobytes())
    assert data.index(b"\xff\xd9") < len(data) // 2
    assert refused(data[:-2]) == "truncated"


def test_a_png_whose_data_end_early_is_refused_although_its_chunks_are_whole():
    rows = b"".join(b"\0" + bytes(row) for row in noise()[:40])
    head = struct.pack(">IIBBBBB", W, H, 8, 0, 0, 0, 0)
    assert refused(png(head, rows)) == "truncated"


def test_a_png_with_a_wrong_checksum_is_refused():
    data = bytearray(saved(noise(), "PNG"))
    data[len(data) // 2] ^= 1
    assert refused(bytes(data)) == "bad_pixels"


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_several_pages_are_refused(kind):
    file = io.BytesIO()
    first, second = Image.fromarray(noise()), Image.fromarray(noise()[::-1].copy())
    first.save(file, kind, save_all=True, append_images=[second])
    assert refused(file.getvalue()) == "multi_frame"


def test_a_png_bomb_is_refused_by_its_header():
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    assert refused(png(head, b"")) == "bad_pixels"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_small_picture_and_a_blank_one_are_refused(kind):
    assert refused(saved(noise()[:63, :63], kind)) == "too_small"
    assert refused(saved(np.full((H, W), 99, np.uint8), kind)) == "blank"


def test_a_tiff_of_floats_is_refused():
    assert refused(saved(ramp().astype(np.float32), "TIFF")) == "bad_pixels"


@pytest.mark.parametrize("name", list(PICTURES))
def test_damaged_bytes_give_a_film_error_or_pixels_in_range(name):
    data, rng = PICTURES[name][0], np.random.default_rng(7)
    for _ in range(20):
        broken = bytearray(data)
        for at in rng.integers(8, len(data), 4):
            broken[at] = rng.integers(256)
        try:
            pixels, _, _ = read_picture(bytes(broken))
        except FilmError:
            continue
        assert 0 <= pixels.min() <= pixels.max() <= 1

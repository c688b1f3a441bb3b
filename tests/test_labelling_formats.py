"""The label formats: what is written, and why a label file cannot be used."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from dicom_films import film as dicom_film
from dicom_films import ramp, written
from labelling_labels import make_set, read_voc, save, voc_text, write_film
from PIL import Image

from cxr.coco import CocoFilm, CocoSet
from labelling.exchange import FORMATS
from labelling.formats import parse_xml, to_voc
from labelling.label_files import LabelError, ReadRules, read_size_hw

# What is written


def test_voc_counts_from_one_and_includes_the_last_pixel():
    assert to_voc((0, 0, 640, 97)) == (1, 1, 640, 97)
    assert to_voc((10.4, 11.6, 20.3, 30.7)) == (11, 13, 20, 31)


def test_voc_keeps_the_decimals_of_a_box_that_rounding_would_lose():
    assert to_voc((7.6, 0, 8.3, 9)) == pytest.approx((8.6, 1, 8.3, 9))


def test_voc_file_has_the_fields_of_voc(tmp_path):
    source = make_set(tmp_path / "f", {"a/R&D <1>.png": ((30, 50), [(4, 5, 40, 20)])})
    [path] = FORMATS["voc"].write(source, tmp_path / "out")
    assert path == tmp_path / "out" / "a" / "R&D <1>.xml"
    root = parse_xml(path.read_bytes())
    texts = {
        tag: root.findtext(tag)
        for tag in (
            "folder",
            "filename",
            "size/width",
            "size/height",
            "size/depth",
            "object/name",
            "object/difficult",
            "object/truncated",
            "object/bndbox/xmin",
            "object/bndbox/ymax",
        )
    }
    assert list(texts.values()) == [
        "a",
        "R&D <1>.png",
        "50",
        "30",
        "1",
        "thorax",
        "0",
        "0",
        "5",
        "20",
    ]


def test_labelme_file_leads_to_the_film(tmp_path):
    films = tmp_path / "films"
    source = make_set(films, {"a/x.png": ((30, 50), [(4.5, 5, 40, 20)])})
    [path] = FORMATS["labelme"].write(source, tmp_path / "out", films)
    data = json.loads(path.read_text())
    assert (path.parent / data["imagePath"]).resolve() == (films / "a/x.png").resolve()
    assert (data["imageHeight"], data["imageWidth"], data["imageData"]) == (30, 50, None)
    [shape] = data["shapes"]
    assert shape["points"] == [[4.5, 5.0], [40.0, 20.0]]
    assert (shape["shape_type"], shape["group_id"], shape["description"]) == ("rectangle", None, "")


def test_voc_refuses_a_name_that_xml_cannot_hold(tmp_path):
    film = CocoFilm("a\x07.png", (40, 60), np.zeros((0, 4)), ())
    with pytest.raises(ValueError, match="control characters"):
        FORMATS["voc"].write(CocoSet([film], ()), tmp_path / "out")


# Unusable label files


ENTITIES = "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
LAUGHS = f"""<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol">{ENTITIES}]>
<annotation><filename>&j;</filename></annotation>"""
XXE = """<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>
<annotation><filename>&e;</filename></annotation>"""


@pytest.mark.parametrize("text", [LAUGHS, XXE], ids=["billion laughs", "external entity"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_with_a_document_type_is_refused(text, encoding):
    with pytest.raises(LabelError, match="DOCTYPE"):
        parse_xml(text.replace('<?xml version="1.0"?>', "").encode(encoding))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "DOCTYPE"),
        ("<annotation>", "not XML"),
        ("", "not XML"),
        ("<html/>", "root must be annotation"),
        (voc_text(filename=""), "names no film"),
        (voc_text(box="1 2 x 9"), "must hold the numbers"),
        (voc_text(box="1 2 9"), "must hold the numbers"),
        (voc_text(box="20 2 9 9"), "width and a height above 0"),
        (voc_text(box="1 2 nan 9"), "four numbers"),
        (voc_text(box="1 2 90 9"), "reaches out of the film"),
        (voc_text(filename="../../etc/passwd"), "outside the films' folder"),
        (voc_text(filename="/etc/passwd"), "outside the films' folder"),
        (voc_text(filename=r"..\..\etc\passwd"), "outside the films' folder"),
        (voc_text(filename=r"C:\films\a.png"), "outside the films' folder"),
        (voc_text(filename="other.png"), "does not lie in the films' folder"),
        (voc_text(size="40 60"), "has 60 × 40 px"),
    ],
)
def test_voc_names_why_a_file_is_unusable(text, reason, tmp_path):
    write_film(tmp_path / "films/a.png", (40, 60))
    coco, [unusable] = read_voc(tmp_path, text, tmp_path / "films")
    assert not coco.films
    assert unusable.where == "a.xml"
    assert reason in unusable.reason


def test_voc_folder_that_leads_out_is_refused_in_our_own_files(tmp_path):
    text = voc_text(folder="../..", filename="passwd").replace(
        "<size>", "<source><database>lungfirst</database></source><size>"
    )
    coco, [unusable] = read_voc(tmp_path, text)
    assert not coco.films
    assert "outside" in unusable.reason


def test_voc_of_other_programs_takes_decimals_and_finds_the_film_by_its_name(tmp_path):
    write_film(tmp_path / "films/deep/a.png", (40, 60))
    text = voc_text(folder=r"C:\Users\me\VOC2012", box="1.5 2 30.25 20", size="0 0")
    coco, unusable = read_voc(tmp_path, text, tmp_path / "films")
    assert not unusable
    assert coco.films[0].file_name == "deep/a.png"
    assert coco.films[0].size_hw == (40, 60)
    assert coco.films[0].boxes_xyxy.tolist() == [[0.5, 1.0, 30.25, 20.0]]


def test_a_bare_name_that_two_films_have_is_ambiguous(tmp_path):
    for folder in ("b", "c"):
        write_film(tmp_path / "films" / folder / "a.png", (40, 60))
    _, [unusable] = read_voc(tmp_path, voc_text(), tmp_path / "films")
    assert "b/a.png or c/a.png" in unusable.reason


def labelme_text(**changes) -> str:
    shape = {
        "label": "thorax",
        "points": [[30, 25], [10, 5]],
        "shape_type": "rectangle",
        "flags": {},
        "group_id": None,
    }
    shape |= {k: changes.pop(k) for k in ("points", "shape_type", "label") if k in changes}
    return json.dumps(
        {
            "version": "5.5.0",
            "flags": {},
            "shapes": [shape],
            "imageData": None,
            "imagePath": "a.png",
            "imageHeight": 40,
            "imageWidth": 60,
            **changes,
        }
    )


def read_labelme(tmp_path: Path, text: str, films: Path | None = None, **rules):
    (tmp_path / "labels").mkdir(exist_ok=True)
    (tmp_path / "labels/a.json").write_text(text)
    return FORMATS["labelme"].read(tmp_path / "labels", films, ReadRules(**rules))


@pytest.mark.parametrize(
    "points",
    [
        [[10, 5], [30, 25]],
        [[30, 25], [10, 5]],
        [[30, 5], [10, 25]],
        [[10, 25], [30, 5]],
        [[10, 5], [30, 5], [30, 25], [10, 25]],
    ],
)
def test_a_rectangle_may_be_drawn_from_any_corner(points, tmp_path):
    coco, unusable = read_labelme(tmp_path, labelme_text(points=points))
    assert not unusable
    assert coco.films[0].boxes_xyxy.tolist() == [[10, 5, 30, 25]]


@pytest.mark.parametrize(
    ("shape_type", "points", "hull"),
    [
        ("polygon", [[10, 5], [30, 8], [12, 25]], [10, 5, 30, 25]),
        ("oriented_rectangle", [[20, 5], [30, 15], [20, 25], [10, 15]], [10, 5, 30, 25]),
        ("circle", [[20, 20], [23, 24]], [15, 15, 25, 25]),
    ],
)
def test_other_shapes_need_hull(shape_type, points, hull, tmp_path):
    text = labelme_text(shape_type=shape_type, points=points)
    _, [unusable] = read_labelme(tmp_path, text)
    assert f"{shape_type} is no upright rectangle; --hull" in unusable.reason
    coco, unusable = read_labelme(tmp_path, text, hull=True)
    assert not unusable
    assert coco.films[0].boxes_xyxy.tolist() == [hull]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "recursion"),
        ('{"images": []}', "not a label file of labelme"),
        (labelme_text(shape_type="line"), "a line is no box"),
        (labelme_text(points=[[10, 5], [10, 25]]), "width and a height"),
        (labelme_text(points=[[10, 5], [10**400, 25]]), "too large"),
        (labelme_text(imageHeight=10**400), "whole numbers of 1 px or more"),
        (labelme_text(imageHeight="40"), "Got '40' and 60"),
        (labelme_text(imagePath="../../etc/passwd"), "outside the films' folder"),
        (labelme_text(imagePath="/etc/passwd"), "outside the films' folder"),
        (labelme_text(imagePath=r"..\..\etc\passwd"), "outside the films' folder"),
        (labelme_text(imagePath=None), "imagePath is missing"),
        (labelme_text(lungfirst={"film": "../a.png"}), "outside the films' folder"),
        (labelme_text(imagePath="0001_a.jpg", lungfirst={"film": "x.png"}), "export the session"),
        (labelme_text(imageHeight=60, imageWidth=40), "has 60 × 40 px"),
        (labelme_text(label=""), "has no label"),
        (labelme_text(label="lung"), "'lung' is not of thorax"),
    ],
)
def test_labelme_names_why_a_file_is_unusable(text, reason, tmp_path):
    write_film(tmp_path / "films/a.png", (40, 60))
    coco, [unusable] = read_labelme(tmp_path, text, tmp_path / "films", classes=("thorax",))
    assert not coco.films
    assert reason in unusable.reason


def test_labelme_files_that_were_moved_still_find_their_films(tmp_path):
    films = tmp_path / "here/films"
    source = make_set(films, {"a/x.png": ((30, 50), [(4, 5, 40, 20)])})
    FORMATS["labelme"].write(source, tmp_path / "here/out", films)
    (tmp_path / "there/deep").mkdir(parents=True)
    (tmp_path / "here/out").rename(tmp_path / "there/deep/out")
    coco, unusable = FORMATS["labelme"].read(tmp_path / "there/deep/out", films)
    assert not unusable
    assert coco.films[0].file_name == "a/x.png"


def test_a_number_beyond_all_films_is_no_crash(tmp_path):
    _, [unusable] = read_labelme(tmp_path, labelme_text(imageHeight=10**400))
    assert "must be whole numbers of 1 px or more. Got inf and 60" in unusable.reason


def test_labelme_without_a_size_takes_the_films(tmp_path):
    write_film(tmp_path / "films/a.png", (40, 60))
    text = labelme_text(imageHeight=None, imageWidth=None)
    coco, _ = read_labelme(tmp_path, text, tmp_path / "films")
    assert coco.films[0].size_hw == (40, 60)
    _, [unusable] = read_labelme(tmp_path, text)
    assert "--films" in unusable.reason


def test_coco_refuses_single_films_and_keeps_the_rest(tmp_path):
    source = make_set(
        tmp_path / "films",
        {
            "a.png": ((40, 60), [(1, 2, 9, 8)]),
            "gone.png": ((40, 60), []),
            "other_size.png": ((40, 60), []),
        },
    )
    (tmp_path / "films/gone.png").unlink()
    write_film(tmp_path / "films/other_size.png", (60, 40))
    outside = CocoFilm("../../etc/passwd", (40, 60), np.zeros((0, 4)), ())
    path = save(tmp_path, CocoSet([*source.films, outside], ("thorax",)))
    coco, unusable = FORMATS["coco"].read(path, tmp_path / "films")
    assert [f.file_name for f in coco.films] == ["a.png"]
    assert [u.where.split()[-1] for u in unusable] == [
        "gone.png",
        "other_size.png",
        "../../etc/passwd",
    ]


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"images": 1}'])
def test_coco_with_faults_is_unusable_and_the_other_file_is_taken(text, tmp_path):
    save(tmp_path, make_set(tmp_path / "f", {"a.png": ((40, 60), [])}))
    (tmp_path / "broken.json").write_text(text)
    coco, [unusable] = FORMATS["coco"].read(tmp_path)
    assert len(coco.films) == 1
    assert unusable.where == "broken.json"


# Sizes of films


def test_the_size_of_a_dicom_film_is_read(tmp_path):
    (tmp_path / "a.dcm").write_bytes(written(dicom_film(ramp())))
    assert read_size_hw(tmp_path / "a.dcm") == (96, 72)


def test_the_size_of_a_turned_picture_is_that_of_the_film(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp8 = np.tile(np.arange(60, dtype=np.uint8), (40, 1))
    Image.fromarray(ramp8).save(tmp_path / "a.jpg", exif=exif)
    assert read_size_hw(tmp_path / "a.jpg") == (60, 40)


def test_an_accent_may_be_spelt_in_two_ways(tmp_path):
    write_film(tmp_path / "films" / unicodedata.normalize("NFD", "é.png"), (40, 60))
    text = voc_text(filename=unicodedata.normalize("NFC", "é.png"))
    coco, unusable = read_voc(tmp_path, text, tmp_path / "films")
    assert not unusable
    assert coco.films[0].file_name == unicodedata.normalize("NFD", "é.png")

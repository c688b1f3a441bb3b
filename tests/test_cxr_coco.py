"""cxr.coco: reading, writing, and a line for each fault."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr.coco import (
    CocoFilm,
    CocoSet,
    find_faults,
    read_coco,
    read_coco_json,
    read_counted,
    write_coco,
    write_coco_json,
)

SOUND: dict[str, Any] = {
    "info": {"description": "boxes"},
    "images": [
        {"id": 7, "file_name": "a.png", "width": 200, "height": 100, "patient_id": "p1"},
        {"id": 3, "file_name": "leg.png", "width": 50, "height": 60},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 5, "bbox": [10, 20, 30, 40]},
        {"id": 2, "image_id": 7, "category_id": 9, "bbox": [0.5, 0.5, 199.5, 99.5]},
    ],
    "categories": [{"id": 9, "name": "normal"}, {"id": 5, "name": "pneumonia"}],
}


def test_reading_gives_xyxy_and_classes_from_zero(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(SOUND))
    coco = read_coco(tmp_path / "a.json")
    film = coco.films[0]
    assert film.size_hw == (100, 200)
    assert film.boxes_xyxy.tolist() == [[10, 20, 40, 60], [0.5, 0.5, 200, 100]]
    assert film.labels == (1, 0) and coco.classes == ("normal", "pneumonia")
    assert film.extra == {"patient_id": "p1"} and film.patient_id == "p1"


def test_film_without_a_box_stays_in_with_shape_0_4(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(SOUND))
    leg = read_coco(tmp_path / "a.json").films[1]
    assert leg.boxes_xyxy.shape == (0, 4) and leg.labels == ()
    assert leg.patient_id == "leg.png"  # no patient given: the film stands for itself


def marked(**marks: object) -> dict[str, Any]:
    """SOUND, the second box of its first film marked."""
    data = copy.deepcopy(SOUND)
    data["annotations"][1].update(marks)
    return data


@pytest.mark.parametrize("mark", [{"iscrowd": 1}, {"ignore": True}, {"difficult": "1"}])
def test_marked_box_is_kept_and_does_not_count(tmp_path: Path, mark: dict[str, object]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(marked(**mark)))
    film = read_coco(tmp_path / "a.json").films[0]
    assert film.ignored.tolist() == [False, True]
    assert film.resized((200, 400)).ignored.tolist() == [False, True]
    counted = film.counted
    assert counted.boxes_xyxy.tolist() == [[10, 20, 40, 60]] and counted.labels == (1,)
    write_coco(tmp_path / "b.json", read_coco(tmp_path / "a.json"))
    assert json.loads((tmp_path / "b.json").read_text())["annotations"][1].items() >= mark.items()


def test_box_with_its_marks_at_zero_counts(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(marked(iscrowd=0, ignore="0", difficult=False)))
    film = read_coco(tmp_path / "a.json").films[0]
    assert not film.ignored.any() and len(film.counted.boxes_xyxy) == 2


def test_film_with_marked_boxes_alone_is_no_film_without_a_thorax(tmp_path: Path) -> None:
    data = marked(iscrowd=1)
    data["annotations"][0]["ignore"] = 1
    (tmp_path / "a.json").write_text(json.dumps(data))
    assert [f.file_name for f in read_counted(tmp_path / "a.json")] == ["leg.png"]


def test_mark_of_utf8_and_line_ends_of_windows_are_read(tmp_path: Path) -> None:
    text = json.dumps(SOUND, indent=1).replace("\n", " \r\n") + " \r\n"
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_coco_json(tmp_path / "a.json") == SOUND


def test_written_set_reads_back_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(SOUND))
    first = read_coco(tmp_path / "a.json")
    write_coco(tmp_path / "b.json", first)
    second = read_coco(tmp_path / "b.json")
    assert second.classes == first.classes and second.info == first.info
    for a, b in zip(first.films, second.films, strict=True):
        assert (a.file_name, a.size_hw, a.labels, a.extra) == (
            b.file_name,
            b.size_hw,
            b.labels,
            b.extra,
        )
        assert np.array_equal(a.boxes_xyxy, b.boxes_xyxy)


def test_other_keys_of_an_annotation_are_kept_but_on_a_scaled_copy(tmp_path: Path) -> None:
    more = {"area": 900, "iscrowd": 1, "segmentation": [[1, 2, 3, 4]], "provenance": [{"a": 1}]}
    notes = [SOUND["annotations"][0] | more, SOUND["annotations"][1]]
    (tmp_path / "a.json").write_text(json.dumps(SOUND | {"annotations": notes}))
    first = read_coco(tmp_path / "a.json")
    write_coco(tmp_path / "b.json", first)
    written = json.loads((tmp_path / "b.json").read_text())["annotations"]
    assert {k: written[0][k] for k in more} == more
    assert written[1]["area"] == 199.5 * 99.5 and written[1]["iscrowd"] == 0
    assert first.films[0].resized((50, 100)).notes == ({"iscrowd": 1}, {})


def test_pycocotools_reads_what_is_written(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    film = CocoFilm("a.png", (100, 200), np.array([[10.0, 20, 40, 60]]), (0,))
    write_coco(tmp_path / "a.json", CocoSet([film], ("thorax",)))
    coco = COCO(str(tmp_path / "a.json"))
    (note,) = coco.loadAnns(coco.getAnnIds(catIds=coco.getCatIds(["thorax"])))
    assert note["bbox"] == [10, 20, 30, 40] and note["area"] == 1200


def test_sound_file_has_no_faults() -> None:
    assert find_faults(SOUND) == []


def change(path: list, value: object) -> dict:
    data = copy.deepcopy(SOUND)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (["images"], {}, "images must be a list"),
        (["images", 0], "a.png", "image 0: it must be a JSON object"),
        (["images", 0], {"id": 7, "file_name": "a.png"}, "image 0: width, height missing"),
        (["images", 0, "file_name"], 5, "image 0: file_name must be a text"),
        (["images", 0, "width"], "200", "width must be 1 px or more"),
        (["images", 0, "height"], 0, "height must be 1 px or more"),
        (["images", 0, "width"], float("nan"), "width must be 1 px or more"),
        (["images", 0, "width"], 10**400, "width must be 1 px or more. Got a number beyond"),
        (["images", 0, "id"], [1], "id must be a number or a text"),
        (["images", 1, "id"], 7, "image leg.png: id 7 stands twice"),
        (["images", 1, "file_name"], "a.png", "image a.png: listed twice"),
        (["categories", 0], {"name": "x"}, "category 0: it must have an id and a name"),
        (["categories", 0, "id"], [9], "category 0: id must be a number or a text. Got [9]"),
        (["categories", 1, "id"], 9, "category pneumonia: id 9 stands twice"),
        (["annotations", 0], 3, "annotation 0: it must be a JSON object"),
        (["annotations", 0, "image_id"], 99, "annotation 0: image_id 99 is no image"),
        (["annotations", 0, "image_id"], [7], "annotation 0: image_id"),
        (["annotations", 0, "category_id"], 1, "a.png: category_id 1 is not in categories"),
        (["annotations", 0, "category_id"], {}, "a.png: category_id"),
        (["annotations", 0, "bbox"], None, "a.png: bbox must be four numbers"),
        (["annotations", 0, "bbox"], [1, 2, 3, 10**400], "[1, 2, 3, a number beyond all films]"),
        (["annotations", 0, "bbox"], [1, 2, 3], "a.png: bbox must be four numbers"),
        (["annotations", 0, "bbox"], [1, 2, "3", 4], "a.png: bbox must be four numbers"),
        (["annotations", 0, "bbox"], [1, 2, float("inf"), 4], "a.png: bbox must be four numbers"),
        (["annotations", 0, "bbox"], [10, 20, 0, 40], "a.png: bbox must have a width and a height"),
        (["annotations", 0, "bbox"], [190, 20, 30, 40], "reaches out of the film of 200 × 100"),
        (["annotations", 0, "bbox"], [10, 70, 30, 40], "reaches out of the film of 200 × 100"),
    ],
)
def test_each_fault_has_a_line_and_stops_reading(
    tmp_path: Path, path: list, value: object, fault: str
) -> None:
    data = change(path, value)
    assert any(fault in line for line in find_faults(data))
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"a\.json has \d+ faults"):
        read_coco(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"[]", b"null"])
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        read_coco(tmp_path / "a.json")


def test_faulty_set_is_not_written(tmp_path: Path) -> None:
    film = CocoFilm("a.png", (10, 10), np.array([[0.0, 0, 50, 50]]), (0,))
    with pytest.raises(ValueError, match="would have 1 faults"):
        write_coco(tmp_path / "a.json", CocoSet([film], ("thorax",)))
    assert not (tmp_path / "a.json").exists()


def test_real_boxes_are_sound(shared_data: Path) -> None:
    coco = read_coco(shared_data / "thorax.json")
    assert coco.classes == ("thorax",)
    assert all(len(film.boxes_xyxy) == 1 for film in coco.films)


def test_scaled_copy_has_scaled_boxes() -> None:
    film = CocoFilm("a.png", (200, 400), np.array([[10.0, 20, 40, 60]]), (0,))
    half = film.resized((100, 201))  # 0.5 % off: a resize rounds its sides
    assert half.size_hw == (100, 201)
    np.testing.assert_allclose(half.boxes_xyxy, [[5.025, 10, 20.1, 30]])
    assert film.resized((200, 400)) is film


@pytest.mark.parametrize("size_hw", [(100, 203), (100, 100), (200, 100)])
def test_copy_of_another_aspect_is_no_scaled_copy(size_hw: tuple[int, int]) -> None:
    film = CocoFilm("a.png", (100, 200), np.zeros((0, 4)), ())
    with pytest.raises(ValueError, match=r"a\.png must have .* 200 × 100 px, .* scaled copy"):
        film.resized(size_hw)


def test_the_files_own_object_keeps_every_key(tmp_path: Path) -> None:
    data = {**SOUND, "licenses": [{"id": 1}]}
    data["annotations"] = [{**SOUND["annotations"][0], "segmentation": [[1, 2, 3, 4]]}]
    write_coco_json(tmp_path / "a.json", data)
    assert read_coco_json(tmp_path / "a.json") == data
    with pytest.raises(ValueError, match="would have 1 faults"):
        write_coco_json(tmp_path / "a.json", {**data, "categories": None})

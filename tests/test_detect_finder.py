"""ThoraxFinder: two opinions and a view become one decision, on stand-ins for the networks."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

import detect.finder
from cxr.boxes import Frame, Xyxy
from cxr.notes import code_of, note
from detect.finder import FieldBox, Look, PairRule, ThoraxFinder, read_box, refit
from detect.predict import Detections, ThoraxBox, ThoraxDetector, prepare_film
from detect.settings import DetectorConfig
from detect.view import View

POINT = {"reject_score": 0.3, "ok_score": 0.6, "aspect_range": [0.5, 2.0], "min_area_share": 0.1}
RULE: dict[str, Any] = {
    "detector_share": [1, 0.5, 0, 0.75],
    "lone_apart": 0.2,
    "ok_apart": 0.3,
    "refuse_apart": 0.6,
    "quality": [[0.1, 0.9], [0.5, 0.7]],
}
SIZE = (100, 100)
BOX = (20.0, 20.0, 80.0, 80.0)


def a_detector(**meta: Any) -> ThoraxDetector:
    return ThoraxDetector(nn.Identity(), DetectorConfig(), POINT, device="cpu", meta=meta)


def a_finder(
    box: str = "both", turned: str = "mend", kind: type[ThoraxFinder] = ThoraxFinder
) -> ThoraxFinder:
    field: Any = None if box == "detector" else SimpleNamespace(weights={"field": "f"})
    return kind(a_detector(pair=RULE), field, None, box, turned)


def seen(
    field: Xyxy | None = BOX, score: float = 0.9, view: View | None = None, box: Xyxy = BOX
) -> Look:
    found = Detections(np.array([box]), np.array([score]), np.array([0]))
    return Look(found, field and FieldBox(field, 0.1), view)


def a_view(kind: str, turned: int = 0, mirrored: bool = False) -> View:
    return View(kind, turned, mirrored, 0.9, "" if kind == "frontal" else f"it is {kind}")


# two boxes ----------------------------------------------------------------------------------------


def test_each_edge_has_its_own_share() -> None:
    merged = PairRule.of(a_detector(pair=RULE)).merge((0, 10, 100, 100), (20, 30, 60, 60))
    assert merged == (0, 20, 60, 90)


def test_a_bundle_without_a_rule_takes_the_mean() -> None:
    rule = PairRule.of(a_detector())
    assert rule.merge((0, 10, 100, 100), (20, 30, 60, 60)) == (10, 20, 80, 80)
    assert rule.quality_at(0.1) is None


def test_where_the_boxes_differ_much_the_detectors_is_taken_alone() -> None:
    # the field reaches 0.3 of its own box further down: 1 − IoU is 18 / 78
    found = a_finder().decide(seen((20.0, 20.0, 80.0, 98.0)), SIZE)
    assert (found.status, found.xyxy) == ("ok", BOX)
    assert found.apart == pytest.approx(18 / 78, abs=1e-4)


def test_quality_lies_on_the_line_between_two_points_and_ends_with_them() -> None:
    rule = PairRule(quality=((0.1, 0.9), (0.5, 0.7)))
    assert [rule.quality_at(d) for d in (0.0, 0.2, 0.9)] == [0.9, 0.85, 0.7]


def test_boxes_that_agree_become_one_with_its_quality() -> None:
    box = a_finder().decide(seen((20, 20, 80, 70)), SIZE)  # an IoU of 50 / 60
    assert (box.status, box.xyxy, box.seen_xyxy) == ("ok", (20, 20, 80, 77.5), (20, 20, 80, 77.5))
    assert box.apart == pytest.approx(1 / 6, abs=1e-4)
    # a doubt of 1 / 6 + 0.1, a 1 / 6 of 0.4 beyond the first point
    assert box.quality == pytest.approx(0.9 - 0.2 * (1 / 6) / 0.4, abs=1e-4)


def test_boxes_that_differ_leave_the_whole_film() -> None:
    box = a_finder().decide(seen((20, 20, 80, 56)), SIZE)
    assert (box.status, box.xyxy, box.apart) == ("fallback", (0, 0, 100, 100), 0.4)
    assert "1 − IoU is 0.40 and above 0.30; whole film used" in box.reason


def test_boxes_that_have_little_in_common_are_no_thorax() -> None:
    box = a_finder().decide(seen((20, 20, 80, 40)), SIZE)
    assert (box.status, box.xyxy) == ("no_thorax", None)
    assert "1 − IoU is 0.67 and above 0.60" in box.reason


@pytest.mark.parametrize("score", [0.9, 0.5])
def test_a_film_without_a_lung_field_is_no_thorax(score: float) -> None:
    box = a_finder().decide(seen(None, score), SIZE)
    assert (box.status, box.xyxy, box.apart) == ("no_thorax", None, 1.0)
    assert box.reason == "no thorax found: no lung field"


def test_the_detectors_own_doubt_and_refusal_stand() -> None:
    doubted, refused = (a_finder().decide(seen(score=s), SIZE) for s in (0.5, 0.2))
    assert (doubted.status, doubted.xyxy) == ("fallback", (0, 0, 100, 100))
    assert "score 0.50 below 0.60" in doubted.reason
    assert (refused.status, refused.xyxy, refused.apart) == ("no_thorax", None, 0)
    assert "score 0.20 below 0.30" in refused.reason


@pytest.mark.parametrize(
    ("whose", "bottom", "apart"), [("field", 70, 0.1667), ("detector", 80, None)]
)
def test_one_networks_box_is_taken_on_demand(whose: str, bottom: int, apart: float | None) -> None:
    box = a_finder(whose).decide(seen((20, 20, 80, 70)), SIZE)
    assert (box.status, box.xyxy, box.apart) == ("ok", (20, 20, 80, bottom), apart)


@pytest.mark.parametrize("whose", ["mine", "both", "field"])
def test_a_box_that_nobody_gives_is_refused(whose: str) -> None:
    with pytest.raises(ValueError, match="box must be one of both, detector, field"):
        ThoraxFinder(a_detector(), None, None, whose)


# what the picture shows ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lateral", "other"])
def test_what_is_no_frontal_chest_is_refused_with_its_reason(kind: str) -> None:
    box = a_finder().decide(seen(view=a_view(kind)), SIZE)
    assert (box.status, box.xyxy) == ("no_thorax", None)
    assert box.reason == f"no frontal chest: it is {kind}"


def test_of_many_pictures_the_whole_is_taken_where_a_chest_is_in_view() -> None:
    box, none = (a_finder().decide(seen(f, view=a_view("many")), SIZE) for f in (BOX, None))
    assert (box.status, box.xyxy) == ("fallback", (0, 0, 100, 100)) and "it is many" in box.reason
    assert none.status == "no_thorax"


def test_a_mirrored_film_is_noted_and_boxed() -> None:
    box = a_finder().decide(seen(view=a_view("frontal", mirrored=True)), SIZE)
    assert (box.status, box.xyxy) == ("ok", BOX) and [*map(code_of, box.notes)] == ["mirrored"]


def look_twice(second: Look, turned: str = "mend") -> tuple[ThoraxBox, list[tuple[int, ...]]]:
    """The decision on a film of 100 × 60 px that must be turned by 90°, and the shapes of what was
    looked at; `second` is seen when it is upright."""
    script, shapes = [seen(view=a_view("turned", 90)), second], list[tuple[int, ...]]()

    class Scripted(ThoraxFinder):
        def look(self, films: Sequence[np.ndarray]) -> list[Look]:
            shapes.extend(film.shape for film in films)
            return [script.pop(0) for _ in films]

    [box] = a_finder(turned=turned, kind=Scripted).predict([np.zeros((60, 100), np.float32)])
    return box, shapes


UPRIGHT = (10.0, 20.0, 50.0, 80.0)  # of 60 × 100 px: (20, 10, 80, 50) as the film lies


def test_a_turned_film_is_boxed_upright_in_its_own_pixels() -> None:
    box, shapes = look_twice(seen(UPRIGHT, view=a_view("frontal"), box=UPRIGHT))
    assert shapes == [(60, 100), (100, 60)]
    assert (box.status, box.turned) == ("ok", 90)
    assert box.xyxy == box.seen_xyxy == (20, 10, 80, 50)
    assert box.notes == (note("lay_turned", value=90),)


def test_a_turned_film_in_doubt_is_taken_whole() -> None:
    box, _ = look_twice(seen(UPRIGHT, 0.5, a_view("frontal", mirrored=True), UPRIGHT))
    assert (box.status, box.xyxy, box.turned) == ("fallback", (0, 0, 100, 60), 90)
    assert [*map(code_of, box.notes)] == ["lay_turned", "mirrored"]


def test_a_turned_film_without_a_chest_is_refused() -> None:
    box, _ = look_twice(seen(UPRIGHT, view=a_view("other"), box=UPRIGHT))
    assert (box.status, box.xyxy) == ("no_thorax", None)


def test_turned_films_are_refused_on_demand() -> None:
    box, shapes = look_twice(seen(), "refuse")
    assert (box.status, box.turned, shapes) == ("no_thorax", 0, [(60, 100)])
    assert box.reason == "no frontal chest: it is turned"


# what the networks see ----------------------------------------------------------------------------


class Bright:
    """Marks what is bright, in the place of both networks; judges by its features' mean."""

    side, threshold, weights = 64, 0.5, {}

    def look(self, canvases: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        maps = (np.stack(canvases) > 217).astype(np.float32)
        return maps, maps.mean((1, 2))

    def judge(self, features: np.ndarray) -> list[View]:
        return [a_view("frontal", mirrored=bool(value > 0.1)) for value in features]

    def detect_prepared(self, prepared: Sequence[tuple[np.ndarray, Frame]]) -> list[Detections]:
        return [Detections(np.array([BOX]), np.array([0.9]), np.array([0])) for _ in prepared]


def test_each_film_is_seen_by_the_detector_the_field_and_the_view() -> None:
    detector, field = a_detector(), Bright()
    detector.detect_prepared = field.detect_prepared  # type: ignore[method-assign]
    finder = ThoraxFinder(detector, field, field)  # type: ignore[arg-type]
    films = [np.full((300, 200), 0.3, np.float32), np.full((200, 320), 0.3, np.float32)]
    films[0][60:180, 40:140] = 0.9
    first, second = finder.look(films)
    assert first.field is not None and first.view is not None and second.view is not None
    assert first.field.xyxy == pytest.approx((40, 60, 140, 180), abs=300 / 64)
    assert second.field is None and (first.view.mirrored, second.view.mirrored) == (True, False)
    assert finder.look([]) == []


def test_a_smaller_letterbox_is_that_of_the_film() -> None:
    ramp = np.add.outer(np.linspace(0, 0.6, 311), np.linspace(0, 0.4, 207)).astype(np.float32)
    canvas, frame = refit(*prepare_film(ramp, 320), 64)
    own, wanted = prepare_film(ramp, 64)
    box = (50, 60, 150, 280)
    assert np.abs(frame.to_model_xyxy(box) - wanted.to_model_xyxy(box)).max() < 1
    inside = np.s_[: wanted.content_hw[0] - 1, : wanted.content_hw[1] - 1]
    assert np.abs(canvas[inside].astype(int) - own[inside]).max() < 255 / 64 * 2
    same = prepare_film(ramp, 64)
    assert refit(*same, 64)[0] is same[0]


def test_a_drawn_field_has_its_box_in_film_pixels() -> None:
    frame = Frame.letterbox((1000, 800), 100)
    plane = np.zeros((100, 100), np.float32)
    plane[20:70, 20:60], plane[20:70, 60:80] = 1, 0.4  # an eager reader would go on to 80
    found = read_box(plane, frame, 0.5)
    assert found is not None
    assert found.xyxy == pytest.approx((200, 200, 600, 700), abs=5)
    assert found.soft == pytest.approx(1 - 40 / 60, abs=0.03)


def test_a_field_that_a_wary_reader_would_not_draw_is_soft_and_none_has_no_box() -> None:
    frame, plane = Frame.letterbox((100, 80), 100), np.zeros((100, 100), np.float32)
    assert read_box(plane, frame, 0.5) is None
    plane[20:70, 20:60] = 0.6
    found = read_box(plane, frame, 0.5)
    assert found is not None and found.soft == 1.0


@pytest.mark.parametrize(
    ("field", "box", "loaded"),
    [
        (None, "both", ["field", "views"]),
        ("the shipped one", "both", ["field", "views"]),
        ("mine", "both", ["field"]),
        (None, "detector", []),
    ],
)
def test_views_are_left_out_with_a_field_that_they_do_not_know(
    monkeypatch: pytest.MonkeyPatch, field: str | None, box: str, loaded: list[str]
) -> None:
    def loads(name: str) -> Any:
        return SimpleNamespace(load=lambda *_, **__: SimpleNamespace(weights={name: name}, meta={}))

    def refuse(*_: Any) -> Any:
        raise ValueError("another field")

    for name, net in {"ThoraxDetector": "", "LungField": "field", "ViewNet": "views"}.items():
        monkeypatch.setattr(detect.finder, name, loads(net))
    if field == "mine":
        monkeypatch.setattr(detect.finder, "ViewNet", SimpleNamespace(load=refuse))
    assert [n for n in ThoraxFinder.load(field=field, box=box).weights if n] == loaded

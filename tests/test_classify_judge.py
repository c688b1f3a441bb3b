"""The judge's one pass for logits and Grad-CAM gives what two passes give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import draw_phantom
from saliency_nets import HeadNet, pooled
from torch import nn

from classify.ensemble import Ensemble, members_of
from classify.guard import Guard
from classify.judge import Judge, strongest_member
from classify.models.multitask import build_member
from classify.models.settings import MemberConfig
from classify.predictions import Item
from classify.preprocess import PreprocessConfig
from classify.saliency import to_pixels
from classify.saliency.maps import saliency_maps
from classify.screener import CLEARED, READ, Screener
from classify.screening.guarantee import OperatingPoint
from cxr.notes import note
from cxr.page.build import Picture

SIZES = [(120, 100), (80, 130), (96, 96), (100, 60)]


def member(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_member(MemberConfig("tu-test_efficientnet", "none", 16, decoder_channels=(8, 8)))


def non_linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return HeadNet(pooled(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)))


@pytest.fixture
def items() -> list[Item]:
    pixels = [draw_phantom(*size, seed=n)[0].astype(np.float32) for n, size in enumerate(SIZES)]
    return [Item(f"film{n}", "ok", pixels=p) for n, p in enumerate(pixels)]


@pytest.mark.parametrize("build", [member, non_linear])
def test_one_pass_gives_the_logits_and_maps_of_two(
    items: list[Item], build: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = Ensemble({"a": build(0), "b": build(1)}, PreprocessConfig(side=64))
    planes: list[np.ndarray] = []

    def keep(plane: np.ndarray) -> Picture:
        planes.append(plane)
        return Picture("", 1, 1)

    monkeypatch.setattr("classify.judge.make_saliency_picture", keep)
    rows = Judge(ensemble, None, {}, cropped=True).judge(items)
    pixels = [item.pixels for item in items if item.pixels is not None]
    batch, frames = ensemble.prepare(pixels)
    logits = ensemble.predict_prepared(batch)
    np.testing.assert_array_equal(np.stack([row.logits for row in rows]), logits)
    for n, plane in enumerate(planes):
        net = ensemble.member(ensemble.targets[strongest_member(logits[n])])
        maps = saliency_maps(net, batch[n : n + 1], [1], closed_form=False)
        (expected,) = to_pixels(maps, frames[n : n + 1], [pixels[n].shape])
        assert expected.max() > 0
        np.testing.assert_allclose(plane, expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize("saliency", [True, False])
def test_a_network_that_stands_for_several_members_runs_once(
    items: list[Item], saliency: bool
) -> None:
    torch.manual_seed(0)
    net = HeadNet(pooled(nn.Linear(8, 4)))
    ensemble = Ensemble(members_of(net, ("normal", "a", "b", "c")), PreprocessConfig(side=64))
    judge = Judge(ensemble, None, {}, cropped=True, saliency=saliency)
    judge.judge(items)  # tries the head once
    passes: list[int] = []
    net.register_forward_hook(lambda _m, x, _o: passes.append(len(x[0])))
    judged = judge.judge(items)
    assert passes == [len(items)]
    batch, _ = ensemble.prepare([i.pixels for i in items if i.pixels is not None])
    expected = ensemble.predict_prepared(batch)
    np.testing.assert_allclose(np.stack([i.logits for i in judged]), expected, atol=1e-5)


def test_a_closed_head_takes_one_pass_of_each_member(items: list[Item]) -> None:
    ensemble = Ensemble({"a": member(0), "b": member(1)}, PreprocessConfig(side=64))
    judge = Judge(ensemble, None, {}, cropped=True)
    judge.judge(items)  # tries each head once
    passes = []
    for target in ensemble.targets:
        ensemble.member(target).register_forward_hook(lambda _m, x, _o: passes.append(len(x[0])))
    judge.judge(items)
    assert passes == [len(items)] * 2


# --- what is never cleared


class AlwaysNormal:
    """A fitted SVM's stand-in that calls every film normal."""

    def predict_proba(self, logits: np.ndarray) -> np.ndarray:
        return np.tile([0.99, 0.01], (len(logits), 1))


def clearing(ensemble: Ensemble, **more: object) -> Judge:
    point = OperatingPoint(0.5, 0.99, 0.95, True, 0.99, 300, 0, 299, 0.4)
    screener = Screener(AlwaysNormal(), ensemble.targets, point)
    return Judge(ensemble, screener, {}, cropped=True, **more)  # type: ignore[arg-type]


def small() -> Ensemble:
    nets = [HeadNet(pooled(nn.Linear(8, 3))).eval() for _ in range(2)]
    return Ensemble(dict(zip("ab", nets, strict=True)), PreprocessConfig(side=64))


def guard_of(ensemble: Ensemble, item: Item, others: list[Item]) -> Guard:
    """It knows the one film, and allows half the way to the nearest other one."""
    pixels = [i.pixels for i in (item, *others) if i.pixels is not None]
    features = ensemble.predict_pooled(ensemble.prepare(pixels)[0])[1]
    width = features.shape[1]
    guard = Guard(features[0], np.eye(width), np.ones(width), 1.0)
    return replace(guard, threshold=float(guard.distance(features[1:]).min()) / 2)


@pytest.mark.parametrize("patients", ["children", "adults", ""])
def test_a_patient_of_another_age_is_never_cleared(items: list[Item], patients: str) -> None:
    ensemble = small()
    guard = guard_of(ensemble, items[0], items[1:])
    guard = replace(guard, threshold=np.inf, meta={"patients": patients})
    ages = (True, False, None)
    judged = clearing(ensemble, guard=guard).judge(
        [replace(items[0], child=child) for child in ages]
    )
    wrong = {"children": [False], "adults": [True], "": []}[patients]
    assert [i.decision for i in judged] == [READ if c in wrong else CLEARED for c in ages]
    who = {True: "a child", False: "an adult"}
    for film, child in zip(judged, ages, strict=True):
        told = f"the patient is {who.get(child)}, and the ensemble for {patients}"
        assert film.doubt == (told if child in wrong else "")


@pytest.mark.parametrize("saliency", [True, False])
def test_a_film_beyond_the_guard_is_never_cleared(items: list[Item], saliency: bool) -> None:
    ensemble = small()
    guard = guard_of(ensemble, items[0], items[1:])
    judged = clearing(ensemble, guard=guard, saliency=saliency, name="e").judge(items)
    assert [i.decision for i in judged] == [CLEARED, READ, READ, READ]
    assert judged[0].doubt == "" and judged[0].far == pytest.approx(0, abs=1e-3)
    assert all(i.far >= 2 - 1e-3 for i in judged[1:] if i.far is not None)
    told = f"the film is unlike those of the calibration: its distance is {judged[1].far:.3f}"
    assert judged[1].doubt == f"{told}, 1 is allowed" and judged[1].ensemble == "e"
    assert {i.decision for i in clearing(ensemble, saliency=saliency).judge(items)} == {CLEARED}


@pytest.mark.parametrize("saliency", [True, False])
def test_a_guard_takes_no_pass_of_its_own(items: list[Item], saliency: bool) -> None:
    ensemble = small()
    judge = clearing(ensemble, guard=guard_of(ensemble, items[0], items[1:]), saliency=saliency)
    judge.judge(items)  # tries each head once
    passes: list[int] = []
    for net in ensemble.networks:
        net.register_forward_hook(lambda _m, x, _o: passes.append(len(x[0])))
    judge.judge(items)
    assert passes == [len(items)] * 2


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ({"status": "fallback"}, "no thorax box is sure enough"),
        ({"notes": (note("lay_turned", value=90),)}, "the film lay turned"),
        ({"notes": (note("mirrored"),)}, "the film may be mirrored"),
        ({"notes": ("for_processing",)}, "the film is raw detector data (FOR PROCESSING)"),
        (
            {"apart": 0.2901},
            "the two opinions on its thorax box differ by 0.2901 (1 − IoU), more than 0.29",
        ),
    ],
)
def test_what_speaks_against_a_film_keeps_it_from_being_cleared_without_a_guard(
    items: list[Item], known: dict[str, object], why: str
) -> None:
    doubted = replace(items[0], **known)  # type: ignore[arg-type]
    fine = replace(items[1], apart=0.29, notes=(note("no_window"),))
    judged = clearing(small(), fine_apart=0.29, saliency=False).judge([doubted, fine])
    assert [(i.decision, i.doubt) for i in judged] == [(READ, why), (CLEARED, "")]


def test_all_that_speaks_against_a_film_is_told(items: list[Item]) -> None:
    film = replace(items[0], status="fallback", notes=(note("mirrored"),))
    (judged,) = clearing(small(), saliency=False).judge([film])
    assert judged.doubt == "no thorax box is sure enough; the film may be mirrored"

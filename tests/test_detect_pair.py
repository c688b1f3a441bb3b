"""detect.pair: shares, thresholds and quality of constructed boxes, and the command."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import detect.pair
from cxr.boxes import mask_box_xyxy
from cxr.bundle import load_bundle, save_bundle
from cxr.cli import to_plain
from detect.finder import FieldBox, Look, PairRule, ThoraxFinder
from detect.lungfield.net import build_field_net
from detect.model import build_detector
from detect.pair import PairFilm, choose_rule, choose_share, fit_quality, main
from detect.predict import Detections, ThoraxDetector
from detect.settings import DetectorConfig, FieldNetConfig


def test_the_shares_and_thresholds_of_constructed_boxes_are_found() -> None:
    rng, share = np.random.default_rng(0), np.array([0.25, 0.5, 1.0, 0.0])
    films = []
    for apart in np.linspace(0, 0.3, 40):
        truth = np.array([0.2, 0.2, 0.8, 0.8]) + rng.uniform(-0.05, 0.05, 4)
        away = rng.choice([-0.1, 0.1], 4)
        boxes = truth + (1 - share) * away, truth - share * away  # their mix is the truth
        films.append(PairFilm(*boxes, truth, apart, apart))
    rule = choose_rule(films)
    assert rule.detector_share == tuple(share)
    # never above 0.3, though 1.5 times the largest is 0.45; then two and three times that
    assert (rule.lone_apart, rule.ok_apart, rule.refuse_apart) == (0.3, 0.6, 0.9)
    assert all(iou == pytest.approx(1) for _, iou in rule.quality)


@pytest.mark.parametrize(("mean", "share"), [(0.14, 0.5), (0.16, 1.0)])
def test_the_plain_mean_is_kept_within_a_standard_error_of_the_best(
    mean: float, share: float
) -> None:
    errors = np.full((21, 4), 0.3)
    errors[20] = 0, 0.2, 0, 0.2  # the detector alone: 0.1 on average, with an error of 0.05
    errors[10] = mean
    assert choose_share(errors) == share


def test_boxes_that_agree_on_all_films_are_still_let_differ_a_little() -> None:
    box = np.array([0.2, 0.2, 0.8, 0.8])
    rule = choose_rule([PairFilm(box, box, box, 0.01, 0.01)] * 20)
    assert (rule.lone_apart, rule.ok_apart, rule.refuse_apart) == (0.2, 0.4, 0.6)


def test_quality_is_the_mean_of_groups_and_never_rises() -> None:
    doubts = [0.5] * 10 + [0.1] * 10
    assert fit_quality(doubts, [0.7] * 10 + [0.9] * 10) == ((0.1, 0.9), (0.5, 0.7))
    assert fit_quality(doubts, [0.8] * 10 + [0.6] * 10) == ((0.1, 0.7), (0.5, 0.7))
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, 200)
    points = np.array(fit_quality(x, 0.9 - 0.3 * x + rng.normal(0, 0.1, 200)))
    assert (
        len(points) == 8
        and (np.diff(points[:, 0]) > 0).all()
        and (np.diff(points[:, 1]) <= 0).all()
    )
    between = PairRule(quality=tuple(map(tuple, points))).quality_at(points[:2, 0].mean())
    assert between == pytest.approx(points[:2, 1].mean(), abs=1e-4)


# the command --------------------------------------------------------------------------------------


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that name a tiny detector and a tiny lung field, neither trained; on a phantom one
    sees the lungs 6 px too wide on the left, and the other 3 px too narrow."""
    torch.manual_seed(0)
    tiny = DetectorConfig(backbone="test_efficientnet", side=64, fpn_channels=8, head_channels=8)
    net = build_detector(tiny)
    point = {"reject_score": 0.3, "ok_score": 0.6, "aspect_range": [0.3, 3], "min_area_share": 0.01}
    save_bundle(
        tmp_path / "d.safetensors",
        "thorax",
        net.state_dict(),
        model=to_plain(tiny),
        operating_point=point,
        licence="none",
    )
    field = FieldNetConfig(
        encoder="tu-test_efficientnet",
        weights="none",
        depth=2,
        decoder_channels=(8, 8),
        freeze_stages=0,
        side=64,
    )
    tensors = build_field_net(field).state_dict()
    save_bundle(tmp_path / "f.safetensors", "lungfield", tensors, model=to_plain(field))

    def look(finder: ThoraxFinder, films: Sequence[np.ndarray]) -> list[Look]:
        out = []
        for film in films:
            x0, *rest = mask_box_xyxy(film < 0.3)  # type: ignore[misc]
            found = Detections(np.array([[x0 - 6, *rest]]), np.array([0.9]), np.array([0]))
            out.append(Look(found, FieldBox((x0 + 3, *rest), 0.1)))
        return out

    monkeypatch.setattr(ThoraxFinder, "look", look)
    monkeypatch.setattr(detect.pair, "default_jobs", lambda films: 0)
    words = ["--weights", str(tmp_path / "d.safetensors"), "--device", "cpu"]
    return [*words, "--field", str(tmp_path / "f.safetensors"), "--part", "all"]


def test_the_rule_goes_into_the_bundle_and_is_found_there(
    bundles: list[str], phantom_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    assert main([*bundles, "--data", str(phantom_folder), "--out", str(out)]) == 0
    old, new = (load_bundle(path, "thorax") for path in (bundles[1], out))
    assert all(torch.equal(new.tensors[name], tensor) for name, tensor in old.tensors.items())
    assert {k: v for k, v in new.meta.items() if k != "pair"} == old.meta
    rule = ThoraxFinder(ThoraxDetector.load(out, "cpu"), None, None, "detector").rule
    assert rule.detector_share[0] == 0.35  # a third, in steps of 0.05
    assert rule.chosen_on is not None
    assert (rule.chosen_on["films"], rule.chosen_on["part"]) == (24, "all")
    assert rule.chosen_on["weights"]["d.safetensors"] == old.sha256
    assert 0.9 < rule.quality[0][1] <= 1


def test_without_out_the_bundle_itself_has_the_rule(
    bundles: list[str], phantom_folder: Path
) -> None:
    assert main([*bundles, "--data", str(phantom_folder)]) == 0
    assert "pair" in load_bundle(bundles[1], "thorax").meta


def test_too_few_films_are_refused(
    bundles: list[str], phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*bundles, "--data", str(phantom_folder), "--max_films", "6"]) == 2
    assert "there must be 20 films with both boxes" in " ".join(capsys.readouterr().err.split())
    assert "pair" not in load_bundle(bundles[1], "thorax").meta


def test_a_film_that_cannot_be_read_is_named_and_left_out(
    bundles: list[str],
    phantom_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantom_folder, data)
    (data / "images/film03.png").write_bytes(b"no picture")
    assert main([*bundles, "--data", str(data)]) == 0
    assert "images/film03.png left out: " in caplog.text
    pair = load_bundle(bundles[1], "thorax").meta["pair"]
    assert pair["chosen_on"]["films"] == 23

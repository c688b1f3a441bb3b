"""The guard: what networks pool, how far a film lies from those of the training, the commands."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import draw_phantom
from saliency_nets import HeadNet, pooled
from test_classify_ensemble import write_member
from torch import nn

from classify.ensemble import Ensemble, members_of
from classify.guard import SPOILT, Guard, hash_members, main
from classify.members import GUARD, member_files
from classify.models.backbones import FusionNet
from classify.models.multitask import build_member
from classify.models.settings import MemberConfig
from classify.preprocess import PreprocessConfig
from classify.saliency.hooks import saliency_layer
from classify.saliency.maps import look_pooled
from cxr.bundle import bundle_kind
from cxr.split import Split

SETTINGS = PreprocessConfig(side=32)
TRAIN, CALIBRATION = 20, 22  # films, each of a patient of its own


def by_hand() -> Guard:
    """Three features; films differ by 2 along the first, and by 0.5 elsewhere."""
    return Guard(np.zeros(3), np.array([[1.0, 0, 0]]), np.array([2.0]), 0.5, threshold=4.0)


def test_the_distance_is_mahalanobis_and_what_is_left_in_its_own_spread() -> None:
    films = np.array([[4.0, 0, 0], [0, 0.6, 0.8], [-4.0, 0.6, 0.8], [0, 0, 0]])
    np.testing.assert_allclose(by_hand().distance(films), [2, 2, 4, 0])
    np.testing.assert_allclose(by_hand().far(films), [0.5, 0.5, 1, 0])


def test_features_of_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(N, 3\)"):
        by_hand().distance(np.zeros((2, 4)))


def test_there_is_an_axis_for_five_films_and_64_at_most() -> None:
    rng = np.random.default_rng(0)
    assert len(Guard.fit(rng.normal(size=(24, 30))).axes) == 4
    assert len(Guard.fit(rng.normal(size=(400, 90))).axes) == 64


def test_a_film_that_leaves_what_all_films_share_is_far() -> None:
    given = np.random.default_rng(0).normal(size=(50, 6))
    given[:, 5] = 0.25  # the same of every film
    guard = Guard.fit(given)
    assert len(guard.axes) == 5
    like, unlike = given[:1].copy(), given[:1].copy()
    unlike[0, 5] = 0.5
    assert guard.distance(unlike)[0] > 1000 * guard.distance(like)[0]


def test_too_few_films_are_refused() -> None:
    with pytest.raises(ValueError, match="10 films at least"):
        Guard.fit(np.zeros((9, 3)))


def test_the_threshold_is_the_95th_percentile_of_patients_by_their_farthest_film() -> None:
    far = 2.0 * np.arange(1, 21)  # along the first axis: distances 1 … 20
    features = np.zeros((40, 3))
    features[:20, 0], features[20:, 0] = far, far / 4  # each patient's second film is nearer
    patients = [f"p{n}" for n in range(20)] * 2
    guard = by_hand().calibrated(features, patients)
    assert guard.threshold == pytest.approx(1 + 0.95 * 19) and guard.share == 0.95


def test_too_few_calibration_patients_are_refused() -> None:
    with pytest.raises(ValueError, match="of 20 patients at least"):
        by_hand().calibrated(np.zeros((30, 3)), [f"p{n % 19}" for n in range(30)])


def members_in(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    for order, name in enumerate(("bacterial", "viral")):
        write_member(folder, name, order, **changes)
    return folder


def saved(folder: Path) -> Guard:
    rng = np.random.default_rng(0)
    guard = Guard.fit(rng.normal(size=(60, 8)))
    guard = guard.calibrated(rng.normal(size=(40, 8)), [str(n) for n in range(40)])
    known = (guard.rest, guard.threshold, guard.share, hash_members(folder), {"patients": "adults"})
    return Guard(guard.mean, guard.axes, guard.spreads, *known).save(folder)


def test_a_saved_guard_says_the_same_and_is_no_member(tmp_path: Path) -> None:
    folder = members_in(tmp_path / "e")
    guard = saved(folder)
    again = Guard.load(folder)
    films = np.random.default_rng(1).normal(size=(9, 8))
    np.testing.assert_array_equal(again.far(films), guard.far(films))
    assert (again.share, again.meta, again.sha256) == (0.95, {"patients": "adults"}, guard.sha256)
    assert [path.stem for path in member_files(folder)] == ["bacterial", "viral"]
    assert bundle_kind(folder / GUARD) == "guard"
    assert Ensemble.load(folder, "cpu").targets == ("bacterial", "viral")


def test_a_guard_of_other_members_is_refused(tmp_path: Path) -> None:
    folder = members_in(tmp_path / "e")
    saved(folder)
    write_member(folder, "viral", 5)
    with pytest.raises(ValueError, match="not fitted for the members beside it"):
        Guard.load(folder)


def test_a_missing_guard_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m classify\.guard fit"):
        Guard.load(tmp_path)


# --- what the networks pool


def net(seed: int, classes: int = 3) -> HeadNet:
    torch.manual_seed(seed)
    return HeadNet(pooled(nn.Linear(8, classes))).eval()


def fusion(seed: int) -> FusionNet:
    return FusionNet({"a": net(seed), "b": net(seed + 1)}, "1fc", 3).eval()


def maps_mean(one: nn.Module, batch: torch.Tensor) -> np.ndarray:
    seen: list[torch.Tensor] = []
    handle = saliency_layer(one).register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.inference_mode():
        one(batch)
    handle.remove()
    return seen[0].mean((2, 3)).numpy()


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_each_distinct_network_gives_what_it_pools_once(batch: torch.Tensor) -> None:
    one = net(0, classes=4)
    ensemble = Ensemble(members_of(one, ("normal", "a", "b", "c")), SETTINGS)
    passes: list[int] = []
    one.register_forward_hook(lambda _m, _i, _o: passes.append(1))
    logits, features = ensemble.predict_pooled(batch)
    assert passes == [1]
    np.testing.assert_array_equal(logits, ensemble.predict_prepared(batch))
    np.testing.assert_allclose(features, maps_mean(one, batch), atol=1e-6)


@pytest.mark.parametrize("build", [net, fusion])
def test_networks_stand_side_by_side_in_both_ways_of_looking(
    batch: torch.Tensor, build: object
) -> None:
    nets = {"a": build(0), "b": build(4)}  # type: ignore[operator]
    ensemble = Ensemble(nets, SETTINGS)
    parts = [n for m in nets.values() for n in getattr(m, "nets", {"": m}).values()]
    expected = np.concatenate([maps_mean(n, batch) for n in parts], axis=1)
    assert ensemble.pools and expected.shape == (3, 8 * len(parts))
    np.testing.assert_allclose(ensemble.predict_pooled(batch)[1], expected, atol=1e-6)
    looks, features = look_pooled(list(nets.values()), batch, 1)
    np.testing.assert_allclose(features, expected, atol=1e-6)
    np.testing.assert_allclose(
        np.stack([logits for logits, _ in looks], 1), ensemble.predict_prepared(batch), atol=1e-5
    )


def test_of_a_member_with_a_neck_it_is_what_the_encoder_gives(batch: torch.Tensor) -> None:
    torch.manual_seed(0)
    small = MemberConfig("tu-test_efficientnet", "none", 24, decoder_channels=(8, 8, 8, 8))
    member = build_member(small).eval()
    with torch.inference_mode():
        expected = member.encoder(batch)[-1].mean((2, 3)).numpy()
    _, features = Ensemble({"a": member}, SETTINGS).predict_pooled(batch)
    np.testing.assert_allclose(features, expected, atol=1e-6)
    np.testing.assert_allclose(look_pooled([member], batch, 1)[1], expected, atol=1e-6)


# --- the commands


def make_films(folder: Path) -> Path:
    """data/ with schematic chests of a patient each, a split, and a folder of inverted films."""
    (folder / "data/images").mkdir(parents=True)
    (folder / "odd").mkdir()
    rows, part_of = [], {}
    for n in range(TRAIN + CALIBRATION):
        pixels = draw_phantom(80, 70, seed=n)[0]
        name = f"images/{n:02d}.png"
        cv2.imwrite(str(folder / "data" / name), (255 * pixels).astype(np.uint8))
        part_of[f"p{n}"] = "train" if n < TRAIN else "calibration"
        known = {"source": "phantom", "patient_id": f"p{n}", "label": "normal", "sublabel": ""}
        rows.append({"image": name, "mask": "", **known, "licence": "CC BY 4.0"})
        if n < 3:
            cv2.imwrite(str(folder / "odd" / f"{n}.png"), (255 * (pixels < 0.3)).astype(np.uint8))
    (folder / "odd/torn.png").write_bytes(b"torn")
    with (folder / "data/films.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    Split(0, part_of).save(folder / "split.json")
    return folder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films, and an ensemble of whole films with its guard."""
    folder = make_films(tmp_path_factory.mktemp("guard"))
    members_in(folder / "e", trained_on="films")
    assert main(fit_words(folder)) == 0
    return folder


def fit_words(folder: Path, *more: str) -> list[str]:
    where = ["--ensemble", str(folder / "e"), "--data", str(folder / "data")]
    return ["fit", *where, "--split", str(folder / "split.json"), "--device", "cpu", *more]


def test_fit_notes_whom_the_guard_knows(fitted: Path) -> None:
    guard = Guard.load(fitted / "e")
    assert guard.meta["fit_films_by_source"] == {"phantom": TRAIN}
    assert guard.meta["calibration_films_by_source"] == {"phantom": CALIBRATION}
    assert guard.meta["calibration_patients"] == CALIBRATION
    assert guard.meta["trained_on"] == "films" and len(guard.axes) == TRAIN // 5
    assert "22 phantom" in guard.sentence and "95 %" in guard.sentence


def measured(
    fitted: Path, out: Path, folders: Sequence[str], *more: str
) -> dict[str, dict[str, str]]:
    where = [str(fitted / folder) for folder in folders]
    words = ["--ensemble", str(fitted / "e"), "--out", str(out), "--device", "cpu"]
    assert main(["measure", *where, *words, *more]) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {f"{Path(row['folder']).name}/{Path(row['film']).name}": row for row in rows}


def test_measure_writes_each_film_and_whether_it_is_beyond(fitted: Path, tmp_path: Path) -> None:
    rows = measured(fitted, tmp_path / "guard.csv", ["data/images", "odd"])
    own = [rows[f"images/{n:02d}.png"] for n in range(TRAIN, TRAIN + CALIBRATION)]
    # of 22 patients the 95th percentile lies between the third and second farthest
    assert [row["beyond"] for row in own].count("yes") == 2
    assert all(rows[f"odd/{n}.png"]["beyond"] == "yes" for n in range(3))
    torn = rows["odd/torn.png"]
    assert (torn["far"], torn["beyond"]) == ("", "") and "not_an_image" in torn["reason"]


def test_measure_spoils_films_by_the_way(fitted: Path, tmp_path: Path) -> None:
    rows = measured(fitted, tmp_path / "guard.csv", ["data/images"], "--spoilt", "true")
    films = TRAIN + CALIBRATION
    assert len(rows) == 4 * films
    for way in ("blurred", "inverted", "half covered"):
        far = [rows[f"images, {way}/{n:02d}.png"]["far"] for n in range(films)]
        assert far != [rows[f"images/{n:02d}.png"]["far"] for n in range(films)]


def test_a_film_is_spoilt_as_its_name_says() -> None:
    film = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(64, 0)
    film[::2] = 0.25
    assert SPOILT["blurred"](film).std(0).mean() < 0.1 * film.std(0).mean()
    assert np.allclose(SPOILT["inverted"](film), 1 - film)
    covered = SPOILT["half covered"](film)
    assert not covered[:, :32].any() and np.array_equal(covered[:, 32:], film[:, 32:])


def test_whole_films_for_members_of_crops_are_refused(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = members_in(tmp_path / "e", trained_on="crops")
    assert main(fit_words(fitted, "--ensemble", str(folder))) == 2
    assert "films must be crops" in " ".join(capsys.readouterr().err.split())


def test_a_network_that_names_no_layer_has_no_guard(
    fitted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ensemble = Ensemble({"a": nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))}, SETTINGS)
    assert not ensemble.pools
    monkeypatch.setattr(Ensemble, "load", lambda *_: ensemble)
    assert main(fit_words(fitted)) == 2
    assert "it can have no guard" in " ".join(capsys.readouterr().err.split())


def test_the_calibration_part_cannot_be_fitted_on(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(fit_words(fitted, "--part", "calibration"))
    assert stop.value.code == 2
    assert "another one than part" in capsys.readouterr().err

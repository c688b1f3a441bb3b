"""Attention of a trained network on its tested films: lifts by hand, lungs, crops, folds, cache."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from classify.ensemble import Single
from classify.models.backbones import FusionNet
from classify.models.multitask import build_member
from classify.models.settings import MemberConfig
from classify.preprocess import PreprocessConfig
from cxr.boxes import Frame
from cxr.bundle import save_bundle
from cxr.cli import to_plain
from cxr.ledger import Answer, write_answers
from cxr.manifest import CropRow, ManifestWriter
from cxr.stats import Figure
from cxr.workdir import sha256_file
from reproducing import attention
from reproducing.attention import Attention, attention_of, mean_figure

SIDE, CROP = 128, (0, 32, 128, 96)  # px; xyxy of the crop
CLASSES = ("normal", "pneumonia")
# lungs at 0.8 in a quarter of a film at 0.2: energy 0.25 · 0.8 = 0.2 inside, 0.75 · 0.2 = 0.15 out
LIFT = 0.2 / (0.2 + 0.15) / 0.25
# the crop keeps half of the rows, all of the lungs: 0.25 · 0.2 = 0.05 outside, half of it lungs
CROPPED_LIFT = 0.2 / (0.2 + 0.05) / 0.5


class Brightness(nn.Module):
    """Its maps are the film itself (in cells of `grain` px); pneumonia is a mean brightness above
    0.1, and darkness, which no place of the film speaks for, is normal."""

    def __init__(self, grain: int = 1) -> None:
        super().__init__()
        self.cells = nn.AvgPool2d(grain)
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]]))
            self.fc.bias.copy_(torch.tensor([0.2, 0.0]))

    @property
    def saliency_layer(self) -> nn.Module:
        return self.cells

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.cells(x).mean((2, 3)))


class FakeField:
    """Finds the left half of every film."""

    threshold = 0.5

    loaded = 0

    def segment(self, films: Sequence[np.ndarray]) -> list[np.ndarray]:
        out = [np.zeros(film.shape, np.float32) for film in films]
        for plane in out:
            plane[:, : plane.shape[1] // 2] = 0.9
        return out


def lungs() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[32:96, 32:96] = True
    return mask


def single_of(net: nn.Module, trained_on: str = "films") -> Single:
    settings = PreprocessConfig(side=SIDE, clip=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Single(net.eval(), CLASSES, settings, trained_on, "a" * 64, {})


def answer_films(folder: Path, films: Sequence[int]) -> None:
    write_answers(
        folder / "answers.csv",
        CLASSES,
        [Answer(f"images/toy/f{n}.png", f"p{n}", "toy", "normal", (0.5, 0.5)) for n in films],
    )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four films of four patients, bright in the lungs: 2 is dark, 3 has no mask. The
    folder `trained` tested them all."""
    (tmp_path / "images/toy").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "mask.png"), lungs().astype(np.uint8) * 255)
    rows = []
    for n in range(4):
        pixels = np.where(lungs(), 204, 51) if n != 2 else np.where(lungs(), 40, 10)
        cv2.imwrite(str(tmp_path / f"images/toy/f{n}.png"), pixels.astype(np.uint8))
        rows.append(
            {
                "image": f"images/toy/f{n}.png",
                "mask": "" if n == 3 else "mask.png",
                "source": "toy",
                "patient_id": f"p{n}",
                "label": "normal",
                "sublabel": "",
                "licence": "none",
            }
        )
    with (tmp_path / "films.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    answer_films(tmp_path / "trained", range(4))
    use(monkeypatch, single_of(Brightness()))
    monkeypatch.setattr(attention.LungField, "load", load_field)
    FakeField.loaded = 0
    return tmp_path


def load_field(path: str, device: str) -> FakeField:
    FakeField.loaded += 1
    return FakeField()


def use(monkeypatch: pytest.MonkeyPatch, single: Single) -> list[Path]:
    """Load this network, whatever is asked for; gives the list of what was."""
    asked: list[Path] = []
    monkeypatch.setattr(attention, "load_single", lambda path: asked.append(path) or single)
    return asked


def look(world: Path, films: Sequence[int] = (0, 1), crops: str = "", **settings: int) -> Attention:
    answer_films(world / "trained", films)
    return attention_of(world / "trained", world, crops and world / crops, draws=50, **settings)


def write_crops(world: Path) -> None:
    frame = Frame.cut(CROP)
    with ManifestWriter(world / "crops/manifest.jsonl", {"settings": {}}) as book:
        for n in range(2):
            film = world / f"images/toy/f{n}.png"
            book.add(
                CropRow(
                    film.as_posix(),
                    sha256_file(film),
                    "ok",
                    size_hw=(SIDE, SIDE),
                    thorax_xyxy=(0.0, 32.0, 128.0, 96.0),
                    score=0.9,
                    crop_xyxy=CROP,
                    frame=frame.to_dict(),
                    crop=f"f{n}.png",
                )
            )


def test_the_lift_is_that_worked_out_by_hand(world: Path) -> None:
    found = look(world)
    assert found.figure.value == pytest.approx(LIFT, rel=1e-5) and found.figure.n == 2
    assert found.figure.low == pytest.approx(LIFT, rel=1e-5)  # both films have the same
    assert (found.films, found.empty, found.nets, found.left_out) == (2, 0, {}, {})
    assert found.lung_by == {"human": 2} and FakeField.loaded == 0


def test_a_map_without_energy_is_counted_and_has_no_lift(world: Path) -> None:
    found = look(world, (0, 2))
    assert (found.films, found.empty, found.figure.n) == (2, 1, 1)
    assert found.figure.value == pytest.approx(LIFT, rel=1e-5)


def test_the_network_draws_the_lungs_where_nobody_did(world: Path) -> None:
    found = look(world, (0, 1, 3), batch=1)
    assert found.lung_by == {"human": 2, "lungfield": 1} and FakeField.loaded == 1
    # the left half holds half of the energy: lift 1
    assert found.figure.value == pytest.approx((2 * LIFT + 1) / 3, rel=1e-5)


def test_on_crops_the_map_lies_within_the_crop(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_crops(world)
    use(monkeypatch, single_of(Brightness(), "crops"))
    found = look(world, (0, 1, 2), "crops")
    assert found.figure.value == pytest.approx(CROPPED_LIFT, rel=1e-5)
    assert found.left_out == {"no film of films.csv, or without a crop": 1}
    cv2.imwrite(str(world / "images/toy/f1.png"), np.where(lungs(), 99, 0).astype(np.uint8))
    assert look(world, (1, 0), "crops").left_out == {"changed since the crop was made": 1}


@pytest.mark.parametrize(("trained_on", "crops"), [("crops", ""), ("films", "crops")])
def test_crops_for_another_network_are_refused(
    world: Path, monkeypatch: pytest.MonkeyPatch, trained_on: str, crops: str
) -> None:
    write_crops(world)
    use(monkeypatch, single_of(Brightness(), trained_on))
    with pytest.raises(ValueError, match=f"was trained on {trained_on}"):
        look(world, (0, 1), crops)


def test_a_fusion_net_has_a_figure_for_each_of_its_nets(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = FusionNet({"fine": Brightness(), "coarse": Brightness(64)}, "1fc", classes=2)
    assert isinstance(net.fc, nn.Linear)
    with torch.no_grad():  # pneumonia is the sum of what both say of it
        net.fc.weight.copy_(torch.tensor([[0.0] * 4, [0.0, 1, 0, 1]]))
        net.fc.bias.zero_()
    use(monkeypatch, single_of(net))
    found = look(world)
    assert found.nets["fine"].value == pytest.approx(LIFT, rel=1e-5)
    assert found.nets["coarse"].value == pytest.approx(1, rel=1e-5)  # its quarters are all alike
    assert found.figure.value == pytest.approx((LIFT + 1) / 2, rel=1e-5)  # equal shares


class Drawing(Brightness):
    """Draws by itself what is bright; and the film is shown as the map says."""

    def __init__(self) -> None:
        super().__init__()
        self.explanation_layer = nn.Identity()

    def explain(self, x: torch.Tensor) -> torch.Tensor:
        return self.explanation_layer((x[:, :1] > 0.5).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * self.explain(x))


def test_the_map_that_a_network_draws_is_measured_beside_grad_cam(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, single_of(Drawing()))
    found = look(world)
    assert list(found.nets) == ["explanation", "explanation_class"]
    # it draws the lungs and nothing else: a quarter of the film holds all energy
    assert found.nets["explanation"].value == pytest.approx(4, rel=1e-5)
    assert found.nets["explanation_class"].value == pytest.approx(4, rel=1e-5)


def test_a_member_of_an_ensemble_is_looked_at_too(world: Path) -> None:
    net = build_member(MemberConfig("resnet18", "none"), decode=False)
    settings = PreprocessConfig(side=64).to_dict()
    answer_films(world / "trained", (0, 1))
    save_bundle(
        world / "trained/viral.safetensors",
        "member",
        dict(net.state_dict()),
        target="viral",
        order=0,
        decoder=False,
        preprocessing=settings,
        trained_on="films",
        network=to_plain(MemberConfig("resnet18")),
    )
    found = attention_of(world / "trained", world, draws=20)
    assert found.films == 2 and found.figure.n == 2 - found.empty and not found.nets
    (world / "trained/covid.safetensors").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"must hold one network.* Got covid, viral"):
        attention_of(world / "trained", world)


def test_each_fold_is_looked_at_on_the_films_that_it_tested(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = use(monkeypatch, single_of(Brightness()))
    for n in range(2):
        answer_films(world / f"trained/fold{n}", [n])
    found = attention_of(world / "trained", world)
    assert [p.parent.name for p in asked] == ["fold0", "fold1"]
    assert found.films == 2 and found.figure.value == pytest.approx(LIFT, rel=1e-5)


def test_what_was_measured_is_not_measured_again(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = use(monkeypatch, single_of(Brightness()))
    first = look(world)
    assert look(world) == first and len(asked) == 1
    assert look(world, (0, 2)) != first and len(asked) == 2  # other films
    (world / "trained/single.safetensors").write_bytes(b"other weights")
    look(world, (0, 2))
    assert len(asked) == 3
    (world / "trained/attention.json").write_text("torn {")
    look(world, (0, 2))
    assert len(asked) == 4


def test_so_many_films_as_are_asked_for_and_always_the_same(world: Path) -> None:
    assert look(world, range(4), max_films=2).films == 2
    films = [f"f{n}" for n in range(9)]
    assert attention._choose(films, 3) == attention._choose(films[::-1], 3)


def test_the_interval_is_by_patient() -> None:
    # two patients with lifts 1 and 3: draws hold one of them twice, or both
    found = mean_figure([1.0, 3.0, None], ["p", "q", "r"], draws=500)
    assert (found.value, found.low, found.high, found.n) == (2.0, 1.0, 3.0, 2)
    assert mean_figure([None], ["p"]) == Figure(None, None, None, 0)

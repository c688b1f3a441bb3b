"""classify/ensemble.py: members loaded from a folder, films prepared once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from classify.ensemble import Ensemble, member_of
from classify.models.multitask import build_member
from classify.models.settings import MemberConfig
from classify.preprocess import PreprocessConfig
from classify.saliency.maps import saliency_maps
from cxr.bundle import load_bundle, save_bundle
from cxr.cli import to_plain
from cxr.engines import pick_device
from cxr.workdir import sha256_file

SETTINGS = PreprocessConfig(side=64)


def write_member(folder: Path, name: str, order: int, **changes: object) -> None:
    torch.manual_seed(order)
    config = MemberConfig("tu-test_efficientnet", "none", 16, decoder_channels=(8, 8))
    meta = {
        "target": name,
        "order": order,
        "network": to_plain(config),
        "decoder": False,
        "preprocessing": SETTINGS.to_dict(),
        "trained_on": "crops",
    } | changes
    classes = len(changes.get("classes", "abc"))  # type: ignore[arg-type]
    targets = len(changes.get("targets", "a"))  # type: ignore[arg-type]
    tensors = build_member(config, True, classes, targets).shipped_tensors(decoder=False)
    save_bundle(folder / f"{name}.safetensors", "member", tensors, **meta)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_member(tmp_path, "viral", 0)
    write_member(tmp_path, "bacterial", 1)
    return tmp_path


@pytest.fixture
def films() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.random(size).astype(np.float32) for size in ((90, 70), (64, 64), (80, 200))]


def test_members_stand_in_the_order_of_their_training(folder: Path) -> None:
    ensemble = Ensemble.load(folder, "cpu")
    assert ensemble.targets == ("viral", "bacterial")
    assert ensemble.settings == SETTINGS
    assert ensemble.trained_on == "crops"
    assert ensemble.weights["viral"] == sha256_file(folder / "viral.safetensors")


def test_a_member_of_two_classes_is_no_member_to_screen_with(folder: Path) -> None:
    write_member(folder, "covid", 2, classes=["rest", "covid"])
    with pytest.raises(ValueError, match=r"covid\.safetensors answers rest / covid: .* three"):
        Ensemble.load(folder, "cpu")
    net = member_of(load_bundle(folder / "covid.safetensors", "member")).eval()
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_films_of_any_size_get_three_logits_a_member(folder: Path, films: list) -> None:
    logits = Ensemble.load(folder, "cpu").predict(films)
    assert logits.shape == (3, 2, 3)
    assert logits.dtype == np.float32
    assert not np.allclose(logits[:, 0], logits[:, 1])


def test_a_film_alone_gets_the_answer_it_gets_in_a_batch(folder: Path, films: list) -> None:
    ensemble = Ensemble.load(folder, "cpu")
    alone = np.concatenate([ensemble.predict([film]) for film in films])
    assert np.allclose(alone, ensemble.predict(films), atol=1e-5)


def test_no_film_gives_an_empty_answer(folder: Path) -> None:
    assert Ensemble.load(folder, "cpu").predict([]).shape == (0, 2, 3)


def test_member_on_prepared_films_is_what_predict_gives(folder: Path, films: list) -> None:
    ensemble = Ensemble.load(folder, "cpu")
    batch, frames = ensemble.prepare(films)
    assert batch.shape == (3, 3, 64, 64)
    assert frames[2].content_hw == (26, 64)
    with torch.inference_mode():
        logits = ensemble.member("bacterial")(batch).numpy()
    assert np.allclose(logits, ensemble.predict(films)[:, 1], atol=1e-6)


def test_films_are_preprocessed_once_for_all_members(
    folder: Path, films: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    import classify.preprocess

    calls: list[int] = []
    real = classify.preprocess.preprocess
    monkeypatch.setattr(classify.preprocess, "preprocess", lambda *a: calls.append(1) or real(*a))
    Ensemble.load(folder, "cpu").predict(films)
    assert len(calls) == len(films)


def test_an_unknown_target_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"viral, bacterial.*gout"):
        Ensemble.load(folder, "cpu").member("gout")


def test_an_empty_folder_says_how_to_train(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"classify\.train"):
        Ensemble.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"preprocessing": PreprocessConfig(side=96).to_dict()}, "agree in preprocessing"),
        ({"trained_on": "films"}, "agree in trained_on"),
        ({"target": "viral"}, "different targets"),
    ],
)
def test_members_that_do_not_belong_together_are_refused(
    folder: Path, changes: dict, says: str
) -> None:
    write_member(folder, "other", 2, **changes)
    with pytest.raises(ValueError, match=says):
        Ensemble.load(folder, "cpu")


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    config = MemberConfig("tu-test_resnet", "none", decoder_channels=(8, 8))
    write_member(folder, "other", 2, network=to_plain(config))
    with pytest.raises(ValueError, match="its own network"):
        Ensemble.load(folder, "cpu")


@pytest.mark.parametrize("key", ["preprocessing", "network", "order", "decoder", "target"])
def test_what_the_metadata_lack_is_named(folder: Path, key: str) -> None:
    bundle = load_bundle(folder / "viral.safetensors", "member")
    meta = {k: v for k, v in bundle.meta.items() if k not in ("kind", key)}
    save_bundle(bundle.path, "member", bundle.tensors, **meta)
    with pytest.raises(ValueError, match=f"{folder.name}.*The metadata lack '{key}'"):
        Ensemble.load(folder, "cpu")


def test_device_by_name() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("gpu").type == "cuda"
    with pytest.raises(ValueError, match="device"):
        pick_device("abacus")


def test_one_network_may_answer_for_several_targets(
    tmp_path: Path, films: list[np.ndarray]
) -> None:
    write_member(tmp_path, "members", 0, targets=["mass", "effusion"])
    ensemble = Ensemble.load(tmp_path, "cpu")
    assert ensemble.targets == ("mass", "effusion")
    assert len(set(ensemble.weights.values())) == 1
    batch, _ = ensemble.prepare(films)
    logits = ensemble.predict_prepared(batch)
    assert logits.shape == (3, 2, 3)
    net = member_of(load_bundle(tmp_path / "members.safetensors", "member")).eval()
    with torch.inference_mode():
        whole = net(batch)
        assert torch.allclose(ensemble.member("effusion")(batch), whole[:, 3:])
    assert np.allclose(logits.reshape(3, 6), whole.numpy())


def test_the_map_of_a_shared_networks_member_is_that_of_its_own_logit(
    tmp_path: Path, films: list[np.ndarray]
) -> None:
    write_member(tmp_path, "members", 0, targets=["mass", "effusion"])
    ensemble = Ensemble.load(tmp_path, "cpu")
    batch, _ = ensemble.prepare(films)
    net = member_of(load_bundle(tmp_path / "members.safetensors", "member"))
    own = saliency_maps(ensemble.member("effusion"), batch, [1] * 3)
    assert np.allclose(own, saliency_maps(net, batch, [4] * 3), atol=1e-6)


def test_members_that_differ_in_their_last_layer_alone_are_run_as_one(
    folder: Path, films: list[np.ndarray]
) -> None:
    alone = Ensemble.load(folder, "cpu")
    assert len(alone.networks) == 2, "members with weights of their own run on their own"
    first, second = (
        load_bundle(folder / f"{t}.safetensors", "member") for t in ("viral", "bacterial")
    )
    heads = {n: t for n, t in second.tensors.items() if n.startswith("fc.")}
    meta = {k: v for k, v in second.meta.items() if k not in ("schema", "version", "kind")}
    save_bundle(folder / "bacterial.safetensors", "member", {**first.tensors, **heads}, **meta)
    both = Ensemble.load(folder, "cpu")
    assert both.targets == ("viral", "bacterial")
    assert len(both.networks) == 1
    logits = both.predict(films)
    np.testing.assert_allclose(logits[:, 0], alone.predict(films)[:, 0], atol=1e-5)
    net = member_of(load_bundle(folder / "bacterial.safetensors", "member")).eval()
    with torch.inference_mode():
        expected = net(both.prepare(films)[0]).numpy()
    np.testing.assert_allclose(logits[:, 1], expected, atol=1e-5)
    assert np.abs(logits[:, 0] - logits[:, 1]).max() > 1e-3

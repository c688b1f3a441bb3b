"""What differs, in words; letters; and answers measured by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from reproduce_toy import TOY
from test_tools_reproduce import RECIPE

from cxr.ledger import Answer
from cxr.stats import Figure
from reproducing.experiment import Experiment, Measure, read_experiment
from reproducing.layout import _text, number
from reproducing.runners import RUNNERS
from reproducing.table import LETTERS, differences, guesses, measure_answers, spans


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setitem(RUNNERS, "toy", TOY)
    path = tmp_path / "rates.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "guessed": ["rate", "backbone.weights"]}))
    return read_experiment(path)


def told(experiment: Experiment, ours: dict[str, Any], paper: dict[str, Any]) -> list[str]:
    return differences(experiment, ours, paper)


def test_a_setting_is_told_with_the_papers(experiment: Experiment) -> None:
    assert told(experiment, {"side": 96, "epochs": 3}, {"side": 299, "epochs": 30}) == [
        "96 px (paper 299)",
        "3 epochs (paper 30)",
    ]


def test_a_guessed_setting_is_not_called_the_papers(experiment: Experiment) -> None:
    assert told(experiment, {"rate": 0.5}, {"rate": 0.1}) == [
        "learning rate 0.5 (paper not given, full recipe 0.1)"
    ]


def test_a_network_is_told_with_its_weights(experiment: Experiment) -> None:
    ours = {"backbone": {"name": "efficientnet_lite0", "weights": "imagenet"}}
    paper = {"backbone": {"name": "resnet50", "weights": "imagenet"}}
    # its weights are guessed
    assert told(experiment, ours, paper) == [
        "EfficientNet-Lite0 with ImageNet weights "
        "(paper not given, full recipe ResNet50 with ImageNet weights)"
    ]
    same = {"backbone": {"name": "resnet50", "weights": "none"}}
    assert told(experiment, same, paper) == [
        "random weights (paper not given, full recipe ImageNet weights)"
    ]


def test_shares_of_a_split_are_one_sentence(experiment: Experiment) -> None:
    ours = {"parts": {"val": 0.1, "test": 0.2, "train": 0.7}}
    assert told(experiment, ours, {"parts": {"train": 0.8, "val": 0.2}}) == [
        "parts train 0.7, val 0.1, test 0.2 (paper train 0.8, val 0.2)"
    ]


def test_folders_and_devices_are_not_told(experiment: Experiment) -> None:
    assert told(experiment, {"out": "a", "device": "gpu", "seed": 1}, {"out": "b"}) == []


def test_crops_are_told(experiment: Experiment) -> None:
    assert told(experiment, {"crops": "here"}, {"crops": "here"}) == [
        "crops of the thorax (paper whole films)"
    ]


def test_guesses_are_listed_with_all_their_values(experiment: Experiment) -> None:
    text = guesses(experiment, [{"rate": 0.1}, {"rate": 0.5}, {"rate": 0.1}])
    assert text.endswith("so the full recipe takes: learning rate 0.1 or 0.5.")


def test_letters_go_on_after_z() -> None:
    assert LETTERS[24:29] == ["y", "z", "aa", "ab", "ac"]


def test_runs_of_letters_are_short() -> None:
    assert spans(["d", "a", "b", "c", "f", "h", "i"]) == "a–d, f, h, i"
    assert spans([]) == ""


def test_a_figure_is_told_with_its_interval() -> None:
    assert number(Figure(0.75, 0.5, 1.0, 4)) == "0.750 [0.500, 1.000]"
    assert number(Figure(0.75, None, None, 4)) == "0.750"
    assert number(None) == "–"


def test_texts_cannot_break_out_of_their_cell() -> None:
    assert _text("a | b\n<b> `c` *d* [e](f)") == ("a \\| b &lt;b&gt; 'c' \\*d\\* [e]\\(f)")
    assert _text("see /home/me/films/a.png") == "see …/a.png"
    assert _text("0.8 / 0.1 and a/b") == "0.8 / 0.1 and a/b"


def test_a_film_without_a_box_is_wrong_but_no_class_of_its_own() -> None:
    classes = ("normal", "pneumonia", "no box")
    rows = [
        ("normal", (0.9, 0.1, 0.0)),
        ("normal", (0.0, 0.0, 1.0)),
        ("pneumonia", (0.2, 0.8, 0.0)),
        ("pneumonia", (0.7, 0.3, 0.0)),
    ]
    answers = [
        Answer(f"{n}.png", f"p{n}", "toy", truth, scores) for n, (truth, scores) in enumerate(rows)
    ]
    measures = [Measure(n) for n in ("accuracy", "f1.normal", "f1.pneumonia", "macro_f1")]
    found = measure_answers(classes, answers, measures, 50, 0)
    # normal: 1 right, 1 missed, 1 too many: 2 / 4; pneumonia: 1 right, 1 missed: 2 / 3
    values = [found[m.name].value for m in measures]  # type: ignore[union-attr]
    assert values == pytest.approx([0.5, 0.5, 2 / 3, 7 / 12])


def test_what_came_before_is_told_apart(experiment: Experiment) -> None:
    ours = {"start": "pretrained", "pretraining": {"side": 96}}
    paper = {"start": "pretrained", "pretraining": {"side": 224}}
    assert told(experiment, ours, paper) == ["pretraining: 96 px (paper 224)"]
    scratch = [{**settings, "start": "own"} for settings in (ours, paper)]
    assert told(experiment, *scratch) == []


def test_a_count_is_a_whole_number() -> None:
    assert number(Figure(512.0, None, None, 60)) == "512"
    assert number(Figure(1.0, None, None, 60)) == "1.000"  # a share


def test_phases_are_told_by_name_and_what_differs_within_them(experiment: Experiment) -> None:
    hard = {"name": "hard", "films": "with_region", "optim": {"epochs": 300}}
    weak = {"name": "weak", "films": "all", "optim": {"epochs": 300}}
    ours = {"phases": [{"name": "hard", "films": "all", "optim": {"epochs": 3}}]}
    assert told(experiment, ours, {"phases": [hard, weak]}) == [
        "phases hard (paper hard, weak)",
        "films of the phase all (paper with region)",
        "3 epochs (paper 300)",
    ]


def test_a_members_encoder_goes_with_its_weights_and_its_region_by_kind(
    experiment: Experiment,
) -> None:
    ours = {
        "member": {"encoder": "tu-tf_efficientnet_lite0", "weights": "imagenet"},
        "region": {"kind": "lung_field"},
        "targets": [],
    }
    paper = {
        "member": {"encoder": "densenet121", "weights": "imagenet"},
        "region": {"kind": "lesion_masks"},
        "targets": ["support_device"],
    }
    assert told(experiment, ours, paper) == [
        "EfficientNet-Lite0 with ImageNet weights (paper DenseNet121 with ImageNet weights)",
        "region lung field (paper lesion masks)",
        "targets none (paper support device)",
    ]


def test_a_counted_share_is_told_as_films() -> None:
    assert number(Figure(47 / 71, 0.5, 0.75, 71), True) == "47/71 = 0.662 [0.500, 0.750]"


def test_the_mean_of_the_classes_accuracies_follows_from_the_share_of_right_answers() -> None:
    # 3 classes, 4 films, 1 wrong: two classes have 3 of 4 right, the third all: 2.5 / 3
    truths, said = ("a", "a", "b", "c"), ("a", "b", "b", "c")
    scores = {"a": (0.8, 0.1, 0.1), "b": (0.1, 0.8, 0.1), "c": (0.1, 0.1, 0.8)}
    answers = [
        Answer(f"{n}.png", f"p{n}", "toy", truth, scores[answer])
        for n, (truth, answer) in enumerate(zip(truths, said, strict=True))
    ]
    names = ("mean_class_accuracy", "accuracy.a", "accuracy.b", "accuracy.c")
    found = measure_answers(("a", "b", "c"), answers, [Measure(n) for n in names], 50, 0)
    values = [found[n].value for n in names]  # type: ignore[union-attr]
    assert values == pytest.approx([2.5 / 3, 0.75, 0.75, 1.0])

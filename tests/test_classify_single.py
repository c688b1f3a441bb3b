"""python -m classify.single: the command from a configuration to its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from classify.single import main
from cxr.ledger import read_answers
from cxr.workdir import log

SMALL = """
classes: [normal, pneumonia]
sources: []
backbone: { name: baseline_cnn, weights: none }
preprocess: { side: 32 }
protocol: { parts: { train: 0.5, val: 0.25, test: 0.25 } }
augment: affine
batch: 4
device: cpu
draws: 10
optim: { epochs: 2, rate: 0.001, schedule: cosine, patience: 0 }
"""


def test_a_configuration_becomes_a_folder(phantom_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    out = tmp_path / "out"
    flags = [
        "--config",
        str(tmp_path / "small.yaml"),
        "--data",
        str(phantom_folder),
        "--out",
        str(out),
    ]
    assert main(flags) == 0
    classes, answers = read_answers(out / "answers.csv")
    assert classes == ("normal", "pneumonia")
    assert {answer.truth for answer in answers} == {"normal", "pneumonia"}
    for name in (
        "metrics.json",
        "history.json",
        "curves.png",
        "confusion.png",
        "done.json",
        "single.safetensors",
    ):
        assert (out / name).stat().st_size > 0
    assert not (out / "cache").exists()  # of decoded films: nobody asked to keep it


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data", "nowhere"], "films.csv does not exist"),
        (["--classes", "[normal,gout]"], "Got gout, which no film has"),
        (["--protocol.kind", "official"], "in folders train, val or test"),
        (["--crops", "nowhere"], "detect.crop"),
    ],
)
def test_what_is_missing_is_named_and_exits_with_2(
    phantom_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, flags: list, says: str
) -> None:
    given = ["--data", str(phantom_folder)] * ("--data" not in flags)
    given += ["--sources", "[]", "--out", str(tmp_path)]
    log.addHandler(caplog.handler)
    try:
        assert main([*given, *flags]) == 2
    finally:
        log.removeHandler(caplog.handler)
    assert says in caplog.text


@pytest.mark.parametrize(
    "flags",
    [["--batch", "1"], ["--kind", "forest"], ["--colour", "red"], ["--preprocess.mean", "[0,0,0]"]],
)
def test_wrong_arguments_exit_with_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2

"""tools/box_study.py: the learning curve, with tiny networks on schematic chests."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import box_study
import pytest
import yaml

from cxr.coco import read_coco, write_coco
from cxr.split import Split


def test_the_learning_curve(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(phantom_folder, data)
    coco, part_of = read_coco(data / "thorax.json"), {}
    for film in coco.films:  # 6 patients to train with, 3 children and 3 adults to measure on
        number = int(film.patient_id.removeprefix("patient"))
        film.extra["source"] = "shenzhen" if number > 8 else "kermany"
        part_of[film.patient_id] = "test" if number > 5 else "val" if number > 3 else "train"
    write_coco(data / "thorax.json", coco)
    names = [f.file_name.split("/")[1].replace(".png", ".jpeg") for f in coco.films[:12]]
    drawn = [replace(f, file_name=n) for f, n in zip(coco.films, names, strict=False)]
    write_coco(tmp_path / "drawn.json", replace(coco, films=drawn))  # as the public set calls them
    Split(0, part_of).save(tmp_path / "split.json")
    tiny = {"backbone": "test_efficientnet", "fpn_channels": 16, "head_channels": 16}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"model": tiny, "accelerator": "cpu"}))
    monkeypatch.setattr(box_study, "LITE0", str(tmp_path / "tiny.yaml"))
    monkeypatch.setattr(box_study, "SIZES", (8, 99))

    argv = ["boxes", "--data", str(data), "--annotations", str(tmp_path / "drawn.json")]
    argv += ["--split", str(tmp_path / "split.json"), "--out", str(out)]
    argv += ["--views", "16", "--side", "64"]
    assert box_study.main(argv) == 0
    rows = json.loads((out / "boxes/study.json").read_text())["rows"]
    assert [(row["name"], row["epochs"]) for row in rows] == [("8", 2), ("all 12", 2)]
    films = {key: s["films"] for key, s in rows[0]["sets"].items()}
    assert films == {"children (kermany)": 6, "adults (shenzhen)": 6}
    trained = {f.patient_id for f in read_coco(out / "boxes/8.json").films}
    assert {part_of[p] for p in trained} <= {"train", "val"}
    assert (out / "boxes/curve.png").stat().st_size and "| 8 | 2 |" in (
        out / "boxes/table.md"
    ).read_text()
    monkeypatch.setattr("detect.train.train", None)  # what is measured is not trained again
    assert box_study.main(argv) == 0

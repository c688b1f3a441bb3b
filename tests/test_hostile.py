"""Films that mean harm: each is read or refused with a true reason; see tests/hostile.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import bombs, fault_of_reason, faults_of_manifest, read_all, write
from test_detect_crop import fake  # noqa: F401 - a fixture

import detect.crop

COUNT = 200


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    """Some of what `python tests/hostile.py` makes, and each bomb."""
    out = tmp_path_factory.mktemp("hostile")
    found = write(out, range(COUNT), seed=1)
    for number, (kind, data) in enumerate(bombs()):
        path = out / f"bomb{number}.dcm"
        path.write_bytes(data)
        found.append((kind, path))
    return found


def test_each_is_read_or_refused_in_time_and_in_bounds(made: list[tuple[str, Path]]) -> None:
    read = read_all(made, jobs=1)
    assert len(read) == len(made)
    assert not [f"{r.name!r} ({r.kind}) {r.fault}" for r in read if r.fault]
    assert not [r.name for r in read if r.kind.startswith("bomb") and r.outcome == "film"]


def test_each_has_its_row_with_a_reason(
    made: list[tuple[str, Path]], tmp_path: Path, fake: None
) -> None:
    films = [path for _, path in made[:60]]
    args = [*map(str, films), "--out", str(tmp_path / "crops"), "--jobs", "0"]
    assert detect.crop.main(args) == 0
    assert not faults_of_manifest(tmp_path / "crops", films)


@pytest.mark.parametrize(
    ("reason", "sentence", "fault"),
    [
        ("truncated", "The PNG breaks off before its end chunk.", ""),
        ("unexpected", "The PNG breaks off before its end chunk.", "has no true reason"),
        ("bad_pixels", "It could not be decoded (ValueError).", "names an exception"),
        ("bad_pixels", "Broken.", "says too little"),
    ],
)
def test_a_refusal_that_is_none_is_seen(reason: str, sentence: str, fault: str) -> None:
    assert fault_of_reason(reason, sentence).startswith(fault)
    assert bool(fault_of_reason(reason, sentence)) == bool(fault)

"""What a member answers to a film: normal, the disease that it seeks, or any other; and the bundles
that lie together in a folder of members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxr.films_table import FilmRow, has_disease, is_abnormal

NORMAL, TARGET, OTHERS = 0, 1, 2
NAME_OF_NORMAL = "normal"
GUARD = "guard.safetensors"  # lies among the members and is none
FAR_BELOW = 30.0  # so far below a network's logits lies that of a class which it does not know


def normal_of(classes: Sequence[str]) -> int:
    """The index of the class normal, against which a member weighs its target; raises ValueError
    where there is none, or nothing else."""
    if NAME_OF_NORMAL not in classes or len(classes) < 2:
        raise ValueError(
            f"classes of the network must hold {NAME_OF_NORMAL!r} and one more, for "
            "runs and audits weigh each class against it. Got "
            f"{', '.join(classes)} instead."
        )
    return list(classes).index(NAME_OF_NORMAL)


def label_of(
    row: FilmRow, target: str, classes: str = "three", known: Sequence[str] = ()
) -> int | None:
    """What a member should answer: NORMAL (no disease at all), TARGET or OTHERS for three classes;
    with two (`normal` or `target` against all else) 0 or 1, the disease sought being 1. None where
    the film's truth is unknown; `known` are labels beside the usual ones."""
    sick, found = is_abnormal(row, (target, *known)), has_disease(row, [target])
    if sick is None:
        return None
    if classes == "three":
        return TARGET if found else OTHERS if sick else NORMAL
    return int(sick if classes == "normal" else found)


def bundles_in(folder: Path) -> list[Path]:
    """The bundles of a folder but the guard, which lies among the members and is none."""
    return sorted(path for path in folder.glob("*.safetensors") if path.name != GUARD)


def member_files(folder: str | Path) -> list[Path]:
    """The bundles of a folder of members, or of a single network; raises ValueError for none."""
    folder = Path(folder)
    files = bundles_in(folder)
    if not files:
        folds = f" (it holds folds: give {folder / 'fold0'})" * (folder / "fold0").is_dir()
        raise ValueError(
            f"{folder} must hold members' bundles (TARGET.safetensors). Got none{folds}: train "
            "them with python -m classify.train, or give another folder."
        )
    return files


def targets_of(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """The targets that a member answers for, by its bundle's metadata; one, in an older bundle."""
    return tuple(meta.get("targets") or (meta["target"],))


def classes_of(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """What a member answers; three, where its bundle does not say."""
    return tuple(meta.get("classes") or ("normal", *targets_of(meta)[:1], "others"))


def check_together(folder: str | Path, metas: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raises ValueError unless the bundles, by path, are members that can be screened as one."""
    first_path, first = next(iter(metas.items()))
    for path, meta in metas.items():
        names = classes_of(meta)
        if len(names) != 3:
            raise ValueError(
                f"a member must answer normal / target / others to be screened with. {path} "
                f"answers {' / '.join(names)}: train it with classes: three."
            )
        for key in ("preprocessing", "trained_on"):
            if meta[key] != first[key]:
                raise ValueError(
                    f"members of {folder} must agree in {key}. {path.name} has "
                    f"{meta[key]}, {first_path.name} {first[key]}."
                )
    targets = [t for meta in metas.values() for t in targets_of(meta)]
    if len(set(targets)) != len(targets):
        raise ValueError(f"members of {folder} must have different targets. Got {targets}.")

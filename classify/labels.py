"""What a member answers to a film: normal, the disease that it seeks, or any other."""

from __future__ import annotations

from collections.abc import Sequence

from cxr.films_table import FilmRow, has_disease, is_abnormal

NORMAL, TARGET, OTHERS = 0, 1, 2
NAME_OF_NORMAL = "normal"
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

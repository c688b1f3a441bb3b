"""What films of one group are answered: shares with intervals by patient, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cxr.plots import new_figure, write_figure
from cxr.stats import Figure, share_figure

# normal, the target, others: told apart in grey print and by eyes that see few colours, too
_COLOURS = ("#4c9f70", "#c8553d", "#8d99ae", "#e0a458", "#5b5f97", "#2f4858")
_NARROW = 0.06  # share under which a bar has no room for its text


@dataclass(frozen=True)
class Group:
    """Films that are looked at together; `shares`: answer → share of them that is answered so."""

    name: str
    films: int
    patients: int
    shares: dict[str, Figure]


def goes_of(
    said: np.ndarray,
    patients: Sequence[str],
    classes: Sequence[str],
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Figure]:
    """Answer → share of N films whose largest score is for it; `said` (N,) are numbers of
    `classes`."""
    return {name: share_figure(said == k, patients, draws, seed) for k, name in enumerate(classes)}


def draw_goes(groups: Sequence[Group], path: Path) -> Path:
    """A bar a group, the first one (the followed films) on top and set apart, cut into the
    answers; each with its share and interval in per cent."""
    picture = new_figure(9.0, 1.5 + 0.72 * len(groups))
    axis = picture.subplots()
    answers = list(groups[0].shares)
    places = [0.0] + [k + 0.35 for k in range(1, len(groups))]
    for place, group in zip(places, groups, strict=True):
        left = 0.0
        for k, answer in enumerate(answers):
            found = group.shares[answer]
            width = found.value or 0.0
            axis.barh(
                place,
                width,
                left=left,
                height=0.74,
                color=_COLOURS[k % len(_COLOURS)],
                alpha=1.0 if place == 0 else 0.72,
                label=answer if place == 0 else None,
                edgecolor="white",
                linewidth=1.2,
            )
            if width >= _NARROW:
                axis.text(
                    left + width / 2,
                    place,
                    _words(found),
                    ha="center",
                    va="center",
                    color="#1b1b1b",
                    fontsize=9,
                    linespacing=1.25,
                )
            left += width
    if len(groups) > 1:
        axis.axhline(0.675, color="0.75", linewidth=0.8)
    axis.set_yticks(places, [f"{g.name}\n{g.films} films, {g.patients} patients" for g in groups])
    axis.get_yticklabels()[0].set_fontweight("bold")
    axis.set(
        xlim=(0, 1),
        ylim=(places[-1] + 0.5, -0.5),
        xticks=np.linspace(0, 1, 6),
        xticklabels=[f"{n} %" for n in range(0, 101, 20)],
        xlabel="share of the tested films (95 % interval by patient)",
    )
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    picture.legend(
        *axis.get_legend_handles_labels(),
        title="answered",
        frameon=False,
        loc="outside upper right",
        ncols=len(answers),
    )
    return write_figure(picture, path)


def _words(found: Figure) -> str:
    value = f"{100 * (found.value or 0.0):.0f} %"
    if found.low is None or found.high is None:
        return value
    return f"{value}\n{100 * found.low:.0f}–{100 * found.high:.0f}"

"""Films with the lungs, or all but the lungs, blacked out: does a member need the lungs at all?

After Maguolo and Nanni 2021 (arXiv 2004.12823), whose networks told films apart with the lungs
blacked out. Blacking out comes first and the members' own preprocessing after it, so that no
contrast step carries what was hidden into the rest of the film.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np

from classify.audit.rows import UNKNOWN, Row, figure_cells
from classify.labels import NORMAL, TARGET
from classify.screener import Screener
from cxr.boxes import Frame
from cxr.stats import Figure, figure_of, softmax, weighted_auc, weighted_mean, with_draws

OUTSIDE_ONLY, LUNGS_ONLY, SHAPE_ONLY = "outside_only", "lungs_only", "shape_only"
CONTROLS = (OUTSIDE_ONLY, LUNGS_ONLY, SHAPE_ONLY)
AS_IS = "as is"
MARGIN = 0.02  # of the film's longer side: lung that a mask misses lies mostly within it
_GREY = 0.5


def apply_control(
    pixels: np.ndarray,
    lung: np.ndarray,
    control: str,
    margin: float = MARGIN,
    frame: Frame | None = None,
) -> np.ndarray:
    """A copy of a film or crop (h, w) float32 in [0, 1] with a part of it black, as air is.

    Args:
        pixels: the film; or a crop, and then `frame` says how it was cut out of the film.
        lung: (H, W) bool, the lungs in the film's pixels; at least one.
        control: outside_only hides the lungs and `margin` round them. lungs_only hides all but the
            lungs, without a margin, so that the rim belongs to neither: what outside_only shows
            is certainly not lung, and what lungs_only shows is. shape_only hides the lungs as
            outside_only does and paints the rest an even grey: what is left is the outline, which
            outside_only cannot help but show.
        margin: as a fraction of the film's longer side, also for a crop.
    """
    # The region is grown on the film and cut afterwards: lung just outside a crop hides its edge.
    region = lung if control == LUNGS_ONLY else grow(lung, margin)
    if frame is not None:
        # beyond the film the Frame gives False: there is no lung, and the crop is black already
        region = frame.apply(region.astype(np.uint8), nearest=True).astype(bool)
    shown = region if control == LUNGS_ONLY else ~region
    left = np.float32(_GREY) if control == SHAPE_ONLY else pixels
    return np.where(shown, left, np.float32(0.0)).astype(np.float32, copy=False)


def grow(mask: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """(H, W) bool mask and all within `margin` × the longer side of it (Euclidean distance)."""
    radius = margin * max(mask.shape)
    if radius < 1 or not mask.any():
        return mask.copy()
    # by distance and not by a round kernel, whose cost grows with the square of the radius
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return away <= radius + 1e-3


@dataclass(frozen=True, eq=False)
class Asked:
    """A member, a question to all of them, or the screener, which stands in a member's place.

    Args:
        name: stands in the table.
        positive: (N,) 1, 0, or NaN for films that are not asked.
        answer: logits (N, M, 3) to (N,) scores, higher meaning rather positive, and (N,) decisions;
            None for a question, which decides nothing.
    """

    name: str
    positive: np.ndarray
    answer: Callable[[np.ndarray], tuple[np.ndarray, Any]]


def ask_all(
    labels: np.ndarray,
    targets: Sequence[str],
    questions: Sequence[Asked] = (),
    screener: Screener | None = None,
) -> list[Asked]:
    """Each member for its TARGET against the rest, the questions, and the screener for abnormal
    against normal. `labels` (N, M): NORMAL, TARGET, OTHERS for each member, or -1 where unknown."""
    asked = []
    for m, target in enumerate(targets):
        positive = np.where(labels[:, m] == UNKNOWN, np.nan, labels[:, m] == TARGET)
        asked.append(Asked(target, positive, partial(_answer_of, m)))
    asked += questions
    if screener is not None:
        # members differ in what they call TARGET, but agree on what is normal
        known = (labels != UNKNOWN).all(1)
        positive = np.where(known, (labels != NORMAL).any(1), np.nan)
        asked.append(Asked("screener", positive, lambda logits: screener.decide(logits)[:2]))
    return asked


def _answer_of(member: int, logits: np.ndarray) -> tuple[np.ndarray, Any]:
    return softmax(logits[:, member])[:, TARGET], logits[:, member].argmax(1)


def control_table(
    logits_by_control: Mapping[str, np.ndarray],
    asked: Sequence[Asked],
    patients: Sequence[str],
    seed: int = 0,
    draws: int = 1000,
    sources: Sequence[str] | None = None,
) -> list[Row]:
    """A row for each source, one of `asked`, and control.

    `auc` is that of the positive films against the others, its interval `low` to `high` over `n`
    films. `difference` is that AUC minus the one of the films as they are, on the same drawn
    patients. `changed` is the share of films with another decision than as they are.

    Args:
        logits_by_control: name → (N, M, 3); `as is` must be among them.
        patients: of the N films; intervals draw patients.
        sources: of the N films; with several, each stands alone and `all` comes last: pooled,
            which a model that only tells sources apart does well on.
    """
    answers = [
        (one.name, one.positive, {c: one.answer(z) for c, z in logits_by_control.items()})
        for one in asked
    ]
    rows: list[Row] = []
    for source, films in _films_by_source(sources, len(patients)):
        weights = with_draws([patients[i] for i in films], draws, seed)
        for name, positive, said in answers:
            known = ~np.isnan(positive[films])
            right, drawn = positive[films][known] == 1, weights[:, known]
            aucs = {
                control: weighted_auc(scores[films][known], right, drawn)
                for control, (scores, _) in said.items()
            }
            for control, auc in aucs.items():
                gap = figure_of(auc - aucs[AS_IS], len(right))
                changed = Figure(None, None, None, len(films))
                if said[control][1] is not None:
                    after, before = (np.asarray(said[c][1])[films] for c in (control, AS_IS))
                    changed = figure_of(weighted_mean(after != before, weights), len(films))
                rows.append(
                    {
                        "control": control,
                        "member": name,
                        "source": source,
                        **figure_cells(figure_of(auc, len(right)), "auc"),
                        "difference": gap.value,
                        "difference_low": gap.low,
                        "difference_high": gap.high,
                        **figure_cells(changed, "changed", "changed_"),
                    }
                )
    return rows


def _films_by_source(sources: Sequence[str] | None, count: int) -> Iterator[tuple[str, np.ndarray]]:
    names = sorted(set(sources or ()))
    for name in names:
        yield name, np.flatnonzero(np.asarray(sources) == name)
    if len(names) != 1:
        yield "all", np.arange(count)

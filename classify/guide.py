"""Lung-guided training: a network that has its answer from the lungs, and none without them.

Three means, each with its own weight, that any training of a classifier takes as `guide:`.

1. Surroundings: all outside the lung field is taken from another film, whose own lungs are painted
   over, so that letters, shoulders and framing say nothing of the film.
2. Maps: the share of the true class' map that lies outside the lung field is a loss (Ross et al.
   2017, arXiv 1703.03717, of the input's gradient; here of what the head pools).
3. Blanks: to pictures without lungs every class shall be as likely as any other (blank), and what
   is pooled of them shall be nothing (silence): an answer that is merely near «any» still ranks
   films by their outlines.

What came of each is in docs/guide.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cxr.rules import require_not_negative, require_share

_OF = 224  # px of the square input that the two figures below are for
_RIM, _SOFT = 9, 3.0  # px: the lung's rim counts as lung; how softly a picture is joined


@dataclass(frozen=True)
class GuideConfig:
    """How a training is held to the lungs; nothing is, with all at 0.

    Args:
        swap: share of the training pictures whose surroundings are another film's.
        maps: weight of the share of the true class' map that lies outside the lung field.
        blank: weight of how far the answer to a picture without lungs is from «any class as
            likely».
        silence: weight of what the head pools of a picture without lungs, as a share of what it
            pools of a film.
        blank_share: so many more pictures without lungs, as a share of a batch.
        gradient: weight of the input's gradient outside the lung field, for networks of any head;
            doubles the time.
        field: bundle of the lung-field network, for films without a mask that a person drew; empty
            takes the one that comes with lungfirst.
    """

    swap: float = 0.0
    maps: float = 0.0
    blank: float = 0.0
    silence: float = 0.0
    blank_share: float = 0.25
    gradient: float = 0.0
    field: str = ""

    def __post_init__(self) -> None:
        require_share(self, "swap", "blank_share")
        require_not_negative(self, "maps", "blank", "silence", "gradient")

    @property
    def on(self) -> bool:
        """Is anything guided?"""
        return any((self.swap, self.maps, self.blank, self.silence, self.gradient))


def rim_of(side: int) -> int:
    """Width in px, odd, of the kernel by which a lung field grows to take its rim in."""
    return 2 * round(_RIM * side / _OF / 2) + 1


def soft_field(lung: np.ndarray) -> np.ndarray:
    """A lung field (S, S) of 0 / 255 with its rim, (S, S) float32 in [0, 1], soft at its edge."""
    side = lung.shape[0]
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (rim_of(side),) * 2)
    grown = cv2.dilate((lung > 127).astype(np.float32), ellipse)
    return cv2.GaussianBlur(grown, (0, 0), _SOFT * side / _OF)


def swap_surroundings(
    image: np.ndarray,
    lung: np.ndarray,
    other: np.ndarray,
    other_lung: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """The lungs of one film in the surroundings of another: all (S, S) uint8.

    Where the other film's lungs were lies the mean of its surroundings with a smooth noise.
    """
    own, hidden = soft_field(lung), soft_field(other_lung)
    rest = 1 - hidden
    mean = float((other * rest).sum() / max(float(rest.sum()), 1.0))
    noise = cv2.resize(
        rng.uniform(-38, 38, (7, 7)).astype(np.float32), image.shape, interpolation=cv2.INTER_CUBIC
    )
    around = other * rest + (mean + noise) * hidden
    return np.rint(np.clip(image * own + around * (1 - own), 0, 255)).astype(np.uint8)

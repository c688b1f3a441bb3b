"""Planes of a film that result objects hold, each in the film's pixels as they are stored."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache

import cv2
import numpy as np

from cxr.boxes import Frame
from cxr.film import Film, read_film
from cxr.rules import RefusedError
from detect.lungfield.field import LungField
from hospital.judgement import Judged

_OPAQUE = 0.7 * 255  # the most opaque that a run's saliency picture is drawn


class Planes:
    """Made when they are asked for; the film is decoded once. `field_net` gives the lung field's
    network. Raises FilmError where the film cannot be read any more."""

    def __init__(self, judged: Judged, field_net: Callable[[], LungField]) -> None:
        self.judged, self._field_net = judged, field_net

    @cached_property
    def _film(self) -> Film:
        return read_film(self.judged.path, for_processing=True)  # as the run let in

    def film(self) -> np.ndarray:
        """(H, W) float32 in [0, 1], dense bone white."""
        return self._stored(self._film.pixels, cv2.INTER_AREA)

    def field(self) -> np.ndarray:
        """(H, W) bool: both lungs, drawn on the film as it stands upright."""
        net, turns = self._field_net(), self._frame.turned // 90
        upright = np.ascontiguousarray(np.rot90(self._film.pixels, turns))
        lungs = net.segment([upright])[0] > net.threshold
        back = np.ascontiguousarray(np.rot90(lungs, -turns)).astype(np.uint8)
        return self._stored(back, cv2.INTER_NEAREST) > 0

    def saliency(self) -> np.ndarray | None:
        """(H, W) float32 in [0, 1]: the run's map of its strongest member as the report shows it,
        1 at its highest value and 0 outside the crop; None where the run drew none."""
        path = self.judged.saliency
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path and path.is_file() else None
        if picture is None or picture.ndim != 3 or picture.shape[2] != 4:
            return None
        share = np.minimum(picture[..., 3].astype(np.float32) / _OPAQUE, 1)
        height, width = self._frame.canvas_hw
        canvas = cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR)
        pixels = self._film.pixels
        return self._stored(
            self._frame.restore(canvas, (pixels.shape[0], pixels.shape[1])), cv2.INTER_LINEAR
        )

    @cached_property
    def _frame(self) -> Frame:
        return self.judged.boxed.to_frame()

    def _stored(self, plane: np.ndarray, how: int) -> np.ndarray:
        """A plane of square pixels in those of the file."""
        if self._film.stored_hw is None:
            return plane
        height, width = self._film.stored_hw
        return cv2.resize(plane, (width, height), interpolation=how)


@lru_cache(maxsize=1)
def field_net(sha256: str) -> LungField:
    """The shipped lung field's network; RefusedError where the run had another one."""
    net = LungField.load(engine="auto")
    if sha256 not in net.weights.values():
        raise RefusedError(
            "seg must be drawn by the lung field's network of the run, whose SHA-256 is "
            f"{sha256 or 'unknown'}. The shipped one is another: leave seg out, or run anew."
        )
    return net

"""Why a film is never cleared, whatever its members say of it."""

from __future__ import annotations

from typing import Protocol

from cxr.notes import code_of

# notes of films that clearing was not proven on: seen from elsewhere, or no finished picture
NOTED = {
    "lay_turned": "the film lay turned",
    "mirrored": "the film may be mirrored",
    "for_processing": "the film is raw detector data (FOR PROCESSING)",
}
FINE_APART = 0.25  # detect.finder.PairRule's, for a detector that no rule was chosen for


class Boxed(Protocol):
    """A film with what is known of its thorax box: an Item, or a row of the crops' manifest."""

    @property
    def status(self) -> str: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def apart(self) -> float | None: ...


def doubts_of(film: Boxed, fine_apart: float = FINE_APART) -> list[str]:
    """What speaks against clearing the film, in words; none for a film that may be cleared.

    `fine_apart` is the 1 − IoU of the thorax box's two opinions from which on they disagree: the
    detector's `lone_apart` (detect.finder.PairRule).
    """
    found = [] if film.status == "ok" else ["no thorax box is sure enough"]
    codes = {code_of(text) for text in film.notes}
    found += [why for code, why in NOTED.items() if code in codes]
    if film.apart is not None and film.apart > fine_apart:
        found.append(
            f"the two opinions on its thorax box differ by {film.apart:.4g} (1 − IoU), more than "
            f"{fine_apart:.4g}"
        )
    return found


def of_other_age(child: bool | None, patients: str) -> str:
    """The doubt about a film whose patient's age is known, and other than that of the `patients`
    (children, adults) that an ensemble is for; "" where either is not known."""
    if child is None or not patients or child == (patients == "children"):
        return ""
    return f"the patient is {'a child' if child else 'an adult'}, and the ensemble for {patients}"


def unlike(far: float) -> str:
    """The doubt about a film whose distance is `far` times what the guard allows; "" up to 1."""
    if far <= 1:  # not so for NaN
        return ""
    return f"the film is unlike those of the calibration: its distance is {far:.3f}, 1 is allowed"

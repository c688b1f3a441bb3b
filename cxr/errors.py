"""FilmError: the one way in which a film is refused, with a code that machines can count."""

from __future__ import annotations

_REASONS = (
    "not_found empty not_an_image truncated encrypted multi_frame no_pixels wrong_modality "
    "too_small unsupported_syntax bad_pixels blank for_processing"
)
REASONS = frozenset(_REASONS.split())


class FilmError(Exception):
    """A file that is no readable film.

    Attributes:
        reason: one of `REASONS`.
        sentence: what is wrong, in one sentence for people; never holds text of the header, which
            may name the patient.
        path: the file, or "" where it is not known yet.
    """

    def __init__(self, reason: str, sentence: str, path: str = "") -> None:
        assert reason in REASONS, reason
        super().__init__(reason, sentence, path)  # these args make the error picklable
        self.reason = reason
        self.sentence = sentence
        self.path = path

    def __str__(self) -> str:
        place = f"{self.path}: " if self.path else ""
        return f"{place}{self.sentence} [{self.reason}]"

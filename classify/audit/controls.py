"""The table of the masking controls: AUC and changed decisions when parts of each film are hidden.

`control_logits` of classify.audit.masking gives the logits; classify.audit.randomise and
classify.audit.road hold the two other controls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from classify.audit.masking import AS_IS
from classify.labels import NORMAL, TARGET
from cxr.stats import Figure, figure, in_words, softmax, weighted_auc, weighted_mean, with_draws

ALL_SOURCES = "all"
UNDEFINED = "not defined"
UNKNOWN = -1  # the truth of a film that a member's AUC leaves out


@dataclass(frozen=True, eq=False)
class Asked:
    """A question to the whole ensemble.

    Args:
        name: stands in the table in a member's place.
        positive: (N,) 1, 0, or NaN for films that are not asked.
        score: logits (N, M, 3) to (N,) scores; higher means rather positive.
    """

    name: str
    positive: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]


class Screens(Protocol):
    """What the table needs of a Screener."""

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, list[str], str]:
        """(N, M, 3) logits to scores (N,), decisions, and the threshold's id."""
        ...


@dataclass(frozen=True)
class ControlRow:
    """One control, one member (or question, or the screener), the films of one source.

    `auc` is TARGET against the rest for a member, abnormal against normal for the screener.
    `difference` is that AUC minus the one of the films as they are, on the same drawn patients.
    `changed` is the share of films with another answer (the largest of the three logits; the
    screener's decision) than as they are; None for a question, which decides nothing.
    """

    control: str
    member: str
    source: str
    auc: Figure
    difference: Figure
    changed: Figure

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON and the audit page; AUC's interval is `low` to `high`."""
        return {
            "control": self.control,
            "member": self.member,
            "source": self.source,
            "auc": self.auc.value,
            "low": self.auc.low,
            "high": self.auc.high,
            "n": self.auc.n,
            "difference": self.difference.value,
            "difference_low": self.difference.low,
            "difference_high": self.difference.high,
            "changed": self.changed.value,
            "changed_low": self.changed.low,
            "changed_high": self.changed.high,
            "changed_n": self.changed.n,
        }


@dataclass(frozen=True, eq=False)
class _Answers:
    """One member's (or question's) scores and decisions by control, and what is true."""

    name: str
    positive: np.ndarray  # (N,) 1, 0, NaN
    scores: dict[str, np.ndarray]  # (N,)
    decisions: dict[str, np.ndarray] | None


def control_table(
    logits_by_control: Mapping[str, np.ndarray],
    labels: Any,
    patients: Sequence[str],
    targets: Sequence[str],
    seed: int = 0,
    draws: int = 1000,
    sources: Sequence[str] | None = None,
    questions: Sequence[Asked] = (),
    screener: Screens | None = None,
) -> list[ControlRow]:
    """A row for each source, member and control.

    Args:
        logits_by_control: name → (N, M, 3); `as is` must be among them.
        labels: (N, M) NORMAL, TARGET, OTHERS (0, 1, 2) for each member, or -1 where unknown.
        patients: of the N films; intervals draw patients.
        targets: names of the M members.
        sources: of the N films; with several, each stands alone and `all` comes last: pooled,
            which a model that only tells sources apart does well on.
        screener: its decisions are compared too.

    Raises ValueError for shapes that do not fit.
    """
    labels = np.asarray(labels)
    _check(logits_by_control, labels, patients, targets, sources, questions)
    answers = list(_answers(logits_by_control, labels, targets, questions, screener))
    rows: list[ControlRow] = []
    for source, films in _films_by_source(sources, len(labels)):
        weights = with_draws([patients[i] for i in films], draws, seed)
        for answer in answers:
            rows += _rows(answer, source, films, weights)
    return rows


def control_markdown(rows: Sequence[ControlRow]) -> str:
    """The table as Markdown."""
    lines = [
        "| films of | who | control | AUC [95 %] | against as is [95 %] | decision changed [95 %] "
        "| films |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.source} | {r.member} | {r.control} | {in_words(r.auc, missing=UNDEFINED)} | "
        f"{in_words(r.difference, True, UNDEFINED)} | "
        f"{in_words(r.changed, missing=UNDEFINED)} | {r.auc.n} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def _answers(
    logits_by_control: Mapping[str, np.ndarray],
    labels: np.ndarray,
    targets: Sequence[str],
    questions: Sequence[Asked],
    screener: Screens | None,
) -> Iterator[_Answers]:
    every = {name: np.asarray(v, float) for name, v in logits_by_control.items()}
    for m, target in enumerate(targets):
        positive = np.where(labels[:, m] == UNKNOWN, np.nan, labels[:, m] == TARGET)
        scores = {name: softmax(v[:, m])[:, TARGET] for name, v in every.items()}
        said = {name: v[:, m].argmax(1) for name, v in every.items()}
        yield _Answers(target, positive, scores, said)
    for asked in questions:
        scores = {name: np.asarray(asked.score(v), float) for name, v in every.items()}
        yield _Answers(asked.name, np.asarray(asked.positive, float), scores, None)
    if screener is not None:
        decided = {name: screener.decide(v) for name, v in every.items()}
        # members differ in what they call TARGET, but agree on what is normal
        known = (labels != UNKNOWN).all(1)
        positive = np.where(known, (labels != NORMAL).any(1), np.nan)
        yield _Answers(
            "screener",
            positive,
            {k: np.asarray(v[0]) for k, v in decided.items()},
            {k: np.asarray(v[1]) for k, v in decided.items()},
        )


def _rows(
    answer: _Answers, source: str, films: np.ndarray, weights: np.ndarray
) -> Iterator[ControlRow]:
    """`weights` (1 + draws, len(films)) begin with the films themselves."""
    known = ~np.isnan(answer.positive[films])
    positive = answer.positive[films][known] == 1
    aucs = {
        name: weighted_auc(scores[films][known], positive, weights[:, known])
        for name, scores in answer.scores.items()
    }
    n = int(known.sum())
    for control, found in aucs.items():
        gap = found - aucs[AS_IS]
        changed = Figure(None, None, None, len(films))
        if answer.decisions is not None:
            other = answer.decisions[control][films] != answer.decisions[AS_IS][films]
            shares = weighted_mean(other, weights)
            changed = figure(float(shares[0]), shares[1:], len(films))
        yield ControlRow(
            control,
            answer.name,
            source,
            figure(float(found[0]), found[1:], n),
            figure(float(gap[0]), gap[1:], n),
            changed,
        )


def _films_by_source(sources: Sequence[str] | None, count: int) -> Iterator[tuple[str, np.ndarray]]:
    names = sorted(set(sources or ()))
    for name in names:
        yield name, np.flatnonzero(np.asarray(sources) == name)
    if len(names) != 1:
        yield ALL_SOURCES, np.arange(count)


def _check(
    logits_by_control: Mapping[str, np.ndarray],
    labels: np.ndarray,
    patients: Sequence[str],
    targets: Sequence[str],
    sources: Sequence[str] | None,
    questions: Sequence[Asked],
) -> None:
    if AS_IS not in logits_by_control:
        raise ValueError(
            f"logits_by_control must hold {AS_IS!r}, which the others are compared "
            f"with. Got {', '.join(logits_by_control) or 'none'}."
        )
    films = len(labels)
    if not films or labels.shape != (films, len(targets)):
        raise ValueError(
            f"labels must be (N, {len(targets)}), one for each film and member, of at "
            f"least one film. Got {labels.shape} instead."
        )
    wrong = np.setdiff1d(labels, [0, 1, 2, UNKNOWN])
    if len(wrong):
        raise ValueError(
            "labels must be 0, 1, 2 (NORMAL, TARGET, OTHERS) or -1 (unknown). "
            f"Got {wrong[0]} instead."
        )
    for name, logits in logits_by_control.items():
        if np.shape(logits) != (films, len(targets), 3):
            raise ValueError(
                f"logits of {name!r} must be ({films}, {len(targets)}, 3). "
                f"Got {np.shape(logits)} instead."
            )
    given = {"patients": patients, "sources": sources, **{q.name: q.positive for q in questions}}
    for name, values in given.items():
        if values is not None and len(values) != films:
            raise ValueError(
                f"{name} must hold one value for each of the {films} films. "
                f"Got {len(values)} instead."
            )

"""What the probe's figures mean, in plain words: may a result on these labels be believed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cxr.stats import Figure
from exploring.gather import ASPECT, CROP, FILM, NUMBERS, OUTSIDE
from exploring.probe import WITHOUT_LUNGS, Answer

LIMIT = 0.7  # of the interval's lower end: above, a label can be told without lungs

WHAT = {
    FILM: "8×8 thumbnail of the film and its aspect ratio",
    OUTSIDE: "8×8 thumbnail with the thorax blacked out, and the aspect ratio",
    NUMBERS: "the thorax box's four numbers and the aspect ratio",
    ASPECT: "the aspect ratio alone",
    CROP: "8×8 thumbnail of the thorax crop",
}


@dataclass(frozen=True)
class Verdict:
    """`level`: "warning", "caution" (more than chance, no warning), "unknown" (not enough boxes to
    say) or "clear"."""

    question: str
    about: str
    level: str
    text: str


def verdicts(answers: Sequence[Answer]) -> list[Verdict]:
    """One for each question, in their order."""
    names = list(dict.fromkeys(a.question for a in answers))
    return [_verdict([a for a in answers if a.question == name]) for name in names]


def auc_text(found: Figure) -> str:
    """0.979 [0.968, 0.985]"""
    if found.value is None:
        return "not measured"
    if found.low is None or found.high is None:
        return f"{found.value:.3f}, without an interval"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def headline(found: Sequence[Verdict]) -> str:
    """The page's answer in a sentence or two."""
    labels = [v for v in found if v.about == "labels"]
    warned = [v.question for v in labels if v.level == "warning"]
    caution = [v.question for v in labels if v.level == "caution"]
    unknown = [v.question for v in labels if v.level == "unknown"]
    if not labels:
        return "No two labels of one source have films enough to be asked about."
    parts = []
    if warned:
        parts.append(f"Warning: labels can be told without lungs ({_list(warned)}).")
    if caution:
        parts.append(f"Caution: some can be told better than by chance ({_list(caution)}).")
    if not warned and not caution and len(unknown) < len(labels):
        parts.append("No label that could be checked can be told without lungs by these models.")
    if unknown:
        parts.append(f"Not checked for want of thorax boxes: {_list(unknown)}.")
    told = sum(v.about == "sources" and v.level == "warning" for v in found)
    if told:
        parts.append(
            "Sources can be told apart without lungs too: never pool sources whose labels differ."
        )
    return " ".join(parts)


def _verdict(own: Sequence[Answer]) -> Verdict:
    question, about = own[0].question, own[0].about
    by_name = {a.what: a for a in own}
    blind = [by_name[name] for name in WITHOUT_LUNGS if name in by_name]
    telling = [a for a in blind if a.auc.low is not None and a.auc.low > LIMIT]
    things = "labels" if about == "labels" else "sources"
    if telling:
        figures = "; ".join(f"{WHAT[a.what]}: {auc_text(a.auc)}" for a in telling)
        end = (
            "A network that does well here has not shown that it looks at lungs: show these "
            "figures beside its own, and prefer a question on which they stay near 0.5."
            if about == "labels"
            else "Films of both in one training set teach the source in the label's place."
        )
        text = (
            f"The {things} can be told without lungs. AUC of linear models that see no lung: "
            f"{figures}. {end}"
        )
        return Verdict(question, about, "warning", text)
    film = by_name.get(FILM)
    beside = f" From the {WHAT[FILM]}: {auc_text(film.auc)}." if film else ""
    if OUTSIDE not in by_name or by_name[OUTSIDE].auc.value is None:
        why = by_name[OUTSIDE].why_not if OUTSIDE in by_name else ""
        text = (
            "Without thorax boxes nothing can be blacked out"
            f"{f' ({why})' if why else ''}. Give --crops, a folder of detect.crop.{beside}"
        )
        return Verdict(question, about, "unknown", text)
    best = max(blind, key=lambda a: a.auc.value or 0)
    more = any(a.auc.low is not None and a.auc.low > 0.5 for a in blind)
    something = " That is more than chance: show it beside a network's figure." if more else ""
    text = (
        f"What sees no lung reaches at most {auc_text(best.auc)} ({WHAT[best.what]}); a warning "
        f"needs an interval above {LIMIT}.{something}{beside}"
    )
    return Verdict(question, about, "caution" if more else "clear", text)


def _list(names: Sequence[str]) -> str:
    return "; ".join(names)

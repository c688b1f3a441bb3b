"""Words that the sets share: findings, views, sexes and ages, as films.csv writes them."""

from __future__ import annotations

import re

from cxr.films_table import UNKNOWN_WORDS, label_word

# findings of early releases of the COVID-19 sets that do not name their group
_NAMES = {
    "viral": "sars mers mers-cov influenza varicella herpes h1n1",
    "bacterial": "streptococcus klebsiella legionella e.coli mycoplasma chlamydophila nocardia "
    "staphylococcus",
    "fungal": "pneumocystis aspergillosis",
}
_GROUPS = {name: group for group, names in _NAMES.items() for name in names.split()}
_BARE = {"viral", "bacterial", "fungal", "lipoid", "aspiration"}
_OTHER = {"ards", "tuberculosis", "pneumothorax", "effusion", "edema", "atelectasis", "sarcoidosis"}

_FRONTAL = re.compile(r"^(PA|AP)([ _-]?(erect|supine|sitting|portable|semi.?erect))?$", re.I)
_NOT_FRONTAL = dict.fromkeys(("L", "LL", "LATERAL", "RL"), "lateral") | dict.fromkeys(
    ("AXIAL", "CORONAL", "SAGITTAL", "CT"), "CT"
)
_AGE = re.compile(r"(\d+)(?:\.\d+)?\s*([YMWD]?)(?:ears?|onths?|eeks?|ays?)?", re.I)


def label_of_finding(finding: str) -> tuple[str, str] | None:
    """(label, sublabel) of a finding as the COVID-19 sets write it; None for an unknown word.

    `Pneumonia/Bacterial/Streptococcus` is (pneumonia, bacterial/Streptococcus); `COVID-19, ARDS`
    is covid.
    """
    finding = finding.strip()
    word = label_word(finding)
    if word in UNKNOWN_WORDS:
        return "unknown", "no label"
    if word == "normal":
        return "normal", finding
    parts = [part.strip() for part in finding.split("/") if part.strip()]
    if not parts:
        return None
    head = parts[-1].split(",")[0].strip()
    if label_word(head) == "covid":
        return "covid", parts[-1]
    if parts[0].lower() == "pneumonia":
        rest = parts[1:] or ["unspecified"]
        return "pneumonia", "/".join([rest[0].lower(), *rest[1:]])
    if word in _BARE:
        return "pneumonia", word
    first = head.split(" ")[0]
    if first.lower() in _GROUPS:
        return "pneumonia", f"{_GROUPS[first.lower()]}/{first}"
    return ("other", finding) if head.lower() in _OTHER else None


def frontal_view(view: str) -> tuple[str, str]:
    """(view, "") of a frontal film, `AP Supine` as `AP_Supine`; ("", reason) of another picture.

    A view that is not stated, or a word that is not known, is ("unknown", "").
    """
    view = view.strip()
    reason = _NOT_FRONTAL.get(view.upper(), "")
    if reason:
        return "", reason
    if not _FRONTAL.match(view):
        return "unknown", ""
    head, _, tail = view.replace(" ", "_").replace("-", "_").partition("_")
    return f"{head.upper()}_{tail}" if tail else head.upper(), ""


def is_known_view(view: str) -> bool:
    """Whether `frontal_view` knows the word, an empty one included."""
    word = view.strip()
    return (
        word.lower() in UNKNOWN_WORDS or word.upper() in _NOT_FRONTAL or bool(_FRONTAL.match(word))
    )


def sex_of(word: str) -> str:
    """ "M", "F", or "" where it is not stated."""
    return {"M": "M", "F": "F"}.get(word.strip()[:1].upper(), "")


def years_of(age: str) -> str | None:
    """Age in whole years, "" where not stated, None where it cannot be an age.

    `058Y`, `007M` (months) and `012D` (days) of NIH's first table count too, and `8 months`.
    """
    age = age.strip()
    if not age:
        return ""
    match = _AGE.fullmatch(age)
    if not match:
        return None
    days = {"": 365.25, "Y": 365.25, "M": 30.44, "W": 7.0, "D": 1.0}[match[2].upper()]
    years = int(int(match[1]) * days / 365.25 + 1e-6)
    return str(years) if years <= 120 else None

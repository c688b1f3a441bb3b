"""Words that the sets share: findings, views, sexes and ages, as films.csv writes them."""

from __future__ import annotations

import re

from cxr.films_table import UNKNOWN_WORDS, label_word

NO_FINDING = "No Finding"
NIH_FINDINGS = frozenset(
    [
        *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema"),
        *("Fibrosis", "Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening"),
        *("Pneumonia", "Pneumothorax"),
    ]
)
# of CheXpert's labeler; a tube is no disease: the labeller allows it beside No Finding
FINDINGS = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"),
    *("Pleural Other", "Fracture"),
)
COLUMNS = (NO_FINDING, *FINDINGS, "Support Devices")
_VALUES = {"1": 1, "0": 0, "-1": -1, "": None}
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


def label_of_findings(text: str) -> tuple[str, list[str]]:
    """(label, words that are no findings of NIH) of `Edema|Pneumonia`."""
    words = [word.strip() for word in text.split("|") if word.strip()]
    odd = [word for word in words if word not in NIH_FINDINGS and word != NO_FINDING]
    if "Pneumonia" in words:
        return "pneumonia", odd
    if any(word in NIH_FINDINGS for word in words):
        return "other", odd
    return ("normal" if NO_FINDING in words and not odd else "unknown"), odd


def read_values(row: dict[str, str]) -> tuple[dict[str, int], list[str]]:
    """(observation → 1, 0 or -1; those not mentioned are left out, columns with another value)."""
    values: dict[str, int] = {}
    odd = []
    for column in COLUMNS:
        text = row.get(column.lower(), "")
        value = _VALUES.get(text.removesuffix(".0"), "odd")
        if isinstance(value, int):
            values[column] = value
        elif value == "odd":
            odd.append(f"{column} '{text}'")
    return values, odd


def label_of_values(values: dict[str, int], uncertain: str) -> tuple[str, str]:
    """(label, sublabel): what is present, joined by |; `Pneumonia?` where uncertain and ignored.

    Uncertain counts as present for `positive` and as absent for `negative`. For `ignore` a film
    with uncertain pneumonia, or with nothing but uncertain findings, is `unknown`.
    """
    if uncertain != "ignore":
        taken = 1 if uncertain == "positive" else 0
        values = {name: taken if value == -1 else value for name, value in values.items()}
    words = [name + ("?" if values[name] < 0 else "") for name in COLUMNS if values.get(name)]
    sublabel = "|".join(words) or "no label"
    if values.get("Pneumonia"):
        return ("pneumonia" if values["Pneumonia"] == 1 else "unknown"), sublabel
    if any(values.get(name) == 1 for name in FINDINGS):
        return "other", sublabel
    if any(values.get(name) for name in FINDINGS):
        return "unknown", sublabel
    return ("normal" if values.get(NO_FINDING) == 1 else "unknown"), sublabel


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

"""The fourteen observations of CheXpert's labeller, which MIMIC-CXR-JPG has too, as one label."""

from __future__ import annotations

from typing import get_args

from cxr.public_sets.records import Uncertain

NO_FINDING = "No Finding"
FINDINGS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
)
SUPPORT = "Support Devices"  # a tube is no disease: the labeller allows it beside No Finding
COLUMNS = (NO_FINDING, *FINDINGS, SUPPORT)
_VALUES = {"1": 1, "0": 0, "-1": -1, "": None}


def check_uncertain(policy: str) -> None:
    """Raise ValueError for a policy that there is not."""
    if policy not in get_args(Uncertain):
        raise ValueError(
            f"uncertain must be one of {', '.join(get_args(Uncertain))}. Got '{policy}'."
        )


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


def label_of_values(values: dict[str, int], uncertain: Uncertain) -> tuple[str, str]:
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

"""The codes of result objects: DICOM's and SNOMED's where they say what is meant, else our own.

No standard code says "cleared", "to be read" or a score that is not a probability; Normal or
Abnormal would be a diagnosis. Those are of the private scheme 99LUNGFIRST.
"""

from __future__ import annotations

import re

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from cxr.notes import REASONS, code_of

SCHEME = "99LUNGFIRST"
SCHEME_UID = "2.25.304989524667463565548432651420469579821"  # drawn once, by chance


def own(value: str, meaning: str) -> Code:
    """A code of the private scheme; a code's value has at most 16 characters, its meaning 64."""
    return Code(value, SCHEME, meaning)


def _dcm(value: str, meaning: str) -> Code:
    return Code(value, "DCM", meaning)


REPORT = _dcm("126000", "Imaging Measurement Report")
PROCEDURE = Code("399208008", "SCT", "Plain chest X-ray")
CHEST = Code("816094009", "SCT", "Chest")
LUNG = Code("39607008", "SCT", "Lung")
STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
BOUNDED_BY = Code("75958009", "SCT", "Bounded by")
ENGLISH = Code("en-US", "RFC5646", "English (United States)")
AI = _dcm("123110", "Artificial Intelligence")
PROCESSING = _dcm("109102", "Processing Equipment")
COMMENT = _dcm("121106", "Comment")
SALIENCY = _dcm("130404", "Saliency")

OUTCOME = _dcm("111017", "CAD Processing and Findings Summary")
BOXED = _dcm("111242", "All algorithms succeeded; with findings")
UNBOXED = _dcm("111241", "All algorithms succeeded; without findings")
FAILED = _dcm("111245", "No algorithms succeeded; without findings")

CERTAINTY = _dcm("111012", "Certainty of Finding")
SENSITIVITY = _dcm("111088", "Case Sensitivity")
MINIMUM = Code("255605001", "SCT", "Minimum")
SCORE = own("score", "Abnormal score, not a probability of disease")
THRESHOLD = own("threshold", "Films whose score is below this may be cleared")
DISTANCE = own("distance", "Distance from calibration films, 1 is allowed")
LIFT = own("lift", "Attention in the lungs over their share of area")
PERCENT = Code("%", "UCUM", "Percent")
NO_UNIT = Code("1", "UCUM", "no units")

DECISION = own("decision", "Decision of the screener")
DECISIONS = {
    "definitely_normal": own("cleared", "Cleared: scored below the threshold"),
    "read": own("read", "To be read"),
    "not_read_by_model": own("not-judged", "Not judged"),
}
PROOF = own("proof", "Proof of the sensitivity")
NOT_PROVEN = own("not-proven", "Not proven")
PRIORITY = Code("260870009", "SCT", "Priority")
GUARD = own("guard", "Likeness to the calibration films")
GUARDED = {
    None: own("unguarded", "Not compared: the ensemble has no guard"),
    True: own("like", "Like the calibration films"),
    False: own("unlike", "Unlike the calibration films: never cleared"),
}
REASON = own("reason", "Reason why the film was not judged")
# of a film that is read: what the finder says of it; others are `cxr.notes.REASONS`
NO_CHEST = own("no-chest", "No frontal chest, or no thorax was found")
CRASHED = own("crashed", "The process that read it ended")


def priority(tier: str) -> Code:
    """A risk tier of the run's tiers.yaml."""
    return own(_value(tier), tier.replace("_", " ")[:64])


def method(name: str) -> Code:
    """A way of drawing saliency maps."""
    return own(_value(name), f"Saliency by {name}"[:64])


def lower_bound(confidence: float) -> Code:
    """How a sensitivity was proven."""
    sure = f"{100 * confidence:g} %"
    return own(_value(f"exact-{sure}"), f"Exact one-sided lower bound, {sure} confidence")


def why_not(reason: str) -> Code:
    """The code of a refusal as it stands in a run's tables, "code: Sentence.", or of no chest."""
    found = code_of(reason)
    if found in REASONS:
        return own(_value(found), REASONS[found].removesuffix(".")[:64])
    return CRASHED if found == "worker_crashed" else NO_CHEST


def _value(text: str) -> str:
    """As much of a word as a code's value may hold."""
    return re.sub(r"[^A-Za-z0-9%.]+", "-", text).strip("-")[:16]


def scheme_item() -> Dataset:
    """What the private scheme is, for Coding Scheme Identification Sequence."""
    item = Dataset()
    item.CodingSchemeDesignator = SCHEME
    item.CodingSchemeUID = SCHEME_UID
    item.CodingSchemeName = "lungfirst: screening of chest radiographs, research only"
    item.CodingSchemeResponsibleOrganization = "lungfirst project"
    return item

"""The structured report of a film: TID 1500, the thorax box and all that was said of the film.

The codes are DICOM's and SNOMED's where they say what is meant, else our own: no standard code says
"cleared", "to be read" or a score that is not a probability; Normal or Abnormal would be a
diagnosis. Those are of the private scheme 99LUNGFIRST.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from highdicom import sr
from highdicom.sr import value_types as items
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from cxr.draw import to_ascii
from cxr.notes import REASONS, code_of, sentence_of
from hospital import MANUFACTURER, MODEL
from hospital.judgement import Algorithm, Judged

SCHEME = "99LUNGFIRST"
SCHEME_UID = "2.25.304989524667463565548432651420469579821"  # drawn once, by chance


def own(value: str, meaning: str) -> Code:
    """A code of the private scheme: as much of the words as a code's value (16 characters) and its
    meaning (64) may hold."""
    plain = re.sub(r"[^A-Za-z0-9%.]+", "-", value).strip("-")
    return Code(plain[:16], SCHEME, meaning[:64])


REPORT = Code("126000", "DCM", "Imaging Measurement Report")
PROCEDURE = Code("399208008", "SCT", "Plain chest X-ray")
CHEST = Code("816094009", "SCT", "Chest")
LUNG = Code("39607008", "SCT", "Lung")
STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
BOUNDED_BY = Code("75958009", "SCT", "Bounded by")
ENGLISH = Code("en-US", "RFC5646", "English (United States)")
AI = Code("123110", "DCM", "Artificial Intelligence")
PROCESSING = Code("109102", "DCM", "Processing Equipment")
COMMENT = Code("121106", "DCM", "Comment")

OUTCOME = Code("111017", "DCM", "CAD Processing and Findings Summary")
BOXED = Code("111242", "DCM", "All algorithms succeeded; with findings")
UNBOXED = Code("111241", "DCM", "All algorithms succeeded; without findings")
FAILED = Code("111245", "DCM", "No algorithms succeeded; without findings")

CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
SENSITIVITY = Code("111088", "DCM", "Case Sensitivity")
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


def why_not(reason: str) -> Code:
    """The code of a refusal as it stands in a run's tables, "code: Sentence.", or of no chest."""
    found = code_of(reason)
    if found in REASONS:
        return own(found, REASONS[found].removesuffix("."))
    return CRASHED if found == "worker_crashed" else NO_CHEST


def scheme_item() -> Dataset:
    """What the private scheme is, for Coding Scheme Identification Sequence."""
    item = Dataset()
    item.CodingSchemeDesignator = SCHEME
    item.CodingSchemeUID = SCHEME_UID
    item.CodingSchemeName = "lungfirst: screening of chest radiographs, research only"
    item.CodingSchemeResponsibleOrganization = "lungfirst project"
    return item


FORMS = {"comprehensive": sr.ComprehensiveSR, "comprehensive3d": sr.Comprehensive3DSR}


def content_of(header: Dataset, judged: Judged) -> sr.MeasurementReport:
    """The report's content tree for one film."""
    groups: list[Any] = [_film_group(header, judged)]
    if judged.thorax_xyxy is not None:
        groups.insert(0, _thorax_group(header, judged, judged.thorax_xyxy))
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=(judged.judge or judged.ran.boxer).uid,
        name="lungfirst: research only",
        manufacturer_name=MANUFACTURER,
        model_name=MODEL,
        serial_number=judged.ran.weights[:16],
    )
    kind = items.CodedConcept("121007", "DCM", "Device")
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(kind, device)
        ),
        procedure_reported=PROCEDURE,
        imaging_measurements=groups,
        title=REPORT,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            sr.CodedConcept.from_code(ENGLISH)
        ),
    )


def corners_of(box_xyxy: Sequence[float]) -> np.ndarray:
    """(5, 2) x, y round a box and back to its top left corner: as viewers take it for a box."""
    x0, y0, x1, y1 = box_xyxy
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]], dtype=np.float64)


def _tracking(header: Dataset, judged: Judged, name: str) -> sr.TrackingIdentifier:
    return sr.TrackingIdentifier(uid=judged.uid(header, name), identifier=name)


def _identified(algorithm: Algorithm) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        name=algorithm.name,
        version=algorithm.version,
        parameters=algorithm.parameters or None,
        family=AI,
        manufacturer=MANUFACTURER,
    )


def _thorax_group(
    header: Dataset, judged: Judged, box: Sequence[float]
) -> sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    """The box alone: viewers do not draw a region beside which numbers stand."""
    source = sr.SourceImageForRegion(header.SOPClassUID, header.SOPInstanceUID)
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(header, judged, "thorax-1"),
        referenced_region=sr.ImageRegion("POLYLINE", corners_of(box), source),
        finding_type=CHEST,
        finding_category=STRUCTURE,
        algorithm_id=_identified(judged.ran.boxer),
        geometric_purpose=BOUNDED_BY,
    )


def _film_group(header: Dataset, judged: Judged) -> sr.MeasurementsAndQualitativeEvaluations:
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(header, judged, "film-1"),
        finding_type=CHEST if judged.seen else None,
        finding_category=STRUCTURE if judged.seen else None,
        algorithm_id=_identified(judged.judge or judged.ran.boxer),
        measurements=list(_measurements(judged)) or None,
        qualitative_evaluations=list(_evaluations(judged)),
        source_images=[
            sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)
        ],
    )
    for text in _comments(judged):
        group[0].ContentSequence.append(
            items.TextContentItem(COMMENT, to_ascii(text), relationship_type="CONTAINS")
        )
    return group


def _measurements(judged: Judged) -> Iterator[sr.Measurement]:
    """Every number that was said of the film."""
    if judged.seen and judged.boxed.score is not None:
        certainty = 100 * judged.boxed.score
        yield sr.Measurement(CERTAINTY, certainty, PERCENT)
    if judged.row.abnormal_score is not None and judged.point is not None:
        yield sr.Measurement(SCORE, judged.row.abnormal_score, NO_UNIT)
        yield sr.Measurement(THRESHOLD, judged.point.threshold, NO_UNIT)
        if judged.point.proven:
            sure = f"{100 * judged.point.confidence:g} %"
            yield sr.Measurement(
                SENSITIVITY,
                100 * judged.point.proven_sensitivity,
                PERCENT,
                derivation=MINIMUM,
                method=own(f"exact-{sure}", f"Exact one-sided lower bound, {sure} confidence"),
            )
    if judged.far is not None:
        yield sr.Measurement(DISTANCE, judged.far, NO_UNIT)
    for audit in judged.audits:
        lift, ensemble = audit.value("lift"), judged.judge or judged.ran.boxer
        assert lift is not None
        yield sr.Measurement(  # how much of a member's attention lies in the lungs; 1 is chance
            LIFT,
            lift,
            NO_UNIT,
            method=own(audit.method, f"Saliency by {audit.method}"),
            algorithm_id=sr.AlgorithmIdentification(
                name=f"{ensemble.name}, member {audit.member}",
                version=ensemble.version,
                family=AI,
            ),
        )


def _evaluations(judged: Judged) -> Iterator[sr.QualitativeEvaluation]:
    """Every word that was said of the film."""
    say = sr.QualitativeEvaluation
    if not judged.seen:
        yield say(OUTCOME, FAILED)
        yield say(DECISION, DECISIONS["not_read_by_model"])
        yield say(REASON, why_not(judged.row.reason))
        return
    yield say(OUTCOME, UNBOXED if judged.thorax_xyxy is None else BOXED)
    yield say(DECISION, DECISIONS[judged.row.decision])
    if judged.point is None or not judged.point.proven:
        yield say(PROOF, NOT_PROVEN)
    if judged.row.tier:
        yield say(PRIORITY, own(judged.row.tier, judged.row.tier.replace("_", " ")))
    far = judged.far
    yield say(GUARD, GUARDED[None if far is None else far <= 1])


def _comments(judged: Judged) -> list[str]:
    """Sentences of the run's tables; none holds a word of a header or a file's name."""
    if judged.seen:
        return [*filter(None, [judged.row.doubt]), *map(sentence_of, judged.boxed.notes)]
    why = judged.row.reason
    return [why if why_not(why) == NO_CHEST else sentence_of(why)]

"""The structured report of a film: TID 1500, the thorax box and all that was said of the film."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from highdicom import sr
from highdicom.sr import value_types as items
from pydicom.dataset import Dataset

from classify.audit.rows import AuditRow
from cxr.draw import to_ascii
from cxr.notes import sentence_of
from hospital import codes
from hospital.header import MANUFACTURER, MODEL
from hospital.judgement import Algorithm, Judged, uid_of

FORMS = {"comprehensive": sr.ComprehensiveSR, "comprehensive3d": sr.Comprehensive3DSR}


def content_of(header: Dataset, judged: Judged) -> sr.MeasurementReport:
    """The report's content tree for one film."""
    box = judged.thorax_xyxy
    groups: list[Any] = (
        [_film_group(header, judged)]
        if box is None
        else [
            _thorax_group(header, judged, box),
            _film_group(header, judged),
        ]
    )
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=(judged.judge or judged.boxer).uid,
        name="lungfirst: research only",
        manufacturer_name=MANUFACTURER,
        model_name=MODEL,
        serial_number=judged.weights[:16],
    )
    kind = items.CodedConcept("121007", "DCM", "Device")
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(kind, device)
        ),
        procedure_reported=codes.PROCEDURE,
        imaging_measurements=groups,
        title=codes.REPORT,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            sr.CodedConcept.from_code(codes.ENGLISH)
        ),
    )


def corners_of(box_xyxy: Sequence[float]) -> np.ndarray:
    """(5, 2) x, y round a box and back to its top left corner: as viewers take it for a box."""
    x0, y0, x1, y1 = box_xyxy
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]], dtype=np.float64)


def _tracking(header: Dataset, judged: Judged, name: str) -> sr.TrackingIdentifier:
    uid = uid_of(header.SOPInstanceUID, judged.weights, judged.threshold, name)
    return sr.TrackingIdentifier(uid=uid, identifier=name)


def _identified(algorithm: Algorithm) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        name=algorithm.name,
        version=algorithm.version,
        parameters=algorithm.parameters or None,
        family=codes.AI,
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
        finding_type=codes.CHEST,
        finding_category=codes.STRUCTURE,
        algorithm_id=_identified(judged.boxer),
        geometric_purpose=codes.BOUNDED_BY,
    )


def _film_group(header: Dataset, judged: Judged) -> sr.MeasurementsAndQualitativeEvaluations:
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(header, judged, "film-1"),
        finding_type=codes.CHEST if judged.seen else None,
        finding_category=codes.STRUCTURE if judged.seen else None,
        algorithm_id=_identified(judged.judge or judged.boxer),
        measurements=list(_measurements(judged)) or None,
        qualitative_evaluations=list(_evaluations(judged)),
        source_images=[
            sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)
        ],
    )
    for text in _comments(judged):
        group[0].ContentSequence.append(
            items.TextContentItem(
                items.CodedConcept(*_three(codes.COMMENT)),
                to_ascii(text),
                relationship_type="CONTAINS",
            )
        )
    return group


def _three(code: codes.Code) -> tuple[str, str, str]:
    return code.value, code.scheme_designator, code.meaning


def _measurements(judged: Judged) -> Iterator[sr.Measurement]:
    """Every number that was said of the film."""
    if judged.seen and judged.boxed.score is not None:
        certainty = 100 * judged.boxed.score
        yield sr.Measurement(codes.CERTAINTY, certainty, codes.PERCENT)
    if judged.row.abnormal_score is not None and judged.point is not None:
        yield sr.Measurement(codes.SCORE, judged.row.abnormal_score, codes.NO_UNIT)
        yield sr.Measurement(codes.THRESHOLD, judged.point.threshold, codes.NO_UNIT)
        if judged.point.proven:
            yield sr.Measurement(
                codes.SENSITIVITY,
                100 * judged.point.proven_sensitivity,
                codes.PERCENT,
                derivation=codes.MINIMUM,
                method=codes.lower_bound(judged.point.confidence),
            )
    if judged.far is not None:
        yield sr.Measurement(codes.DISTANCE, judged.far, codes.NO_UNIT)
    for audit in judged.audits:
        yield _lift(judged, audit)


def _lift(judged: Judged, audit: AuditRow) -> sr.Measurement:
    """How much of a member's attention lies in the lungs; 1 is chance."""
    ensemble = judged.judge or judged.boxer
    lift = audit.value("lift")
    assert lift is not None
    return sr.Measurement(
        codes.LIFT,
        lift,
        codes.NO_UNIT,
        method=codes.method(audit.method),
        algorithm_id=sr.AlgorithmIdentification(
            name=f"{ensemble.name}, member {audit.member}",
            version=ensemble.version,
            family=codes.AI,
        ),
    )


def _evaluations(judged: Judged) -> Iterator[sr.QualitativeEvaluation]:
    """Every word that was said of the film."""

    def say(name: codes.Code, value: codes.Code) -> sr.QualitativeEvaluation:
        return sr.QualitativeEvaluation(name, value)

    if not judged.seen:
        yield say(codes.OUTCOME, codes.FAILED)
        yield say(codes.DECISION, codes.DECISIONS["not_read_by_model"])
        yield say(codes.REASON, codes.why_not(judged.row.reason))
        return
    yield say(codes.OUTCOME, codes.UNBOXED if judged.thorax_xyxy is None else codes.BOXED)
    yield say(codes.DECISION, codes.DECISIONS[judged.row.decision])
    if judged.point is None or not judged.point.proven:
        yield say(codes.PROOF, codes.NOT_PROVEN)
    if judged.row.tier:
        yield say(codes.PRIORITY, codes.priority(judged.row.tier))
    far = judged.far
    yield say(codes.GUARD, codes.GUARDED[None if far is None else far <= 1])


def _comments(judged: Judged) -> list[str]:
    """Sentences of the run's tables; none holds a word of a header or a file's name."""
    if judged.seen:
        return [*filter(None, [judged.row.doubt]), *map(sentence_of, judged.boxed.notes)]
    why = judged.row.reason
    return [why if codes.why_not(why) == codes.NO_CHEST else sentence_of(why)]

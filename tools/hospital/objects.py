"""A film's result objects: structured report, presentation state, lung field, saliency, picture.

They belong to the film's study, are marked as unverified research, and are the same bytes whenever
they are made again of the same judgement.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection
from copy import deepcopy
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

import cv2
import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from cxr.boxes import Frame
from cxr.draw import draw_box, draw_text, overlay_saliency, to_rgb
from cxr.film import Film, read_film
from cxr.notes import FilmError
from cxr.rules import RefusedError
from detect.lungfield.field import LungField
from hospital import KINDS, MANUFACTURER, MODEL
from hospital.judgement import Algorithm, Judged, local_time
from hospital.sr import AI, FORMS, LUNG, PROCESSING, STRUCTURE, content_of, corners_of, scheme_item

logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)  # it tells values of the header
DESCRIPTION = "lungfirst: research only"
_SERIES = 9100  # numbers from here on, one a kind: a study's own are low
_REFERRED = ("seg", "saliency")  # by the report
_CLOCKS = (  # what the library fills with the time of day
    "InstanceCreation{}",
    "Content{}",
    "Series{}",
    "PresentationCreation{}",
    "{}OfSecondaryCapture",
)
_LABEL = "LUNGFIRST"
_ORANGE = hd.color.CIELabColor(70.0, 35.0, 70.0)
_BLUE = hd.color.CIELabColor(60.0, -10.0, -40.0)


def make_objects(
    header: Dataset,
    judged: Judged,
    kinds: Collection[str],
    form: str,
    when: datetime,
    planes: Planes,
) -> tuple[list[Dataset], list[str]]:
    """The objects of the `kinds` that there can be for the film, the report last, as it refers to
    the others; and the kinds that its header does not allow. Raises FilmError or RefusedError."""
    made: dict[str, Dataset] = {}
    lost = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in KINDS[::-1]:
            if kind not in kinds or (kind != "sr" and not judged.seen):
                continue
            maker = _Maker(header, judged, _in_full(kind, form, made, judged), kind, when)
            beside = [other for name, other in made.items() if name in _REFERRED]
            try:
                if (found := maker.make(form, beside, planes)) is not None:
                    made[kind] = found
            except (FilmError, RefusedError):
                raise
            except Exception:  # the library raises all kinds on an odd header, with its values
                lost.append(kind)
    return list(made.values()), lost


def _in_full(kind: str, form: str, made: Collection[str], judged: Judged) -> str:
    """What an object is, for its UID: a report that says more is another one."""
    if kind != "sr":
        return kind
    more = [k for k in KINDS if k in made and k in _REFERRED]
    parts = ["sr3d" if form == "comprehensive3d" else "sr", *more, *["audit"] * bool(judged.audits)]
    return "+".join(parts)


class _Maker:
    """Makes one object of a film."""

    def __init__(
        self, header: Dataset, judged: Judged, full: str, kind: str, when: datetime
    ) -> None:
        self.header, self.judged, self.kind = deepcopy(header), judged, kind
        self.characters = header.SpecificCharacterSet
        self.header.SpecificCharacterSet = "ISO_IR 192"  # the library knows not all of them
        self.when = local_time(header, when)

        self._uid_for = lambda what: judged.uid(header, f"{full}.{what}")
        algorithms = [a for a in (judged.ran.boxer, judged.judge) if a is not None]
        self.usual: dict[str, Any] = {
            "series_instance_uid": self._uid_for("series"),
            "series_number": _SERIES + KINDS.index(kind),
            "sop_instance_uid": judged.uid(header, full),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "contributing_equipment": [self._equipment(a) for a in algorithms],
        }
        self.labelled = self.usual | {
            "content_label": _LABEL,
            "content_description": DESCRIPTION,
            "manufacturer_model_name": MODEL,
            "software_versions": judged.ran.software,
            "device_serial_number": judged.ran.weights[:16],
        }

    def _equipment(self, algorithm: Algorithm) -> hd.ContributingEquipment:
        """IHE's AI Results profile wants one for each algorithm."""
        item = hd.ContributingEquipment(
            manufacturer=MANUFACTURER,
            purpose_of_reference=PROCESSING,
            manufacturer_model_name=algorithm.name,
            software_versions=algorithm.digest,
        )
        item.DeviceUID = algorithm.uid
        return item

    def make(self, form: str, beside: Collection[Dataset], planes: Planes) -> Dataset | None:
        """The object; None where the film has nothing for it."""
        makers: dict[str, Callable[[], Dataset | None]] = {
            "sr": lambda: self._report(form, beside),
            "gsps": self._presentation,
            "seg": lambda: self._field(planes),
            "saliency": lambda: self._saliency(planes),
            "sc": lambda: self._picture(planes),
        }
        found = makers[self.kind]()
        return None if found is None else self._finished(found)

    def _report(self, form: str, beside: Collection[Dataset]) -> Dataset:
        """The root of the results: it refers to the lung field and the map where they are made."""
        content = content_of(self.header, self.judged)[0]
        tree = content.ContentSequence
        # highdicom copies and searches the whole tree five times over: it gets the root alone
        content.ContentSequence = tree[:1]
        found = FORMS[form](
            evidence=[self.header, *beside],
            content=content,
            is_complete=True,
            is_final=False,
            is_verified=False,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            **self.usual,
        )
        found.ContentSequence = tree
        found.ObservationDateTime = f"{self.when:%Y%m%d%H%M%S}"
        found.CodingSchemeIdentificationSequence = [scheme_item()]
        return found

    def _presentation(self) -> Dataset:
        """The film as it is windowed, with the box and a line of text."""
        layer = hd.pr.GraphicLayer(_LABEL, 1, DESCRIPTION, _ORANGE)
        box, lines = self.judged.thorax_xyxy, []
        if box is not None:
            lines = [hd.pr.GraphicObject("POLYLINE", corners_of(box), "PIXEL")]
        height, width = int(self.header.Rows), int(self.header.Columns)
        text = hd.pr.TextObject(
            self.judged.line,
            "PIXEL",
            bounding_box=(1.0, 1.0, float(width), max(2.0, round(height / 20))),
            text_justification="LEFT",
        )
        note = hd.pr.GraphicAnnotation(
            [self.header], layer, graphic_objects=lines or None, text_objects=[text]
        )
        dark = self.header.PhotometricInterpretation == "MONOCHROME1"
        shape = hd.PresentationLUTTransformation("INVERSE" if dark else "IDENTITY")
        return hd.pr.GrayscaleSoftcopyPresentationState(
            [self.header],
            graphic_annotations=[note],
            graphic_layers=[layer],
            presentation_lut_transformation=shape,
            **self.labelled,
        )

    def _field(self, planes: Planes) -> Dataset:
        """Both lungs as one segment."""
        boxer = self.judged.ran.boxer
        segment = hd.seg.SegmentDescription(
            1,
            "Lung field",
            STRUCTURE,
            LUNG,
            "AUTOMATIC",
            hd.AlgorithmIdentificationSequence(boxer.name, AI, boxer.digest),
            tracking_uid=self._uid_for("tracking"),
            tracking_id="lung-field-1",
            display_color=_BLUE,
        )
        return hd.seg.Segmentation(
            [self.header],
            planes.field(),
            "BINARY",
            [segment],
            omit_empty_frames=False,
            **self.labelled,
        )

    def _saliency(self, planes: Planes) -> Dataset | None:
        """Where the strongest member looked, laid over the film. A Parametric Map would need a
        frame of reference, which a projection has not."""
        plane = planes.saliency()
        if plane is None:
            return None
        told = f"{MODEL}: saliency of {self.judged.saliency_of}. Research only."
        return self._capture(overlay_saliency(to_rgb(planes.film()), plane), told)

    def _picture(self, planes: Planes) -> Dataset:
        """For viewers that show nothing else: the film with the box burnt in."""
        rgb = to_rgb(planes.film())
        if self.judged.thorax_xyxy is not None:
            rgb = draw_box(rgb, self.judged.thorax_xyxy)
        return self._capture(rgb, self.judged.line)

    def _capture(self, rgb: np.ndarray, told: str) -> Dataset:
        """A secondary capture of a picture (H, W, 3) of the film, with a line of text."""
        header, size = self.header, max(12, max(rgb.shape) // 50)
        found = hd.sc.SCImage.from_ref_dataset(
            header,
            draw_text(rgb, told, (size // 2, size // 2), size=size),
            "RGB",
            8,
            "PATIENT",
            patient_orientation=("L", "F"),  # the library wants one; the film's comes below
            transfer_syntax_uid=ExplicitVRLittleEndian,
            **self.usual,
        )
        found.PatientOrientation = header.PatientOrientation
        found.ImageType = ["DERIVED", "SECONDARY"]
        found.BurnedInAnnotation = "NO"  # it is of identity that this speaks
        return found

    def _finished(self, found: Dataset) -> Dataset:
        """With what the library leaves to chance or to the clock, and the film's names."""
        header = self.header
        if self.characters:
            found.SpecificCharacterSet = self.characters
        elif "SpecificCharacterSet" in found:
            del found.SpecificCharacterSet
        found.SeriesDescription = DESCRIPTION
        found.ManufacturerModelName = MODEL
        found.SoftwareVersions = self.judged.ran.software
        found.DeviceSerialNumber = self.judged.ran.weights[:16]
        for keyword in ("StudyDescription", "IssuerOfPatientID", "TimezoneOffsetFromUTC"):
            if keyword in header:
                setattr(found, keyword, header.get(keyword))
        if self.kind != "sr":
            found.BodyPartExamined = header.get("BodyPartExamined", "")
            if found.BodyPartExamined != "CHEST" and self.kind != "seg":
                found.Laterality = header.get("Laterality")  # must be told, if only as unknown
        if self.kind == "seg":
            found.PatientOrientation = header.PatientOrientation
        self._freeze(found)
        if self.kind == "sr":
            found.PreliminaryFlag = "PRELIMINARY"
        return found

    def _freeze(self, found: Dataset) -> None:
        """The judgement's time and own UIDs, where the library has the clock and chance."""
        for part, value in (("Date", f"{self.when:%Y%m%d}"), ("Time", f"{self.when:%H%M%S}")):
            for name in _CLOCKS:
                if (keyword := name.format(part)) in found:
                    setattr(found, keyword, value)
        for equipment in found.ContributingEquipmentSequence:  # the library's own is among them
            equipment.ContributionDateTime = f"{self.when:%Y%m%d%H%M%S}"
        for keyword in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
            for item in found.get(keyword, ()):
                item.DimensionOrganizationUID = self._uid_for("dimensions")


_OPAQUE = 0.7 * 255  # the most opaque that a run's saliency picture is drawn


class Planes:
    """Made when they are asked for; the film is decoded once. `field_net` gives the lung field's
    network. Raises FilmError where the film cannot be read any more."""

    def __init__(self, judged: Judged, field_net: Callable[[], LungField]) -> None:
        self.judged, self._field_net = judged, field_net

    @cached_property
    def _film(self) -> Film:
        return read_film(self.judged.path, for_processing=True)  # as the run let in

    def film(self) -> np.ndarray:
        """(H, W) float32 in [0, 1], dense bone white."""
        return self._stored(self._film.pixels, cv2.INTER_AREA)

    def field(self) -> np.ndarray:
        """(H, W) bool: both lungs, drawn on the film as it stands upright."""
        net, turns = self._field_net(), self._frame.turned // 90
        upright = np.ascontiguousarray(np.rot90(self._film.pixels, turns))
        lungs = net.segment([upright])[0] > net.threshold
        back = np.ascontiguousarray(np.rot90(lungs, -turns)).astype(np.uint8)
        return self._stored(back, cv2.INTER_NEAREST) > 0

    def saliency(self) -> np.ndarray | None:
        """(H, W) float32 in [0, 1]: the run's map of its strongest member as the report shows it,
        1 at its highest value and 0 outside the crop; None where the run drew none."""
        path = self.judged.saliency
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path and path.is_file() else None
        if picture is None or picture.ndim != 3 or picture.shape[2] != 4:
            return None
        share = np.minimum(picture[..., 3].astype(np.float32) / _OPAQUE, 1)
        height, width = self._frame.canvas_hw
        canvas = cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR)
        height, width = self._film.pixels.shape
        return self._stored(self._frame.restore(canvas, (height, width)), cv2.INTER_LINEAR)

    @cached_property
    def _frame(self) -> Frame:
        return self.judged.boxed.to_frame()

    def _stored(self, plane: np.ndarray, how: int) -> np.ndarray:
        """A plane of square pixels in those of the file."""
        if self._film.stored_hw is None:
            return plane
        height, width = self._film.stored_hw
        return cv2.resize(plane, (width, height), interpolation=how)


@lru_cache(maxsize=1)
def field_net(sha256: str) -> LungField:
    """The shipped lung field's network; RefusedError where the run had another one."""
    net = LungField.load(engine="auto")
    if sha256 not in net.weights.values():
        raise RefusedError(
            "seg must be drawn by the lung field's network of the run, whose SHA-256 is "
            f"{sha256 or 'unknown'}. The shipped one is another: leave seg out, or run anew."
        )
    return net

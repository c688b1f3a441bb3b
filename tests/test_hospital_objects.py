"""Result objects of real films: what they say is what the run said, in every header."""

from __future__ import annotations

import io
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hospital_world import (
    JAPANESE,
    KINDS,
    KOREAN,
    LATIN,
    REFUSED,
    WHEN,
    World,
    named,
    walk,
    world,  # noqa: F401 - a fixture
)

highdicom = pytest.importorskip("highdicom", reason="the extra pacs is not installed")

from cxr.boxes import iou_xyxy, mask_box_xyxy  # noqa: E402
from hospital.journal import is_own  # noqa: E402
from hospital.judgement import fit_to_copy, read_header, read_ran, uid_of  # noqa: E402
from hospital.results import results_of  # noqa: E402

Found = dict[str, dict[str, Any]]
JUDGED = ("chest", "korean", "japanese", "latin", "bare", "odd", "capture", "turned", "tall")
COPIED = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription"),
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
COPIED = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription"),
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
_KIND_OF = {9100: "sr", 9101: "gsps", 9102: "seg", 9103: "saliency", 9104: "sc"}


def objects_of(world: World, kinds: Any = KINDS, sr: str = "comprehensive") -> Found:
    made = results_of(world.run, None, kinds, sr, WHEN)
    return {Path(film).stem: {_KIND_OF[o.SeriesNumber]: o for o in all_} for film, all_ in made}


@pytest.fixture(scope="module")
def found(root: Path, world: World) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return objects_of(world)


def numbers(report: Any, meaning: str) -> list[float]:
    return [i.MeasuredValueSequence[0].FloatingPointValue for i in named(report, meaning)]


def words(report: Any, meaning: str) -> list[str]:
    return [i.ConceptCodeSequence[0].CodeValue for i in named(report, meaning)]


def as_bytes(dataset: Any) -> bytes:
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def test_every_judged_film_has_every_kind_and_a_refused_one_its_report(found: Found) -> None:
    assert {stem: tuple(sorted(kinds)) for stem, kinds in found.items()} == {
        **{stem: tuple(sorted(KINDS)) for stem in JUDGED},
        **{stem: ("sr",) for stem in REFUSED},
        "text": (),
    }


@pytest.mark.parametrize("stem", JUDGED)
def test_every_number_of_a_report_is_the_tables(world: World, found: Found, stem: str) -> None:
    report, row, boxed = found[stem]["sr"], world.rows[stem], world.boxed[stem]
    threshold = float(row.threshold_id.partition("@")[2])
    assert numbers(report, "Certainty of Finding") == [pytest.approx(100 * boxed.score)]
    assert numbers(report, "Abnormal score, not a probability of disease") == [row.abnormal_score]
    told = numbers(report, "Films whose score is below this may be cleared")
    assert told == [pytest.approx(threshold, rel=1e-5)]
    assert numbers(report, "Case Sensitivity") == [98.0]  # ensemble_adults' screener.json
    assert words(report, "Decision of the screener") == ["read"] and row.decision == "read"
    assert words(report, "Priority") == [row.tier.replace("_", "-")] and row.tier
    assert not words(report, "Proof of the sensitivity")
    count = sum(i.ValueType == "NUM" for i in walk(report))
    assert count == 5 + 2 * (stem == "latin")  # no number that is not checked here


@pytest.mark.parametrize("stem", JUDGED)
def test_the_box_is_the_manifests_in_the_films_own_pixels(
    world: World, found: Found, stem: str
) -> None:
    (region,) = named(found[stem]["sr"], "Image Region")
    x0, y0, x1, y1 = world.boxed[stem].thorax_xyxy
    corners = pytest.approx([x0, y0, x1, y0, x1, y1, x0, y1, x0, y0], abs=1e-3)  # float32
    assert region.GraphicType == "POLYLINE" and list(region.GraphicData) == corners
    film = pydicom.dcmread(world.film(stem), stop_before_pixels=True)
    (source,) = region.ContentSequence[0].ReferencedSOPSequence
    assert source.ReferencedSOPInstanceUID == film.SOPInstanceUID
    (drawn,) = found[stem]["gsps"].GraphicAnnotationSequence[0].GraphicObjectSequence
    assert list(drawn.GraphicData) == corners and drawn.GraphicAnnotationUnits == "PIXEL"
    assert 0 <= x0 < x1 <= film.Columns and 0 <= y0 < y1 <= film.Rows


def test_an_audited_films_report_tells_each_members_lift(found: Found) -> None:
    meaning = "Attention in the lungs over their share of area"
    assert numbers(found["latin"]["sr"], meaning) == [1.375, 0.8125]
    members = [i.TextValue for i in named(found["latin"]["sr"], "Algorithm Name")]
    assert [m for m in members if "member" in m] == [
        "lungfirst ensemble_adults, member nodule_or_mass",
        "lungfirst ensemble_adults, member pneumonia",
    ]


@pytest.mark.parametrize(
    ("stem", "reason", "sentence"),
    [
        ("cut", "bad-pixels", "The pixel data have"),
        ("frames", "multi-frame", "The file holds 3 frames"),
        ("leg", "no-chest", "no frontal chest"),
    ],
)
def test_a_refused_films_report_says_why_and_has_no_box(
    found: Found, stem: str, reason: str, sentence: str
) -> None:
    report = found[stem]["sr"]
    assert words(report, "CAD Processing and Findings Summary") == ["111245"]
    assert words(report, "Decision of the screener") == ["not-judged"]
    assert words(report, "Reason why the film was not judged") == [reason]
    assert named(report, "Comment")[0].TextValue.startswith(sentence)
    assert not any(i.ValueType in ("SCOORD", "NUM") for i in walk(report))


def test_a_sensitivity_that_is_not_proven_is_said_so(world: World, root: Path) -> None:
    from hospital.sr import content_of

    judged = next(j for j in read_ran(world.run).judged() if j.film == world.rows["latin"].film)
    header = read_header(world.film("latin"))
    shaky = replace(judged, point=replace(judged.point, proven=False))
    report = content_of(header, shaky)[0]
    assert words(report, "Proof of the sensitivity") == ["not-proven"]
    assert not named(report, "Case Sensitivity")


def test_a_film_unlike_the_calibration_and_one_that_may_be_cleared(world: World) -> None:
    from hospital.sr import content_of

    judged = next(j for j in read_ran(world.run).judged() if j.film == world.rows["latin"].film)
    header = read_header(world.film("latin"))
    row = replace(judged.row, decision="definitely_normal", tier="", doubt="")
    for far, said in ((1.25, "unlike"), (0.75, "like"), (None, "unguarded")):
        report = content_of(header, replace(judged, far=far, row=row))[0]
        assert words(report, "Likeness to the calibration films") == [said]
        told = numbers(report, "Distance from calibration films, 1 is allowed")
        assert told == ([] if far is None else [far])
    assert words(report, "Decision of the screener") == ["cleared"]
    assert not words(report, "Priority")


def test_the_models_are_named_by_the_hashes_of_their_weights(world: World, found: Found) -> None:
    from cxr.workdir import read_json

    made = read_json(world.run / "run.json")
    versions = [i.TextValue for i in named(found["korean"]["sr"], "Algorithm Version")]
    assert all(sha in versions[0] for sha in made["settings"]["crops"]["boxes_from"].values())
    assert made["settings"]["members"]["pneumonia"] in versions[1]
    assert made["weights"]["ensemble_adults/guard.safetensors"] in versions[1]
    equipment = found["korean"]["sr"].ContributingEquipmentSequence[:2]  # then the library
    assert [e.ManufacturerModelName for e in equipment] == [
        "lungfirst thorax box",
        "lungfirst ensemble_adults",
    ]
    assert len({str(e.DeviceUID) for e in equipment}) == 2


@pytest.mark.parametrize(
    ("stem", "name"), [("korean", KOREAN), ("japanese", JAPANESE), ("latin", LATIN)]
)
def test_names_survive_in_the_films_character_set(found: Found, stem: str, name: str) -> None:
    for made in found[stem].values():
        again = pydicom.dcmread(io.BytesIO(as_bytes(made)))
        assert str(again.PatientName) == name and again.PatientID == "A-4711"


def test_results_lie_in_the_films_study_and_say_what_they_are(world: World, found: Found) -> None:
    film = pydicom.dcmread(world.film("chest"), stop_before_pixels=True)
    for kind, made in found["chest"].items():
        for keyword in COPIED:
            assert str(made[keyword].value) == str(film[keyword].value), (kind, keyword)
        assert made.SeriesInstanceUID != film.SeriesInstanceUID
        assert made.SeriesDescription == "lungfirst: research only" and is_own(made)
        # 12:34:56 in UTC is told in the film's zone, -0400
        assert (made.InstanceCreationDate, made.InstanceCreationTime) == ("20261130", "083456")
    report = found["chest"]["sr"]
    assert report.VerificationFlag == "UNVERIFIED" and report.PreliminaryFlag == "PRELIMINARY"
    assert not is_own(film)


def test_values_that_the_standard_forbids_are_left_out(found: Found) -> None:
    report = found["odd"]["sr"]
    empty = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
    assert not any(report[keyword].value for keyword in empty)
    assert "PatientAge" not in report and report.PatientID == "9RG1"


def test_old_dates_and_times_are_read_as_such() -> None:
    film = pydicom.Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(film, keyword, "1.2.3")
    film.add_new("StudyDate", "DA", "19950720")
    film["StudyDate"]._value = "1995.07.20"
    film.add_new("StudyTime", "TM", "112207")
    film["StudyTime"]._value = "11:22:07"
    out = fit_to_copy(film)
    assert out is not None and (out.StudyDate, out.StudyTime) == ("19950720", "112207")
    del film.SeriesInstanceUID
    assert fit_to_copy(film) is None


@pytest.mark.parametrize("stem", ["chest", "turned", "tall", "korean"])
def test_the_lung_field_lies_in_the_thorax_box(world: World, found: Found, stem: str) -> None:
    segmentation, film = found[stem]["seg"], pydicom.dcmread(world.film(stem))
    mask = segmentation.pixel_array > 0
    assert mask.shape == (film.Rows, film.Columns)
    assert iou_xyxy(mask_box_xyxy(mask), world.boxed[stem].thorax_xyxy)[0, 0] > 0.8


def test_the_saliency_of_a_turned_film_is_that_of_the_upright_one_turned(
    world: World, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hospital.objects import Planes

    monkeypatch.chdir(root)
    judged = {Path(j.film).stem: j for j in read_ran(world.run).judged()}
    upright, turned = (
        Planes(judged[s], lambda: pytest.fail("no lungs")).saliency() for s in ("latin", "turned")
    )
    assert upright is not None and turned is not None and upright.max() > 0.9
    alike = np.corrcoef(np.rot90(upright).ravel(), turned.ravel())[0, 1]
    assert alike > 0.9 > np.corrcoef(np.rot90(upright, 3).ravel(), turned.ravel())[0, 1]


def test_a_picture_is_shown_as_its_film_is(found: Found) -> None:
    """MONOCHROME1 is ignored by a presentation state, which must invert by itself."""
    state = found["chest"]["gsps"]
    assert state.PresentationLUTShape == "INVERSE"
    window = state.SoftcopyVOILUTSequence[0]
    assert (window.WindowCenter, window.WindowWidth) == (15000, 30000)


def test_a_repeat_is_the_same_object(
    world: World, found: Found, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    for stem, again in objects_of(world).items():
        for kind, made in again.items():
            assert as_bytes(made) == as_bytes(found[stem][kind]), (stem, kind)


def test_a_report_that_says_more_is_another_one(
    world: World, found: Found, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    ran = read_ran(world.run)
    plain = objects_of(world, ("sr", "gsps"))
    film = pydicom.dcmread(world.film("korean"), stop_before_pixels=True)
    uids = [
        uid_of(film.SOPInstanceUID, ran.weights, ran.threshold, kind)
        for kind in ("sr", "sr+seg+saliency", "sr3d", "gsps")
    ]
    assert len(set(uids)) == 4 and all(u.startswith("2.25.") and len(u) <= 64 for u in uids)
    assert plain["korean"]["sr"].SOPInstanceUID == uids[0]
    assert found["korean"]["sr"].SOPInstanceUID == uids[1]
    assert plain["korean"]["gsps"].SOPInstanceUID == uids[3]
    assert plain["korean"]["gsps"].SOPInstanceUID == found["korean"]["gsps"].SOPInstanceUID
    deep = objects_of(world, ("sr",), sr="comprehensive3d")["korean"]["sr"]
    assert deep.SOPInstanceUID == uids[2]
    assert deep.SOPClassUID == pydicom.uid.Comprehensive3DSRStorage
    other = uid_of(film.SOPInstanceUID, "other weights", ran.threshold, "sr")
    assert other not in uids


def test_the_report_refers_to_the_other_results(world: World, found: Found) -> None:
    report = found["korean"]["sr"]
    kept = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    uids = {s.ReferencedSOPInstanceUID for series in kept for s in series.ReferencedSOPSequence}
    film = pydicom.dcmread(world.film("korean"), stop_before_pixels=True)
    others = {found["korean"][kind].SOPInstanceUID for kind in ("seg", "saliency")}
    assert uids == {film.SOPInstanceUID, *others}


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error(found: Found, tmp_path: Path) -> None:
    wrong = []
    for stem, kinds in found.items():
        for kind, made in kinds.items():
            path = tmp_path / f"{stem}_{kind}.dcm"
            path.write_bytes(as_bytes(made))
            told = subprocess.run(["dciodvfy", path], capture_output=True, text=True, timeout=60)
            lines = (told.stdout + told.stderr).splitlines()
            wrong += [f"{path.name}: {line}" for line in lines if line.startswith("Error")]
    assert not wrong, "\n".join(wrong)
    assert len(list(tmp_path.iterdir())) == len(JUDGED) * 5 + 3


@pytest.mark.skipif(not shutil.which("dsrdump"), reason="DCMTK is not installed")
def test_dsrdump_reads_every_report(
    world: World, found: Found, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    deep = objects_of(world, ("sr",), sr="comprehensive3d")
    for stem, kinds in found.items():
        for made in [kinds["sr"], deep[stem]["sr"]] if kinds else ():
            path = tmp_path / f"{stem}.dcm"
            path.write_bytes(as_bytes(made))
            told = subprocess.run(["dsrdump", path], capture_output=True, timeout=60)
            assert told.returncode == 0, told.stderr
            assert b"lungfirst: research only" in told.stdout

"""pacs.py results: a finished run's films as DICOM objects in a folder; nothing is sent.

DICOM is imported where it is needed: --help must not pay for it. Data sets are pydicom's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cxr.rules import RefusedError, refusing, require_one_of
from cxr.workdir import claim, console, log, replacing
from hospital import FORMS, KINDS


@dataclass(frozen=True)
class ObjectSettings:
    """How result objects are made.

    Attributes:
        sr: comprehensive, which every archive takes, or comprehensive3d, the word of IHE's AI
            Results profile; both hold the same.
    """

    sr: str = "comprehensive"

    def __post_init__(self) -> None:
        require_one_of(self, sr=FORMS)


@dataclass(frozen=True)
class ResultsConfig:
    """Write DICOM objects for each film of a finished run, into a folder that only you can read:
    they hold the patient's name, as a PACS needs it. Nothing is sent.

    Args:
        runs: folder of python -m classify.run FILMS --crops; its films must be DICOM files and lie
            where they lay, unchanged.
        out: folder for the objects, one file a film and kind. What is there already stays as it is.
        kinds: of objects, with commas between: sr (structured report), gsps (box drawn by a
            presentation state), seg (lung field), saliency (where the
            strongest member looked, laid over the film), sc (picture
            with the box burnt in; never send it to a router that sends films here).
        sr: comprehensive, or comprehensive3d for viewers that want IHE's AI Results profile.
    """

    runs: tuple[str, ...] = ()
    out: Path = Path("results")
    kinds: str = "sr,gsps"
    sr: str = "comprehensive"

    def __post_init__(self) -> None:
        if len(self.runs) != 1:
            raise ValueError(f"RUN must be one folder of classify.run. Got {len(self.runs)}.")
        asked = self.asked
        if not asked or (wrong := [k for k in asked if k not in KINDS]):
            raise ValueError(
                f"--kinds must be some of {', '.join(KINDS)}. Got "
                f"{', '.join(wrong) if asked else 'none'}."
            )
        require_one_of(self, sr=FORMS)

    @property
    def asked(self) -> list[str]:
        """The kinds that are wanted."""
        return [word.strip() for word in self.kinds.split(",") if word.strip()]


def results_of(
    run: Path,
    source: Mapping[str, Path] | None,
    kinds: Collection[str],
    settings: ObjectSettings,
    when: datetime,
) -> Iterator[tuple[str, list[Any]]]:
    """The objects of each film of a run, in the order of its predictions.csv.

    Args:
        run: folder of `classify.run FILMS --crops`.
        source: where a film's file is, by its name in the run; None or a missing one: where the run
            read it.
        kinds: of KINDS.
        settings: how they are made.
        when: the time of the judgement; the same time gives the same bytes.

    Yields a film's name and its objects (pydicom data sets, ready to be written or sent): none for
    a file that no object can point at (no DICOM, gone, changed, without UIDs), which the log says
    without a word of its header.
    """
    from hospital.judgement import read_ran

    for judged in read_ran(run).judged(source):
        found, why = _objects_of(judged, kinds, settings, when)
        if why:
            what = "not all results" if found else "no results"
            log.warning("%s: %s, as %s", judged.film, what, why)
        yield judged.film, found


def _objects_of(
    judged: Any, kinds: Collection[str], settings: ObjectSettings, when: datetime
) -> tuple[list[Any], str]:
    """A film's objects, or why there are none."""
    from cxr.notes import FilmError
    from hospital.objects import make_objects
    from hospital.planes import Planes, field_net

    header, why = _header_of(judged)
    if header is None:
        return [], why
    planes = Planes(judged, lambda: field_net(judged.field))
    try:
        made, lost = make_objects(header, judged, kinds, settings.sr, when, planes)
    except FilmError as error:
        return [], error.sentence
    if lost:
        return made, f"{ODD} ({', '.join(lost)})"
    return made, "" if made else UNJUDGED


def _header_of(judged: Any) -> tuple[Any, str]:
    """The header of a film's file that is still the one that was judged, or why there is none."""
    from cxr.stream import hash_film
    from hospital.header import read_header

    if not judged.path.is_file():
        return None, GONE
    if hash_film(judged.path) != judged.boxed.sha256:
        return None, CHANGED
    header = read_header(judged.path)
    return header, NO_DICOM if header is None else ""


GONE = "its file is no longer where it was"
CHANGED = "its file has changed since the run was made"
NO_DICOM = "its file is no DICOM file with the UIDs that a result must point at"
ODD = "its header contradicts what a result must say"
UNJUDGED = "it was not judged, and only a report (sr) says why"


def run(config: ResultsConfig) -> int:
    """The command: 0 when every film that can have results has them."""
    folder, settings = Path(config.runs[0]), ObjectSettings(config.sr)
    counts: Counter[str] = Counter()
    with refusing():
        when = _time_of(folder)
        _check_films(folder)
        held = claim(config.out)
        config.out.chmod(0o700)
        for _, objects in results_of(folder, None, config.asked, settings, when):
            counts["films"] += bool(objects)
            counts["films without"] += not objects
            for found in objects:
                counts["kept" if not _write(config.out, found) else "new"] += 1
    del held
    told = f"{counts['films']} films, {counts['new']} new objects, {counts['kept']} there already"
    if counts["films without"]:
        told += f"; {counts['films without']} films without, see above"
    console.print(f"{told}: {config.out}", highlight=False, markup=False)
    return 0


def _write(folder: Path, found: Any) -> bool:
    """Write an object under a name that tells nobody; False where it is there already."""
    import hashlib

    key = hashlib.sha256(found.SOPInstanceUID.encode()).hexdigest()[:16]
    path = folder / f"{found.Modality.lower()}_{key}.dcm"
    if path.exists():
        return False
    with replacing(path) as file:
        found.save_as(file, enforce_file_format=True)
    path.chmod(0o600)
    return True


def _time_of(folder: Path) -> datetime:
    """When a run was made: a repeat must not be another object."""
    from cxr.workdir import read_json

    try:
        return datetime.fromisoformat(read_json(folder / "run.json")["made"])
    except (OSError, KeyError, ValueError):  # said better by who reads the whole run
        return datetime.now(UTC)


def _check_films(folder: Path) -> None:
    """RefusedError where no film of the run can have a result."""
    from hospital.judgement import read_ran

    ran = read_ran(folder)
    whys: Counter[str] = Counter()
    for judged in ran.judged():
        header, why = _header_of(judged)
        if header is not None:
            return
        whys[why] += 1
    told = "; ".join(f"{n} x {why}" for why, n in whys.items()) or "it has no films"
    raise RefusedError(f"RUN must be of DICOM films that lie where they lay. {folder}: {told}.")

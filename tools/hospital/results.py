"""pacs.py results: a finished run's films as DICOM objects in a folder; nothing is sent.

DICOM is imported where it is needed: --help must not pay for it. Data sets are pydicom's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from cxr.notes import FilmError
from cxr.rules import RefusedError, refusing, require_one_of
from cxr.workdir import claim, console, log, read_json, replacing
from hospital import FORMS, KINDS


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


GONE = "its file is no longer where it was"
CHANGED = "its file has changed since the run was made"
NO_DICOM = "its file is no DICOM file with the UIDs that a result must point at"
ODD = "its header contradicts what a result must say"
UNJUDGED = "it was not judged, and only a report (sr) says why"
Film = tuple[Any, Any, str]  # judged, its header, and why it has none


def results_of(
    run: Path,
    source: Mapping[str, Path] | None,
    kinds: Collection[str],
    form: str,
    when: datetime,
) -> Iterator[tuple[str, list[Any]]]:
    """The objects of each film of a run, in the order of its predictions.csv.

    Args:
        run: folder of `classify.run FILMS --crops`.
        source: where a film's file is, by its name in the run; None or a missing one: where the run
            read it.
        kinds: of KINDS.
        form: of the reports, of FORMS.
        when: the time of the judgement; the same time gives the same bytes.

    Yields a film's name and its objects (pydicom data sets, ready to be written or sent): none for
    a file that no object can point at (no DICOM, gone, changed, without UIDs), which the log says
    without a word of its header.
    """
    return _results(_films_of(run, source), kinds, form, when)


def _films_of(run: Path, source: Mapping[str, Path] | None = None) -> Iterator[Film]:
    """Each film with the header of its file, if that is still the one that was judged."""
    from cxr.stream import hash_film
    from hospital.judgement import read_header, read_ran

    for judged in read_ran(run).judged(source):
        if not judged.path.is_file():
            yield judged, None, GONE
        elif hash_film(judged.path) != judged.boxed.sha256:
            yield judged, None, CHANGED
        else:
            header = read_header(judged.path)
            yield judged, header, NO_DICOM if header is None else ""


def _results(
    films: Iterable[Film], kinds: Collection[str], form: str, when: datetime
) -> Iterator[tuple[str, list[Any]]]:
    for judged, header, why in films:
        found: list[Any] = []
        if header is not None:
            found, why = _objects_of(judged, header, kinds, form, when)
        if why:
            what = "not all results" if found else "no results"
            log.warning("%s: %s, as %s", judged.film, what, why)
        yield judged.film, found


def _objects_of(
    judged: Any, header: Any, kinds: Collection[str], form: str, when: datetime
) -> tuple[list[Any], str]:
    """A film's objects, and why there are none or not all."""
    from hospital.objects import Planes, field_net, make_objects

    planes = Planes(judged, lambda: field_net(judged.ran.field_sha256))
    try:
        made, lost = make_objects(header, judged, kinds, form, when, planes)
    except FilmError as error:
        return [], error.sentence
    if lost:
        return made, f"{ODD} ({', '.join(lost)})"
    return made, "" if made else UNJUDGED


def run(config: ResultsConfig) -> int:
    """The command: 0 when every film that can have results has them."""
    folder = Path(config.runs[0])
    counts: Counter[str] = Counter()
    with refusing():
        when = _time_of(folder)
        films = _usable(folder)
        held = claim(config.out)
        config.out.chmod(0o700)
        for _, objects in _results(films, config.asked, config.sr, when):
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


def _usable(folder: Path) -> Iterator[Film]:
    """A run's films; RefusedError where none of them can have a result."""
    films, unusable = _films_of(folder), list[Film]()
    for film in films:
        if film[1] is not None:
            return chain(unusable, [film], films)
        unusable.append(film)
    whys = Counter(why for _, _, why in unusable)
    told = "; ".join(f"{n} x {why}" for why, n in whys.items()) or "it has no films"
    raise RefusedError(f"RUN must be of DICOM films that lie where they lay. {folder}: {told}.")


def _write(folder: Path, found: Any) -> bool:
    """Write an object under a name that tells nobody; False where it is there already."""
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
    try:
        return datetime.fromisoformat(read_json(folder / "run.json")["made"])
    except (OSError, KeyError, ValueError):  # said better by who reads the whole run
        return datetime.now(UTC)

"""Where a trained network looked on its tested films: lift of its maps in the lungs.

    found = attention_of("runs/tables/cells/3f…", data, crops)
    found.figure  # mean lift over area, 95 % interval by patient
    found.nets["resnet18"]  # the same of one net's own map, for a fusion net
    found.nets["explanation"]  # and of the map that a network draws itself, such as CXRNet

Maps are Grad-CAM of the answered class; lift is the share of the energy inside the lungs over the
lungs' share of what the network saw (classify.audit.metrics): 1 is chance.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classify.audit.films import Truths, draw_lungs
from classify.audit.metrics import Regions, measure
from classify.ensemble import Single, load_single, member_of, prepare_films
from classify.films import Case, select_cases
from classify.members import classes_of
from classify.preprocess import PreprocessConfig
from classify.saliency import OWN_MAPS, to_pixels
from classify.saliency.maps import explain, explains_itself, saliency_maps
from cxr.bundle import load_bundle
from cxr.data_folders import Data, DataFolders
from cxr.engines import pick_device
from cxr.film import Film
from cxr.films_table import FilmNames
from cxr.ledger import read_answers
from cxr.stats import Figure, mean_figure
from cxr.stream import Unread, batched, default_jobs, read_ahead
from cxr.workdir import log, read_json, sha256_file, write_json
from detect.lungfield.field import DEFAULT_WEIGHTS, LungField

RESULT = "attention.json"  # in the training's folder
WHOLE = ""  # the network's own map among those of its nets
_VERSION = 1  # raised when the same films and weights give another figure than before


class FilmLook(NamedTuple):
    """One film: who drew its lungs, whether the network's map is 0 everywhere, and the lift of that
    map, of each net's own and of those that the network draws itself; None without energy or lungs.
    """

    patient: str
    lung_by: str
    empty: bool
    lifts: dict[str, float | None]


@dataclass(frozen=True)
class Attention:
    """Mean lift over area of the maps of one training.

    Attributes:
        figure: of the network's map (for a fusion net, the fused one); `n` films have a lift.
        nets: the same of each net's own map by its name; of a network that draws its own map
            (CXRNet) that one as `explanation`, and weighed by the class as `explanation_class`;
            empty for any other single network.
        films: films that were looked at.
        empty: of these, those whose map is 0 everywhere, which has no lift.
        left_out: tested films that could not be measured, by reason.
        lung_by: films by who drew the lungs: human or lungfield.
    """

    figure: Figure
    nets: dict[str, Figure]
    films: int
    empty: int
    left_out: dict[str, int]
    lung_by: dict[str, int]


def attention_of(
    folder: str | Path,
    data: Data,
    crops: str | Path = "",
    max_films: int = 0,
    draws: int = 1000,
    seed: int = 0,
    batch: int = 16,
    device: str = "auto",
) -> Attention:
    """Attention of the trained network of `folder` on the films of its answers.csv.

    The result is kept in FOLDER/attention.json, and taken from there as long as the weights, the
    answers, the films and the settings are the same. Raises OSError or ValueError for what does not
    fit together, such as crops for a network that was trained on whole films.

    Args:
        folder: of classify.single: single.safetensors and answers.csv; with folds fold0/, fold1/ …
            of the same form, each network looked at on the films that it was tested on. Or of one
            member of classify.train: TARGET.safetensors and answers.csv.
        data: folders with films.csv, the films and, where there are any, human lung masks.
        crops: folder of detect.crop, for a network that was trained on crops.
        max_films: measure so many of the tested films, drawn by a hash of their names; 0 for all.
        draws, seed: of the bootstrap of patients.
        batch: films at a time, on `device`: auto, cpu or cuda.
    """
    folder, data = Path(folder), DataFolders(data)
    folds = sorted(folder.glob("fold[0-9]*"), key=lambda p: (len(p.name), p.name)) or [folder]
    parts = [(_bundle_in(place), place / "answers.csv") for place in folds]
    tables = [DEFAULT_WEIGHTS]
    tables += [Path(crops) / "manifest.jsonl"] if crops else []
    key = {
        "version": _VERSION,
        "bundles": [_hash(bundle) for bundle, _ in parts],
        "answers": [_hash(answers) for _, answers in parts],
        "films.csv": " ".join(map(_hash, data.tables())),
        **{path.name: _hash(path) for path in tables},
        **{"max_films": max_films, "draws": draws, "seed": seed},
    }
    if kept := _read(folder / RESULT, key):
        return kept
    rows = data.rows()
    found, _ = select_cases(rows, data, (), False, crops)
    cases = {case.row.image: case for case in found}
    tested = [[answer.film for answer in read_answers(path)[1]] for _, path in parts]
    wanted = _choose([*chain(*tested)], max_films)
    names, truths = FilmNames(cases), Truths.load(data)
    field = cache(lambda: LungField.load(DEFAULT_WEIGHTS, device))
    left_out = Counter[str]()
    looks: list[FilmLook] = []
    for (bundle, _), films in zip(parts, tested, strict=True):
        single = _load(bundle, bool(crops))
        named = [names.find(film) for film in films if film in wanted]
        left_out["no film of films.csv, or without a crop"] += named.count(None)
        shown = [cases[name] for name in named if name is not None]
        for group in _readable(shown, batch, left_out):
            lungs = draw_lungs([(truths.of(c.row.image), film) for c, film in group], field)
            looks += _look(single, group, lungs, pick_device(device))
    patients = [look.patient for look in looks]
    figures = {
        name: mean_figure([look.lifts[name] for look in looks], patients, draws, seed)
        for name in dict.fromkeys([WHOLE, *(name for look in looks for name in look.lifts)])
    }
    result = Attention(
        figures.pop(WHOLE),
        figures,
        len(looks),
        sum(look.empty for look in looks),
        {why: n for why, n in left_out.items() if n},
        dict(Counter(look.lung_by for look in looks)),
    )
    if result.left_out:
        why = ", ".join(f"{n} {why}" for why, n in result.left_out.items())
        log.warning("attention: films left out: %s", why)
    write_json(folder / RESULT, {"key": key, **asdict(result)})
    return result


def _bundle_in(place: Path) -> Path:
    """single.safetensors, or the one member's bundle that lies in its place."""
    own = place / "single.safetensors"
    members = [] if own.exists() else sorted(place.glob("*.safetensors"))
    if len(members) > 1:
        raise ValueError(
            f"{place} must hold one network, for the lift is that of one network's "
            f"maps. Got {', '.join(p.stem for p in members)}."
        )
    return members[0] if members else own


def _load(path: Path, cropped: bool) -> Single:
    """A single network, or a member as one."""
    if path.name == "single.safetensors":
        single = load_single(path)
    else:
        bundle = load_bundle(path, "member")
        settings = PreprocessConfig.from_dict(bundle.meta["preprocessing"])
        origin = bundle.meta["trained_on"], bundle.sha256, bundle.meta
        single = Single(member_of(bundle).eval(), classes_of(bundle.meta), settings, *origin)
    if (single.trained_on == "crops") != cropped:
        raise ValueError(
            "crops must be given for a network that was trained on crops, and for no other. "
            f"{path} was trained on {single.trained_on}. Got {'crops' if cropped else 'none'}."
        )
    return single


def _choose(films: Sequence[str], most: int) -> set[str]:
    """So many films, always the same; all of them for 0."""
    order = sorted(films, key=lambda film: hashlib.sha256(film.encode()).digest())
    return set(order[: most or None])


def _hash(path: Path) -> str:
    return sha256_file(path) if path.is_file() else ""


def _read(path: Path, key: dict[str, Any]) -> Attention | None:
    """What an earlier call wrote for the same key."""
    try:
        data = read_json(path)
        if data.pop("key") != key:
            return None
        nets = {name: Figure(**values) for name, values in data.pop("nets").items()}
        return Attention(figure=Figure(**data.pop("figure")), nets=nets, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


Read = list[tuple[Case, Film]]


def _readable(cases: Sequence[Case], batch: int, left_out: Counter[str]) -> Iterator[Read]:
    """Films with their pixels, a batch at a time, each read once; those that cannot be measured are
    counted in `left_out` by reason."""
    read = read_ahead([case.film for case in cases], default_jobs(len(cases)))
    for group in batched(zip(cases, read, strict=True), batch):
        good: Read = []
        for case, (_, film) in group:
            if isinstance(film, Unread):
                left_out[f"cannot be read: {film.reason}"] += 1
            elif case.crop_row and case.crop_row.sha256 not in ("", film.sha256):
                left_out["changed since the crop was made"] += 1
            else:
                good.append((case, film))
        if good:
            yield good


def _look(
    single: Single, good: Read, lungs: Sequence[tuple[np.ndarray, str]], device: Any
) -> Iterator[FilmLook]:
    """What the network answered on each film and where it looked for it."""
    single.net.to(device)
    crops = [case.crop_row.to_frame() if case.crop_row else None for case, _ in good]
    shown = [
        film.pixels if crop is None else crop.apply(film.pixels)
        for crop, (_, film) in zip(crops, good, strict=True)
    ]
    batch, frames = prepare_films(shown, single.settings, device)
    found = explain(single.net, batch)
    own = OWN_MAPS if explains_itself(single.net) else ()
    every = {WHOLE: found.maps, **found.nets}
    every |= {name: saliency_maps(single.net, batch, found.classes, name) for name in own}
    sizes = [(p.shape[0], p.shape[1]) for p in shown]
    maps = {name: to_pixels(planes, frames, sizes) for name, planes in every.items()}
    for n, ((case, _), crop, (lung, who)) in enumerate(zip(good, crops, lungs, strict=True)):
        regions = Regions(lung, seen_xyxy=None if crop is None else crop.film_xyxy)
        planes = {
            k: p[n] if crop is None else crop.restore(p[n], lung.shape) for k, p in maps.items()
        }
        # the random maps beside the lift are not asked for
        figures = {name: measure(plane, regions, draws=1) for name, plane in planes.items()}
        lifts = {name: values["lift"] for name, values in figures.items()}
        yield FilmLook(case.patient, who, bool(figures[WHOLE]["empty"]), lifts)

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
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from classify.audit.films import Truths, draw_lungs
from classify.audit.metrics import Regions, measure
from classify.bundles import Single, load_single, member_of
from classify.ensemble import prepare_films
from classify.films import Case, select_cases
from classify.preprocess import PreprocessConfig
from classify.saliency.maps import explain, explains_itself, saliency_maps, to_pixels
from classify.saliency.methods import OWN_MAPS
from cxr.answers import read_answers
from cxr.bundle import load_bundle
from cxr.devices import pick_device
from cxr.film import Film
from cxr.films_table import FilmNames, read_films_table
from cxr.stats import Figure, mean_figure
from cxr.stream import Unread, batched, default_jobs, read_ahead
from cxr.workdir import log, sha256_file, write_json
from detect.lungfield.field import DEFAULT_WEIGHTS, LungField

RESULT = "attention.json"  # in the training's folder
_VERSION = 1  # raised when the same films and weights give another figure than before


@dataclass(frozen=True)
class AttentionConfig:
    """How attention is measured.

    Args:
        max_films: measure so many of the tested films, drawn by a hash of their names; 0 for all.
        field: bundle of the lung-field network, for films without a human mask.
        draws: bootstrap draws of patients.
        seed: of the bootstrap.
        batch: films at a time.
        device: auto, cpu or cuda.
    """

    max_films: int = 0
    field: str = str(DEFAULT_WEIGHTS)
    draws: int = 1000
    seed: int = 0
    batch: int = 16
    device: str = "auto"


_USUAL = AttentionConfig()


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
    folder: str | Path, data: str | Path, crops: str | Path = "", config: AttentionConfig = _USUAL
) -> Attention:
    """Attention of the trained network of `folder` on the films of its answers.csv.

    The result is kept in FOLDER/attention.json, and taken from there as long as the weights, the
    answers, the films and the settings are the same.

    Args:
        folder: of classify.single: single.safetensors and answers.csv; with folds fold0/, fold1/ …
            of the same form, each network looked at on the films that it was tested on. Or of one
            member of classify.train: TARGET.safetensors and answers.csv.
        data: folder with films.csv, the films and, where there are any, human lung masks.
        crops: folder of detect.crop, for a network that was trained on crops.
        config: settings.

    Raises OSError or ValueError for what does not fit together, such as crops for a network that
    was trained on whole films.
    """
    folder, data = Path(folder), Path(data)
    parts = [(place, _bundle_in(place)) for place in _folds(folder)]
    key = _key(parts, data, crops, config)
    if kept := _read(folder / RESULT, key):
        return kept
    cases = _cases(data, crops)
    tested = [[answer.film for answer in read_answers(p / "answers.csv")[1]] for p, _ in parts]
    wanted = _choose([film for films in tested for film in films], config.max_films)
    names, truths = FilmNames(cases), Truths.load(data)
    field = cache(lambda: LungField.load(config.field, config.device))
    left_out = Counter[str]()
    looks: list[FilmLook] = []
    for (_, bundle), films in zip(parts, tested, strict=True):
        single = _load(bundle, bool(crops))
        found = [names.find(film) for film in films if film in wanted]
        left_out["no film of films.csv, or without a crop"] += found.count(None)
        shown = [cases[name] for name in found if name is not None]
        for group in _readable(shown, config.batch, left_out):
            lungs = draw_lungs([(truths.of(c.row.image), film) for c, film in group], field)
            looks += _look(single, group, lungs, pick_device(config.device))
    result = _summarise(looks, {why: n for why, n in left_out.items() if n}, config)
    if result.left_out:
        log.warning(
            "attention: films left out: %s",
            ", ".join(f"{n} {why}" for why, n in result.left_out.items()),
        )
    write_json(folder / RESULT, {"key": key, **asdict(result)})
    return result


def _folds(folder: Path) -> list[Path]:
    """Where the answers lie: fold0, fold1 …, or the folder itself."""
    folds = sorted(folder.glob("fold[0-9]*"), key=lambda p: (len(p.name), p.name))
    return folds or [folder]


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
        classes = bundle.meta.get("classes") or ("normal", bundle.meta["target"], "others")
        settings = PreprocessConfig.from_dict(bundle.meta["preprocessing"])
        origin = bundle.meta["trained_on"], bundle.sha256, bundle.meta
        single = Single(member_of(bundle).eval(), tuple(classes), settings, *origin)
    if (single.trained_on == "crops") != cropped:
        given = "crops" if cropped else "none"
        raise ValueError(
            f"crops must be given for a network that was trained on crops, and for no "
            f"other. {path} was trained on {single.trained_on}. "
            f"Got {given}."
        )
    return single


def _cases(data: Path, crops: str | Path) -> dict[str, Case]:
    """Every film of the table that can be shown to the network, by its image."""
    rows = read_films_table(data / "films.csv")
    cases, _ = select_cases(rows, data, (), False, Path(crops) if crops else None)
    return {case.row.image: case for case in cases}


def _choose(films: Sequence[str], most: int) -> set[str]:
    """So many films, always the same; all of them for 0."""
    order = sorted(films, key=lambda film: hashlib.sha256(film.encode()).digest())
    return set(order[: most or None])


def _summarise(
    looks: Sequence[FilmLook], left_out: dict[str, int], config: AttentionConfig
) -> Attention:
    nets = dict.fromkeys(name for look in looks for name in look.lifts if name != WHOLE)
    patients = [look.patient for look in looks]
    by_name = {
        name: mean_figure([look.lifts[name] for look in looks], patients, config.draws, config.seed)
        for name in (WHOLE, *nets)
    }
    return Attention(
        by_name.pop(WHOLE),
        by_name,
        len(looks),
        sum(look.empty for look in looks),
        left_out,
        dict(Counter(look.lung_by for look in looks)),
    )


def _key(
    parts: Sequence[tuple[Path, Path]], data: Path, crops: str | Path, config: AttentionConfig
) -> dict[str, Any]:
    """All that the figures hang on."""
    rest = [data / "films.csv", Path(config.field)]
    rest += [Path(crops) / "manifest.jsonl"] if crops else []
    return {
        "version": _VERSION,
        "bundles": [_hash(bundle) for _, bundle in parts],
        "answers": [_hash(place / "answers.csv") for place, _ in parts],
        **{path.name: _hash(path) for path in rest},
        "max_films": config.max_films,
        "draws": config.draws,
        "seed": config.seed,
    }


def _hash(path: Path) -> str:
    return sha256_file(path) if path.is_file() else ""


def _read(path: Path, key: dict[str, Any]) -> Attention | None:
    """What an earlier call wrote for the same key."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("key") != key:
            return None
        nets = {name: Figure(**values) for name, values in data.pop("nets").items()}
        return Attention(figure=Figure(**data.pop("figure")), nets=nets, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


WHOLE = ""  # the network's own map among those of its nets


@dataclass(frozen=True)
class FilmLook:
    """One film: the lift of the network's map, of each net's own and of those that the network
    draws itself; None without energy or lungs.

    `empty`: the network's map is 0 everywhere.
    """

    patient: str
    lung_by: str
    empty: bool
    lifts: dict[str, float | None]


Read = list[tuple[Case, Film]]


def _readable(cases: Sequence[Case], batch: int, left_out: Counter[str]) -> Iterator[Read]:
    """Films with their pixels, a batch at a time, each read once; those that cannot be measured are
    counted in `left_out` by reason."""
    read = read_ahead([case.film for case in cases], default_jobs(len(cases)))
    pairs = ((case, film) for case, (_, film) in zip(cases, read, strict=True))
    for group in batched(pairs, batch):
        good: Read = []
        for case, film in group:
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
    sizes = [(p.shape[0], p.shape[1]) for p in shown]
    batch, frames = prepare_films(shown, single.settings, device)
    found = explain(single.net, batch)
    own = OWN_MAPS if explains_itself(single.net) else ()
    every = {WHOLE: found.maps, **found.nets}
    every |= {name: saliency_maps(single.net, batch, found.classes, name) for name in own}
    maps = {name: to_pixels(planes, frames, sizes) for name, planes in every.items()}
    for n, ((case, _), crop, (lung, who)) in enumerate(zip(good, crops, lungs, strict=True)):
        regions = Regions(lung, seen_xyxy=None if crop is None else crop.source_xyxy)
        figures = {}
        for name, planes in maps.items():
            plane = planes[n] if crop is None else crop.restore(planes[n], lung.shape)
            # the random maps beside the lift are not asked for
            figures[name] = measure(plane, regions, draws=1)
        lifts = {name: values["lift"] for name, values in figures.items()}
        yield FilmLook(case.patient, who, bool(figures[WHOLE]["empty"]), lifts)

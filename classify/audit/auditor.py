"""What `python -m classify.audit` does: load, go through the films once, sum up, write."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import MofNCompleteColumn, Progress

from classify.audit import NAMES, THRESHOLDS, AuditConfig, figures
from classify.audit.compare import check_against, compare_against
from classify.audit.controls import Control, open_controls
from classify.audit.films import AuditFilm, Prepared, Run, RunFilm, Truths, read_films, read_run
from classify.audit.metrics import Regions, find_text, measure
from classify.audit.page import FIGURES, HITS, Record, write_audit_page
from classify.audit.rows import (
    AuditRow,
    AuditWriter,
    ControlResults,
    Thresholds,
    check_resumable,
    fit_thresholds,
    flag_row,
    read_thresholds,
)
from classify.ensemble import Ensemble
from classify.exported import answer_by
from classify.members import ForeignConfig, ModelSpec, sentence_of, settings_for
from classify.saliency import to_pixels
from classify.saliency.maps import check_draws
from classify.screener import Screener
from cxr.cli import to_plain
from cxr.ledger import FilmRecords
from cxr.notes import sentence_of as note_in_words
from cxr.page.build import map_uri, picture_uri, to_polygons, write_pdf
from cxr.split import Split
from cxr.stats import softmax
from cxr.stream import LOCAL, spread
from cxr.workdir import Workdir, console, counting, log, write_json
from detect.finder import ThoraxFinder
from detect.lungfield.field import LungField

# target of a member, its logits (3,), its map (h, w) over what it saw, the cells it was made of
MemberMap = tuple[str, np.ndarray, np.ndarray, tuple[int, int]]
Found = tuple[list[AuditRow], Record]  # of a film: a row a member, and what the page says of it
_NOT_RANDOM = (
    "The control of weights made random is left out: this model shows its answers and not its "
    "weights."
)


@dataclass(frozen=True)
class Auditor:
    """Everything that an audit works with, loaded once."""

    config: AuditConfig
    run: Run
    films: list[RunFilm]
    truths: Truths
    members: Ensemble
    screener: Screener | None
    field: LungField
    finder: ThoraxFinder | None
    thresholds: Thresholds | None
    threshold_path: Path

    def read(
        self,
        films: Sequence[RunFilm],
        lungs: Container[str] | None = None,
        boxes: Container[str] | None = None,
    ) -> Generator[tuple[list[AuditFilm], Prepared | None], None, None]:
        """`read_films`, and with each batch what the members saw of it."""
        about, how = (self.truths, self.field, self.finder), (self.config.jobs, self.config.batch)
        for group in read_films(films, *about, lungs, boxes, *how):
            yield group, Prepared.of(group, self.members)

    def measure(self, films: Sequence[AuditFilm], shown: Prepared | None) -> list[Found]:
        """`measure_films` by what is loaded."""
        how = (self.config.method, self.thresholds, self.config.seed)
        return measure_films(films, shown, self.members, *how)

    def refuse(self, listed: RunFilm, reason: str = "") -> Found:
        """What there is of a film that is not looked at."""
        return refused(AuditFilm(listed, self.truths.of(listed.name), reason=reason))

    def lost(self, name: str, why: str) -> Found:
        """That of one that ended its workers."""
        listed = next(film for film in self.films if film.name == name)
        return self.refuse(listed, f"worker_crashed: {why}.")

    @property
    def controls(self) -> tuple[str, ...]:
        """Those of the controls asked for that these members allow: weights that are not there
        cannot be made random."""
        bare = not any(True for net in self.members.networks for _ in net.parameters())
        return tuple(c for c in self.config.wanted_controls if c != "randomised" or not bare)

    def settings(self) -> dict[str, Any]:
        """What an audit that goes on must share with its beginning."""
        plain = to_plain(self.config)
        names = ("method", "data", "split", "part", "trained_on", "human_masks", "fit", "crops")
        return {
            **{name: plain[name] for name in names},
            "run": self.config.run_path.as_posix(),
            "seed": self.config.seed,
            "members": self.members.weights,
            **({"model": self.members.foreign} if self.members.foreign else {}),
            "field": self.field.weights,
            "detector": self.finder.weights if self.finder else {},
            "thresholds": to_plain(self.thresholds) if self.thresholds else None,
            **({"precision": plain["precision"]} if plain["precision"] != "fp32" else {}),
        }


def load(config: AuditConfig) -> Auditor:
    """Raises OSError or ValueError for what does not fit."""
    run = read_run(config.run_path, config.crops or None)
    truths = Truths.load(config.data, config.human_masks, run.targets) if config.data else Truths()
    films = run.films
    if config.part:
        names, split = [f.name for f in films], Split.load(config.split)
        chosen = set(truths.select(names, split, config.part, config.trained_on))
        films = [f for f in films if f.name in chosen]
    if not films:
        where = f" in part {config.part}" if config.part else ""
        raise ValueError(f"no film of {config.run_path} is left to audit{where}.")
    folder = Path(config.ensemble or run.ensemble)
    members = _open_members(config, run, folder)
    if config.method == "grad_cam" and not members.pools:
        log.info("maps by occlusion: the model names no layer that Grad-CAM could be drawn of")
        config = replace(config, method="occlusion")
    named = members.foreign.get("spec") or folder
    flag = "model" if members.foreign else "ensemble"
    if members.targets != run.targets:
        raise ValueError(
            f"--{flag} must be the members of {config.run_path}: {', '.join(run.targets)}. "
            f"{named} has {', '.join(members.targets)}."
        )
    check_draws(config.method, members.members)
    changed = [t for t, sha in members.weights.items() if run.members.get(t, sha) != sha]
    if changed:
        raise ValueError(
            f"{config.run_path} was made by other members than {named} holds "
            f"({', '.join(changed)}): make the run again, or give --{flag}."
        )
    check_against(config, run.cropped)
    finder = None
    if any(f.boxed is None and f.prediction.logits is not None for f in films):
        about = (config.detector or None, config.field or None, config.device)
        finder = ThoraxFinder.load(*about, engine=config.engine, precision=config.precision)
    screener = Screener.load(folder) if (folder / "screener.json").exists() else None
    if screener and members.foreign:
        screener.require_members(members.weights)
    path, asked_for = Path(config.thresholds or folder / THRESHOLDS), bool(config.thresholds)
    return Auditor(
        config,
        run,
        films,
        truths,
        members,
        screener,
        (finder and finder.field)
        or LungField.load(config.field or None, config.device, config.engine, config.precision),
        finder,
        None if config.fit else read_thresholds(path, asked_for, config.method, members.weights),
        path,
    )


def _open_members(config: AuditConfig, run: Run, folder: Path) -> Ensemble:
    """The run's own members, or those that the audit is told to take."""
    if not config.model and not run.foreign:
        members = Ensemble.load(folder, config.device, config.precision)
        answer_by(members, folder, config.engine)
        return members
    from classify.models.foreign import open_foreign

    spec = ModelSpec.parse(config.model or run.foreign["spec"])
    same = not config.model_settings and run.foreign.get("spec") == str(spec)
    known = ForeignConfig.of_run(dict(run.foreign)) if same else None
    known = known or settings_for(spec, config.model_settings)
    return open_foreign(spec, known, config.device, config.precision)


def audit(auditor: Auditor) -> int:
    """Look, control, write. 0, or 1 when no film could be judged; raises OSError or ValueError."""
    config = auditor.config
    workdir = Workdir(config.out_path)
    check_resumable(workdir, auditor.settings(), config.restart)
    with (
        AuditWriter(workdir / "audit.csv", len(auditor.members)) as writer,
        FilmRecords(workdir / "films.jsonl") as book,
    ):
        weights = {**auditor.members.weights, **auditor.field.weights}
        made_with = {"settings": auditor.settings()}
        workdir.start(to_plain(config), seed=config.seed, weights=weights, **made_with)
        options = {"draws": config.draws, "control_films": config.control_films}
        store = ControlResults(workdir / "controls.json", [f.name for f in auditor.films], options)
        shown = [f for f in auditor.films if f.prediction.logits is not None]
        about = (config, auditor.members, shown, auditor.truths, auditor.screener)
        controls = open_controls(store.missing(auditor.controls), *about)
        look_at_films(auditor, shown, writer, book, controls)
        rows = [row for film in auditor.films for row in writer.done[film.name]]
        judged = any(row.member for row in rows)
        thresholds = auditor.thresholds
        if config.fit:
            thresholds = fit_thresholds(rows, config.tail, auditor.members.weights)
            path = thresholds.save(auditor.threshold_path)
            _say(f"thresholds from {thresholds.films} films: {path}")
        for name, control in controls.items() if judged else ():
            log.info("control: %s", name)
            store.add(name, control.results())
        summary = summarise(auditor, rows, thresholds, store.found if judged else {})
        write_json(workdir / "audit.json", summary)
        records = book.records({film.name for film in auditor.films})
        page = write_audit_page(workdir / "report.html", summary, records)
    if config.pdf:
        write_pdf(page, workdir / "report.pdf")
    console.print(figures.figure_table(summary["metrics"]))
    _say(f"{summary['answer']['sentence']}\npage: {page}")
    return 0 if judged else 1


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False)


def look_at_films(
    auditor: Auditor,
    shown: Sequence[RunFilm],
    writer: AuditWriter,
    book: FilmRecords,
    controls: Mapping[str, Control],
) -> None:
    """One pass over the films that somebody wants: rows and records of those that have none yet,
    and what each control keeps of its own. Each is read, boxed and segmented at most once, and only
    where that is used."""
    config = auditor.config
    pending = {f.name for f in auditor.films if f.name not in writer.done or f.name not in book}
    if done := len(auditor.films) - len(pending):
        log.info("%d of %d films are done already", done, len(auditor.films))

    def keep(found: Found) -> None:
        rows, record = found
        book.add(record)  # first: a film whose rows stand has its record
        if rows[0].film not in writer.done:  # else its record alone was lost
            writer.add(rows)

    judged = {film.name for film in shown}
    unseen = pending - judged
    for film in auditor.films:
        if film.name in unseen:
            keep(auditor.refuse(film))
    if config.workers != LOCAL:
        names = [film.name for film in shown if film.name in pending]
        work = partial(_work_of, config)
        found_by_workers = spread(config.workers, work, names, config.batch, auditor.lost)
        for found in counting(found_by_workers, "looking", len(names)):
            keep(found)
        pending = set()
    lungs = pending.union(*(controls[c].films for c in ("masked", "road") if c in controls))
    wanted = lungs.union(*(control.films for control in controls.values()))
    groups = auditor.read([film for film in shown if film.name in wanted], lungs, pending)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar, closing(groups):
        task = bar.add_task("looking", total=len(wanted & judged))
        for group, seen in groups:
            for found in auditor.measure([f for f in group if f.listed.name in pending], seen):
                keep(found)
            for control in controls.values():
                if seen:
                    control.take(seen)
            bar.advance(task, len(group))


def _work_of(config: AuditConfig) -> Callable[[Iterable[str]], Iterator[Found]]:
    """Names of films to what is found of them, as a worker of one core has it."""
    auditor = load(replace(config, jobs=0, workers=LOCAL))
    films = {film.name: film for film in auditor.films}

    def work(names: Iterable[str]) -> Iterator[Found]:
        for group, seen in auditor.read([films[name] for name in names]):
            yield from auditor.measure(group, seen)

    return work


def summarise(
    auditor: Auditor,
    rows: Sequence[AuditRow],
    thresholds: Thresholds | None,
    controls: Mapping[str, Any],
) -> dict[str, Any]:
    """What audit.json holds and the page shows; compare.md is written too."""
    config, run = auditor.config, auditor.run
    compared, arms = compare_against(config, rows)
    said = figures.cautions(rows, run.cropped, thresholds, controls, config.fit)
    if foreign := auditor.members.foreign:
        said.insert(0, sentence_of(foreign))
    if len(auditor.controls) < len(config.wanted_controls):
        said.append(_NOT_RANDOM)
    return {
        "title": config.out_path.as_posix(),
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "question": "Did the networks look inside the lungs?",
        "answer": figures.answer(rows, config.draws, config.seed),
        "method": NAMES[config.method],
        "members": list(auditor.members.targets),
        "metrics": figures.figure_rows(rows, config.draws, config.seed) + controls.get("areas", []),
        "distributions": figures.distributions(rows),
        "controls": figures.control_rows(controls),
        "compare": [figures.pooled(row) for row in compared],
        "compare_arms": list(arms),
        "thresholds": figures.threshold_table(thresholds),
        "cautions": said,
        "settings": {
            "run": config.run_path.as_posix(),
            "films": len({row.film for row in rows}),
            "patients": len({row.patient for row in rows}),
            "films whose label says nothing": list(figures.unknown_labels(rows)) or "none",
            "shown": "crops" if run.cropped else "whole films",
            "part": config.part or "all",
            "sources trained on": ", ".join(config.trained_on) if config.part else "not said",
            "films of randomised and road": config.control_films or "all",
            "seed": config.seed,
            "bootstrap draws": config.draws,
            "members": auditor.members.weights,
            **({"model": foreign} if foreign else {}),
            "lung field": auditor.field.weights,
        },
    }


# --- each member's map of a film: where its energy lies, and the flags


def measure_films(
    films: Sequence[AuditFilm],
    shown: Prepared | None,
    members: Ensemble,
    method: str,
    thresholds: Thresholds | None,
    seed: int = 0,
) -> list[Found]:
    """Rows (one a member) and page record of each film, in order; `shown` holds those of them that
    the members saw, and maybe others."""
    own = shown.only(films) if shown else None
    maps = iter(_maps(own, members, method) if own else ())
    out = []
    for film in films:
        try:
            found = refused(film) if film.pixels is None else None
            out.append(found or _measure_film(film, next(maps), method, thresholds, seed))
        except ValueError as error:  # say a film too small to hold text: it must not end the audit
            film.reason = f"it cannot be measured: {error}"
            out.append(refused(film))
    return out


def _maps(shown: Prepared, members: Ensemble, method: str) -> list[list[MemberMap]]:
    """Each film's maps, one a member."""
    sizes = [(f.pixels.shape[0], f.pixels.shape[1]) for f in shown.films if f.pixels is not None]
    out: list[list[MemberMap]] = [[] for _ in sizes]
    found = members.look(shown.batch, method)
    for target, (logits, planes) in zip(members.targets, found, strict=True):
        for n, plane in enumerate(to_pixels(planes, shown.frames, sizes)):
            frame = shown.frames[n]  # cells over what was seen, without the square input's padding
            sides = zip(planes.shape[1:], frame.content_hw, frame.canvas_hw, strict=True)
            high, wide = (max(2, round(cam * (own / all_))) for cam, own, all_ in sides)
            out[n].append((target, logits[n], plane, (high, wide)))
    return out


def refused(film: AuditFilm) -> Found:
    """The only row of a film that cannot be judged, and its record."""
    row = _common(film)
    status = row.status if row.status not in ("ok", "fallback") else "unreadable"
    row = replace(row, status=status, reason="; ".join(filter(None, (row.reason, film.reason))))
    return [row], {**_facts(film, row), "members": []}


def _measure_film(
    film: AuditFilm,
    maps: Sequence[MemberMap],
    method: str,
    thresholds: Thresholds | None,
    seed: int,
) -> Found:
    assert film.film is not None and film.lung is not None and film.pixels is not None
    findings, text = film.truth.findings_on(film.size_hw), find_text(film.film.pixels)
    regions = Regions(film.lung, film.box_xyxy, findings, text, film.seen_xyxy)
    crop = film.listed.crop
    rows, faces = [], []
    for target, logits, plane, cells in maps:
        on_film = plane if crop is None else crop.restore(plane, film.size_hw)
        known = measure(on_film, regions, film.listed.name, cells, seed=seed)
        empty, reason = bool(known.pop("empty")), str(known.pop("reason"))
        shares: Any = tuple(softmax(logits).tolist())
        row = replace(
            _common(film),
            member=target,
            method=method,
            lung_by=film.lung_by,
            reason="; ".join(filter(None, (film.listed.prediction.reason, reason))),
            truth=film.truth.label_for(target),
            metrics=known,
            empty=empty,
            probabilities=shares,
            field_disagreement=film.field_disagreement,
            cut_edges=film.cut_edges,
        )
        flags, reasons = flag_row(row, thresholds)
        rows.append(replace(row, flags=flags, flag_reasons=reasons))
        measured = {**known, "p_target": row.value("p_target")}
        face = {short: measured.get(name) for short, (name, _) in (FIGURES | HITS).items()}
        faces.append({"name": target, **face, "flags": list(flags), "map": map_uri(plane)})
    height, width = film.size_hw
    size = np.array([width, height, width, height])
    reasons = tuple(dict.fromkeys(r for row in rows for r in row.flag_reasons))
    if film.cut_edges:
        reasons += (f"the film cuts off the lungs at its {' and '.join(film.cut_edges)} edge",)
    return rows, {
        **_facts(film, rows[0]),
        "flags": list(dict.fromkeys(f for row in rows for f in row.flags)),
        "reasons": list(reasons),
        "box": None if film.box_xyxy is None else (film.box_xyxy / size).tolist(),
        "findings": (findings / size).tolist(),
        "seen": (film.seen_xyxy / size).tolist(),
        "field": to_polygons(film.lung),
        "lung_by": film.lung_by,
        "size": [height, width],
        "picture": picture_uri(film.film.pixels),
        "crop": None if crop is None else picture_uri(film.pixels),
        "members": faces,
    }


def _facts(film: AuditFilm, row: AuditRow) -> Record:
    """What the page says of any film."""
    names, listed = ("film", "source", "patient", "status", "reason"), film.listed
    facts: Record = {name: getattr(row, name) for name in names}
    noted = film.film or listed.boxed or listed.prediction
    return {
        **facts,
        "label": ": ".join(filter(None, (row.label, row.sublabel))),
        "decision": listed.prediction.decision,
        "notes": [note_in_words(note) for note in noted.notes],
    }


def _common(film: AuditFilm) -> AuditRow:
    made, row = film.listed.prediction, film.truth.row
    known = (row.source, row.label, row.sublabel) if row else ("", "", "")
    return AuditRow(made.film, made.status, made.reason, *known, film.patient)

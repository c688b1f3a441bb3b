"""What `python -m classify.audit` does: load, go through the films once, sum up, write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, Progress

from classify.audit.attention import Prepared, measure_films, refused
from classify.audit.compare import check_against, compare_against
from classify.audit.config import NAMES, THRESHOLDS, AuditConfig
from classify.audit.controls import Control, open_controls
from classify.audit.films import AuditFilm, Run, RunFilm, Truths, read_films, read_run
from classify.audit.flags import Thresholds, fit_thresholds, read_thresholds
from classify.audit.page import write_audit_page
from classify.audit.rows import AuditRow, AuditWriter, ControlResults, check_resumable
from classify.audit.summary import (
    answer,
    cautions,
    control_rows,
    distributions,
    figure_rows,
    figure_table,
    pooled,
    threshold_table,
    unknown_labels,
)
from classify.ensemble import Ensemble
from classify.exported import answer_by
from classify.foreign import ForeignConfig, ModelSpec, sentence_of, settings_for
from classify.saliency.maps import check_draws
from classify.screener import Screener
from cxr.cli import to_plain
from cxr.ledger import FilmRecords
from cxr.page.build import write_pdf
from cxr.split import Split
from cxr.stream import LOCAL, spread
from cxr.workdir import Workdir, console, counting, log, write_json
from detect.finder import ThoraxFinder
from detect.lungfield.field import LungField

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
    if members.targets != run.targets:
        raise ValueError(
            f"--{'model' if members.foreign else 'ensemble'} must be the members of "
            f"{config.run_path}: {', '.join(run.targets)}. "
            f"{members.foreign.get('spec') or folder} has {', '.join(members.targets)}."
        )
    check_draws(config.method, members.members)
    changed = [t for t, sha in members.weights.items() if run.members.get(t, sha) != sha]
    if changed:
        raise ValueError(
            f"{config.run_path} was made by other members than "
            f"{members.foreign.get('spec') or folder} holds ({', '.join(changed)}): make the run "
            f"again, or give --{'model' if members.foreign else 'ensemble'}."
        )
    check_against(config, run.cropped)
    unboxed = any(f.boxed is None and f.prediction.logits is not None for f in films)
    finder = None
    if unboxed:
        about = (config.detector or None, config.field or None, config.device)
        how = {"engine": config.engine, "precision": config.precision}
        finder = ThoraxFinder.load(*about, **how)
    path, asked_for = Path(config.thresholds or folder / THRESHOLDS), bool(config.thresholds)
    return Auditor(
        config,
        run,
        films,
        truths,
        members,
        _screener_of(members, folder),
        (finder and finder.field)
        or LungField.load(config.field or None, config.device, config.engine, config.precision),
        finder,
        None if config.fit else read_thresholds(path, asked_for, config.method, members.weights),
        path,
    )


def _screener_of(members: Ensemble, folder: Path) -> Screener | None:
    if not (folder / "screener.json").exists():
        return None
    screener = Screener.load(folder)
    if members.foreign:
        screener.require_members(members.weights)
    return screener


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
    console.print(figure_table(summary["metrics"]))
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
    config, members = auditor.config, auditor.members
    pending = {f.name for f in auditor.films if f.name not in writer.done or f.name not in book}
    if done := len(auditor.films) - len(pending):
        log.info("%d of %d films are done already", done, len(auditor.films))

    def keep(found: tuple[list[AuditRow], dict[str, Any]]) -> None:
        rows, record = found
        book.add(record)  # first: a film whose rows stand has its record
        if rows[0].film not in writer.done:  # else its record alone was lost
            writer.add(rows)

    judged = {film.name for film in shown}
    for listed in auditor.films:
        if listed.name in pending - judged:
            keep(refused(AuditFilm(listed, auditor.truths.of(listed.name))))
    if config.workers != LOCAL:
        names = [film.name for film in shown if film.name in pending]
        make, lost = partial(AuditWork, config), partial(_lost, auditor)
        found_by_workers = spread(config.workers, make, names, config.batch, lost)
        for found in counting(found_by_workers, "looking", len(names)):
            keep(found)
        pending = set()
    lungs = pending.union(*(controls[c].films for c in ("masked", "road") if c in controls))
    wanted = lungs.union(*(control.films for control in controls.values()))
    groups = read_films(
        [film for film in shown if film.name in wanted],
        auditor.truths,
        auditor.field,
        auditor.finder,
        lungs,
        pending,
        config.jobs,
        config.batch,
    )
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar, closing(groups):  # type: ignore[type-var]
        task = bar.add_task("looking", total=len(wanted & judged))
        for group in groups:
            seen = Prepared.of(group, members)
            new = [film for film in group if film.listed.name in pending]
            how = (members, config.method, auditor.thresholds, config.seed)
            for found in measure_films(new, seen, *how):
                keep(found)
            if seen:
                for control in controls.values():
                    control.take(seen)
            bar.advance(task, len(group))


class AuditWork:
    """Names of films to their rows and records, as a worker of one core has it, which reads by
    itself."""

    def __init__(self, config: AuditConfig) -> None:
        self.auditor = load(replace(config, jobs=0, workers=LOCAL))
        self._films = {film.name: film for film in self.auditor.films}

    def __call__(self, names: Iterable[str]) -> Iterator[tuple[list[AuditRow], dict[str, Any]]]:
        own, config = self.auditor, self.auditor.config
        films = [self._films[name] for name in names]
        about = (own.truths, own.field, own.finder)
        for group in read_films(films, *about, jobs=0, batch=config.batch):
            seen = Prepared.of(group, own.members)
            how = (own.members, config.method, own.thresholds, config.seed)
            yield from measure_films(group, seen, *how)


def _lost(auditor: Auditor, name: str, why: str) -> tuple[list[AuditRow], dict[str, Any]]:
    listed = next(film for film in auditor.films if film.name == name)
    film = AuditFilm(listed, auditor.truths.of(name), reason=f"worker_crashed: {why}.")
    return refused(film)


def summarise(
    auditor: Auditor,
    rows: Sequence[AuditRow],
    thresholds: Thresholds | None,
    controls: Mapping[str, Any],
) -> dict[str, Any]:
    """What audit.json holds and the page shows; compare.md is written too."""
    config, run = auditor.config, auditor.run
    compared, arms = compare_against(config, rows)
    said = cautions(rows, run.cropped, thresholds, controls, config.fit)
    if foreign := auditor.members.foreign:
        said.insert(0, sentence_of(foreign))
    if len(auditor.controls) < len(config.wanted_controls):
        said.append(_NOT_RANDOM)
    return {
        "title": config.out_path.as_posix(),
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "question": "Did the networks look inside the lungs?",
        "answer": answer(rows, config.draws, config.seed),
        "method": NAMES[config.method],
        "members": list(auditor.members.targets),
        "metrics": [*figure_rows(rows, config.draws, config.seed), *controls.get("areas", [])],
        "distributions": distributions(rows),
        "controls": control_rows(controls),
        "compare": [pooled(row) for row in compared],
        "compare_arms": list(arms),
        "thresholds": threshold_table(thresholds),
        "cautions": said,
        "settings": {
            "run": config.run_path.as_posix(),
            "films": len({row.film for row in rows}),
            "patients": len({row.patient for row in rows}),
            "films whose label says nothing": list(unknown_labels(rows)) or "none",
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

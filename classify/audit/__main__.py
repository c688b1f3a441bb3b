"""Did the model look inside the lungs? python -m classify.audit RUN writes audit.csv, audit.json,
report.html, and report.pdf where Chromium is present.

    python -m classify.audit runs/logits_crops --data ../shared/data --part train --fit
    python -m classify.audit runs/logits_crops --data ../shared/data --part test --controls all

An audit that was stopped goes on where it was: films that are done keep their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, Progress

from classify.audit.against import Compared, check_against, compare_against
from classify.audit.config import NAMES, THRESHOLDS, AuditConfig
from classify.audit.flags import Thresholds, fit_thresholds, read_thresholds
from classify.audit.look import FieldCheck, Looker, refused
from classify.audit.page import write_audit_page
from classify.audit.resume import ControlBook, check_resumable
from classify.audit.rows import AuditRow, AuditWriter
from classify.audit.sight import Run, Seen, Sight, iter_sights, read_run
from classify.audit.summary import (
    answer,
    cautions,
    control_rows,
    distributions,
    figure_rows,
    figure_table,
    pooled,
    threshold_table,
)
from classify.audit.trials import Sample, draw_sample, masked_rows, randomised_rows, road_rows
from classify.audit.truth import Truths
from classify.ensemble import Ensemble
from classify.labels import TARGET
from classify.saliency.own import check_draws
from classify.screener import Screener
from cxr.cli import parse_config, to_plain
from cxr.ledger import FilmRecords
from cxr.page.pdf import write_pdf
from cxr.split import Split
from cxr.stream import default_jobs
from cxr.workdir import Workdir, console, log, write_json
from detect.lungfield.field import LungField, cut_edges, disagreement
from detect.predict import ThoraxDetector


@dataclass(frozen=True)
class Auditor:
    """Everything that an audit works with, loaded once."""

    config: AuditConfig
    run: Run
    films: list[Seen]
    truths: Truths
    members: Ensemble
    screener: Screener | None
    field: LungField
    detector: ThoraxDetector | None
    thresholds: Thresholds | None

    def sights(self, films: Sequence[Seen], boxes: bool = True) -> Iterator[list[Sight]]:
        """The films in batches, read, segmented and, with `boxes`, boxed where they are not."""
        shown = [f for f in films if f.prediction.logits is not None]
        jobs = default_jobs(len(shown)) if self.config.jobs < 0 else self.config.jobs
        detector = self.detector if boxes else None
        return iter_sights(shown, self.truths, self.field, detector, jobs, self.config.batch)

    def settings(self) -> dict[str, Any]:
        """What an audit that goes on must share with its beginning."""
        plain = to_plain(self.config)
        names = ("method", "data", "split", "part", "trained_on", "human_masks", "fit", "crops")
        return {
            **{name: plain[name] for name in names},
            "run": self.config.run_path.as_posix(),
            "seed": self.config.seed,
            "members": self.members.weights,
            "field": self.field.weights,
            "detector": self.detector.weights if self.detector else {},
            "thresholds": to_plain(self.thresholds) if self.thresholds else None,
        }


def load(config: AuditConfig) -> Auditor:
    """Raises OSError or ValueError for what does not fit."""
    run = read_run(config.run_path, config.crops or None)
    truths = Truths.load(config.data, config.human_masks) if config.data else Truths()
    films = run.films
    if config.part:
        films = truths.select(films, Split.load(config.split), config.part, config.trained_on)
    if not films:
        raise ValueError(
            f"no film of {config.run_path} is left to audit"
            + (f" in part {config.part}." if config.part else ".")
        )
    folder = Path(config.ensemble or run.ensemble)
    members = Ensemble.load(folder, config.device)
    if members.targets != run.targets:
        raise ValueError(
            f"--ensemble must be the members of {config.run_path}: "
            f"{', '.join(run.targets)}. {folder} has "
            f"{', '.join(members.targets)}."
        )
    check_draws(config.method, members.members)
    changed = [t for t, sha in members.weights.items() if run.members.get(t, sha) != sha]
    if changed:
        raise ValueError(
            f"{config.run_path} was made by other members than {folder} holds "
            f"({', '.join(changed)}): make the run again, or give "
            "--ensemble."
        )
    check_against(config, run.cropped)
    unboxed = any(f.boxed is None and f.prediction.logits is not None for f in films)
    detector = ThoraxDetector.load(config.detector or None, config.device) if unboxed else None
    return Auditor(
        config,
        run,
        films,
        truths,
        members,
        Screener.load(folder) if (folder / "screener.json").exists() else None,
        LungField.load(config.field or None, config.device),
        detector,
        None
        if config.fit
        else read_thresholds(
            _threshold_path(config, run), bool(config.thresholds), config.method, members.weights
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command. 0 also when films were refused, 1 when none could be judged, 2 for wrong
    arguments or files that are not what they should be, 130 when it was stopped."""
    config = parse_config(
        AuditConfig,
        argv,
        prog="python -m classify.audit",
        example="python -m classify.audit runs/logits_crops --data ../shared/data --part test "
        "--controls all",
        positionals=("run",),
        bare={"controls": "all"},
    )
    try:
        return audit(load(config))
    except (OSError, ValueError) as error:
        log.error("%s", error)
        return 2
    except KeyboardInterrupt:
        log.warning("stopped. The same command goes on from here.")
        return 130


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
        workdir.start(to_plain(config), seed=config.seed, weights=weights)
        workdir.update(settings=auditor.settings())
        look_at_all(auditor, writer, book)
        rows = [row for film in auditor.films for row in writer.done[film.name]]
        judged = any(row.member for row in rows)
        thresholds = _fit(auditor, rows) if config.fit else auditor.thresholds
        trials = do_trials(auditor, workdir) if judged else {}
        summary = summarise(auditor, rows, thresholds, trials, compare_against(config, rows))
        write_json(workdir / "audit.json", summary)
        records = book.records({film.name for film in auditor.films})
        page = write_audit_page(workdir / "report.html", summary, records)
    if config.pdf:
        write_pdf(page, workdir / "report.pdf")
    console.print(figure_table(summary["metrics"]))
    console.print(f"{summary['answer']['sentence']}\npage: {page}", highlight=False, markup=False)
    return 0 if judged else 1


def look_at_all(auditor: Auditor, writer: AuditWriter, book: FilmRecords) -> None:
    """Rows and records of the films that have none yet."""
    pending = [f for f in auditor.films if f.name not in writer.done or f.name not in book]
    if len(pending) < len(auditor.films):
        log.info(
            "%d of %d films are done already", len(auditor.films) - len(pending), len(auditor.films)
        )
    looker = Looker(auditor.members, auditor.config.method, auditor.thresholds, auditor.config.seed)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with (
        Progress(*columns, console=console, transient=True) as bar,
        closing(auditor.sights(pending)) as groups,  # type: ignore[type-var]
    ):
        task = bar.add_task("looking", total=len(pending))
        for film in pending:
            if film.prediction.logits is None:
                _keep(refused(Sight(film, auditor.truths.of(film.name))), writer, book)
                bar.advance(task)
        for group in groups:
            for found in looker.look(group, [_check_field(s) for s in group]):
                _keep(found, writer, book)
                bar.advance(task)


def _keep(
    found: tuple[list[AuditRow], dict[str, Any]], writer: AuditWriter, book: FilmRecords
) -> None:
    rows, record = found
    book.add(record)  # first: a film whose rows stand has its record
    if rows[0].film not in writer.done:  # else its record alone was lost
        writer.add(rows)


def _check_field(sight: Sight) -> FieldCheck:
    if sight.lung is None:
        return FieldCheck(None, ())
    quarrel = None if sight.box_xyxy is None else disagreement(sight.lung, sight.box_xyxy)
    return FieldCheck(quarrel, cut_edges(sight.lung))


def do_trials(auditor: Auditor, workdir: Workdir) -> dict[str, Any]:
    """The controls asked for, and those that were done earlier on the same films."""
    config, members = auditor.config, auditor.members
    options = {"draws": config.draws, "control_films": config.control_films}
    book = ControlBook(workdir / "controls.json", [f.name for f in auditor.films], options)
    wanted = book.missing(config.wanted_controls)
    for name in wanted:
        log.info("control: %s", name)
        if name == "masked":
            rows, blind = masked_rows(
                members,
                lambda: auditor.sights(auditor.films, boxes=False),
                auditor.screener,
                config.seed,
                config.draws,
                len(auditor.films),
            )
            book.add(name, masked=rows, blind=blind)
        elif name == "randomised":
            book.add(name, randomised=randomised_rows(members, _draw(auditor), config.method))
        else:
            points, areas = road_rows(
                members, _draw(auditor, True), config.method, config.seed, config.draws
            )
            book.add(name, road=points, areas=areas)
    return book.found


def _draw(auditor: Auditor, showing: bool = False) -> Sample:
    """The films of the controls that need not all of them; with `showing`, of those that show the
    target of a member, where the truth of any is known."""
    config = auditor.config
    shown = {f.name: f for f in auditor.films if f.prediction.logits is not None}
    if showing:
        truths, targets = auditor.truths, auditor.members.targets
        ill = [n for n in shown if TARGET in [truths.of(n).label_for(t) for t in targets]]
        shown = {n: shown[n] for n in ill} or shown
    chosen = [shown[n] for n in draw_sample(list(shown), config.control_films, config.seed)]
    return Sample.take(auditor.members, lambda: auditor.sights(chosen, boxes=False))


def summarise(
    auditor: Auditor,
    rows: Sequence[AuditRow],
    thresholds: Thresholds | None,
    trials: dict[str, Any],
    compared: Compared,
) -> dict[str, Any]:
    """What audit.json holds and the page shows."""
    config, run = auditor.config, auditor.run
    return {
        "title": config.out_path.as_posix(),
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "question": "Did the networks look inside the lungs?",
        "answer": answer(rows, config.draws, config.seed),
        "method": NAMES[config.method],
        "members": list(auditor.members.targets),
        "metrics": [*figure_rows(rows, config.draws, config.seed), *trials.get("areas", [])],
        "distributions": distributions(rows),
        "controls": control_rows(trials),
        "compare": [pooled(row.to_dict()) for row in compared.rows],
        "compare_arms": list(compared.arms),
        "thresholds": threshold_table(thresholds),
        "cautions": cautions(rows, run.cropped, thresholds, trials, config.fit),
        "settings": {
            "run": config.run_path.as_posix(),
            "films": len({row.film for row in rows}),
            "patients": len({row.patient for row in rows}),
            "shown": "crops" if run.cropped else "whole films",
            "part": config.part or "all",
            "sources trained on": ", ".join(config.trained_on) if config.part else "not said",
            "films of randomised and road": config.control_films or "all",
            "seed": config.seed,
            "bootstrap draws": config.draws,
            "members": auditor.members.weights,
            "lung field": auditor.field.weights,
        },
    }


def _fit(auditor: Auditor, rows: Sequence[AuditRow]) -> Thresholds:
    path = _threshold_path(auditor.config, auditor.run)
    found = fit_thresholds(rows, auditor.config.tail, auditor.members.weights)
    found.save(path)
    console.print(f"thresholds from {found.films} films: {path}", highlight=False, markup=False)
    return found


def _threshold_path(config: AuditConfig, run: Run) -> Path:
    return Path(config.thresholds or Path(config.ensemble or run.ensemble) / THRESHOLDS)


if __name__ == "__main__":
    raise SystemExit(main())

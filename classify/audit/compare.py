"""An audit beside another, paired film by film: crops beside whole films, or one method of drawing
maps beside another on one run, whose maps alone are compared, as the answers are the same ones.

    python -m classify.audit RUN --method explanation --out RUN/drawn --against RUN/audit

lift, lift_z and lift_over_gaussian are the honest comparison: chance is taken over what each arm
saw, so a map without any preference stays at 1. A crop leaves lift less room: it cannot be above
1 / area share. inside_share and pointing_hit rise by cropping alone, as lungs cover about 0.37 of a
film and 0.59 of a crop; outside_box_share falls by it, as a crop is little more than the box; and
the border is that of what each arm saw: a crop's runs through the chest wall.

Intervals draw patients, the same ones for both arms. Means are tested by swapping the arms patient
by patient; AUCs by the paired bootstrap, as scores of two networks are on no common scale to be
swapped. Holm's correction is over all tests inside one source, members and metrics together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from classify.audit import NAMES, AuditConfig
from classify.audit.rows import UNKNOWN, AuditRow, Row, read_audit
from classify.members import TARGET
from cxr import stats
from cxr.workdir import log, write_atomic

ALL_SOURCES, NO_SOURCE = "all", "unknown"
AUC = "auc"
_PLAIN = ("inside_share", "border_share", "outside_box_share", "pointing_hit", "finding_lift")
MAP_METRICS = ("lift", "lift_z", "lift_over_gaussian", *_PLAIN)
Pair = tuple[AuditRow, AuditRow]  # the film's row, the crop's
LeftOut = Counter[tuple[str, str, str]]  # films by source, member and reason
_DIGITS = 4  # to which the answers of two passes over one film are the same
_HEAD = "films of, member, metric, {one}, {other}, {other} − {one} [95 %], p, p (Holm), films, "
_HEAD += "patients, left out"


def check_against(config: AuditConfig, cropped: bool) -> None:
    """Raises ValueError for an audit that the one to be made cannot be held against."""
    file = Path(config.against) / "audit.csv"
    if config.against and not (
        file.is_file() and (cropped or _method_of(read_audit(file), config) != config.method)
    ):
        raise ValueError(
            "--against must be the audit of a run on whole films, and RUN one on "
            "crops; or the audit of RUN by another --method. Got "
            f"{config.against} for {config.run_path}."
        )


def compare_against(
    config: AuditConfig, rows: Sequence[AuditRow]
) -> tuple[list[Row], tuple[str, ...]]:
    """The comparison that `--against` asks for, written to compare.md too; and the names of the two
    methods, none for whole film and crop."""
    if not config.against:
        return [], ()
    before = read_audit(Path(config.against) / "audit.csv")
    method = _method_of(before, config)
    methods = method != config.method
    if methods:
        before, rows = _rounded(before), _rounded(rows)
    found = compare(before, rows, config.seed, config.draws, methods)
    if not found:
        log.warning("--against: %s and this audit share no film that both judged", config.against)
    arms = (NAMES.get(method, method), NAMES[config.method]) if methods else ()
    write_atomic(config.out_path / "compare.md", compare_markdown(found, *arms))
    return found, arms


def _method_of(rows: Sequence[AuditRow], config: AuditConfig) -> str:
    """The method of the other audit; that of this one where no film was judged."""
    return next((row.method for row in rows if row.method), config.method)


def _rounded(rows: Sequence[AuditRow]) -> list[AuditRow]:
    """Rows whose probabilities are the same where the same network saw the same film."""
    shares: list[Any] = [tuple(round(p, _DIGITS) for p in r.probabilities or ()) for r in rows]
    return [replace(r, probabilities=p or None) for r, p in zip(rows, shares, strict=True)]


def compare(
    film_rows: Sequence[AuditRow],
    crop_rows: Sequence[AuditRow],
    seed: int = 0,
    draws: int = 2000,
    methods: bool = False,
) -> list[Row]:
    """Rows by source ("all" last, where there are several), member and metric.

    Films are matched by name and member, see `pair_rows`. A metric without a film that has it has
    no row; a source of one truth has its AUC's row, without a value. With `methods` the arms are
    two methods on the same answers, so that their maps alone are compared.

    A row has its `source`, "all" for all of them together, "unknown" where the films name none;
    `member` and `metric`: accuracy, auc (TARGET against the rest), or one of `MAP_METRICS`; of both
    arms, `film` and `crop`, the mean over the films (the AUC), None where not defined; their
    `difference`, crop minus film, with its 95 % interval `low` to `high`; `p` of the `test` of
    cxr.stats, "" without one, and `p_holm`, corrected for all tests inside the source; how many
    films, `n`, have the metric in both arms, and their `patients`; and the films `left_out` by
    reason. Raises ValueError for a film that is not the same in both arms."""
    pairs, left_out = pair_rows(film_rows, crop_rows, methods)
    metrics = MAP_METRICS if methods else ("accuracy", AUC, *MAP_METRICS)
    sources = sorted({_source(f) for f, _ in pairs})
    rows: list[Row] = []
    for source in [*sources, *([ALL_SOURCES] if len(sources) > 1 else [])]:
        family: list[Row] = []
        for member in dict.fromkeys(f.member for f, _ in pairs):
            own = [
                p for p in pairs if p[0].member == member and source in (_source(p[0]), ALL_SOURCES)
            ]
            without = Counter[str]()
            for (at, whose, why), count in left_out.items():
                if whose == member and source in (at, ALL_SOURCES):
                    without[why] += count
            if own:
                found = _rows(own, without, metrics, seed, draws)
                family += [{"source": source, "member": member, **row} for row in found]
        corrected = stats.holm([row["p"] for row in family])
        rows += [row | {"p_holm": p} for row, p in zip(family, corrected, strict=True)]
    return rows


def pair_rows(
    film_rows: Sequence[AuditRow], crop_rows: Sequence[AuditRow], methods: bool = False
) -> tuple[list[Pair], LeftOut]:
    """Rows of both arms matched by film and member, and how many are left out. A film that no
    member saw in one arm (a row without a member) is left out for each member of the other arm.
    Raises ValueError as `compare` does."""
    films, crops = ({(r.film, r.member): r for r in rows} for rows in (film_rows, crop_rows))
    pairs, left_out = [], LeftOut()
    for film, member in dict.fromkeys([*films, *crops]):
        if not member:
            continue  # named by its partners, or seen in neither arm
        one, other = films.get((film, member)), crops.get((film, member))
        if one is not None and other is not None:
            _check_same(one, other, methods)
            pairs.append((one, other))
        elif row := one or other:
            arm, rows = ("crop", crops) if one is not None else ("film", films)
            unseen = rows.get((film, ""))
            why = f"not judged as a {arm}: {unseen.status}" if unseen else f"no row as a {arm}"
            left_out[_source(row), member, why] += 1
    return pairs, left_out


def compare_markdown(rows: Sequence[Row], one: str = "film", other: str = "crop") -> str:
    """The table as Markdown; `one` and `other` are what the arms are called."""

    def chance(p: float | None) -> str:
        return "<0.001" if p is not None and p < 0.001 else number(p)

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    head = [name.format(one=one, other=other) for name in _HEAD.split(", ")]
    lines: list[Sequence[Any]] = [head]
    for r in rows:
        figure = stats.Figure(r["difference"], r["low"], r["high"], r["n"])
        gap = stats.in_words(figure, signed=True)
        why = "; ".join(f"{count} {reason}" for reason, count in r["left_out"].items()) or "–"
        arms = (number(r["film"]), number(r["crop"]), gap, chance(r["p"]), chance(r["p_holm"]))
        lines.append((r["source"], r["member"], r["metric"], *arms, r["n"], r["patients"], why))
    tests = sorted(
        {f"{r['test']} ({AUC if r['metric'] == AUC else 'means'})" for r in rows if r["test"]}
    )
    head_row, *body = (f"| {' | '.join(map(str, cells))} |\n" for cells in lines)
    table = head_row + "|---" * len(head) + "|\n" + "".join(body)
    return f"{table}\nTests: {'; '.join(tests) or 'none'}.\n"


def _rows(
    pairs: Sequence[Pair], without: Counter[str], metrics: Sequence[str], seed: int, draws: int
) -> Iterator[Row]:
    """A row a metric of one member's films of one source; `without` counts those in one arm."""
    weights = stats.with_draws([f.patient for f, _ in pairs], draws, seed)
    for metric in metrics:
        film, crop = (
            np.array([r.value(metric) for r in arm], float) for arm in zip(*pairs, strict=True)
        )
        if metric == AUC:
            film[[f.truth == UNKNOWN for f, _ in pairs]] = np.nan
        known = ~np.isnan(film) & ~np.isnan(crop)
        if not known.any():
            continue
        gone = without + Counter(
            _reason(pair, metric) for pair, has in zip(pairs, known, strict=True) if not has
        )
        kept = [f for (f, _), has in zip(pairs, known, strict=True) if has]
        yield {
            "metric": metric,
            **_test(metric, film[known], crop[known], kept, weights[:, known], seed, draws),
            "n": len(kept),
            "patients": len({f.patient for f in kept}),
            "left_out": dict(sorted(gone.items())),
        }


def _test(
    metric: str,
    film: np.ndarray,
    crop: np.ndarray,
    rows: Sequence[AuditRow],
    weights: np.ndarray,
    seed: int,
    draws: int,
) -> Row:
    """Values, difference, interval and p; `weights` (1 + draws, n) begin with the films as is."""
    patients = [row.patient for row in rows]
    if metric == AUC:
        positive = np.array([row.truth == TARGET for row in rows])
        arms = [stats.weighted_auc(scores, positive, weights) for scores in (film, crop)]
    else:
        arms = [stats.weighted_mean(values, weights) for values in (film, crop)]
    gap, p, test = arms[1] - arms[0], float("nan"), ""
    several = len(set(patients)) > 1  # one patient drawn again and again shows no spread
    shown = stats.figure(float(gap[0]), gap[1:] if several else gap[:0], len(rows))
    if shown.value is not None and several and metric == AUC:
        p, test = stats.bootstrap_p(gap[1:]), stats.BOOTSTRAP_TEST
    elif shown.value is not None and several:
        p, test = stats.swap_p(crop - film, patients, draws, seed), stats.SWAP_TEST
    before, after, chance = (None if np.isnan(v) else float(v) for v in (arms[0][0], arms[1][0], p))
    return {
        "film": before,
        "crop": after,
        "difference": shown.value,
        "low": shown.low,
        "high": shown.high,
        "p": chance,
        "p_holm": None,
        "test": "" if chance is None else test,
    }


def _reason(pair: Pair, metric: str) -> str:
    """Why a pair has no value of a metric."""
    for row, arm in zip(pair, ("film", "crop"), strict=True):
        if row.value(metric) is None and (metric != "accuracy" or row.truth != UNKNOWN):
            return f"{'map empty' if row.empty else 'not defined'} on the {arm}"
    return "truth unknown"


def _check_same(film: AuditRow, crop: AuditRow, methods: bool) -> None:
    for name in ("truth", "patient", "source", "probabilities" if methods else "method"):
        one, other = getattr(film, name), getattr(crop, name)
        if one != other:
            raise ValueError(
                f"film_rows and crop_rows must agree in {name}. {film.film} of "
                f"{film.member} has {one!r} and {other!r}: audit both with the same "
                "films.csv and settings."
            )


def _source(row: AuditRow) -> str:
    return row.source or NO_SOURCE

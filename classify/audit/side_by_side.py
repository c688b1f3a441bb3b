"""Audits of several models beside each other: one picture, one table.

    python -m classify.audit compare runs/ours runs/theirs runs/onnx --out runs/compared

Answers, maps and flags are compared on the films that all of them judged; a control's figures are
those of its own audit, which the page says where the films differ. Writes compare.html, compare.md
and compare.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from classify.audit.figures import SHOWN, mean_of
from classify.audit.rows import UNKNOWN, AuditRow, Row, figure_cells, read_audit
from classify.members import TARGET
from cxr import stats
from cxr.cli import to_plain
from cxr.page import in_unit, interval, whole
from cxr.page.build import Chart, Table, write_page
from cxr.page.charts import Row as Line
from cxr.page.charts import forest_of
from cxr.rules import require
from cxr.workdir import console, provenance, read_json, write_atomic, write_json

HERE = Path(__file__).resolve().parent
ALL = "all members"
# of audit.csv, and what a mean of each is called; "auc" is no mean
_MEANS = {
    "accuracy": "accuracy",
    "lift": "lift",
    "blob": "gaussian_lift",
    "on_lung": "inside_share",
    "empty": "empty",
    "flagged": "flagged",
}


@dataclass(frozen=True)
class CompareConfig:
    """Audits of several models beside each other, in one picture and one table.

    Args:
        runs: folders of classify.audit, or of runs that were audited; two or more.
        part: the audits' part, where a run has several: RUN/audit_PART.
        out: folder for compare.html, compare.md and compare.json.
        names: what each is called, in their order; empty: their folders' names.
        draws: bootstrap draws of patients.
        seed: of these.
    """

    runs: tuple[str, ...] = ()
    part: str = ""
    out: str = "runs/compared"
    names: tuple[str, ...] = ()
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.runs) > 1, "RUNS must name two audits or more", self.runs)
        rule = "--names must name each of the RUNS"
        require(not self.names or len(self.names) == len(self.runs), rule, self.names)
        require(self.draws >= 1, "--draws must be at least 1", self.draws)


@dataclass(frozen=True)
class Audited:
    """An audit that is done: its rows by film and member, and what audit.json says."""

    name: str
    rows: dict[tuple[str, str], AuditRow]
    summary: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, part: str, name: str = "") -> Audited:
        """Raises ValueError for a folder that holds none."""
        own = folder / (f"audit_{part}" if part else "audit")
        place = own if (own / "audit.json").is_file() else folder
        if not (place / "audit.csv").is_file() or not (place / "audit.json").is_file():
            raise ValueError(
                f"RUNS must be audited. {folder} holds no finished audit: "
                f"python -m classify.audit {folder} --controls all"
            )
        rows = {(r.film, r.member): r for r in read_audit(place / "audit.csv") if r.member}
        return cls(name or folder.name, rows, read_json(place / "audit.json"))

    @property
    def films(self) -> set[str]:
        """Those that its members saw."""
        return {film for film, _ in self.rows}

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the audit says of itself."""
        return self.summary.get("settings") or {}

    @property
    def controls(self) -> Mapping[str, Any]:
        """The rows of its controls by their names."""
        return self.summary.get("controls") or {}

    @property
    def model(self) -> str:
        """Which classifier it is of."""
        foreign = self.settings.get("model")
        return str(foreign["spec"]) if foreign else "members of lungfirst"


def compare_audits(audits: Sequence[Audited], draws: int = 2000, seed: int = 0) -> list[Row]:
    """A row for each audit and member, after one for all its members together.

    `model`, `member`, `shown`, `films`, and figures with `_low`, `_high` and `_n`: accuracy, auc
    (TARGET against the rest), lift, blob (a blind one's), on_lung, empty, flagged, over the films
    that all audits judged, by patient; the AUC of each masking control, `road_lungs`, and `random`,
    the rank correlation of the maps with those of a network of random weights. None where an audit
    has it not. Means over members are means over films of a film's mean; AUCs and controls of all
    members are means over members, without an interval. A question to all members, such as normal /
    pneumonia, has a row of the controls alone."""
    shared = set.intersection(*(audit.films for audit in audits))
    require(bool(shared), "audits must share films. Films that all of them judged", 0)
    rows: list[Row] = []
    for audit in audits:
        own: list[Row] = []
        by_member: dict[str, list[AuditRow]] = {}
        by_film: dict[str, list[AuditRow]] = {}
        for (film, member), row in audit.rows.items():
            if film in shared:
                by_member.setdefault(member, []).append(row)
                by_film.setdefault(film, []).append(row)
        for member, kept in by_member.items():
            found = _means([[row] for row in kept], draws, seed) | _auc(kept, draws, seed)
            own.append({"member": member, **found, **_controls_of(audit, member)})
        if len(own) > 1:
            alike = ("auc", "road_lungs", "random", *(f"masked {c}" for c in SHOWN))
            means = {name: mean_of(row.get(name) for row in own) for name in alike}
            own.insert(0, {"member": ALL, **_means([*by_film.values()], draws, seed), **means})
        # what is asked of all members together, as the masking control has it
        for name in dict.fromkeys(r["member"] for r in audit.controls.get("masked") or []):
            if name != "screener" and name not in by_member:
                own.append({"member": name, **_controls_of(audit, name), "question": True})
        about = {"shown": audit.settings.get("shown", ""), "films": len(shared)}
        rows += [{"model": audit.name, **row, **about} for row in own]
    return rows


def _means(films: Sequence[Sequence[AuditRow]], draws: int, seed: int) -> Row:
    """Figures over films, each of which counts by the mean of its rows."""
    patients = [rows[0].patient for rows in films]
    found: Row = {}
    for name, metric in _MEANS.items():
        values = [mean_of(row.value(metric) for row in rows) for rows in films]
        found |= _cells(name, stats.mean_figure(values, patients, draws, seed))
    return found


def _auc(rows: Sequence[AuditRow], draws: int, seed: int) -> Row:
    known = [row for row in rows if row.truth != UNKNOWN]
    if not known:
        return _cells("auc", stats.Figure(None, None, None, 0))
    scores, ill = [row.value("p_target") for row in known], [row.truth == TARGET for row in known]
    weights = stats.with_draws([row.patient for row in known], draws, seed)
    return _cells("auc", stats.figure_of(stats.weighted_auc(scores, ill, weights), len(known)))


def _controls_of(audit: Audited, member: str) -> Row:
    """The member's figures in the audit's controls: over all its films, whichever source."""
    masked = [r for r in audit.controls.get("masked") or [] if r["member"] == member]
    sources = {r["source"] for r in masked}
    source = "" if "" in sources else sources.pop() if len(sources) == 1 else None
    by_control = {r["control"]: r for r in masked if r["source"] == source}
    found: Row = {}
    for control in SHOWN:
        found |= _taken(f"masked {control}", by_control.get(control, {}), "auc")
    metrics = audit.summary.get("metrics") or []
    hangs = {(m["member"], m["name"], m["source"]): m for m in metrics}
    found |= _taken("road_lungs", hangs.get((member, "road_lungs", ""), {}), "value")
    stages = [r for r in audit.controls.get("randomisation") or [] if r["member"] == member]
    random = [r["rank_correlation"] for r in stages if r["stage"] != "another film"]
    return {**found, "random": random[-1] if random else None}


def _taken(name: str, row: Row, value: str) -> Row:
    """A figure out of another table's row, under a name of its own."""
    ends = {f"{name}_{end}": row.get(end) for end in ("low", "high", "n")}
    return {name: row.get(value), **ends}


def _cells(name: str, found: stats.Figure) -> Row:
    return figure_cells(found, name, f"{name}_")


# --- the table and the picture


def _ends(row: Row, name: str) -> tuple[float | None, float | None, float | None]:
    return row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high")


def _cell(name: str, unit: str) -> Callable[[Row], str]:
    return lambda row: "–" if row.get(name) is None else interval(*_ends(row, name), unit)


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "Model": lambda r: str(r["model"]),
    "Member": lambda r: str(r["member"]).replace("_", " "),
    "Shown": lambda r: str(r["shown"]),
    "Films": lambda r: whole(r["films"]),
    "Accuracy": _cell("accuracy", "share"),
    "AUC": lambda r: _cell("masked as is" if r.get("question") else "auc", "score")(r),
    "Lift": _cell("lift", "ratio"),
    "Blind blob": lambda r: in_unit(r.get("blob"), "ratio"),
    "On lung": _cell("on_lung", "share"),
    **{
        f"AUC, {words}": _cell(f"masked {name}", "score")
        for name, words in SHOWN.items()
        if name != "as is"
    },
    "Hangs on lungs (ROAD)": _cell("road_lungs", "score"),
    "Likeness to random weights": lambda r: in_unit(r.get("random"), "score"),
    "Empty maps": lambda r: in_unit(r.get("empty"), "share"),
    "Flagged": lambda r: in_unit(r.get("flagged"), "share"),
}


def table_of(rows: Sequence[Row]) -> Table:
    """The one table; columns in which no audit has anything are left out."""
    cells = {head: [cell(row) for row in rows] for head, cell in _COLUMNS.items()}
    used = {head: column for head, column in cells.items() if {*column} != {"–"}}
    return Table(tuple(used), list(zip(*used.values(), strict=True)), 3, grouped=True)


def _picture(rows: Sequence[Row]) -> list[Chart]:
    """Where each looks, beside what is left of its answers when the lungs are gone."""
    lifts = [
        Line(
            str(r["member"]).replace("_", " "),
            *_ends(r, "lift"),
            _cell("lift", "ratio")(r),
            r.get("blob"),
            str(r["model"]),
        )
        for r in rows
        if r.get("lift") is not None
    ]
    drawn = {r["model"]: _drawn(rows, r["model"]) for r in rows}
    lines = []
    for r in rows:
        for control, words in SHOWN.items():
            ends = _ends(r, f"masked {control}")
            if ends[0] is not None and r["member"] == drawn[r["model"]]:
                lines.append(Line(words, *ends, interval(*ends, "score"), None, str(r["model"])))
    charts = []
    if lifts:
        svg = forest_of(lifts, "Lift", "ratio", (1.0, "chance: 1"))
        means = (
            "How many times more attention falls on lung than its area would get by chance. "
            "Diamond: a blob in the middle, blind to films."
        )
        charts.append(Chart("Lift", means, svg))
    if lines:
        svg = forest_of(lines, "AUC", "score", (0.5, "guessing: 0.5"), labels=185)
        asked = sorted({name.replace("_", " ") for name in drawn.values()})
        means = (
            f"AUC of {' and '.join(asked)} with parts of the film hidden. What is left with the "
            "lungs blacked out does not need lungs."
        )
        charts.append(Chart("Without the lungs", means, svg))
    return charts


def _drawn(rows: Sequence[Row], model: str) -> str:
    """What of a model stands in the picture: the question that all models were asked, else all its
    members together, else its only one."""
    own = [r["member"] for r in rows if r["model"] == model]
    models = {r["model"] for r in rows}
    for question in dict.fromkeys(r["member"] for r in rows if r.get("question")):
        if all(any((r["model"], r["member"]) == (m, question) for r in rows) for m in models):
            return str(question)
    return str(ALL if ALL in own else own[0])


def _remarks(audits: Sequence[Audited], shared: int) -> list[str]:
    """What a reader must know before one model is called better than another."""
    said = [f"{a.name}: {a.model}, maps by {a.summary.get('method')}." for a in audits]
    if left := [f"{a.name} {len(a.films) - shared}" for a in audits if len(a.films) > shared]:
        said.append(
            f"Films that not all judged are left out ({', '.join(left)}); controls are of each "
            "audit's own films."
        )
    if len({a.summary.get("method") for a in audits}) > 1:
        said.append(
            "Maps are by different methods: their lifts differ by method too. Answers and the "
            "masking controls do not."
        )
    if len({tuple(sorted({m for _, m in a.rows})) for a in audits}) > 1:
        said.append(
            "Members of one model seek what those of another do not: compare rows of one name."
        )
    if len({a.settings.get("shown") for a in audits}) > 1:
        said.append("Some saw crops and some whole films: compare lifts, not shares on lung.")
    return said


def run_compare(config: CompareConfig) -> int:
    """The command; raises OSError or ValueError."""
    names = config.names or tuple(Path(r).name for r in config.runs)
    if len(set(names)) < len(names):
        names = tuple(Path(r).as_posix() for r in config.runs)
    pairs = zip(config.runs, names, strict=True)
    audits = [Audited.read(Path(run), config.part, name) for run, name in pairs]
    rows = compare_audits(audits, config.draws, config.seed)
    table, remarks, out = table_of(rows), _remarks(audits, rows[0]["films"]), Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    about = {"config": to_plain(config), "remarks": remarks, "provenance": provenance()}
    write_json(out / "compare.json", {"rows": rows, **about})
    lines = [table.head, ("---",) * len(table.head), *table.rows]
    text = "".join(f"| {' | '.join(c.replace('|', '/') for c in cells)} |\n" for cells in lines)
    write_atomic(out / "compare.md", text + "".join(f"\n{remark}\n" for remark in remarks))
    template = HERE / "side_by_side.html"
    shown = {"title": out.as_posix(), "remarks": remarks, "charts": _picture(rows)}
    page = write_page(out / "compare.html", template, table=table, **shown)
    heads = ("Model", "Member", "Accuracy", "AUC", "Lift", "AUC, lungs blacked out", "Flagged")
    short = RichTable(*heads, highlight=False)
    for row in rows:
        short.add_row(*(_COLUMNS[head](row) for head in heads))
    console.print(short)
    for text in (*remarks, f"page: {page}"):
        console.print(text, highlight=False, markup=False)
    return 0

"""An audit beside another: crops beside whole films, or one method beside another on one run.

    python -m classify.audit RUN --method explanation --out RUN/drawn --against RUN/audit

With another method the maps alone are compared, film by film: lift, pointing and the rest of
`classify.audit.compare.MAP_METRICS`; the networks' answers are the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from classify.audit.compare import CompareRow, compare, compare_markdown
from classify.audit.config import NAMES, AuditConfig
from classify.audit.rows import AuditRow, read_audit
from cxr.workdir import log, write_atomic

_DIGITS = 4  # to which the answers of two passes over one film are the same


@dataclass(frozen=True)
class Compared:
    """Rows of the comparison. `arms`: the names of two methods; empty for whole film and crop."""

    rows: tuple[CompareRow, ...] = ()
    arms: tuple[str, ...] = ()


def check_against(config: AuditConfig, cropped: bool) -> None:
    """Raises ValueError for an audit that the one to be made cannot be held against."""
    if config.against and not (
        (Path(config.against) / "audit.csv").is_file()
        and (cropped or _method_of(config) != config.method)
    ):
        raise ValueError(
            "--against must be the audit of a run on whole films, and RUN one on "
            "crops; or the audit of RUN by another --method. Got "
            f"{config.against} for {config.run_path}."
        )


def compare_against(config: AuditConfig, rows: Sequence[AuditRow]) -> Compared:
    """The comparison that `--against` asks for, written to compare.md too."""
    if not config.against:
        return Compared()
    before, method = read_audit(Path(config.against) / "audit.csv"), _method_of(config)
    methods = method != config.method
    if methods:
        before, rows = _rounded(before), _rounded(rows)
    found = compare(before, rows, config.seed, config.draws, methods)
    if not found:
        log.warning("--against: %s and this audit share no film that both judged", config.against)
    arms = (NAMES.get(method, method), NAMES[config.method]) if methods else ()
    write_atomic(config.out_path / "compare.md", compare_markdown(found, *arms))
    return Compared(tuple(found), arms)


def _method_of(config: AuditConfig) -> str:
    """The method of the other audit; that of this one where no film was judged."""
    rows = read_audit(Path(config.against) / "audit.csv")
    return next((row.method for row in rows if row.method), config.method)


def _rounded(rows: Sequence[AuditRow]) -> list[AuditRow]:
    """Rows whose probabilities are the same where the same network saw the same film."""
    out = []
    for row in rows:
        p = row.probabilities
        out.append(
            row
            if p is None
            else replace(
                row,
                probabilities=(round(p[0], _DIGITS), round(p[1], _DIGITS), round(p[2], _DIGITS)),
            )
        )
    return out

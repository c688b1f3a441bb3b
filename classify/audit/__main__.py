"""Did the model look inside the lungs? python -m classify.audit RUN writes audit.csv, audit.json,
report.html, and report.pdf where Chromium is present.

    python -m classify.audit runs/logits_crops --data ../shared/data --part train --fit
    python -m classify.audit runs/logits_crops --data ../shared/data --part test --controls all

An audit that was stopped goes on where it was: films that are done keep their rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from classify.audit.config import AuditConfig
from cxr.cli import as_command, parse_config
from cxr.rules import refusing


@as_command
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
    with refusing():
        from classify.audit.auditor import audit, load

        return audit(load(config))


if __name__ == "__main__":
    raise SystemExit(main())

"""Did the model look inside the lungs? python -m classify.audit RUN writes audit.csv, audit.json,
report.html, and report.pdf where Chromium is present.

    python -m classify.audit runs/logits_crops --data ../shared/data --part train --fit
    python -m classify.audit runs/logits_crops --data ../shared/data --part test --controls all
    python -m classify.audit compare runs/ours runs/theirs     audits of models beside each other

An audit that was stopped goes on where it was: films that are done keep their rows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from classify.audit import AuditConfig
from cxr.cli import Command, as_command, parse_config, run_command
from cxr.rules import refusing

_COMPARE = Command(
    "classify.audit.side_by_side:CompareConfig",
    "python -m classify.audit compare runs/ours runs/theirs",
    ("runs",),
    "classify.audit.side_by_side:run_compare",
)


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """The command. 0 also when films were refused, 1 when none could be judged, 2 for wrong
    arguments or files that are not what they should be, 130 when it was stopped."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["compare"]:
        with refusing():
            return run_command({"compare": _COMPARE}, words, "python -m classify.audit", "")
    example = (
        "python -m classify.audit runs/logits_crops --data ../shared/data --part test "
        "--controls all"
    )
    config = parse_config(AuditConfig, argv, example, ("run",), bare={"controls": "all"})
    with refusing():
        from classify.audit.auditor import audit, load

        return audit(load(config))


if __name__ == "__main__":
    raise SystemExit(main())

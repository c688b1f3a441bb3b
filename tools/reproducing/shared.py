"""Trainings that several cells share: a pretraining, a network whose features are selected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from cxr.cli import to_plain
from reproducing.cells import FREE, Place, content_of, fingerprint
from reproducing.experiment import flatten


@contextmanager
def shared_folder(out: str, kind: str, config: Any) -> Iterator[Path]:
    """OUT/shared/KIND-HASH for a cell that trains in OUT/cells/KEY, held for this process alone.

    HASH is over the films of `config.data` and `config.crops` and over its keys but those that
    change no result. `kind` says what is trained; change it when the same configuration gives
    another result than before.
    """
    flat = {k: content_of(k, v) for k, v in flatten(to_plain(config)).items() if k not in FREE}
    marks = fingerprint(Place(config.data, config.crops, ""), ("films.csv",))
    text = json.dumps([bool(config.crops), list(marks), flat], sort_keys=True)
    mark = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = Path(out).parent.parent / "shared" / f"{kind}-{mark}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        yield folder

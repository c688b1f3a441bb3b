"""The resume rule of all trainings: a folder goes on with the settings it was begun with.

A setting may change between a stop and the next start where its field is `free`: it says where,
how fast, or what is told, and leaves what is learnt as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any

from cxr.cli import to_plain
from cxr.workdir import write_json


def free(default: Any) -> Any:
    """A field of a settings dataclass that a resumed training may have otherwise."""
    return field(default=default, metadata={"free": True})


def recipe_of(config: Any) -> dict[str, Any]:
    """All settings of a dataclass but its free ones, nested ones too, as plain values."""
    return {
        f.name: recipe_of(value) if is_dataclass(value) else to_plain(value)
        for f in fields(config)
        if not f.metadata.get("free")
        for value in [getattr(config, f.name)]
    }


def free_names(config_class: type[Any] | Any, prefix: str = "") -> set[str]:
    """Dotted names of the free settings of a dataclass with defaults, as in `data.data`."""
    config = config_class() if isinstance(config_class, type) else config_class
    names = set()
    for f in fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("free"):
            names.add(f"{prefix}{f.name}")
        elif is_dataclass(value):
            names |= free_names(value, f"{prefix}{f.name}.")
    return names


def keep_to_recipe(folder: str | Path, settings: Any, restart: bool | None = None) -> None:
    """Note in `folder` with which settings its work was begun (recipe.json); raise ValueError,
    naming what differs, when it was begun with other ones than it would go on with.

    Args:
        folder: made where it is missing.
        settings: a dataclass, whose free fields do not count, or plain values that all do.
        restart: begin anew with these settings; None where the command has no such flag.

    A folder from before there were recipes is known by the settings in its run.json.
    """
    path, run = Path(folder) / "recipe.json", Path(folder) / "run.json"
    wanted = json.loads(json.dumps(recipe_of(settings) if is_dataclass(settings) else settings))
    after = dict(_flat(wanted))
    before: dict[str, Any] | None = None
    if path.exists():
        before = dict(_flat(json.loads(path.read_text())["settings"]))
    elif run.exists():
        begun = dict(_flat(json.loads(run.read_text()).get("config", {})))
        if after.keys() <= begun.keys():  # else it is another command's
            before = {name: begun[name] for name in after}
    if before is not None and not restart:
        names = {*before, *after}
        differs = sorted(k for k in names if before.get(k) != after.get(k))
        if differs:
            way = "remove that folder" if restart is None else "--restart to begin anew"
            raise ValueError(
                f"{folder} was begun with other settings ({', '.join(differs)}). "
                f"Give another --out, or {way}."
            )
    if restart or not path.exists():
        mark = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        write_json(path, {"sha256": mark, "settings": wanted})


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings with dotted names."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

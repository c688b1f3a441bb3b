"""The public sets by name: which there are, which a folder is, and reading one."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from cxr.public_sets import chexpert, covid, kermany, mimic, nih, radiography
from cxr.public_sets.folders import describe, levels
from cxr.public_sets.gather import gather
from cxr.public_sets.records import LayoutError, LoadedSet, Uncertain

_IEEE, _ACTUALMED, _FIGURE1 = covid.LOADERS
_LOADERS = (kermany.LOADER, nih.LOADER, _IEEE, radiography.LOADER, _ACTUALMED, _FIGURE1)
SETS = {loader.name: loader for loader in (*_LOADERS, chexpert.LOADER, mimic.LOADER)}


def load_set(
    name: str, path: str | Path, uncertain: Uncertain = "ignore", progress: bool = True
) -> LoadedSet:
    """Read the public set `name` in the folder `path` (or up to two folders below it).

    Args:
        name: a key of SETS.
        path: the folder; `image` of the rows is relative to it.
        uncertain: what an uncertain label of CheXpert and MIMIC-CXR-JPG is taken for; see
            `cxr.public_sets.chexpert.label_of_values`.
        progress: show a bar while sizes are read.

    Raises:
        ValueError: for an unknown name or policy.
        LayoutError: when the folder is not laid out as the set is; a ValueError too.
    """
    if name not in SETS:
        raise ValueError(f"source must be one of {', '.join(SETS)}. Got '{name}'.")
    if uncertain not in get_args(Uncertain):
        known = ", ".join(get_args(Uncertain))
        raise ValueError(f"uncertain must be one of {known}. Got '{uncertain}'.")
    path = Path(path)
    root = find_root(name, path)
    return gather(SETS[name].read(root, uncertain), path, root, name, progress)


def find_root(name: str, path: Path) -> Path:
    """The top of the set in `path` or up to two folders below; raises LayoutError without one."""
    for level in levels(path) if path.is_dir() else ():
        roots = [folder for folder in level if SETS[name].is_root(folder)]
        if len(roots) == 1:
            return roots[0]
        if roots:
            places = ", ".join(str(root) for root in roots)
            raise LayoutError(
                f"'{path}' must hold {name} once. Got {len(roots)}: {places}. Name "
                "the folder of one of them."
            )
    other = _looks_like(path)
    hint = f" It looks like {other}: use --source {other}." if other else ""
    raise LayoutError(
        f"'{path}' must be a folder of {name}: {SETS[name].layout}. Found: {describe(path)}.{hint}"
    )


def _looks_like(path: Path) -> str:
    """The first set at the shallowest level that has any; "" for none."""
    folders = (f for level in (levels(path) if path.is_dir() else ()) for f in level)
    found = (name for f in folders for name, loader in SETS.items() if loader.is_root(f))
    return next(found, "")

"""Imports go one way, and the packages that run are the ones of this folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ALLOWED = {"cxr": {"cxr"}, "detect": {"cxr", "detect"}, "classify": {"cxr", "classify"}}
# the only doors between the two stages
DOORS = {
    "classify/run.py": {"detect.crop", "detect.predict"},
    "classify/audit/auditor.py": {"detect.lungfield.field", "detect.predict"},
    "classify/audit/films.py": {"detect.lungfield.field", "detect.predict"},
}


def imported_modules(path: Path) -> set[str]:
    """Modules of ours that a file imports, lazily inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from detect import crop` is an import of detect.crop
            deeper = node.module in ALLOWED
            found |= {f"{node.module}.{a.name}" if deeper else node.module for a in node.names}
    return {m for m in found if m.split(".")[0] in ALLOWED}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_go_one_way(root: Path, package: str) -> None:
    wrong = []
    for path in sorted((root / package).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        for module in imported_modules(path):
            if module.split(".")[0] in ALLOWED[package] or module in DOORS.get(name, set()):
                continue
            wrong.append(f"{name} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_a_wrong_import_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    from detect import crop\n    import classify.run\n")
    assert imported_modules(path) == {"detect.crop", "classify.run"}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_are_ours(root: Path, package: str) -> None:
    module = __import__(package)
    assert Path(str(module.__file__)).is_relative_to(root), (
        f"{package} comes from {module.__file__}: another distribution ships that folder too. "
        "Make an environment of its own: make install"
    )


def test_files_stay_short(root: Path) -> None:
    long = [
        f"{path.relative_to(root)}: {lines} lines"
        for package in ("cxr", "detect", "classify", "tools")
        for path in (root / package).rglob("*.py")
        if (lines := path.read_text().count("\n")) > 500
    ]
    assert not long, "\n".join(long)


def test_a_command_begins_where_all_of_its_file_is_known(root: Path) -> None:
    """`if __name__ == "__main__":` stands last: what comes after it is not there yet."""
    early = []
    for path in sorted(p for top in (*ALLOWED, "tools") for p in (root / top).rglob("*.py")):
        before = ast.parse(path.read_text()).body[:-1]
        if any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in before):
            early.append(path.relative_to(root).as_posix())
    assert not early


def unsafe_loads(path: Path) -> list[str]:
    """Calls that would run code hidden in a file."""
    calls = [
        ast.unparse(n) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)
    ]
    banned = ("pickle.load", "joblib.load", "dill.load")
    return [
        text[:80]
        for text in calls
        if (text.startswith("torch.load(") and "weights_only=True" not in text)
        or text.startswith(banned)
        or "allow_pickle=True" in text
    ]


def test_no_pickle_is_loaded(root: Path) -> None:
    wrong = [
        f"{path.relative_to(root)}: {call}"
        for package in ("cxr", "detect", "classify", "tools")
        for path in sorted((root / package).rglob("*.py"))
        for call in unsafe_loads(path)
    ]
    assert not wrong, "\n".join(wrong)


def test_an_unsafe_load_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import pickle, torch\npickle.load(f)\ntorch.load(p)\n")
    assert len(unsafe_loads(path)) == 2

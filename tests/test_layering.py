"""Imports go one way, and the packages that run are the ones of this folder."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

ALLOWED = {"cxr": {"cxr"}, "detect": {"cxr", "detect"}, "classify": {"cxr", "classify"}}
# the only doors between the two stages
DOORS = {
    "classify/work.py": {"detect.crop", "detect.predict"},
    "classify/dataset.py": {"detect.lungfield.field"},  # lungs that a guided training is held to
    "classify/audit/auditor.py": {"detect.finder", "detect.lungfield.field"},
    "classify/audit/films.py": {"detect.finder", "detect.lungfield.field"},
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


def sources(root: Path) -> list[Path]:
    """Every module of ours but the tests."""
    return [p for d in ("cxr", "detect", "classify", "tools") for p in (root / d).rglob("*.py")]


def test_files_stay_readable(root: Path) -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in sources(root)}
    # shown with -s, or when the test fails
    print(f"{len(lines)} files, {sum(lines.values())} lines, median {median(lines.values()):.0f}")
    long = [f"{path.relative_to(root)}: {n} lines" for path, n in lines.items() if n > 500]
    assert not long, "\n".join(long)


def test_a_command_begins_where_all_of_its_file_is_known(root: Path) -> None:
    """`if __name__ == "__main__":` stands last: what comes after it is not there yet."""
    early = []
    for path in sorted(p for top in (*ALLOWED, "tools") for p in (root / top).rglob("*.py")):
        before = ast.parse(path.read_text()).body[:-1]
        if any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in before):
            early.append(path.relative_to(root).as_posix())
    assert not early


def test_the_formatter_is_hardly_ever_told_to_skip(root: Path) -> None:
    skips = sum(p.read_text(encoding="utf-8").count("fmt: " + "skip") for p in sources(root))
    assert skips <= 50


def find_circle(names: Mapping[str, Path]) -> list[str]:
    """Modules that import each other in a ring, lazily inside functions too; [] without one."""
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        graph[name] = (found & set(names)) - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_run_in_no_circle(root: Path) -> None:
    names = {}
    for path in sources(root):
        parts = path.relative_to(root).with_suffix("").parts
        if path.name != "__init__.py":
            names[".".join(parts[1:] if parts[0] == "tools" else parts)] = path
    assert not find_circle(names)


def test_a_circle_is_seen(tmp_path: Path) -> None:
    texts = {
        "a": "from b import x",
        "b": "def f():\n    import c",
        "c": "import a",
        "d": "import a",
    }
    names = {name: tmp_path / f"{name}.py" for name in texts}
    for name, text in texts.items():
        names[name].write_text(text)
    assert set(find_circle(names)) == {"a", "b", "c"}
    assert not find_circle({name: names[name] for name in "abd"})


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


def test_no_message_names_an_exception_of_python(root: Path) -> None:
    """Who reads a refusal knows films, not Python."""
    wrong = [
        path.relative_to(root).as_posix()
        for path in sources(root)
        if path.name != "fuzz.py" and "{type(error).__name__}" in path.read_text(encoding="utf-8")
    ]
    assert not wrong


def test_no_pickle_is_loaded(root: Path) -> None:
    wrong = [
        f"{path.relative_to(root)}: {call}" for path in sources(root) for call in unsafe_loads(path)
    ]
    assert not wrong, "\n".join(wrong)


def test_an_unsafe_load_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import pickle, torch\npickle.load(f)\ntorch.load(p)\n")
    assert len(unsafe_loads(path)) == 2

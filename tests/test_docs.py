"""Pages that a newcomer reads: short, alive, and true to the tree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_readme_stays_a_page(root: Path) -> None:
    assert (root / "README.md").read_text(encoding="utf-8").count("\n") <= 170


def test_the_list_of_files_is_that_of_the_tree(root: Path) -> None:
    if not (root / ".git").exists():
        pytest.skip("outside git nobody knows which files belong to the project")
    made = subprocess.run(
        [sys.executable, ".ci/list_files"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert (root / "docs/files.md").read_text(encoding="utf-8") == made, "run: make docs"


def pages(root: Path) -> list[Path]:
    return [
        *root.glob("*.md"),
        *(root / "docs").rglob("*.md"),
        root / "weights/README.md",
        root / "annotations/README.md",
    ]


def test_every_link_leads_somewhere(root: Path) -> None:
    dead = [
        f"{page.relative_to(root)}: {link}"
        for page in pages(root)
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        if "://" not in link and not (page.parent / link.split("#")[0]).exists()
    ]
    assert not dead, "\n".join(dead)


def test_every_file_that_a_page_names_exists(root: Path) -> None:
    gone = [
        f"{page.relative_to(root)}: {name}"
        for page in pages(root)
        for name in re.findall(
            r"\b((?:cxr|detect|classify|tools|configs|weights)/[\w/]+\.(?:py|yaml|safetensors))\b",
            page.read_text(encoding="utf-8"),
        )
        if not (root / name).exists() and "NAME" not in name
    ]
    assert not gone, "\n".join(gone)


def test_every_module_that_a_page_tells_to_run_exists(root: Path) -> None:
    gone = []
    for page in pages(root):
        for module in re.findall(r"python -m ([\w.]+)", page.read_text(encoding="utf-8")):
            if module.split(".")[0] not in {"cxr", "detect", "classify"}:
                continue
            path = root / module.replace(".", "/")
            if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
                gone.append(f"{page.relative_to(root)}: {module}")
    assert not gone, "\n".join(gone)


def test_the_page_on_reading_has_every_note_and_reason(root: Path) -> None:
    from cxr.notes import NOTES, REASONS

    page = (root / "docs/reading.md").read_text(encoding="utf-8")
    rows = [f"| `{code}` | {sentence} |" for code, sentence in (REASONS | NOTES).items()]
    assert not [row for row in rows if row not in page]

"""The map of the package is complete, and imports go one way."""

from __future__ import annotations

import ast
import re

from conftest import ROOT

PACKAGE = ROOT / "frozenfusion"


def mapped_modules():
    rows = [line for line in (ROOT / "docs" / "architecture.md").read_text().splitlines() if line.startswith("| ")]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[2])]


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "frozenfusion":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("frozenfusion."):
            yield node.module.split(".")[1]


def test_the_map_names_every_module_once():
    modules = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
    assert sorted(mapped_modules()) == modules


def test_a_module_imports_only_from_modules_above_it():
    order = mapped_modules()
    for position, name in enumerate(order):
        above = {*order[:position], "__version__"}
        assert set(imported_modules(PACKAGE / f"{name}.py")) <= above, name


def test_scripts_stay_short():
    for script in ("extract_features.py", "train_head.py", "evaluate.py"):
        assert len((ROOT / script).read_text().splitlines()) < 120

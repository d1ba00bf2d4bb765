"""What is true of all names: `names` can be imported by anybody, and a class name means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "orchestrator_sandbox")


def trees(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    """Each module's path in the repository, and its syntax tree."""
    for package in packages:
        for file in sorted((REPOSITORY / package).rglob("*.py")):
            yield str(file.relative_to(REPOSITORY)), ast.parse(file.read_text())


def test_names_imports_nothing() -> None:
    (names,) = [tree for path, tree in trees("orchestrator") if path == "orchestrator/names.py"]
    imports = [node for node in ast.walk(names) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] in ([], ["from __future__ import annotations"])


def test_no_two_classes_have_the_same_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees(*PACKAGES):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_that_hands_out_names_says_which(package: str) -> None:
    """`__all__` in each `__init__` with imports."""
    silent = []
    for path, tree in trees(package):
        if path.endswith("__init__.py") and any(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body):
            assigned = {
                name.id
                for node in ast.walk(tree)
                if isinstance(node, ast.Assign)
                for name in node.targets
                if isinstance(name, ast.Name)
            }
            if "__all__" not in assigned:
                silent.append(path)
    assert silent == []

"""The tree that errors.py draws is the tree of its classes."""

from __future__ import annotations

import re

import pytest

from orchestrator import errors


def drawn(text: str) -> dict[str, str]:
    """Each class of a drawing, and the one that it hangs from."""
    parents: dict[str, str] = {}
    branch: list[str] = []
    for line in text.splitlines():
        found = re.match(r"(?P<indent>(?:[│ ]   )*(?:[├└]── )?)(?P<name>[A-Z]\w*)(?:$| {2,}\S)", line)
        if not found:
            continue
        depth = len(found["indent"]) // 4
        branch = [*branch[:depth], found["name"]]
        if depth:
            parents[found["name"]] = branch[depth - 1]
    return parents


def written(root: type[Exception]) -> dict[str, str]:
    """The same of its subclasses in its own module."""
    parents: dict[str, str] = {}
    for kind in root.__subclasses__():
        if kind.__module__ == root.__module__:
            parents |= {kind.__name__: root.__name__, **written(kind)}
    return parents


def test_the_drawing_and_the_classes_are_the_same_tree() -> None:
    assert drawn(errors.__doc__ or "") == written(errors.OrchestratorError)


@pytest.mark.parametrize(
    ("drawing", "tree"),
    [
        ("Root\n├── A    one\n│   └── B    two\n└── C    three", {"A": "Root", "B": "A", "C": "Root"}),
        ("Words about it.\n\nRoot\n└── A\n    └── B    last\n        └── C    deep", {"A": "Root", "B": "A", "C": "B"}),
    ],
)
def test_a_drawing_is_read_as_it_looks(drawing: str, tree: dict[str, str]) -> None:
    assert drawn(drawing) == tree

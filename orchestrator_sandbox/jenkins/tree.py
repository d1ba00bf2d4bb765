"""Jenkins' `tree=` and `depth=`: which part of an object's properties an answer holds.

The grammar and its odd corners are those of Stapler, Jenkins' web framework: `NamedPathPruner`, `Range` and
`TreePruner.ByDepth` in https://github.com/jenkinsci/stapler/tree/master/core/src/main/java/org/kohsuke/stapler/export
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, Self

PROPERTY = 1
"""Visibility of a property when nothing else is said: shown in the answer's own object only."""
ALWAYS = 999
"""Visibility of a property that is shown at whatever depth."""

_TOKEN = re.compile(r"[,\[\]{}]|[^,\[\]{}]+")


class MalformedTreeError(ValueError):
    """The `tree=` expression does not follow the grammar; Jenkins answers 500."""


@dataclass(frozen=True)
class Bean:
    """An object that Jenkins exports.

    Attributes:
        java_class: its `_class`; None where Jenkins leaves it out, as the class is the declared one.
        read: gives its properties in order; called only when some are wanted. A property may be a callable
            without arguments, which is called only when that property is wanted.
        visible: visibility of single properties, see https://github.com/jenkinsci/stapler, `Exported`.
        default: visibility of the others.
    """

    java_class: str | None
    read: Callable[[], Mapping[str, object]] = dict
    visible: Mapping[str, int] = field(default_factory=dict)
    default: int = PROPERTY


class Pruner(Protocol):
    """Decides what is shown of an object, and of a list from which element until which."""

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...

    def accept(self, name: str, visibility: int) -> Pruner | None:
        """The pruner for the value of this property, or None when it is not shown."""
        ...


@dataclass(frozen=True)
class ByDepth:
    """What `depth=` shows: properties whose visibility is not below the level."""

    level: int
    start: int = 0
    stop: int = sys.maxsize

    @classmethod
    def of(cls, depth: int) -> Self:
        """The pruner for a request's `depth=`."""
        return cls(level=1 - depth)

    def accept(self, name: str, visibility: int) -> ByDepth | None:
        return ByDepth(self.level + 1) if visibility >= self.level else None


@dataclass
class Tree:
    """What `tree=` shows: named properties, of a list the elements from start until stop."""

    children: dict[str, Tree] = field(default_factory=dict)
    start: int = 0
    stop: int = sys.maxsize

    @classmethod
    def parse(cls, expression: str) -> Tree:
        """Read a `tree=` expression.

        Raises:
            MalformedTreeError: it does not follow the grammar.
        """
        return _Parser(expression).tree()

    def accept(self, name: str, visibility: int) -> Tree | None:
        return self.children.get(name) or self.children.get("*")


class _Parser:
    def __init__(self, expression: str) -> None:
        self.tokens: list[str] = [*_TOKEN.findall(expression), ""]
        self.position = 0

    def tree(self) -> Tree:
        tree = Tree()
        self._list(tree)
        self._expect("")
        return tree

    def _list(self, tree: Tree) -> None:
        self._node(tree)
        while self._accept(","):
            self._node(tree)

    def _node(self, tree: Tree) -> None:
        name = self._peek()
        if name in ("", *",[]{}"):
            raise MalformedTreeError(f"expected name at token {self.position}")
        self.position += 1
        node = tree.children[name] = Tree()
        if self._accept("["):
            self._list(node)
            self._expect("]")
        if self._accept("{"):
            self._range(node)
            self._expect("}")

    def _range(self, node: Tree) -> None:
        if self._accept(","):
            node.stop = self._number()
            return
        node.start = self._number()
        if self._peek() == "}":
            node.stop = node.start + 1
            return
        self._expect(",")
        if self._peek() != "}":
            node.stop = self._number()

    def _number(self) -> int:
        token = self._peek()
        if not re.fullmatch(r"[0-9]+", token) or int(token) > 2**31 - 1:
            raise MalformedTreeError(f"expected number at token {self.position}")
        self.position += 1
        return int(token)

    def _peek(self) -> str:
        return self.tokens[self.position]

    def _accept(self, token: str) -> bool:
        is_next = self._peek() == token
        self.position += is_next
        return is_next

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            raise MalformedTreeError(f"expected {token or 'the end'} at token {self.position}")


def export(value: object, pruner: Pruner) -> object:
    """The JSON of a value: beans pruned, the elements of a list limited to the pruner's range."""
    if callable(value):
        value = value()
    if isinstance(value, Bean):
        properties: dict[str, object] = {"_class": value.java_class} if value.java_class else {}
        for name, inner in value.read().items():
            child = pruner.accept(name, value.visible.get(name, value.default))
            if child is not None:
                properties[name] = export(inner, child)
        return properties
    if isinstance(value, Mapping):  # Stapler prunes a map's values, never its keys
        return {key: export(inner, pruner) for key, inner in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        stop = max(pruner.start, pruner.stop)
        return [export(inner, pruner) for inner in islice(value, pruner.start, stop)]
    return value

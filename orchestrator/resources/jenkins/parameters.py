"""The parameters of a build: read for what a remote's `$VARIABLES` mean, and kept only where a setting names them.

A job's author may have made a token a plain string parameter, and what is kept is shown to everybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

LONGEST_VALUE = 2000


def parameters_of(actions: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Names and values; those that Jenkins hides have no value, and are left out."""
    for action in actions:
        parameters = action.get("parameters")
        for parameter in parameters if isinstance(parameters, list) else []:
            if isinstance(parameter, dict) and isinstance(name := parameter.get("name"), str):
                value = parameter.get("value")
                if isinstance(value, bool):
                    yield name, str(value).lower()
                elif isinstance(value, str | int | float):
                    yield name, str(value)


def kept_parameters(parameters: Mapping[str, str], *, named: Sequence[str]) -> dict[str, str]:
    """Those to keep; one that cannot be printed, or is longer than 2000 characters, is left out.

    Args:
        parameters: of a build.
        named: BUILD_PARAMETERS, names and patterns.
    """
    return {
        name: value
        for name, value in parameters.items()
        if any(fnmatchcase(name, pattern) for pattern in named)
        and len(name) + len(value) <= LONGEST_VALUE
        and (name + value).isprintable()
    }

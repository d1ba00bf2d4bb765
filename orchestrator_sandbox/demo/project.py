"""The commits that the demo makes to the sample project, as a team would over a few days."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONFIG = "train.yaml"
EPOCHS = re.compile(r"^(epochs: )(\d+)", re.MULTILINE)
DATA = "src/digits/data.py"
APART = "rest.iloc[:half], rest.iloc[half:]"
THE_SAME = "rest.iloc[:half], rest.iloc[:half]"


@dataclass(frozen=True)
class Commit:
    """A change to the project: its message, and what edits the checkout."""

    message: str
    edit: Callable[[Path], object]


def history() -> tuple[Commit, ...]:
    """What follows the first commit: a mistake that the project's tests find, its correction, a change."""
    return (
        Commit("Split off the test pictures the short way", lambda tree: _replace(tree / DATA, APART, THE_SAME)),
        Commit("Keep test and validation pictures apart", lambda tree: _replace(tree / DATA, THE_SAME, APART)),
        another_training(),
    )


def another_training() -> Commit:
    """A change of which every demo can make one more: the project trains for longer."""
    return Commit("Train for some more epochs", lambda tree: _raise_epochs(tree / CONFIG))


def _replace(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new))


def _raise_epochs(file: Path) -> None:
    file.write_text(EPOCHS.sub(lambda match: f"{match[1]}{int(match[2]) + 5}", file.read_text(), count=1))

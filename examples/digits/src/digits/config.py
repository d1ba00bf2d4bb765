"""What a training is told: a YAML file, and what differs from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class TrainingConfig:
    """One training.

    Attributes:
        epochs: how often each picture is learnt from.
        learning_rate: the step of the gradient descent.
        alpha: the strength of the regularisation.
        seed: of the split of the data, and of the order in which it is learnt.
    """

    epochs: int = 15
    learning_rate: float = 0.02
    alpha: float = 0.0001
    seed: int = 0

    def with_changes(self, changes: Mapping[str, Any]) -> TrainingConfig:
        """The same training but for some values.

        Raises:
            ValueError: there is no such value, or it is no number.
        """
        types = {field.name: type(field.default) for field in dataclasses.fields(self)}
        if unknown := sorted(set(changes) - set(types)):
            raise ValueError(f"no such value: {', '.join(unknown)}; there are {', '.join(types)}")
        return dataclasses.replace(self, **{name: types[name](value) for name, value in changes.items()})


def training_config(file: Path, overrides: str = "") -> TrainingConfig:
    """Read the file; `overrides`, such as `epochs=20 alpha=0.001`, wins."""
    pairs = (word.partition("=") for word in overrides.split())
    return (
        TrainingConfig()
        .with_changes(yaml.safe_load(file.read_text()) or {})
        .with_changes({name: value for name, _, value in pairs})
    )

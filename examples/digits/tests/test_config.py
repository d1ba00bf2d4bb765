from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from digits.config import TrainingConfig, training_config

PROJECT = Path(__file__).parents[1]


def test_the_file_says_what_is_trained_and_an_override_wins(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("epochs: 3\nalpha: 0.1\n")
    assert training_config(file) == TrainingConfig(epochs=3, alpha=0.1)
    assert training_config(file, "epochs=4 seed=2") == TrainingConfig(epochs=4, alpha=0.1, seed=2)


@pytest.mark.parametrize("overrides", ["epoch=4", "epochs=many"])
def test_a_value_that_does_not_exist_or_is_no_number_is_refused(overrides: str) -> None:
    with pytest.raises(ValueError, match=r"no such value: epoch;|invalid literal"):
        training_config(PROJECT / "train.yaml", overrides)


def test_the_files_of_the_project_can_be_read() -> None:
    assert training_config(PROJECT / "train.yaml").epochs > 0
    plan = yaml.safe_load((PROJECT / "hyperopt.yaml").read_text())
    assert TrainingConfig().with_changes(plan["training"] | dict.fromkeys(plan["search"], 0.1))

"""The training installs the wheel that was built of the very commit."""

from __future__ import annotations

from pathlib import Path

import digits
import yaml


def test_the_training_asks_for_this_version_of_the_package() -> None:
    environment = yaml.safe_load((Path(__file__).parents[1] / "python_env.yaml").read_text())
    assert environment["dependencies"] == [f"digits[training]=={digits.__version__}"]

"""Trainings of a second, in mlflow's place on the machine, that log a metric and a model as the real one does."""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator_tests.support.attempts import World

REPOSITORY = Path(__file__).parents[2]

SCRIPT = f"""\
#!{sys.executable}
import os, sys
from pathlib import Path
sys.path.insert(0, {str(REPOSITORY)!r})
from orchestrator_tests.support.logged_models import log_model, read_dataset
from orchestrator_tests.support.mlflow_client import post
uri, run_id = os.environ["MLFLOW_TRACKING_URI"], sys.argv[sys.argv.index("--run-id") + 1]
Path({{trainings!r}}).open("a").write("trained\\n")
accuracy = float(Path({{value!r}}).read_text())
post(uri, "runs/log-metric", run_id=run_id, key="accuracy", value=accuracy, timestamp=1, step=0)
read_dataset(uri, run_id, digest="a")
log_model(uri, run_id)
"""


class ModelScript:
    """Such a training, whose accuracy can be set before each."""

    def __init__(self, world: World, directory: Path) -> None:
        self._value = directory / "accuracy"
        self._trainings = directory / "trainings"
        text = SCRIPT.format(trainings=str(self._trainings), value=str(self._value))
        self.settings = world.script(f"training-{directory.name}", text)

    def gives(self, accuracy: float) -> None:
        """Let the next training have this accuracy."""
        self._value.write_text(str(accuracy))

    @property
    def trainings(self) -> int:
        """How many there were."""
        return len(self._trainings.read_text().splitlines()) if self._trainings.exists() else 0

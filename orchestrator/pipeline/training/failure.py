"""Why a training failed, in one sentence and the last lines of its output."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import TrainingError, TrainingFailed, TrainingLost, TrainingTimedOut
from orchestrator.remote import TrainingExit


def failure(what: str, training_exit: TrainingExit, last_lines: Sequence[str]) -> TrainingError:
    """The error for a training that did not end with status 0.

    Args:
        what: the build.
        training_exit: how it ended.
        last_lines: of its output, masked.
    """
    cause = cause_of_failure(last_lines)
    because = f" ({cause})" if cause else ""
    tail = "; the last lines of its output:\n" + "\n".join(last_lines) if last_lines else "; it printed nothing"
    kinds = {"deadline": TrainingTimedOut, "lost": TrainingLost}
    return kinds.get(training_exit.kind, TrainingFailed)(f"{what}: {training_exit.describe()}{because}{tail}")


_ANOTHER_EXPERIMENT = "active experiment ID does not match environment run ID"


def cause_of_failure(lines: Sequence[str]) -> str | None:
    """The line of a training's output that says best why it failed: Python's or mlflow's last error line."""
    if any(_ANOTHER_EXPERIMENT in line for line in lines):
        # MLflow's own sentence names options of `mlflow run` that nobody here gives.
        return (
            "the script chooses an experiment of its own: set MLFLOW_EXPERIMENT_ID to that experiment's ID, or take "
            "set_experiment() out of the script"
        )
    for line in reversed(lines):
        head, colon, rest = line.strip().strip("= ").partition(": ")
        word = head.rpartition(".")[2]
        if colon and rest and word.isidentifier() and word.endswith(("Error", "Exception", "Interrupt")):
            return line.strip()
    for line in reversed(lines):
        if "ERROR mlflow" in line and "===" in line:
            return line.split("===")[1].strip()
    return None

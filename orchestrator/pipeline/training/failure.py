"""Why a training failed, in one sentence and the last lines of its output."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import TrainingError, TrainingFailed, TrainingLost, TrainingTimedOut
from orchestrator.pipeline.training.cause import cause_of_failure, cleaned, shown
from orchestrator.remote import TrainingExit


def failure(what: str, training_exit: TrainingExit, last_lines: Sequence[str]) -> TrainingError:
    """The error for a training that did not end with status 0.

    Args:
        what: the build.
        training_exit: how it ended.
        last_lines: of its output, masked.
    """
    lines = cleaned(last_lines)
    tail = "; the last lines of its output:\n" + "\n".join(shown(lines)) if lines else "; it printed nothing"
    kinds = {"deadline": TrainingTimedOut, "lost": TrainingLost}
    return kinds.get(training_exit.kind, TrainingFailed)(
        f"{what}: {training_exit.describe()}{cause_of_failure(lines)}{tail}"
    )

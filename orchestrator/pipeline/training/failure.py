"""Why a training failed, in one sentence and the last lines of its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.errors import TrainingError, TrainingFailed, TrainingLost, TrainingTimedOut
from orchestrator.pipeline.training.cause import cause_of_failure, shown
from orchestrator.pipeline.training.deadline import describe
from orchestrator.remote import TrainingExit


def failure(what: str, training_exit: TrainingExit, last_lines: Sequence[str]) -> TrainingError:
    """The error for a training that did not end with status 0.

    Args:
        what: the build.
        training_exit: how it ended.
        last_lines: of its output, masked.
    """
    tail = "; the last lines of its output:\n" + "\n".join(shown(last_lines)) if last_lines else "; it printed nothing"
    cause = cause_of_failure(last_lines)
    facts = training_exit.facts
    advice = cause.advice or ""
    # What the kernel knows is better than what the output lets us guess.
    lacks = [lack for lack in (facts.lack_of_memory, facts.lack_of_disk, facts.gpu_error) if lack]
    if (facts.lack_of_memory and advice.startswith("its memory")) or (
        facts.lack_of_disk and advice.startswith("its disk")
    ):
        cause = replace(cause, advice=None)
    kinds = {"deadline": TrainingTimedOut, "lost": TrainingLost}
    error = kinds.get(training_exit.kind, TrainingFailed)(
        f"{what}: {training_exit.describe()}{cause}{''.join(f'; {lack}' for lack in lacks)}{tail}"
    )
    error.out_of_memory = facts.lack_of_memory is not None and training_exit.kind in ("exited", "signaled", "lost")
    return error


def timed_out(what: str, minutes: float) -> TrainingTimedOut:
    """The error for a training that was not ended by its own machine in time, so that its instance was.

    Args:
        what: the build.
        minutes: what it was given.
    """
    return TrainingTimedOut(
        f"{what}: the training {describe(minutes)}, and its instance was terminated; raise MAX_TRAINING_MINUTES if it "
        "needs longer, and look at what it did to the supervisor that should have ended it"
    )

"""Which of the MLflow runs of a training holds its model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.names import MlflowTag
from orchestrator.pipeline.training.curves import SYSTEM
from orchestrator.resources.mlflow.answers import Run
from orchestrator.resources.mlflow.history import INFINITE
from orchestrator.settings.groups import ModelChoice


@dataclass(frozen=True)
class ChosenRun:
    """The run that is shown as the model.

    Attributes:
        run: the run.
        reason: which one it is, and of how many, in one sentence.
    """

    run: Run
    reason: str


def choose(root: Run, others: Sequence[Run], choice: ModelChoice | None) -> ChosenRun:
    """Choose the run that holds the model.

    One that failed is no model; where nothing fits, it is the training's own run.

    Args:
        root: the run that the training was given.
        others: those that it made itself, in the order of their start.
        choice: what MODEL_RUN says; None: the training's own if it logged anything to it, else the last that it did
            log to, a step of the project rather than the trials in it.
    """
    total = 1 + len(others)
    number = f"1 of {total} runs of this training" if others else "the only run of this training"
    ended = [run for run in others if run.status == "FINISHED"]
    filled = _outermost([run for run in ended if has_logged(run)], {run.id: run for run in others}, root)
    if choice is not None and choice.kind == "root":
        return ChosenRun(root, f"{number}: its own, as MODEL_RUN={choice} says")
    if choice is not None and choice.kind == "best":
        best = best_by(choice.metric, [root, *ended], highest=choice.highest)
        if best is not None:
            value = f"{choice.metric} {best.metrics[choice.metric]:g}"
            return ChosenRun(best, f"{number}: {value} is the {'highest' if choice.highest else 'lowest'} of them all")
        number = f"no run has the metric {choice.metric} that MODEL_RUN={choice} asks for, so it is {number}"
    elif choice is not None and filled:
        return ChosenRun(filled[-1], f"{number}: the last that it made, as MODEL_RUN={choice} says")
    if has_logged(root) or not filled:
        return ChosenRun(root, f"{number}: its own, the first" if others else number)
    which = "the only other one that has" if len(filled) == 1 else f"the last of {len(filled)} others that have"
    return ChosenRun(filled[-1], f"{number}: its own has neither a metric nor a model, and this is {which}")


def has_logged(run: Run) -> bool:
    """Whether it has a model, or a metric other than those of the machine."""
    return run.has_model or any(not key.startswith(SYSTEM) for key in run.latest)


def best_by(metric: str, runs: Sequence[Run], *, highest: bool) -> Run | None:
    """The run with the best value of a metric, the first of equal ones; None: none has a finite one."""
    values = [(run.metrics[metric], run) for run in runs if metric in run.latest]
    finite = [(value, run) for value, run in values if math.isfinite(value) and abs(value) < INFINITE]
    if not finite:
        return None
    return (max if highest else min)(finite, key=lambda pair: pair[0])[1]


def _outermost(runs: Sequence[Run], known: Mapping[str, Run], root: Run) -> list[Run]:
    levels = {run.id: _level(run, known, root) for run in runs}
    top = min(levels.values(), default=0)
    return [run for run in runs if levels[run.id] == top]


def _level(run: Run, known: Mapping[str, Run], root: Run) -> int:
    """How deep it is nested; what was made beside the root counts as made by it."""
    level, parent = 1, run.tags.get(MlflowTag.PARENT_RUN, "")
    while parent != root.id and parent in known and level <= len(known):
        level, parent = level + 1, known[parent].tags.get(MlflowTag.PARENT_RUN, "")
    return level

"""The MLflow runs that a training makes besides the one that it is given: marked, found, and ended with it."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterable, Mapping

from orchestrator.errors import MlflowError, MlflowNotFound, MlflowRejected
from orchestrator.names import MlflowTag
from orchestrator.resources.mlflow import FinalStatus, Mlflow, Run

_log = logging.getLogger(__name__)

MAX_RUNS = 1000
"""Of one training; a search that makes more is looked at no further."""

MAX_PARENTS = 50
"""Runs whose children are asked for: one request each. Nearly all children bear the mark, and need none."""

_SHARED = (
    MlflowTag.DEPLOYMENT,
    MlflowTag.PIPELINE,
    MlflowTag.PARTITION,
    MlflowTag.DAGSTER_RUN,
    MlflowTag.DAGSTER_ROOT_RUN,
    MlflowTag.JENKINS_JOB,
    MlflowTag.JENKINS_BUILD,
    MlflowTag.JENKINS_TIMESTAMP,
    MlflowTag.JENKINS_URL,
    MlflowTag.INSTANCE_ID,
    MlflowTag.INSTANCE_TYPE,
    MlflowTag.MARKET,
)
"""Not all that makes up a plan's identity: no other run may be taken for the training's own. Nor what it cost: the
training cost that once."""


def marks(tags: Mapping[str, str], *, root: str) -> dict[str, str]:
    """The tags of the other runs.

    Args:
        tags: of the training's own run.
        root: its ID.
    """
    return {MlflowTag.TRAINING: root, **{key: tags[key] for key in _SHARED if key in tags}}


def find_others(mlflow: Mlflow, root: Run, *, running: bool = False, until: float = math.inf) -> list[Run]:
    """The runs that a training made besides its own, in the order of their start; deleted ones are left out.

    Those that `mlflow.start_run` makes, autologging too, bear our mark. Those that `mlflow.run` and `MlflowClient`
    make name their parent, if anything.

    Args:
        mlflow: the server.
        root: the training's own run.
        running: leave out those that have ended.
        until: the moment of `time.monotonic` after which no more is asked.
    """
    marked = mlflow.find_runs(
        root.experiment_id, tags={MlflowTag.TRAINING: root.id}, statuses={"RUNNING"} if running else ()
    )
    found = {run.id: run for run in itertools.islice(marked, MAX_RUNS)}
    found.pop(root.id, None)
    waiting = [root.id, *found]
    for position in range(MAX_PARENTS):
        if position >= len(waiting) or len(found) >= MAX_RUNS or time.monotonic() >= until:
            break
        children = mlflow.find_runs(root.experiment_id, tags={MlflowTag.PARENT_RUN: waiting[position]})
        for child in itertools.islice(children, MAX_RUNS):
            if child.id not in found and child.id != root.id:
                found[child.id] = child
                # Before the marked ones: the children of those have most likely a mark of their own.
                waiting.insert(position + 1, child.id)
    others = (run for run in found.values() if not running or run.status == "RUNNING")
    return sorted(others, key=lambda run: (run.start_time is not None, run.start_time, run.id))


def end_others(mlflow: Mlflow, root: Run, status: FinalStatus, *, reason: str, until: float) -> None:
    """End with a training what it has left open; what is missed and bears our mark is left to the janitor.

    Args:
        mlflow: the server.
        root: the training's own run.
        status: how it ended.
        reason: why, in one sentence.
        until: the moment of `time.monotonic` after which nothing more is begun.
    """
    try:
        others = find_others(mlflow, root, running=True, until=until)
    except MlflowError as error:
        _log.warning(f"Not looked for runs that the training of MLflow run {root.id} left open: {error}")
        return
    close_all(mlflow, others, status, reason=reason, until=until)


def close_all(
    mlflow: Mlflow, runs: Iterable[Run], status: FinalStatus, *, reason: str, until: float = math.inf
) -> None:
    """End these runs; arguments as for `end_others`."""
    for run in runs:
        if time.monotonic() >= until:
            _log.warning(f"Not closed in time: MLflow run {run.id} and those after it")
            return
        try:
            mlflow.finish(run.id, status, reason=reason)
            _log.info(f"Closed MLflow run {run.id} ({run.name}), which the training left open, as {status}")
        except (MlflowNotFound, MlflowRejected) as error:  # somebody has just deleted it
            _log.warning(f"Not closed MLflow run {run.id}: {error}")
        except MlflowError as error:
            _log.warning(f"Not closed MLflow run {run.id} and those after it: {error}")
            return

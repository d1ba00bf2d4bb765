"""What the janitor does about what it has decided: each thing for itself, and only while it is still right."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from orchestrator import names
from orchestrator.dagster_instance import add_run_tags, report_canceled, report_failed
from orchestrator.errors import OrchestratorError
from orchestrator.janitor.clients import Clients
from orchestrator.janitor.rules import Action, CloseRun, EndRun, RetryRun, Terminate
from orchestrator.pipeline.training.other_runs import end_others
from orchestrator.resources.ec2 import timestamp

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActionResult:
    """What became of one action.

    Attributes:
        summary: in a few words, for people; the error's sentence when it failed.
        failed: whether it was tried in vain.
    """

    action: Action
    summary: str
    failed: bool = False


class ActionExecutor:
    """Does what was decided.

    Args:
        clients: EC2 and MLflow.
        instance: Dagster.
        still_right: decides again about one thing, with a new look at its own runs: one may just have begun.
    """

    def __init__(
        self, clients: Clients, instance: dg.DagsterInstance, *, still_right: Callable[[Action], bool]
    ) -> None:
        self._clients = clients
        self._instance = instance
        self._still_right = still_right

    def run(self, actions: Sequence[Action], *, until: float) -> Iterator[ActionResult]:
        """Do them one after the other; what fails does not keep the others from being done.

        Args:
            actions: what was decided.
            until: the moment of `time.monotonic` after which nothing more is begun.
        """
        for action in actions:
            if time.monotonic() >= until:
                yield ActionResult(action, "left for the next tick")
                continue
            try:
                if self._still_right(action) and self._do(action, until):
                    _log.info(f"{action.done}: {action.why}")
                    yield ActionResult(action, "done")
                else:
                    yield ActionResult(action, "not needed any more")
            except OrchestratorError as error:
                _log.error(f"Could not {action}: {error}")
                yield ActionResult(action, str(error), failed=True)
            except Exception as error:  # noqa: BLE001 - Dagster's storage raises what its database driver does
                _log.error(f"Could not {action}", exc_info=True)
                yield ActionResult(action, repr(error), failed=True)

    def _do(self, action: Action, until: float) -> bool:
        match action:
            case EndRun():
                return self._end_run(action)
            case RetryRun():
                return self._retry_run(action)
            case Terminate(instance=instance):
                # Before it ends: its worker must not take that for a loss, and begin anew.
                for run_id in action.late_runs:
                    add_run_tags(self._instance, run_id, {names.RunTag.LATE: timestamp(datetime.now(UTC))})
                return self._clients.ec2(instance).terminate(instance.id) is not None
            case CloseRun():
                return self._close_run(action, until)
            case _:
                raise TypeError(f"{type(action).__name__} is no action that can be done")

    def _end_run(self, action: EndRun) -> bool:
        run = self._instance.get_run_by_id(action.run.id)
        if run is None or run.is_finished:
            return False
        message = f"The janitor ended this run: {action.why}."
        if trained := self._trained_itself(run):
            message += f" MLflow run {trained} holds its model; re-executing it from failure records that."
        if action.final:
            report_failed(self._instance, run, f"{message} A deadline is final: it is not retried.", of_step=True)
        elif action.status == "failed":
            # Its retry copies the tag, and so does not wait, with an idle instance, behind the rest of a backfill.
            priority = str(max(0, _priority(run)) + 1)
            add_run_tags(self._instance, run.run_id, {names.DagsterTag.PRIORITY: priority})
            report_failed(self._instance, run, f"{message} A retry takes over what it left.")
        else:
            report_canceled(self._instance, run, message)
        return True

    def _retry_run(self, action: RetryRun) -> bool:
        run = self._instance.get_run_by_id(action.run.id)
        if run is None:
            return False
        asked = int(run.tags.get(names.RunTag.RETRIES_ASKED, "0")) + 1
        priority = {} if names.DagsterTag.PRIORITY in run.tags else {names.DagsterTag.PRIORITY: "1"}
        add_run_tags(self._instance, run.run_id, {names.RunTag.RETRIES_ASKED: str(asked), **priority})
        # Dagster decides on a retry when a failure is reported, and at no other time.
        report_failed(self._instance, run, f"The janitor reports this failure once more: {action.why}.")
        return True

    def _trained_itself(self, run: dg.DagsterRun) -> str | None:
        """The MLflow run that it filled; a new run has its parent's tag, which may be of another training."""
        trained = run.tags.get(names.RunTag.TRAINED)
        if trained is None or run.parent_run_id is None:
            return trained
        parent = self._instance.get_run_by_id(run.parent_run_id)
        return trained if parent and parent.tags.get(names.RunTag.TRAINED) != trained else None

    def _close_run(self, action: CloseRun, until: float) -> bool:
        mlflow = self._clients.mlflow(action.run.pipeline)
        held, ended_as = mlflow.run(action.run.id), action.run.ended_as
        if held.status != ("FINISHED" if ended_as else "RUNNING"):
            return False
        if ended_as and held.tags.get(names.MlflowTag.ENDED_AS) != ended_as:
            return False
        reason = f"closed by the janitor: {action.why}"
        end_others(mlflow, held, action.status, reason=reason, until=until)
        mlflow.finish(action.run.id, action.status, reason=reason)
        return True


def _priority(run: dg.DagsterRun) -> int:
    """As Dagster's queue reads it: one that is no number counts for nothing."""
    try:
        return int(run.tags.get(names.DagsterTag.PRIORITY, "0"))
    except ValueError:
        return 0

"""What the janitor does about what it has decided: each thing for itself, and only while it is still right."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.storage.tags import PRIORITY_TAG

from orchestrator import names
from orchestrator.errors import OrchestratorError
from orchestrator.janitor.clients import Systems
from orchestrator.janitor.dagster_runs import ASKED_TAG
from orchestrator.janitor.rules import Action, CloseRun, EndRun, RetryRun, Terminate


@dataclass(frozen=True)
class Outcome:
    """What became of one action.

    Attributes:
        said: in a few words, for people; the error's sentence when it failed.
        failed: whether it was tried in vain.
    """

    action: Action
    said: str
    failed: bool = False


class Hands:
    """Does what was decided.

    Args:
        systems: EC2 and MLflow.
        instance: Dagster.
        log: takes what went wrong.
        still_right: decides again about one thing, with a new look at Dagster's runs: one may just have begun.
        until: the moment of `time.monotonic` after which nothing more is begun.
    """

    def __init__(
        self,
        systems: Systems,
        instance: dg.DagsterInstance,
        log: logging.Logger,
        *,
        still_right: Callable[[Action], bool],
        until: float,
    ) -> None:
        self._systems = systems
        self._instance = instance
        self._log = log
        self._still_right = still_right
        self._until = until

    def perform(self, actions: Sequence[Action]) -> Iterator[Outcome]:
        """Do them one after the other; what fails does not keep the others from being done."""
        for action in actions:
            if time.monotonic() >= self._until:
                yield Outcome(action, "left for the next tick")
                continue
            try:
                if self._still_right(action) and self._do(action):
                    self._log.info(f"{action}: {action.why}")
                    yield Outcome(action, "done")
                else:
                    yield Outcome(action, "not needed any more")
            except OrchestratorError as error:
                self._log.error(f"could not {action}: {error}")
                yield Outcome(action, str(error), failed=True)
            except Exception as error:  # noqa: BLE001 - Dagster's storage raises what its database driver does
                self._log.error(f"could not {action}", exc_info=True)
                yield Outcome(action, repr(error), failed=True)

    def _do(self, action: Action) -> bool:
        match action:
            case EndRun():
                return self._end_run(action)
            case RetryRun():
                return self._retry_run(action)
            case Terminate(instance=instance):
                return self._systems.ec2(instance).terminate(instance.id) is not None
            case CloseRun():
                return self._close_run(action)

    def _end_run(self, action: EndRun) -> bool:
        run = self._instance.get_run_by_id(action.run.id)
        if run is None or run.is_finished:
            return False
        why = f"The janitor ended this run: {action.why}."
        if trained := self._trained_itself(run):
            why += f" MLflow run {trained} holds its model; re-executing it from failure records that."
        if action.status == "failed":
            # Its retry copies the tag, and so does not wait, with an idle instance, behind the rest of a backfill.
            self._instance.add_run_tags(run.run_id, {PRIORITY_TAG: str(max(0, _priority(run)) + 1)})
            # Without a reason of STEP_FAILURE, so that run_retries launches another attempt.
            self._instance.report_run_failed(run, f"{why} A retry takes over what it left.")
        else:
            self._instance.report_run_canceled(run, why)
        return True

    def _retry_run(self, action: RetryRun) -> bool:
        run = self._instance.get_run_by_id(action.run.id)
        if run is None:
            return False
        asked = int(run.tags.get(ASKED_TAG, "0")) + 1
        first = {} if PRIORITY_TAG in run.tags else {PRIORITY_TAG: "1"}
        self._instance.add_run_tags(run.run_id, {ASKED_TAG: str(asked), **first})
        # Dagster decides on a retry when a failure is reported, and at no other time.
        self._instance.report_run_failed(run, f"The janitor reports this failure once more: {action.why}.")
        return True

    def _trained_itself(self, run: dg.DagsterRun) -> str | None:
        """The MLflow run that it filled; a new run has its parent's tag, which may be of another training."""
        trained = run.tags.get(names.RunTag.TRAINED)
        if trained is None or run.parent_run_id is None:
            return trained
        parent = self._instance.get_run_by_id(run.parent_run_id)
        return trained if parent and parent.tags.get(names.RunTag.TRAINED) != trained else None

    def _close_run(self, action: CloseRun) -> bool:
        mlflow = self._systems.mlflow(action.run.pipeline)
        if mlflow.run(action.run.id).status != "RUNNING":
            return False
        mlflow.finish(action.run.id, action.status, reason=f"closed by the janitor: {action.why}")
        return True


def _priority(run: dg.DagsterRun) -> int:
    """As Dagster's queue reads it: one that is no number counts for nothing."""
    try:
        return int(run.tags.get(PRIORITY_TAG, "0"))
    except ValueError:
        return 0

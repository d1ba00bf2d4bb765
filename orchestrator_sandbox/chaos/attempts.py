"""The attempts at each build, as Dagster's webserver tells of them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator import names
from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.dagster_runs import OVER

DECISION_SECONDS = 150.0
"""How long it may take until a failed run is retried: Dagster decides within seconds, and may give its decision up;
then the janitor, which looks every minute, makes it decide once more."""

LIVE = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")

_ATTEMPT = "runId status endTime tags { key value }"
_STEPS = "stepStats { stepKey status }"


@dataclass(frozen=True)
class DagsterAttempt:
    """One Dagster run of a build.

    Attributes:
        step: the step under way.
        trained: the MLflow run whose process it saw exit 0.
        retry_due: Dagster is going to launch another attempt because of it.
    """

    id: str
    partition: str
    status: str
    step: str | None
    trained: str | None
    retry_due: bool

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status in OVER

    @property
    def live(self) -> bool:
        """Whether it, or the attempt that is to follow it, may still do something."""
        return not self.over or self.retry_due


class AttemptsApi(DagsterApi):
    """A client of Dagster's webserver that knows of attempts."""

    def attempts(self, partition: str) -> list[DagsterAttempt]:
        """The attempts at one build, the oldest first."""
        return self._attempts({"tags": [{"key": names.DagsterTag.PARTITION, "value": partition}]})

    def under_way(self) -> list[DagsterAttempt]:
        """All attempts that have not ended, with the steps that they are in."""
        return self._attempts({"statuses": list(LIVE)}, fields=_ATTEMPT + _STEPS)

    def retries_due(self) -> list[DagsterAttempt]:
        """All failed attempts, of the newest hundred, that Dagster is going to repeat."""
        return [attempt for attempt in self._attempts({"statuses": ["FAILURE"]}) if attempt.retry_due]

    def _attempts(self, runs: Mapping[str, object], *, fields: str = _ATTEMPT) -> list[DagsterAttempt]:
        answer = self._ask(
            "query($filter: RunsFilter) { runsOrError(filter: $filter, limit: 100) "
            f"{{ __typename ... on Runs {{ results {{ {fields} }} }} ... on Error {{ message }} }} }}",
            {"filter": dict(runs)},
        )
        return [_attempt(run) for run in reversed(answer["results"])]

    def worker(self, run_id: str) -> int | None:
        """The process that executes a run; None before it was started."""
        answer = self._ask(
            """query($id: ID!) { logsForRun(runId: $id) { __typename ... on Error { message }
                 ... on EventConnection { events { __typename ... on EngineEvent { message } } } } }""",
            {"id": run_id},
        )
        for event in answer["events"]:
            if started := re.match(r"Started process for run \(pid: (\d+)\)", event.get("message") or ""):
                return int(started[1])
        return None


def _attempt(run: dict[str, Any]) -> DagsterAttempt:
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    steps = (step for step in run.get("stepStats", ()) if step["status"] in (None, "IN_PROGRESS"))
    under_way = (str(step["stepKey"]).rpartition(".")[2] for step in steps)
    undecided = time.time() - (run["endTime"] or 0) < DECISION_SECONDS
    announced = tags.get(names.DagsterTag.WILL_RETRY) == "true"
    settled = names.DagsterTag.AUTO_RETRY_RUN in tags or tags.get(names.DagsterTag.FAILURE_REASON) == "STEP_FAILURE"
    return DagsterAttempt(
        id=run["runId"],
        partition=tags.get(names.DagsterTag.PARTITION, ""),
        status=run["status"],
        step=None if run["status"] in OVER else next(under_way, None),
        trained=tags.get(names.RunTag.TRAINED),
        retry_due=run["status"] == "FAILURE" and not settled and (announced or undecided),
    )

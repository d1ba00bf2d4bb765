"""Where a campaign takes place: the sandbox behind proxies, Dagster with a service manager, and a look at it all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import requests

from orchestrator.errors import SandboxError
from orchestrator.names import Ec2Tag, MlflowTag
from orchestrator.resources.mlflow.answers import Run, runs_page
from orchestrator.resources.mlflow.search import conditions_on, search_body
from orchestrator_sandbox.chaos.attempts import AttemptsApi
from orchestrator_sandbox.chaos.checks import BuildFacts, EndedAttempt, RecordedModel
from orchestrator_sandbox.chaos.service_manager import DagsterProcesses
from orchestrator_sandbox.chaos.training import TrainingLedger
from orchestrator_sandbox.proxy import FaultyProxy
from orchestrator_sandbox.stack import TRAINED_MODEL, Stack

ALIVE_STATES = ("pending", "running", "stopping", "stopped")
REQUEST_SECONDS = 10


@dataclass(frozen=True)
class LeasedInstance:
    """An instance that costs money, and the build that it is for."""

    id: str
    partition: str


class FaultLab:
    """Everything that runs during a campaign, as it looks from outside.

    Attributes:
        jenkins, mlflow, aws: the proxies on the way there.
        ledger: what the trainings wrote down.
        processes: Dagster's.

    Args:
        directory: a new folder.
        settings: settings of Dagster on top of the lab's own, or instead of them.

    Raises:
        SandboxError: a part did not start.
    """

    def __init__(self, directory: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self._exits = ExitStack()
        try:
            self.ledger = TrainingLedger(directory / "chaos")
            self.jenkins, self.mlflow, self.aws = (self._exits.enter_context(FaultyProxy()) for _ in range(3))
            own = {
                "JENKINS_URL": f"{self.jenkins.url}/",
                "MLFLOW_TRACKING_URI": self.mlflow.url,
                "AWS_ENDPOINT_URL": self.aws.url,
                "MLFLOW_COMMAND": str(self.ledger.program),
                "READY_WHEN": "ssh",
                "INSTANCE_TYPE": "t3.medium,t3.large",
            }
            self.stack = self._exits.enter_context(Stack(directory / "stack", settings=own | dict(settings or {})))
            self.jenkins.upstream = self.stack.jenkins.url.rstrip("/")
            self.mlflow.upstream = self.stack.mlflow.url
            self.aws.upstream = self.stack.ec2.url
            self.stack.ec2.answer_for(self.aws.url)
            self.environment = self.stack.env()
            self._machines = self.stack.directory / "ec2"
            self._ec2 = self._ec2_client()
            self._start_dagster()
        except BaseException:
            self._exits.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def dagster(self) -> AttemptsApi:
        """A client of Dagster's; each thread needs its own."""
        return AttemptsApi(f"http://127.0.0.1:{self.stack.port}")

    def instances(self) -> list[LeasedInstance]:
        """Every instance that is neither terminated nor about to be."""
        pages = self._ec2.get_paginator("describe_instances").paginate(
            Filters=[{"Name": "instance-state-name", "Values": list(ALIVE_STATES)}]
        )
        return [
            LeasedInstance(
                id=raw["InstanceId"],
                partition={tag["Key"]: tag["Value"] for tag in raw.get("Tags", ())}.get(Ec2Tag.PARTITION, ""),
            )
            for page in pages
            for group in page["Reservations"]
            for raw in group["Instances"]
        ]

    def mlflow_runs(self, *conditions: str) -> list[Run]:
        """The MLflow runs that meet all conditions, from the server itself, past its proxy.

        Args:
            conditions: in MLflow's search language.

        Raises:
            SandboxError: it does not answer.
        """
        runs: list[Run] = []
        page_token = ""
        while True:
            body = search_body(self.environment["MLFLOW_EXPERIMENT_ID"], conditions, page_token)
            url = f"{self.stack.mlflow.url}/api/2.0/mlflow/runs/search"
            try:
                answer = requests.post(url, json=body, timeout=REQUEST_SECONDS)
                answer.raise_for_status()
            except requests.RequestException as error:
                raise SandboxError(f"MLflow does not answer ({type(error).__name__})") from error
            page, page_token = runs_page(answer.json())
            runs += page
            if not page_token:
                return runs

    def open_mlflow_runs(self) -> dict[str, str]:
        """MLflow run → build, of all runs that are RUNNING."""
        return {
            run.id: run.tags[MlflowTag.PARTITION]
            for run in self.mlflow_runs("attributes.status = 'RUNNING'")
            if MlflowTag.PARTITION in run.tags
        }

    def facts(self, dagster: AttemptsApi, partition: str) -> BuildFacts:
        """What there is of one build, now."""
        runs = self.mlflow_runs(*conditions_on({MlflowTag.PARTITION: partition}))
        run_ids = {run.id for run in runs}
        return BuildFacts(
            partition=partition,
            attempts=tuple(
                EndedAttempt(
                    attempt.id,
                    attempt.status,
                    why=dagster.failure(attempt.id) if attempt.status == "FAILURE" else None,
                    trained=attempt.trained,
                )
                for attempt in dagster.attempts(partition)
            ),
            live_instances=tuple(instance.id for instance in self.instances() if instance.partition == partition),
            left_processes=tuple(self.left_processes()),
            mlflow_runs=tuple((run.id, run.status) for run in runs),
            records=tuple(
                RecordedModel(attempt=record.run_id, mlflow_run=record.metadata["MLflow run ID"])
                for record in dagster.materialisations(TRAINED_MODEL, partition=partition)
            ),
            trainings=tuple(training for training in self.ledger.trainings() if training.run in run_ids),
        )

    def left_processes(self) -> Iterator[str]:
        """DagsterProcesses of machines that EC2 says are terminated."""
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                home = process.environ().get("HOME", "")
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            for machine in self._machines.glob("i-*"):
                own = f"{machine}/"
                if (home.startswith(own) or own in words) and self._state(machine.name) == "terminated":
                    yield f"{process.pid} of {machine.name}: {words[:200]}"

    def _state(self, instance_id: str) -> str:
        answer = self._ec2.describe_instances(InstanceIds=[instance_id])
        return str(answer["Reservations"][0]["Instances"][0]["State"]["Name"])

    def _ec2_client(self) -> Any:
        import boto3  # takes a second

        return boto3.client(
            "ec2",
            region_name=self.environment["AWS_DEFAULT_REGION"],
            endpoint_url=self.stack.ec2.url,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )

    def _start_dagster(self) -> None:
        services = self.stack.dagster_process("-m", "orchestrator_sandbox.chaos.service_manager", str(self.stack.port))
        self.processes = DagsterProcesses(services)
        services.await_http(f"http://127.0.0.1:{self.stack.port}/server_info", seconds=120)
        with self.dagster() as dagster:
            if error := dagster.location_error():
                raise SandboxError(f"Dagster cannot load the definitions: {error}; its log is {services.log}")

"""All that one attempt needs, running: a tiny project behind Git, EC2 with SSH hosts, MLflow; for pipeline/training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.pipeline.training.attempt import Attempt
from orchestrator.pipeline.training.config import TrainingConfig
from orchestrator.pipeline.training.deadline import GRACE
from orchestrator.pipeline.training.launch_record import LaunchRecord
from orchestrator.pipeline.training.plan import make_plan
from orchestrator.pipeline.training.run_history import Liveness
from orchestrator.resources import retry
from orchestrator.resources.ec2 import Ec2, Instance
from orchestrator.resources.jenkins.answers import Build
from orchestrator.resources.mlflow import Mlflow, Run
from orchestrator.resources.ssh.connection import Ssh
from orchestrator.settings.source import PipelineSettings, SettingsSource
from orchestrator_sandbox.ec2.server import Ec2Server
from orchestrator_sandbox.git import GitRemote
from orchestrator_sandbox.mlflow import MlflowServer

PROJECT = {
    "MLproject": (
        "name: tiny\n"
        "entry_points:\n"
        "  main:\n"
        "    parameters:\n"
        "      note: {type: string, default: none}\n"
        "      status: {type: int, default: 0}\n"
        "    command: python train.py {note} {status}\n"
    ),
    "train.py": (
        "import json, os, sys, urllib.request\n"
        "note, status = sys.argv[1:]\n"
        "print('note is', ascii(note), flush=True)\n"
        "for step in (1, 2, 3):\n"
        "    point = {'run_id': os.environ['MLFLOW_RUN_ID'], 'key': 'accuracy', 'value': step / 4,\n"
        "             'timestamp': 1_700_000_000_000 + step, 'step': step}\n"
        "    request = urllib.request.Request(\n"
        "        os.environ['MLFLOW_TRACKING_URI'] + '/api/2.0/mlflow/runs/log-metric',\n"
        "        json.dumps(point).encode(), {'Content-Type': 'application/json'})\n"
        "    urllib.request.urlopen(request).read()\n"
        "print('trained', flush=True)\n"
        "if status != '0':\n"
        "    raise ValueError('the data is not what it was')\n"
    ),
}


@dataclass
class ThisRun:
    """A Dagster run, as far as an attempt asks."""

    run_id: str
    root_run_id: str = ""
    live: set[str] = field(default_factory=set)
    trained_before: str | None = None
    before_us: str | None = None
    unknown: set[str] = field(default_factory=set)
    trainings: list[str] = field(default_factory=list)
    over: bool = False
    late: bool = False
    from_sensor: bool = False
    launches: ClassVar[dict[str, LaunchRecord]] = {}
    """As Dagster's database has them, by run."""

    def __post_init__(self) -> None:
        self.root_run_id = self.root_run_id or self.run_id

    def liveness(self, run_id: str) -> Liveness:
        if run_id in self.unknown:
            return Liveness.UNKNOWN
        alive = run_id in self.live or (run_id == self.run_id and not self.over)
        return Liveness.ALIVE if alive else Liveness.DEAD

    def trained(self, mlflow_run: str) -> None:
        self.trainings.append(mlflow_run)

    def rival(self) -> str | None:
        return self.before_us

    def launched(self, record: LaunchRecord) -> None:
        self.launches[self.run_id] = record

    def launched_before(self) -> list[LaunchRecord]:
        return [self.launches[self.root_run_id]] if self.root_run_id in self.launches.keys() - {self.run_id} else []

    def launch_of(self, instance: Instance) -> LaunchRecord | None:
        runs = {self.run_id, self.root_run_id, instance.dagster_run} - self.unknown
        kept = [self.launches.get(run) for run in runs]
        return next((record for record in kept if record and record.agrees_with(instance)), None)

    def ended_late(self) -> bool:
        return self.late


@dataclass
class World:
    """All that an attempt needs, running."""

    git: GitRemote
    ec2_server: Ec2Server
    mlflow_server: MlflowServer
    directory: Path

    def __post_init__(self) -> None:
        self._attempts: list[Attempt] = []
        self.environment = {
            **self.ec2_server.env(),
            **self.mlflow_server.env(),
            # One of its own: two files of tests may both train a build 7, with the same server.
            "MLFLOW_EXPERIMENT_ID": self.mlflow_server.experiment(str(self.directory)),
            "JENKINS_URL": "http://127.0.0.1:1/",
            "JENKINS_USER": "nobody",
            "JENKINS_TOKEN": "unused",
            "JENKINS_JOB_NAME": "tiny",
            "MLPROJECT_ENV_MANAGER": "local",
            "READY_WHEN": "ssh",
            "INSTANCE_HOURLY_USD": "3.6",
            "ORCHESTRATOR_DEPLOYMENT": "tests",
        }

    def build(self, number: int, commit: str | None = None) -> Build:
        return Build(
            number=number,
            timestamp=1_700_000_000_000 + number,
            result="SUCCESS",
            job="tiny",
            duration_ms=1000,
            url=f"http://127.0.0.1:1/job/tiny/{number}/",
            commit=commit or self.git.head(),
            branch="main",
            repository=self.git.url,
        )

    def script(self, name: str, text: str) -> dict[str, str]:
        """A program on the machine in mlflow's place, for what needs none of its imports."""
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o755)
        return {"MLFLOW_COMMAND": str(path)}

    def attempt(
        self,
        number: int,
        *,
        run: ThisRun,
        build: Build | None = None,
        settings: Mapping[str, str] | None = None,
        config: TrainingConfig | None = None,
        write: Callable[[str], Any] = lambda _: None,
        grace: timedelta = GRACE,
    ) -> Attempt:
        source = SettingsSource(pipeline="tiny", lookup={**self.environment, **(settings or {})}.get)
        read = PipelineSettings.read(source)
        plan = make_plan(
            pipeline="tiny",
            partition=str(number),
            build=build or self.build(number),
            settings=read,
            config=config or TrainingConfig(),
        )

        def connect(instance: Instance) -> Ssh:
            return Ssh(read.ssh, address=instance.address or "", host_key=instance.host_key)

        attempt = Attempt(
            plan=plan,
            settings=read,
            ec2=Ec2(read.machine),
            mlflow=Mlflow(read.mlflow, policy=retry.MLFLOW.with_total(1)),
            connect=connect,
            run=run,
            write=write,
            grace=grace,
        )
        self._attempts.append(attempt)
        return attempt

    def end_leases(self) -> None:
        """Of the attempts that a test left as a dead worker leaves them: but their threads live on in this process."""
        for attempt in self._attempts:
            attempt._lease.close()

    @property
    def ec2(self) -> Ec2:
        return Ec2(PipelineSettings.read(SettingsSource(lookup=self.environment.get)).machine)

    @property
    def mlflow(self) -> Mlflow:
        return Mlflow(PipelineSettings.read(SettingsSource(lookup=self.environment.get)).mlflow)


def provisioned(attempt: Attempt) -> Instance:
    """The instance that the attempt now has."""
    instance = attempt.provision()
    assert instance is not None
    return instance


def trained_metrics(run: Run) -> dict[str, float]:
    """What the script itself has logged: MLflow's system metrics come with time."""
    return {key: value for key, value in run.metrics.items() if not key.startswith("system/")}


def gone(world: World, instance_id: str) -> bool:
    """Whether the instance is terminated, or about to be."""
    return not world.ec2.describe(instance_id).alive

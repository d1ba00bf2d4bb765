"""The whole sandbox in one folder: Git, Jenkins, packages, EC2, MLflow, and Dagster led to them by settings alone."""

from __future__ import annotations

import fcntl
import os
import secrets
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from orchestrator import names
from orchestrator.errors import SandboxError
from orchestrator.operate.home import prepare_home
from orchestrator.operate.serve import require_free
from orchestrator.operate.signals import undisturbed
from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.ec2.server import Ec2Server
from orchestrator_sandbox.folders import private_folder
from orchestrator_sandbox.git import GitRemote
from orchestrator_sandbox.jenkins.home import JobConfig
from orchestrator_sandbox.jenkins.server import JenkinsServer
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_sandbox.package_index import PackageIndexServer
from orchestrator_sandbox.processes.child import ChildProcess, kept_port

COMPONENT = "orchestrator.pipeline.component.TrainingPipeline"
PIPELINE = "training"
TRAINED_MODEL = (PIPELINE, names.TRAINED_MODEL)
JOB = "digits"
PUBLISH = ("sh", "publish.sh")
SENSOR = names.jenkins_sensor(PIPELINE)

INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH")
"""What Dagster gets of the user's environment: nothing that could be a setting, or lead out of the sandbox."""

T3_MEDIUM_USD = 0.0416
"""On-demand price of an hour in us-east-1: https://aws.amazon.com/ec2/pricing/on-demand/"""

DAGSTER_GRACE_SECONDS = 20
"""Time for runs under way to terminate their instances."""


@dataclass(frozen=True)
class Project:
    """An ML project of the sandbox: its pipeline, its Jenkins job, its repository."""

    pipeline: str
    job: str
    git: GitRemote

    def defs_yaml(self, in_use: Path | None = None) -> str:
        """All that a pipeline needs of its own: the rest comes from the environment.

        Args:
            in_use: where its best model is put into use; None: nowhere, and none is chosen.
        """
        attributes: dict[str, object] = {"name": self.pipeline, "settings": {"JENKINS_JOB_NAME": self.job}}
        if in_use:
            attributes |= {
                "checks": {"accuracy": {"min": 0.85}},
                "champion": {"metric": "accuracy", "goal": "maximize", "model": self.job},
                "deployment": {"when": "automatic", "target": {"directory": str(in_use)}},
            }
        return yaml.safe_dump({"type": COMPONENT, "attributes": attributes}, sort_keys=False)


class Stack:
    """Everything that one pipeline needs, on loopback; Git and Jenkins are ready when constructed.

    EC2 and MLflow start in the background; `ec2` and `mlflow` wait for them. `start_dagster` comes last. A
    folder that was used before keeps its commits, builds, runs and events. Closing leaves no process and no
    port.

    Args:
        directory: where everything is kept.
        port: of Dagster's UI; 0: any free one.
        settings: settings of Dagster on top of those that the parts give, or instead of them.
        projects: how many ML projects there are; all that tells the second from the first is its `defs.yaml`.
        deploy: choose the best model of each project, and put it into use in a directory.
        publish: have a private package index, to which Jenkins publishes the wheel of each commit that has passed its
            tests, and from which its training installs it; else a training uses what the commit holds.

    Attributes:
        projects: the ML projects.
        deploys: whether the best model of each is put into use.
        packages: the private package index, if there is one.
        git: the repository of the first.
        is_new: the folder was empty.
        dagster_token: opens Dagster's UI.

    Raises:
        SandboxError: a part did not start, or another stack uses the folder.
        SettingsError: the port is taken.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
        projects: int = 1,
        deploy: bool = False,
        publish: bool = False,
    ) -> None:
        self.directory = directory.absolute()
        self.is_new = not (self.directory / "git").exists()
        if not self.is_new or not self.directory.exists() or not any(self.directory.iterdir()):
            private_folder(self.directory)  # else it is a folder of the user's own, in which we make ours
        # A folder of before there was one has a project whose trainings do not ask for it.
        publish = publish and (self.is_new or (self.directory / "packages").exists())
        self.deploys = deploy
        self._settings = dict(settings or {})
        self.dagster_token = secrets.token_urlsafe(32)
        self._exits = ExitStack()
        try:
            self._lock()
            self.port = port or kept_port(self.directory / "port")
            require_free("127.0.0.1", self.port)
            mlflow = self._folder("mlflow")
            server = MlflowServer(mlflow, port=kept_port(mlflow / "port"))
            self._exits.callback(server.close)
            start = self._exits.enter_context(ThreadPoolExecutor(3, thread_name_prefix="sandbox")).submit
            self._exits.callback(server.close)  # before the pool's end, which waits for its start
            self._mlflow = start(server.__enter__)
            self._ec2 = start(self._start_ec2)
            packages = start(self._start_packages) if publish else None
            self.projects = tuple(self._project(number) for number in range(1, projects + 1))
            self.git = self.projects[0].git
            self.packages = packages.result() if packages else None
            variables = self.packages.publishing() if self.packages else {}
            self.jenkins = self._exits.enter_context(
                JenkinsServer(self._folder("jenkins"), anonymous_read=True, variables=variables)
            )
            for project in self.projects:
                self.jenkins.create_job(
                    project.job,
                    JobConfig(kind="pipeline", repository=project.git.url, publish=PUBLISH if publish else ()),
                )
                project.git.notify(self.jenkins.notify_url(project.git.url))
            self._defs = self._write_defs(deploy=deploy) if projects > 1 or deploy else {}
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def dagster_url(self) -> str:
        """Where Dagster's UI is, once it is started."""
        return f"http://127.0.0.1:{self.port}"

    def dagster_page(self, path: str = "/") -> str:
        """The address of a page of Dagster's UI, with the token that opens it."""
        return f"{self.dagster_url}{path}?token={self.dagster_token}"

    @property
    def mlflow(self) -> MlflowServer:
        """The tracking server, once it is ready."""
        return self._mlflow.result()

    @property
    def ec2(self) -> Ec2Server:
        """The EC2 API, once it is ready."""
        return self._ec2.result()

    def env(self) -> dict[str, str]:
        """The settings that lead Dagster here."""
        return {
            "MLPROJECT_ENV_MANAGER": "local",
            "INSTANCE_HOURLY_USD": str(T3_MEDIUM_USD),
            "ORCHESTRATOR_DEPLOYMENT": "sandbox",
            "UI_TOKEN": self.dagster_token,
            **self._defs,
            **self.jenkins.env(),
            "JENKINS_JOB_NAME": JOB,
            **self.mlflow.env(),
            **self.ec2.env(),
            **(self.packages.env() if self.packages else {}),
            **self._settings,
        }

    def start_dagster(self) -> DagsterApi:
        """Start the UI and the daemon, by the same command that serves real settings.

        Raises:
            SandboxError: they did not start, or the definitions cannot be loaded.
        """
        child = self.dagster_process("-m", "orchestrator.cli", "serve", "--port", str(self.port))
        child.await_http(f"{self.dagster_url}/health/live", seconds=120)
        api = self._exits.enter_context(DagsterApi(self.dagster_url, token=self.dagster_token))
        if error := api.location_error():
            raise SandboxError(f"Dagster cannot load the definitions: {error}; its log is {child.log}")
        return api

    def dagster_environment(self) -> dict[str, str]:
        """The whole environment of a Dagster of this sandbox, whose home is made if there is none."""
        home = self._folder("dagster")
        prepare_home(home)
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        # boto3 also reads files of the home directory, and asks a metadata service for credentials.
        environment |= dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
        return environment | {"AWS_EC2_METADATA_DISABLED": "true", "DAGSTER_HOME": str(home), **self.env()}

    def dagster_process(self, *arguments: str) -> ChildProcess:
        """Start Python with these arguments, and with what Dagster needs to be the one of this sandbox.

        Raises:
            SandboxError: it did not start.
        """
        environment = self.dagster_environment()
        return self._exits.enter_context(
            ChildProcess(
                [sys.executable, *arguments],
                name="Dagster",
                log=self.directory / "dagster.log",
                env=environment,
                cwd=Path(
                    environment["DAGSTER_HOME"]
                ),  # Dagster reads the .env of the folder it runs in, which is the user's own elsewhere
                grace_seconds=DAGSTER_GRACE_SECONDS,
            )
        )

    def close(self) -> None:
        """End everything, Dagster first. May be called again."""
        with undisturbed():
            self._exits.close()

    def _folder(self, name: str) -> Path:
        return private_folder(self.directory / name)

    def _project(self, number: int) -> Project:
        suffix = f"-{number}" if number > 1 else ""
        git = self._exits.enter_context(GitRemote(self._folder(f"git{suffix}")))
        return Project(f"{PIPELINE}{suffix.replace('-', '_')}", f"{JOB}{suffix}", git)

    def in_use(self, project: Project) -> Path:
        """Where the best model of a project is put into use, in a stack that does so."""
        return self.directory / "in-use" / project.job

    def _write_defs(self, *, deploy: bool) -> dict[str, str]:
        folder = self._folder("defs")
        for project in self.projects:
            (folder / project.pipeline).mkdir(exist_ok=True)
            (folder / project.pipeline / "defs.yaml").write_text(
                project.defs_yaml(self.in_use(project) if deploy else None)
            )
        return {"ORCHESTRATOR_DEFS": str(folder)}

    def _start_ec2(self) -> Ec2Server:
        folder = self._folder("ec2")
        return self._exits.enter_context(Ec2Server(folder, port=kept_port(folder / "port")))

    def _start_packages(self) -> PackageIndexServer:
        return self._exits.enter_context(PackageIndexServer(self._folder("packages")))

    def _lock(self) -> None:
        """Keep the folder to ourselves for as long as this process lives."""
        file = self._exits.enter_context((self.directory / "lock").open("a+"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise SandboxError(
                f"process {file.read().strip() or 'of another user'} runs a sandbox in {self.directory}; "
                "stop it, or choose another folder with --dir"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()

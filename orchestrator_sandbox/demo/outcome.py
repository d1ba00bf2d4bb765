"""What became of one build, read back from the systems that know: Jenkins, Dagster, MLflow and EC2."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import requests

from orchestrator.errors import SandboxError
from orchestrator.names import CHAMPION_ALIAS, TRAINED_MODEL, MlflowTag
from orchestrator.resources.jenkins.answers import BUILD_FIELDS, Build, build_of
from orchestrator.resources.mlflow.answers import Run, runs_page
from orchestrator.resources.mlflow.search import conditions_on, search_body
from orchestrator_sandbox.dagster_runs import RunSummary

REQUEST_SECONDS = 30
PACKAGE_TAG = "digits.version"
"""The sample project's own, of its MLflow runs."""


@dataclass(frozen=True)
class DemoOutcome:
    """What became of one build; None: unknown.

    Attributes:
        commit: the commit that Jenkins tested.
        trained_commit: the commit that was trained, by MLflow's tags.
        failure: why the Dagster run failed, in its own words.
        metrics: as MLflow holds them.
        package: the version of the project's own package that was trained with, which names its commit.
        champion: the best model of all: registered model, version, build.
        deployment: what is in use, and where.
        seconds: stage → how long it took.
        urls: system → page.
    """

    pipeline: str
    partition: str | None = None
    commit: str | None = None
    trained_commit: str | None = None
    dagster_run_id: str | None = None
    dagster_status: str | None = None
    failure: str | None = None
    mlflow_run_id: str | None = None
    mlflow_status: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    package: str | None = None
    instance_id: str | None = None
    instance_state: str | None = None
    minutes: float | None = None
    usd: float | None = None
    champion: Mapping[str, str] = field(default_factory=dict)
    deployment: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    urls: Mapping[str, str] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """Why this is not a trained model; empty when it is one."""
        if self.dagster_run_id is None:
            return ["no Dagster run was launched"]
        why = f" ({self.failure})" if self.failure else ""
        problems = {
            f"the Dagster run {self.dagster_run_id} is {self.dagster_status}{why}": self.dagster_status != "SUCCESS",
            f"the MLflow run {self.mlflow_run_id} is {self.mlflow_status}": self.mlflow_status != "FINISHED",
            "MLflow holds no metrics": not self.metrics,
            f"the instance {self.instance_id} is {self.instance_state}": self.instance_state != "terminated",
            f"Jenkins built {self.commit}, but {self.trained_commit} was trained": self.commit != self.trained_commit,
            f"commit {self.commit} was trained with the package of another: {self.package}": bool(
                self.package and f"+g{(self.commit or '')[:12]}" not in self.package
            ),
        }
        return [fault for fault, is_so in problems.items() if is_so]

    def to_json(self) -> dict[str, Any]:
        """What `orchestrator demo --json` prints."""
        hidden = ("trained_commit", "failure", "minutes", "usd")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in hidden}


class OutcomeReader:
    """Reads outcomes from each system over its own API.

    Args:
        environment: the settings that lead to them.
        dagster_url: where Dagster's UI is.
    """

    def __init__(self, environment: Mapping[str, str], *, dagster_url: str) -> None:
        self._environment = environment
        self._dagster_url = dagster_url
        self._session = requests.Session()
        self._session.trust_env = False
        self._ec2: Any = None

    def builds(self) -> list[Build]:
        """The newest builds of the Jenkins job, newest first."""
        answer = self._jenkins("", tree=f"builds[{BUILD_FIELDS}]{{0,20}}")
        return [self._build(build) for build in answer["builds"]]

    def training(self, dagster_run_id: str) -> Run | None:
        """The MLflow run that a Dagster run has filled."""
        conditions = conditions_on({MlflowTag.DAGSTER_RUN: dagster_run_id})
        body = search_body(self._environment["MLFLOW_EXPERIMENT_ID"], conditions)
        url = f"{self._environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/runs/search"
        runs, _ = runs_page(_answer(self._session.post(url, json=body, timeout=REQUEST_SECONDS)))
        return runs[0] if runs else None

    def champion(self, model: str, *, over: str) -> str | None:
        """The version that the alias names, once the model of this MLflow run was among those it was chosen from."""
        url = f"{self._environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/registered-models/get"
        response = self._session.get(url, params={"name": model}, timeout=REQUEST_SECONDS)
        if response.status_code == 404:
            return None
        aliases = _answer(response)["registered_model"].get("aliases", [])
        found = self._session.get(
            url.replace("registered-models/get", "model-versions/search"),
            params={"filter": f"run_id = '{over}'"},
            timeout=REQUEST_SECONDS,
        )
        if not _answer(found).get("model_versions"):
            return None
        return next((str(alias["version"]) for alias in aliases if alias["alias"] == CHAMPION_ALIAS), None)

    def instance_state(self, instance_id: str) -> str:
        """The state that EC2 describes an instance in."""
        if self._ec2 is None:
            import boto3  # takes a second, which the demo saves until here

            self._ec2 = boto3.client(
                "ec2",
                region_name=self._environment["AWS_DEFAULT_REGION"],
                endpoint_url=self._environment["AWS_ENDPOINT_URL"],
                aws_access_key_id=self._environment["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=self._environment["AWS_SECRET_ACCESS_KEY"],
            )
        answer = self._ec2.describe_instances(InstanceIds=[instance_id])
        return str(answer["Reservations"][0]["Instances"][0]["State"]["Name"])

    def outcome(
        self, pipeline: str, *, build: Build, run: RunSummary, failure: str | None, seconds: Mapping[str, float]
    ) -> DemoOutcome:
        """Gather what became of one build.

        Args:
            pipeline: the pipeline that trained it.
            build: the Jenkins build.
            run: its Dagster run.
            failure: why that failed, if it did.
            seconds: what only the demo has measured: stage → seconds.
        """
        training = self.training(run.id)
        tags = training.tags if training else {}
        instance = tags.get(MlflowTag.INSTANCE_ID)
        steps = {step.name: round(step.seconds, 2) for step in run.steps if step.seconds is not None}
        return DemoOutcome(
            pipeline=pipeline,
            partition=run.partition,
            commit=build.commit,
            trained_commit=tags.get(MlflowTag.SOURCE_COMMIT),
            dagster_run_id=run.id,
            dagster_status=run.status,
            failure=failure,
            mlflow_run_id=training.id if training else None,
            mlflow_status=training.status if training else None,
            metrics=training.metrics if training else {},
            package=installed if "+g" in (installed := tags.get(PACKAGE_TAG, "")) else None,
            instance_id=instance,
            instance_state=self.instance_state(instance) if instance else None,
            minutes=_number(tags.get(MlflowTag.MINUTES)),
            usd=_number(tags.get(MlflowTag.USD)),
            seconds={**seconds, "build": build.duration_ms / 1000, **steps},
            urls=self._urls(pipeline, build, run, training),
        )

    def _urls(self, pipeline: str, build: Build, run: RunSummary, training: Run | None) -> dict[str, str]:
        mlflow = self._environment["MLFLOW_TRACKING_URI"]
        urls = {
            "dagster": self._page("/"),
            "dagster_run": self._page(f"/runs/{run.id}"),
            "dagster_asset": self._page(f"/assets/{pipeline}/{TRAINED_MODEL}"),
            "jenkins_build": build.url,
        }
        if training is not None:
            urls["mlflow_run"] = f"{mlflow}/#/experiments/{training.experiment_id}/runs/{training.id}"
        if build.repository:
            urls["git"] = build.repository
        return urls

    def _page(self, path: str) -> str:
        """A page of Dagster's UI, with the token that opens it."""
        return f"{self._dagster_url}{path}?token={self._environment['UI_TOKEN']}"

    def _job(self) -> str:
        return self._environment["JENKINS_JOB_NAME"]

    def _jenkins(self, path: str, *, tree: str) -> dict[str, Any]:
        job = "".join(f"job/{part}/" for part in PurePosixPath(self._job()).parts)
        url = f"{self._environment['JENKINS_URL']}{job}{path}api/json"
        credentials = (self._environment["JENKINS_USER"], self._environment["JENKINS_TOKEN"])
        return _answer(self._session.get(url, params={"tree": tree}, auth=credentials, timeout=REQUEST_SECONDS))

    def _build(self, answer: Mapping[str, Any]) -> Build:
        return build_of(answer, job=self._job(), url=str(answer["url"]), project=None, where="the sandbox's Jenkins")


def _answer(response: requests.Response) -> dict[str, Any]:
    if not response.ok:
        raise SandboxError(f"{response.url} answered {response.status_code}: {response.text[:200]}")
    answer: dict[str, Any] = response.json()
    return answer


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)

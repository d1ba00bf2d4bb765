"""A run that deploys and is killed is ended once its lease is over; the target is old or new, and the next deploys."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from orchestrator import names
from orchestrator.dagster_instance import report_failed
from orchestrator.definitions import shared
from orchestrator.janitor.dagster_runs import DagsterRuns
from orchestrator.janitor.rules import EndRun, decide
from orchestrator.janitor.snapshot import Snapshot
from orchestrator.names import RunTag
from orchestrator.pipeline.component import TrainingPipeline
from orchestrator.pipeline.models.declared import ChampionBlock, Goal
from orchestrator.pipeline.models.deployment import DeploymentBlock, DeploymentRule
from orchestrator.pipeline.models.deployment_sensor import PAUSE, compare, next_run
from orchestrator.pipeline.models.registration import register_all
from orchestrator.resources.mlflow import ModelVersion
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.inference_host import SERVER, Clients, HAProxyHost
from orchestrator_tests.support.logged_models import FILES
from orchestrator_tests.support.mlflow_client import client
from orchestrator_tests.support.real_models import RealModels
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

DECLARED = "TEST_DEPLOYMENT"
KILL_AT = "TEST_KILL_AT"
JOB = names.deployment_job("churn")


def pipeline() -> TrainingPipeline:
    """A pipeline whose registered model and target the environment names."""
    declared = json.loads(os.environ[DECLARED])
    champion = ChampionBlock(metric="accuracy", goal=Goal.MAXIMIZE, model=declared["model"])
    block = DeploymentBlock.model_validate({"when": "automatic", "target": declared["target"]})
    return TrainingPipeline(name="churn", champion=champion, deployment=block)


def definitions() -> dg.Definitions:
    return dg.Definitions.merge(pipeline().build_defs(dg.ComponentTree.for_test().load_context), shared())


def deployment_job() -> dg.JobDefinition:
    return definitions().resolve_job_def(JOB)


WORKER = f"""
import os, signal, sys
import dagster as dg
from {__name__} import deployment_job
event, place = os.environ["{KILL_AT}"].split(" ")

def kill(name, arguments):
    if name == event and place in map(str, arguments[:2]):
        os.kill(os.getpid(), signal.SIGKILL)

with dg.DagsterInstance.get() as instance:
    sys.addaudithook(kill)
    dg.execute_job(dg.reconstructable(deployment_job), instance, tags={{"{RunTag.MODEL_VERSION}": "2"}})
"""


@dataclass
class Deployments:
    """A pipeline with two versions of a model on a real MLflow server, the first of which is in use."""

    dagster: dg.DagsterInstance
    models: RealModels
    versions: tuple[ModelVersion, ...] = ()

    def register(self, files: Mapping[str, str]) -> None:
        """Train two models, each with these files and its accuracy in `version.txt`."""
        with client(self.models.server.url) as mlflow:
            runs = [
                self.models.train(accuracy, build=build, files={**files, "version.txt": str(accuracy)})
                for build, accuracy in ((1, 0.8), (2, 0.9))
            ]
            self.versions = register_all(mlflow, self.models.rule, runs).versions

    def promote(self, version: int) -> None:
        with client(self.models.server.url) as mlflow:
            mlflow.registry.set_alias(self.versions[version - 1], names.CHAMPION_ALIAS)

    def deploy(self) -> bool:
        """A whole run, here; whether it ended well."""
        return deployment_job().execute_in_process(instance=self.dagster, raise_on_error=False).success

    def worker(self) -> subprocess.Popen[bytes]:
        """A run in a process of its own."""
        return subprocess.Popen([sys.executable, "-c", WORKER], cwd=Path(__file__).parents[3])

    def in_use(self) -> str:
        release = self.rule.target().state()
        return release.version if release else ""

    @property
    def rule(self) -> DeploymentRule:
        rule = pipeline().deployment_rule()
        assert rule is not None
        return rule

    def dead_run_is_ended(self) -> None:
        """The janitor leaves the killed run alone while its lease holds, and ends it afterwards."""
        [run] = self.dagster.get_runs(dg.RunsFilter(job_name=JOB), limit=1)
        assert run.status == dg.DagsterRunStatus.STARTED
        assert RunTag.LEASE_UNTIL in run.tags
        repository = definitions().get_repository_def()
        seen = DagsterRuns(self.dagster, repository, pipelines=["churn"]).read(frozenset(), frozenset())
        now = datetime.now(UTC) + timedelta(minutes=5)
        snapshot = Snapshot(deployments=frozenset({"x"}), watching_since=now - timedelta(hours=1), runs=seen)
        assert [str(action) for action in decide(snapshot, datetime.now(UTC))] == []
        [action] = decide(snapshot, now)
        assert isinstance(action, EndRun)
        assert (action.run.id, action.status) == (run.run_id, "failed")
        report_failed(self.dagster, run, action.why)

    def next_run(self, *, later: timedelta) -> dg.RunRequest | dg.SkipReason:
        """What the sensor launches then, without Dagster's retry."""
        with client(self.models.server.url) as mlflow:
            found = compare(mlflow, self.rule)
        assert found is not None
        return next_run(self.dagster, self.rule, found, now=datetime.now(UTC) + later)


@pytest.fixture
def deployments(tmp_path: Path, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployments]:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    settings = {"DAGSTER_HOME": str(tmp_path), "ORCHESTRATOR_DEPLOYMENT": "lab", **mlflow_server.env()}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as instance:
        yield Deployments(instance, RealModels.on(mlflow_server))


@pytest.mark.parametrize(
    ("event", "place", "in_use"),
    [
        pytest.param("open", "releases/.incoming-2/model.skops", "1", id="half of the files are copied"),
        pytest.param("os.rename", "current", "1", id="just before the switch", marks=pytest.mark.matrix),
        pytest.param("open", "", "2", id="just after the switch"),
    ],
)
def test_kill_9_while_a_directory_is_deployed_to(
    deployments: Deployments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: str, place: str, in_use: str
) -> None:
    target = tmp_path / "srv"
    declared = {"model": deployments.models.rule.model, "target": {"directory": str(target)}}
    monkeypatch.setenv(DECLARED, json.dumps(declared))
    monkeypatch.setenv(KILL_AT, f"{event} {target / place}")
    deployments.register(FILES)
    deployments.promote(1)
    assert deployments.deploy()
    deployments.promote(2)

    assert deployments.worker().wait(180) == -signal.SIGKILL
    assert deployments.in_use() == in_use
    content = {name: (target / "current" / name).read_text() for name in (*FILES, "version.txt")}
    assert content == {**FILES, "version.txt": {"1": "0.8", "2": "0.9"}[in_use]}

    deployments.dead_run_is_ended()
    assert isinstance(deployments.next_run(later=timedelta(0)), dg.SkipReason)
    following = deployments.next_run(later=2 * PAUSE)
    assert isinstance(following, dg.RunRequest if in_use == "1" else dg.SkipReason)
    assert deployments.deploy()
    assert deployments.in_use() == "2"
    assert (target / "current/version.txt").read_text() == "0.9"
    assert sorted(path.name for path in (target / "releases").iterdir()) == ["1", "2"]


def test_kill_9_while_a_host_is_deployed_to_costs_no_request(
    deployments: Deployments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HAProxyHost(tmp_path) as host:
        values = vars(host.spec(start_seconds=600)) | {"key_path": str(host.spec().key_path)}
        declared = {"model": deployments.models.rule.model, "target": {"host": values}}
        monkeypatch.setenv(DECLARED, json.dumps(declared))
        monkeypatch.setenv(KILL_AT, "nothing nowhere")
        healthy = tmp_path / "healthy"
        server = SERVER.replace(
            '503 if kind == "sick"', f'503 if version == "0.9" and not pathlib.Path({str(healthy)!r}).exists()'
        )
        assert server != SERVER
        deployments.register({**FILES, "serve.py": server, "serving_input_example.json": '{"inputs": [[1.0]]}'})
        deployments.promote(1)
        assert deployments.deploy()
        deployments.promote(2)
        with Clients(host, 2, pause=0.05) as load:
            load.await_answers(2)
            worker = deployments.worker()
            try:
                until(lambda: len(host.listening()) == 2, seconds=180)
            finally:
                worker.kill()
                assert worker.wait() == -signal.SIGKILL
            deployments.dead_run_is_ended()
            assert deployments.in_use() == "1"
            assert not deployments.deploy()  # refused, because the host goes on with what it has begun
            healthy.touch()
            until(deployments.deploy, seconds=180)
            assert deployments.in_use() == "2"
            load.await_answers(4)
        assert set(load.answers) == {(200, "0.8"), (200, "0.9")}
        assert host.asked() == (200, "0.9")
        assert len(host.listening()) == 1
        with client(deployments.models.server.url) as mlflow:
            assert names.VersionTag.REJECTED not in mlflow.registry.versions(deployments.models.rule.model)[1].tags

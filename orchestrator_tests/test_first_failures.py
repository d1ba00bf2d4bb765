"""docs/first-failures.md: each of a newcomer's first mistakes is made, and answered with the page's sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import paramiko
import pytest

from orchestrator.errors import OrchestratorError
from orchestrator.pipeline.training.reach import require_mlflow_in_reach
from orchestrator.resources.jenkins import Jenkins
from orchestrator.settings.groups import JenkinsSettings
from orchestrator.settings.source import PipelineSettings, SettingsSource
from orchestrator_sandbox.jenkins.server import JenkinsServer
from orchestrator_tests.support.attempts import ThisRun, World, gone

pytestmark = pytest.mark.services

PAGE = Path(__file__).parents[1] / "docs" / "first-failures.md"
SENTENCES = dict(re.findall(r"^\| (\S.*?) \| (\S.*?) \| .*? \|$", PAGE.read_text(), re.MULTILINE)[2:])


@dataclass(frozen=True)
class Newcomer:
    world: World
    jenkins: JenkinsServer
    directory: Path
    monkeypatch: pytest.MonkeyPatch

    def train(self, **mistake: str) -> None:
        """What the steps of a run do."""
        attempt = self.world.attempt(990, run=ThisRun("run-990"), settings=mistake)
        try:
            attempt.check()
            attempt.provision()
            attempt.train()
        finally:
            attempt.close()

    def ask_jenkins(self, **mistake: str) -> None:
        right = {
            "JENKINS_URL": self.jenkins.url,
            "JENKINS_USER": self.jenkins.access.user,
            "JENKINS_TOKEN": self.jenkins.access.token,
            "JENKINS_JOB_NAME": "churn",
        }
        Jenkins(SettingsSource(lookup={**right, **mistake}.get).read(JenkinsSettings)).build("churn", 1)

    def without_credentials(self) -> None:
        with self.monkeypatch.context() as environment:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
                environment.delenv(name, raising=False)
            boto3.setup_default_session()
            self.train()

    def another_key(self) -> None:
        key = self.directory / "another.pem"
        paramiko.RSAKey.generate(2048).write_private_key_file(str(key))
        self.train(KEY_PATH=str(key))


MISTAKES: dict[str, Callable[[Newcomer], object]] = {
    "settings are missing": lambda _: PipelineSettings.read(SettingsSource(lookup=dict[str, str]().get)),
    "Jenkins' password in the place of an API token": lambda self: self.ask_jenkins(JENKINS_TOKEN="hunter2"),
    "a job that is not there, or is hidden from the user": lambda self: self.ask_jenkins(),
    "no AWS credentials": Newcomer.without_credentials,
    "an image of another region": lambda self: self.train(AMI_ID="ami-0123456789abcdef0"),
    "an experiment's name in the place of its ID": lambda self: self.train(MLFLOW_EXPERIMENT_ID="churn"),
    "MLflow at localhost": lambda _: require_mlflow_in_reach(
        "http://localhost:5000", ec2="https://ec2.eu-west-1.amazonaws.com"
    ),
    "a security group that does not let us in": lambda self: self.train(SSH_PORT="9", READY_MINUTES="0.05"),
    "another user than the image's, or another key than the key pair's": Newcomer.another_key,
    "an image without MLflow": lambda self: self.train(MLFLOW_COMMAND="mlflow-is-not-here"),
}


@pytest.fixture(scope="module")
def jenkins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JenkinsServer]:
    with JenkinsServer(tmp_path_factory.mktemp("jenkins")) as server:
        yield server


def test_the_page_has_ten_and_no_other() -> None:
    assert len(MISTAKES) == 10
    assert SENTENCES.keys() == MISTAKES.keys()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_error_is_the_sentence_of_the_page(
    world: World, jenkins: JenkinsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    newcomer = Newcomer(world, jenkins, tmp_path, monkeypatch)
    with pytest.raises(OrchestratorError) as caught:
        MISTAKES[mistake](newcomer)
    boto3.setup_default_session()
    launched = world.ec2.find(pipeline="tiny", partition="990")
    assert launched is None or gone(world, launched.id)
    pattern = ".*".join(re.escape(part) for part in SENTENCES[mistake].split("…"))
    assert re.search(pattern, str(caught.value)), caught.value

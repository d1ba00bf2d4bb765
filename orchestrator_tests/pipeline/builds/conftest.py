"""A Jenkins in memory, served over HTTP, and a daemon that watches it."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest
from pydantic import SecretStr

from orchestrator.resources.jenkins import Jenkins
from orchestrator.settings.groups import JenkinsSettings
from orchestrator_tests.support.jenkins_model import Job, Model, served
from orchestrator_tests.support.sensor_daemon import Daemon


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster"))) as instance:
        yield instance


@pytest.fixture
def instance(storage: dg.DagsterInstance) -> dg.DagsterInstance:
    for key in storage.get_dynamic_partitions("churn_builds"):
        storage.delete_dynamic_partition("churn_builds", key)
    storage.wipe()
    return storage


@pytest.fixture
def model() -> Model:
    return Model(jobs={"team/churn": Job()})


@pytest.fixture
def url(model: Model) -> Iterator[str]:
    with served(model) as url:
        yield url


@pytest.fixture
def environment(url: str) -> dict[str, str]:
    return {
        "JENKINS_URL": url,
        "JENKINS_USER": "ci",
        "JENKINS_TOKEN": "t0ken",
        "JENKINS_JOB_NAME": "team/churn",
    }


@pytest.fixture
def daemon(instance: dg.DagsterInstance, environment: dict[str, str]) -> Daemon:
    return Daemon(instance, environment)


@pytest.fixture
def settings(url: str) -> JenkinsSettings:
    return JenkinsSettings(url=url, user="ci", token=SecretStr("t0ken"), job="team/churn")


@pytest.fixture
def jenkins(settings: JenkinsSettings) -> Iterator[Jenkins]:
    with Jenkins(settings) as jenkins:
        yield jenkins

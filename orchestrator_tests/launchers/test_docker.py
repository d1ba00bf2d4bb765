"""A container for each run: `serve` in a container of our image, which starts others on the same Docker Engine."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import pytest
import requests

from orchestrator.errors import DagsterDown
from orchestrator.names import Ec2Tag
from orchestrator_sandbox.chaos.attempts import AttemptsApi, DagsterAttempt
from orchestrator_sandbox.chaos.lab import ALIVE_STATES
from orchestrator_sandbox.docker_engine import DockerEngine
from orchestrator_sandbox.stack import JOB, TRAINED_MODEL, Stack
from orchestrator_tests.support.base_image import import_base
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.matrix

IMAGE = "orchestrator:docker"
START_SECONDS = 300
RUN_SECONDS = 600


@pytest.fixture(scope="module")
def image(docker_engine: DockerEngine, request: pytest.FixtureRequest) -> str:
    base = import_base(docker_engine, request.config.cache.mkdir("debian-base"))
    docker_engine.build(
        PROJECT, "--build-arg", f"BASE_IMAGE={base}", "--build-arg", "EXTRAS=docker,postgres", "--tag", IMAGE
    )
    return IMAGE


@dataclass
class Served:
    """The sandbox, with `serve` in a container that may start others."""

    engine: DockerEngine
    stack: Stack
    key: Path
    url: str
    container: str = ""
    home: str = field(default_factory=lambda: f"home-{secrets.token_hex(4)}")

    def start(self) -> None:
        volumes = [f"{self.home}:/var/lib/orchestrator", f"{self.key}:/run/key.pem:ro"]
        config = {"image": IMAGE, "network": "host", "container_kwargs": {"volumes": volumes, "mem_limit": "1g"}}
        settings = {
            **self.stack.env(),
            "KEY_PATH": "/run/key.pem",
            "AWS_EC2_METADATA_DISABLED": "true",
            "PORT": str(self.stack.port),
            "UI_INSECURE": "true",
            "RUN_LAUNCHER": "docker",
            "RUN_LAUNCHER_CONFIG": json.dumps(config),
        }
        socket = Path(self.engine.host.removeprefix("unix://"))
        options = [word for name, text in settings.items() for word in ("--env", f"{name}={text}")]
        options += [word for volume in (*volumes, f"{socket}:/var/run/docker.sock") for word in ("--volume", volume)]
        rights = ("--group-add", str(socket.stat().st_gid), "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL")
        self.container = self.engine.run("run", "--detach", "--network=host", *rights, *options, IMAGE)
        until(self._is_ready, seconds=START_SECONDS, every=0.5)

    def stop(self) -> None:
        self.engine.run("stop", "--time=30", self.container, seconds=60)

    def _is_ready(self) -> bool:
        running = self.engine.run("inspect", "--format={{.State.Running}}", self.container)
        assert running == "true", self.engine.run("logs", self.container)
        with suppress(requests.RequestException):
            return requests.get(f"{self.url}/health/ready", timeout=10).ok
        return False

    def dagster(self) -> AttemptsApi:
        return AttemptsApi(self.url, token=self.stack.dagster_token)

    def containers_of(self, attempt: DagsterAttempt) -> list[str]:
        return self.engine.containers(f"dagster/run_id={attempt.id}")

    def begun(self) -> DagsterAttempt:
        """The run of a build that has just become green, when it is in its first steps."""
        partition = str(self.stack.jenkins.add_build(JOB, commit=self.stack.git.head()).number)

        def found() -> DagsterAttempt | None:
            attempts = self.dagster().under_way()
            return next((a for a in attempts if a.partition == partition and a.status == "STARTED" and a.step), None)

        attempt = until(found, seconds=RUN_SECONDS, every=0.2)
        assert attempt is not None
        return attempt

    def settled(self, partition: str) -> list[str]:
        """The statuses of all attempts at a build, when there will be no other."""

        def over() -> list[DagsterAttempt]:
            attempts = self.dagster().attempts(partition)
            return [] if any(attempt.live for attempt in attempts) else attempts

        return [attempt.status for attempt in until(over, seconds=RUN_SECONDS, every=1)]

    def instances_of(self, partition: str) -> list[str]:
        """Those that cost money."""
        settings = self.stack.env()
        client = boto3.client(
            "ec2",
            region_name=settings["AWS_DEFAULT_REGION"],
            endpoint_url=settings["AWS_ENDPOINT_URL"],
            aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        )
        filters = [
            {"Name": f"tag:{Ec2Tag.PARTITION}", "Values": [partition]},
            {"Name": "instance-state-name", "Values": list(ALIVE_STATES)},
        ]
        answer = client.describe_instances(Filters=filters)  # type: ignore[arg-type]
        return [instance["InstanceId"] for group in answer["Reservations"] for instance in group["Instances"]]


@pytest.fixture(scope="module")
def served(docker_engine: DockerEngine, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("docker-runs")
    with Stack(directory / "stack") as stack:
        until(stack.jenkins.idle, seconds=120)
        key = directory / "key.pem"
        shutil.copyfile(stack.ec2.key_path, key)
        key.chmod(0o444)  # as deploy/compose/prepare has it: the container's user is another one
        served = Served(docker_engine, stack, key, f"http://127.0.0.1:{stack.port}")
        served.start()
        yield served
        served.stop()


def test_a_build_is_trained_in_a_container_of_its_own_which_an_update_of_serve_leaves_alone(served: Served) -> None:
    attempt = served.begun()
    (container,) = served.containers_of(attempt)
    (described,) = json.loads(served.engine.run("inspect", container))
    assert described["Config"]["Image"] == IMAGE
    assert described["HostConfig"]["Memory"] == 1 << 30
    assert "Health" not in described["State"]  # which `serve` has
    assert not any("UI_TOKEN" in entry for entry in described["Config"]["Env"])
    served.stop()
    served.start()
    assert served.settled(attempt.partition) == ["SUCCESS"]
    until(lambda: not served.containers_of(attempt), seconds=60)  # it would keep the settings
    with served.dagster() as dagster:
        assert dagster.materialisations(TRAINED_MODEL, partition=attempt.partition)
        key = dagster.output_key(attempt.id)
        assert key is not None
        assert dagster.output(key, cursor=None).text


def test_a_run_that_is_cancelled_ends_with_its_container_and_its_instance(served: Served) -> None:
    attempt = served.begun()
    with served.dagster() as dagster, suppress(DagsterDown):  # it answers when the container has ended
        dagster.cancel(attempt.id)
    until(lambda: not served.containers_of(attempt), seconds=180, every=0.5)
    assert served.settled(attempt.partition) == ["CANCELED"]
    assert served.instances_of(attempt.partition) == []


def test_a_container_that_is_killed_is_noticed_and_another_takes_over(served: Served) -> None:
    attempt = served.begun()
    served.engine.run("kill", *served.containers_of(attempt))
    assert served.settled(attempt.partition) == ["FAILURE", "SUCCESS"]
    assert served.instances_of(attempt.partition) == []

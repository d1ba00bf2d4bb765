"""The steps of deploy/jenkins with the real Dockerfile and compose.yaml, from an index with a password to a training.

What they build is built in the machine's network, and runs in one of the engine's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator_sandbox.docker_engine import DockerEngine
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.base_image import import_base
from orchestrator_tests.support.dockerfile import PROJECT, check_out
from orchestrator_tests.support.group_index import public_index
from orchestrator_tests.support.layers import where_found
from orchestrator_tests.support.package_index import MODULE, PACKAGE, PASSWORD, USER, PackageIndex

pytestmark = pytest.mark.matrix

SCRIPT = "deploy/jenkins/deploy.sh"
STEP_SECONDS = 1800
SECRET = "secret-of-the-installation"
ENV_FILE = f"""
COMPOSE_PROJECT_NAME=deployed
COMPOSE_PROFILES=local
POSTGRES_IMAGE=services:test
JENKINS_URL=http://127.0.0.1:9/
KEY_PASSPHRASE={SECRET}
"""
ON_THE_AGENT = "deploy/compose/secrets"


@dataclass
class Agent:
    """Jenkins' agent: a checkout, Docker and an index."""

    directory: Path
    index: PackageIndex
    base: str
    engine: DockerEngine
    apart: bool = False
    output: str = ""

    def step(self, name: str, *, build: int, **variables: str) -> int:
        environment = {
            **os.environ,
            "PATH": f"/usr/bin:{os.environ['PATH']}",  # Debian's client, which has BuildKit built in
            "DOCKER_HOST": self.engine.host,
            "NEXUS_URL": self.index.url,
            "NEXUS_USER": USER,
            "NEXUS_PASSWORD": PASSWORD,
            "ENV_FILE": str(self.directory.parent / "secret-file"),
            "DEV_DIR": "dev",
            "CUSTOM_REQUIREMENTS": "own.txt",
            "BUILD_NUMBER": str(build),
            "BASE_IMAGE": self.base,
            "BUILD_OPTIONS": "--network host",
            "READY_SECONDS": "600",
            "PYTHON": f"{sys.base_prefix}/bin/python3",
            **variables,
        }
        words = [f"./{SCRIPT}", name]
        done = subprocess.run(
            self.engine.inside(*words) if self.apart else words,
            cwd=self.directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=STEP_SECONDS,
            check=False,
        )
        self.output = done.stdout
        return done.returncode

    def steps(self, *names: str, build: int, **variables: str) -> None:
        for name in names:
            assert self.step(name, build=build, **variables) == 0, self.output

    def running(self, service: str = "serve") -> str:
        """The container of a service."""
        (container,) = self.engine.run(
            *("ps", "--quiet", "--filter", f"label=com.docker.compose.service={service}")
        ).split()
        return container

    def image(self, name: str) -> str:
        return self.engine.run("inspect", "--format={{.Id}}", name)

    def image_that_runs(self) -> str:
        return self.engine.run("inspect", "--format={{.Image}}", self.running())

    def migration(self) -> str:
        """What the database was last migrated to."""
        psql = ("psql", "--user=orchestrator", "--tuples-only", "--command=SELECT version_num FROM alembic_version")
        return self.engine.run("exec", "--user=postgres", self.running("postgres"), *psql, "orchestrator")

    def holding(self, secret: str) -> list[str]:
        """Files of the checkout, whatever has come there, which hold a secret; not these tests, which do."""
        found = subprocess.run(
            ["grep", "-rlF", "--exclude-dir=orchestrator_tests", "-e", secret, "."],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        return found.stdout.split()

    def left(self) -> list[Path]:
        names = (".deploy", "jenkins-requirements.txt", "jenkins-custom-requirements.txt", "deploy/compose/.env")
        return [self.directory / name for name in names if (self.directory / name).exists()]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Agent]:
    place, directory = tmp_path_factory.mktemp("docker"), tmp_path_factory.mktemp("agent") / "workspace"
    directory.mkdir()
    check_out(directory)
    (directory / "dev").mkdir()
    (directory / "dev" / "own.txt").write_text(f"{PACKAGE}==1.0\n")
    (directory.parent / "secret-file").write_text(ENV_FILE)
    with PackageIndex(tmp_path_factory.mktemp("nexus"), beyond=public_index()) as index, DockerEngine(place) as engine:
        base = import_base(engine, request.config.cache.mkdir("debian-base"))
        stand_ins = PROJECT / "orchestrator_tests/packaging/compose"
        dockerfile = ("--file", str(stand_ins / "postgres.Dockerfile"))
        engine.build(stand_ins, *dockerfile, "--build-arg", f"BASE_IMAGE={base}", "--tag", "services:test")
        agent = Agent(directory, index, base, engine)
        agent.steps("credentials", "requirements", "build", build=1)
        engine.end()
        with DockerEngine(place, own_network=True) as apart:
            agent.engine, agent.apart = apart, True
            agent.steps("up", build=1)
            yield agent


def test_the_image_has_the_packages_of_ones_own_and_the_login_is_in_no_layer(agent: Agent) -> None:
    code = f"import {MODULE}; print({MODULE}.WORDS)"
    assert agent.engine.run("exec", agent.running(), "python", "-c", code) == "hello of acme"
    assert agent.image_that_runs() == agent.image("orchestrator:1")
    assert where_found(agent.engine, "orchestrator:1", PASSWORD.encode()) == []
    described = agent.engine.run("history", "--no-trunc", "orchestrator:1") + agent.engine.run(
        "inspect", "orchestrator:1", agent.running()
    )
    assert PASSWORD not in described


def test_a_build_is_trained_on_the_sandbox_and_nothing_of_the_login_stays(agent: Agent) -> None:
    agent.apart = False  # the sandbox is on the agent itself, which installs from the index
    agent.steps("smoke", build=1, SMOKE="make demo", ARGS=f"--once --port {free_port()}")
    assert "deployed orchestrator:1" in agent.output
    agent.apart = True
    agent.steps("clean", build=1)
    assert agent.left() == []
    assert agent.holding(PASSWORD) == []
    assert agent.holding(SECRET) == []
    assert (agent.directory / ON_THE_AGENT).is_dir()  # what the containers read


def test_a_version_that_does_not_get_ready_gives_way_to_the_one_before_and_migrates_nothing(agent: Agent) -> None:
    before = agent.migration()
    dockerfile = agent.directory / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text() + 'ENTRYPOINT ["sh", "-c", "echo it asks for a migration; exit 1"]\n')
    agent.steps("credentials", "requirements", "build", build=2)
    assert agent.step("up", build=2, READY_SECONDS="20") == 1
    assert "it asks for a migration" in agent.output
    assert "orchestrator:2 did not answer 200" in agent.output
    agent.steps("rollback", "clean", build=2)
    assert agent.image_that_runs() == agent.image("orchestrator:1")
    assert agent.migration() == before
    assert agent.left() == []
    assert agent.holding(PASSWORD) == []

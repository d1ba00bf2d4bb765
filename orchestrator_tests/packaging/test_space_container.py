"""The image of a Hugging Face Space, run under its rules: user 1000, nothing to write to, a few ports that get out."""

from __future__ import annotations

import json
import secrets
from contextlib import suppress

import pytest
import requests

from orchestrator.errors import SandboxError
from orchestrator.operate.space.repository import write_space
from orchestrator_sandbox.docker_engine import DockerEngine
from orchestrator_tests.support.base_image import import_base
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.postgres import Postgres
from orchestrator_tests.support.space_network import REACHES, SPACE, WORLD, cable, relay
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.matrix

NAME = "acme-orchestrator.hf.space"
START_SECONDS = 300


@pytest.fixture(scope="module")
def image(docker_engine: DockerEngine, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    base = import_base(docker_engine, request.config.cache.mkdir("debian-base"))
    directory = tmp_path_factory.mktemp("space")
    write_space(directory, title="Acme", deployment="acme", source=PROJECT, image=None, pipelines=None)
    docker_engine.build(directory, "--build-arg", f"BASE_IMAGE={base}", "--tag", "space:test")
    return "space:test"


def test_it_works_as_a_space_may(docker_engine: DockerEngine, image: str) -> None:
    with Postgres() as server:
        database = server.new_database()
        url = server.url(database).replace(f"127.0.0.1:{server.port}", f"{WORLD}:443")
        variables = {
            "SPACE_ID": "acme/orchestrator",
            "SPACE_HOST": NAME,
            "DAGSTER_POSTGRES_URL": url,
            "UI_TOKEN": secrets.token_hex(32),
            "SSH_PRIVATE_KEY": "the text of a key",
        }
        options = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
        # It begins when its network is there.
        waits = "until [ -e /tmp/cable ]; do sleep 0.1; done; rm /tmp/cable; exec tini -g -- space-entrypoint.sh"
        container = docker_engine.run(
            *("run", "--detach", "--network=none", "--user=1000", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL"),
            *("--tmpfs=/home/orchestrator:uid=1000", *options, "--entrypoint=sh", image, "-c", waits),
        )
        pid = int(docker_engine.run("inspect", "--format={{.State.Pid}}", container))

        def ready() -> bool:
            (described,) = json.loads(docker_engine.run("inspect", container))
            assert described["State"]["Running"], docker_engine.run("logs", container)
            with suppress(requests.RequestException):
                return requests.get(f"http://{SPACE}:7860/health/ready", headers={"Host": NAME}, timeout=10).ok
            return False

        with cable(pid), relay(443, to=server.port), relay(5432, to=server.port):
            docker_engine.run("exec", container, "touch", "/tmp/cable")
            until(ready, seconds=START_SECONDS, every=1)
            page = requests.get(f"http://{SPACE}:7860/", headers={"Host": NAME}, timeout=30)
            assert page.status_code == 401
            assert docker_engine.run("exec", container, "id", "-u") == "1000"
            assert docker_engine.run("exec", container, "cat", "/tmp/orchestrator-ssh-key") == "the text of a key"
            assert server.query("select count(*) from runs", database=database) is not None
            docker_engine.run("exec", container, "python", "-c", REACHES, WORLD, "443")
            with pytest.raises(SandboxError, match=r"timed out"):
                docker_engine.run("exec", container, "python", "-c", REACHES, WORLD, "5432")
            docker_engine.run("stop", "--time", "30", container)

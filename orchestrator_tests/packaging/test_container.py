"""The Dockerfile, built by a real Docker Engine on Debian's packages: what is in the image, how it starts and stops.

And deploy/compose with that image, in a network namespace of its own: `docker-compose` of Debian, its networks and
published ports, PostgreSQL and Redis of Debian. Jenkins is the sandbox's, because no registry of images can be asked.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import requests

from orchestrator.errors import SandboxError
from orchestrator_sandbox.docker_engine import DockerEngine
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.base_image import import_base
from orchestrator_tests.support.dockerfile import PROJECT, check_out
from orchestrator_tests.support.group_index import MODULE, USER, GroupIndex
from orchestrator_tests.support.layers import where_found
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

TOKEN = "a-token-of-the-ui-for-the-tests-only"
START_SECONDS = 600
MEGABYTE = 1_000_000
LARGEST = 700 * MEGABYTE
PATIENCE_SECONDS = 60

SERVED: Mapping[str, str] = {"ORCHESTRATOR_DEPLOYMENT": "team-a", "UI_TOKEN": TOKEN, "UI_INSECURE": "true"}

PLANTED = (
    *(".env", "key.pem", "id_ed25519", ".netrc", ".git/config", "secrets/password", "deploy/container/.env"),
    *("orchestrator/.env", "orchestrator/defs/example/key.pem", "orchestrator/defs/example/.netrc"),
    *("orchestrator/defs/example/private.key", "orchestrator_tests/token", "notes.txt"),
)


@dataclass(frozen=True)
class BuiltImage:
    """An image, and what must not be in it.

    Attributes:
        planted: in each file of the build context that no image needs.
        password: of the package index.
    """

    engine: DockerEngine
    base: str
    name: str
    planted: str
    password: str

    def start(self, *options: str, environment: Mapping[str, str] = SERVED) -> str:
        """Start a container; return its ID."""
        words = [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
        return self.engine.run("run", "--detach", "--network=host", *words, *options, self.name)

    def ended(self, *options: str, environment: Mapping[str, str]) -> tuple[int, str]:
        """The exit status and the output of a container that ends by itself."""
        container = self.start(*options, environment=environment)
        status = int(self.engine.run("wait", container, seconds=START_SECONDS))
        return status, self.output(container)

    def output(self, container: str) -> str:
        """Its standard error, and its standard output."""
        done = subprocess.run(
            ["docker", "logs", container],
            env=self.engine.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        return done.stdout

    def in_container(self, container: str, *words: str) -> str:
        return self.engine.run("exec", container, *words)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout, as `git clone` brings it."""
    directory = tmp_path_factory.mktemp("context")
    check_out(directory)
    return directory


@pytest.fixture(scope="module")
def docker_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    """One of our own, because the compose file is tried by another engine on what this one has built."""
    with DockerEngine(tmp_path_factory.mktemp("docker")) as engine:
        yield engine


@pytest.fixture(scope="module")
def base(docker_engine: DockerEngine, request: pytest.FixtureRequest) -> str:
    return import_base(docker_engine, request.config.cache.mkdir("debian-base"))


@pytest.fixture(scope="module")
def image(
    docker_engine: DockerEngine, base: str, context: Path, tmp_path_factory: pytest.TempPathFactory
) -> BuiltImage:
    planted, password = f"planted-{secrets.token_hex(16)}", f"password-{secrets.token_hex(16)}"
    for name in PLANTED:
        file = context / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{planted}\n")
    (context / "team-requirements.txt").write_text(f"{GroupIndex.package}==1.0\n")
    (context / "public-requirements.txt").write_text("iniconfig\n")
    netrc = tmp_path_factory.mktemp("secret") / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login {USER} password {password}\n")
    with GroupIndex(password=password) as index:
        docker_engine.build(
            context,
            *("--build-arg", f"BASE_IMAGE={base}", "--build-arg", f"INDEX_URL={index.url}"),
            *("--build-arg", "EXTRAS=postgres,celery,docker"),
            *("--build-arg", "REQUIREMENTS=public-requirements.txt"),
            *("--build-arg", "CUSTOM_REQUIREMENTS=team-requirements.txt", "--secret", f"id=netrc,src={netrc}"),
            *("--tag", "orchestrator:test"),
        )
    return BuiltImage(docker_engine, base, "orchestrator:test", planted, password)


@pytest.fixture
def served(image: BuiltImage) -> Iterator[tuple[str, str]]:
    """A container whose files nobody can change but for its volume and /tmp, and its address."""
    port = free_port()
    limits = ("--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--tmpfs=/tmp")
    container = image.start(*limits, environment={**SERVED, "PORT": str(port)})
    yield container, f"http://127.0.0.1:{port}"
    image.engine.run("rm", "--force", "--volumes", container)


def test_no_layer_holds_what_was_planted_nor_the_login_of_the_index(image: BuiltImage) -> None:
    assert where_found(image.engine, image.name, image.planted.encode(), image.password.encode()) == []
    everything = image.engine.run("history", "--no-trunc", image.name) + image.engine.run("inspect", image.name)
    assert image.planted not in everything
    assert image.password not in everything


def test_it_is_small(image: BuiltImage) -> None:
    sizes = [int(image.engine.run("inspect", "--format={{.Size}}", name)) for name in (image.name, image.base)]
    assert sizes[0] - sizes[1] <= LARGEST


def test_what_was_made_smaller_still_loads(image: BuiltImage) -> None:
    """Each compiled file of a package, and not only those that a test happens to import."""
    code = (
        "import ctypes, os, pathlib, sysconfig\n"
        "site = pathlib.Path(sysconfig.get_path('purelib'))\n"
        "files = [file for file in site.rglob('*.so*') if not file.parent.name.endswith('.libs')]\n"
        "import numpy, pandas, scipy.linalg, scipy.optimize, sklearn.ensemble, pyarrow.parquet, pyarrow.dataset\n"
        "for file in files: ctypes.CDLL(str(file), mode=os.RTLD_LAZY)\n"
        "print(len(files), flush=True)\n"
        "os._exit(0)"  # some are not made to be unloaded after others
    )
    words = ("--rm", "--network=none", "--entrypoint=python", image.name, "-c", code)
    assert int(image.engine.run("run", *words, seconds=START_SECONDS)) > 200
    git = ("--rm", "--network=none", "--entrypoint=git", image.name, "ls-remote", "https://127.0.0.1:9/nothing")
    with pytest.raises(SandboxError, match="Failed to connect"):  # by its program for https
        image.engine.run("run", *git)


def test_its_user_is_a_number_and_owns_the_volume(image: BuiltImage) -> None:
    (described,) = json.loads(image.engine.run("inspect", image.name))
    assert described["Config"]["User"] == "1000:1000"
    assert list(described["Config"]["Volumes"]) == ["/var/lib/orchestrator"]
    stat = ("--rm", "--entrypoint=stat", image.name, "--format=%u:%g %a", "/var/lib/orchestrator", "/home/orchestrator")
    assert image.engine.run("run", "--network=none", *stat).splitlines() == ["1000:1000 700"] * 2


def test_it_starts_lets_in_who_logs_in_gets_healthy_and_stops(image: BuiltImage, served: tuple[str, str]) -> None:
    container, url = served

    def health() -> str:
        (described,) = json.loads(image.engine.run("inspect", container))
        assert described["State"]["Running"], image.output(container)
        return str(described["State"]["Health"]["Status"])

    until(lambda: health() == "healthy", seconds=START_SECONDS, every=1)
    assert requests.get(f"{url}/server_info", timeout=30, allow_redirects=False).status_code in (302, 303, 401)
    with requests.Session() as browser:
        browser.get(f"{url}/", params={"token": TOKEN}, timeout=30)
        assert browser.get(f"{url}/server_info", timeout=30).json()["dagster_version"]
    assert image.in_container(container, "id", "-u") == "1000"
    assert "PostgreSQL" in image.in_container(container, "pg_dump", "--version")
    assert image.in_container(container, "python", "-c", f"import {MODULE}; print({MODULE}.FEATURES)") == "7"
    imports = "import iniconfig, mlflow.sklearn, dagster_mlflow, pandas, pyarrow.parquet, pyarrow.dataset"
    assert image.in_container(container, "python", "-c", imports) == ""
    image.engine.run("stop", f"--time={PATIENCE_SECONDS}", container, seconds=2 * PATIENCE_SECONDS)
    # 137: it was killed. On a quiet machine it ends within 10 s, which is what `docker stop` waits by default.
    assert image.engine.run("inspect", "--format={{.State.ExitCode}}", container) == "143"


@pytest.mark.parametrize(
    ("left_out", "sentence"),
    [
        ("ORCHESTRATOR_DEPLOYMENT", "ORCHESTRATOR_DEPLOYMENT is not set; give this installation a name that lasts"),
        ("UI_TOKEN", "UI_TOKEN is not set, nobody can log in otherwise"),
        ("UI_INSECURE", "would read passwords and tokens, because there is no TLS"),
    ],
)
def test_a_start_without_what_it_needs_ends_in_one_sentence(image: BuiltImage, left_out: str, sentence: str) -> None:
    environment = {name: value for name, value in SERVED.items() if name != left_out}
    status, output = image.ended("--rm=false", environment=environment)
    (line,) = output.splitlines()
    assert line.startswith("orchestrator: ")
    assert sentence in line
    assert status == 1


def test_a_volume_of_somebody_else_is_named_with_what_mends_it(image: BuiltImage, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    status, output = image.ended("--volume", f"{tmp_path}:/var/lib/orchestrator", environment=SERVED)
    (line,) = output.splitlines()
    assert "cannot write to DAGSTER_HOME" in line
    assert "chown 1000" in line
    assert status == 1


def test_a_login_in_the_address_of_the_index_is_refused(image: BuiltImage, context: Path) -> None:
    with pytest.raises(SandboxError, match="give it as --secret id=netrc"):
        image.engine.build(
            context,
            *("--build-arg", f"BASE_IMAGE={image.base}", "--build-arg", "INDEX_URL=https://me:pw@index.example/simple"),
        )


@dataclass(frozen=True)
class Composed:
    """What `docker-compose` has brought up.

    Attributes:
        directory: of its compose.yaml.
        profile: which of the three `serve`.
    """

    engine: DockerEngine
    directory: Path
    profile: str

    def compose(self, *words: str, seconds: float = 600) -> str:
        files = ("--file", str(self.directory / "compose.yaml"), "--file", str(self.directory / "test.yaml"))
        done = subprocess.run(
            ["/usr/bin/docker-compose", *files, "--profile", self.profile, "--profile", "jenkins", *words],
            env=self.engine.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def container(self, service: str) -> str:
        return self.compose("ps", "--quiet", service).strip()

    def is_healthy(self, service: str) -> bool:
        (described,) = json.loads(self.engine.run("inspect", self.container(service)))
        return bool(described["State"]["Health"]["Status"] == "healthy")

    def secret(self, name: str) -> str:
        return (self.directory / "secrets" / name).read_text()

    def counted(self, what: str) -> int:
        """How many rows of the database are so."""
        count = f"--command=SELECT count(*) FROM {what}"
        psql = ("psql", "--user=orchestrator", "--tuples-only", count, "orchestrator")
        return int(self.engine.run("exec", "--user=postgres", self.container("postgres"), *psql))

    def assert_no_secret_is_described(self, *containers: str) -> None:
        described = self.engine.run("inspect", *containers)
        for name in ("POSTGRES_PASSWORD", "UI_TOKEN", "JENKINS_TOKEN", "REDIS_PASSWORD"):
            assert self.secret(name) not in described

    def asked(self, url: str, token: str = "") -> str:
        """What a program on the machine is answered; the machine being the engine's network namespace."""
        code = (
            "import sys, urllib.request as u\n"
            "request = u.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.stdin.read()})\n"
            "print(u.build_opener(u.ProxyHandler({})).open(request, timeout=30).read().decode())"
        )
        words = self.engine.inside(sys.executable, "-c", code, url)
        done = subprocess.run(words, input=token, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


OVERRIDE = """
services:
  jenkins:
    image: orchestrator:test
    entrypoint: [tini, --, python, /checkout/orchestrator_tests/packaging/compose/jenkins.py]
    environment: {PYTHONPATH: /checkout, HOME: /tmp}
    volumes: ["CHECKOUT:/checkout:ro"]
    healthcheck:
      test: [CMD, python, -c, "import socket; socket.create_connection(('127.0.0.1', 8080), 5)"]
  serve-docker:
    volumes: ["SOCKET:/var/run/docker.sock"]
"""
EVERYWHERE = ("postgres", "mlflow", "git", "jenkins")


@pytest.fixture(scope="module")
def apart(image: BuiltImage, context: Path) -> Iterator[tuple[DockerEngine, Path]]:
    """An engine in a network of its own, and deploy/compose, prepared for it."""
    stand_ins = PROJECT / "orchestrator_tests/packaging/compose"
    dockerfile = ("--file", str(stand_ins / "postgres.Dockerfile"))
    image.engine.build(stand_ins, *dockerfile, "--build-arg", f"BASE_IMAGE={image.base}", "--tag", "services:test")
    image.engine.end()
    directory = context / "deploy/compose"
    subprocess.run([directory / "prepare"], capture_output=True, check=True)
    context.chmod(0o755)
    with DockerEngine(image.engine.directory, own_network=True) as engine:
        socket = Path(engine.host.removeprefix("unix://"))
        settings = {
            "ORCHESTRATOR_IMAGE": "orchestrator:test",
            "POSTGRES_IMAGE": "services:test",
            "REDIS_IMAGE": "services:test",
            "DOCKER_GROUP": str(socket.stat().st_gid),
        }
        with (directory / ".env").open("a") as file:
            file.writelines(f"{name}={text}\n" for name, text in settings.items())
        (directory / "test.yaml").write_text(OVERRIDE.replace("CHECKOUT", str(context)).replace("SOCKET", str(socket)))
        yield engine, directory


@contextmanager
def brought_up(apart: tuple[DockerEngine, Path], profile: str) -> Iterator[Composed]:
    engine, directory = apart
    composed = Composed(engine, directory, profile)
    composed.compose("up", "--detach", "--no-build", seconds=START_SECONDS)
    yield composed
    composed.compose("down", "--volumes", "--timeout", "60")
    assert engine.run("ps", "--all", "--quiet") == ""


@pytest.fixture
def on_celery(apart: tuple[DockerEngine, Path]) -> Iterator[Composed]:
    with brought_up(apart, "celery") as composed:
        yield composed


@pytest.fixture
def on_docker(apart: tuple[DockerEngine, Path]) -> Iterator[Composed]:
    with brought_up(apart, "docker-launcher") as composed:
        yield composed


def test_the_compose_file_brings_up_a_server_that_lets_in_and_sees_jenkins(on_celery: Composed) -> None:
    for service in (*EVERYWHERE, "redis", "serve-celery", "flower"):
        until(partial(on_celery.is_healthy, service), seconds=START_SECONDS, every=1)
    ping = ("celery", "--app", "orchestrator.launchers.app", "inspect", "ping", "--timeout=30")
    assert "pong" in on_celery.engine.run("exec", on_celery.container("worker"), *ping, seconds=START_SECONDS)
    version = on_celery.asked("http://127.0.0.1:7860/server_info", on_celery.secret("UI_TOKEN"))
    assert json.loads(version)["dagster_version"]
    assert "MLflow" in on_celery.asked("http://127.0.0.1:5000/")
    # Jenkins' green build of the sample: launched through Redis, executed by the worker as far as one gets without an
    # AMI, recorded in PostgreSQL.
    until(lambda: on_celery.counted("runs WHERE status = 'FAILURE'"), seconds=START_SECONDS)
    on_celery.assert_no_secret_is_described(*on_celery.engine.run("ps", "--quiet").split())


@pytest.mark.matrix
def test_with_the_profile_docker_launcher_a_run_has_a_container_whose_description_holds_no_secret(
    on_docker: Composed,
) -> None:
    def of_a_run() -> str:
        return on_docker.engine.run("ps", "--quiet", "--filter", "label=dagster/run_id")

    container = until(of_a_run, seconds=START_SECONDS, every=0.2).split()[0]
    on_docker.assert_no_secret_is_described(container)
    # It reads settings and secrets, PostgreSQL and Jenkins, and gets as far as one does without an AMI.
    until(lambda: on_docker.counted("runs WHERE status = 'FAILURE'"), seconds=START_SECONDS)
    assert on_docker.counted("event_logs WHERE event LIKE '%AMI_ID is not set%'")
    until(lambda: not of_a_run(), seconds=60)  # with all that it was given
    for service in (*EVERYWHERE, "serve-docker"):
        until(partial(on_docker.is_healthy, service), seconds=START_SECONDS, every=1)

"""The steps of deploy/jenkins, with a real Docker Engine, docker-compose, and a package index that wants a login."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from orchestrator_sandbox.docker_engine import DockerEngine
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.package_index import MODULE, PACKAGE, PASSWORD, USER, PackageIndex

pytestmark = pytest.mark.services

SCRIPT = Path(__file__).parents[2] / "deploy" / "jenkins" / "deploy.sh"
WHEEL = f"{MODULE}-1.0-py3-none-any.whl"

# As the Dockerfile of the orchestrator does it: the same arguments, the same secret; of a shell instead of Python.
DOCKERFILE = """
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
ARG INDEX_URL
ARG REQUIREMENTS=""
ARG CUSTOM_REQUIREMENTS=""
COPY . /context
RUN --mount=type=secret,id=netrc,target=/root/.netrc set -eu; set -- $(cat /root/.netrc); \\
  login=$(printf %s "$4:$6" | base64); \\
  for file in $REQUIREMENTS $CUSTOM_REQUIREMENTS; do while read -r wheel; do \\
    wget -q --header "Authorization: Basic $login" -O "/$wheel" "${INDEX_URL%/simple}/packages/$wheel"; \\
  done <"/context/$file"; done
"""

COMPOSE = """
services:
  serve:
    profiles: [local]
    image: ${ORCHESTRATOR_IMAGE}
    command: httpd -f -p 127.0.0.1:${PORT} -h /context/www
    init: true
    environment: {SETTING: "${SETTING}"}
    network_mode: host
"""


@dataclass(frozen=True)
class Workspace:
    """A checkout on Jenkins' agent."""

    directory: Path
    engine: DockerEngine
    index: PackageIndex
    port: int

    def step(self, *names: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run some steps until one fails."""
        environment = {
            **os.environ,
            "PATH": f"/usr/bin:{os.environ['PATH']}",  # Debian's client, which has BuildKit built in
            "DOCKER_HOST": self.engine.host,
            "COMPOSE_PROJECT_NAME": f"deployed{self.port}",
            "NEXUS_URL": self.index.url,
            "NEXUS_USER": USER,
            "NEXUS_PASSWORD": PASSWORD,
            "ENV_FILE": str(self.directory / "secret-file"),
            "DEV_DIR": "dev",
            "CUSTOM_REQUIREMENTS": "own.txt",
            "BASE_IMAGE": "box",
            "BUILD_OPTIONS": "--network host",
            "PORT": str(self.port),
            "READY_SECONDS": "20",
            "SMOKE": "true",
            **variables,
        }
        for name in names:
            done = subprocess.run(
                [SCRIPT, name], cwd=self.directory, env=environment, capture_output=True, text=True, timeout=300
            )
            if done.returncode != 0:
                break
        return done

    def version(self, text: str, *, ready: bool = True) -> None:
        """Change what the image holds."""
        shutil.rmtree(self.directory / "www", ignore_errors=True)
        (self.directory / "www" / "health").mkdir(parents=True)
        (self.directory / "www" / "version").write_text(text)
        if ready:
            (self.directory / "www" / "health" / "ready").write_text("ready")

    def running(self) -> str:
        return requests.get(f"http://127.0.0.1:{self.port}/version", timeout=30).text

    def holding(self, secret: str) -> list[Path]:
        files = [file for file in self.directory.rglob("*") if file.is_file()]
        return [file for file in files if secret in file.read_text(errors="replace")]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackageIndex]:
    with PackageIndex(tmp_path_factory.mktemp("nexus")) as index:
        yield index


@pytest.fixture
def workspace(tmp_path: Path, docker_engine: DockerEngine, index: PackageIndex) -> Workspace:
    box = io.BytesIO()
    with tarfile.open(fileobj=box, mode="w") as tar:
        tar.add("/usr/bin/busybox", "bin/busybox")
        programs = ("sh", "cat", "printf", "base64", "wget", "httpd")
        for program in programs:
            link = tarfile.TarInfo(f"bin/{program}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for folder in ("root", "tmp", "proc", "dev", "sys"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
    docker_engine.run("import", "--change", "ENV PATH=/bin", "-", "box", stdin=box.getvalue())
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / ".dockerignore").write_text("*\n!www\n!*requirements*.txt\n")
    (tmp_path / "deploy" / "compose").mkdir(parents=True)
    (tmp_path / "deploy" / "compose" / "compose.yaml").write_text(COMPOSE)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "own.txt").write_text(f"{WHEEL}\n")
    (tmp_path / "secret-file").write_text("COMPOSE_PROFILES=local\nSETTING=secret-of-the-installation\n")
    return Workspace(tmp_path, docker_engine, index, free_port())


ALL = ("credentials", "requirements", "build", "up", "smoke", "clean")


def test_a_version_is_deployed_and_no_login_stays_behind(workspace: Workspace) -> None:
    workspace.version("one")
    done = workspace.step(*ALL, BUILD_NUMBER="1")
    assert done.returncode == 0, done.stderr
    assert workspace.running() == "one"
    (container,) = workspace.engine.containers(f"com.docker.compose.project=deployed{workspace.port}")
    assert "SETTING=secret-of-the-installation" in workspace.engine.run("inspect", container)
    assert not workspace.holding(PASSWORD)
    assert [file.name for file in workspace.holding("secret-of-the-installation")] == ["secret-file"]
    assert not list(workspace.directory.glob(".deploy")) + list(workspace.directory.glob("jenkins-*"))
    image = "orchestrator:1"
    archive = workspace.directory / "image.tar"
    workspace.engine.run("save", "--output", str(archive), image)
    assert PASSWORD.encode() not in archive.read_bytes()
    assert PASSWORD not in workspace.engine.run("history", "--no-trunc", image)
    assert PASSWORD not in workspace.engine.run("image", "inspect", image)
    assert WHEEL in workspace.engine.run(
        "run", "--rm", "--network=host", image, "sh", "-c", "cat /context/*.txt; echo /*"
    )


def test_a_version_that_does_not_get_ready_gives_way_to_the_one_before(workspace: Workspace) -> None:
    workspace.version("one")
    assert workspace.step(*ALL, BUILD_NUMBER="21").returncode == 0
    workspace.version("two", ready=False)
    done = workspace.step(*ALL, BUILD_NUMBER="22", READY_SECONDS="3")
    assert done.returncode == 1
    assert "did not answer 200" in done.stderr
    assert "migrate it by hand" in done.stderr
    assert workspace.running() == "two"
    done = workspace.step("rollback", "rollback", "clean", BUILD_NUMBER="22")
    assert done.returncode == 0, done.stderr
    assert workspace.running() == "one"
    assert not workspace.holding(PASSWORD)


def test_a_version_whose_training_fails_is_taken_back_too_also_after_jenkins_was_killed(workspace: Workspace) -> None:
    workspace.version("one")
    assert workspace.step(*ALL, BUILD_NUMBER="31").returncode == 0
    workspace.version("two")
    assert (
        workspace.step("credentials", "requirements", "build", "up", BUILD_NUMBER="32").returncode == 0
    )  # killed here
    workspace.version("three")
    done = workspace.step(*ALL, BUILD_NUMBER="33", SMOKE="false")
    assert (done.returncode, done.stderr) == (1, "deploy: no build could be trained on the sandbox\n")
    assert workspace.step("rollback", "clean", BUILD_NUMBER="33").returncode == 0
    assert workspace.running() == "one"


def test_the_first_version_of_all_is_stopped_when_it_does_not_get_ready(workspace: Workspace) -> None:
    workspace.version("one", ready=False)
    assert workspace.step(*ALL, BUILD_NUMBER="41", READY_SECONDS="2").returncode == 1
    done = workspace.step("rollback", BUILD_NUMBER="41")
    assert "there is no image to go back to" in done.stderr
    with pytest.raises(requests.ConnectionError):
        workspace.running()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"NEXUS_URL": "https://ada:s3cret@nexus.example.com/simple"}, "NEXUS_URL holds a login"),
        ({"NEXUS_URL": "nexus.example.com"}, "NEXUS_URL is no address"),
        ({"NEXUS_PASSWORD": "s3cret word"}, "holds a blank"),
        ({"CUSTOM_REQUIREMENTS": "../../etc/passwd"}, "is no file of DEV_DIR"),
        ({"REQUIREMENTS": "none.txt"}, "there is no none.txt in DEV_DIR"),
        ({"NEXUS_PASSWORD": "wrong", "BUILD_OPTIONS": "--network host --no-cache"}, "403 Forbidden"),
    ],
)
def test_what_cannot_go_well_is_told(workspace: Workspace, variables: dict[str, str], words: str) -> None:
    workspace.version("one")
    done = workspace.step("credentials", "requirements", "build", BUILD_NUMBER="51", **variables)
    assert done.returncode != 0
    assert words in done.stderr
    assert "s3cret" not in done.stderr + done.stdout
    assert workspace.step("rollback", "clean", **variables).returncode == 0
    assert not list(workspace.directory.rglob("netrc"))


def test_requirement_files_may_lie_on_a_server_that_wants_the_login(workspace: Workspace) -> None:
    (workspace.index.packages / "own-requirements-1.0.zip").write_text(f"{WHEEL}\n")  # whatever it hands out
    place = workspace.index.url.replace("/simple", "/packages")
    names = {"DEV_DIR": place, "CUSTOM_REQUIREMENTS": "own-requirements-1.0.zip"}
    assert workspace.step("credentials", "requirements", **names).returncode == 0
    assert (workspace.directory / "jenkins-custom-requirements.txt").read_text() == f"{WHEEL}\n"
    done = workspace.step("credentials", "requirements", **names, NEXUS_PASSWORD="wrong")
    assert "could not be fetched from DEV_DIR" in done.stderr


def test_what_a_projects_own_jenkinsfile_does_installs_from_the_index_and_leaves_no_login(
    index: PackageIndex, tmp_path: Path
) -> None:
    page = (SCRIPT.parents[2] / "docs" / "private-packages.md").read_text()
    script = page.partition("sh '''")[2].partition("'''")[0].replace("\\\\n", "\\n")  # as Groovy reads it
    address = "https://nexus.example.com/repository/pypi-all/simple"
    test = ".venv/bin/pytest"
    assert address in script
    assert test in script
    script = script.replace(address, index.url).replace("nexus.example.com", "localhost")
    script = script.replace(test, f".venv/bin/python -c 'import {MODULE}' && echo tested")
    (tmp_path / "requirements.txt").write_text(f"{PACKAGE}==1.0\n")
    (tmp_path / "tmp").mkdir()

    def run(password: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{sys.base_prefix}/bin:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path / "tmp"),
            "NEXUS_USER": USER,
            "NEXUS_PASSWORD": password,
        }
        words = ["sh", "-xe", "-c", script]  # as Jenkins runs it
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    refused = run("wrong")
    assert refused.returncode != 0
    done = run(PASSWORD)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["tested"]), done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
    assert PASSWORD not in done.stdout
